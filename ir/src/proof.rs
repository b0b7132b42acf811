//! The proof: an artifact, read back, against the meaning of the policies, for every packet that can cross a node.
//!
//! Addresses are grouped into *atoms*: addresses that neither the policies nor the artifact can tell apart (the same
//! group of the reference, the same membership in every set of the artifact, the same stretch between the bounds of
//! blocks). Ports are cut at every bound that either side names. On every atom and every stretch of ports both sides
//! are constant, so comparing one representative of each compares all packets; about one pod both are asked at the
//! stretches alone that begin at a port which matters to it. The reference answers for whole sets of
//! peers at once, and so does the artifact; what differs is reported as a [`Witness`], one concrete packet.
//!
//! Besides new connections the proof asks about the other kinds of packets: replies and related errors pass, what does
//! not open a connection (untracked, mid-stream) is dropped where it touches an isolated pod, what is spoofed is dropped
//! wherever it goes, neighbour discovery always passes.

mod atoms;
mod prove;

pub use atoms::{Atoms, Constants};
pub use prove::{Proof, Share, Witness, prove, prove_share};

use crate::addr::AddrSet;
use crate::bitset::BitSet;
use crate::ports::{Protocol, Transport};
use crate::unit::{Direction, Flow, Verdict};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;

/// What conntrack says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Conn {
    /// The first packet of a connection.
    New,
    /// Part of a connection.
    Established,
    /// An error about a connection.
    Related,
    /// It has no entry: conntrack cannot place the packet, or was told not to.
    Untracked,
}

/// A packet as it crosses a node's FORWARD hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Addresses, protocol and port.
    pub flow: Flow,
    /// Its state.
    pub conn: Conn,
    /// For TCP: whether it is a SYN without ACK, RST and FIN; for SCTP: whether its first chunk is INIT. True for others.
    pub opens: bool,
    /// Whether it came from a pod's interface with a source that is not that pod's address.
    pub spoofed: bool,
    /// Whether it came from an interface that is no pod's and not the way back to its source. Its source may be forged,
    /// or routes are asymmetric, which is no fault of the packet.
    pub asymmetric: bool,
    /// Whether it is IPv6 neighbour discovery that no router has forwarded: its hop limit is 255.
    pub neighbour_discovery: bool,
}

impl Packet {
    /// The packet that opens a connection.
    pub fn opening(flow: Flow) -> Packet {
        Packet {
            flow,
            conn: Conn::New,
            opens: true,
            spoofed: false,
            asymmetric: false,
            neighbour_discovery: false,
        }
    }
}

/// What sets a packet apart, other than its addresses and ports: where it comes from, and what it is to conntrack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It opens a connection, from where it should come from.
    Opening,
    /// It comes in on another interface than the one that leads back to its source, and that is no pod's.
    Asymmetric,
    /// It comes from a pod's interface with a source that is not that pod's.
    Spoofed,
    /// TCP or SCTP ([`Protocol::has_handshake`]), of no connection, and not its beginning.
    MidStream,
    /// The same, as [`Kind::Asymmetric`].
    MidStreamAsymmetric,
    /// The same, as [`Kind::Spoofed`].
    MidStreamSpoofed,
    /// Conntrack has no entry for it. For TCP and SCTP it looks like the beginning of a connection.
    Untracked,
    /// The same, but it does not look like a beginning.
    UntrackedMidStream,
    /// The same, as [`Kind::Asymmetric`].
    UntrackedAsymmetric,
    /// The same, as [`Kind::Spoofed`].
    UntrackedSpoofed,
    /// It is part of a connection.
    Established,
    /// IPv6 neighbour discovery of the link (hop limit 255). What of it was routed is [`Kind::Untracked`] as anything else is.
    NeighbourDiscovery,
}

impl Kind {
    /// All kinds, in order.
    pub const ALL: [Kind; 12] = [
        Kind::Opening,
        Kind::Asymmetric,
        Kind::Spoofed,
        Kind::MidStream,
        Kind::MidStreamAsymmetric,
        Kind::MidStreamSpoofed,
        Kind::Untracked,
        Kind::UntrackedMidStream,
        Kind::UntrackedAsymmetric,
        Kind::UntrackedSpoofed,
        Kind::Established,
        Kind::NeighbourDiscovery,
    ];

