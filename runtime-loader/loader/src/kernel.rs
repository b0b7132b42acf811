//! The one door to the kernel. [`System`] is the real one; tests may stand another behind the trait.

mod programs;

use crate::Error;
use crate::bridges::{self, Passed};
use crate::conntrack::{self, Denied, Tally};
use crate::generation;
use crate::lock::Lock;
use crate::routes::{self, Routes};
use crate::tables;
use netpolc_bundle::nft::{Family, TABLE};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use programs::{in_memory, in_turn};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Most bytes of a routing table that are read; a line of a host route has about 150.
const ROUTES_BYTES: u64 = 256 << 20;

/// A program with its input, and the input that takes back what it did. The latter must do no harm if it did nothing.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct Step<'a> {
    pub program: &'a str,
    pub args: &'a [&'a str],
    pub input: &'a str,
    pub undo: &'a str,
}

/// What the loader needs of a kernel.
pub trait Kernel {
    /// Waits until no other loader is at work here, and keeps others away from then on. The answer is a note, if there
    /// is something to say.
    ///
    /// # Errors
    /// If another loader does not finish.
    fn lock(&mut self) -> Result<Option<String>, Error>;

    /// Whether a program is installed.
    fn has(&mut self, program: &str) -> bool;

    /// Runs a program to its end, with this text as its standard input; the answer is what it printed.
    ///
    /// # Errors
    /// [`Error::NoProgram`] if it is not installed; if it does not succeed, what it complained of.
    fn program(&mut self, name: &str, args: &[&str], input: &str) -> Result<String, Error>;

