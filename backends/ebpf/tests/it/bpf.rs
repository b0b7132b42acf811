//! bpf(2), as much of it as loading an artifact takes. The numbers are those of include/uapi/linux/bpf.h.
#![expect(unsafe_code, reason = "bpf(2) takes addresses of memory")]

use netpolc_ebpf::btf::MapShape;
use netpolc_ebpf::decode::Information;
use netpolc_ebpf::emit::LICENSE;
use netpolc_ebpf::program::{ATTACH_TYPE, PROGRAM_TYPE};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const MAP_CREATE: i64 = 0;
const MAP_LOOKUP_ELEM: i64 = 1;
const MAP_UPDATE_ELEM: i64 = 2;
const PROG_LOAD: i64 = 5;
const BTF_LOAD: i64 = 18;
const LINK_CREATE: i64 = 28;
const LOG_BYTES: usize = 1 << 20;

/// `union bpf_attr`, by offset.
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Attr {
        Attr([0; 128])
    }

    fn word(mut self, at: usize, value: u32) -> Attr {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn long(mut self, at: usize, value: u64) -> Attr {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// Runs a command.
    ///
    /// SAFETY: every address in the attributes must be one of memory that the command may read or write for as long as
    /// the kernel needs it, which is until the call returns.
    unsafe fn call(&self, command: i64) -> io::Result<i32> {
        // SAFETY: the attributes are 128 readable bytes; the caller answers for the addresses in them.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_ptr(), self.0.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
    }

    /// A command whose result is a new file descriptor.
    ///
    /// SAFETY: as for [`Attr::call`].
    unsafe fn open(&self, command: i64) -> io::Result<OwnedFd> {
        // SAFETY: the caller's promise.
        let fd = unsafe { self.call(command)? };
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

pub(crate) fn create_map(shape: &MapShape) -> io::Result<OwnedFd> {
    let attr = Attr::new().word(0, shape.kind.number()).word(4, shape.key).word(8, shape.value);
    let attr = attr.word(12, shape.entries).word(16, shape.flags);
    // SAFETY: there are no addresses in the attributes.
    unsafe { attr.open(MAP_CREATE) }
}

pub(crate) fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    let attr = Attr::new().word(0, map.as_raw_fd() as u32);
    let attr = attr.long(8, key.as_ptr() as u64).long(16, value.as_ptr() as u64);
    // SAFETY: key and value are of the map's sizes, which the decoder has held against the layout, and outlive the call.
    unsafe { attr.call(MAP_UPDATE_ELEM).map(drop) }
}

/// The value of a key, of so many bytes: the map's value size.
pub(crate) fn look_up(map: &OwnedFd, key: &[u8], bytes: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0; bytes];
    let attr = Attr::new().word(0, map.as_raw_fd() as u32);
    let attr = attr.long(8, key.as_ptr() as u64).long(16, value.as_mut_ptr() as u64);
    // SAFETY: key and value are of the map's sizes, which the caller has from its shape, and outlive the call.
    unsafe { attr.call(MAP_LOOKUP_ELEM)? };
    Ok(value)
}

/// Gives types to the kernel; the error holds the kernel's words.
fn load_types(types: &[u8]) -> Result<OwnedFd, String> {
    let mut log = vec![0u8; LOG_BYTES];
    let attr = Attr::new().long(0, types.as_ptr() as u64).long(8, log.as_mut_ptr() as u64);
    let attr = attr.word(16, types.len() as u32).word(20, LOG_BYTES as u32).word(24, 1);
    // SAFETY: types and log outlive the call, and the lengths are theirs.
    unsafe { attr.open(BTF_LOAD) }.map_err(|e| words(e, &log))
}

fn words(error: io::Error, log: &[u8]) -> String {
    format!("{error}\n{}", String::from_utf8_lossy(log).trim_end_matches('\0'))
}

/// Loads a program with its types, functions and lines; the error holds the verifier's words.
pub(crate) fn load(code: &[u8], information: &Information) -> Result<OwnedFd, String> {
    let types = load_types(&information.types)?;
    let (functions, lines) = (&information.functions, &information.lines);
    let license = CString::new(LICENSE).unwrap();
    let mut log = vec![0u8; LOG_BYTES];
    let attr = Attr::new()
        .word(0, PROGRAM_TYPE)
        .word(4, code.len() as u32 / 8)
        .long(8, code.as_ptr() as u64)
        .long(16, license.as_ptr() as u64)
        .word(24, 1)
        .word(28, LOG_BYTES as u32)
        .long(32, log.as_mut_ptr() as u64)
        .word(68, ATTACH_TYPE)
        .word(72, types.as_raw_fd() as u32)
        .word(76, 8)
        .long(80, functions.as_ptr() as u64)
        .word(88, functions.len() as u32 / 8)
        .word(92, 16)
        .long(96, lines.as_ptr() as u64)
        .word(104, lines.len() as u32 / 16);
    // SAFETY: code, license, log, functions and lines outlive the call, and the lengths are theirs.
    unsafe { attr.open(PROG_LOAD) }.map_err(|e| words(e, &log))
}

/// Attaches at the FORWARD hook of the calling thread's namespace until the link is closed. `family` is `NFPROTO_IPV4`
/// (2) or `NFPROTO_IPV6` (10).
pub(crate) fn attach(program: &OwnedFd, family: u32, priority: i32) -> io::Result<OwnedFd> {
    const NF_INET_FORWARD: u32 = 2;
    let attr = Attr::new().word(0, program.as_raw_fd() as u32).word(8, ATTACH_TYPE);
    let attr = attr.word(16, family).word(20, NF_INET_FORWARD).word(24, priority as u32);
    // SAFETY: there are no addresses in the attributes.
    unsafe { attr.open(LINK_CREATE) }
}
