//! Every limit of the artifact format, with where it comes from.
//!
//! There are two kinds. Limits of the kernel and of nft are facts: what is beyond them could not be loaded. The others
//! are ours: they bound the memory and the time that a hostile bundle can cost a privileged loader, and stand far above
//! what a node needs (the API server itself keeps no object above 1.5 MiB, a node runs some hundreds of pods).

/// Most bytes of `manifest.json`. Ours: it holds a handful of names and figures.
pub const MANIFEST_BYTES: u64 = 1 << 20;

/// Most bytes of `nftables.nft`. Ours: a million IPv6 addresses take 41 MB.
pub const SCRIPT_BYTES: u64 = 64 << 20;

/// Most bytes of `bindings.json`. Ours: the pods of one node.
pub const BINDINGS_BYTES: u64 = 16 << 20;

/// Most bytes of `provenance.json`. Ours.
pub const PROVENANCE_BYTES: u64 = 64 << 20;

/// Most bytes of `policies.json`. Ours.
pub const POLICIES_BYTES: u64 = 64 << 20;

/// Most elements of all sets and maps of a script. Ours: nftables takes 11-14 MB of kernel memory for 100,000.
pub const ELEMENTS: usize = 2_000_000;

/// Most rules of a script. Ours.
pub const RULES: usize = 1_000_000;

/// Most chains of a script, and most sets and maps. Ours.
pub const OBJECTS: usize = 200_000;

/// Most matches of one rule. Ours: a rule of the kernel holds 128 expressions (`NFT_RULE_MAXEXPRS`,
/// `net/netfilter/nf_tables_api.c`), and no match of ours takes more than seven.
pub const MATCHES: usize = 16;

/// Most fields of a concatenation. Ours; the kernel takes 16 registers of 4 bytes (`NFT_REG32_COUNT`,
/// `include/uapi/linux/netfilter/nf_tables.h`), which is four IPv6 addresses.
pub const FIELDS: usize = 5;

/// Most bytes of the name of a chain, set or map: `NFT_NAME_MAXLEN` (256) counts the closing zero
/// (`include/uapi/linux/netfilter/nf_tables.h`).
pub const NAME_BYTES: usize = 255;

/// Most bytes of a comment: nft takes 128 and refuses 129 (`NFTNL_UDATA_COMMENT_MAXLEN`,
/// `include/datatype.h` and `src/parser_bison.y` of nftables).
pub const COMMENT_BYTES: usize = 128;

/// Most bytes of an interface's name: `IFNAMSIZ` (16) counts the closing zero (`include/uapi/linux/if.h`).
pub const IFNAME_BYTES: usize = 15;

/// Most chains on one way through the rules, the base chain included; jump and goto both count: `NFT_JUMP_STACK_SIZE`
/// (`include/net/netfilter/nf_tables.h`), tested by `nft_chain_validate` in `net/netfilter/nf_tables_api.c`.
pub const CHAIN_DEPTH: usize = 16;

/// Most bytes of a node's or pod's name in a bundle: a namespace (63), a slash and a name (253), by RFC 1123 as
/// Kubernetes applies it (`k8s.io/apimachinery/pkg/util/validation`).
pub const OBJECT_NAME_BYTES: usize = 63 + 1 + 253;

/// Most addresses of one pod or node. Ours: Kubernetes gives one for each family; a node may have more interfaces.
pub const ADDRESSES: usize = 256;

/// Most pods of one node. Ours: the kubelet's own default is 110, a /16 for a single node holds 65,536.
pub const LOCAL_PODS: usize = 65_536;

/// Most entries of a table of figures in the manifest. Ours.
pub const FIGURES: usize = 256;

/// Most bytes of each of `iptables.rules`, `ip6tables.rules` and `ipset.rules`. Ours.
pub const IPT_BYTES: u64 = 64 << 20;

/// Most bytes of the name of a chain of iptables: `XT_EXTENSION_MAXNAMELEN` (29) counts the closing zero
/// (`include/uapi/linux/netfilter/x_tables.h`; iptables tests it in `assert_valid_chain_name`, `iptables/xshared.c`).
pub const IPT_CHAIN_BYTES: usize = 28;

/// Most bytes of a rule's comment: `XT_MAX_COMMENT_LEN` (256) counts the closing zero
/// (`include/uapi/linux/netfilter/xt_comment.h`).
pub const IPT_COMMENT_BYTES: usize = 255;

/// Most bytes of a line of a file for `iptables-restore`: its buffer holds 10,240 with the closing zero
/// (`iptables/iptables-restore.c`).
pub const IPT_LINE_BYTES: usize = 10_239;

/// Most chains on one way through the rules below the built-in chain; `-j` and `-g` both count. iptables-nft builds
/// nftables chains, so [`CHAIN_DEPTH`] holds, and the built-in chain is one of them. iptables-legacy knows no limit.
pub const IPT_CHAIN_DEPTH: usize = CHAIN_DEPTH - 1;

/// Most bytes of the name of a set: `IPSET_MAXNAMELEN` (32) counts the closing zero
/// (`include/uapi/linux/netfilter/ipset/ip_set.h`).
pub const IPSET_NAME_BYTES: usize = 31;

/// Most sets: `IPSET_INVALID_ID` (65,535) is the first index that none can have
/// (`include/uapi/linux/netfilter/ipset/ip_set.h`). Kernels start with room for 256 and make more when it is used up.
pub const IPSETS: usize = 65_000;

/// Largest `hashsize` of a set: 8 MB of kernel memory for an empty set. Ours; the kernel takes 2^31.
pub const IPSET_HASHSIZE: u64 = 1 << 20;

/// Largest `maxelem` of a set. Ours; no memory is taken for elements that are not there.
pub const IPSET_MAXELEM: u64 = 1 << 24;

// eBPF.
// Kernel memory of a node's maps, in bytes: 56 for an IPv4 address and 64 for an IPv6 one (32 of element header, 8 or 16 of
// key, 16 of value; `struct htab_elem`), at most doubled twice, for room to grow and up to a power of two; about 64 for a
// prefix (`struct lpm_trie_node`, with one node between for each); 16 for a pair of profile and column (8 of verdict, 8 of
// counter); 8,192 for a set of ports.

/// Addresses in the maps of pods: at most 200 MB of kernel memory.
pub const BPF_PODS: usize = 1 << 20;

/// Prefixes in the map of blocks: 32 MB of kernel memory.
pub const BPF_BLOCKS: usize = 1 << 18;

/// Pairs of a profile and a column: 96 MiB of kernel memory.
pub const BPF_PAIRS: usize = 1 << 22;

/// Distinct sets of ports that have a bitmap: 32 MiB of kernel memory.
pub const BPF_PORT_SETS: usize = 1 << 12;

/// Interfaces of local pods, for the check of spoofed sources.
pub const BPF_INTERFACES: u32 = 1 << 12;

/// The smallest size of each map of pods, so that a few more never need a new map.
pub const BPF_PODS_ROOM: u32 = 1 << 10;

/// Bytes of an object that is read back. Ours have less than 8 KiB.
pub const BPF_OBJECT_BYTES: u64 = 1 << 20;

/// Bytes of a contents file that is read back. The largest plan within the limits above needs less.
pub const BPF_CONTENTS_BYTES: u64 = 1 << 29;

/// Instructions that a program of ours may have (the kernel's limit is 1,000,000: `BPF_COMPLEXITY_LIMIT_INSNS`).
pub const BPF_INSTRUCTIONS: usize = 1 << 14;
