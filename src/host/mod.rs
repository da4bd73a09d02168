//! `msys.native`: the functions that the Lua face sees. Private to it; `types/native.lua` gives their types.
//!
//! Called by `lib` (a host's `require`) and `worker`. What a job's way needs is written against LuaJIT's C API
//! (`jobs`, `waits`, `names`); what happens rarely is written with mlua and serde (`pools`). Every C function has four
//! upvalues: the VM's block, and the protected halves of `encode`, `decode` and `changes`, so that calling those
//! allocates nothing.
//!
//! Misuse is checked by the Lua face, which knows the caller's line; here it must merely do no harm.

mod direct;
mod isolated;
mod jobs;
mod locks;
mod names;
mod objects;
mod pools;
mod shared;
mod stops;
mod waits;

use std::{
    ffi::{CStr, c_int},
    sync::Arc,
};

use mlua::{Lua, Result, Table};

use crate::{
    changes, decode, encode,
    functions::Functions,
    job::Inbox,
    luajit::{ffi, lua_State, push_bytes, push_registered},
    mailbox::Mailbox,
    pool::Worker,
    registry,
    vm::Vm,
    waker::Waker,
};

const VM: c_int = 1;
const ENCODE: c_int = 2;
const DECODE: c_int = 3;
const CHANGES: c_int = 4;

use objects::HANDLES;

/// Registry name of the metatable of pool handles, and of the table that keeps one handle per pool.
const POOL: &CStr = c"msys.pool";
const POOLS: &CStr = c"msys.pools";

/// How many waits that cannot suspend may be inside each other, and how much C stack each is given: `string.gsub` with
/// its buffer is the largest of the C functions that LuaJIT brings.
const MAX_PUMPS: usize = 200;
const PUMP_STACK: usize = 24 << 10;

/// What a C function gets: the VM, unless it has been closed.
struct Block {
    vm: *mut Vm,
    /// A host's is owned by its Lua state, a worker's by its thread.
    owned: bool,
}

/// The module's table for a host; `run` is what its pools' workers do.
///
/// # Errors
/// LuaJIT's memory ran out.
pub fn open_host(lua: &Lua, run: fn(Box<Worker>)) -> Result<Table> {
    let inbox = Inbox::new(Mailbox::new(Waker::for_host()));
    // SAFETY: mlua runs this in protected mode with free stack slots; `Functions` is `Copy` data and empty maps.
    let functions = functions_of(lua)?;
    registry::host_opened(run);
    let vm = Box::into_raw(Box::new(Vm::new(functions, inbox, None, None)));
    open(lua, vm, true)
}

/// The module's table for a worker, which owns the VM.
///
/// # Errors
/// LuaJIT's memory ran out.
pub fn open_worker(lua: &Lua, vm: *mut Vm) -> Result<Table> {
    open(lua, vm, false)
}

/// What a new VM knows of functions.
///
/// # Errors
/// LuaJIT's memory ran out.
pub fn functions_of(lua: &Lua) -> Result<Functions> {
    let mut functions = None;
    // SAFETY: in protected mode, on the VM's thread, with free stack slots.
    unsafe { lua.exec_raw::<()>((), |state| functions = Some(Functions::new(state)))? };
    functions.ok_or_else(|| mlua::Error::runtime("msys: no memory for a VM"))
}

fn open(lua: &Lua, vm: *mut Vm, owned: bool) -> Result<Table> {
    // SAFETY: in protected mode, on the VM's thread; leaves one table.
    let table: Table = unsafe {
        lua.exec_raw((), |state| {
            ffi::lua_createtable(state, 0, 120);
            let block = push_upvalues(state, vm, owned);
            for (name, function) in jobs::FUNCTIONS
                .iter()
                .chain(direct::FUNCTIONS)
                .chain(waits::FUNCTIONS)
                .chain(names::FUNCTIONS)
                .chain(locks::FUNCTIONS)
                .chain(shared::FUNCTIONS)
                .chain(stops::FUNCTIONS)
                .chain(isolated::FUNCTIONS) {
                for _ in 0..4 {
                    ffi::lua_pushvalue(state, -4);
                }
                ffi::lua_pushcclosure(state, *function, 4);
                ffi::lua_setfield(state, -6, name.as_ptr());
            }
            ffi::lua_settop(state, -5);
            ffi::lua_pushlightuserdata(state, block.cast());
            ffi::lua_setfield(state, -2, c"block".as_ptr());
            handles(state);
            objects::open(state);
            shared::open(state);
        })?
    };
    pools::add(lua, &table, vm)?;
    table.raw_set("version", env!("CARGO_PKG_VERSION"))?;
    table.raw_set("is_worker", !owned)?;
    // SAFETY: the VM is alive: its module is just being made.
    let stack = unsafe { &*vm }.worker.as_ref().map_or(usize::MAX, |worker| worker.pool.config.stack_size);
    table.raw_set("max_pumps", MAX_PUMPS.min(stack / PUMP_STACK))?;
    Ok(table)
}

/// Pushes what all functions have as upvalues; gives the VM's block.
///
/// # Safety
/// In protected mode, on the VM's thread, with six free slots.
unsafe fn push_upvalues(state: *mut lua_State, vm: *mut Vm, owned: bool) -> *mut Block {
    // SAFETY: four values are left; the block is as large as it has to be.
    unsafe {
        let block = ffi::lua_newuserdata(state, size_of::<Block>()).cast::<Block>();
        block.write(Block { vm, owned });
        ffi::lua_createtable(state, 0, 1);
        ffi::lua_pushcclosure(state, close, 0);
        ffi::lua_setfield(state, -2, c"__gc".as_ptr());
        ffi::lua_setmetatable(state, -2);
        ffi::lua_pushcclosure(state, encode::inner, 0);
        ffi::lua_pushcclosure(state, decode::inner, 0);
        ffi::lua_pushcclosure(state, changes::inner, 0);
        block
    }
}

