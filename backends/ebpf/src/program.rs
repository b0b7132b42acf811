//! The program: the same for every node and every policy, one for each way to treat established connections. What
//! policies say is in the maps ([`crate::layout`]).
//!
//! It is of type netfilter and stands at the FORWARD hook, once for IPv4 and once for IPv6: after DNAT, so that a
//! Service is judged by the pod behind it. Addresses and ports come from the connection's entry, not from the packet:
//! source of the original tuple (before any SNAT) and source of the reply tuple (the true destination, after DNAT).
//! Headers of a new or established packet are not read at all.
//!
//! 1. `keep` only: what belongs to a connection that passed, or is an error about one, passes.
//! 2. Without an entry: neighbour discovery of the link passes; else the addresses are read from the header.
//! 3. Both addresses are looked up: `pods4` or `pods6`, then `blocks`.
//! 4. A packet that is new or without an entry must have, from the interface of a local pod, an address of that pod, and from
//!    another interface none of a local pod.
//! 5. Where neither end is an isolated pod of this node, everything passes.
//! 6. Without an entry (invalid, untracked): dropped. A TCP connection that did not begin with a SYN: dropped; conntrack
//!    picks such connections up (`nf_conntrack_tcp_loose`), in a state other than `TCP_CONNTRACK_SYN_SENT`. An SCTP
//!    association that did not begin with an INIT: dropped; conntrack takes other chunks for a begin, too, and notes where an
//!    INIT came from (`sctp_new` and `nf_conntrack_sctp_packet`, net/netfilter/nf_conntrack_proto_sctp.c).
//! 7. A pod reaches itself. Else the source's egress row and the destination's ingress row must both allow it.
//! 8. `cut` only: what conntrack expected of a connection (`IPS_EXPECTED`, as an FTP data connection) passes once it is
//!    not new, as it does with `keep`.
//!
//! A packet that a row denies is counted in `denied` before it is dropped; what passes, and what is dropped for another
//! reason, costs no counter.
//!
//! Verdicts are `NF_ACCEPT` and `NF_DROP`; the kernel takes no others from this type.

use crate::asm::{Assembled, Assembler, Field, Label};
use crate::contents::Established;
use crate::insn::{AluOp, Cond, Reg, Size};
use crate::layout::{ALL_PORTS, BITMAP_BYTES, FIRST_BITMAP, Map, NO_PORTS, ONE_PORT, SHARED};
use Reg as R;
use netpolc_bundle::bpf::TUPLES_APART;

/// `NF_DROP`, include/uapi/linux/netfilter.h.
pub const NF_DROP: u64 = 0;
/// `NF_ACCEPT`, include/uapi/linux/netfilter.h.
pub const NF_ACCEPT: u64 = 1;

/// `struct bpf_nf_ctx`: the hook's state, then the packet (include/net/netfilter/nf_bpf_link.h).
pub const CTX_STATE: i16 = 0;
/// The packet in `struct bpf_nf_ctx`.
pub const CTX_SKB: i16 = 8;

/// `enum ip_conntrack_info`: the first packet of a connection, no reply seen.
pub const IP_CT_NEW: i32 = 2;
/// No entry of the connection table: the value of `_nfct` is at most this (`IP_CT_UNTRACKED`).
pub const IP_CT_UNTRACKED: i32 = 7;
/// `IPPROTO_TCP`.
pub const TCP: i32 = 6;
/// `TCP_CONNTRACK_SYN_SENT`, include/uapi/linux/netfilter/nf_conntrack_tcp.h.
pub const TCP_SYN_SENT: i32 = 1;
/// `IPPROTO_SCTP`.
pub const SCTP: i32 = 132;
/// `IPS_EXPECTED`, include/uapi/linux/netfilter/nf_conntrack_common.h.
pub const IPS_EXPECTED: i32 = 1;

/// Bytes of `struct nf_conntrack_tuple`: the same in every kernel since 2.6.20 (include/net/netfilter/nf_conntrack_tuple.h).
pub const TUPLE_BYTES: i32 = 40;
/// `tuple.src.u.all`: the port, in network order.
pub const TUPLE_PORT: i16 = 16;
/// `tuple.src.l3num`: `AF_INET` (2) or `AF_INET6` (10).
pub const TUPLE_FAMILY: i16 = 18;
/// `tuple.dst.protonum`.
pub const TUPLE_PROTOCOL: i16 = 38;

