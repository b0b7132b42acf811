//! Damaged rules are not proven: for every mutation the proof finds a packet, or the mutation changes nothing for any
//! packet that is asked about.

use crate::common::{Labels, compiled, nodes};
use netpolc_bundle::ipt::{Match, Prefix, Ruleset, Target};
use netpolc_frontend::reference::SetReference;
use netpolc_iptables::decode::{Machine, decode};
use netpolc_iptables::emit::emit;
use netpolc_iptables::select::Selector;
use netpolc_ir::addr::Family;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Artifact, Conn, Kind, Packet, prove};
use netpolc_ir::unit::Flow;
use netpolc_testkit::flows::Questions;
use netpolc_testkit::generate::{Options, generate};
use netpolc_testkit::pipeline::{Compiled, seeds};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Every ruleset that differs from this one in one place, with what was done.
fn mutations(ruleset: &Ruleset) -> Vec<(&'static str, String, Ruleset)> {
    let mut found = Vec::new();
    for (table, chains) in &ruleset.tables {
        let names: Vec<&String> = chains.keys().collect();
        for (name, rules) in chains {
            for i in 0..rules.len() {
                let place = format!("{table:?} {name} rule {i}");
                let mut change = |kind, edit: &dyn Fn(&mut Vec<netpolc_bundle::ipt::Rule>)| {
                    let mut mutant = ruleset.clone();
                    let rules = mutant.tables.get_mut(table).and_then(|c| c.get_mut(name)).unwrap();
                    edit(rules);
                    if mutant != *ruleset {
                        found.push((kind, place.clone(), mutant));
                    }
                };
                change("rule dropped", &|rules| drop(rules.drain(i..=i)));
                change("rules swapped", &|rules| {
                    if i > 0 {
                        rules.swap(i - 1, i);
                    }
                });
                change("target", &|rules| {
                    let target = &mut rules[i].target;
                    *target = match target {
                        Target::Return => Target::Drop,
                        Target::Drop => Target::Return,
                        Target::Jump(chain) => Target::Goto(chain.clone()),
                        Target::Goto(chain) => Target::Jump(chain.clone()),
                    };
                });
                change("other chain", &|rules| {
                    let next = (i * 7 + rules.len()) % names.len();
                    if let Target::Jump(chain) | Target::Goto(chain) = &mut rules[i].target {
                        *chain = names[next].clone();
                    }
                });
                for m in 0..rules[i].matches.len() {
                    change("match dropped", &|rules| drop(rules[i].matches.drain(m..=m)));
                    for up in [true, false] {
                        change("match changed", &|rules| shift(&mut rules[i].matches[m], up, table.0.bits()));
                    }
                }
            }
        }
    }
    for (name, set) in &ruleset.sets {
        for (prefix, matches) in &set.elements {
            let mut change = |kind, edit: &dyn Fn(&mut BTreeMap<Prefix, bool>)| {
                let mut mutant = ruleset.clone();
                edit(&mut mutant.sets.get_mut(name).unwrap().elements);
                if mutant != *ruleset {
                    found.push((kind, format!("{name} {prefix:?}"), mutant));
                }
            };
            change("element dropped", &|e| e.retain(|p, _| p != prefix));
            change("element flipped", &|e| e.extend([(*prefix, !matches)]));
            change("element added", &|e| {
                let next = prefix.base.wrapping_add(1) & set.family.mask(set.family.bits());
                e.entry(Prefix::host(set.family, next)).or_insert(*matches);
            });
        }
    }
    found
}

fn shift(found: &mut Match, up: bool, bits: u8) {
    match found {
        Match::Addr(_, prefix) if prefix.len == bits => {
            prefix.base = if up { prefix.base ^ 1 } else { prefix.base ^ 2 };
        }
        Match::Addr(end, _) => {
            *end = match end {
                netpolc_bundle::ipt::End::Src => netpolc_bundle::ipt::End::Dst,
                netpolc_bundle::ipt::End::Dst => netpolc_bundle::ipt::End::Src,
            };
        }
        Match::Port(lo, hi) if up => *hi = hi.saturating_add(1).max(*lo),
        Match::Port(lo, hi) => *lo = lo.saturating_sub(1).min(*hi),
        Match::Protocol(number) => *number = if up { number.wrapping_add(1).max(1) } else { 17 },
        Match::Known if up => *found = Match::NotTracked,
        Match::NotTracked if up => *found = Match::Known,
        Match::InSet(end, _) if up => {
            *end = match end {
                netpolc_bundle::ipt::End::Src => netpolc_bundle::ipt::End::Dst,
                netpolc_bundle::ipt::End::Dst => netpolc_bundle::ipt::End::Src,
            };
        }
        _ => {}
    }
}

