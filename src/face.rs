//! The Lua face as workers have it: compiled into this library, not read from files.
//!
//! Called by `worker`. A VM loads a module when it is first required, from bytecode that the first VM of the process to
//! need it has compiled: compiling all of them takes a worker 5 ms, loading that 0.2.

use std::{
    ffi::{CStr, c_int},
    sync::OnceLock,
};

use crate::{
    functions::write_dump,
    luajit::{ffi, lua_State, push_bytes},
};

const COUNT: usize = 21;

/// A module of the face.
struct Module {
    name: &'static str,
    /// What its chunk is called.
    chunk: &'static CStr,
    source: &'static str,
}

macro_rules! face {
    ($($name:literal: $path:literal,)*) => {
        [$(Module {
            name: $name,
            chunk: match CStr::from_bytes_with_nul(concat!("=[", $name, "]\0").as_bytes()) {
                Ok(chunk) => chunk,
                Err(_) => c"",
            },
            source: include_str!($path),
        },)*]
    };
}

const FACE: [Module; COUNT] = face! {
    "msys": "../lua/msys/init.lua",
    "thread": "../lua/thread.lua",
    "msys.base": "../lua/msys/base.lua",
    "msys.boot": "../lua/msys/boot.lua",
    "msys.cancel": "../lua/msys/cancel.lua",
    "msys.cdata": "../lua/msys/cdata.lua",
    "msys.channel": "../lua/msys/channel.lua",
    "msys.core": "../lua/msys/core.lua",
    "msys.environment": "../lua/msys/environment.lua",
    "msys.future": "../lua/msys/future.lua",
    "msys.globals": "../lua/msys/globals.lua",
    "msys.handles": "../lua/msys/handles.lua",
    "msys.locks": "../lua/msys/locks.lua",
    "msys.names": "../lua/msys/names.lua",
    "msys.refusal": "../lua/msys/refusal.lua",
    "msys.scheduler": "../lua/msys/scheduler.lua",
    "msys.shared": "../lua/msys/shared.lua",
    "msys.submit": "../lua/msys/submit.lua",
    "msys.threadpool": "../lua/msys/threadpool.lua",
    "msys.worker": "../lua/msys/worker.lua",
    "msys.workers": "../lua/msys/workers.lua",
};

/// Their bytecode, as this process's LuaJIT has it.
static CODE: [OnceLock<Box<[u8]>>; COUNT] = [const { OnceLock::new() }; COUNT];

/// The names of the modules.
pub fn names() -> impl Iterator<Item = &'static str> {
    FACE.iter().map(|module| module.name)
}

/// Registry name of the environment of what is loaded from now on.
pub const ENVIRONMENT: &CStr = c"msys.environment";

/// Fills the table on top with what loads each module, by name: a function that passes its arguments to the module's
/// chunk, and gives what that gives.
///
/// # Safety
/// In protected mode, with three free slots.
pub unsafe fn install(state: *mut lua_State) {
    for (module, place) in FACE.iter().zip(0..) {
        // SAFETY: what is pushed is stored.
        unsafe {
            push_bytes(state, module.name.as_bytes());
            ffi::lua_pushnumber(state, f64::from(place));
            ffi::lua_pushcclosure(state, open, 1);
            ffi::lua_rawset(state, -3);
        }
    }
}

/// `open(name, …)` → what the module's chunk gives
unsafe extern "C-unwind" fn open(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours, whose upvalue is a place in the list. What has a destructor is gone before anything
    // is raised.
    unsafe {
        let arguments = ffi::lua_gettop(state);
        let place = ffi::lua_tonumber(state, ffi::lua_upvalueindex(1)) as usize;
        let Some((module, code)) = FACE.get(place).zip(CODE.get(place)) else { return 0 };
        if !load(state, module.chunk, || module.source, code) {
            ffi::lua_error(state);
        }
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, ENVIRONMENT.as_ptr());
        if ffi::lua_type(state, -1) == ffi::LUA_TTABLE {
            ffi::lua_setfenv(state, -2);
        } else {
            ffi::lua_settop(state, -2);
        }
        ffi::lua_insert(state, 1);
        ffi::lua_call(state, arguments, 1);
        1
    }
}

/// Pushes a chunk: from its bytecode, which the first to come makes of the source. Whether that has gone well; else the
/// error is on top.
///
/// # Safety
/// Two free slots. Nothing is raised.
pub unsafe fn load<Source: AsRef<[u8]>>(
    state: *mut lua_State,
    chunk: &CStr,
    source: impl FnOnce() -> Source,
    code: &OnceLock<Box<[u8]>>,
) -> bool {
    let load = |bytes: &[u8]| {
        // SAFETY: the bytes are a slice's; what is wrong with them is caught.
        unsafe { ffi::luaL_loadbuffer(state, bytes.as_ptr().cast(), bytes.len(), chunk.as_ptr()) == ffi::LUA_OK }
    };
    if let Some(code) = code.get() {
        return load(code);
    }
    let loaded = load(source().as_ref());
    let mut dump: Vec<u8> = Vec::new();
    // SAFETY: a function is on top, and the buffer is ours. It catches what it raises.
    if loaded && unsafe { ffi::lua_dump_(state, write_dump, (&raw mut dump).cast()) } == ffi::LUA_OK {
        code.get_or_init(|| dump.into_boxed_slice());
    }
    loaded
}
