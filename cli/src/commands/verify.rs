//! `netpolc verify`.

use super::nodes::{bindings_fault, builder, labels};
use crate::args::{HumanOrJson, VerifyArgs};
use crate::failure::{Answer, Failure};
use crate::output;
use crate::pipeline::{Input, compile};
use netpolc_bundle::{Bundle, MANIFEST};
use netpolc_node::NodeBuilder;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What is wrong with a node's bundle; `None` if it is proven.
type Finding = (String, Option<String>);

/// Runs the command.
pub(crate) fn run(args: &VerifyArgs) -> Result<Answer, Failure> {
    let compiled = compile(Input::sound(&args.paths)?)?;
    let labels = labels(&compiled, true);
    let builder = builder(&compiled, &labels, &[], None);
    let mut missing: BTreeSet<String> = compiled.matrix.hosts.values().map(|h| h.name.clone()).collect();
    let folders = bundles(&args.dir)?;
    let whole = folders.whole;
    let mut findings: Vec<Finding> = Vec::new();
    for folder in folders.list {
        let finding = check(&builder, &folder, &compiled.matrix);
        missing.remove(&finding.0);
        findings.push(finding);
    }
    if whole {
        findings.extend(
            missing.into_iter().map(|node| (node, Some("there is no bundle for this node".to_owned()))),
        );
    }
    let good = findings.iter().all(|(_, fault)| fault.is_none());
    match args.format {
        HumanOrJson::Human => findings.iter().for_each(|(node, fault)| match fault {
            None => output::message(&format!("{node}: proven")),
            Some(fault) => output::error(&format!("{node}: {fault}")),
        }),
        HumanOrJson::Json => {
            let one =
                |(node, fault): &Finding| json!({ "node": node, "proven": fault.is_none(), "fault": fault });
            output::result(&format!(
                "{:#}\n",
                json!({ "bundles": findings.iter().map(one).collect::<Vec<Value>>() })
            ));
        }
    }
    Ok(Answer::yes_if(good))
}

/// Checks one bundle: whole, of this cluster, and its rules say what the policies say.
fn check(builder: &NodeBuilder<'_>, folder: &Path, matrix: &netpolc_ir::matrix::Matrix) -> Finding {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bundle = match Bundle::open(folder) {
        Ok(bundle) => bundle,
        Err(error) => return (name, Some(error.to_string())),
    };
    let node = bundle.manifest.node.clone();
    let Some(host) = matrix.hosts.values().find(|h| h.name == node) else {
        return (node, Some("the cluster has no such node".to_owned()));
    };
    if host.addrs != bundle.manifest.node_addresses {
        return (node, Some("its addresses of the node are not those of the cluster".to_owned()));
    }
    let fault = builder.prove(&bundle).err().or_else(|| bindings_fault(matrix, &bundle));
    (node, fault)
}

struct Folders {
    list: Vec<PathBuf>,
    /// Whether the directory holds the bundles of all nodes.
    whole: bool,
}

fn bundles(dir: &Path) -> Result<Folders, Failure> {
    if dir.join(MANIFEST).exists() {
        return Ok(Folders { list: vec![dir.to_owned()], whole: false });
    }
    let entries = fs::read_dir(dir).map_err(|e| Failure::io(dir, &e))?;
    let paths = entries
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Failure::io(dir, &e))?;
    let mut list: Vec<PathBuf> = paths.into_iter().filter(|p| p.is_dir()).collect();
    list.sort();
    if list.is_empty() {
        return Err(Failure::Unusable(format!("{}: no bundle here", dir.display())));
    }
    Ok(Folders { list, whole: true })
}
