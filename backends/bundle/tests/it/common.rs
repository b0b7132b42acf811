//! What the tests share: sample scripts, a bundle, seeded random numbers.

use netpolc_bundle::{Artifacts, Bindings, Bundle, LocalPod, Origin, Parts, Provenance, nft};
use std::collections::BTreeMap;

pub(crate) const SHAPE: &str = include_str!("data/shape.nft");
pub(crate) const SHAPE6: &str = include_str!("data/shape6.nft");

/// A script for both families whose markers are right.
pub(crate) fn script() -> String {
    let text = format!("{SHAPE}{SHAPE6}");
    let version = nft::digest(&nft::parse(&text).unwrap());
    text.replace("version_0123456789abcdef", &nft::marker(version))
}

pub(crate) fn bundle() -> Bundle {
    let pod = LocalPod { name: "shop/db".into(), addresses: vec!["10.0.0.1".parse().unwrap()] };
    let origin = Origin { policy: "shop/db-test".into(), file: "p.yaml".into(), line: 12, column: 3 };
    Bundle::new(Parts {
        compiler: "0.1.0".into(),
        node: "node-1".into(),
        node_addresses: vec!["192.0.2.1".parse().unwrap()],
        counts: BTreeMap::from([("sets".into(), 5)]),
        proof: BTreeMap::from([("flows".into(), 9)]),
        artifacts: Artifacts { nftables: Some(script()), ..Artifacts::default() },
        bindings: Bindings { pods: vec![pod] },
        provenance: Provenance::new([("pods_5a5a".to_owned(), vec![&origin])]),
        policies: Some("list\n".to_owned()),
    })
    .unwrap()
}

/// Steele, Lea and Flood's SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Changes some bytes: replaced, inserted, removed, a stretch doubled or cut.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            let end = (at + self.below(40)).min(bytes.len());
            let other = self.below(bytes.len());
            match self.below(7) {
                0 => bytes[at] = self.next() as u8,
                1 => bytes.insert(at, b"{}\n;\",:#@ 09-/.!="[self.below(17)]),
                2 => drop(bytes.remove(at)),
                3 => drop(bytes.drain(at..end)),
                4 => {
                    let part = bytes[at..end].to_vec();
                    bytes.splice(other..other, part);
                }
                5 => bytes.truncate(at),
                _ => bytes[at] = bytes[other],
            }
        }
    }
}
