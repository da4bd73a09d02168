//! The functions by which jobs are stopped: tokens, futures that are cancelled, and what a worker's scheduler does when
//! one of its jobs is.

use std::{
    ffi::{CStr, c_int},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    jobs::slot_at,
    objects::{counted_at, object_at, push_new},
    text, vm,
    waits::clock_begin,
};
use crate::{
    handles::{Future, Knock, Token, kind},
    interrupt,
    job::{Cause, Stop},
    luajit::{ffi, lua_State, push_bytes},
    registry,
    vm::{Awaited, Limits, Vm},
};

pub(super) const FUNCTIONS: &[(&CStr, ffi::lua_CFunction)] = &[
    (c"future_cancel", future_cancel),
    (c"canceller", canceller),
    (c"cancel", cancel),
    (c"cancelled", cancelled),
    (c"await_room", await_room),
    (c"enter", enter),
    (c"stopped", stopped),
    (c"is_stopped", is_stopped),
    (c"behind_stuck", behind_stuck),
    (c"in_progress", in_progress),
];

/// The limits of a job, from the table at `at`: `{ timeout, when the call was made, token }`, each may be missing.
///
/// # Safety
/// In a C function of ours, a valid index.
pub(super) unsafe fn limits_at(state: *mut lua_State, at: c_int) -> Option<Limits> {
    // SAFETY: what is pushed is taken off; the token is in the table as long as it is read.
    unsafe {
        if ffi::lua_type(state, at) != ffi::LUA_TTABLE {
            return None;
        }
        let top = ffi::lua_gettop(state);
        ffi::lua_checkstack(state, 6);
        for field in 1..=3 {
            ffi::lua_rawgeti_(state, at, field);
        }
        let timeout = (ffi::lua_type(state, top + 1) == ffi::LUA_TNUMBER).then(|| {
            let after = Duration::try_from_secs_f64(ffi::lua_tonumber(state, top + 1)).unwrap_or(Duration::MAX);
            let since = Duration::try_from_secs_f64(ffi::lua_tonumber(state, top + 2)).unwrap_or_default();
            // More than the clock can hold is "never"; ten years are enough for that.
            (clock_begin() + since, after.min(Duration::from_secs(315_360_000)))
        });
        let token = counted_at::<Token>(state, top + 3, kind::TOKEN);
        ffi::lua_settop(state, top);
        Some(Limits { timeout, token })
    }
}

/// `future_cancel(future, reason)` → whether its job had neither ended nor been stopped before
unsafe extern "C-unwind" fn future_cancel(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(future) = object_at::<Future>(state, 1, kind::FUTURE) else { return 0 };
        let reason = text(state, 2).unwrap_or_default();
        ffi::lua_pushboolean(state, c_int::from(future.stop(Cause::Cancelled(reason))));
    }
    1
}

/// `canceller()` → a handle
unsafe extern "C-unwind" fn canceller(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { push_new(state, Token::default()) };
    1
}

/// `cancel(token, reason)` → whether it had not been cancelled before
unsafe extern "C-unwind" fn cancel(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(token) = object_at::<Token>(state, 1, kind::TOKEN) else { return 0 };
        let reason = text(state, 2).unwrap_or_default();
        ffi::lua_pushboolean(state, c_int::from(token.cancel(&reason)));
    }
    1
}

/// `cancelled(token)` → whether it was cancelled, and why
unsafe extern "C-unwind" fn cancelled(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(token) = object_at::<Token>(state, 1, kind::TOKEN) else { return 0 };
        match token.reason() {
            Some(reason) => {
                ffi::lua_pushboolean(state, 1);
                push_bytes(state, reason.as_bytes());
                2
            }
            None => {
                ffi::lua_pushboolean(state, 0);
                1
            }
        }
    }
}

