//! The kernel, as it would be if it lacked something.

use netpol_loader::Error;
use netpol_loader::conntrack::{Denied, Tally};
use netpol_loader::kernel::{Kernel, Step, System};
use netpol_loader::routes::Routes;
use netpolc_bundle::nft::Family;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// What is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// IPv6.
    Ipv6,
    /// The table of connections, as far as user space can read and change it.
    Ctnetlink,
    /// Conntrack's knowledge of SCTP.
    Sctp,
}

pub(crate) struct Lacking(System, Lack);

impl Lacking {
    pub(crate) fn new(what: Lack) -> Lacking {
        Lacking(System::new(), what)
    }
}

impl Kernel for Lacking {
    fn lock(&mut self) -> Result<Option<String>, Error> {
        self.0.lock()
    }

    fn has(&mut self, program: &str) -> bool {
        self.0.has(program)
    }

    fn program(&mut self, name: &str, args: &[&str], input: &str) -> Result<String, Error> {
        if self.1 == Lack::Ipv6 && name.starts_with("ip6tables") {
            let complaint = "can't initialize ip6tables table: Address family not supported".to_owned();
            return Err(Error::Program { program: name.to_owned(), complaint });
        }
        self.0.program(name, args, input)
    }

    fn sequence(&mut self, steps: &[Step<'_>]) -> Result<(), Error> {
        let asks_for_it = steps.iter().any(|step| step.program.starts_with("ip6tables"));
        assert!(self.1 != Lack::Ipv6 || !asks_for_it);
        self.0.sequence(steps)
    }

    fn proc_net(&mut self, file: &str) -> Option<String> {
        if self.1 == Lack::Ipv6 && file.contains('6') { None } else { self.0.proc_net(file) }
    }

    fn lacks_sctp(&mut self) -> bool {
        self.1 == Lack::Sctp || self.0.lacks_sctp()
    }

    fn tables(&mut self) -> Result<BTreeSet<Family>, Error> {
        self.0.tables()
    }

    fn list(&mut self, family: Family) -> Result<String, Error> {
        self.0.list(family)
    }

    fn run(&mut self, script: &str) -> Result<(), Error> {
        self.0.run(script)
    }

    fn routes(&mut self) -> Result<Routes, Error> {
        self.0.routes()
    }

    fn own_addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        self.0.own_addresses()
    }

    fn cut(&mut self, denied: &mut Denied<'_>) -> io::Result<Tally> {
        match self.1 {
            Lack::Ctnetlink => Err(io::ErrorKind::Unsupported.into()),
            Lack::Ipv6 | Lack::Sctp => self.0.cut(denied),
        }
    }
}
