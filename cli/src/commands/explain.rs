//! `netpolc explain`.

use crate::args::{ExplainArgs, HumanOrJson};
use crate::failure::{Answer, Failure};
use crate::flows::{Names, Resolved};
use crate::output;
use crate::pipeline::Input;
use netpolc_frontend::model::decide::{Because, Decision, Side};
use netpolc_ir::unit::{Flow, Origin, Tier};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Runs the command.
pub(crate) fn run(args: &ExplainArgs) -> Result<Answer, Failure> {
    let input = Input::sound(&args.paths)?;
    let (protocol, port) = parse_port(&args.port)?;
    let names = Names::of(&input.model);
    let resolved = names.flow(&args.from, &args.to, &protocol, port, None).map_err(Failure::Unusable)?;
    let Resolved::Flow(flow) = resolved else {
        output::result(&match args.format {
            HumanOrJson::Human => "deny: the ends have no address family in common\n".to_owned(),
            HumanOrJson::Json => format!("{:#}\n", no_common_family(args, &protocol, port)),
        });
        return Ok(Answer::Yes);
    };
    let decision = input.model.decide(&flow);
    output::result(&match args.format {
        HumanOrJson::Human => human(&input, args, &flow, &decision),
        HumanOrJson::Json => format!("{:#}\n", to_json(&input, args, &flow, &decision)),
    });
    Ok(Answer::Yes)
}

/// `3306/TCP`, `3306` (TCP), `ICMP`, or a protocol number as `/47`.
fn parse_port(text: &str) -> Result<(String, Option<u16>), Failure> {
    let bad = || Failure::Unusable(format!("--port {text:?}: write it as 3306/TCP, or ICMP"));
    let (port, protocol) = match text.split_once('/') {
        Some((port, protocol)) => (port, protocol),
        None if text.starts_with(|c: char| c.is_ascii_digit()) => (text, "TCP"),
        None => ("", text),
    };
    let port = if port.is_empty() { None } else { Some(port.parse().map_err(|_| bad())?) };
    Ok((protocol.to_owned(), port))
}

fn human(input: &Input, args: &ExplainArgs, flow: &Flow, decision: &Decision) -> String {
    let mut out = format!("{}: {} -> {} ({flow})\n", decision.verdict, args.from, args.to);
    match &decision.because {
        Because::SamePod => out.push_str("  a pod always reaches itself\n"),
        Because::OwnNode => out.push_str("  traffic between a pod and the node it runs on always passes\n"),
        Because::Judged { egress, ingress } => {
            side(&mut out, input, "egress", &args.from, egress.as_ref());
            side(&mut out, input, "ingress", &args.to, ingress.as_ref());
        }
    }
    out
}

fn side(out: &mut String, input: &Input, direction: &str, pod: &str, side: Option<&Side>) {
    // Writing to a String cannot fail.
    let _ = match side {
        None => writeln!(out, "  {direction}: {pod} is no pod that policies are about"),
        Some(side) => {
            let verdict = if side.allowed { "allowed" } else { "denied" };
            writeln!(out, "  {direction} of {pod}: {verdict}, {}", why(side))
        }
    };
    let Some(side) = side else { return };
    let mut lines = |what: &str, origins: &[Origin]| {
        for origin in origins {
            let _ = writeln!(out, "    {what} {}", place(input, *origin));
        }
    };
    lines("passed on by", side.passed_by.as_slice());
    if side.tier.is_none() && side.passed_by.is_none() {
        lines("selected by", &side.selected_by);
    }
    lines("isolated by", &side.isolated_by);
    lines(if side.allowed { "allowed by" } else { "denied by" }, &side.rules);
}

fn why(side: &Side) -> &'static str {
    match (side.tier, side.allowed) {
        (None, _) if side.passed_by.is_some() => {
            "a rule of the Admin tier passes it on and nothing below decides"
        }
        (None, _) if !side.selected_by.is_empty() => "no rule of the policies that select it matches",
        (None, _) => "no policy selects it in this direction",
        (Some(Tier::Admin), _) => "a rule of the Admin tier decides",
        (Some(Tier::Baseline), _) => "a rule of the Baseline tier decides",
        (Some(Tier::NetworkPolicy), true) => "by these rules",
        (Some(Tier::NetworkPolicy), false) => "it is isolated and no rule allows this",
    }
}

fn place(input: &Input, origin: Origin) -> String {
    match input.model.origin(origin) {
        None => origin.to_string(),
        Some(data) if data.path.is_empty() => format!("{} at {}", data.policy, input.sources.place(data.at)),
        Some(data) => format!("{} {} at {}", data.policy, data.path, input.sources.place(data.at)),
    }
}

/// The answer where no packet can pass: there are no two addresses to speak of.
fn no_common_family(args: &ExplainArgs, protocol: &str, port: Option<u16>) -> Value {
    json!({
        "from": args.from,
        "to": args.to,
        "source": null,
        "destination": null,
        "protocol": protocol,
        "port": port,
        "verdict": "deny",
        "because": "no common family",
    })
}

fn to_json(input: &Input, args: &ExplainArgs, flow: &Flow, decision: &Decision) -> Value {
    let origins = |list: &[Origin]| {
        let one = |o: &Origin| {
            let data = input.model.origin(*o)?;
            let at = input.sources.place(data.at);
            let (policy, path) = (&data.policy, &data.path);
            Some(
                json!({ "policy": policy, "path": path, "file": at.file, "line": at.line, "column": at.column }),
            )
        };
        list.iter().filter_map(one).collect::<Vec<Value>>()
    };
    let side = |side: &Option<Side>| {
        side.as_ref().map(|s| {
            json!({
                "allowed": s.allowed,
                "tier": s.tier.map(|t| t.to_string()),
                "isolatedBy": origins(&s.isolated_by),
                "selectedBy": origins(&s.selected_by),
                "passedBy": origins(s.passed_by.as_slice()),
                "rules": origins(&s.rules),
            })
        })
    };
    let because = match &decision.because {
        Because::SamePod => json!("same pod"),
        Because::OwnNode => json!("own node"),
        Because::Judged { egress, ingress } => json!({ "egress": side(egress), "ingress": side(ingress) }),
    };
    json!({
        "from": args.from,
        "to": args.to,
        "source": flow.src.to_string(),
        "destination": flow.dst.to_string(),
        "protocol": flow.protocol.to_string(),
        "port": flow.port,
        "verdict": decision.verdict.to_string(),
        "because": because,
    })
}