// The stack, by offset from the frame pointer. A block is prefix length, family and address: a key of `blocks`, and
// with the address alone one of `pods4` or `pods6`. Both tuples of a connection are read at once to where the blocks' addresses
// are; what lies between them there gives way to the second block's beginning.
const SRC: i16 = -104;
const DST: i16 = SRC + TUPLES_APART as i16;
const BLOCK_FAMILY: i16 = -4;
const BLOCK_LENGTH: i16 = -8;
/// What is known about the source: a value of `pods4` or `pods6`.
const SRC_POD: i16 = -128;
/// What is known about the destination.
const DST_POD: i16 = -144;
const HEADER: i16 = -192;
const KEY: i16 = -196;
const PORT: i16 = -208;
const WORD: i16 = -216;
/// The key in `pairs` of what was asked last: the one that denies, if one does.
const PAIR: i16 = -220;
/// The index of the interface that the packet came from.
const INTERFACE: i16 = -224;

// A value of `pods4` or `pods6`.
const COLUMN: i16 = 0;
const INGRESS: i16 = 4;
const EGRESS: i16 = 8;
const POD: i16 = 12;

/// In r8, instead of the state of a connection: there is no entry.
const NO_ENTRY: i32 = 8;

struct Ends {
    accept: Label,
    drop: Label,
    deny: Label,
}

/// The program for one way to treat established connections.
pub fn build(established: Established) -> Assembled {
    let mut asm = Assembler::default();
    let ends = Ends { accept: asm.label("accept"), drop: asm.label("drop"), deny: asm.label("deny") };
    let (headers, resolve) = (asm.label("headers"), asm.label("resolve"));
    connection(&mut asm, established, &ends, headers, resolve);
    asm.place(headers).note("no connection: addresses from the header");
    header(&mut asm, &ends);
    asm.place(resolve).note("who is the source");
    who(&mut asm, SRC, SRC_POD);
    asm.note("who is the destination");
    who(&mut asm, DST, DST_POD);
    spoofed(&mut asm, &ends);
    strange(&mut asm, &ends);
    asm.note("egress of the source");
    judge(&mut asm, &ends, SRC_POD + EGRESS, DST_POD + COLUMN);
    asm.note("ingress of the destination");
    judge(&mut asm, &ends, DST_POD + INGRESS, SRC_POD + COLUMN);
    finish(&mut asm, established, &ends);
    asm.finish(established.program().to_owned())
}

/// r6 = context, r7 = connection or packet, r8 = state, r9 = place of the protocol in a value of `pairs`.
fn connection(asm: &mut Assembler, established: Established, ends: &Ends, headers: Label, resolve: Label) {
    asm.note("the packet's connection").mov(R::R6, R::R1);
    // Here, where one path leads to, though not all need it: for each load through a pointer of the kernel's own types and
    // each path to it, the verifier looks through all names of types (`btf_nested_type_is_trusted`), which was most of what a
    // new version took.
    asm.load(Size::B8, R::R1, R::R6, CTX_STATE);
    asm.load_field(Size::B8, R::R1, R::R1, Field::StateIn);
    asm.load_field(Size::B4, R::R1, R::R1, Field::DeviceIndex);
    asm.store(Size::B4, R::FP, INTERFACE, R::R1);
    asm.load(Size::B8, R::R7, R::R6, CTX_SKB);
    asm.load_field(Size::B8, R::R1, R::R7, Field::SkbNfct);
    asm.branch(R::R1, Cond::Le, IP_CT_UNTRACKED, headers);
    asm.mov(R::R8, R::R1).alu(AluOp::And, R::R8, 7);
    if established == Established::Keep {
        asm.branch(R::R8, Cond::Ne, IP_CT_NEW, ends.accept);
    }
    asm.mov(R::R7, R::R1).alu(AluOp::And, R::R7, -8);
    asm.mov(R::R3, R::R7).add_field(R::R3, Field::CtOriginal);
    asm.probe_read(SRC, TUPLES_APART as i32 + TUPLE_BYTES).branch(R::R0, Cond::Ne, 0, ends.drop);
    asm.load(Size::B2, R::R1, R::FP, DST + TUPLE_PORT).be16(R::R1);
    asm.store(Size::B8, R::FP, PORT, R::R1);
    asm.load(Size::B1, R::R1, R::FP, SRC + TUPLE_PROTOCOL);
    let family = asm.label("family");
    for (place, number) in [(0, TCP), (4, 17), (8, SCTP)] {
        asm.mov(R::R9, place).branch(R::R1, Cond::Eq, number, family);
    }
    asm.mov(R::R9, 12);
    // A number that the verifier does not know is added and taken away. It would follow all that comes four times, once for
    // each value of r9; now it knows that this is a multiple of four below sixteen, whichever way it came.
    asm.place(family).load(Size::B2, R::R1, R::FP, SRC + TUPLE_PORT);
    asm.alu(AluOp::Add, R::R9, R::R1).alu(AluOp::Sub, R::R9, R::R1).alu(AluOp::And, R::R9, 12);
    asm.load(Size::B2, R::R1, R::FP, SRC + TUPLE_FAMILY).mov(R::R2, 4);
    let v4 = asm.label("v4");
    asm.branch(R::R1, Cond::Eq, 2, v4);
    asm.mov(R::R2, 6).branch(R::R1, Cond::Ne, 10, ends.drop);
    asm.place(v4);
    keys(asm);
    asm.goto(resolve);
}

