//! What LuaJIT offers beyond the API that `mlua::ffi` binds, and the few idioms that every file at the seam uses.
//!
//! Called by: `encode`, `decode`, `functions`, `vm`, `host`, `worker`. Knows nothing of jobs or pools.
//!
//! **Raising.** LuaJIT raises by unwinding, so a frame that can be unwound holds only `Copy` data. The pattern used
//! everywhere: an outer C function owns the Rust data and calls only what cannot raise; what can raise runs in an
//! inner C function under [`ffi::lua_pcall`], which sees that data through a pointer. The inner functions do not
//! panic either (a Rust panic must not pass LuaJIT's frames): they index with `get`.

use std::ffi::{CStr, c_int, c_void};

pub use mlua::ffi::{self, lua_State};

/// The most upvalues that a LuaJIT function can have (`LJ_MAX_UPVAL`).
pub const MAX_UPVALUES: usize = 60;

/// `LUAJIT_MODE_FUNC | LUAJIT_MODE_OFF`.
pub const MODE_FUNCTION_OFF: c_int = 2;

/// What `lua_type` says of FFI objects.
pub const LUA_TCDATA: c_int = 10;
/// Registry names of the Lua functions that take FFI objects apart and make them.
pub const CDATA_PACK: &CStr = c"msys.cdata.pack";
/// See [`CDATA_PACK`].
pub const CDATA_UNPACK: &CStr = c"msys.cdata.unpack";
/// See [`CDATA_PACK`].
pub const CDATA_FILL: &CStr = c"msys.cdata.fill";

/// Pushes what stands for nil in a table of objects: a light userdata that nobody else has.
///
/// # Safety
/// `state` is a live VM of this thread with a free stack slot.
pub unsafe fn push_nothing(state: *mut lua_State) {
    static NOTHING: u8 = 0;
    // SAFETY: one push.
    unsafe { ffi::lua_pushlightuserdata(state, (&raw const NOTHING).cast_mut().cast()) }
}

/// If what [`push_nothing`] pushes is on top, makes it a nil.
///
/// # Safety
/// `state` is a live VM of this thread with a value on top and a free stack slot.
pub unsafe fn nil_for_nothing(state: *mut lua_State) {
    // SAFETY: one push, taken off; then perhaps a nil for the value.
    unsafe {
        if ffi::lua_type(state, -1) == ffi::LUA_TLIGHTUSERDATA {
            push_nothing(state);
            let nothing = ffi::lua_rawequal(state, -1, -2) != 0;
            ffi::lua_settop(state, -2);
            if nothing {
                ffi::lua_settop(state, -2);
                ffi::lua_pushnil(state);
            }
        }
    }
}

#[allow(clippy::missing_safety_doc, reason = "LuaJIT's own functions; the preconditions are those of the C API")]
unsafe extern "C-unwind" {
    /// The identity of upvalue `n` of the function at `idx`: equal for closures that share the cell.
    pub fn lua_upvalueid(L: *mut lua_State, idx: c_int, n: c_int) -> *mut c_void;
    /// Turns the compiler on or off: for the function at `idx`, with [`MODE_FUNCTION_OFF`].
    pub fn luaJIT_setmode(L: *mut lua_State, idx: c_int, mode: c_int) -> c_int;
    /// Pushes a traceback of `L1`, from a level on, behind a text or null. LuaJIT's own, in its words.
    #[link_name = "luaL_traceback"]
    pub fn traceback(L: *mut lua_State, L1: *mut lua_State, text: *const std::ffi::c_char, level: c_int);
    /// Makes upvalue `n1` of the function at `idx1` refer to the cell of upvalue `n2` of the function at `idx2`.
    pub fn lua_upvaluejoin(L: *mut lua_State, idx1: c_int, n1: c_int, idx2: c_int, n2: c_int);
}

/// The bytes of the string at `idx`, valid while the string stays reachable.
///
/// # Safety
/// The value at `idx` is a string (not a number, which the call would convert in place).
#[inline]
pub unsafe fn string_at<'a>(state: *mut lua_State, idx: c_int) -> &'a [u8] {
    let mut len = 0usize;
    // SAFETY: the caller promises a string, for which this neither raises nor allocates.
    let data = unsafe { ffi::lua_tolstring(state, idx, &mut len) };
    if data.is_null() {
        return &[];
    }
    // SAFETY: LuaJIT gives `len` bytes at `data`, immutable while the string lives.
    unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) }
}

/// Pushes `bytes` as a Lua string. May raise (out of memory).
///
/// # Safety
/// `state` is a live VM of this thread with a free stack slot.
#[inline]
pub unsafe fn push_bytes(state: *mut lua_State, bytes: &[u8]) {
    // SAFETY: pointer and length describe `bytes`, which LuaJIT copies.
    unsafe { ffi::lua_pushlstring_(state, bytes.as_ptr().cast(), bytes.len()) }
}

/// Registry name of the function that loads what a worker's VM begins without (`lua/msys/boot.lua`).
pub const LOAD_ALL: &CStr = c"msys.load_all";

/// Loads all that a worker's VM has, where that is not there yet. May raise.
///
/// # Safety
/// `state` is a live VM of this thread with two free stack slots; nothing with a destructor is live in the caller.
pub unsafe fn load_all(state: *mut lua_State) {
    // SAFETY: a function is called, or what was pushed is taken off.
    unsafe {
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, LOAD_ALL.as_ptr());
        if ffi::lua_type(state, -1) == ffi::LUA_TFUNCTION {
            ffi::lua_call(state, 0, 0);
        } else {
            ffi::lua_settop(state, -2);
        }
    }
}

/// Pushes an entry of the registry that a module of ours sets. May raise.
///
/// # Safety
/// As [`load_all`], with three free slots.
pub unsafe fn push_registered(state: *mut lua_State, name: &CStr) {
    // SAFETY: the caller's promise.
    unsafe {
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, name.as_ptr());
        if ffi::lua_type(state, -1) == ffi::LUA_TNIL {
            ffi::lua_settop(state, -2);
            load_all(state);
            ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, name.as_ptr());
        }
    }
}