/// All packets that the questions and the addresses that a machine names give rise to.
fn packets(compiled: &Compiled, node: &str, machine: &Machine) -> BTreeSet<Packet> {
    let host = compiled.matrix.hosts.iter().find(|(_, h)| h.name == node).unwrap();
    let pods = compiled.matrix.endpoints.values().filter(|e| e.host == host.0);
    let local: BTreeSet<IpAddr> = pods.flat_map(|e| e.addrs.iter().map(|(a, _)| *a)).collect();
    let mut questions = Questions::new(&compiled.model);
    for family in Family::ALL {
        let named = machine.addresses(family);
        let ranges = named.ranges.iter().flat_map(|&(lo, hi)| [lo, hi]);
        let more = named.sets.iter().flatten().copied().chain(ranges).map(|a| family.addr(a));
        let known = &questions.pods[family as usize];
        let more: BTreeSet<IpAddr> = more.filter(|a| !known.contains(a)).collect();
        questions.others[family as usize].extend(more);
    }
    let mut found = BTreeSet::new();
    for flow in (0..questions.len()).map(|i| questions.flow(i)) {
        let own = |pod, other| local.contains(pod) && host.1.addrs.contains(other);
        if own(&flow.src, &flow.dst) || own(&flow.dst, &flow.src) {
            continue;
        }
        // Between others the proof looks at few packets.
        let touches = local.contains(&flow.src) || local.contains(&flow.dst);
        if !touches {
            continue;
        }
        let packet = Packet::opening(flow);
        found.insert(packet);
        if flow.protocol == Protocol::TCP {
            let protocols = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
            for flow in protocols.map(|protocol| Flow { protocol, port: 80, ..flow }) {
                let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::NeighbourDiscovery);
                found.extend(kinds.map(|kind| kind.packet(flow)));
                found.insert(Packet { conn: Conn::Related, ..Packet::opening(flow) });
            }
        }
        if flow.protocol == Protocol::ICMPV6 {
            found.insert(Kind::NeighbourDiscovery.packet(flow));
        }
    }
    found
}

fn run(seed: u64, sets: bool, most: usize, tally: &mut BTreeMap<(&'static str, &'static str), usize>) {
    let yaml = generate(seed, Options::default()).yaml();
    let compiled = compiled(&yaml);
    let reference = SetReference::new(&compiled.model);
    for node in nodes(&compiled, sets) {
        let all = mutations(&node.plan.ruleset);
        let step = all.len().div_ceil(most).max(1);
        for (kind, place, mutant) in all.into_iter().skip(seed as usize % step).step_by(step) {
            let mut count = |what| *tally.entry((kind, what)).or_default() += 1;
            let Ok(mut machine) = decode(&emit(&mutant, &[]).texts()) else {
                count("refused");
                continue;
            };
            match prove(&reference, &mut machine, &node.name) {
                Err(witness) => {
                    assert_ne!(witness.expected, witness.actual, "{witness}");
                    assert_eq!(machine.decide(&witness.packet), witness.actual, "{kind} {place}: {witness}");
                    assert_eq!(
                        node.machine.decide(&witness.packet),
                        witness.expected,
                        "{kind} {place}: {witness}"
                    );
                    count("caught");
                }
                Ok(_) => {
                    let differs = |p: &&Packet| machine.decide(p) != node.machine.decide(p);
                    let packets = packets(&compiled, &node.name, &machine);
                    if let Some(packet) = packets.iter().find(differs) {
                        panic!(
                            "seed {seed}, sets {sets}: the proof passes {kind} at {place}: {packet}\n{yaml}"
                        );
                    }
                    count("neutral");
                }
            }
        }
    }
}

#[test]
fn every_mutation_is_caught_or_changes_nothing() {
    let mut tally = BTreeMap::new();
    for seed in 500..500 + seeds(12) {
        for sets in [true, false] {
            run(seed, sets, 60, &mut tally);
        }
    }
    let total = |what| tally.iter().filter(|((_, w), _)| *w == what).map(|(_, n)| *n).sum::<usize>();
    let (caught, refused, neutral) = (total("caught"), total("refused"), total("neutral"));
    assert!(caught > 400 && caught > neutral, "{tally:#?}");
    assert!(refused > 0, "{tally:#?}");
    for kind in ["rule dropped", "target", "match dropped", "match changed", "element dropped", "other chain"]
    {
        assert!(tally.contains_key(&(kind, "caught")), "{kind}: {tally:#?}");
    }
}

/// The addresses of a `hash:net` with exceptions, of a `hash:ip`, and of trees are all there in the generated clusters.
#[test]
fn the_generated_clusters_use_every_form() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..60 {
        let compiled = compiled(&generate(seed, Options::default()).yaml());
        let labels = Labels(&compiled);
        let mut selector = Selector::new(&compiled.matrix, &labels);
        for host in compiled.matrix.hosts.keys() {
            let plan = selector.plan(host).unwrap();
            let mut count = |what, n: usize| *seen.entry(what).or_default() += n;
            let sets = || plan.ruleset.sets.values();
            count("nomatch", sets().filter(|s| s.elements.values().any(|m| !m)).count());
            count("hash:ip", sets().filter(|s| s.kind == netpolc_bundle::ipt::SetKind::HashIp).count());
            let chains = plan.ruleset.tables.values().flatten();
            let prefix = |m: &Match| matches!(m, Match::Addr(_, p) if p.len < 32 && p.len > 0);
            let trees = chains.filter(|(name, rules)| {
                name.contains("GRESS") && rules.iter().any(|r| r.matches.iter().any(prefix))
            });
            count("trees", trees.count());
            let rules = || plan.ruleset.tables.values().flat_map(|c| c.values().flatten());
            count(
                "ports",
                rules().filter(|r| r.matches.iter().any(|m| matches!(m, Match::Port(..)))).count(),
            );
            count("comments", rules().filter(|r| r.comment.is_some()).count());
        }
    }
    let missing: Vec<_> = seen.iter().filter(|(_, n)| **n < 5).collect();
    assert!(missing.is_empty() && seen.len() == 5, "{seen:?}");
}
