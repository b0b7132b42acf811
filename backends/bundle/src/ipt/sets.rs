//! `create` and `add` lines, of our own texts and of `ipset save`.

use super::words::{Budget, Message, Words, decimal, name, prefix, shown};
use super::{Family, Set, SetKind};
use crate::limits;
use std::collections::BTreeMap;

/// The sets that were read so far.
pub(super) struct Sets {
    pub(super) sets: BTreeMap<String, Set>,
    /// How many elements each still takes.
    room: BTreeMap<String, u64>,
}

impl Sets {
    pub(super) fn new() -> Sets {
        Sets { sets: BTreeMap::new(), room: BTreeMap::new() }
    }

    pub(super) fn line(&mut self, line: &str, budget: &mut Budget) -> Result<(), Message> {
        let mut words = Words::new(line);
        match words.word("`create` or `add`")? {
            "create" => self.create(&mut words, budget),
            "add" => self.add(&mut words, budget),
            other => Err(format!("expected `create` or `add`, found {}", shown(other))),
        }
    }

    /// `create NAME TYPE family FAMILY hashsize N maxelem N`, then `-exist` or what `ipset save` adds.
    fn create(&mut self, words: &mut Words<'_>, budget: &mut Budget) -> Result<(), Message> {
        let set = name(words.word("a name")?, limits::IPSET_NAME_BYTES)?;
        let kind = match words.word("a type")? {
            "hash:ip" => SetKind::HashIp,
            "hash:net" => SetKind::HashNet,
            other => return Err(format!("unknown type {}", shown(other))),
        };
        words.expect("family")?;
        let family = match words.word("a family")? {
            "inet" => Family::V4,
            "inet6" => Family::V6,
            other => return Err(format!("unknown family {}", shown(other))),
        };
        words.expect("hashsize")?;
        let size = decimal(words.word("a number")?, limits::IPSET_HASHSIZE)?;
        words.expect("maxelem")?;
        let most = decimal(words.word("a number")?, limits::IPSET_MAXELEM)?;
        if size == 0 || most == 0 {
            return Err("a set without room".into());
        }
        while let Some(option) = words.next()? {
            match option {
                "-exist" => {}
                // What ipset 7 prints besides (`ipset save`): figures without a meaning for the elements.
                "bucketsize" | "initval" => drop(words.word("a number")?),
                other => return Err(format!("unknown option {}", shown(other))),
            }
        }
        Budget::spend(&mut budget.objects, "sets and chains")?;
        if self.sets.len() >= limits::IPSETS {
            return Err("too many sets".into());
        }
        let fresh = Set { family, kind, elements: BTreeMap::new() };
        if self.sets.insert(set.to_owned(), fresh).is_some() {
            return Err(format!("`{set}` is created twice"));
        }
        self.room.insert(set.to_owned(), most);
        Ok(())
    }

    /// `add NAME PREFIX [nomatch] [-exist]`.
    fn add(&mut self, words: &mut Words<'_>, budget: &mut Budget) -> Result<(), Message> {
        let set = name(words.word("a name")?, limits::IPSET_NAME_BYTES)?;
        let (Some(data), Some(room)) = (self.sets.get_mut(set), self.room.get_mut(set)) else {
            return Err(format!("`{set}` is not created"));
        };
        let element = prefix(data.family, words.word("an element")?)?;
        let mut matches = true;
        while let Some(option) = words.next()? {
            match option {
                "nomatch" if data.kind == SetKind::HashNet => matches = false,
                "-exist" => {}
                other => return Err(format!("unknown option {}", shown(other))),
            }
        }
        match data.kind {
            SetKind::HashIp if element.len != data.family.bits() => {
                return Err("a prefix in a `hash:ip`".into());
            }
            // `hash_ip4_kadt` and `hash_ip6_kadt` (net/netfilter/ipset/ip_set_hash_ip.c) never find it.
            SetKind::HashIp if element.base == 0 => {
                return Err("a `hash:ip` cannot hold the address zero".into());
            }
            SetKind::HashNet if element.len == 0 => {
                return Err("a `hash:net` cannot hold a prefix of length 0".into());
            }
            _ => {}
        }
        Budget::spend(&mut budget.elements, "elements")?;
        *room = room.checked_sub(1).ok_or("more elements than `maxelem`")?;
        if data.elements.insert(element, matches).is_some() {
            return Err("an element is added twice".into());
        }
        Ok(())
    }
}
