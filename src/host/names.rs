//! What Lua tells of names and modules: see `functions`.

use std::{
    ffi::{CStr, c_int},
    sync::OnceLock,
};

use super::{text, vm};
use crate::{
    functions::{Environments, Name, load_chunk, write_dump},
    luajit::{CDATA_FILL, CDATA_PACK, CDATA_UNPACK, ffi, lua_State, push_bytes, string_at},
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
    // SAFETY: arguments by index. What may raise comes while no Rust value is live but the buffer, which would leak.
    unsafe {
        let vm = vm(state);
        ffi::lua_settop(state, 6);
        if !usage::is_ready() {
            ffi::lua_call(state, 0, 1);
            let mut dump: Vec<u8> = Vec::new();
            let source = usage::OPCODES_SOURCE;
            let loaded = ffi::luaL_loadbuffer(state, source.as_ptr().cast(), source.len(), c"=msys".as_ptr())
                == ffi::LUA_OK
                && ffi::lua_dump_(state, write_dump, (&raw mut dump).cast()) == 0;
            if loaded && ffi::lua_type(state, 6) == ffi::LUA_TSTRING {
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

/// What each source for `fresh_names` has given, of which there are two, that of `msys.names` first: a new VM is made
/// once for it in the process.
static GIVEN: [OnceLock<(Vec<u8>, Vec<u8>)>; 2] = [const { OnceLock::new() }; 2];

/// Registry name of a list of Lua's own functions, in the order of the names that `msys.names` has asked for.
const ORIGINALS: &CStr = c"msys.originals";

/// The names of Lua's own functions: library, field and place in the list, from 1; none where nobody has asked yet.
fn fresh() -> impl Iterator<Item = (&'static [u8], &'static [u8], c_int)> {
    let names = GIVEN[0].get().map_or(&[][..], |(_, names)| names);
    names.split(|byte| *byte == b'\n').zip(1..).filter_map(|(name, place)| {
        let dot = name.iter().rposition(|byte| *byte == b'.')?;
        Some((&name[..dot], &name[dot + 1..], place))
    })
}

/// The source of a chunk that gives the list, of the modules that are loaded: three fifths of the work of asking for
/// each field from here.
fn originals_source() -> String {
    use std::fmt::Write as _;
    let (mut libraries, mut fields) = (String::from("local loaded = ...\n"), String::new());
    let (mut last, mut count) = (&b""[..], 0);
    for (library, field, _) in fresh() {
        if library != last {
            (last, count) = (library, count + 1);
            let _ = writeln!(libraries, "local _{count} = loaded[{:?}] or {{}}", String::from_utf8_lossy(library));
        }
        let _ = write!(fields, "_{count}[{:?}],", String::from_utf8_lossy(field));
    }
    format!("{libraries}return {{{fields}}}")
}

/// See `host::note_originals`.
///
/// # Safety
/// In protected mode, with six free slots.
pub(super) unsafe fn note_originals(state: *mut lua_State) {
    /// The chunk, as this process's LuaJIT has it.
    static CODE: OnceLock<Box<[u8]>> = OnceLock::new();
    if GIVEN[0].get().is_none() {
        return;
    }
    // SAFETY: what is pushed is called, or stored. What has a destructor is gone before that.
    unsafe {
        if !load_chunk(state, c"=msys", originals_source, &CODE) {
            ffi::lua_error(state);
        }
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
        ffi::lua_call(state, 1, 1);
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, ORIGINALS.as_ptr());
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
        let (all, originals, loaded) = (top + 1, top + 2, top + 3);
        ffi::lua_createtable(state, 0, 64);
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, ORIGINALS.as_ptr());
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
        ffi::lua_pushvalue(state, ffi::LUA_GLOBALSINDEX);
        set_behind(state, all);
        let mut last: &[u8] = b"";
        for (library, field, place) in fresh() {
            // What is set in `package` is for all; and that one's functions are not called.
            if library == b"package" || library.contains(&b'.') || ffi::lua_type(state, originals) != ffi::LUA_TTABLE {
                continue;
            }
            if library != last {
                last = library;
                ffi::lua_settop(state, loaded);
                if library == b"_G" {
                    ffi::lua_pushvalue(state, all);
                } else {
                    ffi::lua_createtable(state, 0, 16);
                    push_bytes(state, library);
                    ffi::lua_rawget_(state, loaded);
                    set_behind(state, loaded + 1);
                    push_bytes(state, library);
                    ffi::lua_pushvalue(state, loaded + 1);
                    ffi::lua_rawset(state, all);
                }
            }
            push_bytes(state, field);
            ffi::lua_rawgeti_(state, originals, place);
            ffi::lua_rawset(state, loaded + 1);
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

/// `originals()` → the functions that the names of `fresh_names` stood for when the VM was new, in their order; nil
/// where they are still there
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
