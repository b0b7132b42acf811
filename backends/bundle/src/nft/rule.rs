//! Rules: matches, a counter, an outcome.

use super::element::{address, protocol};
use super::lexer::{Message, Token};
use super::parser::{Parser, decimal};
use super::{Family, Field, Match, Outcome, PODADDR, Rule, UNBOUND};
use crate::limits;

/// Bits of `ct state` (`enum ip_conntrack_info` by `NF_CT_STATE_BIT`, `include/uapi/linux/netfilter/nf_conntrack_common.h`).
const CT_STATES: [(&str, u64); 5] =
    [("invalid", 1), ("established", 2), ("related", 4), ("new", 8), ("untracked", 64)];

/// No entry in the table of connections.
const INVALID_UNTRACKED: u64 = 65;

/// Bits of the TCP header's flags (RFC 9293, section 3.1).
const TCP_FLAGS: [(&str, u64); 8] = [
    ("fin", 0x01),
    ("syn", 0x02),
    ("rst", 0x04),
    ("psh", 0x08),
    ("ack", 0x10),
    ("urg", 0x20),
    ("ecn", 0x40),
    ("cwr", 0x80),
];

/// The ICMPv6 types of neighbour discovery (RFC 4861, section 4).
const DISCOVERY: [(&str, u64); 5] = [
    ("nd-router-solicit", 133),
    ("nd-router-advert", 134),
    ("nd-neighbor-solicit", 135),
    ("nd-neighbor-advert", 136),
    ("nd-redirect", 137),
];

const ESTABLISHED_RELATED: u64 = 2 | 4;
const TCP_MASK: u64 = 0x01 | 0x02 | 0x04 | 0x10;
const TCP_SYN: u64 = 0x02;

/// SCTP's number, and the type of the chunk that opens an association (RFC 9260, section 3.2).
const SCTP: u8 = 132;
const SCTP_INIT: u64 = 1;

/// What can stand where a rule goes on.
enum Part {
    Match(Match),
    Fields(Vec<Field>),
}

fn number(names: &[(&str, u64)], word: &str) -> Result<u64, Message> {
    let named = names.iter().find(|(name, _)| *name == word).map(|(_, bits)| *bits);
    let hex = || word.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    named
        .or_else(|| decimal(word, u64::from(u32::MAX)))
        .or_else(hex)
        .ok_or_else(|| format!("unknown value {}", super::parser::shown(Token::Word(word))))
}

