//! The fields of the kernel's structures that programs read.

/// A field of a structure of the kernel whose place differs between kernels: the loader finds it (CO-RE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `sk_buff._nfct`: the packet's entry of the connection table, and its state in the low three bits.
    SkbNfct,
    /// `sk_buff.head`: where the packet's buffer starts.
    SkbHead,
    /// `sk_buff.network_header`: where in it the IP header starts.
    SkbNetworkHeader,
    /// `nf_conn.tuplehash[0].tuple`: the connection as its first packet came.
    CtOriginal,
    /// `nf_conn.tuplehash[1].tuple`: the connection as replies come, its source is the true destination. Programs read it
    /// together with the original tuple, [`TUPLES_APART`] from there.
    CtReply,
    /// `nf_conn.status`.
    CtStatus,
    /// `nf_conn.proto.tcp.state`.
    CtTcpState,
    /// `nf_conn.proto.sctp.init[0]`: whether the last INIT came from who opened the association (Linux 6.6).
    CtSctpInit,
    /// `nf_hook_state.in`: the interface that the packet came from.
    StateIn,
    /// `net_device.ifindex`.
    DeviceIndex,
}

/// Bytes from the original tuple to the reply tuple: a node of a list (16) stands before each tuple (40), `struct
/// nf_conntrack_tuple_hash` in include/net/netfilter/nf_conntrack_tuple.h.
pub const TUPLES_APART: u32 = 56;

/// Whether a kernel has the tuples of a connection where programs read them.
pub fn tuples_together(offset: impl Fn(Field) -> Option<u32>) -> bool {
    match (offset(Field::CtOriginal), offset(Field::CtReply)) {
        (Some(original), Some(reply)) => original.checked_add(TUPLES_APART) == Some(reply),
        _ => false,
    }
}

impl Field {
    /// All, in order.
    pub const ALL: [Field; 10] = [
        Field::SkbNfct,
        Field::SkbHead,
        Field::SkbNetworkHeader,
        Field::CtOriginal,
        Field::CtReply,
        Field::CtStatus,
        Field::CtTcpState,
        Field::CtSctpInit,
        Field::StateIn,
        Field::DeviceIndex,
    ];

    /// The path from the structure to the field.
    pub const fn path(self) -> &'static str {
        match self {
            Field::SkbNfct => "sk_buff._nfct",
            Field::SkbHead => "sk_buff.head",
            Field::SkbNetworkHeader => "sk_buff.network_header",
            Field::CtOriginal => "nf_conn.tuplehash[0].tuple",
            Field::CtReply => "nf_conn.tuplehash[1].tuple",
            Field::CtStatus => "nf_conn.status",
            Field::CtTcpState => "nf_conn.proto.tcp.state",
            Field::CtSctpInit => "nf_conn.proto.sctp.init[0]",
            Field::StateIn => "nf_hook_state.in",
            Field::DeviceIndex => "net_device.ifindex",
        }
    }

    /// The field with this path.
    pub fn from_path(path: &str) -> Option<Field> {
        Field::ALL.into_iter().find(|f| f.path() == path)
    }
}
