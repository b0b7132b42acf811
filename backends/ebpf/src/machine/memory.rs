//! The memory of a run: its own stack, the structures of the stand-in kernel, and the values of maps.
//!
//! Whoever executes instructions reaches memory through here, so a program reaches nothing else. An address is the
//! number of a [`region`] in its upper half and an offset in its lower half.

use super::maps::Maps;
use super::packet::{Kernel, region};
use super::{Counted, Fault};
use crate::layout::Map;
use std::ops::Range;

/// Bytes of a program's stack (`MAX_BPF_STACK`, include/linux/filter.h).
pub(super) const STACK_BYTES: usize = 512;

/// What a program finds in r10: the end of its stack.
pub(super) const FRAME_POINTER: u64 = region::base(region::STACK) + STACK_BYTES as u64;

/// `-EFAULT`, as helpers return it.
const EFAULT: u64 = -14i64 as u64;

/// What a program finds where a map is loaded, by the descriptor that the map was linked with.
pub(super) const fn map_address(fd: i32) -> u64 {
    region::base(region::MAPS.wrapping_add(fd as u64))
}

/// What went wrong, wherever it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Memory that is not there.
    Memory,
    /// Arguments that a helper does not take.
    Helper,
}

impl Trouble {
    /// At an instruction, by its slot.
    pub(super) fn at(self, slot: usize) -> Fault {
        match self {
            Trouble::Memory => Fault::Memory(slot),
            Trouble::Helper => Fault::Helper(slot),
        }
    }
}

/// The memory of one run.
#[derive(Debug)]
pub(super) struct Memory<'r> {
    /// Not zeros at first, so that reading what was not written has consequences.
    pub(super) stack: [u8; STACK_BYTES],
    maps: &'r Maps,
    kernel: &'r Kernel,
    /// The last addition to a counter.
    pub(super) counted: Option<Counted>,
}

impl<'r> Memory<'r> {
    pub(super) fn new(maps: &'r Maps, kernel: &'r Kernel) -> Memory<'r> {
        Memory { stack: [0xaa; STACK_BYTES], maps, kernel, counted: None }
    }

    fn bytes(&self, addr: u64, bytes: usize) -> Option<&[u8]> {
        match addr >> 32 {
            region::STACK => self.stack.get(range(addr, bytes)?),
            _ => self.foreign(addr, bytes),
        }
    }

    /// Memory that is not the stack; it does not change during the run.
    fn foreign(&self, addr: u64, bytes: usize) -> Option<&'r [u8]> {
        let number = addr >> 32;
        let memory = match number {
            region::VALUES..region::MAPS => {
                self.maps.memory(*Map::ALL.get((number - region::VALUES) as usize)?)
            }
            _ => self.kernel.region(number)?,
        };
        memory.get(range(addr, bytes)?)
    }

    /// A number of at most eight bytes.
    pub(super) fn read(&self, addr: u64, bytes: usize) -> Result<u64, Trouble> {
        let found = self.bytes(addr, bytes).ok_or(Trouble::Memory)?;
        let mut value = [0; 8];
        value.get_mut(..bytes).ok_or(Trouble::Memory)?.copy_from_slice(found);
        Ok(u64::from_le_bytes(value))
    }

    /// Only the stack is ever written.
    fn stack(&mut self, addr: u64, bytes: usize) -> Result<&mut [u8], Trouble> {
        let range = range(addr, bytes).filter(|_| addr >> 32 == region::STACK).ok_or(Trouble::Memory)?;
        self.stack.get_mut(range).ok_or(Trouble::Memory)
    }

    /// The low bytes of a number, at most eight.
    pub(super) fn write(&mut self, addr: u64, bytes: usize, value: u64) -> Result<(), Trouble> {
        let value = value.to_le_bytes();
        let value = value.get(..bytes).ok_or(Trouble::Memory)?;
        self.stack(addr, bytes)?.copy_from_slice(value);
        Ok(())
    }

    /// Adds to a counter. Nothing else may be added to: what a run reads does not change during runs.
    pub(super) fn add(&mut self, addr: u64, amount: u64) -> Result<(), Trouble> {
        let at = (addr >> 32 == region::COUNTERS).then_some(addr as u32 as usize);
        let key = at.and_then(|at| self.maps.counter(at)).ok_or(Trouble::Memory)?;
        self.counted = Some(Counted { key, amount });
        Ok(())
    }

    /// `bpf_map_lookup_elem`.
    pub(super) fn lookup(&self, map: u64, key: u64) -> Result<u64, Trouble> {
        let index = (map >> 32).checked_sub(region::MAPS + 1).ok_or(Trouble::Helper)?;
        let map = usize::try_from(index).ok().and_then(|i| Map::ALL.get(i)).ok_or(Trouble::Helper)?;
        let key = self.bytes(key, self.maps.key_bytes(*map)).ok_or(Trouble::Helper)?;
        if *map == Map::Interfaces && self.kernel.has_interface(key) {
            return Ok(region::base(region::INTERFACE));
        }
        let found = self.maps.find(*map, key);
        Ok(found.map_or(0, |at| region::base(region::VALUES + index) + at as u64))
    }

    /// `bpf_probe_read_kernel`.
    pub(super) fn probe_read(&mut self, to: u64, bytes: u64, from: u64) -> Result<u64, Trouble> {
        let bytes = usize::try_from(bytes).ok().filter(|b| (1..=STACK_BYTES).contains(b));
        let bytes = bytes.ok_or(Trouble::Helper)?;
        if from >> 32 == region::COUNTERS {
            return Err(Trouble::Helper);
        }
        // Source and destination may overlap if both are on the stack, so that case is a copy within.
        if from >> 32 == region::STACK {
            let source = range(from, bytes).filter(|r| r.end <= STACK_BYTES);
            let start = range(to, bytes).map(|r| r.start);
            self.stack(to, bytes)?;
            if let (Some(source), Some(start)) = (source, start) {
                self.stack.copy_within(source, start);
                return Ok(0);
            }
        }
        let found = self.foreign(from, bytes);
        let place = self.stack(to, bytes)?;
        match found {
            Some(found) => {
                place.copy_from_slice(found);
                Ok(0)
            }
            None => {
                place.fill(0);
                Ok(EFAULT)
            }
        }
    }
}

/// Where in its region so many bytes at an address are.
fn range(addr: u64, bytes: usize) -> Option<Range<usize>> {
    let at = addr as u32 as usize;
    Some(at..at.checked_add(bytes)?)
}
