//! What was measured, as Markdown and as JSON.

use super::designs::{DROP, Design, FLOOR, key};
use super::install::{Loaded, Took};
use super::measure::{Kind, Repeat};
use crate::statistics::{median, median_ratio, quantile};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// All that was measured.
#[derive(Debug)]
pub struct Results {
    /// What was to be measured, in the order of the tables.
    pub designs: Vec<Design>,
    /// What could not be built at all, and why.
    pub left_out: BTreeMap<String, String>,
    /// How often each design was measured after it was built.
    pub rounds: usize,
    /// What each process has measured.
    pub repeats: Vec<Repeat>,
}

/// A figure of some loads of one design; `None` if they do not have it.
type Figure<'f> = dyn Fn(&[&Loaded]) -> Option<f64> + 'f;

/// One design, kind of packet and number of policies.
#[derive(Debug, Clone, Copy)]
struct Cell {
    ns: f64,
    ratio: f64,
    quartiles: [f64; 2],
    added: f64,
}

impl Results {
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for design in &self.designs {
            if !names.contains(&design.name.as_str()) {
                names.push(&design.name);
            }
        }
        names
    }

    fn policies(&self) -> Vec<usize> {
        self.designs.iter().map(|d| d.policies).collect::<BTreeSet<usize>>().into_iter().collect()
    }

    /// Samples of a design and of what it is compared with, of the repeats that have both.
    fn pairs(&self, name: &str, policies: usize, kind: Kind) -> Vec<(f64, f64)> {
        let of = |repeat: &Repeat, name: &str| -> Option<Vec<f64>> {
            Some(repeat.samples.get(&key(name, policies))?.get(&kind)?.clone())
        };
        let both = |repeat: &Repeat| Some((of(repeat, name)?, of(repeat, base(kind))?));
        let zipped = self.repeats.iter().filter_map(both).flat_map(|(own, base)| own.into_iter().zip(base));
        zipped.collect()
    }

    fn cell(&self, name: &str, policies: usize, kind: Kind) -> Option<Cell> {
        let pairs = self.pairs(name, policies, kind);
        if pairs.is_empty() {
            return None;
        }
        let (own, base): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let ratios: Vec<f64> = own.iter().zip(&base).map(|(own, base)| own / base).collect();
        Some(Cell {
            ns: median(&own),
            ratio: median(&ratios),
            quartiles: [quantile(&ratios, 0.25), quantile(&ratios, 0.75)],
            added: quantile(&own, 0.25) - quantile(&base, 0.25),
        })
    }

    /// The largest load against the smallest, each over its own floor.
    fn growth(&self, name: &str, kind: Kind) -> Option<f64> {
        let policies = self.policies();
        let (first, last) = (*policies.first()?, *policies.last()?);
        let mut ratios = (Vec::new(), Vec::new());
        for repeat in &self.repeats {
            let over = |policies| -> Option<Vec<f64>> {
                let own = repeat.samples.get(&key(name, policies))?.get(&kind)?;
                let base = repeat.samples.get(&key(base(kind), policies))?.get(&kind)?;
                Some(own.iter().zip(base).map(|(own, base)| own / base).collect())
            };
            if let (Some(large), Some(small)) = (over(last), over(first)) {
                ratios.0.extend(large);
                ratios.1.extend(small);
            }
        }
        (!ratios.0.is_empty() && first < last).then(|| median_ratio(&ratios.0, &ratios.1))
    }

    fn loaded(&self, name: &str, policies: usize) -> Vec<&Loaded> {
        self.repeats.iter().filter_map(|repeat| repeat.loaded.get(&key(name, policies))).collect()
    }

    /// Why designs have no figures, and what the loader said where it does not say the same of all.
    fn remarks(&self) -> [BTreeMap<String, String>; 2] {
        let mut left_out = self.left_out.clone();
        let mut notes = BTreeMap::new();
        for repeat in &self.repeats {
            left_out.extend(repeat.left_out.clone());
            let said = repeat.loaded.iter().filter(|(_, loaded)| !loaded.notes.is_empty());
            notes.extend(said.map(|(key, loaded)| (key.clone(), loaded.notes.join("; "))));
        }
        [left_out, notes]
    }

    /// Tables.
    pub fn markdown(&self) -> String {
        let counts = self.repeats.iter().map(|repeat| repeat.counts);
        let (sent, late) = counts.fold((0, 0), |(sent, late), c| (sent + c.sent, late + c.late));
        let mut out =
            format!("{} x {} rounds, {sent} packets, {late} of them late\n", self.repeats.len(), self.rounds);
        for kind in Kind::ALL {
            let title = match kind {
                Kind::Established => "Established connections",
                Kind::New => "New: connections without a reply, whose entry exists",
                Kind::First => "First: the first packet of a new flow, allowed",
                Kind::Denied => "Denied: the first packet of a new flow, over one rule that drops it",
            };
            let _ = write!(out, "\n### {title}\n\n{}", self.packets(kind));
        }
        let wall = |took: Took| took.wall;
        let first = |all: &[&Loaded]| median_of(all.iter().map(|loaded| wall(loaded.first)));
        let update = |all: &[&Loaded]| {
            median_of(all.iter().flat_map(|loaded| &loaded.updates).map(|took| wall(*took)))
        };
        let cpu =
            |all: &[&Loaded]| median_of(all.iter().flat_map(|loaded| &loaded.updates).map(|took| took.cpu));
        let grown = |all: &[&Loaded]| median_of(all.iter().map(|loaded| loaded.grown / 1024.0));
        let own = |all: &[&Loaded]| median_of(all.iter().filter_map(|loaded| Some(loaded.own? / 1024.0)));
        let figures: [(&str, usize, &Figure<'_>); 5] = [
            ("First load, ms", 1, &first),
            ("One policy changed, ms", 1, &update),
            ("One policy changed, ms of CPU", 1, &cpu),
            ("Kernel memory grown by, KiB", 0, &grown),
            ("Kernel's own account: memlock of BPF maps, ipset's size in memory, KiB", 0, &own),
        ];
        for (title, digits, figure) in figures {
            let _ = write!(out, "\n### {title}\n\n{}", self.loads(digits, figure));
        }
        for (title, lines) in ["Left out", "The loader's notes"].into_iter().zip(self.remarks()) {
            if !lines.is_empty() {
                let _ = write!(out, "\n### {title}\n\n");
                for (key, line) in lines {
                    let _ = writeln!(out, "- {key}: {}", line.replace('\n', " "));
                }
            }
        }
        out
    }

    /// A row for each design: medians of paired ratios, and added nanoseconds (differences of lower quartiles).
    fn packets(&self, kind: Kind) -> String {
        let policies = self.policies();
        let mut out = head(&policies, " largest over smallest |");
        for name in self.names() {
            let cells: Vec<Option<Cell>> = policies.iter().map(|&n| self.cell(name, n, kind)).collect();
            if cells.iter().all(Option::is_none) {
                continue;
            }
            let text = |cell: &Option<Cell>| match cell {
                Some(cell) if name == base(kind) => format!("{} ns", thousands(cell.ns)),
                Some(cell) => {
                    let sign = if cell.added < 0.0 { "" } else { "+" };
                    format!("x{:.3} ({sign}{})", cell.ratio, thousands(cell.added))
                }
                None => String::new(),
            };
            let cells: Vec<String> = cells.iter().map(text).collect();
            let growth = self.growth(name, kind).filter(|_| name != base(kind));
            let growth = growth.map_or_else(String::new, |x| format!("x{x:.3}"));
            let _ = writeln!(out, "| {name} | {} | {growth} |", cells.join(" | "));
        }
        out
    }

    fn loads(&self, digits: usize, figure: &Figure<'_>) -> String {
        let policies = self.policies();
        let mut out = head(&policies, "");
        for name in self.names() {
            // What is never updated is there for comparison of packets only.
            let cells = policies.iter().map(|&n| {
                let all = self.loaded(name, n);
                figure(&all).filter(|_| all.iter().any(|loaded| !loaded.updates.is_empty()))
            });
            let cells: Vec<Option<f64>> = cells.collect();
            if cells.iter().any(Option::is_some) {
                let text = |cell: &Option<f64>| cell.map_or_else(String::new, |v| format!("{v:.digits$}"));
                let _ =
                    writeln!(out, "| {name} | {} |", cells.iter().map(text).collect::<Vec<_>>().join(" | "));
            }
        }
        out
    }

    /// All figures.
    pub fn json(&self) -> Value {
        let mut packets = Vec::new();
        for (name, policies, kind) in
            self.designs.iter().flat_map(|d| Kind::ALL.map(|k| (&d.name, d.policies, k)))
        {
            if let Some(cell) = self.cell(name, policies, kind) {
                packets.push(json!({
                    "design": name, "policies": policies, "kind": kind, "ns": cell.ns, "ratio": cell.ratio,
                    "ratio_quartiles": cell.quartiles, "added_ns": cell.added,
                }));
            }
        }
        let loads = self.designs.iter().map(|design| {
            let all = self.loaded(&design.name, design.policies);
            json!({ "design": design.name, "policies": design.policies, "loads": all })
        });
        let [left_out, _] = self.remarks();
        let counts: Vec<_> = self.repeats.iter().map(|repeat| repeat.counts).collect();
        json!({
            "rounds": self.rounds, "repeats": self.repeats.len(), "counts": counts, "packets": packets,
            "loads": loads.collect::<Vec<Value>>(), "left_out": left_out,
        })
    }
}