    /// Runs steps one after the other, each as [`Kernel::program`] does. If one fails, it and those before it are undone in
    /// reverse, and the error is that of the step. What a kernel promises beyond that: if the loader is killed meanwhile,
    /// the steps still come to this end.
    ///
    /// # Errors
    /// As [`Kernel::program`].
    fn sequence(&mut self, steps: &[Step<'_>]) -> Result<(), Error> {
        in_turn(steps, &mut |step, input| self.program(step.program, step.args, input).map(drop))
    }

    /// Whether the kernel has nftables; if not, why it does not answer.
    ///
    /// # Errors
    /// What it said.
    fn has_nftables(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The text of a file of this network namespace's `/proc/net`; `None` if there is none.
    fn proc_net(&mut self, _file: &str) -> Option<String> {
        None
    }

    /// Whether conntrack is there and knows no SCTP: a kernel built without `CONFIG_NF_CT_PROTO_SCTP`.
    fn lacks_sctp(&mut self) -> bool {
        false
    }

    /// What a bridge passes to the rules; `None` if no bridge of this network namespace has this name.
    fn bridge(&mut self, _name: &str) -> Option<Passed> {
        None
    }

    /// The families that have a table of ours.
    ///
    /// # Errors
    /// If nft cannot be run or may not look.
    fn tables(&mut self) -> Result<BTreeSet<Family>, Error>;

    /// The families that have a table of this name.
    ///
    /// # Errors
    /// As [`Kernel::tables`].
    fn named_tables(&mut self, _name: &str) -> Result<BTreeSet<Family>, Error> {
        Ok(BTreeSet::new())
    }

    /// Our table of a family as nft prints it.
    ///
    /// # Errors
    /// If there is none, or if nft cannot be run.
    fn list(&mut self, family: Family) -> Result<String, Error>;

    /// Runs a script as one transaction: all of it takes effect at once, or nothing does.
    ///
    /// # Errors
    /// If nft or the kernel refuses it; then nothing has changed.
    fn run(&mut self, script: &str) -> Result<(), Error>;

    /// The routes to single addresses.
    ///
    /// # Errors
    /// If they cannot be read.
    fn routes(&mut self) -> Result<Routes, Error>;

    /// The addresses of the node itself.
    ///
    /// # Errors
    /// If they cannot be read.
    fn own_addresses(&mut self) -> io::Result<BTreeSet<IpAddr>>;

    /// Shows the connections of both families and ends those for which `denied` says so.
    ///
    /// # Errors
    /// If they cannot be read or ended, and those of `denied`.
    fn cut(&mut self, denied: &mut Denied<'_>) -> io::Result<Tally>;
}

/// The kernel of the network namespace that this process lives in, through nft and other programs.
#[derive(Debug)]
pub struct System {
    dirs: Vec<PathBuf>,
    lock: Option<Lock>,
}

impl Default for System {
    fn default() -> System {
        System::new()
    }
}

impl System {
    /// Programs are looked for in `PATH` and where distributions install them.
    pub fn new() -> System {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
        dirs.extend(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from));
        System { dirs, lock: None }
    }
}

impl Kernel for System {
    fn has_nftables(&mut self) -> io::Result<()> {
        generation::current().map(drop)
    }

    fn lock(&mut self) -> Result<Option<String>, Error> {
        // The lock is this process's: a daemon takes it once for all that it does.
        if self.lock.is_some() {
            return Ok(None);
        }
        let lock = Lock::acquire()?;
        let note = lock.note().map(str::to_owned);
        self.lock = Some(lock);
        Ok(note)
    }

    fn has(&mut self, program: &str) -> bool {
        self.find(program).is_ok()
    }

    fn program(&mut self, name: &str, args: &[&str], input: &str) -> Result<String, Error> {
        let output = self.spawn(name, args, in_memory(input)?, true)?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    fn sequence(&mut self, steps: &[Step<'_>]) -> Result<(), Error> {
        self.run_steps(steps)
    }

    fn proc_net(&mut self, file: &str) -> Option<String> {
        fs::read_to_string(Path::new("/proc/thread-self/net").join(file)).ok()
    }

    fn lacks_sctp(&mut self) -> bool {
        // Conntrack has switches for each protocol that it knows (`nf_ct_sysctl_table`, nf_conntrack_standalone.c).
        conntrack::lacks_sctp(Path::new("/proc/sys/net/netfilter"))
    }

    fn bridge(&mut self, name: &str) -> Option<Passed> {
        bridges::passed(name)
    }

    fn tables(&mut self) -> Result<BTreeSet<Family>, Error> {
        self.named_tables(TABLE)
    }

    fn named_tables(&mut self, name: &str) -> Result<BTreeSet<Family>, Error> {
        // Tables that nothing here can read or change are as good as none.
        self.find("nft")?;
        let mut found = BTreeSet::new();
        for family in [Family::Ip, Family::Ip6] {
            match tables::exists(family, name) {
                Ok(true) => drop(found.insert(family)),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(Error::Permission(error.to_string()));
                }
                Err(error) => {
                    return Err(Error::Nft(format!("no answer about table {family} {name}: {error}")));
                }
            }
        }
        Ok(found)
    }

    fn list(&mut self, family: Family) -> Result<String, Error> {
        // Protocols as numbers: their names are a matter of `/etc/protocols`.
        let args = ["--numeric-protocol", "list", "table", &family.to_string(), TABLE];
        let output = self.spawn("nft", &args, Stdio::null(), true)?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    fn run(&mut self, script: &str) -> Result<(), Error> {
        self.spawn("nft", &["-f", "-"], in_memory(script)?, false).map(|_| ())
    }

    fn routes(&mut self) -> Result<Routes, Error> {
        let mut routes = Routes::new();
        routes::read_ipv4(&read("/proc/thread-self/net/route")?, &mut routes);
        routes::read_ipv6(&read("/proc/thread-self/net/ipv6_route")?, &mut routes);
        Ok(routes)
    }

    fn own_addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        let addr = |address: &SockaddrStorage| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
            (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
            _ => None,
        };
        Ok(getifaddrs()?.filter_map(|interface| interface.address.as_ref().and_then(addr)).collect())
    }

    fn cut(&mut self, denied: &mut Denied<'_>) -> io::Result<Tally> {
        conntrack::cut(denied)
    }
}

/// Without the file there are no routes: the kernel is built without the family, or it is switched off.
fn read(path: &str) -> Result<String, Error> {
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => {
            file.take(ROUTES_BYTES).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(Error::io(path, error)),
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
