//! Isolated executions: a script in a VM of its own inside a worker, of which nothing is left for the next one.
//!
//! Called by `host`, for `msys.workers`. An [`Isolate`] is such a VM. It is used again only if the execution can be
//! shown to have left it as it was; else it is closed, and the next execution has a new one. Correctness does not
//! depend on undoing anything but what is listed here:
//!
//! - *Globals*: each execution has a table of its own, a copy of the pristine one, as the environment of its function
//!   and of the coroutine that it runs in; so code that it loads, and coroutines that it makes, have it too.
//! - *The tables of the libraries*, and metatables: compared, byte by byte of LuaJIT's memory (see `layout`), with what
//!   they were at first. Where LuaJIT's memory is not known, each execution has a new VM.
//! - *The random seed*: the generator's state is put back.
//! - *What cannot be seen afterwards* (metatables of types, upvalues of library functions, hooks, finalizers, the
//!   settings of the compiler and the collector, the registry, C libraries and the FFI): the functions that change it
//!   are behind guards, which note that they were called (`src/isolate/prelude.lua`).
//! - *An execution that was stopped*, or met the limit of memory: its VM is closed.
//!
//! Compiled code stays: a script's function is loaded once a VM, and only its environment is new each time.
//!
//! The VM is of the worker's thread. While a script runs, the worker's station points to it, so that signals interrupt
//! the script.

use std::{
    ffi::{CStr, c_int, c_void},
    ptr::null_mut,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use rustc_hash::FxHashMap;

use crate::{
    bytecode,
    decode::{self, Role},
    encode::{self, Purpose, Request},
    functions::{Functions, Handles},
    interrupt,
    job::Station,
    layout,
    luajit::{ffi, lua_State, push_bytes, string_at, traceback},
    memory::Memory,
    wire::Message,
};

const PRELUDE: &str = include_str!("prelude.lua");
/// How many scripts a VM keeps loaded; it begins anew with more.
const MOST_SCRIPTS: usize = 256;

/// Handles do not cross into an isolated VM, nor out of it.
const NO_HANDLES: Handles = Handles { of: no_handle, push_pool: push_no_pool, push_object: push_no_object };

unsafe fn no_handle(_: *mut lua_State, _: c_int) -> Option<crate::wire::Handle> {
    None
}

unsafe fn push_no_pool(state: *mut lua_State, _: u32) {
    // SAFETY: a free slot, by the type's contract.
    unsafe { ffi::lua_pushnil(state) }
}

unsafe fn push_no_object(state: *mut lua_State, _: &Arc<dyn crate::wire::Object>) {
    // SAFETY: a free slot, by the type's contract.
    unsafe { ffi::lua_pushnil(state) }
}

/// A table of the libraries, as it was.
#[derive(Debug)]
struct Known {
    table: *const layout::Table,
    shape: layout::Shape,
}

/// What the guards write to, and the handler of errors; in a box, since the VM's functions have its address.
#[derive(Debug, Default)]
struct Notes {
    is_changed: bool,
    traceback: Vec<u8>,
}

/// See the module.
pub struct Isolate {
    state: *mut lua_State,
    memory: Rc<Memory>,
    functions: Option<Functions>,
    notes: Box<Notes>,
    known: Vec<Known>,
    /// What `math.random` keeps its state in, and what that was.
    random: (*mut u8, Vec<u8>),
    /// Registry references: what makes an execution's globals, and `package.loaded`.
    make: c_int,
    loaded: c_int,
    /// Registry reference of the list of the libraries' tables.
    all: c_int,
    /// Registry references of scripts, by the hash of their bytecode.
    scripts: FxHashMap<u128, c_int>,
    is_armed: bool,
    /// Nothing can be compared here.
    is_single: bool,
}

impl std::fmt::Debug for Isolate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Isolate").field("scripts", &self.scripts.len()).finish_non_exhaustive()
    }
}

/// Buffers of executions.
#[derive(Debug, Default)]
pub struct Scratch {
    encode: encode::Scratch,
    decode: decode::Scratch,
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// Memory ran out before it began, or as it ended.
    #[default]
    NoMemory,
    /// LuaJIT does not take the bytecode; the message is its text.
    Refused,
    /// The context cannot be had there; the message is the text.
    Context,
    /// With results.
    Results,
    /// With an error value.
    Error,
    /// With a result, by its place, or an error value (0) that cannot cross.
    Unsendable(c_int),
}