/// `await_room(pool, ticket, token or nil)`: the session is woken when there is room in the pool's queue, or the token is
/// cancelled
unsafe extern "C-unwind" fn await_room(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let ticket = ffi::lua_tonumber(state, 2) as u64;
        let token = counted_at::<Token>(state, 3, kind::TOKEN);
        if let Some(pool) = vm.pool(ffi::lua_tonumber(state, 1) as u32) {
            if let Some(token) = &token {
                token.wait(Knock::new(vm.inbox(), ticket));
            }
            vm.awaited.borrow_mut().insert(ticket, Awaited::Room(Arc::clone(&pool), token));
            pool.await_room(vm.inbox(), ticket);
        }
    }
    0
}

/// `enter(slot or -1)`: the code of the job in this slot runs from now on, or none of a job's
unsafe extern "C-unwind" fn enter(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let slot = ffi::lua_tonumber(state, 1);
        enter_job(state, vm(state), (slot >= 0.0).then_some(slot as usize));
    }
    0
}

/// The code of this job runs from now on; a hook is set if it is to be stopped.
///
/// # Safety
/// In a C function of ours.
pub(super) unsafe fn enter_job(state: *mut lua_State, vm: &Vm, slot: Option<usize>) {
    if let Some(station) = vm.station() {
        // SAFETY: the VM of this thread.
        unsafe { interrupt::leave_debt(state, station) };
    }
    if vm.enter(slot) {
        // SAFETY: the VM of this thread, a worker's.
        unsafe { interrupt::set_hook(state) };
    }
}

/// No job's code runs, and what was done to stop one is undone.
///
/// # Safety
/// In a C function of ours that Lua has called.
pub(super) unsafe fn calm(state: *mut lua_State, vm: &Vm) {
    if let (Some(station), Some(worker)) = (vm.station(), &vm.worker) {
        station.leave();
        // SAFETY: the caller's promise.
        unsafe { interrupt::calm(state, station) };
        if station.is_abandoned.load(Ordering::Acquire) {
            worker.returned();
        }
    }
}

/// `stopped(slot, completes)` → kind and text of the reason for which the job in this slot was to be stopped, if it was; its code
/// has ended
unsafe extern "C-unwind" fn stopped(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours, called by Lua code of ours.
    unsafe {
        let vm = vm(state);
        let slot = ffi::lua_tonumber(state, 1) as usize;
        let stop = vm.settle_job(slot, ffi::lua_toboolean(state, 2) != 0);
        calm(state, vm);
        // Its completion may follow.
        vm.enter(Some(slot));
        match stop {
            Some(stop) => push_stop(state, &stop),
            None => 0,
        }
    }
}

/// # Safety
/// Two free stack slots; may raise, which leaks the text.
pub(super) unsafe fn push_stop(state: *mut lua_State, stop: &Stop) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        push_bytes(state, stop.kind.as_bytes());
        push_bytes(state, stop.text.as_bytes());
    }
    2
}

/// `is_stopped(slot)` → whether the job in this slot is to be stopped, and why: kind and text
unsafe extern "C-unwind" fn is_stopped(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let stop = slot_at(state, 1).and_then(|slot| vm(state).stop_of(slot));
        ffi::lua_pushboolean(state, c_int::from(stop.is_some()));
        1 + stop.map_or(0, |stop| push_stop(state, &stop))
    }
}

/// `behind_stuck()` → how many jobs are in progress on workers that are stuck in C
unsafe extern "C-unwind" fn behind_stuck(state: *mut lua_State) -> c_int {
    let count: u64 = registry::all().iter().map(|pool| pool.behind_stuck()).sum();
    // SAFETY: a C function of ours.
    unsafe { ffi::lua_pushnumber(state, count as f64) };
    1
}

/// `in_progress()` → in words, how many jobs each pool has
unsafe extern "C-unwind" fn in_progress(state: *mut lua_State) -> c_int {
    let mut text = String::new();
    for stat in registry::all().iter().map(|pool| pool.stat()) {
        if stat.job_num_running > 0 || stat.job_num_queued > 0 {
            let between = if text.is_empty() { "" } else { "; " };
            let (running, queued) = (stat.job_num_running, stat.job_num_queued);
            text.push_str(&format!("{between}pool '{}': {running} in progress, {queued} queued", stat.name));
        }
    }
    // SAFETY: a C function of ours; should the push raise, the text leaks.
    unsafe { push_bytes(state, text.as_bytes()) };
    1
}
