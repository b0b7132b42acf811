//! The flows worth asking about: all pairs of addresses that may be told apart, all ports beside a bound, every kind of
//! protocol.

use crate::random::Random;
use netpolc_frontend::model::Model;
use netpolc_frontend::objects::{ClusterPeer, PeerKind, PolicyPort};
use netpolc_ir::addr::{Cidr, Family, bits};
use netpolc_ir::ports::{Protocol, Transport};
use netpolc_ir::unit::Flow;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses that nothing in a model names.
const STRANGERS: [&str; 4] = ["192.0.2.77", "100.64.3.2", "2a00::99", "fc00::1"];

/// Addresses by what they are, one family each, and the protocols and ports to ask about.
#[derive(Debug, Clone)]
pub struct Questions {
    /// Addresses of pods, IPv4 then IPv6.
    pub pods: [Vec<IpAddr>; 2],
    /// All others: nodes, both sides of every bound of a block, strangers.
    pub others: [Vec<IpAddr>; 2],
    /// Protocols with ports.
    pub services: Vec<(Protocol, u16)>,
}

impl Questions {
    /// What to ask about a model.
    pub fn new(model: &Model) -> Questions {
        let mut pods: [BTreeSet<IpAddr>; 2] = Default::default();
        let mut others: [BTreeSet<IpAddr>; 2] = Default::default();
        let all = model.pods.iter().filter(|p| !p.host_network).flat_map(|p| &p.addrs);
        for addr in all {
            pods[Family::of(*addr) as usize].insert(*addr);
        }
        let strangers = STRANGERS.iter().filter_map(|a| a.parse().ok());
        let nodes = model.nodes.values().flat_map(|n| n.addrs.iter().copied());
        for addr in nodes.chain(strangers).chain(blocks(model).iter().flat_map(edges)) {
            let family = Family::of(addr) as usize;
            if !pods[family].contains(&addr) {
                others[family].insert(addr);
            }
        }
        Questions {
            pods: pods.map(|s| s.into_iter().collect()),
            others: others.map(|s| s.into_iter().collect()),
            services: services(model),
        }
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        Family::ALL.iter().map(|f| self.pairs(*f)).sum::<usize>() * self.services.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn pairs(&self, family: Family) -> usize {
        let (pods, others) = (self.pods[family as usize].len(), self.others[family as usize].len());
        pods * (pods + 2 * others)
    }

    /// The flow with a number below [`Questions::len`]. One end at least is a pod.
    pub fn flow(&self, number: usize) -> Flow {
        let service = self.services[number % self.services.len()];
        let mut pair = number / self.services.len();
        let family = if pair < self.pairs(Family::V4) { Family::V4 } else { Family::V6 };
        if family == Family::V6 {
            pair -= self.pairs(Family::V4);
        }
        let (pods, others) = (&self.pods[family as usize], &self.others[family as usize]);
        let (src, dst) = if pair < pods.len() * pods.len() {
            (pods[pair / pods.len()], pods[pair % pods.len()])
        } else {
            pair -= pods.len() * pods.len();
            let (pod, other) = (pods[pair / 2 % pods.len()], others[pair / 2 / pods.len()]);
            if pair.is_multiple_of(2) { (pod, other) } else { (other, pod) }
        };
        let protocol = match (service.0, family) {
            (Protocol::ICMP, Family::V6) => Protocol::ICMPV6,
            (protocol, _) => protocol,
        };
        Flow { src, dst, protocol, port: service.1 }
    }

    /// At most so many flows, spread over all.
    pub fn sample(&self, random: &mut Random, most: usize) -> Vec<Flow> {
        let len = self.len();
        if len <= most {
            return (0..len).map(|i| self.flow(i)).collect();
        }
        (0..most).map(|_| self.flow(random.below(len))).collect()
    }
}

/// The blocks that a model's policies name.
fn blocks(model: &Model) -> BTreeSet<Cidr> {
    let mut found = BTreeSet::new();
    let rules =
        model.policies.iter().flat_map(|p| p.ingress.iter().flatten().chain(p.egress.iter().flatten()));
    for peer in rules.flat_map(|r| r.peers.iter().flatten()) {
        if let PeerKind::Block(block) = &peer.kind {
            found.extend(block.except.iter().chain([&block.cidr]).copied());
        }
    }
    for rule in model.cluster_policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress)) {
        for peer in &rule.peers {
            if let ClusterPeer::Networks(cidrs) = peer {
                found.extend(cidrs);
            }
        }
    }
    found
}

/// Both ends of a block and their neighbours outside.
fn edges(block: &Cidr) -> Vec<IpAddr> {
    let family = block.family();
    let (first, last) = (bits(block.addr()), block.last());
    let mut found = vec![first, last];
    found.extend(first.checked_sub(1));
    found.extend((last < family.max()).then(|| last + 1));
    found.into_iter().map(|a| family.addr(a)).collect()
}

fn services(model: &Model) -> Vec<(Protocol, u16)> {
    let mut ports: [BTreeSet<u16>; 3] = Default::default();
    let v1 = model.policies.iter().flat_map(|p| p.ingress.iter().flatten().chain(p.egress.iter().flatten()));
    let tiered = model.cluster_policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress));
    let written =
        v1.flat_map(|r| r.ports.iter().flatten()).chain(tiered.flat_map(|r| r.ports.iter().flatten()));
    let mut spans: Vec<(Transport, u16, u16)> = Vec::new();
    for port in written {
        if let PolicyPort::Range { transport, lo, hi } = port {
            spans.push((*transport, *lo, *hi));
        }
    }
    spans.extend(model.pods.iter().flat_map(|p| &p.ports).map(|p| (p.transport, p.port, p.port)));
    for (transport, lo, hi) in spans {
        let near = [lo.saturating_sub(1), lo, hi, hi.saturating_add(1)];
        ports[transport as usize].extend(near);
        // The same numbers under another protocol must not match.
        let next = (transport as usize + 1) % 3;
        ports[next].insert(lo);
    }
    let mut found = vec![(Protocol::ICMP, 0), (Protocol::Other(47), 0)];
    for transport in Transport::ALL {
        let own = &mut ports[transport as usize];
        own.extend([0, 7, u16::MAX]);
        found.extend(own.iter().map(|p| (Protocol::Transport(transport), *p)));
    }
    found
}
