//! The bytes: deterministic, read back strictly, accepted by others.

use super::common::{compiled, nodes, shop};
use netpolc_bundle::bpf::{Field, TUPLES_APART};
use netpolc_ebpf::btf::Btf;
use netpolc_ebpf::contents::{Contents, Established};
use netpolc_ebpf::decode::{LinkError, decode};
use netpolc_ebpf::emit::{emit, write};
use netpolc_ebpf::layout::Map;
use netpolc_ebpf::program;
use netpolc_testkit::generate::{Options, generate};
use std::process::Command;

#[test]
fn same_in_same_out() {
    for seed in 0..20 {
        let yaml = generate(seed, Options::default()).yaml();
        let once = |_| {
            let nodes = nodes(&compiled(&yaml), Established::Cut);
            nodes.into_iter().map(|n| (n.object, n.contents.text())).collect::<Vec<_>>()
        };
        assert_eq!(once(0), once(1), "seed {seed}");
    }
}

#[test]
fn contents_are_read_back() {
    for seed in 0..20 {
        for node in nodes(&compiled(&generate(seed, Options::default()).yaml()), Established::Keep) {
            assert_eq!(Contents::parse(&node.contents.text()), Ok(node.contents));
        }
    }
}

/// Loaders load no other programs than these.
#[test]
fn loaders_know_the_programs() {
    for established in Established::ALL {
        let node = nodes(&compiled(&shop()), established).remove(0);
        let read = decode(&node.object, &node.contents.text()).unwrap();
        assert!(read.program.is_ours(), "{established:?} is {}", read.program.identity());
    }
}

/// A line that is missing a value, is out of order, or names a row that does not exist.
#[test]
fn contents_are_read_strictly() {
    let node = nodes(&compiled(&shop()), Established::Cut).remove(0);
    let text = node.contents.text();
    let lines: Vec<&str> = text.lines().collect();
    let join = |lines: &[&str]| lines.iter().map(|l| format!("{l}\n")).collect::<String>();
    assert!(Contents::parse(&join(&lines)).is_ok());
    for i in 0..lines.len() {
        for bad in ["", " 1", " 99999999", "0", "-", "\t"] {
            let mut changed = lines.clone();
            let line = format!("{}{bad}", lines[i]);
            changed[i] = if bad.is_empty() { lines[i].rsplit_once(' ').unwrap().0 } else { &line };
            let label = lines[i].starts_with("row ") || (lines[i].starts_with("ports ") && bad == "0");
            let number = bad == "0" || (bad.is_empty() && label);
            if !label && !number {
                assert!(Contents::parse(&join(&changed)).is_err(), "{:?}", changed[i]);
            }
        }
        let mut doubled = lines.clone();
        doubled.insert(i, lines[i]);
        assert!(
            lines[i].starts_with("row ") || Contents::parse(&join(&doubled)).is_err(),
            "{:?} twice",
            lines[i]
        );
    }
    let mut swapped = lines.clone();
    let pods: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].starts_with("pod ")).collect();
    swapped.swap(pods[0], pods[1]);
    assert!(Contents::parse(&join(&swapped)).is_err());
}

/// Whatever happens to a byte of the object, the decoder says something and does not fall over.
#[test]
fn damaged_objects_do_no_harm() {
    let node = nodes(&compiled(&shop()), Established::Cut).remove(0);
    let text = node.contents.text();
    let mut refused = 0;
    for i in 0..node.object.len() {
        for flip in [1u8, 0x80, 0xff] {
            let mut object = node.object.clone();
            object[i] ^= flip;
            refused += usize::from(decode(&object, &text).is_err());
        }
    }
    for len in (0..node.object.len()).step_by(37) {
        assert!(decode(&node.object[..len], &text).is_err(), "cut to {len}");
    }
    assert!(refused > node.object.len(), "{refused} of {}", node.object.len() * 3);
}

#[test]
fn an_object_for_other_contents_is_refused() {
    let node = nodes(&compiled(&shop()), Established::Cut).remove(0);
    let wide = Contents { columns: node.contents.columns * 2, ..node.contents.clone() };
    assert!(decode(&emit(&wide, Established::Cut).unwrap(), &node.contents.text()).is_err());
    assert!(decode(&node.object, &wide.text()).is_err());
    // Room that is not rounded up will do, and no less.
    let with = |less| {
        let room = |map| node.contents.needs(map) - if map == Map::Pairs { less } else { 0 };
        decode(&write(&program::build(Established::Cut), room).unwrap(), &node.contents.text())
    };
    assert!(node.contents.needs(Map::Pairs) < node.contents.room(Map::Pairs));
    assert!(with(0).is_ok() && with(1).is_err());
    let keep = emit(&node.contents, Established::Keep).unwrap();
    assert_eq!(decode(&keep, &node.contents.text()).unwrap().established, Established::Keep);
}

/// Every jump goes somewhere else than to the next instruction, and all code is reached.
#[test]
fn the_program_is_whole() {
    for established in Established::ALL {
        let program = program::build(established);
        let slots = netpolc_ebpf::insn::decode(&program.bytes()).unwrap();
        let targets: Vec<i16> = slots
            .iter()
            .flatten()
            .filter_map(|i| match i {
                netpolc_ebpf::insn::Insn::Jump { off } | netpolc_ebpf::insn::Insn::Branch { off, .. } => {
                    Some(*off)
                }
                _ => None,
            })
            .collect();
        assert!(targets.len() > 30 && targets.iter().all(|off| *off > 0), "{targets:?}");
        assert!(slots.len() < 400, "{}", slots.len());
    }
}