    /// How many kinds there are.
    pub const COUNT: usize = Kind::ALL.len();

    /// What conntrack says of such packets. Neighbour discovery it leaves alone (`nf_conntrack_icmpv6_error`,
    /// net/netfilter/nf_conntrack_proto_icmpv6.c).
    pub const fn conn(self) -> Conn {
        match self {
            Kind::Opening | Kind::Asymmetric | Kind::Spoofed => Conn::New,
            Kind::MidStream | Kind::MidStreamAsymmetric | Kind::MidStreamSpoofed => Conn::New,
            Kind::Established => Conn::Established,
            Kind::Untracked
            | Kind::UntrackedMidStream
            | Kind::UntrackedAsymmetric
            | Kind::UntrackedSpoofed
            | Kind::NeighbourDiscovery => Conn::Untracked,
        }
    }

    /// Whether they look like the beginning of a connection, as all do of protocols without a handshake.
    pub const fn opens(self) -> bool {
        match self {
            Kind::Opening | Kind::Asymmetric | Kind::Spoofed | Kind::Untracked => true,
            Kind::MidStream | Kind::MidStreamAsymmetric | Kind::MidStreamSpoofed => false,
            Kind::UntrackedMidStream | Kind::UntrackedAsymmetric | Kind::UntrackedSpoofed => false,
            Kind::Established => false,
            Kind::NeighbourDiscovery => true,
        }
    }

    /// Whether they come from a pod's interface with a source that is not that pod's.
    pub const fn spoofed(self) -> bool {
        matches!(self, Kind::Spoofed | Kind::MidStreamSpoofed | Kind::UntrackedSpoofed)
    }

    /// Whether they come from an interface that is no pod's and not the way back to their source.
    pub const fn asymmetric(self) -> bool {
        matches!(self, Kind::Asymmetric | Kind::MidStreamAsymmetric | Kind::UntrackedAsymmetric)
    }

    /// Whether packets of a protocol can be of this kind.
    pub fn is_of(self, protocol: Protocol) -> bool {
        match self {
            Kind::MidStream
            | Kind::MidStreamAsymmetric
            | Kind::MidStreamSpoofed
            | Kind::UntrackedMidStream => protocol.has_handshake(),
            Kind::NeighbourDiscovery => protocol == Protocol::ICMPV6,
            _ => true,
        }
    }

    /// A packet of this kind.
    pub fn packet(self, flow: Flow) -> Packet {
        Packet {
            flow,
            conn: self.conn(),
            opens: self.opens() || !flow.protocol.has_handshake() && self.conn() != Conn::Established,
            spoofed: self.spoofed(),
            asymmetric: self.asymmetric(),
            neighbour_discovery: self == Kind::NeighbourDiscovery,
        }
    }
}

impl std::fmt::Display for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.flow)?;
        match self.conn {
            Conn::New if self.opens => {}
            Conn::New => f.write_str(" (mid-stream)")?,
            Conn::Established => f.write_str(" (established)")?,
            Conn::Related => f.write_str(" (related)")?,
            Conn::Untracked if self.opens => f.write_str(" (untracked)")?,
            Conn::Untracked => f.write_str(" (untracked, mid-stream)")?,
        }
        if self.spoofed {
            f.write_str(" (spoofed)")?;
        }
        if self.asymmetric {
            f.write_str(" (asymmetric)")?;
        }
        if self.neighbour_discovery {
            f.write_str(" (neighbour discovery)")?;
        }
        Ok(())
    }
}

/// Who a subject may talk to, for one direction, protocol and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permitted {
    /// Which groups of bound addresses.
    pub groups: BitSet,
    /// Which addresses that no endpoint has.
    pub unbound: AddrSet,
}

