//! The subset of the nftables language that netpolc emits, as data.
//!
//! The compiler's emitter writes text; this module's parser ([`parse`]) reads that text, and what `nft list table`
//! prints of it, into a [`Ruleset`]. It is strict: what it does not know is an error with a line, so a script that
//! parses can do nothing but what its `Ruleset` says. The loader relies on that: a script from a bundle is handed to
//! the kernel only if it parses and touches our own tables alone.

mod check;
mod digest;
mod element;
pub mod emit;
mod lexer;
mod parser;
mod rebind;
mod rule;
pub mod run;

pub use check::{CheckError, check};
pub use digest::{MARKER_PREFIX, Version, VersionError, digest, digest_of, marker, markers};
pub use element::is_ifname;
pub use emit::element_text;
pub use parser::{ParseError, parse};
pub use rebind::{Edit, rebind};

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// The name of netpolc's tables. There is one in the family `ip` and one in `ip6`.
pub const TABLE: &str = "netpolc";

/// The set of the interfaces that lead to the node's pods. The loader fills it.
pub const PODIF: &str = "podif";

/// The set of these interfaces, each with the addresses that packets from there may have. The loader fills it.
pub const PODADDR: &str = "podaddr";

/// The set of the addresses of the node's pods.
pub const LOCAL: &str = "local";

/// The sets that a script leaves empty and the loader fills, so that their elements are no part of a version.
pub const FILLED: [&str; 2] = [PODIF, PODADDR];

/// Whether the loader fills a set of this name.
pub fn is_filled(name: &str) -> bool {
    FILLED.contains(&name)
}

/// How the names of sets and maps begin that hold blocks of addresses, blocks of a single address among them.
pub const BLOCKS: &str = "blocks";

/// A table's family. `inet` is never used: it costs 20-30 ns more a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    /// How many bits an address has.
    pub fn bits(self) -> u32 {
        match self {
            Family::Ip => 32,
            Family::Ip6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
        })
    }
}

/// All our tables of a script or of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// The tables named [`TABLE`], by family.
    pub tables: BTreeMap<Family, Table>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Whether the script flushes the table's rules before it adds its own (a listing never does).
    pub flush: bool,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// The type of one field of a set's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// `ipv4_addr` or `ipv6_addr`.
    Addr,
    /// `inet_proto`: an IP protocol number.
    Proto,
    /// `inet_service`: a port.
    Service,
    /// `ifname`: an interface name of at most 15 bytes.
    Ifname,
}

/// One field of a key: a value or an inclusive range of values (only in sets with `flags interval`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An inclusive range of addresses of the table's family, as numbers in host order; a single address has `lo == hi`.
    Addr(u128, u128),
    /// A protocol number.
    Proto(u8),
    /// An inclusive range of ports.
    Service(u16, u16),
    /// An interface name.
    Ifname(String),
}

/// A named set, or a verdict map.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    /// The fields of the key, concatenated; never empty.
    pub key: Vec<KeyType>,
    /// Whether it is a verdict map.
    pub map: bool,
    /// `flags interval`.
    pub interval: bool,
    /// `comment`.
    pub comment: Option<String>,
    /// The elements.
    pub elements: Elements,
}

/// The elements of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elements {
    /// A set (no map, no interval) whose key is one address: sorted, without duplicates, numbers in host order. Such
    /// sets hold nearly all elements of a ruleset, so they have a compact form of their own, and only this form.
    Addrs(Vec<u128>),
    /// Everything else; the verdict is `None` in a set and `Some` in a map.
    General(BTreeMap<Vec<Key>, Option<Verdict>>),
}

impl Set {
    /// Whether it is a set (no map, no interval) whose key is one address, so that its elements are
    /// [`Elements::Addrs`].
    pub fn is_plain(&self) -> bool {
        !self.map && !self.interval && self.key == [KeyType::Addr]
    }
}

impl Default for Elements {
    fn default() -> Elements {
        Elements::General(BTreeMap::new())
    }
}

impl Elements {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Elements::Addrs(list) => list.len(),
            Elements::General(map) => map.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The packet leaves this hook's chain with accept.
    Accept,
    /// The packet is gone.
    Drop,
    /// Back to the caller; in a base chain the policy (accept) applies.
    Return,
    /// To a chain, and back here when it returns.
    Jump(String),
    /// To a chain, and back to the caller when it returns.
    Goto(String),
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// The hook, for a base chain.
    pub hook: Option<Hook>,
    /// `comment`.
    pub comment: Option<String>,
    /// The rules in order.
    pub rules: Vec<Rule>,
}

/// `type filter hook forward priority N; policy accept;`: the one hook that netpolc uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// The priority; `filter` is 0.
    pub priority: i32,
}

/// A rule: all matches must hold, then the verdict applies. A counter may stand before the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The matches in order.
    pub matches: Vec<Match>,
    /// Whether the rule counts packets (a listing's figures are dropped).
    pub counter: bool,
    /// What happens.
    pub outcome: Outcome,
    /// `comment`.
    pub comment: Option<String>,
}

/// What a rule does when its matches hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A verdict.
    Verdict(Verdict),
    /// `FIELDS vmap @map`: the verdict of the element with this key; on a miss the next rule.
    Vmap(Vec<Field>, String),
}

/// A value read from a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `ip saddr` or `ip6 saddr`, by the table's family.
    Saddr,
    /// `ip daddr` or `ip6 daddr`.
    Daddr,
    /// `ip saddr & MASK`: the address with all bits beyond the prefix length cleared.
    SaddrPrefix(u8),
    /// `ip daddr & MASK`.
    DaddrPrefix(u8),
    /// `meta l4proto`.
    L4Proto,
    /// `th dport`, and `tcp dport` (which implies a match on the protocol).
    Dport,
    /// `iifname`.
    Iifname,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `FIELDS @set`: the key is in the set.
    InSet(Vec<Field>, String),
    /// `meta l4proto N`.
    L4Proto(u8),
    /// `ct state and ( established | related ) == 0`, listed as `ct state ! established,related`.
    NotEstablished,
    /// `ct state invalid,untracked`: conntrack has no entry for the packet, since it cannot place it, or was told not to.
    NotTracked,
    /// `tcp flags & (fin | syn | rst | ack) != syn`: a TCP segment that does not open a connection. Implies TCP.
    TcpNotSyn,
    /// `@th,96,8 != 1 meta l4proto sctp`: an SCTP packet whose first chunk, behind the common header of 12 bytes, is not
    /// INIT (RFC 9260, section 3.2): it does not open an association. Implies SCTP. In this order, since nft before 1.0.6 (seen:
    /// 0.9.8) does not list a protocol that stands before a field without a name.
    SctpNotInit,
    /// `iifname . ip saddr != @podaddr`: no pod with this source is known behind this interface.
    Unbound,
    /// `fib saddr . iif oif missing`: the way back to the source is not the interface that the packet came from.
    ReversePathFails,
    /// `ip6 hoplimit 255 icmpv6 type { 133, 134, 135, 136, 137 }`: IPv6 neighbour discovery that no router has forwarded (RFC 4861,
    /// section 7.1). Implies ICMPv6.
    NeighbourDiscovery,
}

/// The fields that [`Match::Unbound`] looks up.
pub const UNBOUND: [Field; 2] = [Field::Iifname, Field::Saddr];

/// Whether an address is of a table's family.
pub fn in_family(family: Family, addr: IpAddr) -> bool {
    matches!((family, addr), (Family::Ip, IpAddr::V4(_)) | (Family::Ip6, IpAddr::V6(_)))
}
