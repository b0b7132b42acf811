//! Which artifact: with ipsets where program and kernel have them, else without.
//!
//! Versions say little about a kernel's modules, so it is tried: a set of each type that the artifact has, and a rule that
//! asks it, in a chain that nothing leads to.

use super::observe::Observed;
use super::variant::{Tools, View};
use crate::Error;
use crate::kernel::Kernel;
use netpolc_bundle::ipt::{Family, PREFIX, Ruleset};
use std::collections::BTreeSet;

/// How the restore programs are called: rules of others stay, and another program that holds the lock of legacy tables is
/// waited for, this many seconds (iptables-nft takes the option and has no such lock; `iptables/iptables-restore.c`,
/// `iptables/xtables-restore.c`).
pub const RESTORE: [&str; 3] = ["--noflush", "-w", "60"];

/// Why sets cannot be used here; `None` if they can. Rules in force that use sets are proof enough.
pub fn sets_missing(
    kernel: &mut dyn Kernel,
    tools: &Tools,
    ruleset: &Ruleset,
    seen: Option<&Observed>,
) -> Option<String> {
    if ruleset.sets.is_empty() || seen.is_some_and(uses_sets) {
        return None;
    }
    if !kernel.has("ipset") {
        return Some("ipset is not installed".to_owned());
    }
    let done = probe(kernel, tools, ruleset);
    done.err().map(|error| match error {
        Error::Program { program, complaint } => format!("{program}: {complaint}"),
        error => error.to_string(),
    })
}

fn uses_sets(seen: &Observed) -> bool {
    let rules = seen.scans.values().flat_map(|scan| &scan.rules);
    rules.into_iter().any(|rule| rule.contains(" --match-set NETPOLC-"))
}

fn probe(kernel: &mut dyn Kernel, tools: &Tools, ruleset: &Ruleset) -> Result<(), Error> {
    let types: BTreeSet<(Family, String)> =
        ruleset.sets.values().map(|set| (set.family, set.kind.to_string())).collect();
    let name = format!("{PREFIX}PROBE-{}", std::process::id());
    let set = |n: usize| format!("{name}-{n}");
    let mut create = String::new();
    for (n, (family, kind)) in types.iter().enumerate() {
        create += &format!("create {} {kind} family {family} hashsize 64 maxelem 64\n", set(n));
    }
    let mut done = kernel.program("ipset", &["restore"], &create).map(drop);
    for family in Family::ALL {
        let of_family = types.iter().enumerate().filter(|(_, (f, _))| *f == family);
        let rules: Vec<String> = of_family
            .map(|(n, _)| format!("-A {name} -m set --match-set {} src -j RETURN\n", set(n)))
            .collect();
        let can =
            kernel.has(&tools.restore(family)) && (family == Family::V4 || super::variant::has_ipv6(kernel));
        if done.is_err() || rules.is_empty() || !can {
            continue;
        }
        let add = format!("*filter\n:{name} - [0:0]\n{}COMMIT\n", rules.concat());
        let take = format!("*filter\n-F {name}\n-X {name}\nCOMMIT\n");
        done = kernel.program(&tools.restore(family), &RESTORE, &add).map(drop);
        if done.is_ok() {
            done = kernel.program(&tools.restore(family), &RESTORE, &take).map(drop);
        }
    }
    let destroyed = super::destroy(kernel, (0..types.len()).map(set).collect());
    done.and(destroyed)
}

/// The families that can be enforced, and a note if IPv6 is not among them.
///
/// # Errors
/// Why IPv6 cannot, although the namespace has it.
pub fn families(kernel: &mut dyn Kernel, view: &View) -> Result<(Vec<Family>, Option<String>), String> {
    let restore = view.tools.restore(Family::V6);
    if super::variant::has_ipv6(kernel) {
        return match view.texts.contains_key(&Family::V6) && kernel.has(&restore) {
            true => Ok((Family::ALL.to_vec(), None)),
            false => Err(format!("{restore} is not installed, and this network namespace has IPv6")),
        };
    }
    // Rules can be loaded where IPv6 is off, with some kernels. Then they are, for when it is on.
    let tried = kernel.program(&restore, &RESTORE, "*filter\nCOMMIT\n");
    match tried {
        Ok(_) if view.texts.contains_key(&Family::V6) => Ok((Family::ALL.to_vec(), None)),
        _ => Ok((
            vec![Family::V4],
            Some(
                "the kernel has no IPv6 here, so the rules are for IPv4 alone; apply again if that changes"
                    .to_owned(),
            ),
        )),
    }
}
