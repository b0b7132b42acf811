//! Bytes to objects: documents are found, parsed with places, decoded, defaulted and validated as the API server does.
//!
//! Nothing here fails: every problem is a [`Diagnostic`], and the reader goes on behind it. An object that has an error
//! is not among the [`Objects`], so a caller that goes on in spite of errors must say so aloud. The same inputs give the
//! same result however many threads read them.

mod cluster_policy;
mod decode;
mod documents;
mod json;
mod network_policy;
mod pods;
mod relax;
mod report;
mod scalar;
mod shared;
mod split;
mod tree;
mod unique;
mod validate;
mod workloads;
mod written;
mod yaml;

use crate::diagnostic::{Diagnostic, Severity};
use crate::objects::Objects;
use crate::source::Sources;
use documents::{Found, read_unit};
use split::Unit;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
pub use written::Written;

/// Documents are handed to threads in batches of about so many bytes.
const BATCH_BYTES: usize = 128 << 10;

/// More threads than this are not started.
const MAX_THREADS: usize = 8;

/// What was read.
#[derive(Debug, Clone, Default)]
pub struct Read {
    /// The objects without errors, in the order of reading, each once.
    pub objects: Objects,
    /// Everything that is wrong or worth knowing, in the order of reading.
    pub diagnostics: Vec<Diagnostic>,
    /// How many objects of unrelated kinds were passed over, by API version and kind, as `v1 Service`.
    pub skipped: BTreeMap<String, usize>,
    /// The policies as they are written.
    pub written: Written,
}

/// Reads all sources.
pub fn read(sources: &Sources) -> Read {
    let mut found = Found::default();
    let mut units = Vec::new();
    for (id, source) in sources.iter() {
        match split::split(id, source) {
            Ok(more) => units.extend(more),
            Err(problem) => found.diagnostics.push(report::of_document(problem, id, Severity::Error)),
        }
    }
    for part in read_batches(&batches(&units), &units, sources) {
        found.absorb(part);
    }
    let Found { mut objects, mut diagnostics, skipped, written, external } = found;
    unique::check(&mut objects, sources, &mut diagnostics);
    shared::check(&mut objects.nodes, &external, sources, &mut diagnostics);
    Read { objects, diagnostics, skipped, written }
}

/// Neighbouring units that are read together.
fn batches(units: &[Unit]) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (i, unit) in units.iter().enumerate() {
        bytes += unit.end - unit.start;
        if bytes >= BATCH_BYTES {
            out.push(from..i + 1);
            (from, bytes) = (i + 1, 0);
        }
    }
    if from < units.len() {
        out.push(from..units.len());
    }
    out
}

/// Reads the batches, on several threads if there are several; the results are in the order of the batches.
fn read_batches(batches: &[Range<usize>], units: &[Unit], sources: &Sources) -> Vec<Found> {
    let read_batch = |range: &Range<usize>| {
        let mut found = Found::default();
        for unit in &units[range.clone()] {
            read_unit(unit, sources.get(unit.source), &mut found);
        }
        found
    };
    // One object of a watch is one batch. To ask how many threads there could be reads files of the kernel, which takes longer
    // than to read the object.
    let threads = match batches.len() {
        0 | 1 => 1,
        n => std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(n),
    };
    if threads <= 1 {
        return batches.iter().map(read_batch).collect();
    }
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(batches.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(range) = batches.get(i) else { break };
                    let found = read_batch(range);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((i, found));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, found)| found).collect()
}