/// Pushes the function by which a worker runs jobs before it has loaded `msys.native`, and notes what it has of Lua's
/// own functions before a job can change that.
///
/// # Safety
/// In protected mode, on the VM's thread; `current` is the stack index of a function with one upvalue, the running
/// session.
pub unsafe fn push_turn(state: *mut lua_State, vm: *mut Vm, current: c_int) {
    // SAFETY: the caller's promise.
    unsafe {
        ffi::lua_pushvalue(state, current);
        direct::use_current_of(state, &*vm);
        push_upvalues(state, vm, false);
        ffi::lua_pushcclosure(state, direct::turn, 4);
    }
}

/// Notes Lua's own functions, for `msys.names` when that is loaded: a job may have put others in their places by then.
///
/// # Safety
/// In protected mode, in a new VM.
pub unsafe fn note_originals(state: *mut lua_State) {
    // SAFETY: the caller's promise.
    unsafe { names::note_originals(state) }
}

/// Pushes a table of globals with those functions, and what else there is behind it.
///
/// # Safety
/// In protected mode, with ten free slots.
pub unsafe fn push_pristine(state: *mut lua_State) {
    // SAFETY: the caller's promise.
    unsafe { names::push_pristine(state) }
}

/// The metatable of handles, as field `pool_metatable` of the table on top, and the weak table of handles.
///
/// # Safety
/// In protected mode, a table on top.
unsafe fn handles(state: *mut lua_State) {
    // SAFETY: every push is taken off by a `setfield`.
    unsafe {
        ffi::luaL_newmetatable_(state, POOL.as_ptr());
        ffi::lua_setfield(state, -2, c"pool_metatable".as_ptr());
        ffi::lua_createtable(state, 0, 4);
        ffi::lua_createtable(state, 0, 1);
        push_bytes(state, b"v");
        ffi::lua_setfield(state, -2, c"__mode".as_ptr());
        ffi::lua_setmetatable(state, -2);
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, POOLS.as_ptr());
    }
}

/// `__gc` of the block: a host's VM ends with its Lua state.
unsafe extern "C-unwind" fn close(state: *mut lua_State) -> c_int {
    // SAFETY: LuaJIT calls a finalizer with its userdata, which is a block; it is emptied first, so a second call and
    // later finalizers find no VM.
    let (vm, owned) = unsafe {
        let Some(block) = ffi::lua_touserdata(state, 1).cast::<Block>().as_mut() else { return 0 };
        (std::mem::replace(&mut block.vm, std::ptr::null_mut()), block.owned)
    };
    if owned && !vm.is_null() {
        // SAFETY: made by `Box::into_raw` in `open_host`, and nobody else has it now.
        drop(unsafe { Box::from_raw(vm) });
        registry::host_closed();
    }
    0
}

/// The VM of the running C function. Raises when it is closed: a finalizer that runs after ours may come here.
///
/// # Safety
/// In a C function made by [`open`]; nothing with a destructor is live in the caller.
unsafe fn vm<'a>(state: *mut lua_State) -> &'a Vm {
    // SAFETY: the first upvalue is a block; its VM lives until `close`, which does not run during a call.
    unsafe {
        let block = ffi::lua_touserdata(state, ffi::lua_upvalueindex(VM)).cast::<Block>();
        match block.as_ref().and_then(|block| block.vm.as_ref()) {
            Some(vm) => vm,
            None => {
                push_bytes(state, b"msys: this VM is closed");
                ffi::lua_error(state)
            }
        }
    }
}

/// The pool behind the handle at `at`.
///
/// # Safety
/// A valid index, two free stack slots.
unsafe fn pool_of(state: *mut lua_State, at: c_int) -> Option<u32> {
    // SAFETY: the metatable of handles is only on blocks of four bytes that `push_pool` made.
    unsafe {
        if ffi::lua_getmetatable(state, at) == 0 {
            return None;
        }
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, POOL.as_ptr());
        let same = ffi::lua_rawequal(state, -1, -2) != 0;
        ffi::lua_settop(state, -3);
        if !same {
            return None;
        }
        ffi::lua_touserdata(state, at).cast::<u32>().as_ref().copied()
    }
}

/// Pushes the one handle that this VM has of a pool.
///
/// # Safety
/// Three free stack slots; may raise.
unsafe fn push_pool(state: *mut lua_State, id: u32) {
    // SAFETY: four bytes for an id; the table holds handles weakly.
    unsafe {
        push_registered(state, POOLS);
        ffi::lua_rawgeti_(state, -1, id as c_int + 1);
        if ffi::lua_type(state, -1) == ffi::LUA_TNIL {
            ffi::lua_settop(state, -2);
            ffi::lua_newuserdata(state, size_of::<u32>()).cast::<u32>().write(id);
            ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, POOL.as_ptr());
            ffi::lua_setmetatable(state, -2);
            ffi::lua_pushvalue(state, -1);
            ffi::lua_rawseti_(state, -3, id as c_int + 1);
        }
        ffi::lua_remove(state, -2);
    }
}

/// A string argument as text, if it is a string of valid UTF-8.
///
/// # Safety
/// A valid index.
unsafe fn text(state: *mut lua_State, at: c_int) -> Option<Arc<str>> {
    // SAFETY: only a string is read.
    unsafe {
        if ffi::lua_type(state, at) != ffi::LUA_TSTRING {
            return None;
        }
        std::str::from_utf8(crate::luajit::string_at(state, at)).ok().map(Arc::from)
    }
}
