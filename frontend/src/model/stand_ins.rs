//! Workloads that stand for pods, since no pod of theirs is given.

use crate::diagnostic::{Diagnostic, STAND_IN_RENAMED, Severity};
use crate::objects::{Pod, Workload};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Kinds of workloads; where several have one name, the stand-in of the first keeps it.
const KINDS: [&str; 6] = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"];

/// By namespace, kind and name of a workload, kind and name of those that control it.
type Makers<'w> = HashMap<(&'w str, &'w str, &'w str), &'w [(String, String)]>;

/// A pod for every workload that has none. Each has a name of its own, whatever else is called so.
pub(super) fn stand_ins(
    pods: &[Pod],
    workloads: Vec<Workload>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Pod> {
    let mut standing = lonely(pods, workloads);
    let rank = |kind: &str| KINDS.iter().position(|k| *k == kind);
    standing.sort_by(|a, b| {
        let key = |w: &Workload| (w.template.namespace.clone(), w.template.name.clone(), rank(&w.kind));
        key(a).cmp(&key(b))
    });
    let mut taken: BTreeSet<(String, String)> =
        pods.iter().map(|p| (p.namespace.clone(), p.name.clone())).collect();
    // A stand-in that has its name gets it, even if another one that was renamed would like to have it.
    let mut renamed = Vec::new();
    let mut out = Vec::with_capacity(standing.len());
    for workload in standing {
        let pod = &workload.template;
        if taken.insert((pod.namespace.clone(), pod.name.clone())) {
            out.push(workload.template);
        } else {
            renamed.push(workload);
        }
    }
    for workload in renamed {
        let Workload { kind, template: mut pod, .. } = workload;
        let wanted = std::mem::take(&mut pod.name);
        let base = format!("{wanted}-{}", kind.to_lowercase());
        let more = (2u64..).map(|i| format!("{base}-{i}"));
        let free = |name: &String| taken.insert((pod.namespace.clone(), name.clone()));
        pod.name = std::iter::once(base.clone()).chain(more).find(free).unwrap_or(base);
        diagnostics.push(note(&kind, &wanted, &pod));
        out.push(pod);
    }
    out
}

/// The workloads of which no pod is given, and no other workload that makes them.
fn lonely(pods: &[Pod], workloads: Vec<Workload>) -> Vec<Workload> {
    let makers: Makers<'_> = workloads
        .iter()
        .map(|w| {
            let id = (w.template.namespace.as_str(), w.kind.as_str(), w.template.name.as_str());
            (id, w.owners.as_slice())
        })
        .collect();
    let mut by_namespace: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in pods {
        by_namespace.entry(&pod.namespace).or_default().push(pod);
    }
    let has_none = |w: &&Workload| {
        let pods = by_namespace.get(w.template.namespace.as_str()).map(Vec::as_slice).unwrap_or_default();
        !pods.iter().any(|pod| is_of(pod, w, &makers))
    };
    // What another workload makes stands for nobody: its maker does, or the pods do.
    let is_made = |w: &&Workload| matches!(w.kind.as_str(), "ReplicaSet" | "Job") && !w.owners.is_empty();
    let lonely: Vec<bool> = workloads.iter().map(|w| !is_made(&w) && has_none(&w)).collect();
    workloads.into_iter().zip(lonely).filter(|(_, lonely)| *lonely).map(|(w, _)| w).collect()
}

/// Whether a pod belongs to a workload: it is controlled by it (a Deployment through a ReplicaSet, a CronJob through a
/// Job), or the workload's selector matches it.
fn is_of(pod: &Pod, workload: &Workload, makers: &Makers<'_>) -> bool {
    let name = workload.template.name.as_str();
    let controls = |(kind, owner): &(String, String)| kind == &workload.kind && owner == name;
    let owned = pod.owners.iter().any(|owner @ (kind, of)| {
        let through = match workload.kind.as_str() {
            "Deployment" => kind == "ReplicaSet",
            "CronJob" => kind == "Job",
            _ => false,
        };
        let maker = makers.get(&(pod.namespace.as_str(), kind.as_str(), of.as_str()));
        controls(owner)
            || (through
                && match maker {
                    Some(owners) if !owners.is_empty() => owners.iter().any(controls),
                    _ => is_named_after(of, name, kind),
                })
    });
    owned || workload.selector.as_ref().is_some_and(|s| !s.is_everything() && s.matches(&pod.labels))
}

/// Whether a ReplicaSet is called as its Deployment's controller would call it, `<name>-<hash>`, or a Job as its CronJob's
/// would, `<name>-<number>`. The suffix has no hyphen, else `web-api-5d4f9c` would be one of `web`.
fn is_named_after(made: &str, maker: &str, kind: &str) -> bool {
    let suffix = made.strip_prefix(maker).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
    let fits = |b: u8| if kind == "Job" { b.is_ascii_digit() } else { b.is_ascii_alphanumeric() };
    !suffix.is_empty() && suffix.bytes().all(fits)
}

fn note(kind: &str, wanted: &str, pod: &Pod) -> Diagnostic {
    Diagnostic {
        code: STAND_IN_RENAMED,
        severity: Severity::Note,
        message: format!("the pod that {kind} {wanted} stands for is called {}/{}", pod.namespace, pod.name),
        span: Some(pod.at),
        path: None,
        object: Some(format!("{kind} {}/{wanted}", pod.namespace)),
        help: Some("a pod or another workload has its name".to_owned()),
    }
}
