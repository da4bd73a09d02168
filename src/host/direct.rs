//! Completions and jobs run from here, without the scheduler's Lua: as long as they neither wait nor fail, and do nothing
//! that their session is to remember.
//!
//! `turn` takes events as `next` does. It runs what can be run so on the coroutine of a session that the scheduler has
//! made for that (`session.direct`), one after the other. Whatever ends otherwise is given to the scheduler, session and
//! all, which makes a new one for the next turn.

use std::ffi::{CStr, c_int};

use super::{
    jobs::{Opened, encode_outcome, end_hook, end_job, event, give, kind, open_job, refused, slot_at},
    stops::enter_job,
    vm,
};
use crate::{
    decode,
    encode::{self, Purpose, Request},
    job::{Job, Kind, Mode},
    luajit::{ffi, lua_State, push_bytes},
    vm::{Next, Vm},
    waker,
};

pub(super) const FUNCTIONS: &[(&CStr, ffi::lua_CFunction)] = &[
    (c"turn", turn),
    (c"touch", touch),
    (c"new_thread", new_thread),
    (c"renew", renew),
    (c"use_current", use_current),
    (c"new_ticket", new_ticket),
    (c"release_ticket", release_ticket),
    (c"tickets", tickets),
    (c"in_hand", in_hand),
    (c"completions", completions),
    (c"awake", awake),
];

/// The arguments of `turn`, and what it pushes first.
const SESSION: c_int = 3;
const THREAD: c_int = 4;
const WAITING: c_int = 5;
const MAIN_TLS: c_int = 6;
const XPCALL: c_int = 7;
const FAILURE: c_int = 8;
const JOBS: c_int = 9;
const WAIT: c_int = 10;
const TLS_NAME: c_int = 11;
const CO: c_int = 12;
const NUMBER: c_int = 13;
const SLOT: c_int = 14;
const TLS: c_int = 15;
const LAST: c_int = TLS;
/// Room for what is pushed beside values.
const ROOM: c_int = 20;

/// `turn(block, most, session, thread, waiting, main_tls, xpcall, failure, jobs, wait)` → as `next`; or a kind and:
/// - ran (how many events)
/// - opened (slot, closure, completion, args…): a job whose completion runs here
/// - yielded (ticket or nil, slot or nil, what the coroutine yielded…), ended (ticket or nil, slot or nil, ok, values…),
///   refused (nil, slot, a reason, a value, why, ok, values…) or broken (ticket or nil, slot or nil, false, error): the
///   rest of that is the scheduler's
/// - resumed (session, as `coroutine.resume` gives it…): a session that has not just come to its next wait
///
/// `waiting` has what waits, by ticket; `main_tls` is what the global `_TLS` is outside of sessions, or nil where there
/// is no such global. The coroutine runs `xpcall(function, failure, …)`, which sees where an error was raised; `jobs`
/// has the sessions of jobs, by slot; a session that waits yields `wait`.
pub(super) unsafe extern "C-unwind" fn turn(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        // A turn that has raised has left it so; the scheduler (`recover`, `take_on`) has made none the running one.
        vm.is_direct.set(false);
        vm.forget_end();
        let given = turns(state, vm);
        leave(state, vm);
        vm.end_search();
        given
    }
}

/// # Safety
/// As `next`.
unsafe fn turns(state: *mut lua_State, vm: &Vm) -> c_int {
    // SAFETY: as `next`.
    unsafe {
        let mut block = ffi::lua_toboolean(state, 1) != 0;
        let most = ffi::lua_tonumber(state, 2) as usize;
        let thread = ffi::lua_tothread(state, THREAD);
        vm.set_deep(false);
        vm.touched.set(false);
        let has_scheduler = vm.has_scheduler.get();
        ffi::luaL_checkstack_(state, LAST + ROOM, c"turn".as_ptr());
        ffi::lua_settop(state, WAIT);
        for name in [&b"_TLS"[..], b"co", b"number", b"slot", b"tls"] {
            push_bytes(state, name);
        }
        let mut ran = 0;
        while ran < most {
            ffi::lua_settop(state, LAST);
            let given = match vm.next(state, block) {
                Next::Nothing => break,
                Next::Job(slot) if is_plain(vm, slot) => job(state, vm, thread, slot),
                Next::Event(job) => {
                    let mode = (job.value.kind == Kind::Outcome).then_some(job.value.mode);
                    let ticket = job.value.ticket;
                    let (count, has_come) = match plain_event(state, vm, job) {
                        Ok(count) => (count, true),
                        Err(job) => {
                            // It may run code of modules.
                            leave(state, vm);
                            let count = event(state, vm, job, None);
                            (count, ffi::lua_tonumber(state, LAST + 1) == kind::OUTCOME)
                        }
                    };
                    match mode {
                        Some(Mode::Scheduled) if has_come => completion(state, vm, thread, ticket, count),
                        Some(Mode::Sync) if has_come => session(state, vm, ticket, count),
                        _ => Some(count),
                    }
                }
                next => Some(give(state, vm, next, None)),
            };
            if let Some(given) = given {
                return given;
            }
            ran += 1;
            if vm.touched.get() || vm.has_scheduler.get() != has_scheduler {
                // There may be a session that is ready; or the scheduler has been loaded, and takes over.
                break;
            }
            // A host may have what it waits for; a worker goes on till there is something for its scheduler.
            block &= vm.worker.is_some();
        }
        ffi::lua_pushnumber(state, kind::RAN);
        ffi::lua_pushnumber(state, ran as f64);
        2
    }
}

