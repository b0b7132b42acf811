//! Random units that verify, and the questions to ask them.

use cranelift_entity::{EntityRef, PrimaryMap};
use netpolc_ir::addr::{AddrSet, Block, Cidr, Family, bits};
use netpolc_ir::ports::{PortSpan, Protocol, Transport};
use netpolc_ir::unit::*;
use netpolc_ir::verify::{Verified, verify};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// xorshift64*, seeded.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// An address among 64 of each family: so few that blocks meet endpoints all the time.
fn addr(rng: &mut Rng) -> IpAddr {
    let family = if rng.one_in(3) { Family::V6 } else { Family::V4 };
    let base: IpAddr = if family == Family::V4 { "10.0.0.0" } else { "fd00::" }.parse().unwrap();
    family.addr(bits(base) + rng.below(64) as u128)
}

fn cidr(rng: &mut Rng) -> Cidr {
    let addr = addr(rng);
    let width = Family::of(addr).bits();
    let host_bits = if rng.one_in(12) { width } else { rng.below(7) as u8 };
    Cidr::new(addr, width - host_bits).unwrap()
}

pub(crate) fn block(rng: &mut Rng) -> Block {
    let cidr = cidr(rng);
    let count = [0, 0, 0, 1, 1, 2, 3][rng.below(7)];
    let except = (0..count).map(|_| self::cidr(rng)).filter(|e| e.family() == cidr.family()).collect();
    Block { cidr, except }
}

fn span(rng: &mut Rng) -> PortSpan {
    let transport = rng.pick(&[Transport::Tcp, Transport::Tcp, Transport::Udp, Transport::Sctp]);
    let (a, b) =
        (rng.pick(&[0u16, 1, 79, 80, 81, 82, 443, 65534, 65535]), rng.pick(&[0u16, 80, 81, 90, 65535]));
    match rng.below(8) {
        0 => PortSpan::Any,
        1 => PortSpan::whole(transport),
        2..5 => PortSpan::port(transport, a),
        _ => PortSpan::Ports { transport, lo: a.min(b), hi: a.max(b) },
    }
}

fn origins(rng: &mut Rng) -> Vec<Origin> {
    let set: BTreeSet<Origin> = (0..rng.below(3)).map(|_| Origin(rng.below(20) as u32)).collect();
    set.into_iter().collect()
}

fn subset(rng: &mut Rng, n: usize) -> Vec<Class> {
    let odds = 2 + rng.below(2);
    (0..n).filter(|_| rng.one_in(odds)).map(Class::new).collect()
}

pub(crate) fn unit(seed: u64) -> Verified {
    let rng = &mut Rng::new(seed);
    let mut unit = Unit::default();
    for _ in 0..1 + rng.below(5) {
        let blocks = (0..[0, 0, 1, 1, 2, 3][rng.below(6)]).map(|_| block(rng)).collect();
        unit.sets.push(SetData { classes: Vec::new(), blocks });
    }
    addresses(&mut unit, rng);
    let n = unit.classes.len();
    for _ in 0..1 + rng.below(3) {
        unit.sets.push(SetData::default());
    }
    for set in unit.sets.values_mut() {
        set.classes = subset(rng, n);
    }
    if rng.one_in(3) {
        let again = unit.sets[Set::new(0)].clone();
        unit.sets.push(again);
    }
    for _ in 0..1 + rng.below(4) {
        let spans = (0..[0, 1, 1, 2, 3, 4][rng.below(6)]).map(|_| span(rng)).collect();
        unit.ports.push(spans);
    }
    rules(&mut unit, rng);
    verify(unit).unwrap()
}

/// Nodes, endpoints and classes. An address's class says which sets' blocks have it, so that no class straddles.
fn addresses(unit: &mut Unit, rng: &mut Rng) {
    let mut free: Vec<IpAddr> = BTreeSet::from_iter((0..24).map(|_| addr(rng))).into_iter().collect();
    rng.shuffle(&mut free);
    for i in 0..1 + rng.below(3) {
        let take = rng.below(3).min(free.len());
        let mut addrs: Vec<IpAddr> = free.drain(..take).collect();
        addrs.sort_unstable();
        unit.hosts.push(HostData { name: format!("node-{i}"), addrs });
    }
    let sets: Vec<AddrSet> = unit.sets.values().map(|s| AddrSet::from_blocks(&s.blocks)).collect();
    let mut classes: BTreeMap<(usize, Vec<bool>), Class> = BTreeMap::new();
    for i in 0..rng.below(9) {
        let host = Host::new(rng.below(unit.hosts.len()));
        let take = rng.below(4).min(free.len());
        let addrs: Vec<(IpAddr, Class)> = free
            .drain(..take)
            .map(|a| {
                let key = (rng.below(3), sets.iter().map(|s| s.contains(a)).collect());
                let next = unit.classes.len();
                let class =
                    *classes.entry(key).or_insert_with(|| unit.classes.push(format!("class \"{next}\"")));
                (a, class)
            })
            .collect();
        unit.endpoints.push(EndpointData { name: format!("x/pod-{i}"), host, addrs });
    }
    for i in 0..rng.below(3) {
        unit.classes.push(format!("without addresses \\{i}"));
    }
}

