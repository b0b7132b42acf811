//! Nodes and pods as network namespaces, with real listeners and real packets.
//!
//! This crate builds a small cluster's network inside one Linux machine from plain data ([`Spec`]), runs programs in a
//! node's namespace (to load rules into it), sends probes, and says what arrived. It knows no YAML, no policies and no
//! compiled form of them.
//!
//! Everything is anonymous and belongs to this process: when it ends, by return, panic, Ctrl-C or SIGKILL, the kernel
//! removes the namespaces, devices, rules and sockets. Nothing has a name on the machine, so any number of sandboxes can
//! exist side by side.
//!
//! ```no_run
//! use netpolc_sandbox::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! enter_user_namespace()?;
//! let pod = |addr: &str| -> Result<PodSpec, std::net::AddrParseError> {
//!     let (name, addrs) = (addr.to_string(), vec![addr.parse()?]);
//!     Ok(PodSpec { name, node: 0, addrs, listen: vec![(Protocol::Tcp, 80)] })
//! };
//! let nodes = vec![NodeSpec::default()];
//! let spec = Spec { nodes, pods: vec![pod("10.0.0.1")?, pod("10.0.0.2")?], outside: vec![] };
//! let sandbox = Sandbox::build(&spec)?;
//! let mut nft = std::process::Command::new(find_program("nft", "nftables")?);
//! nft.args(["-f", "-"]);
//! assert!(sandbox.run_in_node(0, nft, b"table ip t { }\n")?.status.success());
//! let to = "10.0.0.2".parse()?;
//! let probe = Probe { from: HostId::Pod(0), from_addr: None, to, protocol: Protocol::Tcp, port: 80 };
//! assert_eq!(sandbox.probe_all(&[probe], DEFAULT_TIMEOUT), [Outcome::Reached]);
//! # Ok(())
//! # }
//! ```
//!
//! It needs root, or [`enter_user_namespace`] early in `main`; and the program `ip` of iproute2.

mod command;
mod connection;
mod engine;
mod error;
mod listen;
mod namespace;
mod network;
mod nonce;
mod observe;
mod packet;
mod privilege;
mod probe;
mod sandbox;
mod sctp;
mod spec;

pub use command::{COMMAND_OUTPUT_LIMIT, COMMAND_TIMEOUT, find_program};
pub use connection::Connection;
pub use error::Error;
pub use observe::{Content, RawPacket, sctp_chunk, tcp_flags};
pub use privilege::enter_user_namespace;
pub use probe::{Outcome, Probe};
pub use sandbox::{DEFAULT_TIMEOUT, Sandbox};
pub use spec::{HostId, MAX_HOSTS, MAX_LISTENERS, NodeSpec, OutsideSpec, PodSpec, Protocol, Spec};
