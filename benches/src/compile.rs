//! The way from texts to the script of a node, in two calls.

use crate::cluster::File;
use netpolc_frontend::diagnostic::Severity;
use netpolc_frontend::model::{Model, resolve};
use netpolc_frontend::source::Sources;
use netpolc_frontend::{lower, read};
use netpolc_ir::matrix::{Matrix, fold};
use netpolc_ir::passes;
use netpolc_ir::unit::{Host, Origin};
use netpolc_ir::verify::verify;
use netpolc_nftables::emit::emit;
use netpolc_nftables::select::{Origins, Selector};

/// Input or compiler at fault: a benchmark then has nothing to measure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(String);

impl CompileError {
    /// What is wrong, in words.
    pub(crate) fn new(what: String) -> CompileError {
        CompileError(what)
    }
}

/// Input that was read, and its matrix.
#[derive(Debug)]
pub struct Front {
    /// The resolved input.
    pub model: Model,
    /// What all nodes have in common.
    pub matrix: Matrix,
}

/// Texts as sources.
pub fn sources(files: Vec<File>) -> Sources {
    let mut sources = Sources::default();
    for (name, text) in files {
        sources.add(name, text.into_bytes());
    }
    sources
}

impl Front {
    /// Reads and compiles as far as all nodes have it in common.
    ///
    /// # Errors
    /// If the input has an error, or a stage broke the IR.
    pub fn read(files: Vec<File>) -> Result<Front, CompileError> {
        let read = read::read(&sources(files));
        let (model, more) = resolve(read.objects);
        if let Some(error) = read.diagnostics.iter().chain(&more).find(|d| d.severity == Severity::Error) {
            return Err(CompileError(format!("{error:?}")));
        }
        let verified = verify(lower::lower(&model)).map_err(|e| CompileError(format!("{e:?}")))?;
        let optimized = passes::run(verified, |_| {}).map_err(|e| CompileError(e.to_string()))?;
        Ok(Front { matrix: fold(&optimized), model })
    }

    /// A node by name.
    pub fn host(&self, node: &str) -> Option<Host> {
        self.matrix.hosts.iter().find(|(_, data)| data.name == node).map(|(host, _)| host)
    }

    /// The nftables script of a node.
    ///
    /// # Errors
    /// If there is no such node, or its rules do not fit.
    pub fn script(&self, node: &str) -> Result<String, CompileError> {
        let host = self.host(node).ok_or_else(|| CompileError(format!("there is no node {node}")))?;
        let names = Names(&self.model);
        let plan = Selector::new(&self.matrix, &names).plan(host).map_err(|e| CompileError(e.to_string()))?;
        Ok(emit(&plan.ruleset, &[]))
    }
}

/// Labels for comments: the policies' names.
#[derive(Debug)]
pub struct Names<'m>(pub &'m Model);

impl Origins for Names<'_> {
    fn label(&self, origin: Origin) -> String {
        self.0.origin(origin).map(|o| o.policy.clone()).unwrap_or_default()
    }
}
