//! Findings about one object, with the places of its fields.

use super::tree::{Node, Path, Problem};
use crate::diagnostic::{Diagnostic, MANY, Severity, UNKNOWN_FIELD, WRONG_TYPE};
use crate::source::{SourceId, Span};
use std::cell::{Cell, RefCell};

/// At most this many findings of one object are kept.
const MAX_PER_OBJECT: usize = 200;

/// Collects what is wrong with an object.
pub(super) struct Report<'t, 'a> {
    source: SourceId,
    root: &'t Node<'a>,
    object: String,
    found: RefCell<Vec<Diagnostic>>,
    more: Cell<usize>,
    errors: Cell<usize>,
}

impl<'t, 'a> Report<'t, 'a> {
    /// Nothing is wrong yet with this object, called so (`NetworkPolicy shop/db`).
    pub(super) fn new(source: SourceId, root: &'t Node<'a>, object: String) -> Report<'t, 'a> {
        let (found, more, errors) = Default::default();
        Report { source, root, object, found, more, errors }
    }

    /// The object.
    pub(super) fn root(&self) -> &'t Node<'a> {
        self.root
    }

    /// The place of a value, or of the nearest one around it.
    pub(super) fn at(&self, path: &Path<'_>) -> Span {
        path.nearest(self.root).0.span(self.source)
    }

    /// An error at a field.
    pub(super) fn error(&self, code: &'static str, path: &Path<'_>, message: impl Into<String>) {
        self.add(code, Severity::Error, path, message.into(), None);
    }

    /// An error at a field, and what to do about it.
    pub(super) fn error_help(
        &self,
        code: &'static str,
        path: &Path<'_>,
        message: String,
        help: Option<String>,
    ) {
        self.add(code, Severity::Error, path, message, help);
    }

    /// A warning at a field.
    pub(super) fn warn(&self, code: &'static str, path: &Path<'_>, message: impl Into<String>) {
        self.add(code, Severity::Warning, path, message.into(), None);
    }

    fn add(
        &self,
        code: &'static str,
        severity: Severity,
        path: &Path<'_>,
        message: String,
        help: Option<String>,
    ) {
        if severity == Severity::Error {
            self.errors.set(self.errors.get() + 1);
        }
        let mut found = self.found.borrow_mut();
        if found.len() >= MAX_PER_OBJECT {
            self.more.set(self.more.get() + 1);
            return;
        }
        found.push(Diagnostic {
            code,
            severity,
            message,
            span: Some(self.place(path, code == UNKNOWN_FIELD)),
            path: Some(path.to_string()).filter(|p| !p.is_empty()),
            object: Some(self.object.clone()),
            help,
        });
    }

    /// The place to show for a finding: the value, or its key where the field itself is wrong or there is no text.
    fn place(&self, path: &Path<'_>, key: bool) -> Span {
        let (node, exact) = path.nearest(self.root);
        if exact && let Some((parent, name)) = path.parent().zip(path.name()) {
            let (around, _) = parent.nearest(self.root);
            if let Some(entry) = around.entry(name)
                && (key || entry.value.start >= entry.value.end)
            {
                return Span { source: self.source, start: entry.start, end: entry.end };
            }
        }
        node.span(self.source)
    }

    /// The place of a value of this object.
    pub(super) fn span(&self, node: &Node<'_>) -> Span {
        node.span(self.source)
    }

    /// Whether a value had the wrong type, so that what was decoded is incomplete.
    pub(super) fn wrong_types(&self) -> bool {
        self.found.borrow().iter().any(|d| d.code == WRONG_TYPE) || self.more.get() > 0
    }

    /// How many errors there are.
    pub(super) fn errors(&self) -> usize {
        self.errors.get()
    }

    /// Everything that was found.
    pub(super) fn finish(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        if self.more.get() > 0 {
            let severity = if self.errors.get() > 0 { Severity::Error } else { Severity::Warning };
            found.push(Diagnostic {
                code: MANY,
                severity,
                message: format!("{} more problems in this object", self.more.get()),
                span: Some(self.root.span(self.source)),
                path: None,
                object: Some(self.object),
                help: None,
            });
        }
        found
    }
}

/// A problem of a document as a diagnostic.
pub(super) fn of_document(problem: Problem, source: SourceId, severity: Severity) -> Diagnostic {
    let Problem { code, start, end, message, help } = problem;
    let span = Some(Span { source, start, end });
    Diagnostic { code, severity, message, span, path: None, object: None, help }
}