/// What [`body`] is told and tells.
struct Run<'a> {
    isolate: *mut Isolate,
    bytecode: &'a [u8],
    hash: u128,
    context: &'a Message,
    outcome: &'a mut Message,
    scratch: &'a mut Scratch,
    limit: usize,
    ended: Ended,
    /// What kind of value cannot cross.
    kind: &'static CStr,
}

impl Isolate {
    /// What it keeps for the next execution.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// A new VM; `None` if there is no memory for one.
    pub fn new(limit: usize, arms: bool) -> Option<Box<Self>> {
        // SAFETY: no preconditions.
        let state = unsafe { ffi::luaL_newstate() };
        if state.is_null() {
            return None;
        }
        // SAFETY: a new state of this thread; `drop` removes it.
        let memory = unsafe { Memory::install(state, limit, interrupt::overdraw) };
        // SAFETY: nothing runs in it.
        let is_armed = arms && unsafe { interrupt::arm(state) };
        let mut isolate = Box::new(Self {
            state,
            memory,
            functions: None,
            notes: Box::default(),
            known: Vec::new(),
            random: (null_mut(), Vec::new()),
            make: 0,
            loaded: 0,
            all: 0,
            scripts: FxHashMap::default(),
            is_armed,
            is_single: true,
        });
        let address = (&raw mut *isolate).cast::<c_void>();
        // SAFETY: `open` gets the box, which stays where it is; all that may raise is inside.
        let opened = unsafe { ffi::lua_cpcall(state, open, address) } == 0;
        opened.then_some(isolate)
    }

    /// Whether nothing is left of the last execution, now that its random state is put back.
    fn restore(&mut self) -> bool {
        if self.is_single || self.notes.is_changed {
            return false;
        }
        let (place, before) = &self.random;
        if !place.is_null() {
            // SAFETY: a block of that size, which the library keeps.
            unsafe { std::ptr::copy_nonoverlapping(before.as_ptr(), *place, before.len()) };
        }
        // SAFETY: the tables are the libraries', or were when they were looked at; while they are as they were, they
        // keep each other.
        self.known.iter().all(|known| unsafe { known.shape.is_of(known.table) })
    }

    /// Runs bytecode with a context (one value, as a message); the results, or the error value, become `outcome`. Gives
    /// how it ended, the kind of a value that cannot cross, and whether the VM can be used again.
    pub fn run(
        &mut self,
        station: &Station,
        (bytecode, hash): (&[u8], u128),
        context: &Message,
        outcome: &mut Message,
        scratch: &mut Scratch,
        limit: usize,
    ) -> (Ended, &'static CStr, bool) {
        self.notes.traceback.clear();
        if self.memory.has_garbage() {
            // What the last execution has left is not to count against this one.
            // SAFETY: protected; nothing with a finalizer is left.
            unsafe { ffi::lua_cpcall(self.state, finish, null_mut()) };
            self.memory.settle();
        }
        let is_armed = station.is_armed.swap(self.is_armed, Ordering::AcqRel);
        station.is_isolated.store(true, Ordering::Release);
        let outer = station.set_state(self.state.cast());
        let state = self.state;
        let mut run = Run {
            isolate: self,
            bytecode,
            hash,
            context,
            outcome,
            scratch,
            limit,
            ended: Ended::NoMemory,
            kind: c"value",
        };
        // A job that is to be stopped already has its signal behind it.
        if station.stop().is_some() {
            // SAFETY: a VM of this thread.
            unsafe { interrupt::set_hook(state) };
        }
        // SAFETY: `body` gets what it is written for; all that may raise is inside.
        let raised = unsafe { ffi::lua_cpcall(state, body, (&raw mut run).cast()) } != 0;
        let (ended, kind) = (if raised { Ended::NoMemory } else { run.ended }, run.kind);
        let was_touched = station.is_touched.load(Ordering::Acquire);
        if was_touched || raised {
            self.notes.is_changed = true;
        }
        // SAFETY: the existing field of a table, so nothing is allocated.
        let is_pristine = unsafe { self.put_loaded_back() } && self.restore() && !self.memory.is_pressed();
        if !is_pristine {
            // What it has left with a finalizer is finished while that can be interrupted, also what is kept in the
            // libraries' tables.
            // SAFETY: protected.
            unsafe {
                ffi::lua_cpcall(state, clear, (&raw mut *self).cast());
                ffi::lua_cpcall(state, finish, null_mut());
            }
        }
        interrupt::drop_debt();
        station.set_state(outer);
        station.is_isolated.store(false, Ordering::Release);
        station.is_armed.store(is_armed, Ordering::Release);
        if self.scripts.len() >= MOST_SCRIPTS {
            return (ended, kind, false);
        }
        (ended, kind, is_pristine)
    }

