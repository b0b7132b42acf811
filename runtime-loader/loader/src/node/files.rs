//! Files that other programs read while we write them: always whole, by a temporary file and a rename.

use crate::Error;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most bytes of a configuration file that is read. Ours: real ones have one or two thousand.
pub const CONF_BYTES: u64 = 1 << 20;

/// Most bytes of the plugin that is installed. Ours.
pub const PLUGIN_BYTES: u64 = 64 << 20;

/// Reads a plain file; `None` if there is none.
///
/// # Errors
/// If it is something else than a plain file, too large, or cannot be read.
pub fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>, Error> {
    let fail = |error: io::Error| Error::io(path.display().to_string(), error);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
        // To open a FIFO would block.
        Ok(seen) if !seen.is_file() => return Err(fail(io::Error::other("not a plain file"))),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > most {
        return Err(fail(io::Error::other(format!("more than {most} bytes"))));
    }
    Ok(Some(bytes))
}

/// Writes a file unless it has this content already; whether it was written. Directories are made as needed.
///
/// # Errors
/// If it cannot be written; then the old one is as it was.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<bool, Error> {
    if read(path, bytes.len() as u64).is_ok_and(|there| there.as_deref() == Some(bytes)) {
        return Ok(false);
    }
    let fail = |error: io::Error| Error::io(path.display().to_string(), error);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(fail)?;
    }
    let temporary = temporary(path);
    let result = write_new(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.map(|()| true).map_err(fail)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Where a file is written before it gets its name. The runtime passes over names that begin with a dot, since they do
/// not end as the names of configurations do.
fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".netpolc");
    path.with_file_name(name)
}

/// Removes a file; whether there was one.
///
/// # Errors
/// If it is there and cannot be removed.
pub fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path.display().to_string(), error)),
    }
}

/// Copies a program; whether it was not there already, byte for byte.
///
/// # Errors
/// If the source is not there, or the copy cannot be written.
pub fn install(from: &Path, to: &Path) -> Result<bool, Error> {
    let bytes = read(from, PLUGIN_BYTES)?
        .ok_or_else(|| Error::io(from.display().to_string(), io::Error::from(io::ErrorKind::NotFound)))?;
    write(to, &bytes, 0o755)
}
