//! What Lua tells of names and modules: see `functions`.

use std::{
    ffi::{CStr, c_int},
    sync::OnceLock,
};

use super::{text, vm};
use crate::{
    functions::{DebugInfo, Environments, Name, compile, load_chunk},
    luajit::{
        CDATA_FILL, CDATA_PACK, CDATA_UNPACK, MODE_FUNCTION_OFF, ffi, lua_State, luaJIT_setmode, push_bytes, string_at,
    },
    registry::{self, Paths},
    usage,
};

pub(super) const FUNCTIONS: &[(&CStr, ffi::lua_CFunction)] = &[
    (c"learn", learn),
    (c"forget_names", forget_names),
    (c"scanned", scanned),
    (c"fresh_names", fresh_names),
    (c"originals", originals),
    (c"is_c", is_c),
    (c"module_tried", module_tried),
    (c"set_paths", set_paths),
    (c"paths_of", paths_of),
    (c"set_cdata", set_cdata),
    (c"set_environment", set_environment),
];

/// `learn(object, module, field, builtin)`
unsafe extern "C-unwind" fn learn(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours, arguments by index.
    unsafe {
        let vm = vm(state);
        let object = ffi::lua_topointer(state, 1);
        if let (false, Some(module), Some(field)) = (object.is_null(), text(state, 2), text(state, 3)) {
            vm.functions.learn(object, Name { module, field, builtin: ffi::lua_toboolean(state, 4) != 0 });
        }
        0
    }
}

/// `set_cdata(pack, unpack, fill)`: see `lua/msys/cdata.lua`
unsafe extern "C-unwind" fn set_cdata(state: *mut lua_State) -> c_int {
    // SAFETY: three arguments, which `setfield` takes off. It may raise; nothing of Rust's is live.
    unsafe {
        ffi::lua_settop(state, 3);
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, CDATA_FILL.as_ptr());
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, CDATA_UNPACK.as_ptr());
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, CDATA_PACK.as_ptr());
        0
    }
}

/// `set_environment(behind, new, leave_out, known, kind_of, builtin)`: see `lua/msys/environment.lua`; `builtin()`
/// gives the names of the globals that every VM has, and is called once in the process
unsafe extern "C-unwind" fn set_environment(state: *mut lua_State) -> c_int {
    // SAFETY: arguments by index. What may raise comes while no Rust value is live.
    unsafe {
        let vm = vm(state);
        ffi::lua_settop(state, 6);
        if !usage::is_ready() {
            ffi::lua_call(state, 0, 1);
            if let Some(dump) = compile(state, usage::OPCODES_SOURCE.as_ref())
                && ffi::lua_type(state, 6) == ffi::LUA_TSTRING
            {
                usage::learn(&dump, string_at(state, 6));
            }
        }
        ffi::lua_settop(state, 5);
        let kind_of = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
        let known = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
        let leave_out = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
        let new = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
        let address = ffi::lua_topointer(state, -1);
        let behind = (ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX), address);
        vm.functions.set_environments(Environments { behind, new, leave_out, known, kind_of });
        0
    }
}

/// `is_c(value)`: whether it is a C function
unsafe extern "C-unwind" fn is_c(state: *mut lua_State) -> c_int {
    // SAFETY: as above.
    unsafe { ffi::lua_pushboolean(state, ffi::lua_iscfunction(state, 1)) };
    1
}

/// `forget_names()`
unsafe extern "C-unwind" fn forget_names(state: *mut lua_State) -> c_int {
    // SAFETY: as above.
    unsafe { vm(state).functions.forget_names() };
    0
}

/// `scanned()`: all that is loaded has been learnt
unsafe extern "C-unwind" fn scanned(state: *mut lua_State) -> c_int {
    // SAFETY: as above.
    unsafe { vm(state).functions.scanned(state) };
    0
}

/// What each source for `fresh_names` has given, of which there are two: a new VM is made once for it in the process.
static GIVEN: [OnceLock<(Vec<u8>, Vec<u8>)>; 2] = [const { OnceLock::new() }; 2];

