//! The subset of the languages of iptables-restore and ipset that netpolc emits, as data.
//!
//! The compiler's emitter writes three texts ([`Texts`]): one for `ipset restore`, one for `iptables-restore --noflush`,
//! one for `ip6tables-restore --noflush`. [`parse`] reads them back, and [`listing()`] reads what `ipset save`,
//! `iptables-save` and `ip6tables-save` print, legacy or nft. Both are strict about our own chains and sets: what they do
//! not know is an error with a file and a line. A text that [`parse`] takes touches nothing but chains and sets whose
//! names begin with [`PREFIX`], so the loader may hand it to the kernel.
//!
//! What is absent from the subset: `ACCEPT`, policies, built-in chains, other tables than `filter` and `mangle`, and
//! targets with effects beyond the verdict.

mod check;
mod digest;
mod listing;
mod rules;
pub mod run;
mod sets;
mod words;

pub use crate::nft::{Version, VersionError};
pub use check::{CheckError, check};
pub use digest::{digest, marker, markers};
pub use listing::{Hook, Listing, listing, with_lines};
pub use rules::{is_interface, parse};
pub use words::ParseError;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the names of all our chains and sets begin with.
pub const PREFIX: &str = "NETPOLC-";
/// The entry of table `filter`: `FORWARD` jumps to it in its first rule. The loader keeps that rule in place.
pub const FORWARD: &str = "NETPOLC-FORWARD";
/// The entry of table `mangle`: `PREROUTING` jumps to it in its first rule. The loader keeps that rule in place.
pub const PREROUTING: &str = "NETPOLC-PREROUTING";
/// The chain of table `mangle` that drops what comes from the interface of a pod. The artifact declares it empty; the
/// loader, which knows the interfaces, adds `-i NAME -j DROP` for each ([`with_lines`]).
pub const PODIF: &str = "NETPOLC-PODIF";
/// What the name of a marker chain begins with; the digits of a [`Version`] follow.
pub const MARKER_PREFIX: &str = "NETPOLC-V-";

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4: iptables, `family inet`.
    V4,
    /// IPv6: ip6tables, `family inet6`.
    V6,
}

impl Family {
    /// Both, in output order.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// How many bits an address has.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// The mask of a prefix length (a length beyond the width counts as the width).
    pub fn mask(self, len: u8) -> u128 {
        let width = u32::from(self.bits());
        let (all, len) = (u128::MAX >> (128 - width), u32::from(len).min(width));
        if len == 0 { 0 } else { all >> (width - len) << (width - len) }
    }

    /// The address with these bits.
    pub fn addr(self, bits: u128) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(bits as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(bits)),
        }
    }
}

impl fmt::Display for Family {
    /// As ipset calls it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "inet",
            Family::V6 => "inet6",
        })
    }
}

/// A table of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `filter`, entered at `FORWARD`.
    Filter,
    /// `mangle`, entered at `PREROUTING`: the only hook of the two where the way back to a source can be looked up
    /// (`net/ipv4/netfilter/ipt_rpfilter.c`).
    Mangle,
}

impl Table {
    /// Both, in output order. (A packet meets `mangle` first.)
    pub const ALL: [Table; 2] = [Table::Filter, Table::Mangle];

    /// Our chain that the built-in chain jumps to.
    pub fn entry(self) -> &'static str {
        match self {
            Table::Filter => FORWARD,
            Table::Mangle => PREROUTING,
        }
    }

    /// The built-in chain that jumps to our entry.
    pub fn built_in(self) -> &'static str {
        match self {
            Table::Filter => "FORWARD",
            Table::Mangle => "PREROUTING",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Table::Filter => "filter",
            Table::Mangle => "mangle",
        })
    }
}

/// The chains of one table by name; each is a list of rules.
pub type Chains = BTreeMap<String, Vec<Rule>>;

/// Everything of ours in an artifact or a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// Sets by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by family and table.
    pub tables: BTreeMap<(Family, Table), Chains>,
}

