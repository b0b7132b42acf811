//! Workloads: what they say about the pods that they will make.

use super::decode::{Unknown, decode};
use super::pods::{Meta, PodSpec, planned};
use super::report::Report;
use super::tree::Path;
use super::validate::selector::{check_labels, selector};
use super::validate::{meta, names};
use crate::objects::{Pod, Workload};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Written {
    metadata: Meta,
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    selector: Option<LabelSelector>,
    template: Template,
    /// Of a Job: whether the server leaves selector and labels alone.
    manual_selector: bool,
    /// Of a StatefulSet.
    ordinals: Ordinals,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ordinals {
    start: i32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Template {
    metadata: Meta,
    spec: PodSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WrittenCronJob {
    metadata: Meta,
    spec: CronJobSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CronJobSpec {
    job_template: JobTemplate,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JobTemplate {
    spec: Spec,
}

/// Reads a workload of this kind; `None` if it has errors.
pub(super) fn read(kind: &str, report: &Report<'_, '_>) -> Option<Workload> {
    let root = Path::ROOT;
    let outer = root.key("spec");
    if kind == "CronJob" {
        let written: WrittenCronJob = decode(report, Unknown::Ignore)?;
        let template = outer.key("jobTemplate");
        convert(kind, &written.metadata, written.spec.job_template.spec, report, &template.key("spec"))
    } else {
        let written: Written = decode(report, Unknown::Ignore)?;
        convert(kind, &written.metadata, written.spec, report, &outer)
    }
}

fn convert(
    kind: &str,
    metadata: &Meta,
    spec: Spec,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Option<Workload> {
    if report.wrong_types() {
        return None;
    }
    let (name, namespace) = (metadata.own_name(report), metadata.own_namespace());
    meta::check(&name, Some(&namespace), &metadata.labels, names::subdomain, report);
    let selected = spec.selector.map(|s| selector(&s, report, &path.key("selector")));
    let template = path.key("template");
    check_labels(&spec.template.metadata.labels, report, &template.key("metadata").key("labels"));
    let mut labels = spec.template.metadata.labels;
    labels.extend(match kind {
        "Job" if !spec.manual_selector => labels_of_job(&name),
        "StatefulSet" => labels_of_first_replica(&name, spec.ordinals.start),
        _ => Vec::new(),
    });
    let owners = metadata.controllers();
    let pod: Pod = planned(namespace, name, labels, spec.template.spec, report, &template.key("spec"));
    (report.errors() == 0).then(|| Workload {
        kind: kind.to_string(),
        selector: selected,
        owners,
        template: pod,
    })
}

/// The labels that the server gives to all pods of a Job and that are known beforehand (`batch.JobNameLabel` and its
/// older form).
fn labels_of_job(name: &str) -> Vec<(String, String)> {
    ["batch.kubernetes.io/job-name", "job-name"].map(|key| (key.to_owned(), name.to_owned())).into()
}

/// The labels that the server gives to the first pod of a StatefulSet (`apps.StatefulSetPodNameLabel`, `PodIndexLabel`).
fn labels_of_first_replica(name: &str, ordinal: i32) -> Vec<(String, String)> {
    vec![
        ("statefulset.kubernetes.io/pod-name".to_owned(), format!("{name}-{ordinal}")),
        ("apps.kubernetes.io/pod-index".to_owned(), ordinal.to_string()),
    ]
}
