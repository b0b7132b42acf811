//! Damaged rules are not proven: for every mutation the proof finds a packet, and the packet is a real one; or the
//! mutation changes nothing for any packet.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

use netpolc_bundle::nft::{
    Elements, Family as Table, Field, Key, KeyType, Match, Outcome, Rule, Set, Verdict as Fate,
};
use netpolc_frontend::reference::SetReference;
use netpolc_ir::addr::Family;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Artifact, Conn, Kind, Packet, Reference, prove};
use netpolc_ir::unit::{Flow, Verdict};
use netpolc_nftables::decode::{Machine, decode};
use netpolc_nftables::emit::emit;
use netpolc_testkit::flows::Questions;
use netpolc_testkit::generate::{Options, generate};
use netpolc_testkit::mutate::{Mutation, mutations};
use netpolc_testkit::pipeline::{Compiled, Node, compile, model, seeds};
use netpolc_testkit::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What must become of a packet; `None` where either will do.
fn expected(
    compiled: &Compiled,
    reference: &SetReference<'_>,
    groups: &BTreeMap<IpAddr, usize>,
    node: &Node,
    packet: &Packet,
) -> Option<Verdict> {
    if matches!(packet.conn, Conn::Established | Conn::Related) || packet.neighbour_discovery {
        return Some(Verdict::Allow);
    }
    if packet.spoofed {
        return Some(Verdict::Deny);
    }
    if packet.asymmetric && node.local().contains(&packet.flow.src) {
        return Some(Verdict::Deny);
    }
    let local = |addr: &IpAddr| node.local().contains(addr).then(|| reference.isolated(groups[addr]));
    if packet.conn == Conn::Untracked || (packet.flow.protocol.has_handshake() && !packet.opens) {
        let ends: Vec<Option<bool>> =
            [local(&packet.flow.src), local(&packet.flow.dst)].into_iter().flatten().collect();
        return match ends {
            ends if ends.contains(&Some(true)) => Some(Verdict::Deny),
            ends if ends.contains(&None) => None,
            _ => Some(Verdict::Allow),
        };
    }
    if !node.touches(&packet.flow) {
        return Some(Verdict::Allow);
    }
    // The other node's share: what is judged here is what this node's pods permit.
    let other = |addr: &IpAddr| groups.contains_key(addr) && !node.local().contains(addr);
    if other(&packet.flow.src) || other(&packet.flow.dst) {
        return None.or_else(|| share(reference, groups, node, &packet.flow));
    }
    Some(compiled.model.decide(&packet.flow).verdict)
}

/// The verdict of one end that lives on the node, when the other end lives elsewhere.
fn share(
    reference: &SetReference<'_>,
    groups: &BTreeMap<IpAddr, usize>,
    node: &Node,
    flow: &Flow,
) -> Option<Verdict> {
    use netpolc_ir::unit::Direction;
    let (subject, peer, direction) = match node.local().contains(&flow.src) {
        true => (flow.src, flow.dst, Direction::Egress),
        false => (flow.dst, flow.src, Direction::Ingress),
    };
    let permitted = reference.permits(groups[&subject], direction, flow.protocol, flow.port);
    Some(Verdict::allow_if(permitted.is_none_or(|p| p.groups.contains(groups[&peer]))))
}

/// All packets that may tell rules of a family apart.
fn packets(questions: &Questions, node: &Node, family: Family) -> Vec<Packet> {
    let mut found = Vec::new();
    let flows = (0..questions.len()).map(|i| questions.flow(i)).filter(|f| Family::of(f.src) == family);
    let mut ends = BTreeSet::new();
    for flow in flows.filter(|f| node.touches(f) && !node.is_own(f)) {
        found.push(Packet::opening(flow));
        found.push(Packet { asymmetric: true, ..Packet::opening(flow) });
        ends.insert((flow.src, flow.dst));
    }
    for (src, dst) in ends {
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
            let kinds = Kind::ALL.into_iter().filter(|k| !matches!(k, Kind::NeighbourDiscovery));
            found.extend(kinds.map(|kind| kind.packet(Flow { src, dst, protocol, port: 1 })));
        }
        if family == Family::V6 {
            let flow = Flow { src, dst, protocol: Protocol::ICMPV6, port: 0 };
            found.push(Kind::NeighbourDiscovery.packet(flow));
        }
    }
    // Packets between others must pass.
    let all: Vec<IpAddr> =
        questions.pods[family as usize].iter().chain(&questions.others[family as usize]).copied().collect();
    let strangers: Vec<IpAddr> = all.into_iter().filter(|a| !node.local().contains(a)).collect();
    for (src, dst) in strangers.iter().flat_map(|a| strangers.iter().map(move |b| (*a, *b))) {
        let kinds = Kind::ALL.into_iter().filter(|k| *k != Kind::NeighbourDiscovery);
        let kinds = kinds.filter(|k| !k.spoofed() || node.local().iter().any(|a| Family::of(*a) == family));
        found.extend(kinds.map(|kind| kind.packet(Flow { src, dst, protocol: Protocol::TCP, port: 80 })));
    }
    found
}

