//! The way of the data, one line a stage.

use crate::failure::Failure;
use crate::{input, output};
use netpolc_frontend::diagnostic::{Diagnostic, Severity, render};
use netpolc_frontend::model::{Model, resolve};
use netpolc_frontend::read;
use netpolc_frontend::source::Sources;
use netpolc_ir::matrix::Matrix;
use netpolc_ir::passes::PassStats;
use netpolc_ir::unit::Unit;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What was read, and what is to be said about it.
pub(crate) struct Input {
    pub(crate) sources: Sources,
    pub(crate) model: Model,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Documents of unrelated kinds, by kind.
    pub(crate) skipped: BTreeMap<String, usize>,
    /// The policies as they are written.
    pub(crate) written: read::Written,
    pub(crate) took: Vec<(&'static str, Duration)>,
}

/// The input, compiled as far as all nodes have it in common.
pub(crate) struct Compiled {
    pub(crate) input: Input,
    pub(crate) unit: Unit,
    pub(crate) optimized: Unit,
    pub(crate) matrix: Matrix,
    pub(crate) passes: Vec<PassStats>,
}

impl Input {
    /// Reads and resolves; errors of the input are in the diagnostics.
    pub(crate) fn load(paths: &[PathBuf]) -> Result<Input, Failure> {
        let mut took = Vec::new();
        let mut clock = Clock::start(&mut took);
        let sources = input::read(paths)?;
        clock.lap("files");
        let read = read::read(&sources);
        clock.lap("read");
        let (model, more) = resolve(read.objects);
        clock.lap("resolve");
        let mut diagnostics = read.diagnostics;
        diagnostics.extend(more);
        Ok(Input { sources, model, diagnostics, skipped: read.skipped, written: read.written, took })
    }

    /// Whether some diagnostic is an error.
    pub(crate) fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// Prints errors and warnings for people. What a question is asked about is not commented on further.
    pub(crate) fn report(&self) {
        let grave: Vec<Diagnostic> =
            self.diagnostics.iter().filter(|d| d.severity != Severity::Note).cloned().collect();
        if !grave.is_empty() {
            output::message(&render(&grave, &self.sources, output::color()));
        }
    }

    /// Prints all diagnostics for people, notes too, and what was passed over.
    pub(crate) fn report_all(&self) {
        if !self.diagnostics.is_empty() {
            output::message(&render(&self.diagnostics, &self.sources, output::color()));
        }
        let count: usize = self.skipped.values().sum();
        if count > 0 {
            let kinds: Vec<String> = self.skipped.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
            let objects = output::count(count, "object");
            output::message(&format!("passed over {objects} of other kinds: {}", kinds.join(", ")));
        }
    }

    /// Loads input that must be free of errors.
    pub(crate) fn sound(paths: &[PathBuf]) -> Result<Input, Failure> {
        let input = Input::load(paths)?;
        input.report();
        if input.has_errors() { Err(Failure::Errors) } else { Ok(input) }
    }
}

/// Compiles input that is free of errors.
pub(crate) fn compile(mut input: Input) -> Result<Compiled, Failure> {
    let mut took = std::mem::take(&mut input.took);
    let mut clock = Clock::start(&mut took);
    let compiled =
        netpolc_node::compile(&input.model, &mut |stage| clock.lap(stage)).map_err(Failure::Bug)?;
    input.took = took;
    let netpolc_node::Compiled { unit, optimized, matrix, passes } = compiled;
    Ok(Compiled { input, unit, optimized, matrix, passes })
}

/// Measures stages.
struct Clock<'a> {
    took: &'a mut Vec<(&'static str, Duration)>,
    last: Instant,
}

impl<'a> Clock<'a> {
    fn start(took: &'a mut Vec<(&'static str, Duration)>) -> Clock<'a> {
        Clock { took, last: Instant::now() }
    }

    fn lap(&mut self, stage: &'static str) {
        let now = Instant::now();
        self.took.push((stage, now - self.last));
        self.last = now;
    }
}
