//! The functions beside a job's way: timers, room in a queue, the foreign loop's descriptor, the exit, a worker's init.

use std::{
    ffi::{CStr, c_int},
    sync::{Arc, OnceLock},
    time::Instant,
};

use super::{
    jobs::{decode_onto, failed, missing_module, slot_at},
    text, vm,
};
use crate::{
    decode::{Raised, Role},
    luajit::{ffi, lua_State, push_bytes},
};

pub(super) const FUNCTIONS: &[(&CStr, ffi::lua_CFunction)] = &[
    (c"settle", settle),
    (c"pending", pending),
    (c"is_interrupted", is_interrupted),
    (c"timer", timer),
    (c"end_timer", end_timer),
    (c"clock", clock),
    (c"fd", fd),
    (c"acknowledge", acknowledge),
    (c"watch", watch),
    (c"has_init", has_init),
    (c"open_init", open_init),
    (c"init_done", init_done),
    (c"pool_name", pool_name),
    (c"has_ancestor_in", has_ancestor_in),
    (c"init_failed", init_failed),
];

/// `settle(ticket)`: the completion has ended
unsafe extern "C-unwind" fn settle(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { vm(state).settle(ffi::lua_tonumber(state, 1) as u64) };
    0
}

/// `pending()` → how many asynchronous jobs of this host are still to end; of a fork's child that was never asked, none
unsafe extern "C-unwind" fn pending(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let pending = if vm.is_lost() { 0 } else { vm.inbox().pending() };
        ffi::lua_pushnumber(state, pending as f64);
        1
    }
}

/// `is_interrupted()` → whether a signal ended the last wait
unsafe extern "C-unwind" fn is_interrupted(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { ffi::lua_pushboolean(state, c_int::from(vm(state).is_interrupted())) };
    1
}

/// `timer(seconds, ticket)`
unsafe extern "C-unwind" fn timer(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { vm(state).set_timer(ffi::lua_tonumber(state, 1), ffi::lua_tonumber(state, 2) as u64) };
    0
}

/// `end_timer(ticket)`: the timer of a ticket that is used once is of no use any more
unsafe extern "C-unwind" fn end_timer(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { vm(state).end_timer(ffi::lua_tonumber(state, 1) as u64) };
    0
}

/// `clock()` → seconds, of a clock that only goes forward
unsafe extern "C-unwind" fn clock(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { ffi::lua_pushnumber(state, clock_begin().elapsed().as_secs_f64()) };
    1
}

/// When the clock was 0.
pub(super) fn clock_begin() -> Instant {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    *BEGIN.get_or_init(Instant::now)
}

/// `fd()` → descriptor, or nil, text
unsafe extern "C-unwind" fn fd(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        match vm(state).inbox().mailbox.waker().watched_fd() {
            Ok(Some(descriptor)) => {
                ffi::lua_pushnumber(state, f64::from(descriptor));
                1
            }
            Ok(None) => failed(state, b"a worker has no event loop of its own", ""),
            Err(error) => failed(state, error.to_string().as_bytes(), ""),
        }
    }
}

/// `acknowledge()`, before a foreign loop's turn
unsafe extern "C-unwind" fn acknowledge(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { vm(state).acknowledge() };
    0
}

/// `watch(ready)`, after it
unsafe extern "C-unwind" fn watch(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { vm(state).watch(ffi::lua_toboolean(state, 1) != 0) };
    0
}

/// `has_init()`
unsafe extern "C-unwind" fn has_init(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let has = vm(state).packed.borrow().is_some();
        ffi::lua_pushboolean(state, c_int::from(has));
        1
    }
}

/// `open_init()` → the name of a module to load first, or the pool's init function; begins the time of the init
unsafe extern "C-unwind" fn open_init(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours; no Rust value is live when the error is raised.
    unsafe {
        let vm = vm(state);
        vm.set_initializing(true);
        let Some(message) = vm.packed.borrow().clone() else { return 0 };
        if let Some(module) = missing_module(state, vm, &message) {
            push_bytes(state, module.as_bytes());
            return 1;
        }
        let result = decode_onto(state, vm, &message, Role::Init);
        drop(message);
        match result {
            Ok(count) => count,
            Err(Raised::Error | Raised::Hook) => ffi::lua_error(state),
        }
    }
}

/// `init_done()`: the worker takes jobs from now on
unsafe extern "C-unwind" fn init_done(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        vm.set_initializing(false);
        if let Some(worker) = &vm.worker {
            worker.serves();
        }
    }
    0
}

/// `pool_name()` → the worker's pool's
unsafe extern "C-unwind" fn pool_name(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(worker) = &vm(state).worker else { return 0 };
        push_bytes(state, worker.pool.config.name.as_bytes());
        1
    }
}

/// `has_ancestor_in(slot or nil, pool)`
unsafe extern "C-unwind" fn has_ancestor_in(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let has = vm(state).has_ancestor_in(slot_at(state, 1), ffi::lua_tonumber(state, 2) as u32);
        ffi::lua_pushboolean(state, c_int::from(has));
        1
    }
}

/// `init_failed(text, traceback)` → whether jobs failed with it: this worker ends, and if none serves, queued jobs say
/// why
unsafe extern "C-unwind" fn init_failed(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let why = text(state, 1).unwrap_or_else(|| Arc::from("init failed"));
        let alone = vm.worker.as_ref().is_some_and(crate::pool::Worker::nobody_serves);
        if let (true, Some(worker)) = (alone, &vm.worker) {
            let traceback = text(state, 2).unwrap_or_else(|| Arc::clone(&why));
            worker.pool.fail_queued("error", &why, &traceback);
        }
        ffi::lua_pushboolean(state, c_int::from(alone));
        1
    }
}
