//! A worker: one thread, one VM, which runs the same scheduler as a host and asks its pool for jobs.
//!
//! `pool` starts threads in [`run`]. The Lua face inside is the one that was compiled into this library, not a file: a
//! worker finds it wherever the host got it from, and the two never differ in version.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use mlua::{Lua, Table};

use crate::{
    face, host, interrupt,
    job::{Cause, Inbox, Stop},
    luajit::{ffi, lua_State},
    mailbox::Mailbox,
    memory::Memory,
    pool::Worker,
    reaper, registry, trace,
    vm::Vm,
    waker::Waker,
};

/// What a process's first host does before there is a worker.
pub fn prepare() {
    interrupt::prepare(face::names());
}

/// What a worker's thread does, from its VM's start to its end.
pub fn run(worker: Worker) {
    let inbox = Inbox::new(Mailbox::new(Waker::for_this_thread()));
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
    if let Err(error) = ended {
        let kind = if matches!(error, mlua::Error::MemoryError(_)) { "memory" } else { "error" };
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
    vm.end_sessions();
    for child in children {
        reaper::stop(&child, Cause::Parent(Stop { kind: "killed", text: text.into() }));
    }
}

fn serve(
    state: *mut lua_State,
    worker: Worker,
    inbox: Arc<Inbox>,
    memory: &Rc<Memory>,
    place: &mut Option<Box<Vm>>,
) -> mlua::Result<()> {
    // SAFETY: a new state of this thread; opening the libraries is protected by `lua_cpcall`.
    let lua = unsafe {
        unsafe extern "C-unwind" fn open(state: *mut lua_State) -> std::ffi::c_int {
            // SAFETY: a new state with free stack slots.
            unsafe { ffi::luaL_openlibs(state) };
            0
        }
        ffi::lua_cpcall(state, open, std::ptr::null_mut());
        Lua::get_or_init_from_ptr(state)
    };
    let init = worker.pool.config.init.clone();
    let vm = place.insert(Box::new(Vm::new(host::functions_of(lua)?, inbox, Some(worker), Some(Rc::clone(memory)))));
    let address = &raw mut **vm;
    if let Some(station) = vm.station() {
        station.set_vm(address.cast(), settle_estate);
    }
    let native = host::open_worker(lua, address)?;
    let package: Table = lua.globals().get("package")?;
    package.get::<Table>("loaded")?.raw_set("msys.native", native)?;
    let paths = vm.worker.as_ref().map_or(u32::MAX, |worker| worker.pool.config.paths);
    if let Some(known) = registry::paths(paths) {
        package.raw_set("path", lua.create_string(&known.path)?)?;
        package.raw_set("cpath", lua.create_string(&known.cpath)?)?;
        vm.paths.set(paths);
    }
    // SAFETY: the VM is this thread's, and nothing runs in it.
    unsafe { face::install(lua, &package.get("preload")?)? };
    let require: mlua::Function = lua.globals().get("require")?;
    let serve: mlua::Function = require.call::<Table>("msys.worker")?.get("serve")?;
    *vm.packed.borrow_mut() = init;
    serve.call::<()>(())
}
