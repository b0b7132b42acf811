//! From YAML to the rules of every node.

use netpolc_iptables::decode::{Machine, decode};
use netpolc_iptables::emit::{Artifacts, emit};
use netpolc_iptables::select::{Origins, Plan, Selector};
use netpolc_ir::unit::Origin;
use netpolc_testkit::pipeline::{Compiled, compile, model};
use std::fmt::Write;

/// The rules of a node.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) plan: Plan,
    pub(crate) artifacts: Artifacts,
    pub(crate) machine: Machine,
}

/// Names of policies, as hostile as a label can be.
pub(crate) struct Labels<'c>(pub(crate) &'c Compiled);

impl Origins for Labels<'_> {
    fn label(&self, origin: Origin) -> String {
        let policy = self.0.model.origin(origin).map(|o| o.policy.clone()).unwrap_or_default();
        format!("{policy} \"\n-A NETPOLC-FORWARD -j DROP\\ é'")
    }
}

pub(crate) fn compiled(yaml: &str) -> Compiled {
    compile(model(&[("cluster.yaml", yaml.to_owned())]).unwrap()).unwrap()
}

/// Plans, prints and reads back the rules of every node.
pub(crate) fn nodes(compiled: &Compiled, sets: bool) -> Vec<Node> {
    let labels = Labels(compiled);
    let mut selector = Selector::new(&compiled.matrix, &labels);
    if !sets {
        selector = selector.without_sets();
    }
    let node = |host| {
        let plan = selector.plan(host).unwrap();
        let artifacts = emit(&plan.ruleset, &["a header".to_owned()]);
        let machine = decode(&artifacts.texts()).unwrap_or_else(|e| panic!("{e}\n{artifacts:#?}"));
        assert_eq!(machine.ruleset(), &plan.ruleset);
        assert!(sets || plan.ruleset.sets.is_empty());
        let name = compiled.matrix.hosts[host].name.clone();
        Node { name, plan, artifacts, machine }
    };
    compiled.matrix.hosts.keys().map(node).collect()
}

/// A node with `local` pods and another with `remote`, in apps of ten; each app may be reached by the two before it, on
/// `ports` ports of its own, and by a block with an exception.
pub(crate) fn cluster(local: usize, remote: usize, ports: usize) -> String {
    let mut yaml = String::new();
    for (n, node) in [(1, "alpha"), (2, "beta")] {
        let _ = writeln!(
            yaml,
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\nstatus: {{addresses: [{{type: InternalIP, address: \
             192.168.9.{n}}}]}}\n---"
        );
    }
    for i in 0..local + remote {
        let (node, host) = if i < local { (1, "alpha") } else { (2, "beta") };
        // Addresses with gaps, as a node has them after a while.
        let at = i * 3 + i / 7 * 5;
        let _ = writeln!(
            yaml,
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, namespace: shop, labels: {{app: a{}, kind: k{}}}}}\n\
             spec: {{nodeName: {host}, containers: [{{name: m, image: i}}]}}\n\
             status: {{phase: Running, podIPs: [{{ip: 10.{node}.{}.{}}}, {{ip: \"fd00:{node}::{at:x}\"}}]}}\n---",
            i / 10,
            i % 10,
            at / 250,
            at % 250 + 1
        );
    }
    for app in 0..(local + remote) / 10 {
        let mut list = String::new();
        for port in 0..ports {
            let _ = write!(list, "{{port: {}}}, ", 1000 + app + port * 7);
        }
        let _ = writeln!(
            yaml,
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: n{app}, namespace: shop}}\nspec:\n  \
             podSelector: {{matchLabels: {{app: a{app}}}}}\n  policyTypes: [Ingress, Egress]\n  ingress:\n  - from:\n    \
             - podSelector: {{matchExpressions: [{{key: app, operator: In, values: [a{}, a{}]}}]}}\n    \
             - ipBlock: {{cidr: 172.16.0.0/12, except: [172.16.{app}.0/24]}}\n    ports: [{list}]\n  - from:\n    \
             - podSelector: {{matchLabels: {{kind: k1}}}}\n    ports: [{{port: 53, protocol: UDP}}]\n  egress:\n  - to:\n    \
             - podSelector: {{}}\n---",
            app + 1,
            app + 2
        );
    }
    yaml
}
