//! bpf(2) and the one socket option that nobody wraps: the loader's system calls that need `unsafe`. The numbers are those
//! of `include/uapi/linux/bpf.h`.
#![expect(unsafe_code, reason = "bpf(2) takes addresses of memory")]

use netpolc_bundle::bpf::object::{Information, LICENSE};
use netpolc_bundle::bpf::{ATTACH_TYPE, PROGRAM_TYPE};
use nix::libc;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_CREATE: i64 = 0;
const MAP_LOOKUP_ELEM: i64 = 1;
const MAP_UPDATE_ELEM: i64 = 2;
const MAP_DELETE_ELEM: i64 = 3;
const MAP_GET_NEXT_KEY: i64 = 4;
const PROG_LOAD: i64 = 5;
const OBJ_PIN: i64 = 6;
const OBJ_GET: i64 = 7;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const BTF_LOAD: i64 = 18;
const MAP_FREEZE: i64 = 22;
const MAP_LOOKUP_BATCH: i64 = 24;
const MAP_UPDATE_BATCH: i64 = 26;
const LINK_CREATE: i64 = 28;

/// `MEMBARRIER_CMD_GLOBAL` (`include/uapi/linux/membarrier.h`).
const BARRIER_GLOBAL: i64 = 1;

/// Bytes of the verifier's words that are kept.
const LOG_BYTES: usize = 64 << 10;

