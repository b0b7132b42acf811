//! Samples as tables.

use super::designs::Design;
use super::measure::{Kind, Samples};
use crate::statistics::{median, median_ratio, quantile};
use std::fmt::Write as _;

/// A table for each kind: for each design the median of paired ratios to the floor of its load, and the added
/// nanoseconds (difference of the lower quartiles). Packets that are denied are compared with one rule that drops them.
pub fn tables(designs: &[Design], samples: &Samples) -> String {
    let mut out = String::new();
    for kind in Kind::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "\n{kind:?}\n");
        let _ = writeln!(
            out,
            "| design | ns | ratio | quartiles of the ratio | added ns |\n|---|---|---|---|---|"
        );
        for (i, design) in designs.iter().enumerate() {
            let base = base(designs, design, kind);
            let (Some(values), Some(floor)) = (samples.get(&(i, kind)), samples.get(&(base, kind))) else {
                continue;
            };
            let ratios: Vec<f64> = values.iter().zip(floor).map(|(v, f)| v / f).collect();
            let _ = writeln!(
                out,
                "| {} | {:.0} | x{:.3} | {:.3} to {:.3} | {:+.0} |",
                design.name,
                median(values),
                median(&ratios),
                quantile(&ratios, 0.25),
                quantile(&ratios, 0.75),
                quantile(values, 0.25) - quantile(floor, 0.25),
            );
        }
    }
    out + &flatness(designs, samples)
}

/// The design that another is compared with.
fn base(designs: &[Design], design: &Design, kind: Kind) -> usize {
    let name = if kind == Kind::Denied { "drop " } else { "floor " };
    let fits = |d: &Design| d.load == design.load && d.name.starts_with(name);
    designs.iter().position(fits).unwrap_or_default()
}

/// The largest load against the smallest, each in relation to its own floor.
fn flatness(designs: &[Design], samples: &Samples) -> String {
    let mut out = String::from(
        "\nLargest load against smallest, each over its floor\n\n| design | kind | ratio |\n|---|---|---|\n",
    );
    let last = designs.iter().map(|d| d.load).max().unwrap_or_default();
    let find = |start: &str, load| {
        let named = |d: &Design| {
            d.load == load && d.name.strip_prefix(start).is_some_and(|n| n.trim().parse::<usize>().is_ok())
        };
        designs.iter().position(named)
    };
    for name in ["netpolc", "naive"] {
        let (Some(small), Some(large)) = (find(name, 0), find(name, last)) else { continue };
        for kind in Kind::ALL {
            let over = |design: usize| {
                let values = samples.get(&(design, kind))?;
                let floor = samples.get(&(base(designs, &designs[design], kind), kind))?;
                Some(values.iter().zip(floor).map(|(v, f)| v / f).collect::<Vec<f64>>())
            };
            if let (Some(small), Some(large)) = (over(small), over(large)) {
                let _ = writeln!(out, "| {name} | {kind:?} | x{:.3} |", median_ratio(&large, &small));
            }
        }
    }
    out
}