/// Registry name of a list of Lua's own functions: the name of each library, and behind it the functions, each with the
/// name of its field.
const ORIGINALS: &CStr = c"msys.originals";

/// The chunk that fills the list. One that names each function would be some microseconds faster, and leave 3 KiB of
/// garbage in each worker.
const LIST_ORIGINALS: &str = r#"
local loaded, list, next, type = ...
local count = 0
for library, fields in next, loaded do
  if type(fields) == "table" then
    count = count + 1
    list[count] = library
    for field, value in next, fields do
      if type(value) == "function" then
        list[count + 1], list[count + 2] = value, field
        count = count + 2
      end
    end
  end
end
"#;

/// How long the list is: 306 with the LuaJITs of 2022 to 2026. One that is longer grows.
const ORIGINALS_LEN: c_int = 310;

/// See `host::note_originals`.
///
/// # Safety
/// In protected mode, with six free slots.
pub(super) unsafe fn note_originals(state: *mut lua_State) {
    /// The chunk, as this process's LuaJIT has it.
    static CODE: OnceLock<Box<[u8]>> = OnceLock::new();
    // SAFETY: what is pushed is called, or stored. What has a destructor is gone before that.
    unsafe {
        if !load_chunk(state, c"=msys", LIST_ORIGINALS, DebugInfo::Stripped, &CODE) {
            ffi::lua_error(state);
        }
        // It runs once.
        luaJIT_setmode(state, -1, MODE_FUNCTION_OFF);
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
        ffi::lua_createtable(state, ORIGINALS_LEN, 0);
        ffi::lua_pushvalue(state, -1);
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, ORIGINALS.as_ptr());
        ffi::lua_getfield_(state, ffi::LUA_GLOBALSINDEX, c"next".as_ptr());
        ffi::lua_getfield_(state, ffi::LUA_GLOBALSINDEX, c"type".as_ptr());
        ffi::lua_call(state, 4, 0);
    }
}

/// See `host::push_pristine`.
///
/// # Safety
/// In protected mode, with ten free slots.
pub(super) unsafe fn push_pristine(state: *mut lua_State) {
    // SAFETY: tables are made, and asked for fields. One value is left.
    unsafe {
        let top = ffi::lua_gettop(state);
        let (all, originals, loaded, library) = (top + 1, top + 2, top + 3, top + 4);
        ffi::lua_createtable(state, 0, 64);
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, ORIGINALS.as_ptr());
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
        ffi::lua_pushvalue(state, ffi::LUA_GLOBALSINDEX);
        set_behind(state, all);
        ffi::lua_pushnil(state);
        let len = ffi::lua_objlen(state, originals) as c_int;
        let mut place = 1;
        while place <= len {
            ffi::lua_rawgeti_(state, originals, place);
            place += 1;
            if ffi::lua_type(state, -1) == ffi::LUA_TFUNCTION {
                ffi::lua_rawgeti_(state, originals, place);
                place += 1;
                if ffi::lua_type(state, library) == ffi::LUA_TTABLE {
                    ffi::lua_insert(state, -2);
                    ffi::lua_rawset(state, library);
                }
                ffi::lua_settop(state, library);
                continue;
            }
            match string_at(state, -1) {
                b"_G" => ffi::lua_pushvalue(state, all),
                // What is set in `package` is for all; and that one's functions are not called.
                name if name == b"package" || name.contains(&b'.') => ffi::lua_pushnil(state),
                _ => {
                    ffi::lua_createtable(state, 0, 16);
                    ffi::lua_pushvalue(state, -2);
                    ffi::lua_rawget_(state, loaded);
                    // Above the name.
                    set_behind(state, library + 2);
                    ffi::lua_pushvalue(state, -2);
                    ffi::lua_pushvalue(state, -2);
                    ffi::lua_rawset(state, all);
                }
            }
            ffi::lua_replace(state, library);
            ffi::lua_settop(state, library);
        }
        ffi::lua_settop(state, all);
    }
}

