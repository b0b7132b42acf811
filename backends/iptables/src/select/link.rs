//! What neighbours on a link send each other.

use super::rule;
use netpolc_bundle::ipt::{End, Family, Match, PODIF, Prefix, Rule, Target};

/// `ff00::/8`, addresses of groups (RFC 4291, section 2.7).
const GROUPS: Prefix = Prefix { base: 0xff << 120, len: 8 };

/// What conntrack leaves alone and passes on a link: types 133 to 137 are neighbour discovery (RFC 4861, section 4).
pub(super) fn discovery(family: Family) -> Vec<Rule> {
    let kind = |kind| rule(vec![Match::Protocol(58), Match::Icmp6Type(kind)], Target::Return);
    match family {
        Family::V4 => Vec::new(),
        Family::V6 => (133..=137).map(kind).collect(),
    }
}

/// For what has a source of the link and is not for the node: the way back to it is whatever interface it came from, so no
/// other rule sees that it is no pod's. Since no router forwards it (`ip6_forward`, net/ipv6/ip6_output.c), it crosses a bridge.
/// What is for a group may be for the node too.
pub(super) fn link() -> Vec<Rule> {
    let group = rule(vec![Match::Addr(End::Dst, GROUPS)], Target::Return);
    let mut rules = discovery(Family::V6);
    rules.extend([group, rule(Vec::new(), Target::Goto(PODIF.to_owned()))]);
    rules
}
