//! How established packets stop being judged, in four steps: wait until packets are through that an earlier version let pass,
//! walk over the kernel's table of connections, see whether the walk has ended all that it should, and put the second program
//! into force. The daemon takes them one by one, so that others can have their turn between them.

use super::generation::Generation;
use super::hook::Hook;
use super::{Observed, bpffs, observe, sys};
use crate::Error;
use crate::conntrack::Tally;
use crate::cut::{Cut, Established, unreadable, walk};
use crate::kernel::Kernel;
use netpolc_bundle::Version;
use netpolc_bundle::bpf::Pair;
use netpolc_bundle::bpf::run::Tables;
use netpolc_bundle::nft::run::Packet;
use std::io;

/// Ends the connections that a version would not let begin, and has the other established ones pass without a look from then
/// on. Nothing is done if another version is in force, if that was done, or if connections were to live on.
///
/// # Errors
/// If it cannot be done. Every packet is judged all the same, as before.
pub(crate) fn stop(kernel: &mut dyn Kernel, pair: &Pair, version: Version) -> Result<Option<Cut>, Error> {
    if judging(version)?.is_none() {
        return Ok(None);
    }
    let tables = Tables::of(pair.cut.contents.entries());
    wait_for_packets()?;
    let cut = walked(walk(kernel, &|packet| passes(&tables, packet)))?;
    Ok(let_pass(pair, version)?.then_some(cut))
}

/// What is in force, if it is this version and judges every packet because there may be connections which it would not let
/// begin.
fn judging(version: Version) -> Result<Option<(Hook, Generation)>, Error> {
    let Some(dir) = bpffs::find()?.filter(|dir| dir.exists()) else { return Ok(None) };
    let Observed { hook: Some(hook), live: Some(live), settled: false, .. } = observe(&dir)? else {
        return Ok(None);
    };
    let judges = (live.meta.version, live.meta.established) == (version, Established::Cut);
    Ok(judges.then_some((hook, live)))
}

/// See [`judging`].
///
/// # Errors
/// If there is no file system to look at.
pub(crate) fn is_judging(version: Version) -> Result<bool, Error> {
    Ok(judging(version)?.is_some())
}

/// The first step: what an earlier version let begin is in the kernel's table of connections after it.
///
/// # Errors
/// If the kernel does not say when packets are through.
pub(crate) fn wait_for_packets() -> Result<(), Error> {
    sys::wait_for_packets()
        .map_err(|error| still(format!("the kernel does not say when packets are through: {error}")))
}

/// The third step: whether the walk has ended all that the version would not let begin.
///
/// # Errors
/// If it has not.
pub(crate) fn walked(walk: io::Result<(Cut, Tally)>) -> Result<Cut, Error> {
    let (cut, tally) = walk.map_err(|error| still(unreadable(&error)))?;
    if let Some(failure) = tally.failure {
        return Err(still(format!("the kernel does not delete {} that are denied: {failure}", tally.failed)));
    }
    if tally.incomplete {
        return Err(still("the kernel's table of connections changed while it was read".to_owned()));
    }
    Ok(cut)
}

/// The last step: from now on established packets are not judged. `false` if another version has come into force.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn let_pass(pair: &Pair, version: Version) -> Result<bool, Error> {
    let Some((hook, mut live)) = judging(version)? else { return Ok(false) };
    hook.switch(live.prepare_settled(&pair.keep)?)?;
    Ok(true)
}

/// Whether the packet that opens a connection passes.
pub(crate) fn passes(tables: &Tables, packet: &Packet) -> bool {
    tables.passes(packet.src, packet.dst, packet.protocol, packet.dport)
}

fn still(why: String) -> Error {
    Error::Incomplete(format!("packets of established connections are judged one by one: {why}"))
}
