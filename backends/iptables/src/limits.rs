//! Limits of iptables and ipset, each with its source, and the figures that shape the rules.

pub use netpolc_bundle::limits::{IPSET_HASHSIZE, IPSET_MAXELEM, IPSETS, IPT_CHAIN_DEPTH, IPT_COMMENT_BYTES};

/// Elements of one set. `maxelem` is 65,536 where nobody says otherwise (`IPSET_DEFAULT_MAXELEM`,
/// `net/netfilter/ipset/ip_set_hash_gen.h`), so the artifact always says it.
pub const SET_ELEMENTS: usize = 1 << 20;

/// Elements of all sets of a node together. Ours.
pub const TOTAL_ELEMENTS: usize = 1_900_000;

/// Rules of a node. Ours: iptables-nft-restore takes 1 s for 50,000, the legacy one 0.4 s.
pub const RULES: usize = 900_000;

/// Chains and sets of a node. Ours.
pub const OBJECTS: usize = 190_000;

/// Items that are tested one after the other in one chain: a rule that does not match costs 8-10 ns, going to another
/// chain 22 ns, a set lookup 118-143 ns.
pub const LEAF: usize = 4;

/// Branches of a chain of a tree. More are used only where the tree would get deeper than it may.
pub const FAN: usize = 4;

/// Depth of the tree from a pod's address to its profile. With [`PORT_DEPTH`], [`PEER_DEPTH`], the entry, the profile and
/// `NETPOLC-DENY` it makes up [`IPT_CHAIN_DEPTH`].
pub const POD_DEPTH: u32 = 4;

/// Depth of the tree from a port to its peers.
pub const PORT_DEPTH: u32 = 3;

/// Depth of the tree of peers, where there are no sets.
pub const PEER_DEPTH: u32 = 5;

const _: () = assert!(POD_DEPTH + PORT_DEPTH + PEER_DEPTH + 3 <= IPT_CHAIN_DEPTH as u32);
