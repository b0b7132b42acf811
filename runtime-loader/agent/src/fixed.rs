//! Policies from files or from a bundle, as they were reviewed, instead of those of the API server.
//!
//! They are read once, by the front end that reads them in CI, and whatever is wrong with them ends the agent before it
//! begins: there is somebody who can mend a file. The objects beside them in the files (namespaces, pods) are left out;
//! the cluster has its own.

use crate::store::{Kind, Object, Told};
use crate::trim::PolicyData;
use crate::{Error, log};
use netpolc_bundle::{MANIFEST, POLICIES, store};
use netpolc_frontend::diagnostic::{Severity, render};
use netpolc_frontend::read::read;
use netpolc_frontend::source::Sources;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Most bytes of one file.
const FILE_BYTES: u64 = 64 << 20;

/// Most files of one directory.
const FILES: usize = 10_000;

/// Policies that stay as they are for as long as the agent runs.
#[derive(Debug, Clone)]
pub struct Fixed {
    policies: Vec<Object>,
    cluster_policies: Vec<Object>,
}

impl Fixed {
    /// Reads files, and the files of directories whose names end in `.yaml`, `.yml` or `.json`, as a ConfigMap appears in
    /// a pod: directories in directories are left out.
    ///
    /// # Errors
    /// If one cannot be read, if a policy is wrong, with its place, or if there is no policy: a directory where nothing is
    /// mounted must not open the node.
    pub fn read(paths: &[PathBuf]) -> Result<Fixed, Error> {
        let mut sources = Sources::default();
        for path in paths {
            for file in files(path)? {
                sources.add(file.display().to_string(), bytes(&file)?);
            }
        }
        match Fixed::of(&sources)? {
            fixed if fixed.count() == 0 => Err(Error::Usage("no policy in what --policies names".to_owned())),
            fixed => Ok(fixed),
        }
    }

    /// Takes the policies that a bundle was built of, of which its manifest has the digest: the one in this directory, or,
    /// of what a build wrote for several nodes, that of this node. A build without policies is taken at its word.
    ///
    /// # Errors
    /// If there is no such bundle, or if it is not as its manifest says.
    pub fn of_bundle(dir: &Path, node: &str) -> Result<Fixed, Error> {
        let of_node = dir.join(node);
        let of_node = of_node.join(MANIFEST).exists() && !dir.join(MANIFEST).exists();
        let dir = if of_node { dir.join(node) } else { dir.to_owned() };
        let at = |error| Error::Usage(format!("--bundle {}: {error}", dir.display()));
        let text = store::policies(&dir).map_err(at)?;
        let mut sources = Sources::default();
        sources.add(dir.join(POLICIES).display().to_string(), text.into_bytes());
        Fixed::of(&sources)
    }

    fn of(sources: &Sources) -> Result<Fixed, Error> {
        let read = read(sources);
        let (errors, others): (Vec<_>, Vec<_>) =
            read.diagnostics.into_iter().partition(|d| d.severity == Severity::Error);
        for diagnostic in others {
            log::warn("policies", &[("code", &diagnostic.code), ("message", &diagnostic.message)]);
        }
        if !errors.is_empty() {
            let text = render(&errors, sources, false);
            return Err(Error::Usage(format!("policies cannot be used\n{}", text.trim_end())));
        }
        let objects = read.objects;
        let policies = objects.policies.into_iter().map(|policy| Object::Policy(Box::new(data(policy))));
        let cluster = objects.cluster_policies.into_iter();
        let cluster = cluster.map(|policy| Object::ClusterPolicy(Box::new(data(policy))));
        Ok(Fixed { policies: policies.collect(), cluster_policies: cluster.collect() })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.policies.len() + self.cluster_policies.len()
    }

    /// What the watches of policies would tell.
    pub(crate) fn told(self) -> impl Iterator<Item = Told> {
        let list = |kind, objects: Vec<Object>| {
            let objects = objects.into_iter().map(Told::Is);
            std::iter::once(Told::Begin(kind)).chain(objects).chain([Told::Complete(kind)])
        };
        list(Kind::Policies, self.policies).chain(list(Kind::ClusterPolicies, self.cluster_policies))
    }
}

fn data<P>(policy: P) -> PolicyData<P> {
    PolicyData { policy, uid: String::new(), fault: None }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |path: &Path, error| Error::io(path.display().to_string(), error);
    if !fs::metadata(path).map_err(|error| fail(path, error))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| fail(path, error))? {
        let file = entry.map_err(|error| fail(path, error))?.path();
        let wanted = file.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if wanted && !fs::metadata(&file).map_err(|error| fail(&file, error))?.is_dir() {
            found.push(file);
        }
        if found.len() > FILES {
            return Err(Error::Usage(format!("{}: more than {FILES} files", path.display())));
        }
    }
    found.sort();
    Ok(found)
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let fail = |error| Error::io(path.display().to_string(), error);
    // A pipe or a device could keep the agent waiting for ever.
    if !fs::metadata(path).map_err(fail)?.is_file() {
        return Err(fail(io::Error::other("not a regular file")));
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(fail)?.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(fail(io::Error::other(format!("larger than {} MiB", FILE_BYTES >> 20))));
    }
    Ok(bytes)
}
