//! Our plugin as the last of the node's own CNI configuration.
//!
//! A runtime takes the first file of its directory, by name. We put our plugin at the end of its list, in place, as
//! others that chain in do: a copy under another name would go stale when the other CNI changes its file. If that CNI
//! writes its file anew, our plugin is put in again. What the file was before is kept, so that it can be put back byte
//! for byte; if it has changed otherwise since, only our plugin is taken out.
//!
//! A file with a single plugin (`.conf`, `.json`) cannot hold a second one. It becomes a list in a file beside it, and
//! is set aside under a name that runtimes pass over.

use super::conflist::{FILE, PLUGIN};
use super::files::{self, CONF_BYTES};
use crate::Error;
use serde_json::{Map, Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What ends the name of a file that was set aside.
const ASIDE: &str = ".netpolc-aside";

/// What a configuration says.
pub type Fields = Map<String, Value>;

/// Where things are.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// The directory of configurations.
    pub conf_dir: &'a Path,
    /// Where we keep what a file was before.
    pub backup_dir: &'a Path,
}

/// Puts our plugin in; the file, if it had to be changed. `Ok(None)` if all is well already.
///
/// # Errors
/// If there is no configuration yet, or if it cannot be understood or written.
pub fn chain(place: &Place<'_>, plugin: &Value) -> Result<Option<PathBuf>, Error> {
    let Some(path) = others_first(place.conf_dir)? else {
        let missing = io::Error::new(io::ErrorKind::NotFound, "no CNI has put its configuration there yet");
        return Err(Error::io(place.conf_dir.display().to_string(), missing));
    };
    let (before, mut conf) = load(&path)?;
    let single = !conf.contains_key("plugins");
    let changed = if single {
        let name = conf.get("name").cloned().unwrap_or_else(|| json!("network"));
        let version = conf.get("cniVersion").cloned().unwrap_or_else(|| json!("0.3.1"));
        let inner = Value::Object(conf.clone());
        object(json!({ "cniVersion": version, "name": name, "plugins": [inner, plugin] }))
    } else {
        let plugins = plugins(&path, &mut conf)?;
        if plugins.last() == Some(plugin) && plugins.iter().filter(|p| is_ours(p)).count() == 1 {
            return Ok(None);
        }
        let others = plugins.iter().any(|p| !is_ours(p));
        if !others {
            return Err(fault(&path, "it has no plugins"));
        }
        // A file that has our plugin already is not what the other CNI wrote.
        if !plugins.iter().any(is_ours) {
            files::write(&backup(place, &path), &before, 0o600)?;
        }
        plugins.retain(|p| !is_ours(p));
        plugins.push(plugin.clone());
        conf
    };
    let text = format!("{:#}\n", Value::Object(changed));
    let target = path.with_extension("conflist");
    if single && target.exists() && !load(&target).is_ok_and(|(_, mut conf)| ours_in(&target, &mut conf)) {
        return Err(fault(&target, "it is there beside a file with a single plugin, and not ours"));
    }
    files::write(&target, text.as_bytes(), 0o644)?;
    if single {
        rename(&path, &aside(&path))?;
    }
    Ok(Some(target))
}

/// Takes our plugin out of all files; those that were changed.
///
/// # Errors
/// If a file cannot be written or put back.
pub fn unchain(place: &Place<'_>) -> Result<Vec<PathBuf>, Error> {
    let mut changed = Vec::new();
    for set_aside in set_aside(place.conf_dir)? {
        let text = set_aside.to_string_lossy().into_owned();
        let Some(original) = text.strip_suffix(ASIDE).map(PathBuf::from) else { continue };
        rename(&set_aside, &original)?;
        // The list beside it is ours if our plugin is in it.
        let list = original.with_extension("conflist");
        if load(&list).is_ok_and(|(_, mut conf)| ours_in(&list, &mut conf)) {
            files::remove(&list)?;
        }
        changed.push(original);
    }
    for path in confs(place.conf_dir)? {
        let Ok((_, mut conf)) = load(&path) else { continue };
        let Ok(list) = plugins(&path, &mut conf) else { continue };
        if path.file_name().is_some_and(|name| name == FILE) || !list.iter().any(is_ours) {
            continue;
        }
        list.retain(|p| !is_ours(p));
        let kept = backup(place, &path);
        let before = files::read(&kept, CONF_BYTES)?;
        let same = |bytes: &Vec<u8>| {
            serde_json::from_slice::<Value>(bytes).is_ok_and(|v| v == Value::Object(conf.clone()))
        };
        let text = match before {
            Some(bytes) if same(&bytes) => bytes,
            _ => format!("{:#}\n", Value::Object(conf)).into_bytes(),
        };
        files::write(&path, &text, 0o644)?;
        files::remove(&kept)?;
        changed.push(path);
    }
    Ok(changed)
}

/// The files that a runtime would look at, in its order.
///
/// # Errors
/// If the directory cannot be read.
pub fn confs(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let ends = |path: &Path| path.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json");
    entries(dir, &ends)
}

fn others_first(dir: &Path) -> Result<Option<PathBuf>, Error> {
    Ok(confs(dir)?.into_iter().find(|path| path.file_name().is_some_and(|name| name != FILE)))
}

/// The first configuration of another CNI, and what it says; `None` if there is none.
///
/// # Errors
/// If the directory or the file cannot be read or understood.
pub fn first(dir: &Path) -> Result<Option<(PathBuf, Fields)>, Error> {
    let Some(path) = others_first(dir)? else { return Ok(None) };
    let (_, conf) = load(&path)?;
    Ok(Some((path, conf)))
}

/// The programs that a configuration names, but for our own.
pub fn others(conf: &Fields) -> Vec<&str> {
    let list = conf.get("plugins").and_then(Value::as_array);
    match list {
        Some(plugins) => {
            plugins.iter().filter(|p| !is_ours(p)).filter_map(|p| p.get("type")?.as_str()).collect()
        }
        None => conf.get("type").and_then(Value::as_str).into_iter().collect(),
    }
}

fn set_aside(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    entries(dir, &|path| path.to_string_lossy().ends_with(ASIDE))
}

fn entries(dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(|error| Error::io(dir.display().to_string(), error))?,
    };
    let mut found: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| wanted(p)).collect();
    found.sort();
    Ok(found)
}

fn load(path: &Path) -> Result<(Vec<u8>, Map<String, Value>), Error> {
    let bytes = files::read(path, CONF_BYTES)?.ok_or_else(|| fault(path, "it is gone"))?;
    let value = serde_json::from_slice(&bytes).map_err(|error| fault(path, &error.to_string()))?;
    match value {
        Value::Object(fields) => Ok((bytes, fields)),
        _ => Err(fault(path, "it is no object")),
    }
}

fn plugins<'a>(path: &Path, conf: &'a mut Map<String, Value>) -> Result<&'a mut Vec<Value>, Error> {
    conf.get_mut("plugins")
        .and_then(Value::as_array_mut)
        .ok_or_else(|| fault(path, "it has no list of plugins"))
}

fn ours_in(path: &Path, conf: &mut Map<String, Value>) -> bool {
    plugins(path, conf).is_ok_and(|list| list.iter().any(is_ours))
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn backup(place: &Place<'_>, path: &Path) -> PathBuf {
    place.backup_dir.join(path.file_name().unwrap_or_default())
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ASIDE);
    PathBuf::from(name)
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|error| Error::io(from.display().to_string(), error))
}

fn fault(path: &Path, what: &str) -> Error {
    Error::io(path.display().to_string(), io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
}
