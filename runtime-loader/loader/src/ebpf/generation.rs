//! One version in the kernel: a program and its maps, pinned in a directory of their own.
//!
//! | pin | what it is |
//! |---|---|
//! | `program` | the program that is in force first |
//! | `settled` | the one that follows when the older connections have been looked at, once that has been; it has the same maps |
//! | `pods4`, `pods6`, `blocks`, `pairs`, `ports`, `interfaces`, `denied` | its maps |
//! | `meta` | an array of one entry, frozen: the version, the digest of the contents, `cut` or `keep` |

use super::spare::{Blank, Spare};
use super::sys::{self, MapFd, ObjectFd, Shape};
use crate::Error;
use crate::cut::Established;
use netpolc_bundle::Version;
use netpolc_bundle::bpf::btf::Btf;
use netpolc_bundle::bpf::contents::{Contents, Entry, Pod};
use netpolc_bundle::bpf::layout::{self, Map, MapType};
use netpolc_bundle::bpf::{Field, Pair, contents, contents_digest, object};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The pin of the program.
const PROGRAM: &str = "program";
/// The pin of the one that follows it.
const SETTLED: &str = "settled";
/// The pin of what is known about the version.
const META: &str = "meta";
/// Where the next one is pinned before it takes its place.
const FRESH_META: &str = "meta-new";
/// Bytes of the value of `meta`: two versions in 16 hexadecimal digits, and `c` or `k`.
const META_BYTES: usize = 40;

/// A version in the kernel.
#[derive(Debug)]
pub(super) struct Generation {
    /// The program.
    pub(super) program: ObjectFd,
    /// The one that follows when no connection is left that the version would not let begin. Established ones then pass on
    /// the state of their entry.
    pub(super) settled: Option<ObjectFd>,
    /// Where it is pinned.
    dir: PathBuf,
    /// The maps.
    pub(super) maps: BTreeMap<Map, MapFd>,
    /// What `meta` says.
    pub(super) meta: Meta,
}

/// What a version says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// The version of the artifact.
    pub(super) version: Version,
    /// The digest of what the maps were filled with.
    pub(super) contents: Version,
    /// Which of the two programs is in force first.
    pub(super) established: Established,
}

impl Meta {
    fn bytes(&self) -> Vec<u8> {
        let word = match self.established {
            Established::Cut => 'c',
            Established::Keep => 'k',
        };
        let mut bytes = format!("{}{}{word}", self.version, self.contents).into_bytes();
        bytes.resize(META_BYTES, 0);
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Meta> {
        let text = str::from_utf8(bytes.get(..33)?).ok()?;
        let established = match text.get(32..)? {
            "c" => Established::Cut,
            "k" => Established::Keep,
            _ => return None,
        };
        let (version, contents) = (text.get(..16)?.parse().ok()?, text.get(16..32)?.parse().ok()?);
        Some(Meta { version, contents, established })
    }
}

/// What is wanted, as the kernel takes it.
pub(super) struct Wanted<'a> {
    pub(super) artifact: &'a object::Artifact,
    pub(super) meta: Meta,
}

impl Wanted<'_> {
    pub(super) fn of(pair: &Pair, version: Version, established: Established) -> Wanted<'_> {
        let artifact = match established {
            Established::Cut => &pair.cut,
            Established::Keep => &pair.keep,
        };
        let contents = contents_digest(artifact.contents.entries());
        Wanted { artifact, meta: Meta { version, contents, established } }
    }
}

/// What the kernel refused, in its words.
fn refused(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Kernel { what: what.to_owned(), complaint: error.to_string() }
}

fn map_error(what: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Error::Permission(format!("{what}: {error}")),
        _ => refused(what, error),
    }
}

/// Where the kernel has the fields that the programs read. It is looked up once: a running kernel does not change its types.
pub(super) fn kernel_types() -> Result<&'static BTreeMap<Field, u32>, Error> {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    static FOUND: OnceLock<BTreeMap<Field, u32>> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let file = File::open(PATH).map_err(|error| Error::io(PATH, error))?;
    let types = Btf::for_paths(file, &Field::ALL.map(Field::path)).map_err(|error| refused(PATH, error))?;
    let offset = |field: Field| Some((field, types.offset_of(field.path())?));
    Ok(FOUND.get_or_init(|| Field::ALL.into_iter().filter_map(offset).collect()))
}

