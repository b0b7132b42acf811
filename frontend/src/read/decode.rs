//! The tree into types, through serde, with the API server's rules for scalars.
//!
//! `null` stands for an absent value everywhere: an empty string, list or mapping, zero. Strings must be strings and
//! numbers numbers; a whole float is an integer. A value of the wrong type is reported with its path and replaced by an
//! empty one, so that one pass finds them all; a caller must not use the result if anything was reported.

use super::report::Report;
use super::scalar::whole;
use super::tree::{Entry, Node, Path, Value};
use crate::diagnostic::{UNKNOWN_FIELD, WRONG_TYPE};
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use std::fmt;

/// Whether fields that the type does not have are errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    /// They are.
    Refuse,
    /// They are passed over.
    Ignore,
}

/// Decodes the object of a report. `None` if it could not be decoded at all; then something was reported. The result is
/// only meaningful if nothing was reported.
pub(super) fn decode<'t, 'a, T: Deserialize<'t>>(report: &Report<'t, 'a>, unknown: Unknown) -> Option<T> {
    let path = Path::ROOT;
    T::deserialize(Decoder { node: report.root(), path: &path, report, unknown, fields: &[] }).ok()
}

/// A value that could not be decoded.
#[derive(Debug)]
enum Failed {
    /// It has been reported.
    Reported,
    /// A type's own complaint, to be reported by the value it is about.
    Message(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Reported => f.write_str("reported"),
            Failed::Message(m) => f.write_str(m),
        }
    }
}

impl std::error::Error for Failed {}

impl serde::de::Error for Failed {
    fn custom<T: fmt::Display>(message: T) -> Failed {
        Failed::Message(message.to_string())
    }
}

#[derive(Clone, Copy)]
struct Decoder<'r, 't, 'a> {
    node: &'t Node<'a>,
    path: &'r Path<'r>,
    report: &'r Report<'t, 'a>,
    unknown: Unknown,
    /// The fields of the type that this value is a field of.
    fields: &'static [&'static str],
}

impl Decoder<'_, '_, '_> {
    fn wrong(&self, wanted: &str) {
        let got = self.node.value.describe();
        let text = match &self.node.value {
            Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_) if wanted == "string" => {
                Some("put the value in quotes to make it a string".to_string())
            }
            _ => None,
        };
        self.report.error_help(
            WRONG_TYPE,
            self.path,
            format!("cannot use {got} here: a {wanted} is wanted"),
            text,
        );
    }

    /// Reports a type's own complaint here.
    fn located<T>(&self, result: Result<T, Failed>) -> Result<T, Failed> {
        result.map_err(|failed| {
            if let Failed::Message(message) = failed {
                self.report.error(WRONG_TYPE, self.path, message);
            }
            Failed::Reported
        })
    }

    fn integer(&self, min: i64, max: i64) -> i64 {
        let n = match self.node.value {
            Value::Null => return 0,
            Value::Int(n) => Some(n),
            Value::Float(f) => whole(f),
            _ => None,
        };
        match n {
            Some(n) if (min..=max).contains(&n) => n,
            _ => {
                self.wrong(if max == i64::from(i32::MAX) { "32-bit integer" } else { "64-bit integer" });
                0
            }
        }
    }

    fn unknown_field(&self) {
        let Some(name) = self.path.name() else { return };
        let help = suggestion(name, self.fields).map(|known| format!("did you mean `{known}`?"));
        let help = help.or_else(|| match name {
            "to" => Some("ingress rules have `from`, egress rules have `to`".into()),
            "from" => Some("egress rules have `to`, ingress rules have `from`".into()),
            _ if self.fields == ["matchExpressions", "matchLabels"] => {
                Some(format!("labels belong below `matchLabels`: `matchLabels: {{{name}: ...}}`"))
            }
            _ => None,
        });
        self.report.error_help(UNKNOWN_FIELD, self.path, format!("unknown field \"{}\"", self.path), help);
    }
}

/// The field that a misspelt one probably stands for.
pub(super) fn suggestion(name: &str, fields: &'static [&'static str]) -> Option<&'static str> {
    let same = fields.iter().find(|f| f.eq_ignore_ascii_case(name));
    let close = || fields.iter().find(|f| name.len() > 3 && name.len() < 40 && distance(name, f) <= 2);
    same.or_else(close).copied()
}