/// Whether the job in `slot` may be run from here: nothing is to be done before.
fn is_plain(vm: &Vm, slot: usize) -> bool {
    !vm.wants_other_paths(slot)
        && !vm.memory.as_ref().is_some_and(|memory| memory.is_short())
        && !vm.has_open_environment(slot)
}

/// Makes the value at `session` the running session, or none, if that is 0.
///
/// # Safety
/// In `turn`, two free slots.
unsafe fn set_current(state: *mut lua_State, vm: &Vm, session: c_int) {
    // SAFETY: the function has an upvalue. Which function that is may change while a session runs.
    unsafe {
        ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, vm.current.get());
        if session != 0 {
            ffi::lua_pushvalue(state, session);
        } else {
            ffi::lua_pushnil(state);
        }
        ffi::lua_setupvalue(state, -2, 1);
        ffi::lua_settop(state, -2);
    }
}

/// `use_current(function)`: its one upvalue is the running session
unsafe extern "C-unwind" fn use_current(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        ffi::lua_settop(state, 1);
        let vm = vm(state);
        vm.has_scheduler.set(true);
        use_current_of(state, vm);
    }
    0
}

/// Takes a function off, which has the running session as its upvalue.
///
/// # Safety
/// In protected mode, a function on top, a free slot.
pub(super) unsafe fn use_current_of(state: *mut lua_State, vm: &Vm) {
    // SAFETY: the reference is one of ours, or none.
    unsafe {
        let known = vm.current.get();
        if known == 0 {
            vm.current.set(ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX));
        } else {
            ffi::lua_rawseti_(state, ffi::LUA_REGISTRYINDEX, known);
        }
    }
}

/// Sets the global `_TLS`, where there is one, to the value on top, which is taken off.
///
/// # Safety
/// In `turn`, a value on top, two free slots.
unsafe fn set_tls(state: *mut lua_State) {
    // SAFETY: the globals are a table.
    unsafe {
        ffi::lua_pushvalue(state, TLS_NAME);
        ffi::lua_insert(state, -2);
        ffi::lua_rawset(state, ffi::LUA_GLOBALSINDEX);
    }
}

/// Makes the session the one that runs, for the job in `slot` or for a completion.
///
/// # Safety
/// In `turn`, four free slots.
unsafe fn begin(state: *mut lua_State, vm: &Vm, slot: Option<usize>) {
    // SAFETY: what is pushed is stored.
    unsafe {
        vm.in_hand.set(slot);
        if vm.direct_slot.replace(slot) != slot {
            match slot {
                Some(slot) => {
                    ffi::lua_pushvalue(state, SESSION);
                    ffi::lua_rawseti_(state, JOBS, slot as c_int);
                    ffi::lua_pushnumber(state, slot as f64);
                }
                None => ffi::lua_pushnil(state),
            }
            ffi::lua_setfield(state, SESSION, c"slot".as_ptr());
        }
        vm.touched.set(false);
        if has_tls(state) {
            ffi::lua_createtable(state, 0, 0);
            ffi::lua_pushvalue(state, TLS);
            ffi::lua_pushvalue(state, -2);
            ffi::lua_rawset(state, SESSION);
            set_tls(state);
        }
        if !vm.is_direct.replace(true) {
            set_current(state, vm, SESSION);
        }
    }
}