impl Generation {
    /// Makes maps, fills them, loads the program and pins everything into a new directory. No packet meets it yet. Maps and
    /// program may be there already.
    ///
    /// # Errors
    /// What the kernel refuses; then the directory may be there, with part of the pins.
    pub(super) fn create(
        dir: &Path,
        wanted: &Wanted<'_>,
        interfaces: &BTreeMap<u32, u32>,
        spare: Option<&Spare>,
    ) -> Result<Generation, Error> {
        let artifact = wanted.artifact;
        let blank = match spare.and_then(|spare| spare.take(artifact)) {
            Some(blank) => blank,
            None => Blank::make(artifact)?,
        };
        let Blank { program, maps } = blank;
        fill(&maps, artifact.contents.entries())?;
        let entries = interfaces.iter().map(|(index, pod)| Entry {
            map: Map::Interfaces,
            key: index.to_le_bytes().to_vec(),
            value: pod.to_le_bytes().to_vec(),
        });
        fill(&maps, entries)?;
        fs::create_dir(dir).map_err(|error| Error::io(dir.display().to_string(), error))?;
        for (map, fd) in &maps {
            fd.pin(&dir.join(map.name())).map_err(|error| map_error("a pin", error))?;
        }
        program.pin(&dir.join(PROGRAM)).map_err(|error| map_error("a pin", error))?;
        pin_meta(dir, &wanted.meta).map_err(|error| map_error("the map meta", error))?;
        Ok(Generation { program, settled: None, dir: dir.to_owned(), maps, meta: wanted.meta })
    }

    /// Makes the program that lets established connections pass, with the same maps, if it was not made. No packet meets it
    /// yet.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(super) fn prepare_settled(&mut self, keep: &object::Artifact) -> Result<&ObjectFd, Error> {
        let made = match self.settled.take() {
            Some(made) => made,
            None => {
                let made = load_ours(keep, &self.maps)?;
                made.pin(&self.dir.join(SETTLED)).map_err(|error| map_error("a pin", error))?;
                made
            }
        };
        Ok(self.settled.insert(made))
    }

    /// Whether a program's instructions are those of an artifact. It is loaded with the version's maps, to be compared by the
    /// kernel's own digest, and forgotten.
    ///
    /// # Errors
    /// What the kernel refuses, which it may where the maps are others than ours.
    pub(super) fn is(&self, program: &ObjectFd, artifact: &object::Artifact) -> Result<bool, Error> {
        let tag = |program: &ObjectFd| program.tag().map_err(|error| refused("the program's digest", error));
        Ok(tag(program)? == tag(&load(artifact, &self.maps)?)?)
    }

    /// Opens the pins of a directory; an error if some are missing, which a loader leaves that was killed.
    pub(super) fn open(dir: &Path) -> io::Result<Generation> {
        let damaged = || io::Error::from(io::ErrorKind::InvalidData);
        let program = ObjectFd::open(&dir.join(PROGRAM))?;
        let settled = match ObjectFd::open(&dir.join(SETTLED)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened?),
        };
        let maps = Map::ALL.into_iter().map(|map| Ok((map, MapFd::open(&dir.join(map.name()))?)));
        let maps = maps.collect::<io::Result<BTreeMap<Map, MapFd>>>()?;
        let meta = MapFd::open(&dir.join(META))?.lookup(&0u32.to_le_bytes())?;
        let meta = Meta::parse(&meta).ok_or_else(damaged)?;
        Ok(Generation { program, settled, dir: dir.to_owned(), maps, meta })
    }

    /// The digest of what the maps hold now.
    pub(super) fn contents(&self) -> io::Result<Version> {
        Ok(contents_digest(self.entries()?.into_iter()))
    }

    /// What the maps hold now, but for interfaces and counters.
    pub(super) fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for map in [Map::Pods4, Map::Pods6, Map::Blocks, Map::Pairs, Map::Ports] {
            let Some(fd) = self.maps.get(&map) else { continue };
            let (kind, _, value) = map.shape();
            if kind == MapType::Array {
                let values = fd.values()?;
                for (index, value) in (0u32..).zip(values.chunks_exact(value as usize)) {
                    if value.iter().any(|byte| *byte != 0) {
                        let key = index.to_le_bytes().to_vec();
                        entries.push(Entry { map, key, value: value.to_vec() });
                    }
                }
            } else {
                for key in fd.keys(contents::MOST_ENTRIES)? {
                    let value = fd.lookup(&key)?;
                    entries.push(Entry { map, key, value });
                }
            }
        }
        Ok(entries)
    }

    /// Which pod is behind which interface.
    pub(super) fn interfaces(&self) -> io::Result<BTreeMap<u32, u32>> {
        let Some(map) = self.maps.get(&Map::Interfaces) else { return Ok(BTreeMap::new()) };
        let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let keys = map.keys(contents::MOST_ENTRIES)?;
        keys.into_iter().map(|key| Ok((number(&key), number(&map.lookup(&key)?)))).collect()
    }

    /// Changes the interfaces to these, one by one; whether there was anything to change.
    pub(super) fn set_interfaces(&self, wanted: &BTreeMap<u32, u32>) -> Result<bool, Error> {
        let fail = |error: io::Error| map_error("map interfaces", error);
        let seen = self.interfaces().map_err(fail)?;
        let Some(map) = self.maps.get(&Map::Interfaces) else { return Ok(false) };
        for (index, pod) in wanted.iter().filter(|(index, pod)| seen.get(*index) != Some(*pod)) {
            map.update(&index.to_le_bytes(), &pod.to_le_bytes()).map_err(fail)?;
        }
        for index in seen.keys().filter(|index| !wanted.contains_key(*index)) {
            map.delete(&index.to_le_bytes()).map_err(fail)?;
        }
        Ok(seen != *wanted)
    }

    /// Changes the entries of some addresses: those that come, or those that go.
    pub(super) fn set_pods(
        &self,
        contents: &Contents,
        changed: &BTreeMap<IpAddr, Option<Pod>>,
        come: bool,
    ) -> Result<(), Error> {
        let fail = |error: io::Error| map_error("map of pods", error);
        for (addr, pod) in changed.iter().filter(|(_, pod)| pod.is_some() == come) {
            let Some(map) = self.maps.get(&Map::of_pod(*addr)) else { continue };
            match pod {
                Some(pod) => {
                    let Entry { key, value, .. } = contents.pod_entry(*addr, pod);
                    map.update(&key, &value).map_err(fail)?;
                }
                None => match map.delete(&layout::pod_key(*addr)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
                    _ => {}
                },
            }
        }
        Ok(())
    }

    /// Has what is known about the version say something else, from one moment to the next.
    pub(super) fn rename(&self, meta: Meta) -> Result<(), Error> {
        let fail = |error: io::Error| map_error("the map meta", error);
        let fresh = self.dir.join(FRESH_META);
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        make_meta(&meta).and_then(|map| map.pin(&fresh)).map_err(fail)?;
        fs::rename(&fresh, self.dir.join(META)).map_err(fail)
    }

    /// The packets that were denied since the version came into force, for each pair of a row and a column.
    pub(super) fn denied(&self) -> io::Result<Vec<u64>> {
        let Some(map) = self.maps.get(&Map::Denied) else { return Ok(Vec::new()) };
        let values = map.values()?;
        let numbers = values.chunks_exact(8).filter_map(|bytes| bytes.first_chunk());
        Ok(numbers.map(|bytes| u64::from_le_bytes(*bytes)).collect())
    }
}

