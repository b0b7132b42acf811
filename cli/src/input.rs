//! Paths -> sources. Everything is bounded: a FIFO, a device, a loop of links or a huge file is an error, not a hang.

use crate::failure::Failure;
use netpolc_frontend::source::Sources;
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The largest file that is read, in bytes. The largest cluster that figures are quoted for has 74 MB.
const MAX_FILE: u64 = 256 << 20;
/// The most bytes that are read in all.
const MAX_TOTAL: u64 = 512 << 20;
/// The most files that are read.
const MAX_FILES: usize = 100_000;
/// The deepest nesting of directories.
const MAX_DEPTH: usize = 64;
/// `O_NONBLOCK` of Linux (asm-generic/fcntl.h): a FIFO that no one writes to must not hang the open.
const O_NONBLOCK: i32 = 0o4000;

/// Reads all paths. Files of directories come in the order of their names, each file once.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Sources, Failure> {
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        if path.as_os_str() == "-" {
            files.push(PathBuf::from("-"));
            continue;
        }
        let meta = fs::metadata(path).map_err(|e| Failure::io(path, &e))?;
        if meta.is_dir() {
            walk(path, 0, &mut files, &mut seen)?;
        } else if seen.insert(identity(path)) {
            files.push(path.clone());
        }
    }
    let mut sources = Sources::default();
    let mut total = 0;
    for path in files {
        let (name, bytes) = if path.as_os_str() == "-" {
            ("<stdin>".to_owned(), read_file(&path)?)
        } else {
            (path.display().to_string(), read_file(&path)?)
        };
        total += bytes.len() as u64;
        if total > MAX_TOTAL {
            return Err(Failure::Unusable(format!("the input is larger than {} MiB", MAX_TOTAL >> 20)));
        }
        sources.add(name, bytes);
    }
    Ok(sources)
}

/// What tells a file from others. A pipe of the shell (`/dev/stdin`, `/dev/fd/63`) has no path that could be resolved: it
/// goes by the name that it was given.
fn identity(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn walk(
    dir: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
    seen: &mut BTreeSet<PathBuf>,
) -> Result<(), Failure> {
    let real = fs::canonicalize(dir).map_err(|e| Failure::io(dir, &e))?;
    // A directory that was seen already is a loop of links, or was named twice.
    if !seen.insert(real) {
        return Ok(());
    }
    if depth > MAX_DEPTH {
        return Err(Failure::Unusable(format!("{}: more than {MAX_DEPTH} directories deep", dir.display())));
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)
        .and_then(|list| list.map(|entry| entry.map(|e| e.path())).collect())
        .map_err(|e| Failure::io(dir, &e))?;
    entries.sort();
    for path in entries {
        let wanted = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            // A dangling link matters only if its target would be read.
            Err(error) if wanted => return Err(Failure::io(&path, &error)),
            Err(_) => continue,
        };
        if meta.is_dir() {
            walk(&path, depth + 1, files, seen)?;
        } else if wanted && seen.insert(identity(&path)) {
            if files.len() >= MAX_FILES {
                return Err(Failure::Unusable(format!("more than {MAX_FILES} files")));
            }
            files.push(path);
        }
    }
    Ok(())
}

/// Reads a regular file, or standard input for `-`. Process substitution (`<(...)`) gives a pipe, which is read as long as someone writes to it.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    if path.as_os_str() == "-" {
        return read_bounded(std::io::stdin().lock(), path);
    }
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(|e| Failure::io(path, &e))?;
    let meta = file.metadata().map_err(|e| Failure::io(path, &e))?;
    if meta.len() > MAX_FILE {
        return Err(too_large(path));
    }
    if !meta.is_file() {
        // Opened without blocking, a pipe with a writer would report "try again": read it the ordinary way.
        let piped = ["/dev/fd", "/dev/stdin", "/proc/self/fd"].iter().any(|p| path.starts_with(p));
        if piped {
            return read_bounded(fs::File::open(path).map_err(|e| Failure::io(path, &e))?, path);
        }
        return Err(Failure::Unusable(format!("{}: not a regular file", path.display())));
    }
    read_bounded(file, path)
}

fn read_bounded(reader: impl Read, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    reader.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| Failure::io(path, &e))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(too_large(path));
    }
    Ok(bytes)
}

fn too_large(path: &Path) -> Failure {
    Failure::Unusable(format!("{}: larger than {} MiB", path.display(), MAX_FILE >> 20))
}