/// No session runs. What runs next may be the same again, so this is left till other Lua can run.
///
/// # Safety
/// In `turn`, three free slots.
unsafe fn leave(state: *mut lua_State, vm: &Vm) {
    if !vm.is_direct.replace(false) {
        return;
    }
    // SAFETY: what is pushed is stored.
    unsafe {
        set_current(state, vm, 0);
        if has_tls(state) {
            ffi::lua_pushvalue(state, MAIN_TLS);
            set_tls(state);
        }
    }
}

/// Whether there is a global `_TLS`.
///
/// # Safety
/// In `turn`.
unsafe fn has_tls(state: *mut lua_State) -> bool {
    // SAFETY: a valid index.
    unsafe { ffi::lua_type(state, MAIN_TLS) == ffi::LUA_TTABLE }
}

/// Gives the session's coroutine the environment that it is to have: in a worker the globals, in a host that of the code
/// which runs the loop.
///
/// # Safety
/// In `turn`, three free slots on both.
unsafe fn set_environment(state: *mut lua_State, vm: &Vm, thread: *mut lua_State) {
    // SAFETY: a table is moved from one stack to the other.
    unsafe {
        if vm.worker.is_some() {
            vm.functions.reset_environment(thread);
            return;
        }
        let wanted = ffi::lua_topointer(state, ffi::LUA_GLOBALSINDEX);
        if ffi::lua_topointer(thread, ffi::LUA_GLOBALSINDEX) != wanted {
            ffi::lua_pushthread(thread);
            ffi::lua_pushvalue(state, ffi::LUA_GLOBALSINDEX);
            ffi::lua_xmove(state, thread, 1);
            ffi::lua_setfenv(thread, -2);
            ffi::lua_settop(thread, -2);
        }
    }
}

/// Makes the coroutine ready for a session of so many values.
///
/// # Safety
/// In `turn`, three free slots; the thread is one that has ended, or not begun, and its stack is empty.
unsafe fn ready(state: *mut lua_State, vm: &Vm, thread: *mut lua_State, count: c_int) {
    // SAFETY: the caller's promise.
    unsafe {
        if ffi::lua_checkstack(thread, count + 8) == 0 {
            push_bytes(state, b"not enough memory");
            ffi::lua_error(state);
        }
        set_environment(state, vm, thread);
    }
}

/// Moves a value from the stack to that of the coroutine.
///
/// # Safety
/// In `turn`, after [`ready`], with a free slot.
unsafe fn hand(state: *mut lua_State, thread: *mut lua_State, at: c_int) {
    // SAFETY: the caller's promise.
    unsafe {
        ffi::lua_pushvalue(state, at);
        ffi::lua_xmove(state, thread, 1);
    }
}

/// Gives what has become of a session to the scheduler; `status` is its coroutine's.
///
/// # Safety
/// In `turn`, after the coroutine has run.
unsafe fn hand_over(
    state: *mut lua_State,
    thread: *mut lua_State,
    status: c_int,
    ticket: Option<u64>,
    slot: Option<usize>,
) -> c_int {
    // SAFETY: what is on the thread is moved, with room made for it.
    unsafe {
        ffi::lua_settop(state, LAST);
        let count = match status {
            // What else a script yields is for nobody.
            ffi::LUA_YIELD => {
                if ffi::lua_gettop(thread) > 2 {
                    ffi::lua_settop(thread, 2);
                }
                ffi::lua_gettop(thread)
            }
            ffi::LUA_OK => ffi::lua_gettop(thread),
            _ => 1,
        };
        let fits = ffi::lua_checkstack(state, count + ROOM) != 0;
        ffi::lua_pushnumber(state, match status {
            ffi::LUA_YIELD => kind::YIELDED,
            ffi::LUA_OK if fits => kind::ENDED,
            _ => kind::BROKEN,
        });
        push_place(state, ticket, slot);
        if !fits {
            ffi::lua_pushboolean(state, 0);
            push_bytes(state, b"stack overflow (too many results)");
        } else {
            if !matches!(status, ffi::LUA_OK | ffi::LUA_YIELD) {
                ffi::lua_pushboolean(state, 0);
            }
            ffi::lua_xmove(thread, state, count);
        }
        ffi::lua_gettop(state) - LAST
    }
}

/// Pushes ticket and slot, or nil for each.
///
/// # Safety
/// Two free slots.
unsafe fn push_place(state: *mut lua_State, ticket: Option<u64>, slot: Option<usize>) {
    for number in [ticket.map(|ticket| ticket as f64), slot.map(|slot| slot as f64)] {
        // SAFETY: the caller's promise.
        unsafe {
            match number {
                Some(number) => ffi::lua_pushnumber(state, number),
                None => ffi::lua_pushnil(state),
            }
        }
    }
}

