//! What came of a trial, for people and for machines.

use super::plan::{Trial, Try};
use crate::args::HumanOrJson;
use crate::failure::{Answer, Failure};
use crate::output;
use netpolc_ir::unit::Verdict;
use netpolc_sandbox::Outcome;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Up to this many flows are listed one by one; more are shown as tables.
const LISTED: usize = 40;

/// Prints the result. The answer is no if some packet did not do what was predicted, or if the control run failed.
pub(super) fn report(
    trial: &Trial,
    control: &[Outcome],
    observed: &[Outcome],
    format: HumanOrJson,
) -> Result<Answer, Failure> {
    let rows: Vec<Row<'_>> = trial
        .tries
        .iter()
        .zip(control.iter().zip(observed))
        .map(|(tried, (control, observed))| Row { tried, control, observed })
        .collect();
    let text = match format {
        HumanOrJson::Json => rows.iter().map(Row::json).collect(),
        HumanOrJson::Human if rows.len() <= LISTED => list(&rows),
        HumanOrJson::Human => tables(&rows),
    };
    output::result(&text);
    for note in &trial.left_out {
        output::message(&format!("note: {note}"));
    }
    let dead: Vec<&Row<'_>> = rows.iter().filter(|r| !r.control_good()).collect();
    let wrong: Vec<&Row<'_>> = rows.iter().filter(|r| r.control_good() && !r.good()).collect();
    for row in &dead {
        output::error(&format!(
            "control run: {} should reach without rules: {}",
            row.tried.flow, row.control
        ));
    }
    for row in &wrong {
        let (flow, predicted) = (row.tried.flow, row.tried.predicted);
        output::error(&format!(
            "{} -> {} ({flow}): predicted {predicted}, {}",
            row.tried.from, row.tried.to, row.observed
        ));
    }
    let unexpected: Vec<&Try> =
        rows.iter().map(|r| r.tried).filter(|t| t.expect.is_some_and(|e| e != t.predicted)).collect();
    for tried in &unexpected {
        let expected = tried.expect.map(|e| e.to_string()).unwrap_or_default();
        output::error(&format!(
            "{} -> {} ({}): expected {expected}, the policies say {}",
            tried.from, tried.to, tried.flow, tried.predicted
        ));
    }
    let denied = rows.iter().filter(|r| r.tried.predicted == Verdict::Deny).count();
    output::message(&format!(
        "{} flows in a real kernel: {} allowed, {denied} denied, {} not as predicted; without rules {} reached",
        rows.len(),
        rows.len() - denied,
        wrong.len(),
        rows.len() - dead.len(),
    ));
    Ok(Answer::yes_if(dead.is_empty() && wrong.is_empty() && unexpected.is_empty()))
}

struct Row<'t> {
    tried: &'t Try,
    control: &'t Outcome,
    observed: &'t Outcome,
}

impl Row<'_> {
    fn control_good(&self) -> bool {
        self.control.arrived() == Some(true)
    }

    fn good(&self) -> bool {
        self.observed.arrived() == Some(self.tried.predicted == Verdict::Allow)
    }

    fn json(&self) -> String {
        let flow = &self.tried.flow;
        let object = json!({
            "from": self.tried.from,
            "to": self.tried.to,
            "source": flow.src.to_string(),
            "destination": flow.dst.to_string(),
            "protocol": flow.protocol.to_string(),
            "port": flow.port,
            "predicted": self.tried.predicted.to_string(),
            "observed": self.observed.to_string(),
            "control": self.control.to_string(),
            "good": self.control_good() && self.good(),
        });
        format!("{object}\n")
    }

    fn port(&self) -> String {
        self.tried.flow.service()
    }
}

fn list(rows: &[Row<'_>]) -> String {
    let width = |f: fn(&Row<'_>) -> usize| rows.iter().map(f).max().unwrap_or(0);
    let (from, to) = (width(|r| r.tried.from.len()), width(|r| r.tried.to.len()));
    let port = width(|r| r.port().len());
    let mut out = format!("{:from$}  {:to$}  {:port$}  PREDICTED  OBSERVED\n", "FROM", "TO", "PORT");
    for row in rows {
        let mark = if row.good() { "" } else { "  <-- differs" };
        let predicted = row.tried.predicted.to_string();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:from$}  {:to$}  {:port$}  {predicted:9}  {}{mark}",
            row.tried.from,
            row.tried.to,
            row.port(),
            row.observed
        );
    }
    out
}

/// One table for each port: sources down, destinations across.
fn tables(rows: &[Row<'_>]) -> String {
    let mut by_port: BTreeMap<String, Vec<&Row<'_>>> = BTreeMap::new();
    for row in rows {
        let family = if row.tried.flow.dst.is_ipv6() { " IPv6" } else { "" };
        by_port.entry(format!("{}{family}", row.port())).or_default().push(row);
    }
    let mut out =
        String::from("a source a line, a destination a column; + allowed, - denied, ! not as predicted\n");
    for (port, rows) in by_port {
        let targets: Vec<&str> =
            rows.iter().map(|r| r.tried.to.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
        let sources: BTreeSet<&str> = rows.iter().map(|r| r.tried.from.as_str()).collect();
        let width = sources.iter().map(|s| s.len()).max().unwrap_or(0);
        let cells: BTreeMap<(&str, &str), &Row<'_>> =
            rows.iter().map(|r| ((r.tried.from.as_str(), r.tried.to.as_str()), *r)).collect();
        let _ = writeln!(out, "\n{port}");
        for (i, target) in targets.iter().enumerate() {
            let _ = writeln!(out, "{:width$}  {}. {target}", "", "| ".repeat(i));
        }
        for source in sources {
            let marks = targets.iter().map(|target| match cells.get(&(source, *target)) {
                None => "  ",
                Some(row) if !row.good() => "! ",
                Some(row) if row.tried.predicted == Verdict::Allow => "+ ",
                Some(_) => "- ",
            });
            let _ = writeln!(out, "{source:width$}  {}", marks.collect::<String>().trim_end());
        }
    }
    out
}
