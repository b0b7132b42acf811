//! Which pods of this node have which addresses, as the CNI plugin told: it knows before the API server does.
//!
//! Kept in a small file, so that an agent that starts again knows it too. A reboot ends all sandboxes, and the file with
//! them, since it is kept where a reboot clears.

use crate::log;
use netpolc_bundle::limits::LOCAL_PODS;
use netpolc_bundle::wire::Sandbox;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The version of the file's format.
const FORMAT: u32 = 1;
/// Most bytes of the file that are read.
const MOST_BYTES: u64 = 64 << 20;
/// Most addresses that are remembered of one pod's ended sandboxes.
const MOST_ENDED: usize = 16;

/// Addresses that a pod had, and that its object may still show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ended {
    uid: String,
    addresses: Vec<IpAddr>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    sandboxes: Vec<Sandbox>,
    ended: BTreeMap<String, Ended>,
}

/// All sandboxes of this node.
#[derive(Debug)]
pub struct Sandboxes {
    path: PathBuf,
    /// By container and interface.
    sandboxes: BTreeMap<(String, String), Sandbox>,
    /// By the pod's `namespace/name`.
    ended: BTreeMap<String, Ended>,
    /// Those that come from the file and were not yet compared with the API server.
    restored: BTreeSet<(String, String)>,
}

impl Sandboxes {
    /// Reads the file. If it cannot be used, that is logged, and the API server's word is taken until the runtime asks.
    pub fn load(path: &Path) -> Sandboxes {
        let file = match read(path) {
            Ok(file) => file,
            Err(error) => {
                log::error("the list of sandboxes is lost", &[("file", &path.display()), ("error", &error)]);
                File::default()
            }
        };
        let key = |s: Sandbox| ((s.container.clone(), s.interface.clone()), s);
        let sandboxes: BTreeMap<_, _> = file.sandboxes.into_iter().map(key).collect();
        let restored = sandboxes.keys().cloned().collect();
        Sandboxes { path: path.to_owned(), sandboxes, ended: file.ended, restored }
    }

    /// Writes the file anew: beside it, then renamed, so that it is never half a file.
    ///
    /// # Errors
    /// If it cannot be written: with the path. Then the old one is as it was.
    pub fn save(&self) -> io::Result<()> {
        let fail =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        self.write().map_err(fail)
    }

    fn write(&self) -> io::Result<()> {
        let sandboxes = self.sandboxes.values().cloned().collect();
        let file = File { format: FORMAT, sandboxes, ended: self.ended.clone() };
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        let bytes = serde_json::to_vec(&file)?;
        let written = fs::File::create(&temporary).and_then(|mut file| file.write_all(&bytes));
        let Err(error) = written.and_then(|()| fs::rename(&temporary, &self.path)) else { return Ok(()) };
        // What was begun takes space that is missing elsewhere.
        let _ = fs::remove_file(&temporary);
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.overwrite(bytes, error),
            _ => Err(error),
        }
    }

    /// Writes over the file if it is not shorter, which takes no space: that a sandbox has ended can be remembered on a full
    /// disk too. If this process is killed in the midst of it, the next one cannot read it and takes the API server's word.
    fn overwrite(&self, mut bytes: Vec<u8>, full: io::Error) -> io::Result<()> {
        let mut file = fs::File::options().write(true).open(&self.path)?;
        match usize::try_from(file.metadata()?.len()) {
            Ok(length) if bytes.len() <= length => bytes.resize(length, b' '),
            _ => return Err(full),
        }
        file.write_all(&bytes)
    }

    /// A sandbox was made. A pod has one container at a time, and an address one pod: what contradicts is over. One of another
    /// pod of the same name is not.
    ///
    /// # Errors
    /// If there are more than a node can have.
    pub fn add(&mut self, sandbox: Sandbox) -> Result<(), String> {
        let contradicts = |s: &Sandbox| {
            let same_uid = s.uid == sandbox.uid || s.uid.is_none() || sandbox.uid.is_none();
            let same_pod = s.pod == sandbox.pod && same_uid && s.container != sandbox.container;
            same_pod || s.addresses.iter().any(|a| sandbox.addresses.contains(a))
        };
        self.sandboxes.retain(|_, s| !contradicts(s));
        if self.sandboxes.len() >= LOCAL_PODS {
            return Err(format!("more than {LOCAL_PODS} sandboxes"));
        }
        if let Some(ended) = self.ended.get_mut(&sandbox.pod) {
            ended.addresses.retain(|a| !sandbox.addresses.contains(a));
        }
        let key = (sandbox.container.clone(), sandbox.interface.clone());
        self.restored.remove(&key);
        self.sandboxes.insert(key, sandbox);
        Ok(())
    }

    /// A sandbox is about to end; gives what was known of it.
    pub fn remove(&mut self, container: &str, interface: &str) -> Option<Sandbox> {
        self.sandboxes.remove(&(container.to_owned(), interface.to_owned()))
    }

    /// Forgets all sandboxes but these; gives the forgotten.
    pub fn keep(&mut self, valid: &[(String, String)]) -> Vec<Sandbox> {
        let valid: BTreeSet<_> = valid.iter().collect();
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.sandboxes).into_iter().partition(|(key, _)| valid.contains(key));
        self.sandboxes = kept;
        gone.into_values().collect()
    }

    /// Forgets the sandboxes of an earlier agent whose pods are gone: it was not there to be told of their end.
    pub fn compare_restored(&mut self, known: impl Fn(&Sandbox) -> bool) {
        let restored = std::mem::take(&mut self.restored);
        self.sandboxes.retain(|key, s| !restored.contains(key) || known(s));
    }

    /// These addresses are no longer the pod's, whatever its object shows.
    pub fn end(&mut self, pod: &str, uid: &str, addresses: &[IpAddr]) {
        if addresses.is_empty() {
            return;
        }
        let fresh = || Ended { uid: uid.to_owned(), addresses: Vec::new() };
        let ended = self.ended.entry(pod.to_owned()).or_insert_with(fresh);
        if ended.uid != uid {
            *ended = fresh();
        }
        ended.addresses.retain(|a| !addresses.contains(a));
        ended.addresses.extend(addresses);
        let surplus = ended.addresses.len().saturating_sub(MOST_ENDED);
        ended.addresses.drain(..surplus);
    }

    /// Whether an address that a pod's object shows is no longer the pod's.
    pub fn has_ended(&self, pod: &str, uid: &str, address: &IpAddr) -> bool {
        self.ended.get(pod).is_some_and(|e| e.uid == uid && e.addresses.contains(address))
    }

    /// Forgets ended addresses of pods for which something holds, by name and UID.
    pub fn forget_ended(&mut self, gone: impl Fn(&str, &str) -> bool) {
        self.ended.retain(|pod, ended| !gone(pod, &ended.uid));
    }

    /// The sandboxes of a pod.
    pub fn of_pod<'a>(&'a self, pod: &'a str) -> impl Iterator<Item = &'a Sandbox> {
        self.sandboxes.values().filter(move |s| s.pod == pod)
    }

    /// The same, to be changed.
    pub fn of_pod_mut<'a>(&'a mut self, pod: &'a str) -> impl Iterator<Item = &'a mut Sandbox> {
        self.sandboxes.values_mut().filter(move |s| s.pod == pod)
    }

    /// All sandboxes.
    pub fn iter(&self) -> impl Iterator<Item = &Sandbox> {
        self.sandboxes.values()
    }

    /// One sandbox.
    pub fn get(&self, container: &str, interface: &str) -> Option<&Sandbox> {
        self.sandboxes.get(&(container.to_owned(), interface.to_owned()))
    }
}

