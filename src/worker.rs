//! A worker: one thread, one VM, which runs the same scheduler as a host and asks its pool for jobs.
//!
//! `pool` starts threads in [`run`]. The Lua face inside is the one that was compiled into this library, not a file: a
//! worker finds it wherever the host got it from, and the two never differ in version.

use std::{
    ffi::{CStr, c_int},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use mlua::Lua;

use crate::{
    face,
    functions::Functions,
    host, interrupt,
    job::{Cause, Inbox, Stop},
    luajit::{LOAD_ALL, ffi, lua_State, push_bytes, string_at},
    mailbox::Mailbox,
    memory::Memory,
    pool::Worker,
    reaper, registry, trace,
    vm::Vm,
    waker::Waker,
};

/// The name of our module in Rust, and its name in the registry.
const NATIVE: &CStr = c"msys.native";

/// What a process's first host does before there is a worker.
pub fn prepare() {
    interrupt::prepare(face::names());
}

/// A worker's thread, which counts as awake till its end; others keep its inbox for longer.
struct Awake(Arc<Inbox>);

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.mailbox.waker().retire();
    }
}

/// What a worker's thread does, from its VM's start to its end.
pub fn run(worker: Box<Worker>) {
    let inbox = Inbox::new(Mailbox::new(Waker::for_this_thread()));
    let _awake = Awake(Arc::clone(&inbox));
    worker.register(Arc::clone(&inbox));
    let station = Arc::clone(worker.station());
    interrupt::enter(&station);
    worker.enter_lua();
    // SAFETY: no preconditions.
    let state = unsafe { ffi::luaL_newstate() };
    if state.is_null() {
        let text = "no memory for a worker's VM";
        worker.pool.fail_queued("memory", text, text);
        return;
    }
    let pool = Arc::clone(&worker.pool);
    let limit = pool.config.memory_limit;
    if limit != usize::MAX {
        trace::prepare();
    }
    // SAFETY: a new state of this thread; removed before it is closed.
    let memory = unsafe { Memory::install(state, limit, interrupt::overdraw) };
    if pool.config.interruptible {
        // SAFETY: a new state of this thread.
        station.is_armed.store(unsafe { interrupt::arm(state) }, Ordering::Release);
    }
    station.set_state(state.cast());
    // The VM goes after its Lua state: finalizers may still call it.
    let mut vm = None;
    let ended = serve(state, worker, inbox, &memory, &mut vm);
    if let Err((kind, error)) = ended {
        let text = format!("a worker of pool '{}' could not run: {error}", pool.config.name);
        let serves = vm.as_ref().is_some_and(|vm| {
            vm.fail_running(kind, &text);
            vm.worker.as_ref().is_some_and(Worker::is_serving)
        });
        // Another takes its place, unless that would fare no better.
        if !serves {
            pool.fail_queued(kind, &text, &text);
        }
    }
    station.leave();
    // SAFETY: the state is this thread's, and nothing runs in it.
    unsafe { interrupt::calm(state, &station) };
    station.forget_vm();
    station.set_state(std::ptr::null_mut());
    if let Some(vm) = &vm {
        vm.withdraw();
        drop(vm.isolate.take());
    }
    // SAFETY: the state is this thread's, and no call is under way in it. Nothing asks for the limit when LuaJIT's own
    // allocator is back.
    unsafe {
        memory.remove(state);
        ffi::lua_close(state);
    }
    drop(vm);
    interrupt::leave();
}

/// What is done with the VM of a thread that has ended in the middle of a job's compiled code: whoever waits for its
/// jobs learns that, and its locks are released. Its Lua state is lost.
fn settle_estate(vm: *mut std::ffi::c_void, text: &str) {
    // SAFETY: the thread that had it is no more, and it has left no borrow: it was in compiled code.
    let vm = unsafe { &*vm.cast::<Vm>() };
    let children = vm.children();
    vm.fail_running("killed", text);
    vm.inbox().mailbox.close();
    for child in children {
        reaper::stop(&child, Cause::Parent(Stop { kind: "killed", text: text.into() }));
    }
}

/// What [`boot`] needs.
struct Boot<'a> {
    vm: *mut Vm,
    paths: Option<&'a registry::Paths>,
    /// Jobs run before all modules are loaded.
    is_lazy: bool,
}

