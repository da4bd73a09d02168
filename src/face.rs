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

/// The modules: name, source, and what a chunk of that source is called.
const FACE: [(&CStr, &str); COUNT] = [
    (c"=[msys]", include_str!("../lua/msys/init.lua")),
    (c"=[thread]", include_str!("../lua/thread.lua")),
    (c"=[msys.base]", include_str!("../lua/msys/base.lua")),
    (c"=[msys.boot]", include_str!("../lua/msys/boot.lua")),
    (c"=[msys.cancel]", include_str!("../lua/msys/cancel.lua")),
    (c"=[msys.cdata]", include_str!("../lua/msys/cdata.lua")),
    (c"=[msys.channel]", include_str!("../lua/msys/channel.lua")),
    (c"=[msys.core]", include_str!("../lua/msys/core.lua")),
    (c"=[msys.environment]", include_str!("../lua/msys/environment.lua")),
    (c"=[msys.future]", include_str!("../lua/msys/future.lua")),
    (c"=[msys.globals]", include_str!("../lua/msys/globals.lua")),
    (c"=[msys.handles]", include_str!("../lua/msys/handles.lua")),
    (c"=[msys.locks]", include_str!("../lua/msys/locks.lua")),
    (c"=[msys.names]", include_str!("../lua/msys/names.lua")),
    (c"=[msys.refusal]", include_str!("../lua/msys/refusal.lua")),
    (c"=[msys.scheduler]", include_str!("../lua/msys/scheduler.lua")),
    (c"=[msys.shared]", include_str!("../lua/msys/shared.lua")),
    (c"=[msys.submit]", include_str!("../lua/msys/submit.lua")),
    (c"=[msys.threadpool]", include_str!("../lua/msys/threadpool.lua")),
    (c"=[msys.worker]", include_str!("../lua/msys/worker.lua")),
    (c"=[msys.workers]", include_str!("../lua/msys/workers.lua")),
];

/// Their bytecode, as this process's LuaJIT has it.
static CODE: [OnceLock<Box<[u8]>>; COUNT] = [const { OnceLock::new() }; COUNT];

fn name_of(chunk: &CStr) -> &str {
    chunk.to_str().unwrap_or_default().trim_start_matches("=[").trim_end_matches(']')
}

/// The names of the modules.
pub fn names() -> impl Iterator<Item = &'static str> {
    FACE.iter().map(|(chunk, _)| name_of(chunk))
}

/// Registry name of the environment of what is loaded from now on.
pub const ENVIRONMENT: &CStr = c"msys.environment";

/// Fills the table on top with what loads each module, by name: a function that passes its arguments to the module's
/// chunk, and gives what that gives.
///
/// # Safety
/// In protected mode, with three free slots.
pub unsafe fn install(state: *mut lua_State) {
    for ((chunk, _), place) in FACE.iter().zip(0..) {
        // SAFETY: what is pushed is stored.
        unsafe {
            push_bytes(state, name_of(chunk).as_bytes());
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
        let Some(((chunk, source), code)) = FACE.get(place).zip(CODE.get(place)) else { return 0 };
        let bytes = code.get().map_or(source.as_bytes(), |code| code);
        if ffi::luaL_loadbuffer(state, bytes.as_ptr().cast(), bytes.len(), chunk.as_ptr()) != ffi::LUA_OK {
            ffi::lua_error(state);
        }
        if code.get().is_none() {
            let mut dump: Vec<u8> = Vec::new();
            // It catches what it raises.
            if ffi::lua_dump_(state, write_dump, (&raw mut dump).cast()) == ffi::LUA_OK {
                code.get_or_init(|| dump.into_boxed_slice());
            }
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
