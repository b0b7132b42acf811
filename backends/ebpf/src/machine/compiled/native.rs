//! Machine code in this process: the one place of the crate with `unsafe`.
//!
//! Two things are beyond what the compiler can check: calling what [`translate`] has made, and being called from there.
//! Both rest on what [`translate`](mod@super::translate) promises, and on Cranelift, which is asked to verify what it
//! is given.
#![expect(
    unsafe_code,
    reason = "code that was made at run time is called through its address, and calls back"
)]

use super::translate::translate;
use crate::insn::Insn;
use crate::machine::maps::Maps;
use crate::machine::memory::Memory;
use crate::machine::packet::Kernel;
use crate::machine::{Fault, Outcome};
use cranelift_codegen::ir::{AbiParam, types};
use cranelift_codegen::settings::{self, Configurable, Flags};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module, default_libcall_names};
use std::mem::{ManuallyDrop, offset_of, transmute};
use std::sync::Mutex;

/// What a run has, as the code sees it.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Frame<'r> {
    /// What came of the last service.
    value: u64,
    memory: Memory<'r>,
    fault: Option<Fault>,
}

/// Where the code finds what it reaches itself, in bytes from the beginning of a [`Frame`].
pub(super) struct Places;

impl Places {
    /// [`Frame::value`].
    pub(super) const VALUE: i32 = offset_of!(Frame<'static>, value) as i32;
    /// The first byte of the stack.
    pub(super) const STACK: i32 = offset_of!(Frame<'static>, memory.stack) as i32;
}

/// What the code asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// A number at an address; its bytes.
    Read,
    /// The address, the bytes, and the number.
    Write,
    /// The address of a counter, and how much is added.
    Add,
    /// `bpf_map_lookup_elem`: map and key.
    Lookup,
    /// `bpf_probe_read_kernel`: where to, how many bytes, where from.
    ProbeRead,
}

impl Service {
    const ALL: [Service; 5] =
        [Service::Read, Service::Write, Service::Add, Service::Lookup, Service::ProbeRead];
}

/// The name under which the code knows [`serve`].
const SERVE: &str = "netpolc_serve";

/// A compiled program.
type Entry = unsafe extern "C" fn(*mut Frame<'_>) -> u64;

/// A compiled program and the memory that it is in.
pub(in crate::machine) struct Code {
    entry: Entry,
    _memory: Mutex<Owned>,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Code").finish_non_exhaustive()
    }
}

/// Memory for code, given back at the end. Cranelift itself would keep it.
struct Owned(ManuallyDrop<JITModule>);

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the module is taken out once, here, and not used again. None of its functions is running and none will
        // be called: the only way to them is `Code::run`, which borrows the `Code` that is being dropped.
        unsafe { ManuallyDrop::take(&mut self.0).free_memory() }
    }
}

impl Code {
    /// What a run comes to.
    pub(in crate::machine) fn run(&self, maps: &Maps, kernel: &Kernel) -> Result<Outcome, Fault> {
        let mut frame = Frame { value: 0, memory: Memory::new(maps, kernel), fault: None };
        // SAFETY: `entry` is the address of a function that `compile` made by `translate`, of this signature, in memory
        // that lives as long as `self`. By the promise of `translate` it reaches nothing but this frame, which is
        // borrowed by nobody else until the call returns.
        let result = unsafe { (self.entry)(&raw mut frame) };
        match frame.fault {
            Some(fault) => Err(fault),
            None => Ok(Outcome { result, counted: frame.memory.counted }),
        }
    }
}

/// Does what the code asks for; 1 if that is a fault, else 0. Does not panic.
///
/// # Safety
/// `frame` is the one that [`Code::run`] has given to the calling code.
unsafe extern "C" fn serve(frame: *mut Frame<'_>, slot: u64, service: u64, a: u64, b: u64, c: u64) -> u64 {
    // SAFETY: the frame is alive, since `Code::run` waits for the code that calls; and while this function runs, neither
    // of them touches it.
    let frame = unsafe { &mut *frame };
    let bytes = b as usize;
    let memory = &mut frame.memory;
    let done = match Service::ALL.get(service as usize) {
        Some(Service::Read) => memory.read(a, bytes),
        Some(Service::Write) => memory.write(a, bytes, c).map(|()| 0),
        Some(Service::Add) => memory.add(a, b).map(|()| 0),
        Some(Service::Lookup) => memory.lookup(a, b),
        Some(Service::ProbeRead) | None => memory.probe_read(a, b, c),
    };
    match done {
        Ok(value) => {
            frame.value = value;
            0
        }
        Err(trouble) => {
            frame.fault = Some(trouble.at(slot as usize));
            1
        }
    }
}

/// The code of a program; `None` if it has to be interpreted.
pub(super) fn compile(slots: &[Option<Insn>]) -> Option<Code> {
    let mut flags = settings::builder();
    for (name, value) in [("opt_level", "speed"), ("enable_verifier", "true"), ("is_pic", "false")] {
        flags.set(name, value).ok()?;
    }
    let isa = cranelift_native::builder().ok()?.finish(Flags::new(flags)).ok()?;
    let mut builder = JITBuilder::with_isa(isa, default_libcall_names());
    builder.symbol(SERVE, serve as *const u8);
    let mut memory = Owned(ManuallyDrop::new(JITModule::new(builder)));
    let function = define(&mut memory.0, slots)?;
    let address = memory.0.get_finalized_function(function);
    // SAFETY: `define` has finished this function, with the signature of `Entry` in the convention of the host's C.
    let entry = unsafe { transmute::<*const u8, Entry>(address) };
    Some(Code { entry, _memory: Mutex::new(memory) })
}

fn define(module: &mut JITModule, slots: &[Option<Insn>]) -> Option<FuncId> {
    let pointer = AbiParam::new(module.target_config().pointer_type());
    let number = AbiParam::new(types::I64);
    let mut signature = module.make_signature();
    signature.params = vec![pointer, number, number, number, number, number];
    signature.returns = vec![number];
    let service = module.declare_function(SERVE, Linkage::Import, &signature).ok()?;
    signature.params.truncate(1);
    let program = module.declare_function("program", Linkage::Local, &signature).ok()?;
    let mut context = module.make_context();
    context.func.signature = signature;
    let service = module.declare_func_in_func(service, &mut context.func);
    let config = module.target_config();
    translate(slots, &mut context.func, service, config)?;
    module.define_function(program, &mut context).ok()?;
    module.finalize_definitions().ok()?;
    Some(program)
}
