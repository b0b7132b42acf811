//! Bundles in memory and on disk.

use crate::common::{Random, bundle, script};
use netpolc_bundle::{
    Artifact, Artifacts, BINDINGS, Bundle, BundleError, MANIFEST, Manifest, PROVENANCE, Parts, SCRIPT, nft,
    store,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("netpolc-bundle-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Dir(path)
    }

    fn with_bundle(name: &str) -> Dir {
        let dir = Dir::new(name);
        store::write(&dir.0, &bundle()).unwrap();
        dir
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn check_refused(dir: &Path, file: &str, part: &str) {
    let error = Bundle::open(dir).expect_err(part).to_string();
    assert!(
        error.starts_with(&format!("{file}: ")) && error.contains(part),
        "{error}, wanted {file} and {part:?}"
    );
}

#[test]
fn what_is_written_is_read() {
    let dir = Dir::with_bundle("same");
    let read = Bundle::open(&dir.0).unwrap();
    assert_eq!(read, bundle());
    assert_eq!(nft::digest(&nftables(&read).unwrap()), version(&read));
    assert_eq!(read.bindings().unwrap().pods[0].name, "shop/db");
    let provenance = read.provenance().unwrap();
    let lines = |object| provenance.behind(object).map(|place| place.line).collect::<Vec<_>>();
    assert_eq!((lines("pods_5a5a"), lines("pods_0000")), (vec![12], vec![]));
    assert_eq!(store::policies(&dir.0).unwrap(), "list\n");
    assert_eq!(Bundle::from_files(read.to_files().unwrap()).unwrap(), read);
    store::write(&dir.0, &read).expect_err("the files exist");
}

/// Each place stands in the file once, and what leads to none is refused.
#[test]
fn provenance_by_number() {
    let mut bundle = bundle();
    let text = String::from_utf8(bundle.files[PROVENANCE].clone()).unwrap();
    let wrong = text.replace("      0\n", "      1\n");
    assert_ne!(wrong, text);
    bundle.files.insert(PROVENANCE.to_owned(), wrong.into_bytes());
    let error = bundle.provenance().unwrap_err().to_string();
    assert_eq!(error, "provenance.json: pods_5a5a leads to a place that is not there");
}

/// A bundle with a script for nftables alone.
fn parts(script: String) -> Parts {
    let artifacts = Artifacts { nftables: Some(script), ..Artifacts::default() };
    Parts { compiler: "0".into(), node: "n".into(), artifacts, ..Parts::default() }
}

fn nftables(bundle: &Bundle) -> Result<nft::Ruleset, BundleError> {
    bundle.read_back().map(|read| read.nftables.unwrap())
}

fn version(bundle: &Bundle) -> nft::Version {
    bundle.manifest.artifacts[&Artifact::Nftables]
}

#[test]
fn a_marker_must_name_the_version() {
    Bundle::new(parts(script())).unwrap();
    let two =
        script().replacen("\tchain forward", "\tchain version_0000000000000000 {\n\t}\n\tchain forward", 1);
    for bad in [crate::common::SHAPE.to_owned(), two, script().replace("10.0.0.9", "10.0.0.8")] {
        let error = Bundle::new(parts(bad)).unwrap_err().to_string();
        assert!(error.contains("marker"), "{error}");
    }
    let error = Bundle::new(parts(script().replace("drop", "dorp"))).unwrap_err().to_string();
    assert!(error.starts_with("nftables.nft: line "), "{error}");
}

#[test]
fn plain_files_only() {
    let dir = Dir::with_bundle("plain");
    let path = dir.0.join(BINDINGS);
    fs::rename(&path, dir.0.join("elsewhere")).unwrap();
    check_refused(&dir.0, BINDINGS, "No such file");
    std::os::unix::fs::symlink("elsewhere", &path).unwrap();
    check_refused(&dir.0, BINDINGS, "not a plain file");
    fs::remove_file(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    check_refused(&dir.0, BINDINGS, "not a plain file");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    check_refused(&dir.0, BINDINGS, "not a plain file");
    fs::remove_dir(&path).unwrap();
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    check_refused(&dir.0, BINDINGS, "at most");
    fs::File::create(dir.0.join(MANIFEST)).unwrap().set_len(1 << 40).unwrap();
    check_refused(&dir.0, MANIFEST, "at most");
}

/// Changes the manifest's text, and says how it is refused.
fn check_manifest(from: &str, to: &str, part: &str) {
    let mut files = bundle().to_files().unwrap();
    let text = String::from_utf8(files[MANIFEST].clone()).unwrap();
    let changed = text.replacen(from, to, 1);
    assert_ne!(changed, text, "{from}");
    files.insert(MANIFEST.into(), changed.into_bytes());
    let error = Bundle::from_files(files).expect_err(to).to_string();
    assert!(error.contains(part), "{error}, wanted {part:?}");
}

#[test]
fn manifests() {
    check_manifest("\"format\": 2", "\"format\": 1", "format 1");
    check_manifest("\"format\": 2", "\"format\": 2, \"more\": 1", "unknown field");
    check_manifest("\"format\": 2", "\"format\": 2, \"format\": 2", "duplicate field");
    check_manifest("\"sets\": 5", "\"sets\": 5, \"sets\": 5", "duplicate key");
    check_manifest("\"nftables\"", "\"pf\"", "unknown variant");
    check_manifest("\"bindings.json\"", "\"../bindings.json\"", "no file of a bundle");
    check_manifest("\"bindings.json\"", "\"manifest.json\"", "names itself");
    check_manifest("\"policies.json\"", "\"bindings.json\"", "duplicate key");
    check_manifest("\"192.0.2.1\"", "\"192.0.2\"", "invalid IP");
    check_manifest("\"node-1\"", "\"node\\u0007\"", "control");
    check_manifest("\"size\": 5,", "\"size\": 6,", "policies.json: 5 bytes");
    check_manifest("\"size\": 5,", "\"size\": 99999999999,", "more than");
}

#[test]
fn files_must_be_those_of_the_manifest() {
    let mut files = bundle().to_files().unwrap();
    files.insert("extra".into(), vec![]);
    assert!(Bundle::from_files(files).unwrap_err().to_string().starts_with("extra: "));
    let mut files = bundle().to_files().unwrap();
    files.remove(PROVENANCE);
    assert_eq!(Bundle::from_files(files).unwrap_err().to_string(), "provenance.json: missing");
}

/// A script that says something else, in a manifest that describes it well except for its version.
#[test]
fn the_version_covers_the_script() {
    let good = bundle();
    let other = script().replace("10.0.0.9", "10.0.0.8");
    let marker = nft::marker(nft::digest(&nft::parse(&other).unwrap()));
    let other = other.replace(&nft::marker(version(&good)), &marker);
    let mut forged = Bundle::new(parts(other)).unwrap();
    forged.manifest.artifacts = good.manifest.artifacts.clone();
    let forged = Bundle::from_files(forged.to_files().unwrap()).unwrap();
    let error = forged.read_back().unwrap_err().to_string();
    assert!(error.contains("the manifest says"), "{error}");
}

/// Whatever is changed in the files: never a panic, and what is accepted is unchanged in all that matters.
#[test]
fn mutations_are_never_accepted() {
    let good = bundle();
    let files = good.to_files().unwrap();
    let mut random = Random(11);
    let mut opened = 0;
    for name in files.keys() {
        for _ in 0..1_500 {
            let mut changed: BTreeMap<String, Vec<u8>> = files.clone();
            random.mutate(changed.get_mut(name).unwrap());
            let Ok(bundle) = Bundle::from_files(changed) else { continue };
            opened += 1;
            // Only the manifest's own figures and names can have changed: all else is under a digest.
            assert_eq!(bundle.files, good.files, "{name}");
            if let Ok(ruleset) = nftables(&bundle) {
                assert_eq!(nft::digest(&ruleset), version(&good));
                assert_eq!(version(&bundle), version(&good));
            }
        }
    }
    assert!(opened > 0);
}

/// The same, where the manifest is made to fit the changed file: the readers behind the digests.
#[test]
fn mutations_behind_the_digests() {
    let good = bundle();
    let mut random = Random(13);
    for name in good.files.keys() {
        for _ in 0..1_500 {
            let mut changed = good.clone();
            random.mutate(changed.files.get_mut(name).unwrap());
            let bytes = &changed.files[name];
            let entry = changed.manifest.files.get_mut(name).unwrap();
            *entry = Manifest::describe(bytes);
            let Ok(bundle) = Bundle::from_files(changed.to_files().unwrap()) else { panic!("{name}") };
            let _ = (bundle.bindings(), bundle.provenance());
            if let Ok(ruleset) = nftables(&bundle) {
                assert_eq!(nft::digest(&ruleset), version(&good), "{name}");
            } else {
                assert_eq!(name, SCRIPT);
            }
        }
    }
}
