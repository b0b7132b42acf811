//! A packet of the proof as the bundle's interpreter takes it.

use netpolc_bundle::nft::run::{self, State};
use netpolc_ir::proof::{Conn, Packet};

/// The packet at the forward hook.
pub(super) fn at_forward(packet: &Packet) -> run::Packet {
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
        from_pod: false,
        neighbour_discovery: packet.neighbour_discovery,
    }
}