/// The meaning of the policies, asked for whole sets of peers at once.
pub trait Reference {
    /// How many groups of endpoint addresses there are. The reference never tells addresses of one group apart.
    fn groups(&self) -> usize;
    /// Every endpoint address with its group, and whether it lives on the node in question.
    fn endpoints(&self, node: &str) -> Vec<(IpAddr, usize, bool)>;
    /// Sets of endpoint addresses of one node that are the same pod (only pods with several addresses).
    fn same_pod(&self, node: &str) -> Vec<Vec<IpAddr>>;
    /// The node's own addresses.
    fn node_addresses(&self, node: &str) -> Vec<IpAddr>;
    /// Who a group may talk to; `None` = everyone. Constant between the bounds of [`Reference::constants`].
    fn permits(
        &self,
        group: usize,
        direction: Direction,
        protocol: Protocol,
        port: u16,
    ) -> Option<Rc<Permitted>>;
    /// Whether packets that do not open a connection must be dropped (`true`: a NetworkPolicy isolates the group) or
    /// must pass (`false`: no policy selects it); `None` where either will do.
    fn isolated(&self, group: usize) -> Option<bool>;
    /// The addresses and ports where answers may change.
    fn constants(&self) -> &Bounds;
    /// The ports where the answers about one group in one direction may change; all of [`Reference::constants`] if that is
    /// not known.
    fn ports(&self, _group: usize, _direction: Direction) -> Cow<'_, Bounds> {
        Cow::Borrowed(self.constants())
    }
}

/// Where answers may change: addresses by family (numbers in host order) and first ports by transport.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bounds {
    /// First addresses of stretches, IPv4 then IPv6.
    pub addrs: [BTreeSet<u128>; 2],
    /// First ports of stretches, in the order of [`Transport::ALL`].
    pub ports: [BTreeSet<u16>; 3],
    /// Protocols without ports that are named.
    pub protocols: BTreeSet<u8>,
}

impl Bounds {
    /// Adds both bounds of a stretch of ports.
    pub fn add_ports(&mut self, transport: Transport, lo: u16, hi: u16) {
        let starts = &mut self.ports[transport as usize];
        starts.insert(lo);
        starts.extend(hi.checked_add(1));
    }

    /// Adds the ports of other bounds.
    pub fn extend_ports(&mut self, other: &Bounds) {
        for (ports, more) in self.ports.iter_mut().zip(&other.ports) {
            ports.extend(more);
        }
    }

    /// Adds both bounds of a stretch of addresses.
    pub fn add_addrs(&mut self, family: crate::addr::Family, lo: u128, hi: u128) {
        let starts = &mut self.addrs[family as usize];
        starts.insert(lo);
        if hi < family.max() {
            starts.insert(hi + 1);
        }
    }
}

/// An artifact that was read back from its bytes.
pub trait Artifact {
    /// The addresses that the artifact names.
    fn addresses(&self, family: crate::addr::Family) -> Constants;
    /// The ports and protocols that the artifact names.
    fn ports(&self) -> Bounds;
    /// The ports of [`Artifact::ports`] where answers about an address of the node may change, for the atoms that were begun
    /// with: about what it gets, and what it sends to addresses that are none of this node's. `None` if that is not known.
    fn ports_of(&mut self, _atoms: &Atoms, _local: IpAddr) -> Option<Rc<Bounds>> {
        None
    }
    /// Gets ready for questions about these atoms; whatever was remembered about others is forgotten.
    fn begin(&mut self, atoms: &Atoms);
    /// For the atoms that were begun with: which of them may open a connection to `local` (ingress) or be reached from it (egress). `local`
    /// itself may be in an atom; what is said about it there is not asked for.
    fn permitted(
        &mut self,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        protocol: Protocol,
        port: u16,
    ) -> BitSet;
    /// As [`Artifact::permitted`], for packets of another kind. `None`: this artifact is asked packet by packet instead.
    fn permitted_kind(
        &mut self,
        _atoms: &Atoms,
        _local: IpAddr,
        _direction: Direction,
        _kind: Kind,
        _protocol: Protocol,
        _port: u16,
    ) -> Option<BitSet> {
        None
    }
    /// Whether what is said about an address follows from its atom, so that one address speaks for all of its atom as
    /// `local` too. What is said about packets from an address to itself need not.
    fn goes_by_atoms(&self) -> bool {
        true
    }
    /// What happens to one packet.
    fn decide(&self, packet: &Packet) -> Verdict;
    /// The same, for one of many packets: an artifact may answer for all that it cannot tell apart at once.
    fn decide_alike(&mut self, packet: &Packet) -> Verdict {
        self.decide(packet)
    }
}
