//! What must hold of `runtime-loader/deploy/`: the manifests are of Kubernetes' types, and ask for what is used and no
//! more.

use crate::shell::root;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, Namespace, PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs;

/// What the loader may do, and nothing else has any of it.
const CAPABILITIES: [&str; 5] = ["NET_ADMIN", "NET_RAW", "BPF", "PERFMON", "DAC_OVERRIDE"];

/// What the agent asks the API server for: group, resource, verbs.
const ASKED: [(&str, &str, &[&str]); 6] = [
    ("", "namespaces", &["list", "watch"]),
    ("", "nodes", &["list", "watch"]),
    ("", "pods", &["list", "watch"]),
    ("networking.k8s.io", "networkpolicies", &["list", "watch"]),
    ("policy.networking.k8s.io", "clusternetworkpolicies", &["list", "watch"]),
    ("events.k8s.io", "events", &["create", "patch"]),
];

/// The directories of the host that may be mounted.
const HOST: [&str; 7] = [
    "/run/netpolc",
    "/sys/fs/bpf",
    "/var/lib/netpolc",
    "/etc/cni/net.d",
    "/opt/cni/bin",
    "/run/xtables.lock",
    "/proc/sys/net",
];

fn text(name: &str) -> String {
    fs::read_to_string(root().join("runtime-loader/deploy").join(name)).unwrap()
}

/// The one document of this kind.
fn document<T: DeserializeOwned>(text: &str, kind: &str) -> T {
    let line = format!("kind: {kind}");
    let found: Vec<&str> = text.split("\n---\n").filter(|part| part.lines().any(|l| l == line)).collect();
    assert_eq!(found.len(), 1, "{kind}");
    serde_saphyr::from_str(found[0]).unwrap_or_else(|error| panic!("{kind}: {error}"))
}

fn pod(text: &str) -> PodSpec {
    document::<DaemonSet>(text, "DaemonSet").spec.unwrap().template.spec.unwrap()
}

fn all(pod: &PodSpec) -> Vec<&Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers).collect()
}

fn args(container: &Container) -> Vec<&str> {
    let words = container.command.iter().chain(&container.args).flatten();
    words.map(String::as_str).collect()
}

#[test]
fn the_manifest_is_whole() {
    let text = text("netpolc.yaml");
    assert_eq!(text.split("\n---\n").count(), 5);
    let namespace: Namespace = document(&text, "Namespace");
    let account: ServiceAccount = document(&text, "ServiceAccount");
    assert_eq!(account.metadata.namespace, namespace.metadata.name);
    let role: ClusterRole = document(&text, "ClusterRole");
    let binding: ClusterRoleBinding = document(&text, "ClusterRoleBinding");
    assert_eq!(
        (binding.role_ref.kind.as_str(), Some(binding.role_ref.name)),
        ("ClusterRole", role.metadata.name)
    );
    let subject = &binding.subjects.unwrap()[0];
    assert_eq!(
        (Some(&subject.name), &subject.namespace),
        (account.metadata.name.as_ref(), &namespace.metadata.name)
    );
    let set: DaemonSet = document(&text, "DaemonSet");
    assert_eq!(set.metadata.namespace, namespace.metadata.name);
    let spec = set.spec.unwrap();
    assert_eq!(spec.selector.match_labels, spec.template.metadata.unwrap().labels);
    let pod = spec.template.spec.unwrap();
    assert_eq!(pod.service_account_name, account.metadata.name);
    let names: Vec<&str> = pod.containers.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["loader", "agent"], "the loader makes the directory that the agent listens in");
}

