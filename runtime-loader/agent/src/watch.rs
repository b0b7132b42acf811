//! The watches: lists and changes from the API server to the engine, object by object, trimmed as they arrive.

use crate::engine::Message;
use crate::fixed::Fixed;
use crate::metrics::Metrics;
use crate::store::{Kind, Object, Told};
use crate::trim::{self, CLUSTER_POLICY_API, WatchedPod};
use crate::{Error, log};
use futures::StreamExt;
use kube::api::{ApiResource, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep};

/// Objects of one page of a list: what is in memory before it is trimmed.
pub(crate) const PAGE: u32 = 250;
/// After so long a watch is begun anew, so a connection that died silently is noticed.
const WATCH_SECONDS: u32 = 120;
/// After so long a connection that cannot be made is tried anew. One that was begun before kube-proxy led the API server's
/// Service anywhere never gets there, however often TCP repeats it: both programs start with the node.
const CONNECT: Duration = Duration::from_secs(3);
/// The first and the longest wait before another try.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// After so long without a failure, the next one is the first again.
const CALM: Duration = Duration::from_secs(30);
/// How often to look whether the cluster serves ClusterNetworkPolicies by now.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A client by a kubeconfig or, in a pod, by its service account.
///
/// # Errors
/// If there is neither, or it cannot be used.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let mut config = match kubeconfig {
        Some(path) => {
            let failed = |e: kube::config::KubeconfigError| Error::Config(format!("{}: {e}", path.display()));
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            let named =
                file.clusters.iter().any(|c| c.cluster.as_ref().is_some_and(|c| c.proxy_url.is_some()));
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?;
            // A proxy of the environment is for what is outside of the cluster, as NO_PROXY would say, which nobody reads here.
            if !named {
                config.proxy_url = None;
            }
            config
        }
        None => Config::incluster()
            .map_err(|e| Error::Config(format!("neither --kubeconfig nor a service account: {e}")))?,
    };
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS) + 10));
    config.connect_timeout = Some(CONNECT);
    // Without a list of its own the certificates of the system would be read, which need not be there, though none is checked.
    let unchecked = config.accept_invalid_certs || config.cluster_url.scheme_str() == Some("http");
    if unchecked && config.root_cert.is_none() {
        config.root_cert = Some(Vec::new());
    }
    // Tries again are ours to pace, so that each one is seen in the log and the metrics.
    config.default_retry = false;
    Client::try_from(config).map_err(|e| Error::Api(Box::new(e)))
}

/// Starts all watches; those of policies only if these are not fixed.
pub fn start(client: &Client, tell: &Sender<Message>, metrics: &Arc<Metrics>, fixed: Option<Fixed>) {
    let core = |kind: &str| ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", kind));
    let policies = ApiResource::from_gvk(&GroupVersionKind::gvk("networking.k8s.io", "v1", "NetworkPolicy"));
    let telling = |kind| Telling { kind, tell: tell.clone(), metrics: Arc::clone(metrics) };
    let namespaces = Api::all_with(client.clone(), &core("Namespace"));
    tokio::spawn(
        telling(Kind::Namespaces)
            .follow(namespaces, |o| trim::namespace(o).map(|n| Object::Namespace(Box::new(n)))),
    );
    let nodes = Api::all_with(client.clone(), &core("Node"));
    tokio::spawn(telling(Kind::Nodes).follow(nodes, |o| trim::node(o).map(|n| Object::Node(Box::new(n)))));
    let pods = Api::<WatchedPod>::all(client.clone());
    tokio::spawn(telling(Kind::Pods).follow(pods, |o| trim::pod(o).map(|p| Object::Pod(Box::new(p)))));
    if let Some(fixed) = fixed {
        let telling = telling(Kind::Policies);
        tokio::spawn(async move {
            for told in fixed.told() {
                telling.say(told).await;
            }
        });
        return;
    }
    let policies = Api::all_with(client.clone(), &policies);
    tokio::spawn(telling(Kind::Policies).follow(policies, |o| Ok(Object::Policy(Box::new(trim::policy(o))))));
    tokio::spawn(cluster_policies(client.clone(), telling(Kind::ClusterPolicies)));
}