impl Parser<'_> {
    pub(super) fn rule(&mut self, family: Family) -> Result<Rule, Message> {
        let mut matches = Vec::new();
        let mut counter = false;
        let outcome = loop {
            if !counter && self.eat("counter")? {
                counter = true;
                self.counter_figures()?;
            }
            if let Some(verdict) = self.verdict()? {
                break Outcome::Verdict(verdict);
            }
            if matches.len() >= limits::MATCHES {
                return Err(format!("more than {} matches", limits::MATCHES));
            }
            match self.part(family, &mut matches)? {
                Part::Fields(fields) if self.eat("vmap")? => {
                    self.expect_punct(b'@')?;
                    break Outcome::Vmap(fields, self.name()?);
                }
                _ if counter => return Err("a counter before a match".into()),
                Part::Match(found) => matches.push(found),
                Part::Fields(fields) if self.token == Token::NotEqual => {
                    self.advance()?;
                    self.expect_punct(b'@')?;
                    if fields != UNBOUND || self.name()? != PODADDR {
                        return Err("a set that a packet must not be in, other than those of pods".into());
                    }
                    matches.push(Match::Unbound);
                }
                Part::Fields(fields) => {
                    // nft 1.0.6 prints `==` after an address under an empty mask.
                    if self.token == Token::Equal {
                        self.advance()?;
                    }
                    self.expect_punct(b'@')?;
                    matches.push(Match::InSet(fields, self.name()?));
                }
            }
        };
        let comment = if self.eat("comment")? { Some(self.comment()?) } else { None };
        Ok(Rule { matches, counter, outcome, comment })
    }

    /// `packets N bytes N`, which a listing has.
    fn counter_figures(&mut self) -> Result<(), Message> {
        if self.eat("packets")? {
            decimal(self.word("a number")?, u64::MAX).ok_or("expected a number")?;
            self.expect("bytes")?;
            decimal(self.word("a number")?, u64::MAX).ok_or("expected a number")?;
        }
        Ok(())
    }

    fn part(&mut self, family: Family, matches: &mut Vec<Match>) -> Result<Part, Message> {
        if self.token == Token::Punct(b'@') {
            return self.first_chunk().map(Part::Match);
        }
        let Token::Word(word) = self.token else { return self.unexpected("a match or a verdict") };
        match word {
            "ct" => self.ct_state().map(Part::Match),
            "fib" => self.fib().map(Part::Match),
            "ip6" if family == Family::Ip6 => {
                self.advance()?;
                if self.eat("hoplimit")? {
                    self.expect("255")?;
                    return self.discovery().map(Part::Match);
                }
                let first = self.address_field(family)?;
                self.fields(family, first, matches).map(Part::Fields)
            }
            "tcp" => {
                self.advance()?;
                if self.eat("flags")? {
                    return self.tcp_flags().map(Part::Match);
                }
                self.expect("dport")?;
                imply(matches, 6)?;
                self.fields(family, Field::Dport, matches).map(Part::Fields)
            }
            "meta" => {
                self.advance()?;
                self.expect("l4proto")?;
                if let Token::Word(value) = self.token
                    && !matches!(value, "." | "vmap")
                {
                    let number = protocol(value).ok_or("expected a protocol")?;
                    self.advance()?;
                    return Ok(Part::Match(Match::L4Proto(number)));
                }
                self.fields(family, Field::L4Proto, matches).map(Part::Fields)
            }
            _ => {
                let first = self.field(family, matches)?;
                self.fields(family, first, matches).map(Part::Fields)
            }
        }
    }

    /// The rest of a concatenation.
    fn fields(
        &mut self,
        family: Family,
        first: Field,
        matches: &mut Vec<Match>,
    ) -> Result<Vec<Field>, Message> {
        let mut fields = vec![first];
        while self.eat(".")? {
            let field = self.field(family, matches)?;
            fields.push(field);
            if fields.len() > limits::FIELDS {
                return Err(format!("more than {} fields", limits::FIELDS));
            }
        }
        let masked = |field: &Field| matches!(field, Field::SaddrPrefix(_) | Field::DaddrPrefix(_));
        if fields.len() > 1 && fields.iter().any(masked) {
            return Err("a mask in a concatenation".into());
        }
        Ok(fields)
    }

    fn field(&mut self, family: Family, matches: &mut Vec<Match>) -> Result<Field, Message> {
        let word = self.word("a field")?;
        let field = match (word, family) {
            ("ip", Family::Ip) | ("ip6", Family::Ip6) => return self.address_field(family),
            ("meta", _) => {
                self.expect("l4proto")?;
                return Ok(Field::L4Proto);
            }
            ("iifname", _) => return Ok(Field::Iifname),
            ("th", _) => Field::Dport,
            // The listing's form of `meta l4proto N` with `th dport`.
            ("tcp" | "udp" | "sctp" | "dccp" | "udplite", _) => {
                imply(matches, protocol(word).ok_or("expected a protocol")?)?;
                Field::Dport
            }
            _ => return Err(format!("unknown match {}", super::parser::shown(Token::Word(word)))),
        };
        self.expect("dport")?;
        Ok(field)
    }

    fn address_field(&mut self, family: Family) -> Result<Field, Message> {
        let source = match self.word("`saddr` or `daddr`")? {
            "saddr" => true,
            "daddr" => false,
            _ => return Err("expected `saddr` or `daddr`".into()),
        };
        if !self.eat_punct(b'&')? && !self.eat("and")? {
            return Ok(if source { Field::Saddr } else { Field::Daddr });
        }
        let mask = address(family, self.word("a mask")?).ok_or("expected a mask")?;
        let bits = family.bits();
        let aligned = mask << (128 - bits);
        let length = aligned.leading_ones();
        if aligned.checked_shl(length).unwrap_or(0) != 0 {
            return Err("a mask with holes".into());
        }
        let length = u8::try_from(length).map_err(|_| "expected a mask".to_owned())?;
        Ok(if source { Field::SaddrPrefix(length) } else { Field::DaddrPrefix(length) })
    }

    /// A list of names or numbers of bits, between separators.
    fn bits(&mut self, names: &[(&str, u64)], separator: u8) -> Result<u64, Message> {
        let mut bits = 0;
        loop {
            bits |= number(names, self.word("a name or number")?)?;
            if !self.eat_punct(separator)? {
                return Ok(bits);
            }
        }
    }

    /// `( A | B )`, or one number.
    fn mask(&mut self, names: &[(&str, u64)]) -> Result<u64, Message> {
        if !self.eat_punct(b'(')? {
            return number(names, self.word("a mask")?);
        }
        let bits = self.bits(names, b'|')?;
        self.expect_punct(b')')?;
        Ok(bits)
    }

    /// `ct state invalid,untracked`, or one of the forms of "neither established nor related".
    ///
    /// `ct state != established,related` is not one: nft 1.0.6 compares with the number 6, which no packet has.
    fn ct_state(&mut self) -> Result<Match, Message> {
        self.expect("ct")?;
        self.expect("state")?;
        if self.eat_punct(b'&')? || self.eat("and")? {
            let mask = self.mask(&CT_STATES)?;
            let zero = self.token == Token::Equal;
            self.advance()?;
            if mask == ESTABLISHED_RELATED && zero && number(&[], self.word("0")?)? == 0 {
                return Ok(Match::NotEstablished);
            }
        } else if self.eat_punct(b'!')? {
            if self.bits(&CT_STATES, b',')? == ESTABLISHED_RELATED {
                return Ok(Match::NotEstablished);
            }
        } else if self.token != Token::NotEqual && self.bits(&CT_STATES, b',')? == INVALID_UNTRACKED {
            return Ok(Match::NotTracked);
        }
        Err("a test of `ct state` that netpolc does not use".into())
    }

    fn tcp_flags(&mut self) -> Result<Match, Message> {
        let (mask, value) = if self.eat_punct(b'&')? || self.eat("and")? {
            let mask = self.mask(&TCP_FLAGS)?;
            self.not_equal()?;
            (mask, self.bits(&TCP_FLAGS, b',')?)
        } else {
            self.not_equal()?;
            let value = self.bits(&TCP_FLAGS, b',')?;
            self.expect("/")?;
            (self.bits(&TCP_FLAGS, b',')?, value)
        };
        if mask != TCP_MASK || value != TCP_SYN {
            return Err("a test of `tcp flags` that netpolc does not use".into());
        }
        Ok(Match::TcpNotSyn)
    }

    /// `@th,96,8 != 1 meta l4proto sctp`.
    fn first_chunk(&mut self) -> Result<Match, Message> {
        self.expect_punct(b'@')?;
        self.expect("th")?;
        for word in ["96", "8"] {
            self.expect_punct(b',')?;
            self.expect(word)?;
        }
        self.not_equal()?;
        if number(&[], self.word("a chunk type")?)? != SCTP_INIT {
            return Err("a chunk type that netpolc does not use".into());
        }
        for word in ["meta", "l4proto"] {
            self.expect(word)?;
        }
        if protocol(self.word("`sctp`")?) != Some(SCTP) {
            return Err("a field of another protocol".into());
        }
        Ok(Match::SctpNotInit)
    }

    fn not_equal(&mut self) -> Result<(), Message> {
        if self.token != Token::NotEqual {
            return self.unexpected("`!=`");
        }
        self.advance()
    }

    /// `fib saddr . iif oif missing`; newer versions of nft may print `check` for `oif`, and numbers are printed as 0.
    fn fib(&mut self) -> Result<Match, Message> {
        for word in ["fib", "saddr", ".", "iif"] {
            self.expect(word)?;
        }
        if !self.eat("check")? {
            self.expect("oif")?;
        }
        if !self.eat("0")? {
            self.expect("missing")?;
        }
        Ok(Match::ReversePathFails)
    }

    fn discovery(&mut self) -> Result<Match, Message> {
        self.expect("icmpv6")?;
        self.expect("type")?;
        self.expect_punct(b'{')?;
        let mut found = [false; DISCOVERY.len()];
        for index in 0..DISCOVERY.len() {
            if index > 0 {
                self.expect_punct(b',')?;
            }
            let value = number(&DISCOVERY, self.word("a type")?)?;
            let slot = DISCOVERY.iter().position(|(_, number)| *number == value);
            let slot = slot.and_then(|slot| found.get_mut(slot)).ok_or("a type that netpolc does not use")?;
            *slot = true;
        }
        self.expect_punct(b'}')?;
        if found.contains(&false) {
            return Err("a type twice".into());
        }
        Ok(Match::NeighbourDiscovery)
    }
}

/// `tcp dport` tests the protocol first.
fn imply(matches: &mut Vec<Match>, protocol: u8) -> Result<(), Message> {
    let earlier =
        matches.iter().find_map(|m| if let Match::L4Proto(number) = m { Some(*number) } else { None });
    match earlier {
        None => matches.push(Match::L4Proto(protocol)),
        Some(number) if number == protocol => {}
        Some(_) => return Err("two protocols in one rule".into()),
    }
    Ok(())
}
