//! The unit: what all policies of a cluster say, over classes of addresses, before it is folded into the matrix.
//!
//! A unit knows no labels and no YAML. The front end has already put every pod into a [`Class`]; a rule speaks of sets
//! of classes and of blocks of addresses. The meaning is [`Unit::decide`](crate::eval).

use crate::addr::Block;
use crate::ports::PortSpan;
use cranelift_entity::{PrimaryMap, entity_impl};
use std::fmt;
use std::net::IpAddr;

macro_rules! entity {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);
        entity_impl!($name, $prefix);
    };
}

entity!(
    /// Addresses of endpoints that no rule can tell apart.
    Class, "class");
entity!(
    /// A pod that has addresses and a host.
    Endpoint, "pod");
entity!(
    /// A node.
    Host, "node");
entity!(
    /// A set of peers or subjects in a [`Unit`].
    Set, "set");
entity!(
    /// A list of ports in a [`Unit`].
    Ports, "ports");
entity!(
    /// A rule of a [`Unit`].
    Rule, "rule");

/// Where something came from: an opaque number that leads back to file, line and column in the front end's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(pub u32);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

/// What an origin is called in comments and labels of artifacts: the policy, and the place if they are to have one.
pub trait Origins {
    /// A short text for an origin, for example `shop/db-test policies.yaml:12:3`. A backend takes out of it what its
    /// comments cannot hold.
    fn label(&self, origin: Origin) -> String;

    /// The policy alone, for example `shop/db-test`.
    fn policy(&self, origin: Origin) -> String {
        self.label(origin)
    }
}

/// The direction of a rule, seen from its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Connections to the subject.
    Ingress,
    /// Connections from the subject.
    Egress,
}

impl Direction {
    /// Both, in output order.
    pub const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

/// The tier of a rule. Tiers are asked in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// First: the first matching rule decides, `Pass` and no match go on to the next tier.
    Admin,
    /// NetworkPolicy v1: decides finally for subjects that are isolated in this direction. Only `Accept` rules.
    NetworkPolicy,
    /// Last: as Admin; what nothing decides is accepted.
    Baseline,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Admin => "admin",
            Tier::NetworkPolicy => "networkpolicy",
            Tier::Baseline => "baseline",
        })
    }
}

/// What a matching rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The connection may pass in this direction.
    Accept,
    /// It may not.
    Deny,
    /// The rest of this tier is skipped.
    Pass,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Accept => "accept",
            Action::Deny => "deny",
            Action::Pass => "pass",
        })
    }
}

/// What a flow gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
}

impl Verdict {
    /// `Allow` if true.
    pub fn allow_if(allowed: bool) -> Verdict {
        if allowed { Verdict::Allow } else { Verdict::Deny }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        })
    }
}

/// A node: its name and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostData {
    /// The node's name.
    pub name: String,
    /// The node's own addresses, sorted, of both families.
    pub addrs: Vec<IpAddr>,
}

/// A pod: its name, its node and its addresses with the class of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointData {
    /// `namespace/name`.
    pub name: String,
    /// The node it runs on.
    pub host: Host,
    /// Its addresses, in the pod's own order, each with its class. An address belongs to one endpoint only.
    pub addrs: Vec<(IpAddr, Class)>,
}

/// A set: an address is in it iff its class is listed or one of the blocks has it (pods inside a block included).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SetData {
    /// Classes, sorted, without duplicates.
    pub classes: Vec<Class>,
    /// Blocks, as written or in the minimal form of the pass `cidr-cover`.
    pub blocks: Vec<Block>,
}

/// A list of ports; matches iff an entry matches. Empty matches nothing.
pub type PortsData = Vec<PortSpan>;

/// The subjects of a policy become isolated in a direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// The direction.
    pub direction: Direction,
    /// Who. A set without blocks.
    pub subject: Set,
    /// The policies that asked for it, sorted.
    pub origins: Vec<Origin>,
}

/// A rule: `subject` and `peers` may exchange `ports` in this direction, or may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleData {
    /// The tier.
    pub tier: Tier,
    /// The direction, seen from the subject.
    pub direction: Direction,
    /// Position inside the tier: rules with a lower number are asked first. 0 for NetworkPolicy v1. Rules of one tier,
    /// direction and order have the same action, so their order among each other does not matter.
    pub order: u32,
    /// Whom the rule is about. A set without blocks.
    pub subject: Set,
    /// The other end.
    pub peers: Set,
    /// Destination ports.
    pub ports: Ports,
    /// What happens on a match.
    pub action: Action,
    /// Where the rule comes from, sorted.
    pub origins: Vec<Origin>,
}

/// All policies of a cluster over classes, and which address belongs to which class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unit {
    /// Nodes, sorted by name.
    pub hosts: PrimaryMap<Host, HostData>,
    /// Classes; the text says what the class is (for people only).
    pub classes: PrimaryMap<Class, String>,
    /// Pods, sorted by name.
    pub endpoints: PrimaryMap<Endpoint, EndpointData>,
    /// Sets.
    pub sets: PrimaryMap<Set, SetData>,
    /// Lists of ports.
    pub ports: PrimaryMap<Ports, PortsData>,
    /// Who is isolated.
    pub isolations: Vec<Isolation>,
    /// Rules.
    pub rules: PrimaryMap<Rule, RuleData>,
}

/// A packet that would open a connection, as it crosses a node: after DNAT, before SNAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Protocol.
    pub protocol: crate::ports::Protocol,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
}

impl Flow {
    /// Port and protocol for people: `3306/TCP`, or `ICMP`.
    pub fn service(&self) -> String {
        match self.protocol {
            crate::ports::Protocol::Transport(_) => format!("{}/{}", self.port, self.protocol),
            crate::ports::Protocol::Other(_) => self.protocol.to_string(),
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}", self.src, self.dst, self.service())
    }
}