/// ClusterNetworkPolicies exist only where someone installed them. As long as no one has, there are none.
async fn cluster_policies(client: Client, telling: Telling) {
    let gvk = GroupVersionKind::gvk("policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy");
    let resource = ApiResource::from_gvk(&gvk);
    let mut pace = Pace::new();
    loop {
        match client.list_api_group_resources(CLUSTER_POLICY_API).await {
            Ok(list) if list.resources.iter().any(|r| r.name == resource.plural) => {
                let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
                // Ends if the cluster does not serve them any more.
                telling
                    .clone()
                    .follow(api, |o| Ok(Object::ClusterPolicy(Box::new(trim::cluster_policy(o)))))
                    .await;
            }
            Err(error) if !is_status(&error, 404) => {
                telling.failed("cannot be looked for", &error);
                pace.wait().await;
            }
            Ok(_) | Err(_) => {
                telling.say(Told::Begin(telling.kind)).await;
                telling.say(Told::Complete(telling.kind)).await;
                sleep(LOOK_AGAIN).await;
            }
        }
    }
}

/// Waits between tries.
struct Pace {
    next: Duration,
    last: Option<Instant>,
}

impl Pace {
    fn new() -> Pace {
        Pace { next: WAITS.0, last: None }
    }

    async fn wait(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() > CALM) {
            self.next = WAITS.0;
        }
        sleep(self.next).await;
        self.next = (self.next * 2).min(WAITS.1);
        self.last = Some(Instant::now());
    }
}

/// One watch and whom it tells.
#[derive(Clone)]
struct Telling {
    kind: Kind,
    tell: Sender<Message>,
    metrics: Arc<Metrics>,
}

impl Telling {
    /// Follows one kind for ever, or until the API server does not know it any more.
    async fn follow<K>(self, api: Api<K>, read: impl Fn(&K) -> Result<Object, String> + Send)
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
        let mut pace = Pace::new();
        loop {
            let mut events = Box::pin(watcher(api.clone(), config.clone()));
            while let Some(event) = events.next().await {
                let told = match event {
                    Ok(Event::Init) => Told::Begin(self.kind),
                    Ok(Event::InitApply(object) | Event::Apply(object)) => self.read(&object, &read),
                    Ok(Event::Delete(object)) => Told::Gone(self.kind, trim::key(object.meta())),
                    Ok(Event::InitDone) => Told::Complete(self.kind),
                    Err(error) => {
                        self.failed("cannot be watched", &error);
                        if has_status(&error, 404) && self.kind == Kind::ClusterPolicies {
                            return;
                        }
                        pace.wait().await;
                        // The watcher lists again if a watch ends with 410, but not if none can begin because of it.
                        if matches!(error, watcher::Error::WatchStartFailed(_)) && has_status(&error, 410) {
                            break;
                        }
                        continue;
                    }
                };
                self.say(told).await;
            }
        }
    }

    fn read<K: Resource>(&self, object: &K, read: impl Fn(&K) -> Result<Object, String>) -> Told {
        match read(object) {
            Ok(object) => Told::Is(object),
            Err(fault) => {
                let key = trim::key(object.meta());
                let fields: [(&str, &dyn std::fmt::Display); 3] =
                    [("kind", &self.kind.plural()), ("object", &key), ("error", &fault)];
                log::error("an object cannot be read and is left out", &fields);
                self.metrics.unreadable.count();
                Told::Gone(self.kind, key)
            }
        }
    }

    async fn say(&self, told: Told) {
        // If the engine has ended, so does the process.
        let _ = self.tell.send(Message::Told(told, std::time::Instant::now())).await;
    }

    fn failed(&self, what: &str, error: &(dyn std::error::Error + 'static)) {
        self.metrics.watch_errors.count();
        let mut text = error.to_string();
        // The message of `kube` says what failed, its sources say why.
        let mut source = error.source();
        while let Some(error) = source {
            let more = error.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            source = error.source();
        }
        log::warn(what, &[("kind", &self.kind.plural()), ("error", &text)]);
    }
}

pub(crate) fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

fn has_status(error: &watcher::Error, code: u16) -> bool {
    match error {
        watcher::Error::InitialListFailed(e)
        | watcher::Error::WatchStartFailed(e)
        | watcher::Error::WatchFailed(e) => is_status(e, code),
        watcher::Error::WatchError(status) => status.code == code,
        watcher::Error::NoResourceVersion => false,
    }
}
