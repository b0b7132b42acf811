//! `netpolc eval`.

use super::nodes::{builder, labels};
use crate::args::{Backend, EvalArgs, Oracle};
use crate::failure::{Answer, Failure};
use crate::flows::{self, Line, Names, Resolved};
use crate::output;
use crate::pipeline::{Compiled, Input, compile};
use netpolc_bundle::Bundle;
use netpolc_ir::unit::{EndpointData, Flow, Verdict};
use netpolc_nftables::decode::Machine;
use netpolc_node::{Machines, NodeJudge};
use serde_json::Value;
use std::path::Path;

/// Runs the command.
pub(crate) fn run(args: &EvalArgs) -> Result<Answer, Failure> {
    if let Some(dir) = &args.bundle {
        return ask_bundle(args, dir);
    }
    let input = Input::sound(&args.paths)?;
    let lines = flows::read(&args.flows, &Names::of(&input.model))?;
    match args.oracle {
        Oracle::Model => answer(lines, |flow| input.model.decide(flow).verdict),
        Oracle::Ir => {
            let compiled = compile(input)?;
            let bindings = compiled.unit.bindings();
            answer(lines, |flow| compiled.unit.decide(&bindings, flow))
        }
        Oracle::Optimized => {
            let compiled = compile(input)?;
            let bindings = compiled.optimized.bindings();
            answer(lines, |flow| compiled.matrix.decide(&bindings, flow))
        }
        Oracle::Plan => {
            let judges = plan_judges(&compile(input)?)?;
            // A connection passes iff every node on its way lets it pass.
            answer(lines, |flow| Verdict::allow_if(judges.iter().all(|j| j.decide(flow) == Verdict::Allow)))
        }
    }
}

fn plan_judges(compiled: &Compiled) -> Result<Vec<NodeJudge>, Failure> {
    let labels = labels(compiled, false);
    let mut builder = builder(compiled, &labels, &[Backend::Nftables], None);
    let matrix = &compiled.matrix;
    let mut judges = Vec::new();
    for (host, data) in matrix.hosts.iter() {
        let local = matrix.endpoints.values().filter(|e| e.host == host);
        let addrs = local.flat_map(|e: &EndpointData| e.addrs.iter().map(|(a, _)| *a));
        let machine = Machine::new(builder.nftables_plan(host)?.ruleset);
        judges.push(NodeJudge::new(Box::new(machine), addrs, &data.addrs));
    }
    Ok(judges)
}

fn ask_bundle(args: &EvalArgs, dir: &Path) -> Result<Answer, Failure> {
    let unusable = |e: netpolc_bundle::BundleError| Failure::Unusable(format!("{}: {e}", dir.display()));
    let bundle = Bundle::open(dir).map_err(unusable)?;
    let mut names = Names::default();
    if !args.paths.is_empty() {
        names = Names::of(&Input::sound(&args.paths)?.model);
    }
    let bindings = bundle.bindings().map_err(unusable)?;
    bindings.pods.iter().for_each(|p| names.add_pod(&p.name, &p.addresses));
    names.add_node(&bundle.manifest.node, &bundle.manifest.node_addresses);
    let there = bundle.manifest.backends();
    let backend = match args.backend {
        Some(backend) => backend.into(),
        None if there.contains(&netpolc_bundle::Backend::Nftables) => netpolc_bundle::Backend::Nftables,
        None => there.first().copied().unwrap_or(netpolc_bundle::Backend::Nftables),
    };
    let read = Machines::open(&bundle).and_then(|machines| machines.take(backend));
    let machine = read.map_err(|e| Failure::Unusable(format!("{}: {e}", dir.display())))?;
    let local = bindings.pods.iter().flat_map(|p| p.addresses.iter().copied());
    let judge = NodeJudge::new(machine, local, &bundle.manifest.node_addresses);
    answer(flows::read(&args.flows, &names)?, |flow| judge.decide(flow))
}

/// Prints each flow with its verdict; says which differ from what they expect.
fn answer(lines: Vec<Line>, mut decide: impl FnMut(&Flow) -> Verdict) -> Result<Answer, Failure> {
    let (mut text, mut different) = (String::new(), 0usize);
    for Line { number, mut object, resolved, expect } in lines {
        let verdict = match &resolved {
            Resolved::Flow(flow) => decide(flow),
            Resolved::NoCommonFamily => {
                object.insert("because".to_owned(), Value::from("the ends have no address family in common"));
                Verdict::Deny
            }
        };
        if let Some(expected) = expect.filter(|e| *e != verdict) {
            different += 1;
            let what = match &resolved {
                Resolved::Flow(flow) => flow.to_string(),
                Resolved::NoCommonFamily => "no common family".to_owned(),
            };
            output::message(&format!("flow {number} ({what}): expected {expected}, got {verdict}"));
        }
        object.insert("verdict".to_owned(), Value::from(verdict.to_string()));
        text.push_str(&Value::Object(object).to_string());
        text.push('\n');
    }
    output::result(&text);
    Ok(Answer::yes_if(different == 0))
}