impl Blank {
    /// For versions of an artifact.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(super) fn make(artifact: &object::Artifact) -> Result<Blank, Error> {
        let mut maps = BTreeMap::new();
        for shape in &artifact.shapes {
            let name = shape.map.name();
            let made = MapFd::create(&Shape {
                kind: shape.kind.number(),
                key: shape.key,
                value: shape.value,
                entries: shape.entries,
                flags: shape.flags,
                name,
            });
            maps.insert(shape.map, made.map_err(|error| map_error(&format!("map {name}"), error))?);
        }
        Ok(Blank { program: load_ours(artifact, &maps)?, maps })
    }
}

/// As [`load`], for a program that packets will meet: only one of this version, since whoever sends bundles has the say about
/// policies and about nothing else in the kernel.
fn load_ours(artifact: &object::Artifact, maps: &BTreeMap<Map, MapFd>) -> Result<ObjectFd, Error> {
    if !artifact.program.is_ours() {
        let name = &artifact.program.name;
        return Err(Error::Refused(format!(
            "its program {name} is none that this loader knows; netpolc and netpol-loader must be of one version"
        )));
    }
    load(artifact, maps)
}

fn load(artifact: &object::Artifact, maps: &BTreeMap<Map, MapFd>) -> Result<ObjectFd, Error> {
    let fields = kernel_types()?;
    let fd = |map| maps.get(&map).map_or(-1, MapFd::fd);
    let code = artifact.program.link_for(|field| fields.get(&field).copied(), fd);
    let code = code.map_err(|error| refused("the program", error))?;
    sys::load(&code, Some(&artifact.information)).map_err(|words| refused("the program", words))
}

fn pin_meta(dir: &Path, meta: &Meta) -> io::Result<()> {
    make_meta(meta)?.pin(&dir.join(META))
}

fn make_meta(meta: &Meta) -> io::Result<MapFd> {
    let shape = Shape {
        kind: MapType::Array.number(),
        key: 4,
        value: META_BYTES as u32,
        entries: 1,
        flags: 0,
        name: META,
    };
    let map = MapFd::create(&shape)?;
    map.update(&0u32.to_le_bytes(), &meta.bytes())?;
    map.freeze()?;
    Ok(map)
}

/// Fills maps, each in one call.
fn fill(maps: &BTreeMap<Map, MapFd>, entries: impl Iterator<Item = Entry>) -> Result<(), Error> {
    let mut by_map: BTreeMap<Map, (Vec<u8>, Vec<u8>)> = BTreeMap::new();
    for Entry { map, key, value } in entries {
        let (keys, values) = by_map.entry(map).or_default();
        keys.extend(key);
        values.extend(value);
    }
    for (map, (keys, values)) in by_map {
        if let Some(fd) = maps.get(&map) {
            let done = fd.update_all(&keys, &values);
            done.map_err(|error| map_error(&format!("the contents of map {}", map.name()), error))?;
        }
    }
    Ok(())
}