#[derive(Default)]
struct Tally {
    refused: usize,
    caught: usize,
    neutral: BTreeMap<&'static str, usize>,
    faults: Vec<String>,
}

struct Subject<'a> {
    compiled: &'a Compiled,
    reference: &'a SetReference<'a>,
    groups: BTreeMap<IpAddr, usize>,
    node: &'a Node,
    questions: Questions,
    /// All packets with what must become of them.
    packets: BTreeMap<Family, Vec<(Packet, Option<Verdict>)>>,
}

impl Subject<'_> {
    fn expected(&self, packet: &Packet) -> Option<Verdict> {
        expected(self.compiled, self.reference, &self.groups, self.node, packet)
    }

    fn try_one(&mut self, mutation: &Mutation, tally: &mut Tally) {
        let Ok(mut machine) = decode(&emit(&mutation.ruleset, &[])) else {
            tally.refused += 1;
            return;
        };
        match prove(self.reference, &mut machine, &self.node.name) {
            Err(witness) => {
                let packet = &witness.packet;
                let real = self.expected(packet) == Some(witness.expected)
                    && machine.decide(packet) == witness.actual
                    && witness.expected != witness.actual
                    && !self.node.is_own(&packet.flow);
                if real {
                    tally.caught += 1;
                } else {
                    let (should, does) = (self.expected(packet), machine.decide(packet));
                    tally.faults.push(format!(
                        "not a real witness: {witness} (should {should:?}, does {does}); {}: {}",
                        mutation.kind, mutation.what
                    ));
                }
            }
            Ok(_) => self.survivor(mutation, &machine, tally),
        }
    }

    fn judged(&self, questions: &Questions, family: Family) -> Vec<(Packet, Option<Verdict>)> {
        let packets = packets(questions, self.node, family);
        packets.into_iter().map(|p| (p, self.expected(&p))).collect()
    }

    /// Addresses that rules name, and their neighbours, which the questions lack.
    fn strays(&self, machine: &Machine, family: Family) -> Vec<IpAddr> {
        let constants = machine.addresses(family);
        let singles = constants.sets.iter().flatten().map(|a| (*a, *a));
        let edges = singles.chain(constants.ranges.iter().copied());
        let near =
            edges.flat_map(|(lo, hi)| [lo.saturating_sub(1), lo, hi, hi.saturating_add(1).min(family.max())]);
        let all: BTreeSet<IpAddr> = near.map(|a| family.addr(a)).collect();
        let known = [&self.questions.pods[family as usize], &self.questions.others[family as usize]];
        all.into_iter().filter(|a| known.iter().all(|list| !list.contains(a))).collect()
    }

    fn survivor(&mut self, mutation: &Mutation, machine: &Machine, tally: &mut Tally) {
        let family = if mutation.family == Table::Ip { Family::V4 } else { Family::V6 };
        if !self.packets.contains_key(&family) {
            let all = self.judged(&self.questions, family);
            self.packets.insert(family, all);
        }
        // What the damaged rules name beside that.
        let mut more = self.questions.clone();
        more.others[family as usize] = self.strays(machine, family);
        let more =
            if more.others[family as usize].is_empty() { Vec::new() } else { self.judged(&more, family) };
        let wrong = |(p, e): &&(Packet, Option<Verdict>)| e.is_some_and(|e| e != machine.decide(p));
        let differs = self.packets[&family].iter().chain(&more).find(wrong).map(|(p, _)| *p);
        match differs {
            None => {
                if std::env::var_os("NETPOLC_SHOW_NEUTRAL").is_some() {
                    println!("neutral on {}: {}: {}", self.node.name, mutation.kind, mutation.what);
                }
                *tally.neutral.entry(mutation.kind).or_default() += 1;
            }
            Some(packet) => tally.faults.push(format!(
                "the proof passes {}: {}, but {packet} gets {}",
                mutation.kind,
                mutation.what,
                machine.decide(&packet)
            )),
        }
    }
}

fn run(seed: u64, options: Options, most: usize, tally: &mut Tally) {
    let cluster = generate(seed, options);
    run_yaml(&cluster.yaml(), seed, most, tally);
}

