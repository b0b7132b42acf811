//! The hook: a program that never changes stands at FORWARD, once for each family, and calls what stands in its slot.
//!
//! Links of this type cannot be given another program (`BPF_LINK_UPDATE` fails with `EOPNOTSUPP`), so the switch is the one
//! store into the slot: from then on every packet of either family meets the new program and its maps. A call costs 2 ns.
//! If the slot is empty, which nobody but another hand can bring about, packets are dropped.
//!
//! | pin | what it is |
//! |---|---|
//! | `slot` | an array of programs with one place |
//! | `link4`, `link6` | the links |
//! | `dispatcher` | the program that the links belong to |

use super::sys::{self, FORWARD, MapFd, ObjectFd, Shape};
use crate::Error;
use nix::errno::Errno;
use std::fs;
use std::io;
use std::path::Path;

const SLOT: &str = "slot";
const DISPATCHER: &str = "dispatcher";
/// The links' pins and families (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
const LINKS: [(&str, u32); 2] = [("link4", 2), ("link6", 10)];
/// `BPF_MAP_TYPE_PROG_ARRAY`.
const PROG_ARRAY: u32 = 3;
/// Before the priorities of others: 0 is that of iptables' table `filter`. Two programs at one priority are refused.
const PRIORITIES: std::ops::Range<i32> = -60..-20;
const KEY: [u8; 4] = 0u32.to_le_bytes();

/// What stands at the hook.
#[derive(Debug)]
pub(super) struct Hook {
    slot: MapFd,
}

/// Whether something could not be opened for what this process, or the machine, has too little of: it says nothing about what
/// there is.
pub(super) fn lacks_means(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}

fn refused(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Kernel { what: what.to_owned(), complaint: error.to_string() }
}

/// r2 = slot; r3 = 0; tail call; r0 = NF_DROP; exit
fn dispatcher(slot: i32) -> Vec<u8> {
    let mut code = vec![0x18, 0x12, 0, 0];
    code.extend(slot.to_le_bytes());
    code.extend([0; 8]);
    code.extend([0xb7, 3, 0, 0, 0, 0, 0, 0]);
    code.extend([0x85, 0, 0, 0, 12, 0, 0, 0]);
    code.extend([0xb7, 0, 0, 0, 0, 0, 0, 0]);
    code.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
    code
}

