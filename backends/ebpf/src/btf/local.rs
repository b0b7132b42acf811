//! The types of our object: the fields of the kernel's structures that the program reads, as we assume them before
//! relocation, and the maps.

use super::write::Types;
use crate::asm::Field;
use crate::layout::Map;
use netpolc_bundle::bpf::TUPLES_APART;

/// The types, and what refers to them.
pub(crate) struct Local {
    pub(crate) types: Types,
    /// For each field, the id of the structure that its path begins with, and the path as member numbers.
    pub(crate) fields: Vec<(Field, u32, &'static str)>,
    /// The id of the program's function.
    pub(crate) function: u32,
}

/// Bytes of a map's definition: type, key size, value size, entries and flags, each a pointer.
pub(crate) const DEFINITION_BYTES: u32 = 40;

/// Where a field is in our own types, in bytes from the beginning of its structure.
pub const fn local_offset(field: Field) -> u32 {
    match field {
        Field::SkbNfct | Field::StateIn | Field::DeviceIndex => 0,
        Field::SkbHead => 8,
        Field::SkbNetworkHeader | Field::CtOriginal => 16,
        Field::CtReply => 16 + TUPLES_APART,
        Field::CtStatus => 112,
        Field::CtTcpState | Field::CtSctpInit => 120,
    }
}

/// All types of an object. `room` says how many entries each map has.
pub(crate) fn local(name: &str, room: impl Fn(Map) -> u32) -> Local {
    let mut t = Types::new();
    let int = t.int("int", 4, true);
    let long = t.int("unsigned long", 8, false);
    let short = t.int("unsigned short", 2, false);
    let byte = t.int("unsigned char", 1, false);
    let bytes = t.pointer(byte);
    let skb =
        t.structure("sk_buff", 24, &[("_nfct", long, 0), ("head", bytes, 8), ("network_header", short, 16)]);
    let raw = t.array(byte, int, 40);
    let tuple = t.structure("nf_conntrack_tuple", 40, &[("bytes", raw, 0)]);
    let node = t.array(byte, int, 16);
    let hash =
        t.structure("nf_conntrack_tuple_hash", TUPLES_APART, &[("hnnode", node, 0), ("tuple", tuple, 16)]);
    let hashes = t.array(hash, int, 2);
    let tcp = t.structure("ip_ct_tcp", 8, &[("state", byte, 0)]);
    let inits = t.array(byte, int, 2);
    let sctp = t.structure("ip_ct_sctp", 8, &[("init", inits, 0)]);
    let proto = t.union("nf_conntrack_proto", 8, &[("tcp", tcp, 0), ("sctp", sctp, 0)]);
    let ct = t.structure(
        "nf_conn",
        128,
        &[("tuplehash", hashes, 0), ("status", long, 112), ("proto", proto, 120)],
    );
    let device = t.structure("net_device", 4, &[("ifindex", int, 0)]);
    let device_pointer = t.pointer(device);
    let state = t.structure("nf_hook_state", 8, &[("in", device_pointer, 0)]);
    let (state_pointer, skb_pointer) = (t.pointer(state), t.pointer(skb));
    let ctx = t.structure("bpf_nf_ctx", 16, &[("state", state_pointer, 0), ("skb", skb_pointer, 8)]);
    let ctx_pointer = t.pointer(ctx);
    let prototype = t.prototype(int, &[("ctx", ctx_pointer)]);
    let function = t.function(name, prototype);
    maps(&mut t, int, room);
    let fields = vec![
        (Field::SkbNfct, skb, "0:0"),
        (Field::SkbHead, skb, "0:1"),
        (Field::SkbNetworkHeader, skb, "0:2"),
        (Field::CtOriginal, ct, "0:0:0:1"),
        (Field::CtReply, ct, "0:0:1:1"),
        (Field::CtStatus, ct, "0:1"),
        (Field::CtTcpState, ct, "0:2:0:0"),
        (Field::CtSctpInit, ct, "0:2:1:0:0"),
        (Field::StateIn, state, "0:0"),
        (Field::DeviceIndex, device, "0:0"),
    ];
    Local { types: t, fields, function }
}

/// The definitions of maps, in the form of libbpf: each attribute is a pointer to an array of so many integers.
fn maps(t: &mut Types, int: u32, room: impl Fn(Map) -> u32) {
    let mut variables = Vec::new();
    for (map, at) in Map::ALL.into_iter().zip(0..) {
        let (kind, key, value) = map.shape();
        let attributes = [
            ("type", kind.number()),
            ("key_size", key),
            ("value_size", value),
            ("max_entries", room(map)),
            ("map_flags", kind.flags()),
        ];
        let members: Vec<(&str, u32, u32)> = attributes
            .into_iter()
            .zip(0..)
            .map(|((name, number), i)| {
                let array = t.array(int, int, number);
                (name, t.pointer(array), i * 8)
            })
            .collect();
        let definition = t.structure("", DEFINITION_BYTES, &members);
        let variable = t.variable(map.name(), definition);
        variables.push((variable, at * DEFINITION_BYTES, DEFINITION_BYTES));
    }
    t.section(".maps", &variables);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::Btf;

    /// The offsets that the program is assembled with are those of the types.
    #[test]
    fn offsets_are_those_of_the_types() {
        let local = local("test", |_| 1);
        let btf = Btf::parse(&local.types.finish()).unwrap();
        for (field, id, access) in &local.fields {
            assert_eq!(btf.access_path(*id, access).unwrap(), field.path());
            assert_eq!(btf.offset_of(field.path()), Some(local_offset(*field)), "{field:?}");
        }
        assert_eq!(local.fields.len(), Field::ALL.len());
    }

    /// What is read piece by piece says the same as what is read as a whole; what is cut off is refused.
    #[test]
    fn types_are_read_piece_by_piece() {
        let bytes = local("test", |_| 1).types.finish();
        let paths = Field::ALL.map(Field::path);
        let read = |bytes: &[u8]| Btf::for_paths(std::io::Cursor::new(bytes), &paths);
        let btf = read(&bytes).unwrap();
        for field in Field::ALL {
            assert_eq!(btf.offset_of(field.path()), Some(local_offset(field)), "{field:?}");
        }
        // What no path asked for is not there.
        assert_eq!(btf.offset_of("bpf_nf_ctx.skb"), None);
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0xff;
            // Whatever it comes to, it comes to an end.
            let _ = read(&changed).map(|btf| paths.map(|path| btf.offset_of(path)));
        }
    }
}
