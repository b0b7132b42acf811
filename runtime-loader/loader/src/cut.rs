//! Connections that the rules in force would not let begin.
//!
//! Rules let the packets of existing connections pass, so a connection that is older than the rules lives on whatever
//! they say. It ends when the kernel forgets it: its next packet begins a connection, as far as the kernel knows, and is
//! judged. A packet from the middle of a TCP connection or an SCTP association begins none, so neither end can bring it
//! back.
//!
//! This is done whenever a bundle is applied, even if its rules were in force already. A loader that was killed after
//! the switch, or that was told to keep connections, leaves nothing in the kernel that a successor could see.
//!
//! The walk begins after the switch was confirmed. What began since the switch was judged by these rules; what began
//! before is in the table by then, since a packet that is judged by old rules leaves the hooks, and its connection
//! enters the table, long before nft has listed the new ones, or the kernel has freed the old ones
//! ([`crate::batch::Committed::settle`]).

use crate::conntrack::{Connection, Denied, Tally};
use crate::kernel::Kernel;
use netpolc_bundle::nft::run::Packet;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// What becomes of connections that the rules would not let begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Established {
    /// They end.
    #[default]
    Cut,
    /// They live on.
    Keep,
}

/// What was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// How many connections.
    pub connections: u64,
    /// Of how many.
    pub of: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cut {} of {} connections in {} ms", self.connections, self.of, self.took.as_millis())
    }
}

/// Ends the connections that the rules in force do not let begin. `passes` says of the packet that opens
/// a connection whether they let it pass. It is not asked about connections of the node itself: between the node and its
/// pods no packet crosses the forward hook, so no rule is about that.
///
/// What could not be done is a note: the rules are in force all the same.
pub fn cut(
    kernel: &mut dyn Kernel,
    passes: &dyn Fn(&Packet) -> bool,
    notes: &mut Vec<String>,
) -> Option<Cut> {
    said(walk(kernel, passes), notes)
}

/// What came of a walk, and as notes what could not be done.
pub fn said(walked: io::Result<(Cut, Tally)>, notes: &mut Vec<String>) -> Option<Cut> {
    match walked {
        Ok((cut, tally)) => {
            notes.extend(shortcomings(&tally));
            Some(cut)
        }
        Err(error) => {
            notes
                .push(format!("established connections that the rules deny live on, {}", unreadable(&error)));
            None
        }
    }
}

/// As [`cut`], with all that the kernel said of the walk.
///
/// # Errors
/// If the kernel's table of connections cannot be read or changed at all.
pub fn walk(kernel: &mut dyn Kernel, passes: &dyn Fn(&Packet) -> bool) -> io::Result<(Cut, Tally)> {
    let own = Own::of(kernel)?;
    let denied = |connection: &Connection| own.opening(connection).is_some_and(|packet| !passes(&packet));
    walk_by(kernel, &mut |connections| Ok(connections.iter().map(denied).collect()))
}

/// A walk that is told which connections end.
///
/// # Errors
/// As [`walk`], and those of `denied`.
pub fn walk_by(kernel: &mut dyn Kernel, denied: &mut Denied<'_>) -> io::Result<(Cut, Tally)> {
    let start = Instant::now();
    let tally = kernel.cut(denied)?;
    Ok((Cut { connections: tally.cut, of: tally.seen, took: start.elapsed() }, tally))
}

/// The addresses of the node.
#[derive(Debug)]
pub struct Own(BTreeSet<IpAddr>);

impl Own {
    /// As the kernel has them now.
    ///
    /// # Errors
    /// If it does not say.
    pub fn of(kernel: &mut dyn Kernel) -> io::Result<Own> {
        Ok(Own(kernel.own_addresses()?))
    }

    /// The packet that opened a connection; `None` if the connection is one of the node itself, which no rule is about.
    pub fn opening(&self, connection: &Connection) -> Option<Packet> {
        let own = |addr: IpAddr| addr.is_loopback() || self.0.contains(&addr);
        let Connection { source, destination, protocol, port } = *connection;
        (!own(source) && !own(destination)).then(|| Packet::opening(source, destination, protocol, port))
    }
}

/// Why a walk was none.
pub fn unreadable(error: &io::Error) -> String {
    format!("the kernel's table of connections cannot be changed: {error}")
}

fn shortcomings(tally: &Tally) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(failure) = &tally.failure {
        notes.push(format!(
            "{} established connections that the rules deny live on, the kernel does not delete them: {failure}",
            tally.failed
        ));
    }
    if tally.incomplete {
        notes.push(
            "established connections that the rules deny may live on: the kernel's table of connections changed \
             while it was read"
                .to_owned(),
        );
    }
    notes
}