    /// Where the error was raised, if it was one.
    pub fn traceback(&self) -> &[u8] {
        &self.notes.traceback
    }

    /// `package.loaded._G` is the pristine one again.
    ///
    /// # Safety
    /// The VM is of this thread.
    unsafe fn put_loaded_back(&self) -> bool {
        // SAFETY: the caller's promise; a table that has the field, unless the script has removed that.
        unsafe {
            let state = self.state;
            ffi::lua_settop(state, 0);
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, self.loaded);
            push_bytes(state, b"_G");
            ffi::lua_rawget_(state, 1);
            let is_there = ffi::lua_type(state, 2) != ffi::LUA_TNIL;
            ffi::lua_settop(state, 1);
            if is_there {
                push_bytes(state, b"_G");
                ffi::lua_pushvalue(state, ffi::LUA_GLOBALSINDEX);
                ffi::lua_rawset(state, 1);
            }
            ffi::lua_settop(state, 0);
            is_there
        }
    }
}

impl Drop for Isolate {
    fn drop(&mut self) {
        // SAFETY: the VM is this thread's, and nothing runs in it.
        unsafe {
            self.memory.remove(self.state);
            ffi::lua_close(self.state);
        }
    }
}

/// Empties all tables that a script can have put something into, but `package.loaded`.
unsafe extern "C-unwind" fn clear(state: *mut lua_State) -> c_int {
    // SAFETY: protected; the list of tables is in the registry.
    unsafe {
        let isolate = &*ffi::lua_touserdata(state, 1).cast::<Isolate>();
        ffi::lua_settop(state, 0);
        ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, isolate.all);
        for place in 1..=ffi::lua_objlen(state, 1) as c_int {
            ffi::lua_rawgeti_(state, 1, place);
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, isolate.loaded);
            let is_loaded = ffi::lua_rawequal(state, 2, 3) != 0;
            ffi::lua_settop(state, 2);
            if is_loaded {
                // LuaJIT needs the FFI's table for the finalizers of FFI objects.
                ffi::lua_settop(state, 1);
                continue;
            }
            ffi::lua_pushnil(state);
            while ffi::lua_next(state, 2) != 0 {
                ffi::lua_settop(state, 3);
                ffi::lua_pushvalue(state, 3);
                ffi::lua_pushnil(state);
                ffi::lua_rawset(state, 2);
            }
            ffi::lua_settop(state, 1);
        }
    }
    0
}

/// Collects all garbage, with its finalizers.
unsafe extern "C-unwind" fn finish(state: *mut lua_State) -> c_int {
    // SAFETY: protected.
    unsafe { ffi::lua_gc(state, ffi::LUA_GCCOLLECT, 0) };
    0
}