/// The program as people review it. `NETPOLC_ACCEPT=1` takes the present one as right.
#[test]
fn disassembly() {
    for established in Established::ALL {
        let text = program::build(established).disassembly();
        let path = format!("{}/tests/golden/{}.txt", env!("CARGO_MANIFEST_DIR"), established.word());
        if std::env::var_os("NETPOLC_ACCEPT").is_some() {
            std::fs::create_dir_all(format!("{}/tests/golden", env!("CARGO_MANIFEST_DIR"))).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}");
    }
}

/// The contents of a small node as people review them.
#[test]
fn contents() {
    let node = nodes(&compiled(&shop()), Established::Cut).remove(0);
    let path = format!("{}/tests/golden/contents.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("NETPOLC_ACCEPT").is_some() {
        std::fs::write(&path, node.contents.text()).unwrap();
    }
    assert_eq!(node.contents.text(), std::fs::read_to_string(&path).unwrap());
}

/// This kernel's types have every field that the program reads.
#[test]
fn fields_are_found_in_the_running_kernel() {
    let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
    let kernel = Btf::parse(&bytes).unwrap();
    for field in netpolc_ebpf::asm::Field::ALL {
        assert!(kernel.offset_of(field.path()).is_some(), "{field:?}");
    }
    assert_eq!(kernel.offset_of("nf_conntrack_tuple.dst.protonum"), Some(38));
    assert_eq!(kernel.offset_of("nf_conntrack_tuple.src.l3num"), Some(18));
    assert_eq!(kernel.offset_of("nf_conntrack_tuple.src.u.all"), Some(16));
    assert_eq!(kernel.offset_of("no_such_structure.field"), None);
    assert_eq!(kernel.offset_of("nf_conn.no_such_field"), None);
    // Piece by piece, as the loader reads them.
    let paths = netpolc_ebpf::asm::Field::ALL.map(|field| field.path());
    let pieces = Btf::for_paths(std::io::Cursor::new(bytes), &paths).unwrap();
    for path in paths {
        assert_eq!(pieces.offset_of(path), kernel.offset_of(path), "{path}");
    }
}

/// Both tuples of a connection are read at once, so a kernel that has them elsewhere is refused when the program is linked.
#[test]
fn tuples_apart_are_refused() {
    let node = nodes(&compiled(&shop()), Established::Cut).remove(0);
    let decoded = decode(&node.object, &node.contents.text()).unwrap();
    let link = |apart: u32| {
        let place = |field| Some(if field == Field::CtReply { 24 + apart } else { 24 });
        decoded.program.link_for(place, |_| 3).map(|_| ())
    };
    assert_eq!(link(TUPLES_APART), Ok(()));
    assert_eq!(link(TUPLES_APART + 8), Err(LinkError::Apart));
}

/// What a program of another hand says about an object.
fn asked(program: &str, package: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (Debian package {package}): {error}"));
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaints}");
    String::from_utf8(output.stdout).unwrap()
}

/// A file that is deleted in the end.
struct Temporary(String);

impl Temporary {
    fn new(name: &str) -> Temporary {
        let path = std::env::temp_dir().join(format!("netpolc-ebpf-{}-{name}", std::process::id()));
        Temporary(path.to_str().unwrap().to_owned())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// llvm-objdump reads the instructions and their relocations as we do.
#[test]
fn llvm_reads_the_object() {
    for established in Established::ALL {
        let node = nodes(&compiled(&shop()), established).remove(0);
        let file = Temporary::new(&format!("llvm-{}.o", established.word()));
        std::fs::write(&file.0, &node.object).unwrap();
        let text = asked("llvm-objdump", "llvm", &["-d", "-r", "--no-show-raw-insn", &file.0]);
        assert!(!text.contains("<unknown>"), "{text}");
        let program = program::build(established);
        let lines: Vec<&str> = text.lines().collect();
        let is_insn = |line: &&&str| {
            line.trim_start().starts_with(|c: char| c.is_ascii_digit())
                && line.contains(":\t")
                && !line.contains("R_BPF")
        };
        assert_eq!(lines.iter().filter(is_insn).count(), program.insns.len(), "{text}");
        let relocations = lines.iter().filter(|line| line.contains("R_BPF_64_64"));
        assert_eq!(relocations.count(), program.maps.len(), "{text}");
    }
}

/// libbpf's linker takes the object, and finds the same program, maps and types in it.
#[test]
fn libbpf_reads_the_object() {
    for established in Established::ALL {
        let node = nodes(&compiled(&shop()), established).remove(0);
        let [file, linked] = ["in", "out"].map(|n| Temporary::new(&format!("{n}-{}.o", established.word())));
        std::fs::write(&file.0, &node.object).unwrap();
        asked("bpftool", "bpftool", &["gen", "object", &linked.0, &file.0]);
        for path in [&file.0, &linked.0] {
            let types = asked("bpftool", "bpftool", &["btf", "dump", "file", path]);
            assert!(types.contains(&format!("FUNC '{}'", established.program())), "{types}");
            for map in Map::ALL {
                assert!(types.contains(&format!("VAR '{}'", map.name())), "{types}");
            }
        }
    }
}
