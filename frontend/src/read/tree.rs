//! A document as a tree of values in which every value and every key knows its place.
//!
//! Both readers, YAML and JSON, make this tree. Its values are what `kubectl` would send to the API server: scalars are
//! resolved, aliases expanded, merges done. Lists and mappings are shared where an alias stands for them, so the tree
//! of a document is never much larger than its text; the readers bound depth and expanded size.

use crate::source::{SourceId, Span};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

/// Deepest nesting of lists and mappings that the readers accept. Everything that walks a tree may recurse.
pub(super) const MAX_DEPTH: usize = 200;

/// At most this many duplicate keys of one document are kept.
pub(super) const MAX_PROBLEMS: usize = 100;

/// A value and the bytes of its source that it stands on.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) value: Value<'a>,
}

/// A value as JSON knows it.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// An integer above `i64::MAX`.
    Big(u64),
    Float(f64),
    Str(Cow<'a, str>),
    List(Rc<Vec<Node<'a>>>),
    Map(Rc<Vec<Entry<'a>>>),
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry<'a> {
    pub(super) key: Cow<'a, str>,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) value: Node<'a>,
}

impl Node<'_> {
    /// Its place in a source.
    pub(super) fn span(&self, source: SourceId) -> Span {
        Span { source, start: self.start, end: self.end }
    }
}

impl<'a> Node<'a> {
    /// The entry of a mapping with this key.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry<'a>> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key),
            _ => None,
        }
    }

    /// The value of this key, if this is a mapping that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node<'a>> {
        self.entry(key).map(|e| &e.value)
    }

    /// The item with this index, if this is a list that has it.
    pub(super) fn item(&self, index: usize) -> Option<&Node<'a>> {
        match &self.value {
            Value::List(items) => items.get(index),
            _ => None,
        }
    }
}

impl Value<'_> {
    /// What it is, for messages, as "the number 1".
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Null => "null".into(),
            Value::Bool(b) => format!("the boolean {b}"),
            Value::Int(n) => format!("the number {n}"),
            Value::Big(n) => format!("the number {n}"),
            Value::Float(n) => format!("the number {n}"),
            Value::Str(s) => format!("the string {}", quote(s)),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
        }
    }
}

/// A text in quotes for a message: control characters escaped, cut to a readable length.
pub(super) fn quote(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

/// Something that is wrong with a document before it is an object.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) code: &'static str,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl Problem {
    /// A problem with these bytes.
    pub(super) fn new(code: &'static str, start: u32, end: u32, message: impl Into<String>) -> Problem {
        Problem { code, start, end, message: message.into(), help: None }
    }
}

/// The entries of a mapping while it is read; refuses keys that are there already.
#[derive(Debug, Default)]
pub(super) struct Entries<'a> {
    list: Vec<Entry<'a>>,
    /// All keys, once there are so many that comparing each would be slow.
    seen: Option<BTreeSet<Cow<'a, str>>>,
}

impl<'a> Entries<'a> {
    /// Above this many keys a set finds duplicates.
    const SMALL: usize = 24;

    /// Adds an entry, or gives it back if the key is taken.
    pub(super) fn push(&mut self, entry: Entry<'a>) -> Option<Entry<'a>> {
        match &mut self.seen {
            Some(seen) => {
                if !seen.insert(entry.key.clone()) {
                    return Some(entry);
                }
            }
            None => {
                if self.list.iter().any(|e| e.key == entry.key) {
                    return Some(entry);
                }
                if self.list.len() >= Self::SMALL {
                    let keys = self.list.iter().map(|e| e.key.clone());
                    self.seen = Some(keys.chain([entry.key.clone()]).collect());
                }
            }
        }
        self.list.push(entry);
        None
    }

    /// The mapping, without room to grow: the tree of a cluster dump has many small ones.
    pub(super) fn finish(mut self) -> Value<'a> {
        self.list.shrink_to_fit();
        Value::Map(Rc::new(self.list))
    }

    /// The end of the last value.
    pub(super) fn end(&self) -> Option<u32> {
        self.list.last().map(|e| e.value.end)
    }
}

/// A field path, as a list that grows on the stack while the tree is walked.
#[derive(Clone, Copy)]
pub(super) struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Key(&'p str),
    Index(usize),
}

impl<'p> Path<'p> {
    /// The object itself.
    pub(super) const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    /// The field with this name.
    pub(super) fn key<'q>(&'q self, name: &'q str) -> Path<'q>
    where
        'p: 'q,
    {
        Path { parent: Some(self), step: Step::Key(name) }
    }

    /// The item with this index.
    pub(super) fn index<'q>(&'q self, index: usize) -> Path<'q>
    where
        'p: 'q,
    {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    /// The name of the field, if the last step is one.
    pub(super) fn name(&self) -> Option<&'p str> {
        match self.step {
            Step::Key(name) => Some(name),
            _ => None,
        }
    }

    /// The path of the surrounding value.
    pub(super) fn parent(&self) -> Option<&'p Path<'p>> {
        self.parent
    }

    /// The value at this path, or the nearest one around it that exists. Says whether it is the value itself.
    pub(super) fn nearest<'t, 'a>(&self, root: &'t Node<'a>) -> (&'t Node<'a>, bool) {
        let Some(parent) = self.parent else { return (root, true) };
        let (node, exact) = parent.nearest(root);
        if !exact {
            return (node, false);
        }
        let next = match self.step {
            Step::Root => Some(node),
            Step::Key(name) => node.get(name),
            Step::Index(i) => node.item(i),
        };
        next.map_or((node, false), |n| (n, true))
    }
}

impl Path<'_> {
    /// The items of the list at this path, if there is one.
    pub(super) fn nodes<'t, 'a>(&self, root: &'t Node<'a>) -> Option<&'t [Node<'a>]> {
        match self.nearest(root) {
            (Node { value: Value::List(items), .. }, true) => Some(items),
            _ => None,
        }
    }

    /// Whether there is a list at this path.
    pub(super) fn is_list(&self, root: &Node<'_>) -> bool {
        self.nodes(root).is_some()
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else { return Ok(()) };
        parent.fmt(f)?;
        match self.step {
            Step::Root => Ok(()),
            Step::Key(name) if parent.parent.is_none() => f.write_str(name),
            Step::Key(name) => write!(f, ".{name}"),
            Step::Index(i) => write!(f, "[{i}]"),
        }
    }
}