/// Opens the libraries of a new VM, runs the prelude, and takes down what is there.
unsafe extern "C-unwind" fn open(state: *mut lua_State) -> c_int {
    // SAFETY: called by `new` with the isolate; no Rust value with a destructor is live across what may raise, but the
    // isolate's own, which stay with it.
    unsafe {
        let isolate = &mut *ffi::lua_touserdata(state, 1).cast::<Isolate>();
        ffi::lua_settop(state, 0);
        ffi::luaL_openlibs(state);
        if ffi::luaL_loadbuffer(state, PRELUDE.as_ptr().cast(), PRELUDE.len(), c"=[msys.isolated]".as_ptr()) != 0 {
            ffi::lua_error(state);
        }
        let notes = (&raw mut *isolate.notes).cast::<c_void>();
        for maker in [
            make_guard,
            make_guard_of_arguments,
            make_guard_of_modes,
            make_guard_of_options,
            make_guard_of_environments,
        ] {
            ffi::lua_pushlightuserdata(state, notes);
            ffi::lua_pushcclosure(state, maker, 1);
        }
        ffi::lua_call(state, 5, 3);
        let random = ffi::lua_touserdata(state, 3).cast::<u8>();
        ffi::lua_pushvalue(state, 2);
        isolate.make = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
        ffi::lua_pushvalue(state, 1);
        isolate.all = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
        isolate.loaded = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
        isolate.functions = Some(Functions::new(state));
        ffi::lua_gc(state, ffi::LUA_GCCOLLECT, 0);
        if layout::verify(state) {
            let count = ffi::lua_objlen(state, 1);
            for place in 1..=count as c_int {
                ffi::lua_rawgeti_(state, 1, place);
                let table = ffi::lua_topointer(state, -1).cast::<layout::Table>();
                isolate.known.push(Known { table, shape: layout::Shape::of(table) });
                ffi::lua_settop(state, -2);
            }
            if !random.is_null() {
                let size = ffi::lua_objlen(state, 3) as usize;
                isolate.random = (random, std::slice::from_raw_parts(random, size).to_vec());
            }
            isolate.is_single = false;
        }
        isolate.notes.is_changed = false;
        0
    }
}

/// The body of an execution.
unsafe extern "C-unwind" fn body(state: *mut lua_State) -> c_int {
    // SAFETY: called by `run`; what has a destructor is the caller's, and seen through pointers.
    unsafe {
        let run = &mut *ffi::lua_touserdata(state, 1).cast::<Run<'_>>();
        let isolate = &mut *run.isolate;
        ffi::lua_settop(state, 0);
        ffi::luaL_checkstack_(state, 20, c"no room".as_ptr());
        // 1: its globals.
        ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, isolate.make);
        ffi::lua_call(state, 0, 1);
        // 2: package.loaded.
        ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, isolate.loaded);
        push_bytes(state, b"_G");
        ffi::lua_pushvalue(state, 1);
        ffi::lua_rawset(state, 2);
        // 3: a coroutine.
        let thread = ffi::lua_newthread(state);
        ffi::lua_pushvalue(state, 1);
        ffi::lua_setfenv(state, 3);
        // 4: the script.
        match isolate.scripts.get(&run.hash) {
            Some(reference) => ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, *reference),
            None => {
                let marked = bytecode::of_many(run.bytecode);
                let bytes = marked.as_deref().unwrap_or(run.bytecode);
                let name = c"=(isolated script)".as_ptr();
                // It catches what it raises.
                let loaded = ffi::luaL_loadbuffer(state, bytes.as_ptr().cast(), bytes.len(), name);
                drop(marked);
                if loaded != 0 {
                    run.ended = Ended::Refused;
                    isolate.notes.traceback.extend_from_slice(string_at(state, -1));
                    return 0;
                }
                ffi::lua_pushvalue(state, -1);
                let reference = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
                isolate.scripts.insert(run.hash, reference);
            }
        }
        ffi::lua_pushvalue(state, 1);
        ffi::lua_setfenv(state, 4);
        // 5: the context.
        let Some(functions) = &isolate.functions else { return 0 };
        ffi::lua_pushcclosure(state, decode::inner, 0);
        let decoded = decode::decode(state, 5, functions, NO_HANDLES, run.context, &mut run.scratch.decode, Role::Outcome(None));
        if decoded.is_err() {
            run.ended = Ended::Context;
            if ffi::lua_type(state, -1) == ffi::LUA_TSTRING {
                isolate.notes.traceback.extend_from_slice(string_at(state, -1));
            }
            return 0;
        }
        ffi::lua_setfield(state, 1, c"ctx".as_ptr());
        // Its stack: the encoder, the handler of errors, the script; and later what that gives.
        ffi::luaL_checkstack_(thread, 20, c"no room".as_ptr());
        ffi::lua_pushcclosure(thread, encode::inner, 0);
        ffi::lua_pushlightuserdata(thread, (&raw mut *isolate.notes).cast());
        ffi::lua_pushcclosure(thread, trace, 1);
        ffi::lua_pushvalue(state, 4);
        ffi::lua_xmove(state, thread, 1);
        let status = ffi::lua_pcall(thread, 0, ffi::LUA_MULTRET, 2);
        let count = ffi::lua_gettop(thread) - 2;
        let is_fine = status == 0;
        if status == ffi::LUA_ERRMEM {
            return 0;
        }
        ffi::luaL_checkstack_(thread, 20, c"no room".as_ptr());
        // To tell which of the results is refused, of the first.
        let mut results = [std::ptr::null(); 16];
        for (place, result) in (3..3 + count).zip(&mut results) {
            *result = ffi::lua_topointer(thread, place);
        }
        let request = Request { count, limit: run.limit, scanned: true, purpose: Purpose::Outcome(None) };
        let encoded = encode::encode(thread, 1, request, functions, NO_HANDLES, run.outcome, &mut run.scratch.encode);
        run.ended = match encoded {
            Ok(()) if is_fine => Ended::Results,
            Ok(()) => Ended::Error,
            Err(encode::Refusal::TooLarge) => {
                run.kind = c"too large";
                Ended::Unsendable(0)
            }
            Err(_) => {
                let kind = ffi::lua_type(thread, -1);
                run.kind = CStr::from_ptr(ffi::lua_typename(thread, kind));
                let refused = ffi::lua_topointer(thread, -1);
                let place = results.iter().position(|result| !refused.is_null() && *result == refused);
                let place = place.and_then(|place| c_int::try_from(place + 1).ok());
                Ended::Unsendable(place.filter(|_| is_fine).unwrap_or(0))
            }
        };
        0
    }
}