fn read(path: &Path) -> io::Result<File> {
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(MOST_BYTES).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(File::default()),
        Err(error) => return Err(error),
    };
    let file: File = serde_json::from_slice(&bytes)?;
    if file.format != FORMAT {
        return Err(io::Error::other(format!("format {}, not {FORMAT}", file.format)));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(container: &str, pod: &str, address: &str) -> Sandbox {
        Sandbox {
            container: container.into(),
            interface: "eth0".into(),
            pod: pod.into(),
            uid: Some(format!("uid of {pod}")),
            addresses: vec![address.parse().unwrap()],
        }
    }

    fn containers(sandboxes: &Sandboxes) -> Vec<&str> {
        sandboxes.iter().map(|s| s.container.as_str()).collect()
    }

    #[test]
    fn what_contradicts_a_new_sandbox_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/state.json");
        let mut sandboxes = Sandboxes::load(&path);
        sandboxes.add(sandbox("1", "shop/db", "10.0.0.1")).unwrap();
        sandboxes.add(sandbox("2", "shop/web", "10.0.0.2")).unwrap();
        sandboxes.add(sandbox("3", "shop/db", "10.0.0.3")).unwrap();
        assert_eq!(containers(&sandboxes), ["2", "3"], "a pod has one container");
        sandboxes.add(sandbox("4", "shop/api", "10.0.0.2")).unwrap();
        assert_eq!(containers(&sandboxes), ["3", "4"], "an address has one pod");
        let second = Sandbox { interface: "net1".into(), ..sandbox("4", "shop/api", "10.1.0.2") };
        sandboxes.add(second).unwrap();
        assert_eq!(sandboxes.of_pod("shop/api").count(), 2, "but more than one interface");
        let address = "10.0.0.9".parse().unwrap();
        sandboxes.end("shop/db", "u", &[address]);
        sandboxes.save().unwrap();

        let mut again = Sandboxes::load(&path);
        assert_eq!(containers(&again), ["3", "4", "4"]);
        assert!(again.has_ended("shop/db", "u", &address) && !again.has_ended("shop/db", "v", &address));
        again.add(sandbox("5", "shop/db", "10.0.0.9")).unwrap();
        assert!(!again.has_ended("shop/db", "u", &address), "the address was given to it again");
        let gone = again.keep(&[("5".into(), "eth0".into())]);
        assert_eq!((gone.len(), containers(&again)), (2, vec!["5"]));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Sandboxes::load(&path).iter().count(), 0);
    }

    #[test]
    fn what_is_not_longer_fits_into_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let mut sandboxes = Sandboxes::load(&path);
        for number in 1..4 {
            let address = format!("10.0.0.{number}");
            sandboxes.add(sandbox(&number.to_string(), &format!("shop/{number}"), &address)).unwrap();
        }
        sandboxes.save().unwrap();
        let bytes = |sandboxes: &Sandboxes| {
            let sandboxes = sandboxes.iter().cloned().collect();
            serde_json::to_vec(&File { format: FORMAT, sandboxes, ended: BTreeMap::new() }).unwrap()
        };
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        sandboxes.remove("2", "eth0").unwrap();
        sandboxes.overwrite(bytes(&sandboxes), full()).unwrap();
        assert_eq!(containers(&Sandboxes::load(&path)), ["1", "3"]);
        // As long as the first was, and then longer.
        sandboxes.add(sandbox("4", "shop/4", "10.0.0.4")).unwrap();
        sandboxes.overwrite(bytes(&sandboxes), full()).unwrap();
        sandboxes.add(sandbox("5", "shop/5", "10.0.0.5")).unwrap();
        let error = sandboxes.overwrite(bytes(&sandboxes), full()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(containers(&Sandboxes::load(&path)), ["1", "3", "4"]);
    }
}
