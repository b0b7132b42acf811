//! One transaction of nftables, told to the kernel itself.
//!
//! To start nft takes longer than to change ten elements or rules: it reads what sets there are before it does anything,
//! and when it ends it waits for the kernel to free what was deleted. This module can say what changes from one of our
//! rulesets to the next. What nft lists afterwards is what it would list had it loaded the same script; a test compares
//! the two.
//!
//! Messages and attributes are those of `include/uapi/linux/netfilter/nf_tables.h` and `nfnetlink.h`. A batch takes effect
//! as a whole or not at all (`nfnetlink_rcv_batch`, `net/netfilter/nfnetlink.c`).

mod rule;

use crate::netlink::{self, ACK, ERROR, Outgoing, REQUEST, Socket};
use netpolc_bundle::nft::{Chain, Edit, Elements, Family, Key, KeyType, Rule, Set, Verdict};
use std::io;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`: as a number of the batch in network byte order, and in the upper byte of a message's type.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWCHAIN`, `NFT_MSG_DELCHAIN`, `NFT_MSG_NEWRULE`, `NFT_MSG_DELRULE`, `NFT_MSG_NEWSET`, `NFT_MSG_DELSET`,
/// `NFT_MSG_NEWSETELEM`, `NFT_MSG_DELSETELEM`.
const NEW_CHAIN: u8 = 3;
const DEL_CHAIN: u8 = 5;
const NEW_RULE: u8 = 6;
const DEL_RULE: u8 = 8;
const NEW_SET: u8 = 9;
const DEL_SET: u8 = 11;
const NEW_ELEMENT: u8 = 12;
const DEL_ELEMENT: u8 = 14;
/// `NLM_F_CREATE`, `NLM_F_EXCL`: what is new must not be there. `NLM_F_APPEND`: behind the rules that are there.
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
const APPEND: u16 = 0x800;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// `NFT_JUMP` and `NFT_GOTO`, then `NFT_RETURN`, as `enum nft_verdicts` has them; `NF_DROP` and `NF_ACCEPT`.
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;

/// The stack of a thread that does nothing but close.
const STACK_BYTES: usize = 64 << 10;

/// The length of an interface's name in a key (`IFNAMSIZ`).
const IFNAME: usize = 16;

/// `NFT_SET_MAP`, and `NFT_DATA_VERDICT` as the type of a map's values.
const SET_MAP: u32 = 8;
const DATA_VERDICT: u32 = 0xffff_ff00;

/// Most bytes of elements in one message. An attribute has room for 64 KiB.
const ELEMENTS_BYTES: usize = 32 << 10;

/// Most bytes of a transaction; what is larger is for nft. The kernel takes it in one piece.
const BATCH_BYTES: usize = 4 << 20;

/// What is to be done in one transaction.
#[derive(Debug)]
pub struct Batch {
    out: Outgoing,
    sequence: u32,
    /// How many sets it makes.
    sets: u32,
}

/// A transaction that has taken effect. What it deleted is freed a little later; dropping this does not wait for that.
#[derive(Debug)]
pub struct Committed(Option<Socket>);

