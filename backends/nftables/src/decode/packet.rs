//! One packet through the rules, as `nft_do_chain` of the kernel runs it.

use super::{Value, find_element, port_value};
use crate::emit::mask;
use netpolc_bundle::nft::{self, Family, Field, Match, Outcome, Rule, Table};
use netpolc_ir::addr::bits;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Conn, Packet};
use netpolc_ir::unit::Verdict;

/// The depth of jumps up to which the kernel goes (`NFT_JUMP_STACK_SIZE`, include/net/netfilter/nf_tables.h).
const JUMP_STACK_SIZE: usize = 16;

/// What becomes of a packet at the forward hook: every base chain must accept it, in the order of priorities.
pub(super) fn decide(table: &Table, family: Family, packet: &Packet) -> Verdict {
    let mut bases: Vec<_> = table.chains.values().filter_map(|c| c.hook.map(|h| (h.priority, c))).collect();
    bases.sort_by_key(|(priority, _)| *priority);
    let dropped = bases.iter().any(|(_, chain)| run(table, family, &chain.rules, packet) == Verdict::Deny);
    Verdict::allow_if(!dropped)
}

fn run(table: &Table, family: Family, base: &[Rule], packet: &Packet) -> Verdict {
    let mut stack: Vec<std::slice::Iter<'_, Rule>> = Vec::new();
    let mut rules = base.iter();
    loop {
        let Some(rule) = rules.next() else {
            match stack.pop() {
                Some(caller) => rules = caller,
                None => return Verdict::Allow,
            }
            continue;
        };
        let Some(verdict) = outcome(table, family, rule, packet) else { continue };
        let chain = |name: &str| table.chains.get(name).map(|c| c.rules.iter());
        match verdict {
            nft::Verdict::Accept => return Verdict::Allow,
            nft::Verdict::Drop => return Verdict::Deny,
            nft::Verdict::Return => rules = [].iter(),
            nft::Verdict::Goto(name) => rules = chain(name).unwrap_or_else(|| [].iter()),
            nft::Verdict::Jump(name) if stack.len() < JUMP_STACK_SIZE => {
                stack.push(rules);
                rules = chain(name).unwrap_or_else(|| [].iter());
            }
            // The kernel drops what jumps too deep; such a script is refused when it is parsed.
            nft::Verdict::Jump(_) => return Verdict::Deny,
        }
    }
}

/// The verdict of a rule; `None` if it does not match.
fn outcome<'t>(
    table: &'t Table,
    family: Family,
    rule: &'t Rule,
    packet: &Packet,
) -> Option<&'t nft::Verdict> {
    if !rule.matches.iter().all(|m| matches(table, family, m, packet)) {
        return None;
    }
    match &rule.outcome {
        Outcome::Verdict(verdict) => Some(verdict),
        Outcome::Vmap(fields, map) => {
            find_element(table.sets.get(map)?, &values(fields, family, packet)).and_then(Option::as_ref)
        }
    }
}

fn matches(table: &Table, family: Family, condition: &Match, packet: &Packet) -> bool {
    match condition {
        Match::InSet(fields, name) => {
            let Some(set) = table.sets.get(name) else { return false };
            match values(fields, family, packet).as_slice() {
                // The loader fills this set with the interfaces of all pods.
                [Value::PodInterface] => packet.spoofed,
                values => find_element(set, values).is_some(),
            }
        }
        Match::L4Proto(number) => packet.flow.protocol.number() == *number,
        Match::NotEstablished => !matches!(packet.conn, Conn::Established | Conn::Related),
        Match::CtInvalid => packet.conn == Conn::Invalid,
        Match::TcpNotSyn => packet.flow.protocol == Protocol::TCP && !packet.opens,
        Match::ReversePathFails => packet.spoofed || packet.asymmetric,
        Match::NeighbourDiscovery => packet.neighbour_discovery,
    }
}

fn values(fields: &[Field], family: Family, packet: &Packet) -> Vec<Value> {
    let value = |field: &Field| match field {
        Field::Saddr => Value::Addr(bits(packet.flow.src)),
        Field::Daddr => Value::Addr(bits(packet.flow.dst)),
        Field::SaddrPrefix(len) => Value::Addr(bits(packet.flow.src) & mask(family, *len)),
        Field::DaddrPrefix(len) => Value::Addr(bits(packet.flow.dst) & mask(family, *len)),
        Field::L4Proto => Value::Proto(packet.flow.protocol.number()),
        Field::Dport => port_value(packet.flow.protocol, packet.flow.port),
        Field::Iifname => Value::PodInterface,
    };
    fields.iter().map(value).collect()
}
