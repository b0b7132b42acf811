//! Functions of an address: what is true of each stretch of addresses.

use std::collections::BTreeMap;

/// A function of all addresses of a family, constant between its starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segments<T> {
    /// First address and value of each stretch; sorted; the first is 0; neighbours differ.
    starts: Vec<(u128, T)>,
    /// The last address of the family.
    max: u128,
}

/// Ranges up to so many addresses are named address by address, so that addresses of one pod each need not lie
/// side by side to share an atom.
const SHORT: u128 = 16;

/// Single addresses, and longer ranges.
pub(super) type Parts = (Vec<u128>, Vec<(u128, u128)>);

impl<T: Copy + Ord> Segments<T> {
    /// The same everywhere.
    pub(super) fn constant(value: T, max: u128) -> Segments<T> {
        Segments { starts: vec![(0, value)], max }
    }

    /// The value at an address.
    pub(super) fn at(&self, addr: u128) -> T {
        let i = self.starts.partition_point(|s| s.0 <= addr);
        self.starts[i.saturating_sub(1)].1
    }

    /// All stretches: first address, last address, value.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u128, u128, T)> + '_ {
        let ends = self.starts.iter().skip(1).map(|s| s.0 - 1).chain([self.max]);
        self.starts.iter().zip(ends).map(|(&(lo, value), hi)| (lo, hi, value))
    }

    /// This function outside of `lo..=hi`, the other inside.
    pub(super) fn replace(&self, lo: u128, hi: u128, inside: &Segments<T>) -> Segments<T> {
        let mut out = Segments { starts: Vec::with_capacity(self.starts.len() + 2), max: self.max };
        let before = self.starts.partition_point(|s| s.0 < lo);
        self.starts.iter().take(before).for_each(|&(start, value)| out.push(start, value));
        out.push(lo, inside.at(lo));
        let inner =
            inside.starts.partition_point(|s| s.0 <= lo)..inside.starts.partition_point(|s| s.0 <= hi);
        inside.starts.get(inner).into_iter().flatten().for_each(|&(start, value)| out.push(start, value));
        if hi < self.max {
            out.push(hi + 1, self.at(hi + 1));
            let after = self.starts.partition_point(|s| s.0 <= hi + 1);
            self.starts.iter().skip(after).for_each(|&(start, value)| out.push(start, value));
        }
        out
    }

    /// This function, but for single addresses, which are sorted.
    pub(super) fn with_points(&self, points: impl IntoIterator<Item = (u128, T)>) -> Segments<T> {
        let mut out = Segments { starts: Vec::with_capacity(self.starts.len()), max: self.max };
        let mut rest = self.starts.iter().copied().peekable();
        for (addr, value) in points {
            while let Some((start, value)) = rest.next_if(|s| s.0 < addr) {
                out.push(start, value);
            }
            rest.next_if(|s| s.0 == addr);
            out.push(addr, value);
            // The stretch goes on behind the point.
            if addr < self.max && rest.peek().is_none_or(|s| s.0 > addr + 1) {
                out.push(addr + 1, self.at(addr + 1));
            }
        }
        rest.for_each(|(start, value)| out.push(start, value));
        out
    }

    /// Adds a stretch that begins at or behind the last one's start; at the same start it takes its place.
    fn push(&mut self, start: u128, value: T) {
        self.starts.pop_if(|last| last.0 == start);
        if self.starts.last().is_none_or(|last| last.1 != value) {
            self.starts.push((start, value));
        }
    }

    /// For each value but the one with the most addresses: its addresses, short stretches address by address.
    pub(super) fn constants(&self) -> Vec<Parts> {
        let mut found: BTreeMap<T, (u128, Parts)> = BTreeMap::new();
        for (lo, hi, value) in self.iter() {
            let (size, (singles, ranges)) = found.entry(value).or_default();
            *size = size.saturating_add(hi - lo).saturating_add(1);
            if hi - lo < SHORT { singles.extend(lo..=hi) } else { ranges.push((lo, hi)) }
        }
        let rest = found.iter().max_by_key(|(_, (size, _))| *size).map(|(value, _)| *value);
        let others = found.into_iter().filter(|(value, _)| Some(*value) != rest);
        others.map(|(_, (_, parts))| parts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_keeps_what_is_around() {
        let base = Segments::constant('a', 255);
        let inner = Segments::constant('b', 255).replace(10, 10, &Segments::constant('c', 255));
        let all = base.replace(8, 15, &inner);
        let list: Vec<_> = all.iter().collect();
        assert_eq!(list, [(0, 7, 'a'), (8, 9, 'b'), (10, 10, 'c'), (11, 15, 'b'), (16, 255, 'a')]);
        assert_eq!(all.replace(0, 255, &base), base);
        let ends = base.replace(0, 0, &inner).replace(255, 255, &inner);
        assert_eq!(ends.iter().collect::<Vec<_>>(), [(0, 0, 'b'), (1, 254, 'a'), (255, 255, 'b')]);
        for addr in 0..=255 {
            let expected = if (8..=15).contains(&addr) { inner.at(addr) } else { 'a' };
            assert_eq!(all.at(addr), expected);
        }
    }

    #[test]
    fn points_are_the_same_as_ranges_of_one() {
        let base = Segments::constant('a', 31).replace(4, 7, &Segments::constant('b', 31));
        for set in 0_u32..1 << 12 {
            let points: Vec<u128> = (0..12).filter(|i| set >> i & 1 == 1).collect();
            let value = |addr: u128| if addr.is_multiple_of(3) { 'b' } else { 'c' };
            let mut slow = base.clone();
            for &p in &points {
                slow = slow.replace(p, p, &Segments::constant(value(p), 31));
            }
            assert_eq!(base.with_points(points.iter().map(|&p| (p, value(p)))), slow, "{points:?}");
        }
        assert_eq!(base.with_points([(31, 'c')]).at(31), 'c');
    }

    #[test]
    fn constants_leave_out_the_largest_part_alone() {
        let base = Segments::constant(0, 255).replace(10, 10, &Segments::constant(1, 255));
        let base = base.replace(64, 127, &Segments::constant(2, 255));
        assert_eq!(base.constants(), [(vec![10], vec![]), (vec![], vec![(64, 127)])]);
    }
}
