//! Loading, as a loader does it: sets, then one transaction for each family, and what is listed afterwards.

use crate::common::Node;
use netpolc_bundle::ipt::{self, Family, Listing, Table, Texts};
use netpolc_sandbox::{Sandbox, find_program};
use std::path::PathBuf;
use std::process::Command;

/// A variant of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    pub(crate) const ALL: [Variant; 2] = [Variant::Nft, Variant::Legacy];

    /// For example `ip6tables-nft-restore`.
    fn program(self, family: Family, what: &str) -> Command {
        let tool = if family == Family::V4 { "iptables" } else { "ip6tables" };
        let variant = if self == Variant::Nft { "nft" } else { "legacy" };
        let mut command =
            Command::new(find_program(&format!("{tool}-{variant}-{what}"), "iptables").unwrap());
        command.env("XTABLES_LOCKFILE", lock());
        command
    }
}

/// Network namespaces have tables of their own, so there is nobody to wait for.
pub(crate) fn lock() -> PathBuf {
    std::env::temp_dir().join(format!("netpolc-{}.lock", std::process::id()))
}

pub(crate) fn run(sandbox: &Sandbox, node: usize, command: Command, input: &str) -> String {
    let shown = format!("{command:?}");
    let output = sandbox.run_in_node(node, command, input.as_bytes()).unwrap();
    // Not every program makes one.
    let _ = std::fs::remove_file(lock());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
    text
}

fn ipset(word: &str) -> Command {
    let mut command = Command::new(find_program("ipset", "ipset").unwrap());
    command.arg(word);
    command
}

/// Loads rules with the jumps in front and the pods' interfaces.
pub(crate) fn load(sandbox: &Sandbox, at: usize, variant: Variant, node: &Node) {
    let has_sets = !node.plan.ruleset.sets.is_empty();
    if has_sets {
        run(sandbox, at, ipset("restore"), &node.artifacts.sets);
    }
    let there = listing(sandbox, at, variant);
    let interfaces: Vec<String> = sandbox
        .spec()
        .pods
        .iter()
        .enumerate()
        .filter(|(_, p)| p.node == at)
        .map(|(i, _)| format!("p{i}"))
        .collect();
    for (family, text) in [(Family::V4, &node.artifacts.v4), (Family::V6, &node.artifacts.v6)] {
        let mut text = text.clone();
        for table in Table::ALL {
            let mut lines = Vec::new();
            let hook = there.hooks.get(&(family, table)).copied().unwrap_or_default();
            if !hook.first {
                lines.push(format!("-I {} 1 -j {}", table.built_in(), table.entry()));
            }
            if let (Some(old), Some(new)) =
                (there.ruleset.tables.get(&(family, table)), node.plan.ruleset.tables.get(&(family, table)))
            {
                let gone: Vec<&String> = old.keys().filter(|name| !new.contains_key(*name)).collect();
                lines.extend(gone.iter().map(|name| format!("-F {name}")));
                lines.extend(gone.iter().map(|name| format!("-X {name}")));
            }
            text = ipt::with_lines(&text, table, &interfaces, &lines).unwrap();
        }
        let mut test = variant.program(family, "restore");
        test.args(["--noflush", "--test"]);
        run(sandbox, at, test, &text);
        let mut restore = variant.program(family, "restore");
        restore.arg("--noflush");
        run(sandbox, at, restore, &text);
    }
    for name in there.ruleset.sets.keys().filter(|name| !node.plan.ruleset.sets.contains_key(*name)) {
        let mut destroy = ipset("destroy");
        destroy.arg(name);
        run(sandbox, at, destroy, "");
    }
    check(sandbox, at, variant, node);
}

/// What the kernel has is what was meant.
fn check(sandbox: &Sandbox, at: usize, variant: Variant, node: &Node) {
    let there = listing(sandbox, at, variant);
    let plan = &node.plan.ruleset;
    assert_eq!(there.ruleset.sets, node.machine.ruleset().sets, "{variant:?} {}", node.name);
    assert_eq!(ipt::digest(&there.ruleset), ipt::digest(plan), "{variant:?}");
    ipt::check(&there.ruleset).unwrap();
    for (key, chains) in &plan.tables {
        let listed = &there.ruleset.tables[key];
        assert_eq!(listed.keys().collect::<Vec<_>>(), chains.keys().collect::<Vec<_>>());
        let rules = chains.iter().filter(|(name, _)| *name != ipt::PODIF);
        rules.for_each(|(name, rules)| assert_eq!(&listed[name], rules, "{variant:?} {key:?} {name}"));
        assert_eq!(there.hooks[key], ipt::Hook { first: true, count: 1 });
    }
    let marker = ipt::digest(plan);
    let filter = &there.ruleset.tables[&(Family::V6, Table::Filter)];
    assert_eq!(ipt::markers(filter).into_iter().collect::<Vec<_>>(), [marker]);
}

/// What a node has of ours.
pub(crate) fn listing(sandbox: &Sandbox, at: usize, variant: Variant) -> Listing {
    let sets = run(sandbox, at, ipset("save"), "");
    let v4 = run(sandbox, at, variant.program(Family::V4, "save"), "");
    let v6 = run(sandbox, at, variant.program(Family::V6, "save"), "");
    ipt::listing(&Texts { sets: &sets, v4: &v4, v6: &v6 }).unwrap_or_else(|e| panic!("{e}\n{sets}{v4}{v6}"))
}
