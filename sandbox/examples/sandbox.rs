//! A small sandbox from the command line, also for ordinary users. The tests of this crate use it as well.
//!
//! - `sandbox check` builds two nodes with a pod each and an outside host, and prints what a few probes find.
//! - `sandbox hold` builds the same, prints `ready` and waits until its input ends or it is killed.
//! - `sandbox exec PROGRAM [ARGUMENT...]` becomes PROGRAM as root, in a new user namespace if need be.

use std::error::Error;
use std::io::{Read, Write, stdin, stdout};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::process::Command;

use netpolc_sandbox::{
    DEFAULT_TIMEOUT, HostId, NodeSpec, OutsideSpec, PodSpec, Probe, Protocol, Sandbox, Spec,
    enter_user_namespace,
};

const LISTEN: [(Protocol, u16); 3] = [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 7777)];

fn main() -> Result<(), Box<dyn Error>> {
    // First of all: the kernel allows it only while there is one thread.
    enter_user_namespace()?;
    let mut args = std::env::args_os().skip(1);
    let mode = args.next().unwrap_or_default();
    match mode.to_str() {
        Some("check") => check(),
        Some("hold") => hold(),
        Some("exec") => {
            let program = args.next().ok_or("exec what?")?;
            Err(Command::new(program).args(args).exec().into())
        }
        _ => Err("usage: sandbox check | hold | exec PROGRAM [ARGUMENT...]".into()),
    }
}

fn spec() -> Result<Spec, std::net::AddrParseError> {
    let addrs = |texts: &[&str]| texts.iter().map(|text| text.parse()).collect::<Result<Vec<IpAddr>, _>>();
    let node = |name: &str, texts: &[&str]| -> Result<NodeSpec, std::net::AddrParseError> {
        Ok(NodeSpec { name: name.into(), addrs: addrs(texts)?, listen: LISTEN.to_vec() })
    };
    let pod = |name: &str, node, texts: &[&str]| -> Result<PodSpec, std::net::AddrParseError> {
        Ok(PodSpec { name: name.into(), node, addrs: addrs(texts)?, listen: LISTEN.to_vec() })
    };
    Ok(Spec {
        nodes: vec![node("one", &["192.168.9.1", "fd99::1"])?, node("two", &["192.168.9.2", "fd99::2"])?],
        pods: vec![pod("a", 0, &["10.1.0.1", "fd00:1::1"])?, pod("b", 1, &["10.1.1.1", "fd00:1:1::1"])?],
        outside: vec![OutsideSpec { addr: "203.0.113.7".parse()?, listen: LISTEN.to_vec() }],
    })
}

fn check() -> Result<(), Box<dyn Error>> {
    let spec = spec()?;
    let sandbox = Sandbox::build(&spec)?;
    let mut probes = Vec::new();
    for to in spec.hosts().flat_map(|host| spec.addrs(host).to_vec()) {
        for (protocol, port) in LISTEN.into_iter().chain([(Protocol::Icmp, 0)]) {
            probes.push(Probe { from: HostId::Pod(0), from_addr: None, to, protocol, port });
        }
    }
    let outcomes = sandbox.probe_all(&probes, DEFAULT_TIMEOUT);
    for (probe, outcome) in probes.iter().zip(outcomes) {
        writeln!(stdout(), "{} -> {} {} {}: {outcome}", probe.from, probe.to, probe.protocol, probe.port)?;
    }
    Ok(())
}

fn hold() -> Result<(), Box<dyn Error>> {
    let sandbox = Sandbox::build(&spec()?)?;
    writeln!(stdout(), "ready")?;
    stdout().flush()?;
    stdin().read_to_end(&mut Vec::new())?;
    drop(sandbox);
    Ok(())
}
