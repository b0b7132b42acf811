//! A packet as the kernel shows it to the program: `struct bpf_nf_ctx` and what hangs from it.

use super::Field;
use crate::program::{CTX_SKB, CTX_STATE, TCP_SYN_SENT, TUPLE_FAMILY, TUPLE_PORT, TUPLE_PROTOCOL};
use netpolc_ir::ports::Protocol;
use netpolc_ir::unit::Flow;
use std::net::IpAddr;

/// What conntrack knows about a packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    /// Nothing; the value of `_nfct`: 0, or 7 for "untracked".
    None { nfct: u64 },
    /// A connection, and the packet's state in it (`enum ip_conntrack_info`). `begun`: it began with a SYN or an INIT.
    Connection { state: u64, begun: bool },
}

/// A packet, by the flow that opened its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) flow: Flow,
    pub(super) entry: Entry,
    /// The pod that the loader has noted for the interface that the packet came from.
    pub(super) interface: Option<u32>,
    pub(super) icmp_type: u8,
    /// The hop limit, where that is what a program may ask.
    pub(super) hops: u8,
}

/// Where memory of the stand-in begins: the region's number in the upper half of an address.
pub(super) mod region {
    pub(in super::super) const STACK: u64 = 1;
    pub(in super::super) const CTX: u64 = 2;
    pub(in super::super) const STATE: u64 = 3;
    pub(in super::super) const DEVICE: u64 = 4;
    pub(in super::super) const SKB: u64 = 5;
    pub(in super::super) const HEAD: u64 = 6;
    pub(in super::super) const CT: u64 = 7;
    pub(in super::super) const INTERFACE: u64 = 8;
    /// Values of maps: one region for each map from here on.
    pub(in super::super) const VALUES: u64 = 16;
    /// The values of [`Map::Denied`](crate::layout::Map::Denied): they can be added to, and not be read. A verdict that
    /// depends on a counter would not be one of the packet, so a program that reads one is at fault.
    pub(in super::super) const COUNTERS: u64 = VALUES + crate::layout::Map::Denied as u64;
    /// Maps themselves: one number for each; there is no memory.
    pub(in super::super) const MAPS: u64 = 32;

    /// The address of the first byte of a region.
    pub(in super::super) const fn base(region: u64) -> u64 {
        region << 32
    }
}

/// The index of the interface that packets come from.
const IFINDEX: u32 = 77;
/// Where in the buffer the IP header begins.
const NETWORK_HEADER: u16 = 30;

/// Where the stand-in has its fields: nowhere where the object's own types have them.
pub(super) const fn offset(field: Field) -> u32 {
    match field {
        Field::SkbNfct => 104,
        Field::SkbHead => 192,
        Field::SkbNetworkHeader => 180,
        Field::CtOriginal => 48,
        Field::CtReply => 104,
        Field::CtStatus => 152,
        Field::CtTcpState => 199,
        Field::CtSctpInit => 200,
        Field::StateIn => 16,
        Field::DeviceIndex => 20,
    }
}

/// The structures of one packet.
#[derive(Debug)]
pub(super) struct Kernel {
    ctx: [u8; 16],
    state: [u8; 32],
    device: [u8; 32],
    skb: [u8; 208],
    head: [u8; 128],
    ct: [u8; 208],
    interface: Option<[u8; 4]>,
}

impl Kernel {
    pub(super) fn new(case: &Case) -> Kernel {
        // Other bytes are not zero, so that reading them by mistake has consequences.
        let mut k = Kernel {
            ctx: [0xaa; 16],
            state: [0xaa; 32],
            device: [0xaa; 32],
            skb: [0xaa; 208],
            head: [0xaa; 128],
            ct: [0xaa; 208],
            interface: case.interface.map(u32::to_le_bytes),
        };
        put(&mut k.ctx, CTX_STATE as u32, &region::base(region::STATE).to_le_bytes());
        put(&mut k.ctx, CTX_SKB as u32, &region::base(region::SKB).to_le_bytes());
        put(&mut k.state, offset(Field::StateIn), &region::base(region::DEVICE).to_le_bytes());
        put(&mut k.device, offset(Field::DeviceIndex), &IFINDEX.to_le_bytes());
        put(&mut k.skb, offset(Field::SkbHead), &region::base(region::HEAD).to_le_bytes());
        put(&mut k.skb, offset(Field::SkbNetworkHeader), &NETWORK_HEADER.to_le_bytes());
        let nfct = match case.entry {
            Entry::None { nfct } => nfct,
            Entry::Connection { state, .. } => region::base(region::CT) | state,
        };
        put(&mut k.skb, offset(Field::SkbNfct), &nfct.to_le_bytes());
        match case.entry {
            Entry::None { .. } => header(&mut k.head, case),
            Entry::Connection { begun, .. } => connection(&mut k.ct, &case.flow, begun),
        }
        k
    }

