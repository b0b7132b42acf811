//! Bundles on disk. The only module of this crate that touches files.
//!
//! Reading opens no file but those of [`crate::limit`] that the manifest names. Each must be a regular file, neither
//! reached through a symbolic link nor swapped between the look and the opening; no more is read than the manifest says.
//! The directory itself may be a symbolic link: it is resolved once, so that a link that is turned to another bundle
//! meanwhile does not mix the two.

use crate::bundle::{Bundle, BundleError, MANIFEST, POLICIES, parse_manifest};
use crate::limits;
use crate::manifest::Manifest;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

impl Bundle {
    /// Reads a bundle and checks that its files are as its manifest says; the artifacts are not parsed, see
    /// [`Bundle::read_back`].
    ///
    /// # Errors
    /// If a file is missing, not a plain file, too large, or not as the manifest says.
    pub fn open(dir: &Path) -> Result<Bundle, BundleError> {
        let dir = &fs::canonicalize(dir).map_err(|error| wrap(&dir.display().to_string(), &error))?;
        let bytes = read_plain(dir, MANIFEST, limits::MANIFEST_BYTES)?;
        let manifest = parse_manifest(&bytes)?;
        let mut files = BTreeMap::from([(MANIFEST.to_owned(), bytes)]);
        for (name, entry) in &manifest.files {
            files.insert(name.clone(), read_plain(dir, name, entry.size)?);
        }
        Bundle::from_files(files)
    }
}

/// The text of the policies that a bundle was built of, which must be as its manifest says.
///
/// No other files are read, so a directory with these two suffices. Here they may be symbolic links, as those of a
/// mounted ConfigMap are: this is for a reader without privileges.
///
/// # Errors
/// If there are none, or if one of the two cannot be read or is not as it should be.
pub fn policies(dir: &Path) -> Result<String, BundleError> {
    let read = |name: &str, limit| {
        let path = fs::canonicalize(dir.join(name)).map_err(|error| wrap(name, &error))?;
        match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
            (Some(parent), Some(file)) => read_plain(parent, file, limit),
            _ => Err(BundleError::new(name, "not a plain file")),
        }
    };
    let manifest = parse_manifest(&read(MANIFEST, limits::MANIFEST_BYTES)?)?;
    let Some(entry) = manifest.files.get(POLICIES) else {
        return Err(BundleError::new(MANIFEST, "the bundle carries no policies"));
    };
    let bytes = read(POLICIES, entry.size)?;
    if *entry != Manifest::describe(&bytes) {
        return Err(BundleError::new(POLICIES, "it is not the one of the manifest"));
    }
    String::from_utf8(bytes).map_err(|_| BundleError::new(POLICIES, "not UTF-8"))
}

/// Writes the files of a bundle into a directory that exists and has none of them yet.
///
/// To replace a bundle atomically, write into a new directory beside it and rename.
///
/// # Errors
/// If a file exists already or cannot be written.
pub fn write(dir: &Path, bundle: &Bundle) -> Result<(), BundleError> {
    for (name, bytes) in bundle.to_files()? {
        let result = File::create_new(dir.join(&name)).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        result.map_err(|error| wrap(&name, &error))?;
    }
    Ok(())
}

fn wrap(name: &str, error: &io::Error) -> BundleError {
    BundleError::new(name, error.to_string())
}

fn read_plain(dir: &Path, name: &str, limit: u64) -> Result<Vec<u8>, BundleError> {
    let path = dir.join(name);
    let fail = |error: io::Error| wrap(name, &error);
    // The look comes before the opening, since to open a FIFO would block.
    let seen = fs::symlink_metadata(&path).map_err(fail)?;
    if !seen.is_file() {
        return Err(BundleError::new(name, "not a plain file"));
    }
    let file = File::open(&path).map_err(fail)?;
    let opened = file.metadata().map_err(fail)?;
    if !opened.is_file() || (opened.dev(), opened.ino()) != (seen.dev(), seen.ino()) {
        return Err(BundleError::new(name, "replaced while it was opened"));
    }
    if opened.len() > limit {
        return Err(BundleError::new(name, format!("{} bytes, at most {limit} expected", opened.len())));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(opened.len()).unwrap_or(0));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > limit {
        return Err(BundleError::new(name, format!("more than {limit} bytes")));
    }
    Ok(bytes)
}