/// `union bpf_attr`, by offset.
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Attr {
        Attr([0; 128])
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Attr {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        self
    }

    fn word(self, at: usize, value: u32) -> Attr {
        self.put(at, &value.to_ne_bytes())
    }

    fn long(self, at: usize, value: u64) -> Attr {
        self.put(at, &value.to_ne_bytes())
    }

    fn fd(self, at: usize, fd: &OwnedFd) -> Attr {
        self.word(at, fd.as_raw_fd() as u32)
    }

    fn read(&self, at: usize) -> u32 {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// Runs a command.
    ///
    /// SAFETY: every address in the attributes must be one of memory that the command may read or write for as long as
    /// the kernel needs it, which is until the call returns.
    unsafe fn call(&mut self, command: i64) -> io::Result<i32> {
        // SAFETY: the attributes are 128 bytes that the kernel may read and write; the caller answers for the addresses.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
    }

    /// A command whose result is a new file descriptor.
    ///
    /// SAFETY: as for [`Attr::call`].
    unsafe fn open(mut self, command: i64) -> io::Result<OwnedFd> {
        // SAFETY: the caller's promise.
        let fd = unsafe { self.call(command)? };
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Waits until no packet can be on its way between a hook that it met before this call and the kernel's table of connections:
/// both stand in one read-side section of RCU, and the call waits for all of them (`kernel/sched/membarrier.c`).
///
/// # Errors
/// If the kernel does not do that: it was built without it, or some of its processors have no tick (`nohz_full`).
pub(super) fn wait_for_packets() -> io::Result<()> {
    // SAFETY: no argument is an address.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, BARRIER_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

/// What a map is made as.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// `enum bpf_map_type`.
    pub(super) kind: u32,
    /// Bytes of a key.
    pub(super) key: u32,
    /// Bytes of a value.
    pub(super) value: u32,
    /// How many entries there may be.
    pub(super) entries: u32,
    /// `map_flags`.
    pub(super) flags: u32,
    /// Up to 15 letters.
    pub(super) name: &'static str,
}

/// A map, and the sizes that every access is checked against.
#[derive(Debug)]
pub(super) struct MapFd {
    fd: OwnedFd,
    key: usize,
    value: usize,
    entries: u32,
}

impl MapFd {
    pub(super) fn create(shape: &Shape) -> io::Result<MapFd> {
        let name: Vec<u8> = shape.name.bytes().take(15).collect();
        let attr = Attr::new().word(0, shape.kind).word(4, shape.key).word(8, shape.value);
        let attr = attr.word(12, shape.entries).word(16, shape.flags).put(28, &name);
        // SAFETY: there are no addresses in the attributes.
        let fd = unsafe { attr.open(MAP_CREATE) }?;
        let (key, value) = (shape.key as usize, shape.value as usize);
        Ok(MapFd { fd, key, value, entries: shape.entries })
    }

    /// A pinned map, whose own word on its sizes is taken.
    pub(super) fn open(path: &Path) -> io::Result<MapFd> {
        let fd = obj_get(path)?;
        // `struct bpf_map_info`: type, id, key size, value size, entries, flags.
        let info: [u32; 6] = info(&fd)?;
        // The values of maps with one value for each CPU are longer than the map says; none of ours is one.
        let plain = [1, 2, 3, 11];
        if !plain.contains(&info[0]) || info[2] > 4096 || info[3] > 1 << 20 {
            return Err(invalid());
        }
        Ok(MapFd { fd, key: info[2] as usize, value: info[3] as usize, entries: info[4] })
    }

    pub(super) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    pub(super) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if (key.len(), value.len()) != (self.key, self.value) {
            return Err(invalid());
        }
        let attr = Attr::new().fd(0, &self.fd);
        let mut attr = attr.long(8, key.as_ptr() as u64).long(16, value.as_ptr() as u64);
        // SAFETY: key and value are of the map's sizes and outlive the call.
        unsafe { attr.call(MAP_UPDATE_ELEM).map(drop) }
    }

    /// Many entries at once: keys and values one after another.
    pub(super) fn update_all(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let count = keys.len() / self.key.max(1);
        if keys.len() != count * self.key || values.len() != count * self.value {
            return Err(invalid());
        }
        if count == 0 {
            return Ok(());
        }
        let attr = Attr::new().long(16, keys.as_ptr() as u64).long(24, values.as_ptr() as u64);
        let mut attr = attr.word(32, u32::try_from(count).map_err(|_| invalid())?).fd(36, &self.fd);
        // SAFETY: both arrays hold `count` keys and values of the map's sizes, and outlive the call.
        let done = unsafe { attr.call(MAP_UPDATE_BATCH) };
        match done {
            Ok(_) => Ok(()),
            // Kernels before 5.6, and types without it (`ENOTSUPP` is 524).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | 524)) => {
                let pairs = keys.chunks_exact(self.key).zip(values.chunks_exact(self.value));
                pairs.into_iter().try_for_each(|(key, value)| self.update(key, value))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn delete(&self, key: &[u8]) -> io::Result<()> {
        if key.len() != self.key {
            return Err(invalid());
        }
        let mut attr = Attr::new().fd(0, &self.fd).long(8, key.as_ptr() as u64);
        // SAFETY: the key is of the map's size and outlives the call.
        unsafe { attr.call(MAP_DELETE_ELEM).map(drop) }
    }

    pub(super) fn lookup(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        if key.len() != self.key {
            return Err(invalid());
        }
        let mut value = vec![0u8; self.value];
        let attr = Attr::new().fd(0, &self.fd);
        let mut attr = attr.long(8, key.as_ptr() as u64).long(16, value.as_mut_ptr() as u64);
        // SAFETY: key and value are of the map's sizes and outlive the call; the value is ours to write.
        unsafe { attr.call(MAP_LOOKUP_ELEM) }?;
        Ok(value)
    }

    /// All keys of a hash or a trie, at most `most`.
    pub(super) fn keys(&self, most: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        while keys.len() < most {
            let mut next = vec![0u8; self.key];
            let last = keys.last().map_or(0, |key| key.as_ptr() as u64);
            let mut attr = Attr::new().fd(0, &self.fd).long(8, last).long(16, next.as_mut_ptr() as u64);
            // SAFETY: the last key, if any, and the next are of the map's size, outlive the call, and the next is ours.
            match unsafe { attr.call(MAP_GET_NEXT_KEY) } {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }

    /// The values of an array, one after another.
    pub(super) fn values(&self) -> io::Result<Vec<u8>> {
        let count = self.entries as usize;
        let mut keys = vec![0u8; count.saturating_mul(4)];
        let mut values = vec![0u8; count.saturating_mul(self.value)];
        if self.key != 4 || !self.value.is_multiple_of(8) {
            return Err(invalid());
        }
        let mut batch = 0u32;
        let attr = Attr::new().long(8, (&raw mut batch) as u64).long(16, keys.as_mut_ptr() as u64);
        let mut attr = attr.long(24, values.as_mut_ptr() as u64).word(32, self.entries).fd(36, &self.fd);
        // SAFETY: both arrays have room for all entries, whose sizes are the map's (values of arrays are padded to eight
        // bytes, which ours are already); the batch is four bytes as the key; all outlive the call and are ours.
        match unsafe { attr.call(MAP_LOOKUP_BATCH) } {
            Ok(_) => {}
            // The end of the map.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        let got = attr.read(32) as usize;
        if got != count {
            return Err(invalid());
        }
        Ok(values)
    }

    /// From now on nobody can change it through a system call (Linux 5.2).
    pub(super) fn freeze(&self) -> io::Result<()> {
        let mut attr = Attr::new().fd(0, &self.fd);
        // SAFETY: there are no addresses in the attributes.
        unsafe { attr.call(MAP_FREEZE).map(drop) }
    }

    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(&self.fd, path)
    }
}

/// A program or a link.
#[derive(Debug)]
pub(super) struct ObjectFd(OwnedFd);

impl ObjectFd {
    pub(super) fn open(path: &Path) -> io::Result<ObjectFd> {
        obj_get(path).map(ObjectFd)
    }

    pub(super) fn fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(&self.0, path)
    }

    /// The kernel's number of the program.
    pub(super) fn program_id(&self) -> io::Result<u32> {
        // `struct bpf_prog_info`: type, id.
        let info: [u32; 2] = info(&self.0)?;
        if info[0] == PROGRAM_TYPE { Ok(info[1]) } else { Err(invalid()) }
    }

    /// The kernel's digest of the program's instructions; descriptors of maps count as zeros (`bpf_prog_calc_tag`,
    /// kernel/bpf/core.c).
    pub(super) fn tag(&self) -> io::Result<[u32; 2]> {
        // `struct bpf_prog_info`: type, id, tag.
        let info: [u32; 4] = info(&self.0)?;
        if info[0] == PROGRAM_TYPE { Ok([info[2], info[3]]) } else { Err(invalid()) }
    }

    /// Of a link: the number of its program, the family and the hook.
    pub(super) fn link(&self) -> io::Result<(u32, u32, u32)> {
        // `struct bpf_link_info`: type, id, program's id, padding; then family, hook, priority, flags.
        let info: [u32; 8] = info(&self.0)?;
        // BPF_LINK_TYPE_NETFILTER
        if info[0] == 10 { Ok((info[2], info[4], info[5])) } else { Err(invalid()) }
    }
}

fn info<const N: usize>(fd: &OwnedFd) -> io::Result<[u32; N]> {
    let mut words = [0u32; N];
    let bytes = size_of_val(&words) as u32;
    let mut attr = Attr::new().fd(0, fd).word(4, bytes).long(8, words.as_mut_ptr() as u64);
    // SAFETY: the kernel writes at most as many bytes as the attributes say, which is the size of the words.
    unsafe { attr.call(OBJ_GET_INFO_BY_FD) }?;
    Ok(words)
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| invalid())
}

fn pin(fd: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let mut attr = Attr::new().long(0, path.as_ptr() as u64).fd(8, fd);
    // SAFETY: the path ends in a zero byte and outlives the call.
    unsafe { attr.call(OBJ_PIN).map(drop) }
}

fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_of(path)?;
    let attr = Attr::new().long(0, path.as_ptr() as u64);
    // SAFETY: the path ends in a zero byte and outlives the call.
    unsafe { attr.open(OBJ_GET) }
}

/// Loads a program, with its types, functions and lines if there are any; the error holds the verifier's words.
pub(super) fn load(code: &[u8], information: Option<&Information>) -> Result<ObjectFd, String> {
    let plain = |error: io::Error| error.to_string();
    let license = CString::new(LICENSE).map_err(|_| "a license with a zero byte".to_owned())?;
    let mut log = vec![0u8; LOG_BYTES];
    let mut attr = Attr::new()
        .word(0, PROGRAM_TYPE)
        .word(4, (code.len() / 8) as u32)
        .long(8, code.as_ptr() as u64)
        .long(16, license.as_ptr() as u64)
        .put(48, b"netpolc")
        .word(68, ATTACH_TYPE);
    let types = information.map(|information| load_types(&information.types)).transpose().map_err(plain)?;
    if let (Some(types), Some(information)) = (&types, information) {
        let (functions, lines) = (&information.functions, &information.lines);
        attr = attr
            .fd(72, types)
            .word(76, 8)
            .long(80, functions.as_ptr() as u64)
            .word(88, (functions.len() / 8) as u32)
            .word(92, 16)
            .long(96, lines.as_ptr() as u64)
            .word(104, (lines.len() / 16) as u32);
    }
    // Without a log first: writing one costs more than the check itself.
    // SAFETY: code, license, functions and lines outlive the call, and the lengths are theirs.
    if let Ok(fd) = unsafe { Attr(attr.0).open(PROG_LOAD) } {
        return Ok(ObjectFd(fd));
    }
    let attr = attr.word(24, 1).word(28, LOG_BYTES as u32).long(32, log.as_mut_ptr() as u64);
    // SAFETY: as before; the log outlives the call too and is ours to write.
    unsafe { attr.open(PROG_LOAD) }.map(ObjectFd).map_err(|error| {
        let words = String::from_utf8_lossy(&log);
        format!("{error}\n{}", words.trim_end_matches('\0')).trim_end().to_owned()
    })
}

/// Whether this process may load programs of the type at all, with the helper of ours that a kernel may refuse
/// (`LOCKDOWN_BPF_READ_KERNEL`).
pub(super) fn probe() -> io::Result<()> {
    let code: [[u8; 8]; 7] = [
        [0xbf, 0xa1, 0, 0, 0, 0, 0, 0],             // r1 = r10
        [0x07, 0x01, 0, 0, 0xf8, 0xff, 0xff, 0xff], // r1 += -8
        [0xb7, 0x02, 0, 0, 8, 0, 0, 0],             // r2 = 8
        [0xb7, 0x03, 0, 0, 0, 0, 0, 0],             // r3 = 0
        [0x85, 0, 0, 0, 113, 0, 0, 0],              // call bpf_probe_read_kernel
        [0xb7, 0, 0, 0, 1, 0, 0, 0],                // r0 = NF_ACCEPT
        [0x95, 0, 0, 0, 0, 0, 0, 0],                // exit
    ];
    let license = c"GPL";
    let attr = Attr::new()
        .word(0, PROGRAM_TYPE)
        .word(4, code.len() as u32)
        .long(8, code.as_ptr() as u64)
        .long(16, license.as_ptr() as u64)
        .word(68, ATTACH_TYPE);
    // SAFETY: code and license outlive the call, and the length is the code's.
    unsafe { attr.open(PROG_LOAD) }.map(drop)
}

fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let attr = Attr::new().long(0, types.as_ptr() as u64);
    let attr = attr.word(16, u32::try_from(types.len()).map_err(|_| invalid())?);
    // SAFETY: the types outlive the call, and the length is theirs.
    unsafe { attr.open(BTF_LOAD) }
}

/// Attaches a program at the FORWARD hook of the calling thread's network namespace. `family` is `NFPROTO_IPV4` (2) or
/// `NFPROTO_IPV6` (10).
pub(super) fn attach(program: &ObjectFd, family: u32, priority: i32) -> io::Result<ObjectFd> {
    let attr = Attr::new().fd(0, &program.0).word(8, ATTACH_TYPE);
    let attr = attr.word(16, family).word(20, FORWARD).word(24, priority as u32);
    // SAFETY: there are no addresses in the attributes.
    unsafe { attr.open(LINK_CREATE) }.map(ObjectFd)
}

/// `NF_INET_FORWARD`, `include/uapi/linux/netfilter.h`.
pub(super) const FORWARD: u32 = 2;

/// A number that this network namespace alone ever has until the machine is started anew (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)))?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of the number, and the length; both are ours.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// `include/uapi/asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;