impl Committed {
    /// Waits until no packet can be on its way through rules that the transaction deleted: they are freed before the
    /// kernel closes the socket (`nft_rcv_nl_event`, `net/netfilter/nf_tables_api.c`), after a grace period of RCU.
    pub fn settle(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Committed {
    fn drop(&mut self) {
        // Ten milliseconds that not everybody needs to wait for.
        if let Some(socket) = self.0.take() {
            let close = std::thread::Builder::new().name("close".into()).stack_size(STACK_BYTES);
            let _ = close.spawn(move || drop(socket));
        }
    }
}

impl Default for Batch {
    fn default() -> Batch {
        let mut batch = Batch { out: Outgoing::default(), sequence: 0, sets: 0 };
        batch.frame(BEGIN);
        batch
    }
}

fn number(family: Family) -> u8 {
    match family {
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

/// A text with the zero byte that the kernel wants behind it.
fn text(value: &str) -> Vec<u8> {
    [value.as_bytes(), &[0]].concat()
}

/// An attribute as bytes. Values are far shorter than 64 KiB.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(4);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &parts.concat())
}

/// A number of four bytes in network byte order.
fn word(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// A comment as nft keeps it: a kind, a length, the text with a zero byte behind it (`struct nftnl_udata` of libnftnl).
fn comment_bytes(kind: u8, comment: &str) -> Vec<u8> {
    let text = text(comment);
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[kind, length], text.get(..usize::from(length)).unwrap_or_default()].concat()
}

/// A key as the kernel has it: each field in network byte order, filled up to four bytes if there are several. `None` if
/// it is a range.
fn key_bytes(family: Family, key: &[Key]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for field in key {
        match (field, family) {
            (Key::Addr(low, high), _) if low != high => return None,
            (Key::Service(low, high), _) if low != high => return None,
            (Key::Addr(addr, _), Family::Ip) => bytes.extend(u32::try_from(*addr).ok()?.to_be_bytes()),
            (Key::Addr(addr, _), Family::Ip6) => bytes.extend(addr.to_be_bytes()),
            (Key::Ifname(name), _) => {
                let mut field = [0; IFNAME];
                field.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
                bytes.extend(field);
            }
            (Key::Proto(number), _) => bytes.push(*number),
            (Key::Service(port, _), _) => bytes.extend(port.to_be_bytes()),
        }
        if key.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    Some(bytes)
}

/// The number that nft has for the type of a field (`enum datatypes`, `include/datatype.h` of nftables), and its length.
/// For the kernel the numbers have no meaning; nft reads them when it lists.
fn key_type(family: Family, key: KeyType) -> (u32, usize) {
    match (key, family) {
        (KeyType::Addr, Family::Ip) => (7, 4),
        (KeyType::Addr, Family::Ip6) => (8, 16),
        (KeyType::Proto, _) => (12, 1),
        (KeyType::Service, _) => (13, 2),
        (KeyType::Ifname, _) => (41, IFNAME),
    }
}

/// The value of a verdict map: `NFTA_DATA_VERDICT` with `NFTA_VERDICT_CODE` and `NFTA_VERDICT_CHAIN`.
fn verdict_bytes(verdict: &Verdict) -> Vec<u8> {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Return => (RETURN, None),
        Verdict::Jump(chain) => (JUMP, Some(chain)),
        Verdict::Goto(chain) => (GOTO, Some(chain)),
    };
    let mut parts = vec![attribute(1, &code.to_be_bytes())];
    parts.extend(chain.map(|chain| attribute(2, &text(chain))));
    nested(2, &parts)
}

impl Batch {
    fn frame(&mut self, kind: u16) {
        // `struct nfgenmsg`: no family, version 0, the subsystem.
        self.out.push(kind, REQUEST, self.sequence, &[0, 0, 0, SUBSYSTEM], &[]);
        self.sequence += 1;
    }

    fn push(&mut self, kind: u8, flags: u16, family: Family, attributes: &[(u16, &[u8])]) {
        let kind = u16::from_be_bytes([SUBSYSTEM, kind]);
        self.out.push(kind, REQUEST | flags, self.sequence, &[number(family), 0, 0, 0], attributes);
        self.sequence += 1;
    }

    /// An element of a set or map in a table; one that comes must not be there. `None` if its key is of a kind that this
    /// module does not know.
    #[must_use]
    pub fn element(&mut self, table: &str, edit: &Edit) -> Option<()> {
        self.put(table, edit, CREATE | EXCLUSIVE)
    }

    /// As [`Batch::element`], for one that comes and may be there already.
    #[must_use]
    pub fn ensure(&mut self, table: &str, edit: &Edit) -> Option<()> {
        self.put(table, edit, CREATE)
    }

    fn put(&mut self, table: &str, edit: &Edit, flags: u16) -> Option<()> {
        let verdict = edit.verdict.as_ref().filter(|_| edit.comes);
        let element = element_bytes(edit.family, &edit.key, verdict)?;
        let (kind, flags) = if edit.comes { (NEW_ELEMENT, flags) } else { (DEL_ELEMENT, 0) };
        self.put_elements(kind, flags, (table, edit.family, &edit.set), &element);
        Some(())
    }

    /// An empty chain comes, or one goes.
    pub fn chain(&mut self, table: &str, family: Family, name: &str, comes: bool) {
        let (table, name) = (text(table), text(name));
        // `NFTA_CHAIN_TABLE`, `NFTA_CHAIN_NAME`.
        let attributes = [(1, table.as_slice()), (3, name.as_slice())];
        match comes {
            true => self.push(NEW_CHAIN, CREATE | EXCLUSIVE, family, &attributes),
            false => self.push(DEL_CHAIN, 0, family, &attributes),
        }
    }

    /// A regular chain without its rules; it must not be there.
    pub fn new_chain(&mut self, table: &str, family: Family, name: &str, chain: &Chain) {
        let (table, name) = (text(table), text(name));
        let comment = chain.comment.as_ref().map(|comment| comment_bytes(0, comment));
        // `NFTA_CHAIN_TABLE`, `NFTA_CHAIN_NAME`, `NFTA_CHAIN_USERDATA`.
        let mut attributes = vec![(1, table.as_slice()), (3, name.as_slice())];
        attributes.extend(comment.as_ref().map(|comment| (12, comment.as_slice())));
        self.push(NEW_CHAIN, CREATE | EXCLUSIVE, family, &attributes);
    }

    /// All rules of a chain go.
    pub fn flush_chain(&mut self, table: &str, family: Family, name: &str) {
        let (table, name) = (text(table), text(name));
        // `NFTA_RULE_TABLE`, `NFTA_RULE_CHAIN`.
        self.push(DEL_RULE, 0, family, &[(1, table.as_slice()), (2, name.as_slice())]);
    }

    /// A rule at the end of a chain. `None` if this module does not know something in it.
    #[must_use]
    pub fn rule(&mut self, table: &str, family: Family, chain: &str, rule: &Rule) -> Option<()> {
        let (table, chain) = (text(table), text(chain));
        let expressions = rule::expressions(family, rule)?.concat();
        let comment = rule.comment.as_ref().map(|comment| comment_bytes(0, comment));
        // `NFTA_RULE_TABLE`, `NFTA_RULE_CHAIN`, `NFTA_RULE_EXPRESSIONS`, `NFTA_RULE_USERDATA`.
        let mut attributes = vec![(1, table.as_slice()), (2, &chain), (4 | NESTED, &expressions)];
        attributes.extend(comment.as_ref().map(|comment| (7, comment.as_slice())));
        self.push(NEW_RULE, CREATE | APPEND, family, &attributes);
        Some(())
    }

    /// A set or map without its elements; it must not be there. `None` if it is one of intervals.
    #[must_use]
    pub fn set(&mut self, table: &str, family: Family, name: &str, set: &Set) -> Option<()> {
        if set.interval {
            return None;
        }
        self.sets += 1;
        let types: Vec<(u32, usize)> = set.key.iter().map(|key| key_type(family, *key)).collect();
        // Fields of a concatenation have six bits each for their type, and take whole words.
        let (kind, length) = match types.as_slice() {
            [alone] => *alone,
            several => several.iter().fold((0, 0), |(kind, length), (next, more)| {
                (kind << 6 | next, length + more.next_multiple_of(4))
            }),
        };
        let bytes = |number: u32| number.to_be_bytes();
        let flags = bytes(if set.map { SET_MAP } else { 0 });
        let (kind, length, id) = (bytes(kind), bytes(u32::try_from(length).ok()?), bytes(self.sets));
        let (values, none) = (bytes(DATA_VERDICT), bytes(0));
        let comment = set.comment.as_ref().map(|comment| comment_bytes(7, comment));
        let (table, name) = (text(table), text(name));
        // `NFTA_SET_TABLE`, `_NAME`, `_FLAGS`, `_KEY_TYPE`, `_KEY_LEN`, `_ID`, `_DATA_TYPE`, `_DATA_LEN`, `_USERDATA`.
        let mut attributes: Vec<(u16, &[u8])> =
            vec![(1, &table), (2, &name), (3, &flags), (4, &kind), (5, &length), (10, &id)];
        if set.map {
            attributes.extend([(6, values.as_slice()), (7, &none)]);
        }
        attributes.extend(comment.as_ref().map(|comment| (13, comment.as_slice())));
        self.push(NEW_SET, CREATE | EXCLUSIVE, family, &attributes);
        Some(())
    }

    /// A set or map goes, with its elements.
    pub fn delete_set(&mut self, table: &str, family: Family, name: &str) {
        let (table, name) = (text(table), text(name));
        // `NFTA_SET_TABLE`, `NFTA_SET_NAME`.
        self.push(DEL_SET, 0, family, &[(1, table.as_slice()), (2, name.as_slice())]);
    }

    /// The elements of a set or map; they must not be there. `None` if one of them is a range.
    #[must_use]
    pub fn elements(&mut self, table: &str, family: Family, name: &str, elements: &Elements) -> Option<()> {
        let mut some = Vec::new();
        match elements {
            Elements::Addrs(addrs) => {
                for addr in addrs {
                    self.fill(table, family, name, &mut some);
                    some.extend(element_bytes(family, &[Key::Addr(*addr, *addr)], None)?);
                }
            }
            Elements::General(elements) => {
                for (key, verdict) in elements {
                    self.fill(table, family, name, &mut some);
                    some.extend(element_bytes(family, key, verdict.as_ref())?);
                }
            }
        }
        if !some.is_empty() {
            self.put_elements(NEW_ELEMENT, CREATE | EXCLUSIVE, (table, family, name), &some);
        }
        Some(())
    }

    /// Says what elements there are so far, if a message is full with them.
    fn fill(&mut self, table: &str, family: Family, name: &str, some: &mut Vec<u8>) {
        if some.len() >= ELEMENTS_BYTES {
            self.put_elements(NEW_ELEMENT, CREATE | EXCLUSIVE, (table, family, name), some);
            some.clear();
        }
    }

    fn put_elements(
        &mut self,
        kind: u8,
        flags: u16,
        (table, family, set): (&str, Family, &str),
        elements: &[u8],
    ) {
        let (table, set) = (text(table), text(set));
        // `NFTA_SET_ELEM_LIST_TABLE`, `NFTA_SET_ELEM_LIST_SET`, `NFTA_SET_ELEM_LIST_ELEMENTS`.
        let attributes = [(1, table.as_slice()), (2, &set), (3 | NESTED, elements)];
        self.push(kind, flags, family, &attributes);
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.sequence == 1
    }

    /// Whether it is small enough for [`Batch::commit`].
    pub fn fits(&self) -> bool {
        self.out.len() <= BATCH_BYTES
    }

    /// Has the kernel do it.
    ///
    /// # Errors
    /// What the kernel refuses first; then nothing has changed.
    pub fn commit(mut self) -> io::Result<Committed> {
        if self.is_empty() {
            return Ok(Committed(None));
        }
        if !self.fits() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // One answer to the last message; what is refused is answered in any case, and before it. An answer to each would
        // not fit into the socket's buffer.
        self.out.flag_last(ACK);
        let last = self.sequence - 1;
        self.frame(END);
        let mut socket = Socket::open()?;
        socket.send_whole(&self.out)?;
        let done = answered(&mut socket, last);
        let committed = Committed(Some(socket));
        done.map(|()| committed)
    }
}

/// Waits for the kernel's answer to a message, or for what it refused before.
fn answered(socket: &mut Socket, last: u32) -> io::Result<()> {
    loop {
        for message in netlink::messages(socket.receive()?) {
            if message.kind == ERROR {
                match message.error() {
                    Some(error) => return Err(error),
                    None if message.sequence == last => return Ok(()),
                    None => {}
                }
            }
        }
    }
}

/// An element: `NFTA_SET_ELEM_KEY` and `NFTA_SET_ELEM_DATA`, each with `NFTA_DATA_VALUE` or a verdict, as
/// `NFTA_LIST_ELEM`.
fn element_bytes(family: Family, key: &[Key], verdict: Option<&Verdict>) -> Option<Vec<u8>> {
    let mut parts = vec![nested(1, &[attribute(1, &key_bytes(family, key)?)])];
    parts.extend(verdict.map(|verdict| nested(2, &[verdict_bytes(verdict)])));
    Some(nested(1, &parts))
}