fn run_yaml(yaml: &str, seed: u64, most: usize, tally: &mut Tally) {
    let compiled = compile(model(&[("a.yaml", yaml.to_owned())]).unwrap()).unwrap();
    let reference = SetReference::new(&compiled.model);
    for node in &compiled.nodes().unwrap() {
        let groups = reference.endpoints(&node.name).into_iter().map(|(a, g, _)| (a, g)).collect();
        let questions = Questions::new(&compiled.model);
        let mut subject = Subject {
            compiled: &compiled,
            reference: &reference,
            groups,
            node,
            questions,
            packets: BTreeMap::new(),
        };
        let all = Random::new(seed).sample(mutations(&node.plan.ruleset), most);
        let faults = tally.faults.len();
        for mutation in &all {
            subject.try_one(mutation, tally);
        }
        for fault in &mut tally.faults[faults..] {
            *fault = format!("seed {seed} {}: {fault}", node.name);
        }
    }
}

/// There must be at least `least` mutations that were caught, and no fault.
fn finish(tally: &Tally, least: usize) {
    let Tally { refused, caught, neutral, faults } = tally;
    println!("caught {caught}, refused by the parser {refused}, neutral {neutral:?}");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults[..faults.len().min(30)].join("\n"));
    assert!(*caught >= least, "{caught}");
}

#[test]
fn generated() {
    let mut tally = Tally::default();
    (0..seeds(8))
        .for_each(|seed| run(seed, Options { tiers: seed % 4 == 3, ..Options::default() }, 250, &mut tally));
    finish(&tally, 1_000);
}

/// Small enough for every mutation, with one of each kind of object.
const FIXED: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.168.10.1}, {type: InternalIP, address: "fd99::1"}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: 192.168.10.2}]}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: db-0, labels: {app: db}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
status: {phase: Running, podIPs: [{ip: 10.244.0.10}, {ip: "fd00::10"}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web-0, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIPs: [{ip: 10.244.0.11}, {ip: "fd00::11"}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web-1, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 8081}]}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.11}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: ops, name: free}
spec: {nodeName: n1}
status: {phase: Running, podIPs: [{ip: 10.244.0.12}, {ip: "fd00::12"}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: sql}]}
  - {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.0.0/16, 10.1.2.3/32]}}], ports: [{port: 9000, endPort: 9010}, {protocol: SCTP}]}
  - {from: [{ipBlock: {cidr: "2001:db8::/32"}}]}
  egress:
  - {to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 11.0.0.0/9, 12.16.0.0/12, 13.1.0.0/16, 14.1.1.0/24, 15.1.1.16/28, 16.1.1.1/32]}}], ports: [{protocol: UDP, port: 53}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - {ports: [{port: http}, {protocol: UDP}]}
"#;

#[test]
fn fixed() {
    let mut tally = Tally::default();
    run_yaml(FIXED, 1, usize::MAX, &mut tally);
    finish(&tally, 400);
}

/// Rules that drop packets of one port between two addresses that no pod of the node has.
#[test]
fn strangers_on_any_port() {
    let cluster = generate(3, Options { buildable: true, ..Options::default() });
    let compiled = compile(model(&[("cluster.yaml", cluster.yaml())]).unwrap()).unwrap();
    let reference = SetReference::new(&compiled.model);
    let mut damaged = 0;
    for node in compiled.nodes().unwrap() {
        let mut ruleset = node.plan.ruleset.clone();
        let Some(table) = ruleset.tables.get_mut(&Table::Ip) else { continue };
        let Some((_, judge)) = table.chains.iter_mut().find(|(name, _)| name.starts_with("judge_")) else {
            continue;
        };
        let rule = |fields: &[Field], set: &str, verdict| Rule {
            matches: vec![Match::InSet(fields.to_vec(), set.to_owned())],
            counter: false,
            outcome: Outcome::Verdict(verdict),
            comment: None,
        };
        judge.rules.push(rule(&[Field::Saddr], "local", Fate::Accept));
        judge.rules.push(rule(&[Field::Daddr, Field::L4Proto, Field::Dport], "odd", Fate::Drop));
        let far = u128::from(u32::from(std::net::Ipv4Addr::new(203, 0, 113, 7)));
        let key = vec![Key::Addr(far, far), Key::Proto(17), Key::Service(4321, 4321)];
        let set = Set {
            key: vec![KeyType::Addr, KeyType::Proto, KeyType::Service],
            elements: Elements::General(BTreeMap::from([(key, None)])),
            ..Set::default()
        };
        table.sets.insert("odd".to_owned(), set);
        let witness = prove(&reference, &mut Machine::new(ruleset), &node.name).unwrap_err();
        let flow = witness.packet.flow;
        assert_eq!((flow.protocol, flow.port), (Protocol::UDP, 4321), "{witness}");
        assert_eq!(flow.dst.to_string(), "203.0.113.7", "{witness}");
        damaged += 1;
    }
    assert!(damaged > 0);
}
