//! Trees of chains: from an address to rules, in few steps.
//!
//! An item is a prefix with rules for the addresses in it; the longest prefix decides. A chain holds a few items, longest
//! first, or it sends each of some prefixes, which hold about the same number of items, to a chain of its own. The
//! prefixes are found on the trie of the items: from the root towards the heavier half until what is below is small
//! enough. That is at least half as much as was wanted, so a chain has at most twice as many branches as the
//! fan-out, however the addresses lie: `n` items cost `O(log n)` rules. (From thousands of pods on a node on, the fan-out
//! grows instead of the depth, which iptables-nft bounds.)

use super::{Object, chain, rule};
use crate::limits;
use netpolc_bundle::ipt::{End, Family, Match, Prefix, Rule, Target};
use netpolc_ir::unit::Origin;
use std::rc::Rc;

/// What happens to the addresses of a prefix.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) prefix: Prefix,
    /// The rules, without the match on the prefix.
    pub(super) rules: Vec<Rule>,
}

/// What all chains of a tree have in common.
pub(super) struct Tree {
    pub(super) family: Family,
    /// The address that is looked at.
    pub(super) end: End,
    /// Of the chains' names.
    pub(super) kind: &'static str,
    pub(super) origins: Rc<Vec<Origin>>,
    /// The chains, made so far.
    pub(super) objects: Vec<Object>,
}

/// The fan-out with which `n` items need no more than `depth` chains in a row.
pub(super) fn fan_out(n: usize, depth: u32) -> usize {
    let fits = |fan: &usize| fan.saturating_pow(depth.saturating_sub(1)).saturating_mul(limits::LEAF) >= n;
    (limits::FAN..n).find(fits).unwrap_or(limits::FAN.max(n))
}

impl Tree {
    /// The rules of the root, at most `depth` chains above the leaves, the root included. What no item has goes to
    /// `default`, or falls out of the rules.
    pub(super) fn root(&mut self, mut items: Vec<Item>, default: Option<Target>, depth: u32) -> Vec<Rule> {
        items.sort_by_key(|item| item.prefix);
        let fan = fan_out(items.len(), depth);
        let default: Vec<Rule> = default.into_iter().map(|target| rule(Vec::new(), target)).collect();
        self.rules(items, default, fan)
    }

    fn rules(&mut self, mut items: Vec<Item>, default: Vec<Rule>, fan: usize) -> Vec<Rule> {
        let mut rules = Vec::new();
        let all = items.clone();
        let most = items.len().div_ceil(fan).max(limits::LEAF);
        while items.len() > limits::LEAF {
            let (prefix, range) = self.branch(&items, most);
            let inside: Vec<Item> = items.drain(range).collect();
            match inside.as_slice() {
                [item] => self.item(item, &mut rules),
                _ => {
                    let default = self.around(&all, prefix).unwrap_or(&default).to_vec();
                    let inside = self.rules(inside, default, fan);
                    let name = self.chain(inside);
                    // iptables prints no match on a prefix of length 0.
                    let found = (prefix.len > 0).then_some(Match::Addr(self.end, prefix));
                    rules.push(rule(found.into_iter().collect(), Target::Goto(name)));
                }
            }
        }
        items.sort_by_key(|item| std::cmp::Reverse(item.prefix.len));
        items.iter().for_each(|item| self.item(item, &mut rules));
        // Nothing comes past a rule without a condition.
        if rules.last().is_none_or(|last| !last.matches.is_empty()) {
            rules.extend(default);
        }
        rules
    }

    /// Makes a chain.
    pub(super) fn chain(&mut self, rules: Vec<Rule>) -> String {
        let object = chain(self.kind, rules, self.origins.clone());
        let name = object.name.clone();
        self.objects.push(object);
        name
    }

    fn item(&self, item: &Item, rules: &mut Vec<Rule>) {
        for rule in &item.rules {
            let mut rule = rule.clone();
            if item.prefix.len > 0 {
                rule.matches.push(Match::Addr(self.end, item.prefix));
                rule.matches.sort();
            }
            rules.push(rule);
        }
    }