/// Fills family (from r2) and prefix length of both blocks.
fn keys(asm: &mut Assembler) {
    asm.mov(R::R1, 160);
    for block in [SRC, DST] {
        asm.store(Size::B4, R::FP, block + BLOCK_FAMILY, R::R2);
        asm.store(Size::B4, R::FP, block + BLOCK_LENGTH, R::R1);
    }
}

/// Addresses from the IP header, which the kernel has made contiguous (`ip_rcv_core`, `ip6_rcv_core`).
fn header(asm: &mut Assembler, ends: &Ends) {
    let (v4, both) = (asm.label("v4"), asm.label("both"));
    asm.mov(R::R8, NO_ENTRY).mov(R::R9, 12);
    asm.load_field(Size::B8, R::R1, R::R7, Field::SkbHead);
    asm.load_field(Size::B2, R::R2, R::R7, Field::SkbNetworkHeader);
    asm.mov(R::R7, R::R1).alu(AluOp::Add, R::R7, R::R2);
    asm.mov(R::R3, R::R7).probe_read(HEADER, 20);
    asm.branch(R::R0, Cond::Ne, 0, ends.drop);
    asm.load(Size::B1, R::R1, R::FP, HEADER).alu(AluOp::Rsh, R::R1, 4);
    asm.branch(R::R1, Cond::Eq, 4, v4);
    asm.branch(R::R1, Cond::Ne, 6, ends.drop);
    asm.mov(R::R3, R::R7).probe_read(HEADER, 41);
    asm.branch(R::R0, Cond::Ne, 0, ends.drop);
    let no_nd = asm.label("no neighbour discovery");
    asm.load(Size::B1, R::R1, R::FP, HEADER + 6).branch(R::R1, Cond::Ne, 58, no_nd);
    // What a router has forwarded is none (RFC 4861, section 7.1). Types 133 to 137.
    asm.load(Size::B1, R::R1, R::FP, HEADER + 7).branch(R::R1, Cond::Ne, 255, no_nd);
    asm.load(Size::B1, R::R1, R::FP, HEADER + 40).alu(AluOp::Sub, R::R1, 133);
    asm.branch(R::R1, Cond::Le, 4, ends.accept).place(no_nd);
    for (block, at) in [(SRC, 8), (DST, 24)] {
        for half in [0, 8] {
            asm.load(Size::B8, R::R1, R::FP, HEADER + at + half);
            asm.store(Size::B8, R::FP, block + half, R::R1);
        }
    }
    asm.mov(R::R2, 6).goto(both).place(v4);
    asm.mov(R::R2, 0);
    for (block, at) in [(SRC, 12), (DST, 16)] {
        asm.load(Size::B4, R::R1, R::FP, HEADER + at);
        asm.store(Size::B8, R::FP, block, R::R1).store(Size::B8, R::FP, block + 8, R::R2);
    }
    asm.mov(R::R2, 4).place(both);
    keys(asm);
}