/// The handler of errors: keeps where they were raised.
unsafe extern "C-unwind" fn trace(state: *mut lua_State) -> c_int {
    // SAFETY: the first upvalue is the notes.
    unsafe {
        let notes = ffi::lua_touserdata(state, ffi::lua_upvalueindex(1)).cast::<Notes>();
        ffi::lua_settop(state, 1);
        let text = if ffi::lua_type(state, 1) == ffi::LUA_TSTRING { ffi::lua_tolstring(state, 1, null_mut()) } else { c"".as_ptr() };
        traceback(state, state, text, 1);
        if let (Some(notes), ffi::LUA_TSTRING) = (notes.as_mut(), ffi::lua_type(state, -1)) {
            notes.traceback.clear();
            notes.traceback.extend_from_slice(string_at(state, -1));
        }
        ffi::lua_settop(state, 1);
    }
    1
}

/// Makes a guard of a kind for the function that is given.
///
/// # Safety
/// In a maker.
unsafe fn make(state: *mut lua_State, guard: ffi::lua_CFunction) -> c_int {
    // SAFETY: one argument, and the notes as first upvalue.
    unsafe {
        ffi::lua_settop(state, 1);
        ffi::lua_pushvalue(state, ffi::lua_upvalueindex(1));
        ffi::lua_insert(state, 1);
        ffi::lua_pushcclosure(state, guard, 2);
    }
    1
}

unsafe extern "C-unwind" fn make_guard(state: *mut lua_State) -> c_int {
    // SAFETY: a maker.
    unsafe { make(state, guard) }
}

unsafe extern "C-unwind" fn make_guard_of_arguments(state: *mut lua_State) -> c_int {
    // SAFETY: a maker.
    unsafe { make(state, guard_of_arguments) }
}

unsafe extern "C-unwind" fn make_guard_of_modes(state: *mut lua_State) -> c_int {
    // SAFETY: a maker.
    unsafe { make(state, guard_of_modes) }
}

unsafe extern "C-unwind" fn make_guard_of_environments(state: *mut lua_State) -> c_int {
    // SAFETY: a maker.
    unsafe { make(state, guard_of_environments) }
}

unsafe extern "C-unwind" fn make_guard_of_options(state: *mut lua_State) -> c_int {
    // SAFETY: a maker.
    unsafe { make(state, guard_of_options) }
}

/// Notes a change, and calls the function behind the guard.
///
/// # Safety
/// In a guard.
unsafe fn pass(state: *mut lua_State, is_change: bool) -> c_int {
    // SAFETY: the upvalues of a guard are the notes and the function.
    unsafe {
        if let (true, Some(notes)) = (is_change, ffi::lua_touserdata(state, ffi::lua_upvalueindex(1)).cast::<Notes>().as_mut()) {
            notes.is_changed = true;
        }
        ffi::lua_pushvalue(state, ffi::lua_upvalueindex(2));
        ffi::lua_insert(state, 1);
        ffi::lua_call(state, ffi::lua_gettop(state) - 1, ffi::LUA_MULTRET);
        ffi::lua_gettop(state)
    }
}

