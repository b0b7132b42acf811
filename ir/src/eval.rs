//! What a unit means: the verdict on a flow, rule by rule.

use crate::unit::*;
use cranelift_entity::PrimaryMap;
use std::collections::HashMap;
use std::net::IpAddr;

/// Who has which address.
#[derive(Debug, Clone, Default)]
pub struct Bindings {
    endpoints: HashMap<IpAddr, (Endpoint, Class)>,
    hosts: HashMap<IpAddr, Host>,
}

impl Bindings {
    /// The index of all addresses of endpoints and hosts.
    pub fn new(
        endpoints: &PrimaryMap<Endpoint, EndpointData>,
        hosts: &PrimaryMap<Host, HostData>,
    ) -> Bindings {
        let mut bindings = Bindings::default();
        for (endpoint, data) in endpoints.iter() {
            for &(addr, class) in &data.addrs {
                bindings.endpoints.insert(addr, (endpoint, class));
            }
        }
        for (host, data) in hosts.iter() {
            bindings.hosts.extend(data.addrs.iter().map(|&a| (a, host)));
        }
        bindings
    }

    /// The endpoint that has an address, and the address's class.
    pub fn endpoint(&self, addr: IpAddr) -> Option<(Endpoint, Class)> {
        self.endpoints.get(&addr).copied()
    }

    /// The node that has an address.
    pub fn host(&self, addr: IpAddr) -> Option<Host> {
        self.hosts.get(&addr).copied()
    }
}

/// The part of the decision that unit and matrix share: what always passes, and that both ends must agree. `permits`
/// says whether a subject permits the flow in a direction with a peer.
pub(crate) fn decide(
    endpoints: &PrimaryMap<Endpoint, EndpointData>,
    bindings: &Bindings,
    flow: &Flow,
    permits: impl Fn(Class, Direction, (IpAddr, Option<Class>)) -> bool,
) -> Verdict {
    let (src, dst) = (bindings.endpoint(flow.src), bindings.endpoint(flow.dst));
    // A pod always reaches itself.
    if let (Some((a, _)), Some((b, _))) = (src, dst)
        && a == b
    {
        return Verdict::Allow;
    }
    // Traffic between a pod and the node it runs on always passes, both ways.
    let own_node = |end: Option<(Endpoint, Class)>, other: IpAddr| {
        end.is_some_and(|(e, _)| bindings.host(other) == Some(endpoints[e].host))
    };
    if own_node(src, flow.dst) || own_node(dst, flow.src) {
        return Verdict::Allow;
    }
    let class = |end: Option<(Endpoint, Class)>| end.map(|(_, c)| c);
    let egress = class(src).is_none_or(|c| permits(c, Direction::Egress, (flow.dst, class(dst))));
    let ingress = class(dst).is_none_or(|c| permits(c, Direction::Ingress, (flow.src, class(src))));
    Verdict::allow_if(egress && ingress)
}

impl SetData {
    /// Whether a peer is in the set.
    pub fn contains(&self, addr: IpAddr, class: Option<Class>) -> bool {
        class.is_some_and(|c| self.classes.binary_search(&c).is_ok())
            || self.blocks.iter().any(|b| b.contains(addr))
    }
}

impl Unit {
    /// Who has which address.
    pub fn bindings(&self) -> Bindings {
        Bindings::new(&self.endpoints, &self.hosts)
    }

    /// The verdict on a flow.
    pub fn decide(&self, bindings: &Bindings, flow: &Flow) -> Verdict {
        decide(&self.endpoints, bindings, flow, |subject, direction, peer| {
            self.permits(subject, direction, peer, flow)
        })
    }

    /// Whether the rules of a subject permit a flow in a direction: Admin, then NetworkPolicy, then Baseline.
    fn permits(
        &self,
        subject: Class,
        direction: Direction,
        peer: (IpAddr, Option<Class>),
        flow: &Flow,
    ) -> bool {
        let first_match = |tier: Tier| {
            let matching = self.rules.values().filter(|r| {
                r.tier == tier
                    && r.direction == direction
                    && self.sets[r.subject].classes.binary_search(&subject).is_ok()
                    && self.sets[r.peers].contains(peer.0, peer.1)
                    && self.ports[r.ports].iter().any(|s| s.matches(flow.protocol, flow.port))
            });
            matching.min_by_key(|r| r.order).map(|r| r.action)
        };
        let isolated = self.isolations.iter().any(|i| {
            i.direction == direction && self.sets[i.subject].classes.binary_search(&subject).is_ok()
        });
        match first_match(Tier::Admin) {
            Some(Action::Accept) => return true,
            Some(Action::Deny) => return false,
            Some(Action::Pass) | None => {}
        }
        if isolated {
            return first_match(Tier::NetworkPolicy) == Some(Action::Accept);
        }
        first_match(Tier::Baseline) != Some(Action::Deny)
    }
}
