//! Changes of the input that must not matter, and small ones that must matter little.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use netpolc_bundle::Backend;
use netpolc_bundle::nft::{Match, Outcome, Verdict};
use netpolc_nftables::emit::emit;
use netpolc_nftables::review::for_review;
use netpolc_nftables::select::{SELF, SPOOF};
use netpolc_node::{Labels, NodeBuilder};
use netpolc_testkit::generate::{Cluster, Options, generate};
use netpolc_testkit::pipeline::{Compiled, PolicyNames, compile, model, seeds};
use netpolc_testkit::random::Random;
use netpolc_testkit::text;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

fn built(texts: &[(&str, String)]) -> Compiled {
    compile(model(texts).unwrap()).unwrap()
}

/// What is handed out for a cluster, by name: all files of each node's bundle, and the IR.
fn artifacts(texts: &[(&str, String)]) -> BTreeMap<String, String> {
    let compiled = built(texts);
    let ir = netpolc_ir::text::write(compiled.optimized());
    let mut out = BTreeMap::from([
        ("ir".to_owned(), ir.clone()),
        ("unit".to_owned(), netpolc_ir::text::write(&compiled.unit)),
    ]);
    // Without the places, which are those of the text.
    let labels = Labels::of_policies(&compiled.model);
    let mut builder = NodeBuilder::new(&compiled.model, &compiled.matrix, &labels, Backend::ALL, None);
    for (host, data) in compiled.matrix.hosts.iter() {
        for (file, bytes) in builder.build(host).unwrap().bundle.to_files().unwrap() {
            out.insert(format!("{} {file}", data.name), String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    out
}

fn options(seed: u64) -> Options {
    Options { tiers: seed.is_multiple_of(3), ..Options::default() }
}

/// The same documents in other forms and orders.
fn variants(seed: u64, cluster: &Cluster) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let mut random = Random::new(seed);
    let mut documents: Vec<&Value> = cluster.documents().collect();
    let mut shuffled = documents.clone();
    random.shuffle(&mut shuffled);
    let twice: Vec<&Value> = shuffled.iter().chain(&documents).copied().collect();
    let (left, right) = shuffled.split_at(random.below(shuffled.len()));
    let one = |text: String| vec![("a.yaml", text)];
    let mut found = vec![
        ("shuffled", one(text::yaml(shuffled.iter().copied()))),
        ("twice", one(text::yaml(twice.iter().copied()))),
        (
            "split",
            vec![("b.yaml", text::yaml(left.iter().copied())), ("a.yaml", text::yaml(right.iter().copied()))],
        ),
        ("json", vec![("a.json", text::json(shuffled.iter().copied()))]),
        ("list", one(text::list(shuffled.iter().copied()))),
        (
            "split and copied",
            vec![("a.yaml", text::list(left.iter().copied())), ("b.json", text::json(twice.iter().copied()))],
        ),
    ];
    documents.reverse();
    found.push(("reversed", one(text::yaml(documents))));
    found
}

#[test]
fn form_and_order_of_the_input_do_not_matter() {
    for seed in 0..seeds(80) {
        let cluster = generate(seed, options(seed));
        let expected = artifacts(&[("cluster.yaml", cluster.yaml())]);
        for (what, texts) in variants(seed, &cluster) {
            let actual = artifacts(&texts);
            for (name, text) in &expected {
                assert_eq!(Some(text), actual.get(name), "seed {seed}: {name} is another one when {what}");
            }
            assert_eq!(expected.len(), actual.len(), "seed {seed}: {what}");
        }
    }
}

/// The names of all objects of all nodes, without those that say what a node as a whole holds.
fn names(compiled: &Compiled) -> BTreeSet<String> {
    let frame = ["isolated_", "strange_", "judge_", "sources_", "own_", "ingress_", "version_"];
    let nodes = compiled.nodes().unwrap();
    let tables = nodes.iter().flat_map(|n| n.plan.ruleset.tables.iter().map(move |(f, t)| (&n.name, f, t)));
    let objects = tables.flat_map(|(node, family, table)| {
        table.sets.keys().chain(table.chains.keys()).map(move |name| format!("{node} {family} {name}"))
    });
    objects.filter(|name| !frame.iter().any(|kind| name.contains(&format!(" {kind}")))).collect()
}

/// All nodes in their form for review.
fn review(compiled: &Compiled) -> Vec<String> {
    let nodes = compiled.nodes().unwrap();
    nodes
        .iter()
        .flat_map(|n| {
            emit(&for_review(&n.plan, &PolicyNames(&compiled.model)).0, &[])
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// How many lines a difference has: those that the longest common subsequence leaves.
fn difference(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0usize; b.len() + 1];
    for x in a {
        let mut before = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { before + 1 } else { above.max(row[j]) };
            before = above;
        }
    }
    a.len() + b.len() - 2 * row[b.len()]
}

/// Objects that no policy of the cluster can see: a namespace that no selector by labels matches by its own labels.
fn stranger(i: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("stranger-{i}"), "namespace": "unrelated"},
        "spec": {"nodeName": "node-0", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("11.7.7.{i}")}]},
    })
}