    /// Makes the connection one that conntrack expected of another.
    #[cfg(test)]
    pub(super) fn expect(&mut self) {
        let status = 0x18e | crate::program::IPS_EXPECTED as u64;
        put(&mut self.ct, offset(Field::CtStatus), &status.to_le_bytes());
    }

    /// The bytes of a region.
    pub(super) fn region(&self, number: u64) -> Option<&[u8]> {
        match number {
            region::CTX => Some(&self.ctx),
            region::STATE => Some(&self.state),
            region::DEVICE => Some(&self.device),
            region::SKB => Some(&self.skb),
            region::HEAD => Some(&self.head),
            region::CT => Some(&self.ct),
            region::INTERFACE => self.interface.as_ref().map(|i| &i[..]),
            _ => None,
        }
    }

    /// Whether the loader has noted the pod of an interface.
    pub(super) fn has_interface(&self, key: &[u8]) -> bool {
        key == IFINDEX.to_le_bytes() && self.interface.is_some()
    }
}

fn put(memory: &mut [u8], at: u32, bytes: &[u8]) {
    if let Some(place) = memory.get_mut(at as usize..at as usize + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// The address as `union nf_inet_addr`.
fn inet(addr: IpAddr) -> [u8; 16] {
    let mut out = [0; 16];
    match addr {
        IpAddr::V4(a) => out[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => out = a.octets(),
    }
    out
}

/// An address that no flow has in the place where it is written: a Service before DNAT, a node after SNAT.
fn translated(addr: IpAddr) -> [u8; 16] {
    inet(addr).map(|b| b ^ 0x55)
}

/// The connection's entry: the original tuple goes to a Service, the reply tuple to the node.
fn connection(ct: &mut [u8], flow: &Flow, begun: bool) {
    let number = flow.protocol.number();
    let family: u16 = if flow.src.is_ipv4() { 2 } else { 10 };
    let client: u16 = 40_001;
    let tuples = [
        (Field::CtOriginal, inet(flow.src), client, translated(flow.dst), !flow.port, 0u8),
        (Field::CtReply, inet(flow.dst), flow.port, translated(flow.src), client, 1),
    ];
    for (field, src, sport, dst, dport, direction) in tuples {
        let at = offset(field);
        put(ct, at, &src);
        put(ct, at + TUPLE_PORT as u32, &sport.to_be_bytes());
        put(ct, at + TUPLE_FAMILY as u32, &family.to_le_bytes());
        put(ct, at + 20, &dst);
        put(ct, at + 36, &dport.to_be_bytes());
        put(ct, at + TUPLE_PROTOCOL as u32, &[number, direction]);
    }
    // IPS_CONFIRMED and others, without IPS_EXPECTED; TCP_CONNTRACK_ESTABLISHED is 3.
    put(ct, offset(Field::CtStatus), &0x18eu64.to_le_bytes());
    let tcp = if begun { TCP_SYN_SENT as u8 } else { 3 };
    // In the kernel the fields of the two protocols share their place.
    match flow.protocol {
        Protocol::SCTP => put(ct, offset(Field::CtSctpInit), &[u8::from(begun)]),
        _ => put(ct, offset(Field::CtTcpState), &[tcp]),
    }
}

fn header(head: &mut [u8], case: &Case) {
    let at = u32::from(NETWORK_HEADER);
    let flow = &case.flow;
    match (flow.src, flow.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            put(head, at, &[0x45]);
            put(head, at + 9, &[flow.protocol.number()]);
            put(head, at + 12, &src.octets());
            put(head, at + 16, &dst.octets());
            put(head, at + 20, &case.icmp_type.to_be_bytes());
        }
        (src, dst) => {
            put(head, at, &[0x60]);
            put(head, at + 6, &[flow.protocol.number(), case.hops]);
            put(head, at + 8, &inet(src));
            put(head, at + 24, &inet(dst));
            put(head, at + 40, &case.icmp_type.to_be_bytes());
        }
    }
}