fn rules(unit: &mut Unit, rng: &mut Rng) {
    let subjects: Vec<Set> =
        unit.sets.iter().filter(|(_, s)| s.blocks.is_empty()).map(|(set, _)| set).collect();
    for _ in 0..rng.below(7) {
        let (direction, subject) = (rng.pick(&Direction::ALL), rng.pick(&subjects));
        unit.isolations.push(Isolation { direction, subject, origins: origins(rng) });
    }
    let mut actions: BTreeMap<(Tier, Direction, u32), Action> = BTreeMap::new();
    for _ in 0..rng.below(10) {
        let tier = rng.pick(&[Tier::Admin, Tier::NetworkPolicy, Tier::NetworkPolicy, Tier::Baseline]);
        let direction = rng.pick(&Direction::ALL);
        let v1 = tier == Tier::NetworkPolicy;
        let order = if v1 { 0 } else { rng.below(3) as u32 };
        let action = rng.pick(&[Action::Accept, Action::Deny, Action::Deny, Action::Pass]);
        let action = if v1 { Action::Accept } else { action };
        unit.rules.push(RuleData {
            tier,
            direction,
            order,
            subject: rng.pick(&subjects),
            peers: Set::new(rng.below(unit.sets.len())),
            ports: Ports::new(rng.below(unit.ports.len())),
            action: *actions.entry((tier, direction, order)).or_insert(action),
            origins: origins(rng),
        });
    }
}

/// Flows between a sample of addresses that has bound ones, nodes, and what lies at the boundaries of blocks.
pub(crate) fn flows(unit: &Unit, rng: &mut Rng) -> Vec<Flow> {
    let mut flows = Vec::new();
    for family in Family::ALL {
        let addrs = some_addresses(unit, family, rng);
        for (&src, &dst) in addrs.iter().flat_map(|s| addrs.iter().map(move |d| (s, d))) {
            flows.push(Flow { src, dst, protocol: Protocol::ICMP, port: 0 });
            for transport in Transport::ALL {
                for port in some_ports(unit, transport, rng) {
                    flows.push(Flow { src, dst, protocol: Protocol::Transport(transport), port });
                }
            }
        }
    }
    flows
}

fn some_addresses(unit: &Unit, family: Family, rng: &mut Rng) -> Vec<IpAddr> {
    let mut named: Vec<IpAddr> = unit.endpoints.values().flat_map(|e| e.addrs.iter().map(|a| a.0)).collect();
    named.extend(unit.hosts.values().flat_map(|h| h.addrs.iter().copied()));
    named.retain(|a| Family::of(*a) == family);
    let mut edges = vec![family.addr(8)];
    let cidrs = unit.sets.values().flat_map(|s| &s.blocks).flat_map(|b| b.except.iter().chain([&b.cidr]));
    for cidr in cidrs.filter(|c| c.family() == family) {
        let (first, last) = (cidr.first(), cidr.last());
        let around = [first.saturating_sub(1), first, last, last.saturating_add(1).min(family.max())];
        edges.extend(around.map(|x| family.addr(x)));
    }
    rng.shuffle(&mut named);
    rng.shuffle(&mut edges);
    named.truncate(7);
    edges.truncate(3);
    named.extend(edges);
    named.sort_unstable();
    named.dedup();
    named
}

fn some_ports(unit: &Unit, transport: Transport, rng: &mut Rng) -> Vec<u16> {
    let mut ports = vec![0, u16::MAX];
    for span in unit.ports.values().flatten() {
        if let PortSpan::Ports { transport: t, lo, hi } = span
            && *t == transport
        {
            ports.extend([lo.saturating_sub(1), *lo, *hi, hi.saturating_add(1)]);
        }
    }
    rng.shuffle(&mut ports);
    ports.truncate(5);
    ports
}

/// The same unit with everything that is numbered or listed without meaning in another order.
pub(crate) fn shuffled(unit: &Unit, rng: &mut Rng) -> Unit {
    let mut unit = unit.clone();
    let class = permute(&mut unit.classes, rng);
    let set = permute(&mut unit.sets, rng);
    let ports = permute(&mut unit.ports, rng);
    for (_, c) in unit.endpoints.values_mut().flat_map(|e| &mut e.addrs) {
        *c = class[*c];
    }
    for data in unit.sets.values_mut() {
        data.classes.iter_mut().for_each(|c| *c = class[*c]);
        data.classes.sort_unstable();
        rng.shuffle(&mut data.blocks);
        data.blocks.iter_mut().for_each(|b| rng.shuffle(&mut b.except));
    }
    unit.ports.values_mut().for_each(|p| rng.shuffle(p));
    unit.isolations.iter_mut().for_each(|i| i.subject = set[i.subject]);
    rng.shuffle(&mut unit.isolations);
    for rule in unit.rules.values_mut() {
        rule.subject = set[rule.subject];
        rule.peers = set[rule.peers];
        rule.ports = ports[rule.ports];
    }
    permute(&mut unit.rules, rng);
    unit
}

fn permute<K: EntityRef, V: Clone>(map: &mut PrimaryMap<K, V>, rng: &mut Rng) -> PrimaryMap<K, K> {
    let mut order: Vec<K> = map.keys().collect();
    rng.shuffle(&mut order);
    let mut new: PrimaryMap<K, K> = order.iter().copied().collect();
    for (i, &old) in order.iter().enumerate() {
        new[old] = K::new(i);
    }
    *map = order.iter().map(|&k| map[k].clone()).collect();
    new
}
