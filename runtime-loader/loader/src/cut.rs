//! Connections that the rules in force would not let begin.
//!
//! Rules let the packets of existing connections pass, so a connection that is older than the rules lives on whatever
//! they say. It ends when the kernel forgets it: its next packet begins a connection, as far as the kernel knows, and is
//! judged. A packet from the middle of a TCP connection begins none, so neither end can bring it back.
//!
//! This is done whenever a bundle is applied, even if its rules were in force already. A loader that was killed after
//! the switch, or that was told to keep connections, leaves nothing in the kernel that a successor could see.
//!
//! The walk begins after the switch was confirmed. What began since the switch was judged by these rules; what began
//! before is in the table by then, since a packet that is judged by old rules leaves the hooks, and its connection
//! enters the table, long before nft has listed the new ones, or the kernel has freed the old ones
//! ([`crate::batch::Committed::settle`]).

use crate::conntrack::{Connection, Tally};
use crate::kernel::Kernel;
use netpolc_bundle::nft::Family;
use netpolc_bundle::nft::run::Packet;
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

/// Ends the connections of some families that the rules in force do not let begin. `passes` says of the packet that opens
/// a connection whether they let it pass. It is not asked about connections of the node itself: between the node and its
/// pods no packet crosses the forward hook, so no rule is about that.
///
/// What could not be done is a note: the rules are in force all the same.
pub fn cut(
    kernel: &mut dyn Kernel,
    families: &[Family],
    passes: &dyn Fn(&Packet) -> bool,
    notes: &mut Vec<String>,
) -> Option<Cut> {
    match walk(kernel, families, passes) {
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
pub fn walk(
    kernel: &mut dyn Kernel,
    families: &[Family],
    passes: &dyn Fn(&Packet) -> bool,
) -> io::Result<(Cut, Tally)> {
    let start = Instant::now();
    let own = kernel.own_addresses()?;
    let is_own = |addr: IpAddr| addr.is_loopback() || own.contains(&addr);
    let tally = kernel.cut(families, &mut |connection| {
        !is_own(connection.source) && !is_own(connection.destination) && !passes(&opening(connection))
    })?;
    Ok((Cut { connections: tally.cut, of: tally.seen, took: start.elapsed() }, tally))
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

/// The packet that opened a connection.
fn opening(connection: &Connection) -> Packet {
    let Connection { source, destination, protocol, port } = *connection;
    Packet::opening(source, destination, protocol, port)
}