/// Pushes an outcome as [`event`] does, if it is of few values that are no objects; else gives it back.
///
/// # Safety
/// In `turn`.
unsafe fn plain_event(state: *mut lua_State, vm: &Vm, job: Job) -> Result<c_int, Job> {
    let parcel = &job.value;
    if parcel.kind != Kind::Outcome || parcel.kept || !parcel.message.beside().modules.is_empty() {
        return Err(job);
    }
    // SAFETY: in `turn` there is room for so many, none of which raises.
    unsafe {
        ffi::lua_pushnumber(state, kind::OUTCOME);
        ffi::lua_pushnumber(state, parcel.ticket as f64);
        match decode::plain(state, &parcel.message) {
            Some(count) => {
                vm.return_parcel(job);
                Ok(2 + count)
            }
            None => {
                ffi::lua_settop(state, LAST);
                Err(job)
            }
        }
    }
}

/// Runs the completion that waits for an outcome, if it is one that waits: the `count` values on top are what [`event`]
/// has given. Gives what `turn` is to give, if anything.
///
/// # Safety
/// In `turn`.
unsafe fn completion(state: *mut lua_State, vm: &Vm, thread: *mut lua_State, ticket: u64, count: c_int) -> Option<c_int> {
    // SAFETY: values are pushed and moved; tickets of completions are small.
    unsafe {
        ffi::luaL_checkstack_(state, 8, c"too many values received".as_ptr());
        ffi::lua_rawgeti_(state, WAITING, ticket as c_int);
        if ffi::lua_type(state, -1) != ffi::LUA_TFUNCTION {
            ffi::lua_settop(state, -2);
            return Some(count);
        }
        // The ticket is the completion's until it has ended.
        ffi::lua_pushboolean(state, 0);
        ffi::lua_rawseti_(state, WAITING, ticket as c_int);
        if vm.worker.is_some() {
            enter_job(state, vm, None);
        }
        begin(state, vm, None);
        ready(state, vm, thread, count);
        // `xpcall(function, failure, values…)`, of which it gives what it has given, or an error of that.
        hand(state, thread, XPCALL);
        ffi::lua_xmove(state, thread, 1);
        hand(state, thread, FAILURE);
        ffi::lua_xmove(state, thread, count - 2);
        let status = ffi::lua_resume_(thread, count);
        vm.in_hand.set(None);
        if status != ffi::LUA_OK || vm.touched.get() || ffi::lua_toboolean(thread, 1) == 0 {
            return Some(hand_over(state, thread, status, Some(ticket), None));
        }
        ffi::lua_settop(thread, 0);
        vm.end_completion(ticket);
        None
    }
}

/// Pushes a field of the session on top.
///
/// # Safety
/// In `turn`, a table on top; `name` is the place of a name.
unsafe fn field(state: *mut lua_State, at: c_int, name: c_int) {
    // SAFETY: the caller's promise.
    unsafe {
        ffi::lua_pushvalue(state, name);
        ffi::lua_rawget_(state, at);
    }
}

