//! The elements of sets and maps.

use super::lexer::{Message, Token};
use super::parser::{Parser, decimal};
use super::{Elements, Family, Key, KeyType, Set, Verdict};
use crate::limits;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Names for protocol numbers, from IANA's registry. nft takes them from `/etc/protocols`; others that the file may have
/// are not read.
const PROTOCOLS: [(&str, u8); 11] = [
    ("tcp", 6),
    ("udp", 17),
    ("sctp", 132),
    ("icmp", 1),
    ("icmpv6", 58),
    ("ipv6-icmp", 58),
    ("udplite", 136),
    ("dccp", 33),
    ("esp", 50),
    ("ah", 51),
    ("comp", 108),
];

/// A protocol by number or name.
pub(super) fn protocol(word: &str) -> Option<u8> {
    let named = PROTOCOLS.iter().find(|(name, _)| *name == word).map(|(_, number)| *number);
    named.or_else(|| decimal(word, 255).and_then(|number| u8::try_from(number).ok()))
}

/// An address as a number in host order.
pub(super) fn address(family: Family, word: &str) -> Option<u128> {
    match family {
        Family::Ip => word.parse().ok().map(|addr: Ipv4Addr| u128::from(u32::from(addr))),
        Family::Ip6 => word.parse().ok().map(|addr: Ipv6Addr| u128::from(addr)),
    }
}

fn address_range(family: Family, word: &str) -> Option<(u128, u128)> {
    if let Some((base, length)) = word.split_once('/') {
        let base = address(family, base)?;
        let bits = family.bits();
        let length = decimal(length, u64::from(bits)).and_then(|length| u32::try_from(length).ok())?;
        let hosts = 1u128.checked_shl(bits - length).unwrap_or(0).wrapping_sub(1);
        return (base & hosts == 0).then_some((base, base | hosts));
    }
    let (lo, hi) = word.split_once('-')?;
    let (lo, hi) = (address(family, lo)?, address(family, hi)?);
    (lo <= hi).then_some((lo, hi))
}

fn port(word: &str) -> Option<u16> {
    decimal(word, 65_535).and_then(|number| u16::try_from(number).ok())
}

impl Parser<'_> {
    /// `{ ELEMENT, ... }`.
    pub(super) fn elements(&mut self, family: Family, set: &Set) -> Result<Elements, Message> {
        self.expect_punct(b'{')?;
        self.skip_newlines()?;
        if set.is_plain() {
            return self.plain_elements(family);
        }
        let mut elements = BTreeMap::new();
        loop {
            self.spend_element()?;
            let key = self.key(family, set)?;
            let verdict = if set.map {
                self.expect_punct(b':')?;
                Some(self.verdict()?.ok_or("expected a verdict")?)
            } else {
                None
            };
            if elements.insert(key, verdict).is_some() {
                return Err("an element twice".into());
            }
            if !self.another_element()? {
                return Ok(Elements::General(elements));
            }
        }
    }

    /// The elements of a set of addresses; the one place where speed matters, since a node has tens of thousands.
    fn plain_elements(&mut self, family: Family) -> Result<Elements, Message> {
        let mut list = Vec::new();
        loop {
            self.spend_element()?;
            let word = self.word("an address")?;
            list.push(
                address(family, word).ok_or_else(|| format!("not an address of the family `{family}`"))?,
            );
            if !self.another_element()? {
                break;
            }
        }
        if !list.is_sorted() {
            list.sort_unstable();
        }
        if list.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err("an element twice".into());
        }
        Ok(Elements::Addrs(list))
    }

    /// After an element: whether one more follows; else the closing brace is taken.
    fn another_element(&mut self) -> Result<bool, Message> {
        self.skip_newlines()?;
        if self.eat_punct(b',')? {
            self.skip_newlines()?;
            if self.token != Token::Punct(b'}') {
                return Ok(true);
            }
        }
        self.expect_punct(b'}')?;
        Ok(false)
    }

    fn key(&mut self, family: Family, set: &Set) -> Result<Vec<Key>, Message> {
        let mut key = Vec::with_capacity(set.key.len());
        for (index, kind) in set.key.iter().enumerate() {
            if index > 0 {
                self.expect(".")?;
            }
            key.push(self.field_value(family, *kind, set.interval)?);
        }
        Ok(key)
    }

    fn field_value(&mut self, family: Family, kind: KeyType, interval: bool) -> Result<Key, Message> {
        if kind == KeyType::Ifname {
            let Token::Quoted(name) = self.token else { return self.unexpected("an interface in quotes") };
            if !is_ifname(name) {
                return Err("not the name of an interface".into());
            }
            self.advance()?;
            return Ok(Key::Ifname(name.to_owned()));
        }
        let word = self.word("an element")?;
        let ranges = || if interval { "" } else { " (or a range in a set without `flags interval`)" };
        match kind {
            KeyType::Addr => address(family, word)
                .map(|addr| (addr, addr))
                .or_else(|| if interval { address_range(family, word) } else { None })
                .map(|(lo, hi)| Key::Addr(lo, hi))
                .ok_or_else(|| format!("not an address of the family `{family}`{}", ranges())),
            KeyType::Service => port(word)
                .map(|port| (port, port))
                .or_else(|| {
                    let (lo, hi) = word.split_once('-').filter(|_| interval)?;
                    Some((port(lo)?, port(hi)?)).filter(|(lo, hi)| lo <= hi)
                })
                .map(|(lo, hi)| Key::Service(lo, hi))
                .ok_or_else(|| format!("not a port{}", ranges())),
            KeyType::Proto => protocol(word).map(Key::Proto).ok_or_else(|| "not a protocol".into()),
            KeyType::Ifname => self.unexpected("an interface in quotes"),
        }
    }

    /// A verdict, if one is next.
    pub(super) fn verdict(&mut self) -> Result<Option<Verdict>, Message> {
        let Token::Word(word) = self.token else { return Ok(None) };
        let verdict = match word {
            "accept" => Verdict::Accept,
            "drop" => Verdict::Drop,
            "return" => Verdict::Return,
            "jump" | "goto" => {
                self.advance()?;
                let chain = self.name()?;
                return Ok(Some(if word == "jump" { Verdict::Jump(chain) } else { Verdict::Goto(chain) }));
            }
            _ => return Ok(None),
        };
        self.advance()?;
        Ok(Some(verdict))
    }
}

/// Whether a script can hold this as the name of an interface. The kernel allows more (`dev_valid_name` in
/// `net/core/dev.c`), but nft has no escape for a quote, and reads `*` at the end as a wildcard.
pub fn is_ifname(name: &str) -> bool {
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'@' | b'+' | b':' | b'#');
    !name.is_empty() && name.len() <= limits::IFNAME_BYTES && name.bytes().all(plain)
}
