//! `netpolc check`.

use crate::args::{CheckArgs, CheckFormat};
use crate::failure::{Answer, Failure};
use crate::output;
use crate::pipeline::{Input, compile};
use netpolc_frontend::diagnostic::{CODES, Diagnostic, Severity};
use netpolc_frontend::source::Sources;
use serde_json::{Value, json};

/// Runs the command.
pub(crate) fn run(args: &CheckArgs) -> Result<Answer, Failure> {
    let input = Input::load(&args.paths)?;
    let good = !input.has_errors();
    match args.format {
        CheckFormat::Human => {
            input.report_all();
            output::message(&summary(&input.diagnostics));
        }
        CheckFormat::Json => output::result(&pretty(&to_json(&input.diagnostics, &input.sources))),
        CheckFormat::Sarif => output::result(&pretty(&to_sarif(&input.diagnostics, &input.sources))),
        CheckFormat::Github => output::result(&to_github(&input.diagnostics, &input.sources)),
    }
    if good {
        // What can be checked beyond the objects themselves: that the policies compile.
        compile(input)?;
    }
    Ok(Answer::yes_if(good))
}

fn summary(diagnostics: &[Diagnostic]) -> String {
    let count = |s: Severity| diagnostics.iter().filter(|d| d.severity == s).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    format!("{}, {}", output::count(errors, "error"), output::count(warnings, "warning"))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn severity(s: Severity) -> &'static str {
    match s {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

fn to_json(diagnostics: &[Diagnostic], sources: &Sources) -> Value {
    let one = |d: &Diagnostic| {
        let place = d.span.map(|s| sources.place(s));
        json!({
            "code": d.code,
            "severity": severity(d.severity),
            "message": d.message,
            "object": d.object,
            "path": d.path,
            "file": place.as_ref().map(|p| &p.file),
            "line": place.as_ref().map(|p| p.line),
            "column": place.as_ref().map(|p| p.column),
            "help": d.help,
        })
    };
    json!({ "diagnostics": diagnostics.iter().map(one).collect::<Vec<_>>() })
}

/// The text of a diagnostic in one line: object, field path, message, help.
fn one_line(d: &Diagnostic) -> String {
    let parts = [d.object.as_deref(), d.path.as_deref(), Some(d.message.as_str())];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join(": ");
    match &d.help {
        Some(help) => format!("{text} (help: {help})"),
        None => text,
    }
}

fn to_sarif(diagnostics: &[Diagnostic], sources: &Sources) -> Value {
    let rule = |c: &netpolc_frontend::diagnostic::CodeInfo| {
        json!({
            "id": c.code,
            "shortDescription": { "text": c.title },
            "fullDescription": { "text": c.explanation },
        })
    };
    let one = |d: &Diagnostic| {
        let locations = d.span.map(|s| sources.place(s)).map(|p| {
            json!([{ "physicalLocation": {
                "artifactLocation": { "uri": p.file },
                "region": { "startLine": p.line, "startColumn": p.column },
            }}])
        });
        json!({
            "ruleId": d.code,
            "level": severity(d.severity),
            "message": { "text": one_line(d) },
            "locations": locations.unwrap_or_else(|| json!([])),
        })
    };
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "netpolc",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": CODES.iter().map(rule).collect::<Vec<_>>(),
            }},
            "results": diagnostics.iter().map(one).collect::<Vec<_>>(),
        }],
    })
}

/// Workflow commands; `%`, line ends and, in properties, `:` and `,` are escaped as GitHub documents it.
fn to_github(diagnostics: &[Diagnostic], sources: &Sources) -> String {
    let data = |s: &str| s.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |s: &str| data(s).replace(':', "%3A").replace(',', "%2C");
    let mut out = String::new();
    for d in diagnostics {
        let level = match d.severity {
            Severity::Note => "notice",
            other => severity(other),
        };
        let place = d
            .span
            .map(|s| sources.place(s))
            .map(|p| format!("file={},line={},col={},", property(&p.file), p.line, p.column));
        let place = place.unwrap_or_default();
        out.push_str(&format!("::{level} {place}title={}::{}\n", property(d.code), data(&one_line(d))));
    }
    out
}
