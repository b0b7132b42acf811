//! `netpol-agent collect`: the state of a cluster as a file.

use crate::trim::{self, CLUSTER_POLICY_API, POLICY_API, WatchedPod};
use crate::watch::{self, PAGE};
use crate::{Error, watch::is_status};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::io::Write;
use std::path::Path;

/// Writes namespaces, nodes and pods, and policies if they are asked for, to standard output.
///
/// # Errors
/// If the API server cannot be reached or does not let us list.
pub async fn collect(kubeconfig: Option<&Path>, policies: bool) -> Result<(), Error> {
    let client = watch::client(kubeconfig).await?;
    let plain = |kind: &'static str, fields: &'static [&'static str]| {
        move |o: &DynamicObject| trim::trimmed(o, "v1", kind, fields)
    };
    let mut items = list(&api(&client, "", "v1", "Namespace"), plain("Namespace", &[])).await?;
    items.extend(list(&api(&client, "", "v1", "Node"), trim::node_object).await?);
    items.extend(list(&Api::<WatchedPod>::all(client.clone()), trim::pod_object).await?);
    if policies {
        let api_v1 = api(&client, "networking.k8s.io", "v1", "NetworkPolicy");
        let read = |o: &DynamicObject| trim::trimmed(o, POLICY_API, "NetworkPolicy", &["spec"]);
        items.extend(list(&api_v1, read).await?);
        let cluster = api(&client, "policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy");
        let read =
            |o: &DynamicObject| trim::trimmed(o, CLUSTER_POLICY_API, "ClusterNetworkPolicy", &["spec"]);
        match list(&cluster, read).await {
            // Most clusters do not have them.
            Err(Error::Api(error)) if is_status(&error, 404) => {}
            other => items.extend(other?),
        }
    }
    let text = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    let out = std::io::stdout();
    writeln!(out.lock(), "{text:#}").map_err(|e| Error::io("standard output", e))
}

fn api(client: &Client, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind)))
}

/// All objects of a kind, trimmed, in the order of their names.
async fn list<K>(api: &Api<K>, trim: impl Fn(&K) -> Value) -> Result<Vec<Value>, Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut objects: Vec<(String, Value)> = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await.map_err(Error::api)?;
        objects.extend(page.items.iter().map(|o| (trim::key(o.meta()), trim(o))));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    objects.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(objects.into_iter().map(|(_, object)| object).collect())
}