/// Resumes the session that waits for an outcome, if one does: the `count` values on top are what [`event`] has given.
/// Gives what `turn` is to give, if anything.
///
/// # Safety
/// In `turn`.
unsafe fn session(state: *mut lua_State, vm: &Vm, ticket: u64, count: c_int) -> Option<c_int> {
    // SAFETY: values are pushed and moved. What raises does so before the ticket is released.
    unsafe {
        leave(state, vm);
        ffi::luaL_checkstack_(state, ROOM, c"too many values received".as_ptr());
        let top = ffi::lua_gettop(state);
        let Ok(place) = c_int::try_from(ticket) else { return Some(count) };
        ffi::lua_rawgeti_(state, WAITING, place);
        let session = top + 1;
        if ffi::lua_type(state, session) == ffi::LUA_TTABLE {
            field(state, session, CO);
            field(state, session, NUMBER);
        }
        let thread = ffi::lua_tothread(state, session + 1);
        // What stands for a pump has no coroutine; the number is for code that has to do with locks.
        if thread.is_null()
            || ffi::lua_type(state, session + 2) != ffi::LUA_TNIL
            || ffi::lua_checkstack(thread, count) == 0
        {
            ffi::lua_settop(state, top);
            return Some(count);
        }
        let has_tls = has_tls(state);
        if has_tls {
            field(state, session, TLS);
            if ffi::lua_type(state, -1) != ffi::LUA_TTABLE {
                ffi::lua_settop(state, top);
                return Some(count);
            }
            set_tls(state);
        }
        if vm.worker.is_some() {
            field(state, session, SLOT);
            let slot = slot_at(state, -1);
            enter_job(state, vm, slot);
        }
        ffi::lua_settop(state, session);
        ffi::lua_pushboolean(state, 0);
        ffi::lua_rawseti_(state, WAITING, place);
        vm.release_ticket(ticket);
        set_current(state, vm, session);
        // In the place of the ticket: kind, session, values.
        ffi::lua_replace(state, LAST + 2);
        let values = count - 2;
        ffi::lua_xmove(state, thread, values);
        vm.touched.set(false);
        let status = ffi::lua_resume_(thread, values);
        set_current(state, vm, 0);
        if has_tls {
            ffi::lua_pushvalue(state, MAIN_TLS);
            set_tls(state);
        }
        // It may have a number now, that of the code which runs.
        if status == ffi::LUA_YIELD
            && !vm.touched.get()
            && ffi::lua_type(thread, 1) == ffi::LUA_TTABLE
            && ffi::lua_topointer(thread, 1) == ffi::lua_topointer(state, WAIT)
        {
            ffi::lua_settop(thread, 0);
            return None;
        }
        let ok = matches!(status, ffi::LUA_OK | ffi::LUA_YIELD);
        let given = if ok { ffi::lua_gettop(thread) } else { 1 };
        ffi::lua_pushnumber(state, kind::RESUMED);
        ffi::lua_replace(state, LAST + 1);
        ffi::lua_pushboolean(state, c_int::from(ok));
        if given > ROOM / 2 {
            ffi::luaL_checkstack_(state, given + ROOM, c"too many values".as_ptr());
        }
        ffi::lua_xmove(thread, state, given);
        given + 3
    }
    .into()
}

/// Runs the job in `slot`. Gives what `turn` is to give, if anything.
///
/// # Safety
/// In `turn`.
unsafe fn job(state: *mut lua_State, vm: &Vm, thread: *mut lua_State, slot: usize) -> Option<c_int> {
    // SAFETY: as `open` and `finish`.
    unsafe {
        begin(state, vm, Some(slot));
        let given = job_inside(state, vm, thread, slot);
        vm.in_hand.set(None);
        given
    }
}

/// # Safety
/// As [`job`], whose session is the running one.
unsafe fn job_inside(state: *mut lua_State, vm: &Vm, thread: *mut lua_State, slot: usize) -> Option<c_int> {
    // SAFETY: as `job`.
    unsafe {
        // `xpcall(function, failure, values…)`, the failure in the completion's place.
        const COMPLETION: c_int = LAST + 3;
        ffi::lua_pushvalue(state, XPCALL);
        let count = match open_job(state, vm, slot) {
            Opened::Values(count) => count,
            // Its session is to load the module.
            Opened::Module => {
                ffi::lua_settop(state, LAST);
                return Some(give(state, vm, Next::Job(slot), None));
            }
            Opened::Raised => {
                ffi::lua_xmove(state, thread, 1);
                return Some(hand_over(state, thread, ffi::LUA_ERRRUN, None, Some(slot)));
            }
        };
        ffi::luaL_checkstack_(state, ROOM, c"too many values received".as_ptr());
        if ffi::lua_type(state, COMPLETION) != ffi::LUA_TNIL {
            ffi::lua_pushnumber(state, kind::OPENED);
            ffi::lua_replace(state, LAST + 1);
            ffi::lua_pushnumber(state, slot as f64);
            ffi::lua_insert(state, LAST + 2);
            return Some(count + 2);
        }
        ready(state, vm, thread, count);
        ffi::lua_pushvalue(state, FAILURE);
        ffi::lua_replace(state, COMPLETION);
        ffi::lua_xmove(state, thread, count + 1);
        let status = ffi::lua_resume_(thread, count);
        if status != ffi::LUA_YIELD {
            // What follows is none of the job's code.
            end_hook(state);
        }
        if status != ffi::LUA_OK
            || vm.touched.get()
            || ffi::lua_toboolean(thread, 1) == 0
            || vm.stop_of(slot).is_some()
            || vm.memory.as_ref().is_some_and(|memory| memory.is_pressed())
        {
            return Some(hand_over(state, thread, status, None, Some(slot)));
        }
        if let Some(given) = finish(state, vm, thread, slot) {
            return Some(given);
        }
        ffi::lua_settop(thread, 0);
        // Lua that has packed the outcome may have taken locks.
        vm.touched.get().then(|| hand_over(state, thread, ffi::LUA_OK, None, None))
    }
}