fn serve(
    state: *mut lua_State,
    worker: Box<Worker>,
    inbox: Arc<Inbox>,
    memory: &Rc<Memory>,
    place: &mut Option<Box<Vm>>,
) -> Result<(), (&'static str, String)> {
    let config = &worker.pool.config;
    let init = config.init.clone();
    let paths = registry::paths(config.paths);
    // An init is to run now, and what is loaded belongs to a limit of memory.
    let is_lazy = init.is_none() && config.memory_limit == usize::MAX && !registry::shares_globals();
    let Some(vm) = open(state, worker, inbox, memory, paths.as_deref()) else {
        return Err(("memory", "not enough memory".to_owned()));
    };
    let vm = place.insert(vm);
    *vm.packed.borrow_mut() = init;
    if let (Some(_), Some(worker)) = (&paths, &vm.worker) {
        vm.paths.set(worker.pool.config.paths);
    }
    let address = &raw mut **vm;
    if let Some(station) = vm.station() {
        station.set_vm(address.cast(), settle_estate);
    }
    if is_lazy && let Some(worker) = &vm.worker {
        worker.serves();
    }
    let mut boot = Boot { vm: address, paths: paths.as_deref(), is_lazy };
    // SAFETY: the VM is this thread's, and nothing runs in it; it outlives the call, as does what the pointer is to.
    unsafe {
        match ffi::lua_cpcall(state, self::boot, (&raw mut boot).cast()) {
            ffi::LUA_OK => Ok(()),
            status => {
                let kind = if status == ffi::LUA_ERRMEM { "memory" } else { "error" };
                let is_text = ffi::lua_type(state, -1) == ffi::LUA_TSTRING;
                let text = if is_text { String::from_utf8_lossy(string_at(state, -1)).into_owned() } else { String::new() };
                Err((kind, text))
            }
        }
    }
}

/// Opens LuaJIT's libraries in a new state, and makes our side of it; none where memory runs out.
///
/// Not a part of [`serve`], whose frame is there as long as the worker is; and a VM goes through several places on the
/// stack, of 4 KiB together, before it is in its box: not below the libraries' frames.
#[inline(never)]
#[allow(clippy::boxed_local, reason = "so that it is not on the stack twice")]
fn open(
    state: *mut lua_State,
    worker: Box<Worker>,
    inbox: Arc<Inbox>,
    memory: &Rc<Memory>,
    paths: Option<&registry::Paths>,
) -> Option<Box<Vm>> {
    let mut libraries = Libraries { has_paths: paths.is_some(), functions: None };
    // SAFETY: a new state of this thread. Almost all that is made till jobs run stays, so looking for garbage is in vain.
    unsafe {
        ffi::lua_gc(state, ffi::LUA_GCSTOP, 0);
        ffi::lua_cpcall(state, open_libraries, (&raw mut libraries).cast());
    }
    Some(make_vm(libraries.functions?, inbox, *worker, Rc::clone(memory)))
}

#[inline(never)]
fn make_vm(functions: Functions, inbox: Arc<Inbox>, worker: Worker, memory: Rc<Memory>) -> Box<Vm> {
    Box::new(Vm::new(functions, inbox, Some(worker), Some(memory)))
}

/// What [`open_libraries`] is told and gives.
struct Libraries {
    /// The worker is going to have the module paths of its pool's creator.
    has_paths: bool,
    functions: Option<Functions>,
}

/// Opens LuaJIT's libraries; its argument is a [`Libraries`].
unsafe extern "C-unwind" fn open_libraries(state: *mut lua_State) -> c_int {
    // SAFETY: a new state with free stack slots; the argument is `open`'s.
    unsafe {
        let libraries = &mut *ffi::lua_touserdata(state, 1).cast::<Libraries>();
        // Then `package` need not make paths of the environment's variables, for which it has buffers of 8 KiB on the
        // stack.
        ffi::lua_pushboolean(state, c_int::from(libraries.has_paths));
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, c"LUA_NOENV".as_ptr());
        ffi::luaL_openlibs(state);
        ffi::lua_pushnil(state);
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, c"LUA_NOENV".as_ptr());
        libraries.functions = Some(Functions::new(state));
    }
    0
}