unsafe extern "C-unwind" fn guard(state: *mut lua_State) -> c_int {
    // SAFETY: a guard.
    unsafe { pass(state, true) }
}

unsafe extern "C-unwind" fn guard_of_arguments(state: *mut lua_State) -> c_int {
    // SAFETY: a guard.
    unsafe { pass(state, ffi::lua_gettop(state) > 0) }
}

/// `jit.on`, `off`, `flush`: changes, of the script's functions too, which the next execution may use. `true` stands for
/// the calling function, which the guard is not.
unsafe extern "C-unwind" fn guard_of_modes(state: *mut lua_State) -> c_int {
    // SAFETY: a guard.
    unsafe {
        let kind = ffi::lua_type(state, 1);
        if kind == ffi::LUA_TBOOLEAN && ffi::lua_toboolean(state, 1) != 0 {
            let mut at: ffi::lua_Debug = std::mem::zeroed();
            if ffi::lua_getstack(state, 1, &raw mut at) != 0 && ffi::lua_getinfo(state, c"f".as_ptr(), &raw mut at) != 0 {
                ffi::lua_replace(state, 1);
            }
        }
        pass(state, true)
    }
}

/// `setfenv`: a change where it is for a function, which may be a library's. A level is one more with the guard.
unsafe extern "C-unwind" fn guard_of_environments(state: *mut lua_State) -> c_int {
    // SAFETY: a guard.
    unsafe {
        let kind = ffi::lua_type(state, 1);
        let level = ffi::lua_tonumber(state, 1);
        if kind == ffi::LUA_TNUMBER && level >= 1.0 {
            ffi::lua_pushnumber(state, level + 1.0);
            ffi::lua_replace(state, 1);
        }
        pass(state, kind == ffi::LUA_TFUNCTION || kind == ffi::LUA_TNUMBER && level >= 1.0 && is_of_library(state, level as c_int))
    }
}

/// Whether the function at a level above the guard is one of the libraries' that are written in Lua, or may be.
///
/// # Safety
/// In a guard.
unsafe fn is_of_library(state: *mut lua_State, level: c_int) -> bool {
    // SAFETY: a record of ours.
    unsafe {
        let mut at: ffi::lua_Debug = std::mem::zeroed();
        if ffi::lua_getstack(state, level, &raw mut at) == 0
            || ffi::lua_getinfo(state, c"S".as_ptr(), &raw mut at) == 0
            || at.source.is_null()
        {
            return true;
        }
        // LuaJIT names them so; a script that was stripped has no name.
        let name = CStr::from_ptr(at.short_src.as_ptr()).to_bytes();
        name.starts_with(b"[builtin:") || CStr::from_ptr(at.source).to_bytes() == b"=?"
    }
}

/// `collectgarbage`: what only collects or counts is no change.
unsafe extern "C-unwind" fn guard_of_options(state: *mut lua_State) -> c_int {
    // SAFETY: a guard.
    unsafe {
        let is_harmless = match ffi::lua_type(state, 1) {
            ffi::LUA_TNONE | ffi::LUA_TNIL => true,
            ffi::LUA_TSTRING => matches!(string_at(state, 1), b"collect" | b"count" | b"step"),
            _ => false,
        };
        pass(state, !is_harmless)
    }
}

/// The hash by which a script is known.
pub fn hash_of(bytecode: &[u8]) -> u128 {
    twox_hash::XxHash3_128::oneshot(bytecode)
}

/// Encodes a value on top of the worker's stack for an isolated VM.
///
/// # Safety
/// `inner` is the index of `encode::inner` as a C function; see [`encode::encode`].
pub unsafe fn encode_context(
    state: *mut lua_State,
    inner: c_int,
    functions: &Functions,
    scratch: &mut Scratch,
    message: &mut Message,
    limit: usize,
) -> Result<(), encode::Refusal> {
    let purpose = Purpose::Job { keep: false, capture: false, lend: false };
    let request = Request { count: 1, limit, scanned: true, purpose };
    // SAFETY: the caller's promise.
    unsafe { encode::encode(state, inner, request, functions, NO_HANDLES, message, &mut scratch.encode) }
}
