//! A rule as the kernel has it: a list of expressions, of which each loads something from the packet into registers,
//! or looks at registers, or does something (`net/netfilter/nft_*.c`).

use super::{attribute, nested, text, verdict_bytes, word};
use netpolc_bundle::nft::run::mask;
use netpolc_bundle::nft::{Family, Field, Match, Outcome, PODADDR, Rule, UNBOUND, Verdict};

/// The registers have 16 words.
const WORDS: u32 = 16;

/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// `NFT_META_IIFNAME`, `NFT_META_L4PROTO`, `NFT_CT_STATE`.
const META_IIFNAME: u32 = 6;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;

/// `NFT_LOOKUP_F_INV`.
const LOOKUP_INVERTED: u32 = 1;

/// `NFT_CMP_EQ`, `NFT_CMP_NEQ`.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Bits of a connection's state: `NF_CT_STATE_INVALID_BIT` with `NF_CT_STATE_UNTRACKED_BIT`, and `NF_CT_STATE_BIT` of
/// established and related (`include/uapi/linux/netfilter/nf_conntrack_common.h`).
const NO_ENTRY: u32 = 65;
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;

/// `NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF | NFTA_FIB_F_PRESENT`, and `NFT_FIB_RESULT_OIF`.
const FIB_SOURCE: u32 = 1 | 8 | 32;
const FIB_OIF: u32 = 1;

const TCP: u8 = 6;
/// Where the flags are in a TCP header; fin, syn, rst, ack; syn.
const TCP_FLAGS_AT: u32 = 13;
const TCP_FLAGS: u8 = 0x17;
const TCP_SYN: u8 = 0x02;

const SCTP: u8 = 132;
/// Where the type of the first chunk is, behind the common header (RFC 9260, section 3), and the type of INIT.
const SCTP_CHUNK_AT: u32 = 12;
const SCTP_INIT: u8 = 1;

type Expressions = Vec<Vec<u8>>;

/// The expressions of a rule, each as `NFTA_LIST_ELEM`. `None` if there is something among them that this module cannot
/// say.
pub(super) fn expressions(family: Family, rule: &Rule) -> Option<Expressions> {
    let mut out = Vec::new();
    for condition in &rule.matches {
        out.extend(condition_of(family, condition)?);
    }
    if rule.counter {
        out.push(expression("counter", &[]));
    }
    match &rule.outcome {
        Outcome::Verdict(verdict) => out.push(immediate(verdict)),
        Outcome::Vmap(fields, map) => {
            out.extend(load(family, fields)?);
            // `NFTA_LOOKUP_DREG`: the register of the verdict.
            out.push(lookup(map, &[word(3, 0)]));
        }
    }
    Some(out)
}

fn condition_of(family: Family, condition: &Match) -> Option<Expressions> {
    Some(match condition {
        Match::InSet(fields, set) => {
            let mut out = load(family, fields)?;
            out.push(lookup(set, &[]));
            out
        }
        Match::Unbound => {
            let mut out = load(family, &UNBOUND)?;
            // `NFTA_LOOKUP_FLAGS`: true for what is not in the set.
            out.push(lookup(PODADDR, &[word(5, LOOKUP_INVERTED)]));
            out
        }
        Match::L4Proto(number) => vec![meta(META_L4PROTO, 1), compare(EQUAL, &[*number])],
        Match::NotEstablished => {
            vec![state(), bits(&ESTABLISHED_OR_RELATED.to_ne_bytes(), 1), compare(EQUAL, &[0; 4])]
        }
        Match::NotTracked => vec![state(), bits(&NO_ENTRY.to_ne_bytes(), 1), compare(NOT_EQUAL, &[0; 4])],
        Match::TcpNotSyn => vec![
            meta(META_L4PROTO, 1),
            compare(EQUAL, &[TCP]),
            payload(TRANSPORT, TCP_FLAGS_AT, 1, 1),
            bits(&[TCP_FLAGS], 1),
            compare(NOT_EQUAL, &[TCP_SYN]),
        ],
        Match::SctpNotInit => vec![
            payload(TRANSPORT, SCTP_CHUNK_AT, 1, 1),
            compare(NOT_EQUAL, &[SCTP_INIT]),
            meta(META_L4PROTO, 1),
            compare(EQUAL, &[SCTP]),
        ],
        Match::ReversePathFails => {
            // `NFTA_FIB_FLAGS`, `NFTA_FIB_RESULT`, `NFTA_FIB_DREG`.
            vec![
                expression("fib", &[word(3, FIB_SOURCE), word(2, FIB_OIF), word(1, 1)]),
                compare(EQUAL, &[0; 4]),
            ]
        }
        // It takes a set without a name. The rules with it stand in chains that are the same in all versions.
        Match::NeighbourDiscovery => return None,
    })
}

