//! The shape of rules for large nodes: as deep as iptables-nft takes, and no packet meets many rules.

use crate::common::{Labels, Node, cluster, compiled, nodes};
use netpolc_bundle::{ipt, limits};
use netpolc_frontend::reference::SetReference;
use netpolc_iptables::select::{Selector, Unsupported};
use netpolc_ir::proof::prove;

fn alpha(yaml: &str, sets: bool, proof: bool) -> Node {
    let compiled = compiled(yaml);
    let mut node = nodes(&compiled, sets).into_iter().find(|n| n.name == "alpha").unwrap();
    if proof {
        let reference = SetReference::new(&compiled.model);
        prove(&reference, &mut node.machine, "alpha").unwrap_or_else(|witness| panic!("{witness}"));
    }
    node
}

#[test]
fn costs_grow_with_the_logarithm_of_pods_and_peers() {
    let mut costs = Vec::new();
    for pods in [10, 40, 160] {
        let yaml = cluster(pods, pods * 4, 3);
        let node = alpha(&yaml, true, pods < 100);
        let without = alpha(&yaml, false, false);
        let (cost, more) = (node.plan.worst_case(), without.plan.worst_case());
        assert_eq!(cost.established, 2, "{cost}");
        costs.push((cost.v4.max(cost.v6), more.v4.max(more.v6)));
    }
    // Four times the pods: one more level of both trees, each at most eight branches of one rule.
    assert!(costs[1].0 <= costs[0].0 + 20 && costs[2].0 <= costs[1].0 + 20, "{costs:?}");
    assert!(costs[2].1 <= costs[1].1 + 40, "{costs:?}");
    assert!(costs[2].0 <= 90 && costs[2].1 <= 130, "{costs:?}");
}

#[test]
fn many_ports_and_pods_without_sets_are_no_deeper_than_iptables_nft_takes() {
    let node = alpha(&cluster(1_100, 100, 1), false, false);
    let wide = alpha(&cluster(30, 30, 120), false, true);
    for ruleset in [&node.plan.ruleset, &wide.plan.ruleset] {
        ipt::check(ruleset).unwrap();
        let names = ruleset.tables.values().flat_map(|c| c.keys());
        assert!(names.chain(ruleset.sets.keys()).all(|n| n.len() <= limits::IPT_CHAIN_BYTES));
    }
    let cost = node.plan.worst_case();
    assert!(cost.v4 < 200, "{cost}");
    let cost = wide.plan.worst_case();
    assert!(cost.v4 < 150, "{cost}");
}

/// Addresses of a link are for neighbours, and a rule that let one pass would let forged ones pass, too.
#[test]
fn a_pod_with_an_address_of_a_link_is_refused() {
    let compiled = compiled(&cluster(10, 10, 1).replace("fd00:1::0", "fe80::1"));
    let labels = Labels(&compiled);
    let mut selector = Selector::new(&compiled.matrix, &labels);
    let plans = compiled.matrix.hosts.keys().map(|host| selector.plan(host).map(drop));
    let errors: Vec<Unsupported> = plans.filter_map(Result::err).collect();
    assert_eq!(errors, [Unsupported::OfLink("fe80::1".parse().unwrap())]);
}

/// A line inserted above a policy, or another policy, renames nothing that does not depend on it.
#[test]
fn a_change_of_one_policy_leaves_other_chains_alone() {
    let yaml = cluster(40, 40, 3);
    let before = alpha(&yaml, true, false);
    let after = alpha(&yaml.replace("{port: 1000}", "{port: 999}"), true, false);
    let chains = |n: &Node| n.plan.ruleset.tables[&(ipt::Family::V4, ipt::Table::Filter)].clone();
    let (before, after) = (chains(&before), chains(&after));
    let gone: Vec<&String> = before.keys().filter(|k| !after.contains_key(*k)).collect();
    // The app's profile, the way to it from the entry, and the marker.
    assert!(!gone.is_empty() && gone.len() <= 8, "{gone:?} of {}", before.len());
}