/// A worker's Lua, from its start to its end; its argument is a [`Boot`].
unsafe extern "C-unwind" fn boot(state: *mut lua_State) -> c_int {
    // SAFETY: the argument is `serve`'s; what is pushed is stored or called.
    unsafe {
        let boot = &*ffi::lua_touserdata(state, 1).cast::<Boot<'_>>();
        ffi::lua_settop(state, 0);
        host::note_originals(state);
        ffi::lua_getfield_(state, ffi::LUA_GLOBALSINDEX, c"package".as_ptr());
        if let Some(paths) = boot.paths {
            push_bytes(state, &paths.path);
            ffi::lua_setfield(state, 1, c"path".as_ptr());
            push_bytes(state, &paths.cpath);
            ffi::lua_setfield(state, 1, c"cpath".as_ptr());
        }
        ffi::lua_pushlightuserdata(state, boot.vm.cast());
        ffi::lua_pushlightuserdata(state, state.cast());
        ffi::lua_pushcclosure(state, open_module, 2);
        ffi::lua_pushvalue(state, 2);
        push_bytes(state, b"msys.base");
        ffi::lua_call(state, 1, 1);
        ffi::lua_pushvalue(state, 2);
        push_bytes(state, b"msys.boot");
        ffi::lua_pushvalue(state, 3);
        ffi::lua_pushvalue(state, 2);
        ffi::lua_pushlightuserdata(state, boot.vm.cast());
        ffi::lua_pushcclosure(state, pristine, 1);
        ffi::lua_call(state, 4, 1);
        ffi::lua_getfield_(state, 4, c"load_all".as_ptr());
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, LOAD_ALL.as_ptr());
        ffi::lua_getfield_(state, 4, c"serve".as_ptr());
        ffi::lua_getfield_(state, 3, c"current".as_ptr());
        ffi::lua_newthread(state);
        host::push_turn(state, boot.vm, 6);
        ffi::lua_remove(state, 6);
        if !boot.is_lazy {
            ffi::lua_settop(state, 5);
        }
        let arguments = ffi::lua_gettop(state) - 5;
        // -1: the first time when there is as much more as at the end of any cycle.
        ffi::lua_gc(state, ffi::LUA_GCRESTART, -1);
        ffi::lua_call(state, arguments, 0);
        0
    }
}

/// `pristine()` → the environment of our modules, which are loaded from now on: Lua's own functions as they were when the
/// VM was new
unsafe extern "C-unwind" fn pristine(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours, whose upvalue is the VM; what is pushed is stored or given.
    unsafe {
        ffi::lua_settop(state, 0);
        host::push_pristine(state);
        if let Some(vm) = ffi::lua_touserdata(state, ffi::lua_upvalueindex(1)).cast::<Vm>().as_ref() {
            vm.functions.own_environment.set(ffi::lua_topointer(state, 1));
        }
        ffi::lua_pushvalue(state, 1);
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, face::ENVIRONMENT.as_ptr());
        1
    }
}

/// `open(name, …)`: see `face::open`; besides the modules in Lua, `msys.native`, of a worker
unsafe extern "C-unwind" fn open_module(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours with its arguments, whose upvalues are the VM and its main state. What has a
    // destructor is gone before anything is raised. The main state waits for the running coroutine, if that is another,
    // and has room.
    unsafe {
        if ffi::lua_type(state, 1) != ffi::LUA_TSTRING || string_at(state, 1) != NATIVE.to_bytes() {
            return face::open(state);
        }
        let vm = ffi::lua_touserdata(state, ffi::lua_upvalueindex(1)).cast::<Vm>();
        // Not the running coroutine: mlua remembers the state that it was made on, and that may be collected.
        let main = ffi::lua_touserdata(state, ffi::lua_upvalueindex(2)).cast::<lua_State>();
        let lua = Lua::get_or_init_from_ptr(main);
        let opened = host::open_worker(lua, vm)
            .and_then(|native| lua.set_named_registry_value(NATIVE.to_str().unwrap_or_default(), native))
            .map_err(|error| error.to_string());
        match opened {
            Ok(()) => {
                ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, NATIVE.as_ptr());
                return 1;
            }
            Err(text) => push_bytes(state, text.as_bytes()),
        }
        ffi::lua_error(state)
    }
}