/// Loads fields into registers, one behind the other.
fn load(family: Family, fields: &[Field]) -> Option<Expressions> {
    let (length, source, destination) = match family {
        Family::Ip => (4, 12, 16),
        Family::Ip6 => (16, 8, 24),
    };
    let mut out = Vec::new();
    let mut at = 0;
    for field in fields {
        let to = register(at);
        at += match field {
            Field::Saddr | Field::SaddrPrefix(_) => {
                out.push(payload(NETWORK, source, length, to));
                length / 4
            }
            Field::Daddr | Field::DaddrPrefix(_) => {
                out.push(payload(NETWORK, destination, length, to));
                length / 4
            }
            Field::L4Proto => {
                out.push(meta(META_L4PROTO, to));
                1
            }
            Field::Dport => {
                out.push(payload(TRANSPORT, 2, 2, to));
                1
            }
            Field::Iifname => {
                out.push(meta(META_IIFNAME, to));
                4
            }
        };
        if let Field::SaddrPrefix(len) | Field::DaddrPrefix(len) = field {
            let bytes = mask(family, *len).to_be_bytes();
            let width = usize::try_from(length).ok()?;
            out.push(bits(bytes.get(bytes.len().checked_sub(width)?..)?, to));
        }
    }
    (at <= WORDS).then_some(out)
}

/// The number of the register that begins at a word: one of 16 bytes if it can be, else one of four (`NFT_REG_1`,
/// `NFT_REG32_00`; `nft_parse_register`, `net/netfilter/nf_tables_api.c`).
fn register(word: u32) -> u32 {
    if word.is_multiple_of(4) { 1 + word / 4 } else { 8 + word }
}

/// `NFTA_LIST_ELEM` with `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
fn expression(name: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[attribute(1, &text(name)), nested(2, parts)])
}

/// `NFTA_PAYLOAD_DREG`, `_BASE`, `_OFFSET`, `_LEN`.
fn payload(base: u32, offset: u32, length: u32, to: u32) -> Vec<u8> {
    expression("payload", &[word(1, to), word(2, base), word(3, offset), word(4, length)])
}

/// `NFTA_META_KEY`, `NFTA_META_DREG`.
fn meta(key: u32, to: u32) -> Vec<u8> {
    expression("meta", &[word(2, key), word(1, to)])
}

/// `NFTA_CT_KEY`, `NFTA_CT_DREG`.
fn state() -> Vec<u8> {
    expression("ct", &[word(2, CT_STATE), word(1, 1)])
}

/// `NFTA_BITWISE_SREG`, `_DREG`, `_OP` (and, exclusive or), `_LEN`, `_MASK`, `_XOR`.
fn bits(mask: &[u8], register: u32) -> Vec<u8> {
    let length = u32::try_from(mask.len()).unwrap_or_default();
    let none = vec![0; mask.len()];
    expression(
        "bitwise",
        &[
            word(1, register),
            word(2, register),
            word(6, 0),
            word(3, length),
            nested(4, &[attribute(1, mask)]),
            nested(5, &[attribute(1, &none)]),
        ],
    )
}

/// `NFTA_CMP_SREG`, `_OP`, `_DATA`.
fn compare(how: u32, with: &[u8]) -> Vec<u8> {
    expression("cmp", &[word(1, 1), word(2, how), nested(3, &[attribute(1, with)])])
}

/// `NFTA_LOOKUP_SREG`, `_SET`.
fn lookup(set: &str, more: &[Vec<u8>]) -> Vec<u8> {
    let parts = [&[word(2, 1), attribute(1, &text(set))], more].concat();
    expression("lookup", &parts)
}

/// `NFTA_IMMEDIATE_DREG`, `_DATA`.
fn immediate(verdict: &Verdict) -> Vec<u8> {
    expression("immediate", &[word(1, 0), nested(2, &[verdict_bytes(verdict)])])
}