/// Ends the job in `slot` with the values on its coroutine. Gives what `turn` is to give, where that is not as simple: the
/// values, and why they cannot be sent.
///
/// # Safety
/// In `turn`.
unsafe fn finish(state: *mut lua_State, vm: &Vm, thread: *mut lua_State, slot: usize) -> Option<c_int> {
    // SAFETY: the values are copied, so that they are there for another attempt.
    unsafe {
        let mode = vm.mode_of(slot)?;
        let count = ffi::lua_gettop(thread);
        let purpose = Purpose::Outcome(None);
        let request = Request { count, limit: vm.message_limit(), scanned: false, purpose };
        let mut scratch = vm.take_scratch();
        let write =
            |message: &mut _| encode::write_plain(thread, (1, count), &request, &vm.functions, message, &mut scratch.encode);
        let is_written = mode == Mode::Async || vm.write_outcome(slot, write);
        vm.return_scratch(scratch);
        if !is_written {
            if ffi::lua_checkstack(thread, count) == 0 || ffi::lua_checkstack(state, count + 4) == 0 {
                return Some(hand_over(state, thread, ffi::LUA_OK, None, Some(slot)));
            }
            ffi::lua_settop(state, LAST);
            for place in 1..=count {
                ffi::lua_pushvalue(thread, place);
            }
            ffi::lua_xmove(thread, state, count);
            let (mut message, origin) = vm.take_message(slot)?;
            let encoded = encode_outcome(state, vm, slot, &mut message, origin.as_deref(), 0, request);
            vm.put_message(slot, message, origin);
            if let Err(refusal) = encoded {
                refused(state, vm, refusal, vm.message_limit());
                let top = ffi::lua_gettop(state);
                ffi::luaL_checkstack_(state, count + ROOM, c"too many results".as_ptr());
                ffi::lua_pushnumber(state, kind::REFUSED);
                push_place(state, None, Some(slot));
                for place in top - 2..=top {
                    ffi::lua_pushvalue(state, place);
                }
                ffi::lua_xmove(thread, state, count);
                return Some(ffi::lua_gettop(state) - top);
            }
        }
        vm.foresee_end();
        end_job(state, vm, slot, true);
        None
    }
}

/// `touch()`: the session that runs is not to be used for another job or completion as it is
unsafe extern "C-unwind" fn touch(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { vm(state).touched.set(true) };
    0
}

/// `new_thread()` → a coroutine for `turn`
unsafe extern "C-unwind" fn new_thread(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours; one push.
    unsafe { ffi::lua_newthread(state) };
    1
}

/// `renew()`: the next turns are on another session, which has no slot
unsafe extern "C-unwind" fn renew(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { vm(state).direct_slot.set(None) };
    0
}

/// `new_ticket()` → a ticket that nobody uses
unsafe extern "C-unwind" fn new_ticket(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { ffi::lua_pushnumber(state, vm(state).new_ticket() as f64) };
    1
}

/// `release_ticket(ticket)`: nothing will come for it any more
unsafe extern "C-unwind" fn release_ticket(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        if let Some(ticket) = slot_at(state, 1) {
            vm(state).release_ticket(ticket as u64);
        }
    }
    0
}

/// `tickets()` → how many there are, used or not
unsafe extern "C-unwind" fn tickets(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { ffi::lua_pushnumber(state, vm(state).tickets() as f64) };
    1
}

/// `completions(more)` → how many completions are awaited or run, after so many more
unsafe extern "C-unwind" fn completions(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let count = vm.completions.get() + ffi::lua_tonumber(state, 1) as isize;
        vm.completions.set(count);
        ffi::lua_pushnumber(state, count as f64);
    }
    1
}

/// `awake()` → how many threads of workers and hosts are awake
unsafe extern "C-unwind" fn awake(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { ffi::lua_pushnumber(state, waker::awake() as f64) };
    1
}

/// `in_hand()` → the slot of the job that `turn` had in hand when it raised, if any
unsafe extern "C-unwind" fn in_hand(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(slot) = vm(state).in_hand.take() else { return 0 };
        ffi::lua_pushnumber(state, slot as f64);
    }
    1
}