/// The three texts of an artifact, or the three listings of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Texts<'a> {
    /// For `ipset restore`, or from `ipset save`.
    pub sets: &'a str,
    /// For `iptables-restore --noflush`, or from `iptables-save`.
    pub v4: &'a str,
    /// For `ip6tables-restore --noflush`, or from `ip6tables-save`.
    pub v6: &'a str,
}

/// A prefix. Bits beyond the length are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The first address, as a number in host order.
    pub base: u128,
    /// The length in bits.
    pub len: u8,
}

impl Prefix {
    /// A single address.
    pub fn host(family: Family, addr: u128) -> Prefix {
        Prefix { base: addr, len: family.bits() }
    }

    /// Whether an address of the family is in it.
    pub fn contains(self, family: Family, addr: u128) -> bool {
        addr & family.mask(self.len) == self.base
    }

    /// The last address.
    pub fn last(self, family: Family) -> u128 {
        self.base | (family.mask(family.bits()) ^ family.mask(self.len))
    }
}

/// The type of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// `hash:ip`: single addresses.
    HashIp,
    /// `hash:net`: prefixes; the longest that has the address decides.
    HashNet,
}

impl fmt::Display for SetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SetKind::HashIp => "hash:ip",
            SetKind::HashNet => "hash:net",
        })
    }
}

/// A set of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The family.
    pub family: Family,
    /// The type.
    pub kind: SetKind,
    /// The elements; the value says whether the addresses match (`false`: `nomatch`). In a `hash:ip` all are single
    /// addresses that match.
    pub elements: BTreeMap<Prefix, bool>,
}

/// Which address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// The source.
    Src,
    /// The destination.
    Dst,
}

/// A rule: all matches must hold, then the target applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The matches, in the order in which iptables prints them.
    pub matches: Vec<Match>,
    /// What happens.
    pub target: Target,
    /// `-m comment --comment "..."`.
    pub comment: Option<String>,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// `-s PREFIX` or `-d PREFIX`.
    Addr(End, Prefix),
    /// `-i NAME`.
    Interface(String),
    /// `-p NUMBER`.
    Protocol(u8),
    /// `-m tcp --dport LO:HI`, with the module of the protocol, which the rule matches too.
    Port(u16, u16),
    /// `-m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN`: a segment that opens no connection. The rule matches TCP too.
    TcpNotSyn,
    /// `-m sctp ! --chunk-types any INIT`: a packet that opens no association. The rule matches SCTP too. (What has other
    /// chunks beside an INIT is invalid to conntrack: `do_basic_checks`, net/netfilter/nf_conntrack_proto_sctp.c. And bytes behind
    /// the last chunk that are too few for another make the match itself drop a packet without an INIT, whoever it is for:
    /// `match_packet`, net/netfilter/xt_sctp.c.)
    SctpNotInit,
    /// `-m icmp6 --icmpv6-type N -m hl --hl-eq 255`, from 133 to 137: neighbour discovery that no router has forwarded. The rule
    /// matches ICMPv6 too.
    Icmp6Type(u8),
    /// `-m conntrack --ctstate RELATED,ESTABLISHED`.
    Known,
    /// `-m conntrack --ctstate INVALID,UNTRACKED`: conntrack has no entry for the packet.
    NotTracked,
    /// `-m rpfilter --invert`: the way back to the source is not the interface that the packet came from.
    ReversePathFails,
    /// `-m addrtype ! --dst-type LOCAL`: the destination is no address of the node.
    NotLocal,
    /// `-m set --match-set NAME src` or `dst`.
    InSet(End, String),
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// `-j RETURN`: back to the caller.
    Return,
    /// `-j DROP`.
    Drop,
    /// `-j CHAIN`: to a chain, and back here when it returns.
    Jump(String),
    /// `-g CHAIN`: to a chain, and back to the caller when it returns.
    Goto(String),
}

impl Target {
    /// The chain that it leads to.
    pub fn chain(&self) -> Option<&str> {
        match self {
            Target::Jump(chain) | Target::Goto(chain) => Some(chain),
            Target::Return | Target::Drop => None,
        }
    }
}
