//! The text form of [`Contents`].

use super::{Contents, Pair, Pod, PortSet};
use crate::bpf::Block;
use crate::bpf::layout::Ports;
use crate::limits;
use std::fmt::Write;
use std::str::FromStr;

/// The first line; the number is the version of the form.
const HEADER: &str = "netpolc-ebpf 2";

/// A contents file that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentsError {
    /// Too large to be read.
    #[error("{0} bytes are too many")]
    TooLarge(usize),
    /// A line that is not understood, or not in its place.
    #[error("line {line}: {text}")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// What is wrong.
        text: String,
    },
    /// Entries that do not go together.
    #[error("{0}")]
    Inconsistent(String),
}

impl Contents {
    /// The text form: deterministic to the byte.
    pub fn text(&self) -> String {
        let mut out = format!("{HEADER}\ncolumns {}\n", self.columns);
        // Writing to a String cannot fail.
        for (i, label) in self.rows.iter().enumerate() {
            let label: String = label.chars().filter(|c| !c.is_control()).collect();
            let _ = writeln!(out, "row {} {label}", i + 1);
        }
        for (addr, pod) in &self.pods {
            let Pod { column, ingress, egress, pod } = pod;
            let _ = writeln!(out, "pod {addr} {column} {ingress} {egress} {pod}");
        }
        for (block, column) in &self.blocks {
            let _ = writeln!(out, "block {block} {column}");
        }
        for (i, set) in self.ports.iter().enumerate() {
            let span = |&(lo, hi): &(u16, u16)| if lo == hi { lo.to_string() } else { format!("{lo}-{hi}") };
            let spans: Vec<String> = set.iter().map(span).collect();
            let _ = writeln!(out, "ports {} {}", i + 2, spans.join(","));
        }
        for ((row, column), Pair { ports: [tcp, udp, sctp], other }) in &self.pairs {
            let [tcp, udp, sctp] = [tcp, udp, sctp].map(|number| set(*number));
            let _ = writeln!(out, "pair {row} {column} {tcp} {udp} {sctp} {other}");
        }
        out
    }

    /// Reads the text form back. Only what [`Contents::text`] writes is accepted, to the byte.
    ///
    /// # Errors
    /// The first line that is wrong, or entries that name what does not exist.
    pub fn parse(text: &str) -> Result<Contents, ContentsError> {
        if text.len() > limits::BPF_CONTENTS_BYTES as usize {
            return Err(ContentsError::TooLarge(text.len()));
        }
        let mut lines = (1..).zip(text.lines());
        let mut next = |what: &str| -> Result<(usize, String), ContentsError> {
            let (line, found) = lines.next().unwrap_or((1, ""));
            let rest = found
                .strip_prefix(what)
                .and_then(|r| if what == HEADER { Some(r) } else { r.strip_prefix(' ') });
            rest.map(|r| (line, r.to_owned())).ok_or_else(|| wrong(line, &format!("`{what}` is missing")))
        };
        next(HEADER)?;
        let (line, columns) = next("columns")?;
        let columns = number(line, Some(&columns))?;
        let mut contents = Contents {
            columns,
            rows: Vec::new(),
            pods: Default::default(),
            blocks: Default::default(),
            pairs: Default::default(),
            ports: Vec::new(),
        };
        for (line, text) in lines {
            contents.line(line, text)?;
        }
        if let Some(fault) = contents.fault() {
            return Err(ContentsError::Inconsistent(fault));
        }
        // Order, spelling and duplicates in one comparison.
        if contents.text() != text {
            return Err(ContentsError::Inconsistent("the lines are not in the order of the form".into()));
        }
        Ok(contents)
    }

    fn line(&mut self, line: usize, text: &str) -> Result<(), ContentsError> {
        let (kind, rest) = text.split_once(' ').ok_or_else(|| wrong(line, "an entry is missing"))?;
        let mut words = rest.split(' ');
        match kind {
            "row" => {
                let (_, label) = rest.split_once(' ').ok_or_else(|| wrong(line, "a row has no label"))?;
                self.rows.push(label.to_owned());
                return Ok(());
            }
            "pod" => {
                let addr = number(line, words.next())?;
                let mut value = || number(line, words.next());
                let pod = Pod { column: value()?, ingress: value()?, egress: value()?, pod: value()? };
                self.pods.insert(addr, pod);
            }
            "block" => {
                let block: Block = number(line, words.next())?;
                self.blocks.insert(block, number(line, words.next())?);
            }
            "ports" => {
                let _: u16 = number(line, words.next())?;
                let spans = words.next().ok_or_else(|| wrong(line, "no ports"))?;
                self.ports.push(spans.split(',').map(|s| span(line, s)).collect::<Result<PortSet, _>>()?);
            }
            "pair" => {
                let key = (number(line, words.next())?, number(line, words.next())?);
                let mut value = || set_number(line, words.next());
                let ports = [value()?, value()?, value()?];
                let pair = Pair { ports, other: number(line, words.next())? };
                self.pairs.insert(key, pair);
            }
            other => return Err(wrong(line, &format!("`{}` is no entry", short(other)))),
        }
        match words.next() {
            None => Ok(()),
            Some(_) => Err(wrong(line, "too much in the line")),
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

fn wrong(line: usize, text: &str) -> ContentsError {
    ContentsError::Line { line, text: text.to_owned() }
}

fn number<T: FromStr>(line: usize, word: Option<&str>) -> Result<T, ContentsError> {
    let word = word.ok_or_else(|| wrong(line, "a value is missing"))?;
    word.parse().map_err(|_| wrong(line, &format!("`{}` does not belong there", short(word))))
}

/// A set of ports in a pair: the port of a set of one behind a colon, else the set's number.
fn set(number: u32) -> String {
    match Ports::of(number) {
        Ports::One(port) => format!(":{port}"),
        _ => number.to_string(),
    }
}

fn set_number(line: usize, word: Option<&str>) -> Result<u32, ContentsError> {
    match word.and_then(|word| word.strip_prefix(':')) {
        Some(port) => number(line, Some(port)).map(|port| Ports::One(port).number()),
        None => number(line, word),
    }
}

fn span(line: usize, text: &str) -> Result<(u16, u16), ContentsError> {
    match text.split_once('-') {
        Some((lo, hi)) => Ok((number(line, Some(lo))?, number(line, Some(hi))?)),
        None => number(line, Some(text)).map(|port| (port, port)),
    }
}