/// Peers of all namespaces and selectors by absence match strangers too; such clusters say nothing here.
fn sees(compiled: &Compiled) -> bool {
    let strangers: Vec<usize> = (0..compiled.optimized().endpoints.len()).collect();
    let unit = compiled.optimized();
    let class = strangers.iter().find_map(|i| {
        let (_, data) = unit.endpoints.iter().nth(*i)?;
        data.name.starts_with("unrelated/").then(|| data.addrs[0].1)
    });
    let class = class.unwrap();
    let listed = |set| unit.sets[set].classes.contains(&class);
    unit.rules.values().any(|r| listed(r.subject) || listed(r.peers))
        || unit.isolations.iter().any(|i| listed(i.subject))
}

#[test]
fn pods_of_an_unrelated_namespace_change_no_other_name() {
    let mut compared = 0;
    for seed in 0..seeds(120) {
        let cluster = generate(seed, options(seed));
        let base = built(&[("a.yaml", cluster.yaml())]);
        let mut more = cluster.clone();
        more.objects.extend((1..=3).map(stranger));
        let changed = built(&[("a.yaml", more.yaml())]);
        if sees(&changed) {
            continue;
        }
        let (before, after) = (names(&base), names(&changed));
        // A block around the strangers' addresses need not name them, so nothing changes but `local` and `sources`.
        assert_eq!(before, after, "seed {seed}\n{}", more.yaml());
        let lines = difference(&review(&base), &review(&changed));
        // One each in either. On a node that had no pods the map, its chain and the rule that leads there are new.
        assert!(lines <= 17, "seed {seed}: 3 pods that no policy sees change {lines} lines");
        compared += 1;
    }
    assert!(compared >= 10, "only {compared} clusters had unrelated namespaces");
}

#[test]
fn one_more_pod_changes_few_lines() {
    let mut total = 0;
    let mut worst = (0, 0);
    let count = seeds(60);
    for seed in 0..count {
        let mut cluster = generate(seed, Options::default());
        let before = built(&[("a.yaml", cluster.yaml())]);
        // A copy of a pod that is there, with an address of its own.
        let copied = cluster.objects.iter().find(|d| {
            d["kind"] == "Pod" && d["status"]["podIPs"].is_array() && d["spec"]["hostNetwork"].is_null()
        });
        let Some(mut copy) = copied.cloned() else { continue };
        copy["metadata"]["name"] = json!("copy");
        copy["status"] =
            json!({"phase": "Running", "podIP": "10.244.0.99", "podIPs": [{"ip": "10.244.0.99"}]});
        cluster.objects.push(copy);
        let after = built(&[("a.yaml", cluster.yaml())]);
        let (old, new) = (review(&before), review(&after));
        let lines = difference(&old, &new);
        total += lines;
        worst = worst.max((lines, seed));
    }
    // A pod is one line in `local`, `self`, `isolated`, the two maps, and in each set of peers one, or one for each port.
    assert!(total as u64 / count <= 25, "{total} lines in {count} clusters; worst {worst:?}");
}

/// A packet on its way meets old rules and the present elements of a set. What is named by its content it finds whole; a
/// set that keeps its name may lead to a drop, to the check of the source, or to the pod itself, so that nothing is open for
/// that moment.
#[test]
fn sets_that_keep_their_names_open_nothing() {
    let named_by_content = |name: &str| {
        name.rsplit_once('_').is_some_and(|(_, h)| h.len() == 12 && h.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let mut seen = BTreeSet::new();
    for seed in 0..seeds(6) {
        let compiled = built(&[("a.yaml", text::yaml(generate(seed, options(seed)).documents()))]);
        for node in compiled.nodes().unwrap() {
            for table in node.plan.ruleset.tables.values() {
                for (name, chain) in &table.chains {
                    for rule in &chain.rules {
                        let sets = rule.matches.iter().filter_map(|found| match found {
                            Match::InSet(_, set) => Some(set).filter(|set| !named_by_content(set)),
                            _ => None,
                        });
                        for set in sets {
                            seen.insert(set.clone());
                            let closes = match &rule.outcome {
                                Outcome::Verdict(Verdict::Drop) => true,
                                Outcome::Verdict(Verdict::Jump(to)) => to == SPOOF,
                                _ => set == SELF,
                            };
                            assert!(closes, "{seed}: {name} asks {set}: {rule:?}");
                        }
                    }
                }
            }
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["local", "podif", "self"]);
}