/// r0 = NF_ACCEPT; exit
const PASS: [u8; 16] = [0xb7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

impl Hook {
    /// The hook of this directory, if its slot is there.
    ///
    /// # Errors
    /// If it cannot be told whether there is one.
    pub(super) fn open(dir: &Path) -> io::Result<Option<Hook>> {
        match MapFd::open(&dir.join(SLOT)) {
            Ok(slot) => Ok(Some(Hook { slot })),
            Err(error) if lacks_means(&error) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// The hook of this directory, made if it is not there, or not whole. Where nothing stood at the hook, a program that lets
    /// everything pass stands in the slot at first, so that no family is ahead of the other. Where something did, it has dropped
    /// everything since the slot was lost, and this program follows at once.
    pub(super) fn open_or_create(dir: &Path, program: &ObjectFd) -> Result<Hook, Error> {
        let stood = stands(dir);
        let hook =
            match Hook::open(dir).map_err(|error| Error::io(dir.join(SLOT).display().to_string(), error))? {
                Some(hook) => hook,
                None => create_slot(dir)?,
            };
        match hook.program_id() {
            Some(_) => {}
            None if stood => hook.switch(program)?,
            None => {
                let pass = sys::load(&PASS, None).map_err(|words| refused("a program that passes", words))?;
                hook.switch(&pass)?;
            }
        }
        if !hook.faults(dir).is_empty() {
            hook.attach(dir)?;
        }
        Ok(hook)
    }

    fn attach(&self, dir: &Path) -> Result<(), Error> {
        let gone = |path: &Path| match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(path.display().to_string(), error))
            }
            _ => Ok(()),
        };
        let path = dir.join(DISPATCHER);
        let program = match ObjectFd::open(&path) {
            Ok(program) if program.program_id().is_ok() => program,
            _ => {
                gone(&path)?;
                let code = dispatcher(self.slot.fd());
                let program = sys::load(&code, None).map_err(|words| refused("the dispatcher", words))?;
                program.pin(&path).map_err(|error| refused("a pin", error))?;
                program
            }
        };
        let id = program.program_id().map_err(|error| refused("the dispatcher", error))?;
        for (name, family) in LINKS {
            let path = dir.join(name);
            if fault(&path, id, family).is_none() {
                continue;
            }
            let link = attach_somewhere(&program, family)?;
            // The old link, if any, stays in force until the new one has its name.
            let fresh = dir.join(format!("{name}-new"));
            gone(&fresh)?;
            link.pin(&fresh).map_err(|error| refused("a pin", error))?;
            fs::rename(&fresh, &path).map_err(|error| Error::io(path.display().to_string(), error))?;
        }
        Ok(())
    }

    /// What is wrong with the links; empty if every packet that is forwarded meets the slot.
    pub(super) fn faults(&self, dir: &Path) -> Vec<String> {
        let id = ObjectFd::open(&dir.join(DISPATCHER)).and_then(|program| program.program_id());
        let Ok(id) = id else { return vec!["the dispatcher is gone".to_owned()] };
        LINKS.into_iter().filter_map(|(name, family)| fault(&dir.join(name), id, family)).collect()
    }

    /// Every packet meets this program from now on.
    pub(super) fn switch(&self, program: &ObjectFd) -> Result<(), Error> {
        let fd = program.fd().to_ne_bytes();
        self.slot.update(&KEY, &fd).map_err(|error| refused("the switch of programs", error))
    }

    /// The number of the program in the slot.
    pub(super) fn program_id(&self) -> Option<u32> {
        let value = self.slot.lookup(&KEY).ok()?;
        value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    /// Lets everything pass, from one moment to the next, before links are taken out one after the other.
    pub(super) fn release(&self) -> Result<(), Error> {
        let pass = sys::load(&PASS, None).map_err(|words| refused("a program that passes", words))?;
        self.switch(&pass)
    }
}

/// Whether something stands at the hook. Where it has no slot any more, it drops everything.
pub(super) fn stands(dir: &Path) -> bool {
    LINKS.iter().any(|(name, _)| dir.join(name).exists())
}

fn create_slot(dir: &Path) -> Result<Hook, Error> {
    let shape = Shape { kind: PROG_ARRAY, key: 4, value: 4, entries: 1, flags: 0, name: SLOT };
    let slot = MapFd::create(&shape).map_err(|error| refused("map slot", error))?;
    // A dispatcher that belongs to a slot that is gone is of no use. Its links drop everything until others take their place.
    for name in [DISPATCHER, SLOT] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(dir.join(name).display().to_string(), error));
            }
            _ => {}
        }
    }
    // The array forgets its programs when neither a pin nor an open file is left.
    slot.pin(&dir.join(SLOT)).map_err(|error| refused("a pin", error))?;
    Ok(Hook { slot })
}

fn attach_somewhere(program: &ObjectFd, family: u32) -> Result<ObjectFd, Error> {
    let mut last = None;
    for priority in PRIORITIES {
        match sys::attach(program, family, priority) {
            Ok(link) => return Ok(link),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => last = Some(error),
            Err(error) => return Err(refused("a link at the FORWARD hook", error)),
        }
    }
    let error = last.map_or_else(String::new, |error| error.to_string());
    Err(refused("a link at the FORWARD hook", format!("no free priority: {error}")))
}

/// What is wrong with a pinned link.
fn fault(path: &Path, program: u32, family: u32) -> Option<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match ObjectFd::open(path).and_then(|link| link.link()) {
        Ok((id, of, hook)) if (id, of, hook) == (program, family, FORWARD) => None,
        Ok(_) => Some(format!("{name} belongs to another program or hook")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(format!("{name} is gone")),
        Err(error) => Some(format!("{name}: {error}")),
    }
}