/// The design that others are compared with.
fn base(kind: Kind) -> &'static str {
    if kind == Kind::Denied { DROP } else { FLOOR }
}

fn median_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| median(&values))
}

fn head(policies: &[usize], more: &str) -> String {
    let columns: Vec<String> = policies.iter().map(|&n| format!("N={}", thousands(n as f64))).collect();
    let lines = "---|".repeat(policies.len() + usize::from(!more.is_empty()));
    format!("| design | {} |{more}\n|---|{lines}\n", columns.join(" | "))
}

/// A whole number with commas.
fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::from(if value <= -0.5 { "-" } else { "" });
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::designs::Rules;

    #[test]
    fn numbers_have_commas() {
        assert_eq!([0.2, 999.0, 1_234_567.0, -1_000.0].map(thousands), ["0", "999", "1,234,567", "-1,000"]);
    }

    /// Two repeats, of which one lacks a design.
    #[test]
    fn ratios_are_of_the_same_round() {
        let design = |name: &str| Design {
            name: name.to_owned(),
            policies: 10,
            rules: Rules::Script("script".into(), None),
            open: true,
        };
        let mut full = Repeat::default();
        for (name, values) in [(FLOOR, [1_000.0, 3_000.0]), ("ours", [2_000.0, 6_000.0])] {
            full.samples.insert(key(name, 10), [(Kind::New, values.to_vec())].into());
        }
        let mut half = Repeat::default();
        half.samples.insert(key(FLOOR, 10), [(Kind::New, vec![7.0])].into());
        half.left_out.insert(key("ours", 10), "no\nreason".to_owned());
        let designs = vec![design(FLOOR), design("ours")];
        let results = Results { designs, left_out: BTreeMap::new(), rounds: 2, repeats: vec![half, full] };
        let text = results.markdown();
        assert!(text.contains("| ours | x2.000 (+1,000) |"), "{text}");
        assert!(text.contains("- ours 10: no reason"), "{text}");
        assert_eq!(results.json()["packets"].as_array().unwrap().len(), 2);
    }
}