#[test]
fn the_role_is_what_the_agent_asks_for() {
    let role: ClusterRole = document(&text("netpolc.yaml"), "ClusterRole");
    let mut given = BTreeSet::new();
    for rule in role.rules.unwrap() {
        assert!(rule.non_resource_urls.is_none() && rule.resource_names.is_none());
        for group in rule.api_groups.unwrap() {
            for resource in rule.resources.as_ref().unwrap() {
                given.extend(rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
            }
        }
    }
    let asked = |(group, resource, verbs): &(&str, &str, &[&str])| {
        let (group, resource) = ((*group).to_owned(), (*resource).to_owned());
        verbs.iter().map(|verb| (group.clone(), resource.clone(), (*verb).to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(given, ASKED.iter().flat_map(asked).collect());
}

#[test]
fn privileges_are_the_loaders_alone_and_no_more_than_it_needs() {
    for name in ["netpolc.yaml", "uninstall.yaml"] {
        let pod = pod(&text(name));
        assert_eq!(
            pod.security_context.as_ref().unwrap().seccomp_profile.as_ref().unwrap().type_,
            "RuntimeDefault"
        );
        assert_eq!((pod.host_pid, pod.host_ipc), (None, None));
        assert_eq!(pod.automount_service_account_token, Some(false));
        for container in all(&pod) {
            let what = format!("{name}: {}", container.name);
            let context = container.security_context.as_ref().unwrap();
            assert_eq!(context.privileged, Some(false), "{what}");
            assert_eq!(context.allow_privilege_escalation, Some(false), "{what}");
            assert_eq!(context.read_only_root_filesystem, Some(true), "{what}");
            let capabilities = context.capabilities.as_ref().unwrap();
            assert_eq!(capabilities.drop.as_ref().unwrap(), &["ALL"], "{what}");
            let added: Vec<&str> = capabilities.add.iter().flatten().map(String::as_str).collect();
            let mounted: Vec<&str> =
                container.volume_mounts.iter().flatten().map(|m| m.name.as_str()).collect();
            if args(container)[0].ends_with("/netpol-loader") {
                assert_eq!(added, CAPABILITIES, "{what}");
                assert!(!mounted.contains(&"token"), "{what}");
            } else {
                assert!(added.is_empty(), "{what}");
                assert_eq!(context.run_as_non_root, Some(true), "{what}");
                assert!(mounted.iter().all(|m| ["run", "token"].contains(m)), "{what}: {mounted:?}");
            }
        }
    }
}

#[test]
fn every_node_has_it_before_any_pod() {
    for name in ["netpolc.yaml", "uninstall.yaml"] {
        let pod = pod(&text(name));
        assert_eq!(pod.host_network, Some(true));
        assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
        let tolerations = pod.tolerations.as_ref().unwrap();
        assert!(tolerations.iter().any(|t| t.operator.as_deref() == Some("Exists") && t.key.is_none()));
        let volumes = pod.volumes.as_ref().unwrap();
        for volume in volumes.iter().filter_map(|v| v.host_path.as_ref()) {
            assert!(HOST.contains(&volume.path.as_str()), "{name}: {}", volume.path);
        }
        let there: BTreeSet<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
        let used =
            all(&pod).into_iter().flat_map(|c| c.volume_mounts.iter().flatten()).map(|m| m.name.as_str());
        assert_eq!(used.collect::<BTreeSet<_>>(), there, "{name}");
    }
}

/// Who starts the programs by hand applies what gives access, by its label, and nothing that changes a node.
#[test]
fn access_can_be_given_alone() {
    let text = text("netpolc.yaml");
    let (given, rest): (Vec<&str>, Vec<&str>) = text
        .split("\n---\n")
        .partition(|part| part.lines().any(|l| l == "    app.kubernetes.io/component: access"));
    let kinds = |parts: &[&str]| -> Vec<String> {
        let kind = |part: &&str| part.lines().find_map(|l| l.strip_prefix("kind: ")).unwrap().to_owned();
        parts.iter().map(kind).collect()
    };
    assert_eq!(kinds(&given), ["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"]);
    assert_eq!(kinds(&rest), ["DaemonSet"]);
}

/// What one says, the other must know.
#[test]
fn loader_and_agent_agree() {
    let pod = pod(&text("netpolc.yaml"));
    let [loader, agent] = pod.containers.as_slice() else { panic!("two containers") };
    let value = |container: &Container, flag: &str| {
        let found = args(container)
            .into_iter()
            .find_map(|a| a.strip_prefix(flag)?.strip_prefix('=').map(str::to_owned));
        found.unwrap_or_else(|| panic!("{}: no {flag}", container.name))
    };
    assert_eq!(value(loader, "--cni"), value(agent, "--cni"));
    let group = agent.security_context.as_ref().unwrap().run_as_group;
    assert_eq!(value(loader, "--socket-group"), group.unwrap().to_string());
    assert_eq!(loader.security_context.as_ref().unwrap().run_as_group, group);
    for container in [loader, agent] {
        let probe = container.liveness_probe.as_ref().unwrap().http_get.as_ref().unwrap();
        let k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port) = &probe.port else {
            panic!("a number")
        };
        assert_eq!(value(container, "--metrics-listen"), format!("{}:{port}", probe.host.as_ref().unwrap()));
        assert!(container.resources.as_ref().unwrap().requests.is_some());
    }
    assert_eq!(loader.image, agent.image);
    let image = loader.image.as_ref().unwrap();
    assert!(text("Dockerfile").contains(&format!("-t {image} ")));
    let tag = image.rsplit(':').next().unwrap();
    assert!(text("kustomization.yaml").contains(&format!("newTag: {tag}")));
    assert_eq!(tag, env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_cluster_is_the_courses() {
    let kind: serde_json::Value = serde_saphyr::from_str(&text("kind.yaml")).unwrap();
    let roles: Vec<&str> =
        kind["nodes"].as_array().unwrap().iter().filter_map(|n| n["role"].as_str()).collect();
    assert_eq!(roles, ["control-plane", "worker", "worker"]);
    assert_eq!(kind["networking"]["disableDefaultCNI"], true);
    assert_eq!(kind["networking"]["podSubnet"], "192.168.0.0/16");
}

/// The values of a directive of a unit.
fn directives<'t>(unit: &'t str, name: &str) -> Vec<&'t str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

/// As a service the loader needs `CHOWN` beside what it has in a pod, since its socket is for another group than its own.
#[test]
fn units_of_systemd_have_what_pods_have() {
    let [loader, agent] = ["netpol-loader.service", "netpol-agent.service"].map(text);
    let bounded = directives(&loader, "CapabilityBoundingSet")[0];
    let wanted: Vec<String> =
        CAPABILITIES.iter().chain(&["CHOWN"]).map(|name| format!("CAP_{name}")).collect();
    assert_eq!(bounded.split(' ').collect::<Vec<_>>(), wanted);
    assert_eq!(directives(&agent, "CapabilityBoundingSet"), [""]);
    // systemd starts nothing for a user that it does not find, so the guide makes one.
    let guide = fs::read_to_string(root().join("docs/guides/any-cluster.md")).unwrap();
    let (user, group) = (directives(&agent, "User")[0], directives(&agent, "Group")[0]);
    assert!(guide.contains(&format!("# groupadd --gid {group} ")), "{group}");
    assert!(guide.contains(&format!("# useradd --uid {user} --gid ")), "{user}");
    assert!(directives(&loader, "ExecStart")[0].contains(&format!(" --socket-group {group} ")));
    // Programs that are pinned where this service alone sees them end with it.
    assert!(directives(&loader, "ExecStartPre")[0].contains("nsenter --target 1 --mount"));
}
