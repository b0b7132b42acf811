//! Packets of the proof as rules see them.

use netpolc_bundle::ipt::run::{self, State};
use netpolc_ir::proof::{Conn, Packet};

/// The packet as it crosses `PREROUTING` and `FORWARD`. `local` says whether its source is a pod of the node.
pub(super) fn at_forward(packet: &Packet, local: bool) -> run::Packet {
    run::Packet {
        src: packet.flow.src,
        dst: packet.flow.dst,
        protocol: packet.flow.protocol.number(),
        dport: packet.flow.port,
        state: match packet.conn {
            Conn::New => State::New,
            Conn::Established => State::Established,
            Conn::Related => State::Related,
            Conn::Untracked => State::Untracked,
        },
        opens: packet.opens,
        spoofed: packet.spoofed,
        asymmetric: packet.asymmetric,
        from_pod: local && !packet.spoofed && !packet.asymmetric,
        neighbour_discovery: packet.neighbour_discovery,
    }
}
