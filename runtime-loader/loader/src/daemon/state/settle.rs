//! What may follow the answer that something is in force: connections end that it would not let begin.
//!
//! That is a walk over the kernel's table of connections, which takes a fifth of a second where there are 200,000. Nobody waits for
//! it: the lock is taken for each hundred connections, to see what is in force then. What was read before that and is denied by
//! it began under other rules, and is to end whatever comes next; and what comes has a walk of its own
//! (`docs/decisions/0020-walks-beside-the-rest.md`).

use super::State;
use super::inner::{Inner, Since};
use crate::Error;
use crate::conntrack::{Connection, Tally};
use crate::cut::{Cut, Own, said, walk_by};
use crate::daemon::enforcer::Uncut;
use crate::daemon::faults::Part;
use crate::daemon::log::{Level, log};
use crate::ebpf::judging;
use crate::kernel::{Kernel as _, System};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How many times as long as a walk the next one waits, so that changes without end take a quarter of a processor, at most.
const REST: u32 = 3;

/// How long one waits that follows a failure.
const RETRY: Duration = Duration::from_secs(5);

impl State {
    /// Does what is left, whenever there is something.
    pub fn settle_forever(&self) {
        loop {
            let mut inner = self.lock();
            while !inner.is_unsettled() {
                inner = self.unsettled.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
            let uncut = inner.enforcer.take_uncut();
            inner.ending = std::mem::take(&mut inner.gone);
            drop(inner);
            let begun = Instant::now();
            let done = self.settle(uncut);
            std::thread::sleep(if done { begun.elapsed() * REST } else { RETRY });
        }
    }

    /// Something may be left to do.
    pub fn wake_settler(&self) {
        self.unsettled.notify_one();
    }

    /// Whether it could be done. What could not is left again.
    fn settle(&self, mut uncut: Option<Uncut>) -> bool {
        if let Some(committed) = uncut.as_mut().and_then(|uncut| uncut.after.take()) {
            committed.settle();
        }
        let mut notes = Vec::new();
        let cut = said(self.walk(uncut.as_ref(), &|_| true), &mut notes);
        let mut inner = self.lock();
        let ending = std::mem::take(&mut inner.ending);
        let done = notes.is_empty();
        if done {
            inner.faults.mended(Part::Connections);
        } else {
            inner.faults.fault(Part::Connections, &notes.join("; "));
            inner.gone.extend(ending);
            if let Some(uncut) = uncut {
                inner.enforcer.leave(uncut);
            }
        }
        if let Some(cut) = cut.filter(|cut| cut.connections > 0) {
            inner.counters.connections_cut += cut.connections;
            log(Level::Info, "cut", &[("report", &cut)]);
        }
        done
    }

    /// Ends the connections of addresses that are gone, and those of `uncut` that what is in force would not let begin, as
    /// long as `goes_on`.
    fn walk(&self, uncut: Option<&Uncut>, goes_on: &dyn Fn(&Inner) -> bool) -> io::Result<(Cut, Tally)> {
        let own = Own::of(&mut System::new())?;
        let mut judge = None;
        walk_by(&mut System::new(), &mut |connections| {
            let mut inner = self.lock();
            if !goes_on(&inner) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            judge = uncut.and_then(|_| inner.enforcer.judge(judge.take()));
            if uncut.is_some() && judge.is_none() {
                return Err(io::Error::other("it is not known what is in force"));
            }
            let mut ends: Vec<bool> = connections.iter().map(|c| touches(&inner.ending, c)).collect();
            drop(inner);
            if let (Some(uncut), Some(judge)) = (uncut, &judge) {
                for (ends, connection) in ends.iter_mut().zip(connections) {
                    let packet = own.opening(connection).filter(|packet| uncut.touches(packet));
                    *ends |= packet.is_some_and(|packet| !judge.passes(&packet));
                }
            }
            Ok(ends)
        })
    }

    /// Under eBPF, when nothing has come into force between two looks: ends the connections that what is in force would not
    /// let begin, so that the others need not be judged any more. It is tried once, and again when something has come meanwhile.
    pub(super) fn stop_judging(&self) {
        let mut inner = self.lock();
        inner.since = match inner.since {
            Since::Nothing => Since::Look,
            Since::Look | Since::SecondLook => Since::SecondLook,
        };
        if inner.since != Since::SecondLook {
            return;
        }
        let judging = inner.enforcer.is_judging();
        drop(inner);
        let walked =
            judging.and_then(|judging| if judging { self.walk_for_all().map(Some) } else { Ok(None) });
        let mut inner = self.lock();
        if inner.since != Since::SecondLook {
            return;
        }
        let done = walked.and_then(|walked| match walked {
            Some(cut) => Ok(inner.enforcer.let_pass()?.then_some(cut)),
            None => Ok(None),
        });
        match done {
            Ok(cut) => {
                inner.faults.mended(Part::Connections);
                if let Some(cut) = cut {
                    inner.counters.connections_cut += cut.connections;
                    log(Level::Info, "settled", &[("report", &cut)]);
                }
            }
            Err(error) => inner.faults.fault(Part::Connections, &error),
        }
    }

    fn walk_for_all(&self) -> Result<Cut, Error> {
        judging::wait_for_packets()?;
        let all = Uncut { after: None, of: None };
        judging::walked(self.walk(Some(&all), &|inner| inner.since == Since::SecondLook))
    }
}

/// Ends the connections of these addresses now.
///
/// # Errors
/// If the kernel's table of connections cannot be read.
pub(super) fn end_connections(of: &BTreeSet<IpAddr>) -> Result<(), Error> {
    let denied = &mut |connections: &[Connection]| Ok(connections.iter().map(|c| touches(of, c)).collect());
    let done = System::new().cut(denied);
    done.map(|_| ()).map_err(|error| Error::io("the table of connections", error))
}

fn touches(addresses: &BTreeSet<IpAddr>, connection: &Connection) -> bool {
    addresses.contains(&connection.source) || addresses.contains(&connection.destination)
}