/// Has the table at `at` look into the one on top, which is taken off, for what it has not.
///
/// # Safety
/// In protected mode, with three free slots.
unsafe fn set_behind(state: *mut lua_State, at: c_int) {
    // SAFETY: the caller's promise.
    unsafe {
        ffi::lua_createtable(state, 0, 1);
        ffi::lua_insert(state, -2);
        ffi::lua_setfield(state, -2, c"__index".as_ptr());
        ffi::lua_setmetatable(state, at);
    }
}

/// `originals()` → Lua's own functions as they were when the VM was new: the name of each library, and behind it the
/// functions, each with its name; nil where they are still there
unsafe extern "C-unwind" fn originals(state: *mut lua_State) -> c_int {
    // SAFETY: one push.
    unsafe { ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, ORIGINALS.as_ptr()) };
    1
}

/// `fresh_names(source)` → what the chunk `source` gives in a new VM: a string
unsafe extern "C-unwind" fn fresh_names(state: *mut lua_State) -> c_int {
    // SAFETY: a string argument. What has a destructor is gone before anything is raised.
    unsafe {
        let source = string_at(state, 1);
        let known = || GIVEN.iter().filter_map(OnceLock::get).find(|(other, _)| other == source);
        if known().is_none() {
            let Some(given) = in_new_vm(source) else { return 0 };
            let mut entry = (source.to_vec(), given);
            for place in &GIVEN {
                match place.set(entry) {
                    Ok(()) => break,
                    Err(back) => entry = back,
                }
            }
        }
        let Some((_, given)) = known() else { return 0 };
        push_bytes(state, given);
        1
    }
}

/// The string that the chunk `source` gives in a new VM.
fn in_new_vm(source: &[u8]) -> Option<Vec<u8>> {
    // SAFETY: the new VM is this call's own; what it runs is protected, and its string is copied before it is closed.
    unsafe {
        let fresh = ffi::luaL_newstate();
        if fresh.is_null() {
            return None;
        }
        ffi::luaL_openlibs(fresh);
        let loaded = ffi::luaL_loadbuffer(fresh, source.as_ptr().cast(), source.len(), c"=msys".as_ptr());
        let ran = loaded == ffi::LUA_OK && ffi::lua_pcall(fresh, 0, 1, 0) == ffi::LUA_OK;
        let given = (ran && ffi::lua_type(fresh, -1) == ffi::LUA_TSTRING).then(|| string_at(fresh, -1).to_vec());
        ffi::lua_close(fresh);
        given
    }
}

/// `module_tried(name)`: do not ask for it again for the message at hand, whatever became of it.
unsafe extern "C-unwind" fn module_tried(state: *mut lua_State) -> c_int {
    // SAFETY: as above.
    unsafe {
        let vm = vm(state);
        if let Some(module) = text(state, 1) {
            vm.module_tried(module);
        }
        0
    }
}

/// `set_paths(path, cpath)`: what jobs of this VM expect `package.path` and `package.cpath` to be.
unsafe extern "C-unwind" fn set_paths(state: *mut lua_State) -> c_int {
    // SAFETY: as above; only strings are read.
    unsafe {
        let vm = vm(state);
        if ffi::lua_type(state, 1) == ffi::LUA_TSTRING && ffi::lua_type(state, 2) == ffi::LUA_TSTRING {
            let paths = Paths { path: string_at(state, 1).to_vec(), cpath: string_at(state, 2).to_vec() };
            vm.paths.set(registry::remember_paths(&paths));
        }
        0
    }
}

/// `paths_of(slot)` → path, cpath, or nothing if the VM has those of that job already.
unsafe extern "C-unwind" fn paths_of(state: *mut lua_State) -> c_int {
    // SAFETY: as above.
    unsafe {
        let vm = vm(state);
        let slot = ffi::lua_tonumber(state, 1) as usize;
        let Some(wanted) = vm.paths_of(slot).filter(|wanted| *wanted != vm.paths.get()) else { return 0 };
        vm.paths.set(wanted);
        let Some(paths) = registry::paths(wanted) else { return 0 };
        push_bytes(state, &paths.path);
        push_bytes(state, &paths.cpath);
        2
    }
}
