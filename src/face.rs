//! The Lua face as workers have it: compiled into this library, not read from files.
//!
//! Called by `worker`. A VM loads a module when it is first required, from bytecode that the first VM of the process to
//! need it has compiled: compiling all of them takes a worker 5 ms, loading that 0.2.

use std::{
    ffi::{CStr, c_int},
    sync::OnceLock,
};

use crate::{
    functions::{DebugInfo, load_chunk},
    luajit::{ffi, lua_State, string_at},
};

const COUNT: usize = 22;

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
    "msys.loader": "../lua/msys/loader.lua",
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

/// Those that each worker has from its start: without lines and names of locals they take 2 KiB less. A traceback through
/// `coroutine.wrap` shows it.
const BARE: [&str; 2] = ["msys.base", "msys.boot"];

/// Their bytecode, as this process's LuaJIT has it.
static CODE: [OnceLock<Box<[u8]>>; COUNT] = [const { OnceLock::new() }; COUNT];

/// The names of the modules.
pub fn names() -> impl Iterator<Item = &'static str> {
    FACE.iter().map(|module| module.name)
}

/// Registry name of the environment of what is loaded from now on.
pub const ENVIRONMENT: &CStr = c"msys.environment";

/// `open(name, …)` → what the chunk of the module of this name gives, which has all arguments; nothing if none of ours
/// is called so
///
/// # Safety
/// In protected mode, in a C function with its arguments.
pub unsafe fn open(state: *mut lua_State) -> c_int {
    // SAFETY: the caller's promise. What has a destructor is gone before anything is raised.
    unsafe {
        let arguments = ffi::lua_gettop(state);
        if ffi::lua_type(state, 1) != ffi::LUA_TSTRING {
            return 0;
        }
        let name = string_at(state, 1);
        let mut modules = FACE.iter().zip(&CODE);
        let Some((module, code)) = modules.find(|(module, _)| module.name.as_bytes() == name) else { return 0 };
        let debug_info = if BARE.contains(&module.name) { DebugInfo::Stripped } else { DebugInfo::Kept };
        if !load_chunk(state, module.chunk, module.source, debug_info, code) {
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
