//! The functions behind `msys.workers`: an isolated execution, bytecode looked at before LuaJIT sees it, and a pool whose
//! workers are all started at once.

use std::ffi::{CStr, c_int};

use super::{ENCODE, jobs::decode_onto, vm};
use crate::{
    decode::{Raised, Role},
    isolate::{self, Ended, Isolate},
    luajit::{ffi, lua_State, push_bytes, string_at},
    wire::Message,
};

pub(super) const FUNCTIONS: &[(&CStr, ffi::lua_CFunction)] = &[(c"execute", execute), (c"start_workers", start_workers)];

/// `execute(bytecode, context, single)` → true, results… or false, error, traceback; or nil and a text, where it could
/// not be begun, or ended with what cannot cross. `single`: in a new VM, whatever the last execution has left
unsafe extern "C-unwind" fn execute(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours. The worker's VM runs nothing meanwhile; what may raise here comes when the isolated
    // VM is done, with two messages that an unwinding drops.
    unsafe {
        let vm = vm(state);
        ffi::lua_settop(state, 3);
        let (Some(station), Some(worker)) = (vm.station(), &vm.worker) else { return 0 };
        let config = &worker.pool.config;
        let single = ffi::lua_toboolean(state, 3) != 0;
        let bytecode = string_at(state, 1);
        ffi::lua_pushvalue(state, 2);
        let mut scratch = vm.isolate_scratch.take().unwrap_or_default();
        let (mut context, mut outcome) = (Message::default(), Message::default());
        let inner = ffi::lua_upvalueindex(ENCODE);
        ffi::lua_checkstack(state, 4);
        let encoded =
            isolate::encode_context(state, inner, &vm.functions, &mut scratch, &mut context, config.max_message);
        if encoded.is_err() {
            vm.isolate_scratch.replace(Some(scratch));
            return say(state, "msys.workers: the context has what cannot be sent to an isolated VM");
        }
        let kept = vm.isolate.take().filter(|_| !single);
        let Some(mut isolate) = kept.or_else(|| Isolate::new(config.memory_limit, config.interruptible)) else {
            vm.isolate_scratch.replace(Some(scratch));
            return say(state, "not enough memory");
        };
        let script = (bytecode, isolate::hash_of(bytecode));
        let (ended, kind, is_pristine) =
            isolate.run(station, script, &context, &mut outcome, &mut scratch, config.max_message);
        vm.isolate_scratch.replace(Some(scratch));
        let traceback = isolate.traceback().to_vec();
        if is_pristine && !single {
            vm.isolate.replace(Some(isolate));
        } else {
            drop(isolate);
        }
        drop(context);
        ffi::lua_settop(state, 0);
        match ended {
            Ended::Results | Ended::Error => {
                ffi::lua_pushboolean(state, c_int::from(ended == Ended::Results));
                match decode_onto(state, vm, &outcome, Role::Outcome(None)) {
                    Ok(count) if ended == Ended::Results => 1 + count,
                    Ok(_) => {
                        push_bytes(state, &traceback);
                        3
                    }
                    Err(Raised::Error | Raised::Hook) => ffi::lua_error(state),
                }
            }
            Ended::NoMemory => say(state, "not enough memory"),
            Ended::Refused | Ended::Context => {
                ffi::lua_pushnil(state);
                push_bytes(state, &traceback);
                2
            }
            Ended::Unsendable(place) => {
                let kind = kind.to_string_lossy();
                let what = if place > 0 { format!("result {place}") } else { "a result or error value".to_owned() };
                say(state, &format!("msys.workers: cannot send {what} ({kind})"))
            }
        }
    }
}

/// Gives nil and a text.
///
/// # Safety
/// In a C function of ours.
unsafe fn say(state: *mut lua_State, text: &str) -> c_int {
    // SAFETY: two pushes.
    unsafe {
        ffi::lua_pushnil(state);
        push_bytes(state, text.as_bytes());
    }
    2
}

/// `start_workers(pool)`: all that it may have
unsafe extern "C-unwind" fn start_workers(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        if let Some(pool) = vm(state).pool(ffi::lua_tonumber(state, 1) as u32) {
            pool.start_all();
        }
    }
    0
}