    /// The rules of the longest prefix around another.
    fn around<'i>(&self, items: &'i [Item], inner: Prefix) -> Option<&'i [Rule]> {
        let covers = |i: &&Item| i.prefix.len < inner.len && i.prefix.contains(self.family, inner.base);
        items.iter().filter(covers).max_by_key(|i| i.prefix.len).map(|i| i.rules.as_slice())
    }

    /// A prefix with at most so many items, as long as it can be with these, and where they stand.
    fn branch(&self, items: &[Item], most: usize) -> (Prefix, std::ops::Range<usize>) {
        let inside = |prefix: Prefix| {
            let from = items.partition_point(|i| i.prefix < prefix);
            from..items.partition_point(|i| i.prefix.base <= prefix.last(self.family))
        };
        let mut prefix = Prefix { base: 0, len: 0 };
        let mut range = 0..items.len();
        while prefix.len < self.family.bits() {
            let len = prefix.len + 1;
            let bit = 1 << (self.family.bits() - len);
            let halves = [prefix.base, prefix.base | bit].map(|base| Prefix { base, len });
            let [left, right] = halves.map(inside);
            let heavier = if left.len() >= right.len() { (halves[0], left) } else { (halves[1], right) };
            if range.len() <= most && heavier.1.len() < range.len() {
                break;
            }
            (prefix, range) = heavier;
        }
        (prefix, range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::names::Content;
    use std::collections::{BTreeMap, BTreeSet};

    /// Runs an address through a tree: where it leads, the rules met and the chains entered.
    fn walk(tree: &Tree, root: &[Rule], addr: u128) -> (Option<Target>, usize, u32) {
        let chains: BTreeMap<&str, &Rc<Vec<Rule>>> = tree
            .objects
            .iter()
            .filter_map(|o| match &o.content {
                Content::Chain(rules) => Some((o.name.as_str(), rules)),
                Content::Set(_) => None,
            })
            .collect();
        let (mut rules, mut met, mut depth) = (root, 0, 1);
        'chain: loop {
            for rule in rules {
                met += 1;
                let holds =
                    |m: &Match| matches!(m, Match::Addr(End::Src, p) if p.contains(tree.family, addr));
                if !rule.matches.iter().all(holds) {
                    continue;
                }
                match rule.target.chain().and_then(|name| chains.get(name)) {
                    Some(next) => (rules, depth) = (next.as_slice(), depth + 1),
                    None => return (Some(rule.target.clone()), met, depth),
                }
                continue 'chain;
            }
            return (None, met, depth);
        }
    }

    /// The targets stand for different answers.
    fn target(i: usize) -> Target {
        Target::Goto(format!("NETPOLC-{i}"))
    }

    /// The same numbers each time, without a crate for it (xorshift64).
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    fn check(prefixes: &BTreeSet<Prefix>, depth: u32, default: Option<Target>, most: usize) {
        let family = Family::V4;
        let origins: Rc<Vec<Origin>> = Rc::default();
        let mut tree = Tree { family, end: End::Src, kind: "TEST", origins, objects: Vec::new() };
        let items = prefixes.iter().enumerate();
        let items = items.map(|(i, p)| Item { prefix: *p, rules: vec![rule(Vec::new(), target(i % 5))] });
        let root = tree.root(items.collect(), default.clone(), depth);
        let edges = prefixes.iter().flat_map(|p| {
            let last = p.last(family);
            [p.base.saturating_sub(1), p.base, last, (last + 1).min(u128::from(u32::MAX))]
        });
        for addr in edges.chain([0, 77, u128::from(u32::MAX)]) {
            let covers = prefixes.iter().enumerate().filter(|(_, p)| p.contains(family, addr));
            let expected = covers.max_by_key(|(_, p)| p.len).map(|(i, _)| target(i % 5)).or(default.clone());
            let (found, met, deep) = walk(&tree, &root, addr);
            assert_eq!(found, expected, "{addr:x}");
            assert!(deep <= depth && met <= most, "{deep} chains, {met} rules for {} items", prefixes.len());
        }
    }

    #[test]
    fn the_longest_prefix_decides_wherever_the_chains_are_cut() {
        let mut state = 88_172_645_463_325_252;
        for n in [0, 1, 4, 5, 9, 40, 200] {
            for _ in 0..20 {
                let mut prefixes = BTreeSet::new();
                for _ in 0..n {
                    let bits = random(&mut state);
                    // Often nested, often side by side.
                    let len = [8, 12, 20, 24, 31, 32, 32, (bits >> 40) as u8 % 33][bits as usize % 8];
                    let base = (bits >> 8) & 0x0f0f_03ff & [u64::MAX, 0xff][(bits >> 50) as usize % 2];
                    prefixes.insert(Prefix { base: u128::from(base) & Family::V4.mask(len), len });
                }
                let default = (n % 2 == 0).then_some(Target::Drop);
                check(&prefixes, 5, default, 50);
            }
        }
    }

    /// Addresses of which each halving of the space takes one away: a plain trie would be 32 levels deep.
    #[test]
    fn addresses_that_lie_badly_make_no_deep_tree() {
        let uneven: BTreeSet<Prefix> = (0..32).map(|i| Prefix::host(Family::V4, 1 << i)).collect();
        check(&uneven, 3, None, 30);
        let nested = (1..=32).map(|len| Prefix { base: 0, len }).collect();
        check(&nested, 3, Some(Target::Drop), 30);
        let even: BTreeSet<Prefix> = (0..5_000).map(|i| Prefix::host(Family::V4, 1 << 24 | i)).collect();
        check(&even, 4, None, 60);
    }
}