/// How many characters to insert, remove or replace to get from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

impl<'r, 't, 'a> Deserializer<'t> for Decoder<'r, 't, 'a> {
    type Error = Failed;

    fn deserialize_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failed> {
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(n) => visitor.visit_i64(*n),
            Value::Big(n) => visitor.visit_u64(*n),
            Value::Float(f) => match whole(*f) {
                Some(n) => visitor.visit_i64(n),
                None => visitor.visit_f64(*f),
            },
            Value::Str(s) => visitor.visit_borrowed_str(s),
            Value::List(_) => return self.deserialize_seq(visitor),
            Value::Map(_) => return self.deserialize_map(visitor),
        };
        self.located(result)
    }

    fn deserialize_bool<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failed> {
        let value = match self.node.value {
            Value::Bool(b) => b,
            Value::Null => false,
            _ => {
                self.wrong("boolean");
                false
            }
        };
        self.located(visitor.visit_bool(value))
    }

    fn deserialize_i32<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failed> {
        let n = self.integer(i64::from(i32::MIN), i64::from(i32::MAX));
        self.located(visitor.visit_i64(n))
    }

    fn deserialize_i64<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failed> {
        let n = self.integer(i64::MIN, i64::MAX);
        self.located(visitor.visit_i64(n))
    }

    fn deserialize_str<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failed> {
        let text = match &self.node.value {
            Value::Str(s) => s,
            Value::Null => "",
            _ => {
                self.wrong("string");
                ""
            }
        };
        self.located(visitor.visit_borrowed_str(text))
    }

    fn deserialize_string<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failed> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failed> {
        if matches!(self.node.value, Value::Null) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failed> {
        let result = visitor.visit_newtype_struct(self);
        self.located(result)
    }

    fn deserialize_seq<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failed> {
        let items: &'t [Node<'a>] = match &self.node.value {
            Value::List(items) => items,
            Value::Null => &[],
            _ => {
                self.wrong("list");
                &[]
            }
        };
        self.located(visitor.visit_seq(Items { decoder: self, items, next: 0 }))
    }

    fn deserialize_map<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failed> {
        self.entries(&[], visitor)
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failed> {
        self.entries(fields, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failed> {
        if self.unknown == Unknown::Refuse {
            self.unknown_field();
        }
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        <V: Visitor<'t>>
        i8 i16 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
    }
}

impl<'r, 't, 'a> Decoder<'r, 't, 'a> {
    fn entries<V: Visitor<'t>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failed> {
        let entries: &'t [Entry<'a>] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                self.wrong("mapping");
                &[]
            }
        };
        self.located(visitor.visit_map(Fields { decoder: self, fields, entries, next: 0 }))
    }
}

struct Items<'r, 't, 'a> {
    decoder: Decoder<'r, 't, 'a>,
    items: &'t [Node<'a>],
    next: usize,
}

impl<'r, 't, 'a> SeqAccess<'t> for Items<'r, 't, 'a> {
    type Error = Failed;

    fn next_element_seed<T: DeserializeSeed<'t>>(&mut self, seed: T) -> Result<Option<T::Value>, Failed> {
        let Some(node) = self.items.get(self.next) else { return Ok(None) };
        let path = self.decoder.path.index(self.next);
        self.next += 1;
        seed.deserialize(Decoder { node, path: &path, fields: &[], ..self.decoder }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.next)
    }
}

struct Fields<'r, 't, 'a> {
    decoder: Decoder<'r, 't, 'a>,
    fields: &'static [&'static str],
    entries: &'t [Entry<'a>],
    next: usize,
}

impl<'r, 't, 'a> MapAccess<'t> for Fields<'r, 't, 'a> {
    type Error = Failed;

    fn next_key_seed<K: DeserializeSeed<'t>>(&mut self, seed: K) -> Result<Option<K::Value>, Failed> {
        let Some(entry) = self.entries.get(self.next) else { return Ok(None) };
        seed.deserialize(BorrowedStrDeserializer::new(&entry.key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'t>>(&mut self, seed: V) -> Result<V::Value, Failed> {
        let Some(entry) = self.entries.get(self.next) else { return Err(Failed::Reported) };
        self.next += 1;
        let path = self.decoder.path.key(&entry.key);
        seed.deserialize(Decoder { node: &entry.value, path: &path, fields: self.fields, ..self.decoder })
    }
}
