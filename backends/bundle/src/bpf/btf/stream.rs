//! The few types of a kernel that some fields need, out of the 150,000 that it has.
//!
//! A kernel's type information has 6 MB and would take 20 MB of memory when read as a whole. Here it is gone through twice
//! with a small buffer: once for the places of the names that matter, once for the places of the types; then only the
//! types on the way to the fields are read. What is kept from the second time is a word for each type.

use super::{Btf, BtfError, MAGIC, Type, kind, words_behind};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 64 << 10;

/// Most types of a source. Kernels have 150,000.
const TYPES: usize = 4 << 20;

/// Most types on the way to fields. Ours take about a hundred.
const WANTED: usize = 10_000;

/// In place of a name that no field has. It is no identifier, so no path leads there.
const OTHER: &str = "?";

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, BtfError(what))
}

/// A part of the source.
#[derive(Debug, Clone, Copy)]
struct Part {
    at: u64,
    bytes: u64,
}

impl Btf {
    /// Reads what [`Btf::offset_of`] needs for these paths, and no more, so that a kernel's types need not be in memory.
    ///
    /// # Errors
    /// If the source cannot be read; `InvalidData` if it is not BTF of this machine's byte order, or of an unknown kind.
    pub fn for_paths<R: Read + Seek>(source: R, paths: &[&'static str]) -> io::Result<Btf> {
        let mut source = BufReader::with_capacity(BUFFER_BYTES, source);
        let [types, strings] = parts(&mut source)?;
        let steps = |path: &&'static str| path.split('.').filter_map(|step| step.split('[').next());
        let names: BTreeSet<&str> = paths.iter().flat_map(steps).collect();
        let roots: BTreeSet<&str> = paths.iter().filter_map(|path| steps(path).next()).collect();
        let mut reader =
            Sliced { names: Names::find(&mut source, strings, &names)?, places: Vec::new(), source, types };
        let mut wanted = reader.index(&roots)?;
        let strings = reader.names.text.clone();
        let mut btf = Btf { types: BTreeMap::new(), strings, structures: HashMap::new() };
        // The first structure of a name counts, as in `parse`: ids go up.
        while let Some(id) = wanted.pop_first() {
            if btf.types.contains_key(&id) {
                continue;
            }
            let ty = reader.read(id)?;
            wanted.extend(reader.next(&ty));
            btf.insert(id, ty);
            if btf.types.len() > WANTED {
                return Err(invalid("fields need too many types"));
            }
        }
        Ok(btf)
    }
}

/// Where types and strings are.
fn parts<R: Read + Seek>(source: &mut BufReader<R>) -> io::Result<[Part; 2]> {
    let mut bytes = [0; 24];
    source.seek(SeekFrom::Start(0))?;
    source.read_exact(&mut bytes).map_err(|_| invalid("cut off"))?;
    if !bytes.starts_with(&MAGIC.to_le_bytes()) {
        return Err(invalid("the magic number is missing"));
    }
    let words: Vec<u64> =
        bytes.as_chunks::<4>().0.iter().map(|word| u64::from(u32::from_le_bytes(*word))).collect();
    let [_, header, type_at, type_bytes, string_at, string_bytes] = words.as_slice() else {
        return Err(invalid("cut off"));
    };
    Ok([(type_at, type_bytes), (string_at, string_bytes)]
        .map(|(at, bytes)| Part { at: header + at, bytes: *bytes }))
}

/// The names that matter: their places in the source, and in a text of their own.
struct Names {
    text: Vec<u8>,
    /// From a place in the source's strings to one in the text.
    places: HashMap<u32, u32>,
    other: u32,
}

impl Names {
    fn find<R: Read + Seek>(
        source: &mut BufReader<R>,
        part: Part,
        wanted: &BTreeSet<&str>,
    ) -> io::Result<Names> {
        let mut names = Names { text: vec![0], places: HashMap::new(), other: 0 };
        let mut ours = HashMap::new();
        for name in wanted {
            ours.insert(name.as_bytes().to_vec(), names.append(name));
        }
        names.other = names.append(OTHER);
        source.seek(SeekFrom::Start(part.at))?;
        let mut left = source.take(part.bytes);
        let (mut at, mut name) = (0u64, Vec::new());
        loop {
            name.clear();
            let length = left.read_until(0, &mut name)? as u64;
            if length == 0 && at == part.bytes {
                return Ok(names);
            }
            if name.pop() != Some(0) {
                return Err(invalid("the strings are cut off"));
            }
            // A name may be the end of another one, and share its place.
            for (end, place) in ours.iter().filter(|(end, _)| name.ends_with(end)) {
                let start = at + (name.len() - end.len()) as u64;
                names.places.insert(u32::try_from(start).map_err(|_| invalid("too many strings"))?, *place);
            }
            at += length;
        }
    }

    fn append(&mut self, name: &str) -> u32 {
        let place = u32::try_from(self.text.len()).unwrap_or_default();
        self.text.extend(name.bytes().chain([0]));
        place
    }

    /// The place in the text of a name at a place in the source. No name stays none.
    fn of(&self, place: u32) -> u32 {
        if place == 0 { 0 } else { self.places.get(&place).copied().unwrap_or(self.other) }
    }

    fn is_known(&self, place: u32) -> bool {
        place != self.other
    }
}

/// The source, and where its types are.
struct Sliced<R> {
    source: BufReader<R>,
    types: Part,
    names: Names,
    /// For each type from number 1 on, its place in words.
    places: Vec<u32>,
}

impl<R: Read + Seek> Sliced<R> {
    /// Goes through all types, and finds the structures that paths begin with.
    fn index(&mut self, roots: &BTreeSet<&str>) -> io::Result<BTreeSet<u32>> {
        let mut found = BTreeMap::new();
        let mut at = 0u64;
        self.source.seek(SeekFrom::Start(self.types.at))?;
        while at < self.types.bytes {
            let [name, info, _] = self.fixed()?;
            let words = words_behind(info).map_err(|BtfError(what)| invalid(what))? as u64;
            self.places.push(u32::try_from(at / 4).map_err(|_| invalid("too many types"))?);
            if self.places.len() > TYPES {
                return Err(invalid("too many types"));
            }
            let name = self.names.of(name);
            let composite = matches!(super::kind_of(info), kind::STRUCT | kind::UNION);
            if composite && name != 0 && self.names.is_known(name) {
                found.entry(name).or_insert(self.places.len() as u32);
            }
            self.source.seek_relative(i64::try_from(words * 4).unwrap_or(i64::MAX))?;
            at += (3 + words) * 4;
        }
        if at > self.types.bytes {
            return Err(invalid("the types are cut off"));
        }
        let roots: BTreeSet<u32> = roots.iter().filter_map(|root| self.names.place(root)).collect();
        Ok(found.into_iter().filter(|(name, _)| roots.contains(name)).map(|(_, id)| id).collect())
    }

    fn fixed(&mut self) -> io::Result<[u32; 3]> {
        let mut bytes = [0; 12];
        self.source.read_exact(&mut bytes).map_err(|_| invalid("the types are cut off"))?;
        let word = |at: usize| bytes.as_chunks::<4>().0.get(at).map_or(0, |word| u32::from_le_bytes(*word));
        Ok([word(0), word(1), word(2)])
    }

    fn words(&mut self, count: usize) -> io::Result<Vec<u32>> {
        let mut bytes = vec![0; count * 4];
        self.source.read_exact(&mut bytes).map_err(|_| invalid("the types are cut off"))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    /// The type of this number, its names in the text of [`Names`].
    fn read(&mut self, id: u32) -> io::Result<Type> {
        let place = (id as usize).checked_sub(1).and_then(|i| self.places.get(i));
        let place = *place.ok_or_else(|| invalid("a type that does not exist"))?;
        self.source.seek(SeekFrom::Start(self.types.at + u64::from(place) * 4))?;
        let [name, info, value] = self.fixed()?;
        let rest = self.words(words_behind(info).map_err(|BtfError(what)| invalid(what))?)?;
        let mut ty = Type::new([self.names.of(name), info, value], rest);
        if ty.is_composite() {
            for name in ty.rest.iter_mut().step_by(3) {
                *name = self.names.of(*name);
            }
        }
        Ok(ty)
    }

    /// The types that a path through this one may lead to.
    fn next(&self, ty: &Type) -> Vec<u32> {
        match ty.kind {
            kind::ARRAY => ty.rest.first().copied().into_iter().collect(),
            _ if ty.is_alias() => vec![ty.value],
            _ if ty.is_composite() => {
                let members = ty.rest.as_chunks::<3>().0.iter();
                members.filter(|[name, ..]| self.names.is_known(*name)).map(|[_, id, _]| *id).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Names {
    /// The place of a name in the text.
    fn place(&self, name: &str) -> Option<u32> {
        let bytes = [&[0], name.as_bytes(), &[0]].concat();
        let at = self.text.windows(bytes.len()).position(|window| window == bytes)?;
        u32::try_from(at + 1).ok()
    }
}
