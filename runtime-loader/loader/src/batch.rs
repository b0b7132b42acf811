//! Elements of sets in one transaction of nftables, told to the kernel itself.
//!
//! To start nft takes longer than to change ten elements: it reads what sets there are before it does anything. Elements
//! that come and go are all that this module can say, and the marker of a version; rules are nft's.
//!
//! Messages and attributes are those of `include/uapi/linux/netfilter/nf_tables.h` and `nfnetlink.h`. A batch takes effect
//! as a whole or not at all (`nfnetlink_rcv_batch`, `net/netfilter/nfnetlink.c`).

use crate::netlink::{self, ACK, ERROR, Outgoing, REQUEST, Socket};
use netpolc_bundle::nft::{Edit, Family, Key, Verdict};
use std::io;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`: as a number of the batch in network byte order, and in the upper byte of a message's type.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWCHAIN`, `NFT_MSG_DELCHAIN`, `NFT_MSG_NEWSETELEM`, `NFT_MSG_DELSETELEM`.
const NEW_CHAIN: u8 = 3;
const DEL_CHAIN: u8 = 5;
const NEW_ELEMENT: u8 = 12;
const DEL_ELEMENT: u8 = 14;
/// `NLM_F_CREATE`, `NLM_F_EXCL`: what is new must not be there.
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
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

/// What is to be done in one transaction.
#[derive(Debug)]
pub struct Batch {
    out: Outgoing,
    sequence: u32,
}

impl Default for Batch {
    fn default() -> Batch {
        let mut batch = Batch { out: Outgoing::default(), sequence: 0 };
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

/// A key as the kernel has it: each field in network byte order, filled up to four bytes.
fn key_bytes(family: Family, key: &[Key]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for field in key {
        match (field, family) {
            (Key::Addr(low, high), _) if low != high => return None,
            (Key::Addr(addr, _), Family::Ip) => bytes.extend(u32::try_from(*addr).ok()?.to_be_bytes()),
            (Key::Addr(addr, _), Family::Ip6) => bytes.extend(addr.to_be_bytes()),
            (Key::Ifname(name), _) => {
                let mut field = [0; IFNAME];
                field.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
                bytes.extend(field);
            }
            // Sets with these are not changed by element.
            (Key::Proto(_) | Key::Service(..), _) => return None,
        }
    }
    Some(bytes)
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
        self.out.push(kind, REQUEST | ACK | flags, self.sequence, &[number(family), 0, 0, 0], attributes);
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
        let key = key_bytes(edit.family, &edit.key)?;
        // `NFTA_SET_ELEM_KEY` and `NFTA_SET_ELEM_DATA`, each with `NFTA_DATA_VALUE` or a verdict.
        let mut parts = vec![nested(1, &[attribute(1, &key)])];
        if edit.comes {
            parts.extend(edit.verdict.as_ref().map(|verdict| nested(2, &[verdict_bytes(verdict)])));
        }
        let (table, set) = (text(table), text(&edit.set));
        // `NFTA_LIST_ELEM` in `NFTA_SET_ELEM_LIST_ELEMENTS`.
        let elements = nested(1, &parts);
        let attributes = [(1, table.as_slice()), (2, &set), (3 | NESTED, &elements)];
        match edit.comes {
            true => self.push(NEW_ELEMENT, flags, edit.family, &attributes),
            false => self.push(DEL_ELEMENT, 0, edit.family, &attributes),
        }
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

    /// Has the kernel do it.
    ///
    /// # Errors
    /// What the kernel refuses first; then nothing has changed.
    pub fn commit(mut self) -> io::Result<()> {
        let asked = self.sequence.saturating_sub(1);
        if asked == 0 {
            return Ok(());
        }
        self.frame(END);
        let mut socket = Socket::open()?;
        let done = exchange(&mut socket, &self.out, asked);
        // To close a socket of nfnetlink takes until what the transaction has deleted is freed (`nft_rcv_nl_event`,
        // `net/netfilter/nf_tables_api.c`): ten milliseconds that nobody needs to wait for.
        let close = std::thread::Builder::new().name("close".into()).stack_size(STACK_BYTES);
        let _ = close.spawn(move || drop(socket));
        done
    }
}

/// The kernel answers when all is done: once for each message, or with the first that it refused and nothing else that is of
/// use.
fn exchange(socket: &mut Socket, out: &Outgoing, asked: u32) -> io::Result<()> {
    socket.send(out)?;
    let mut answered = 0;
    while answered < asked {
        for message in netlink::messages(socket.receive()?) {
            if message.kind == ERROR {
                answered += 1;
                message.error().map_or(Ok(()), Err)?;
            }
        }
    }
    Ok(())
}