/// What is known about an address: the value of `pods4` or `pods6`, or the column of `blocks` alone.
fn who(asm: &mut Assembler, block: i16, pod: i16) {
    let (unbound, unknown, done) = (asm.label("unbound"), asm.label("unknown"), asm.label("done"));
    let (v4, found) = (asm.label("pods4"), asm.label("found"));
    asm.load(Size::B4, R::R1, R::FP, block + BLOCK_FAMILY).branch(R::R1, Cond::Eq, 4, v4);
    asm.lookup(Map::Pods6, block).goto(found).place(v4);
    asm.lookup(Map::Pods4, block).place(found).branch(R::R0, Cond::Eq, 0, unbound);
    for half in [0, 8] {
        asm.load(Size::B8, R::R1, R::R0, half).store(Size::B8, R::FP, pod + half, R::R1);
    }
    asm.goto(done).place(unbound);
    asm.mov(R::R1, 0).store(Size::B8, R::FP, pod, R::R1).store(Size::B8, R::FP, pod + 8, R::R1);
    asm.lookup(Map::Blocks, block + BLOCK_LENGTH).branch(R::R0, Cond::Eq, 0, unknown);
    asm.load(Size::B4, R::R1, R::R0, 0).store(Size::B4, R::FP, pod + COLUMN, R::R1);
    asm.place(unknown).place(done);
}

/// A new packet, or one without an entry, must come from where its source lives: from the pod's own interface, from one
/// that several pods share if it is a pod of this node, and from any other if it is not.
fn spoofed(asm: &mut Assembler, ends: &Ends) {
    let (honest, compare, asked) = (asm.label("honest"), asm.label("compare"), asm.label("asked"));
    asm.note("is the source the pod behind the interface").branch(R::R8, Cond::Eq, NO_ENTRY, asked);
    asm.branch(R::R8, Cond::Ne, IP_CT_NEW, honest).place(asked);
    asm.lookup(Map::Interfaces, INTERFACE);
    asm.load(Size::B4, R::R2, R::FP, SRC_POD + POD).mov(R::R1, 0);
    asm.branch(R::R0, Cond::Eq, 0, compare).load(Size::B4, R::R1, R::R0, 0);
    asm.branch(R::R1, Cond::Ne, SHARED as i32, compare);
    asm.branch(R::R2, Cond::Eq, 0, ends.drop).goto(honest).place(compare);
    asm.branch(R::R1, Cond::Ne, R::R2, ends.drop);
    asm.place(honest);
}

/// Nobody isolated: passes. What opens no connection: does not. The pod itself: passes.
fn strange(asm: &mut Assembler, ends: &Ends) {
    let opens = asm.label("opens");
    asm.note("is one of them isolated").load(Size::B4, R::R1, R::FP, SRC_POD + INGRESS);
    for off in [SRC_POD + EGRESS, DST_POD + INGRESS, DST_POD + EGRESS] {
        asm.load(Size::B4, R::R2, R::FP, off).alu(AluOp::Or, R::R1, R::R2);
    }
    asm.branch(R::R1, Cond::Eq, 0, ends.accept);
    asm.note("does it open a connection");
    asm.branch(R::R8, Cond::Eq, NO_ENTRY, ends.drop);
    asm.branch(R::R8, Cond::Ne, IP_CT_NEW, opens);
    // Not by r9: the verifier would know it from here on, and follow the rest for each value.
    let tcp = asm.label("tcp");
    asm.load(Size::B1, R::R1, R::FP, SRC + TUPLE_PROTOCOL).branch(R::R1, Cond::Eq, TCP, tcp);
    asm.branch(R::R1, Cond::Ne, SCTP, opens);
    asm.mov(R::R3, R::R7).add_field(R::R3, Field::CtSctpInit).probe_read(WORD, 1);
    asm.branch(R::R0, Cond::Ne, 0, ends.drop).load(Size::B1, R::R1, R::FP, WORD);
    asm.branch(R::R1, Cond::Eq, 0, ends.drop).goto(opens).place(tcp);
    asm.mov(R::R3, R::R7).add_field(R::R3, Field::CtTcpState).probe_read(WORD, 1);
    asm.branch(R::R0, Cond::Ne, 0, ends.drop);
    asm.load(Size::B1, R::R1, R::FP, WORD).branch(R::R1, Cond::Ne, TCP_SYN_SENT, ends.drop);
    asm.place(opens);
    let other = asm.label("other");
    asm.note("a pod reaches itself");
    asm.load(Size::B4, R::R1, R::FP, SRC_POD + POD).branch(R::R1, Cond::Eq, 0, other);
    asm.load(Size::B4, R::R2, R::FP, DST_POD + POD).branch(R::R1, Cond::Eq, R::R2, ends.accept);
    asm.place(other);
}

