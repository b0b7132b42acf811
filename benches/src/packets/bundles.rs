//! Proven bundles of the measured node, one for each backend, so that the loader reads what it needs and no more.

use super::Error;
use super::load::{Load, NODE};
use crate::compile::{CompileError, sources};
use netpolc_bundle::{Backend, store};
use netpolc_frontend::diagnostic::Severity;
use netpolc_frontend::model::resolve;
use netpolc_frontend::read;
use netpolc_node::{BuildError, Labels, NodeBuilder, compile};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A backend's bundle and the one after a change of one policy, or why there are none.
pub type Pair = Result<[PathBuf; 2], String>;

/// Writes the bundles of a load into folders of a directory. `progress` is told what is done.
///
/// # Errors
/// If the input is unsound, a proof fails, or the file system refuses.
pub fn write(load: &Load, dir: &Path, progress: &dyn Fn(String)) -> Result<BTreeMap<Backend, Pair>, Error> {
    let before = version(load, dir, "before", progress)?;
    let mut after = version(&load.changed(), dir, "after", progress)?;
    let pair = |(backend, before): (Backend, Result<PathBuf, String>)| {
        let after = after.remove(&backend).unwrap_or_else(|| Err("it was not built".to_owned()));
        (backend, before.and_then(|before| after.map(|after| [before, after])))
    };
    Ok(before.into_iter().map(pair).collect())
}

/// The bundles of one state of the cluster. What a backend cannot express is no error.
fn version(
    load: &Load,
    dir: &Path,
    word: &str,
    progress: &dyn Fn(String),
) -> Result<BTreeMap<Backend, Result<PathBuf, String>>, Error> {
    let wrong = |text: String| Error::Compile(CompileError::new(text));
    let sources = sources(load.files());
    let read = read::read(&sources);
    let (model, more) = resolve(read.objects);
    if let Some(error) = read.diagnostics.iter().chain(&more).find(|d| d.severity == Severity::Error) {
        return Err(wrong(format!("{error:?}")));
    }
    let compiled = compile(&model, &mut |_| {}).map_err(wrong)?;
    let labels = Labels::new(&model, &sources, true);
    let host = compiled.matrix.hosts.iter().find(|(_, data)| data.name == NODE).map(|(host, _)| host);
    let host = host.ok_or_else(|| wrong(format!("there is no node {NODE}")))?;
    progress(format!("{} policies compiled", load.policies));
    let mut all = BTreeMap::new();
    for backend in Backend::ALL {
        let mut builder = NodeBuilder::new(&model, &compiled.matrix, &labels, [backend], None);
        let built = match builder.build(host) {
            Ok(built) => built,
            Err(error @ BuildError::Unsupported(..)) => {
                all.insert(backend, Err(error.to_string()));
                continue;
            }
            Err(error) => return Err(wrong(error.to_string())),
        };
        let folder = dir.join(format!("{backend}-{}-{word}", load.policies));
        fs::create_dir(&folder)?;
        store::write(&folder, &built.bundle).map_err(|error| wrong(error.to_string()))?;
        progress(format!("{} policies proven for {backend}, {word} the change", load.policies));
        all.insert(backend, Ok(folder));
    }
    Ok(all)
}