/// Whether the row at one offset allows the column at another.
fn judge(asm: &mut Assembler, ends: &Ends, row: i16, column: i16) {
    let done = asm.label("done");
    asm.load(Size::B4, R::R1, R::FP, row).branch(R::R1, Cond::Eq, 0, done);
    asm.load(Size::B4, R::R2, R::FP, column).alu(AluOp::Add, R::R1, R::R2).alu(AluOp::Sub, R::R1, 1);
    asm.store(Size::B4, R::FP, PAIR, R::R1).lookup(Map::Pairs, PAIR);
    asm.branch(R::R0, Cond::Eq, 0, ends.deny);
    asm.alu(AluOp::Add, R::R0, R::R9).load(Size::B4, R::R1, R::R0, 0);
    asm.branch(R::R1, Cond::Eq, ALL_PORTS as i32, done);
    asm.branch(R::R1, Cond::Eq, NO_PORTS as i32, ends.deny);
    asm.load(Size::B8, R::R2, R::FP, PORT).alu(AluOp::Add, R::R2, ONE_PORT as i32);
    asm.branch(R::R1, Cond::Eq, R::R2, done);
    asm.branch(R::R1, Cond::Gt, ONE_PORT as i32 - 1, ends.deny);
    asm.alu(AluOp::Sub, R::R1, FIRST_BITMAP as i32);
    asm.store(Size::B4, R::FP, KEY, R::R1).lookup(Map::Ports, KEY);
    asm.branch(R::R0, Cond::Eq, 0, ends.deny);
    asm.load(Size::B8, R::R1, R::FP, PORT).mov(R::R2, R::R1);
    asm.alu(AluOp::Rsh, R::R2, 3).alu(AluOp::And, R::R2, BITMAP_BYTES as i32 - 1);
    asm.alu(AluOp::Add, R::R0, R::R2).load(Size::B1, R::R2, R::R0, 0);
    asm.alu(AluOp::And, R::R1, 7).alu(AluOp::Rsh, R::R2, R::R1).alu(AluOp::And, R::R2, 1);
    asm.branch(R::R2, Cond::Eq, 0, ends.deny);
    asm.place(done);
}

fn finish(asm: &mut Assembler, established: Established, ends: &Ends) {
    asm.place(ends.accept).note("accept").mov(R::R0, NF_ACCEPT as i32).exit();
    asm.place(ends.deny).note("no policy allows it");
    let denied = asm.label("denied");
    if established == Established::Cut {
        asm.branch(R::R8, Cond::Eq, IP_CT_NEW, denied);
        asm.mov(R::R3, R::R7).add_field(R::R3, Field::CtStatus).probe_read(WORD, 8);
        asm.branch(R::R0, Cond::Ne, 0, denied);
        asm.load(Size::B8, R::R0, R::FP, WORD).alu(AluOp::And, R::R0, IPS_EXPECTED);
        asm.branch(R::R0, Cond::Eq, 0, denied).exit();
    }
    asm.place(denied).note("count what is denied");
    asm.lookup(Map::Denied, PAIR).branch(R::R0, Cond::Eq, 0, ends.drop);
    asm.mov(R::R1, 1).atomic_add(R::R0, 0, R::R1);
    asm.place(ends.drop).note("drop").mov(R::R0, NF_DROP as i32).exit();
}
