//! The functions on a job's way: submit, next, open, finish, and those beside it.

use std::{
    ffi::{CStr, c_int},
    sync::Arc,
};

use super::{
    CHANGES, DECODE, ENCODE, HANDLES,
    objects::push_object,
    stops::{calm, enter_job, limits_at, push_stop},
    text, vm,
};
use crate::{
    changes::{self, Wanted},
    decode::{self, Role},
    encode::{self, Back, Purpose, Refusal, Request},
    error::Error,
    handles::Future,
    functions::dump_of,
    job::{Job, Kind, Mode, Sink},
    layout::View,
    luajit::{ffi, lua_State, push_bytes},
    origin::Origin,
    pool::WhenFull,
    usage::Usage,
    vm::{Limits, Next, Order, Vm},
    wire::{Message, Object},
};

pub(super) const FUNCTIONS: &[(&CStr, ffi::lua_CFunction)] = &[
    (c"submit", submit),
    (c"send", send),
    (c"next", next),
    (c"open", open),
    (c"finish", finish),
    (c"fail", fail),
    (c"unhook", unhook),
    (c"sent_to", sent_to),
    (c"memory_settled", memory_settled),
    (c"report", report),
    (c"pack", pack),
    (c"measure", measure),
    (c"copy", copy),
    (c"globals_of", globals_of),
    (c"describe", describe),
];

/// Kinds of what `next` and `turn` give; `lua/msys/scheduler.lua` has the same.
pub(super) mod kind {
    pub(in crate::host) const NOTHING: f64 = 0.0;
    pub(in crate::host) const JOB: f64 = 1.0;
    pub(in crate::host) const OUTCOME: f64 = 2.0;
    pub(in crate::host) const REPORT: f64 = 3.0;
    pub(in crate::host) const REQUIRE: f64 = 4.0;
    pub(in crate::host) const END: f64 = 5.0;
    pub(in crate::host) const LOST: f64 = 6.0;
    pub(in crate::host) const FAILED: f64 = 7.0;
    pub(in crate::host) const STOP: f64 = 8.0;
    pub(in crate::host) const STOP_JOB: f64 = 9.0;
    pub(in crate::host) const RAN: f64 = 10.0;
    pub(in crate::host) const OPENED: f64 = 11.0;
    pub(in crate::host) const YIELDED: f64 = 12.0;
    pub(in crate::host) const ENDED: f64 = 13.0;
    pub(in crate::host) const BROKEN: f64 = 14.0;
    pub(in crate::host) const RESUMED: f64 = 15.0;
    pub(in crate::host) const REFUSED: f64 = 16.0;
}

/// Flags of `submit` and `finish`; `lua/msys/submit.lua` and `worker.lua` have the same.
const QUIET: u32 = 1;
const SCANNED: u32 = 2;
/// Of `submit`: globals stay here; what the job changes stays there.
const NO_CAPTURE: u32 = 4;
const NOT_IN_PLACE: u32 = 8;
/// Of `finish`: the outcome says nothing of the submitter's objects.
const NO_CHANGES: u32 = 16;
/// Of `finish`: the failure is one of ours.
const OURS: u32 = 64;
/// Of `finish`: it is known that the job was stopped.
const STOPPED: u32 = 128;
/// Of both: send nothing, give the message's size, whatever the limit is.
const MEASURE: u32 = 32;

/// `ECTP_COMPLETE_CALLBACK_SCHED`.
const COMPLETE_HERE: f64 = 6.0;

/// The largest message that can be written; what a pool takes is at most that.
const LARGEST: usize = u32::MAX as usize;

/// How much is written to find out how large a message is that a pool does not take.
fn measuring(limit: usize) -> usize {
    limit.saturating_mul(4).clamp(64 << 20, LARGEST)
}

/// Slots are array indices from 0; anything else is none.
///
/// # Safety
/// A valid index.
pub(super) unsafe fn slot_at(state: *mut lua_State, at: c_int) -> Option<usize> {
    // SAFETY: reads a number or nothing.
    unsafe { (ffi::lua_type(state, at) == ffi::LUA_TNUMBER).then(|| ffi::lua_tonumber(state, at) as usize) }
}

/// Encodes the topmost values into `message`; leaves what `encode` does.
///
/// # Safety
/// In a C function of ours with the values on top, and two free slots.
unsafe fn encode_top(
    state: *mut lua_State,
    vm: &Vm,
    message: &mut Message,
    request: Request<'_>,
) -> Result<(), Refusal> {
    let mut scratch = vm.take_scratch();
    // SAFETY: the second upvalue is the inner function.
    let result = unsafe {
        let inner = ffi::lua_upvalueindex(ENCODE);
        encode::encode(state, inner, request, &vm.functions, HANDLES, message, &mut scratch.encode)
    };
    vm.return_scratch(scratch);
    result
}

/// Pushes a message's values: their number, or the error on top.
///
/// # Safety
/// In a C function of ours, with [`decode::PLAIN_ROOM`] free slots.
pub(super) unsafe fn decode_onto(
    state: *mut lua_State,
    vm: &Vm,
    message: &Message,
    role: Role<'_>,
) -> Result<c_int, decode::Raised> {
    // SAFETY: the caller's promise.
    if let Some(result) = unsafe { decode::quick(state, &vm.functions, message, &role) } {
        return result;
    }
    let mut scratch = vm.take_scratch();
    // SAFETY: the third upvalue is the inner function.
    let result = unsafe {
        let inner = ffi::lua_upvalueindex(DECODE);
        decode::decode(state, inner, &vm.functions, HANDLES, message, &mut scratch.decode, role)
    };
    vm.return_scratch(scratch);
    if !message.beside().modules.is_empty() {
        vm.modules.borrow_mut().clear();
    }
    result
}

/// Gives `nil, reason, value, why` for a refusal whose value is on top; `why` is nil where the value's kind says it.
///
/// # Safety
/// In a C function of ours, after `encode_top` has refused.
pub(super) unsafe fn refused(state: *mut lua_State, vm: &Vm, refusal: Refusal, limit: usize) -> c_int {
    // SAFETY: one value is on top; four are given. Should a push raise, the scratch memory is dropped.
    unsafe {
        let reason: &[u8] = match refusal {
            Refusal::Scan => b"scan",
            Refusal::Value => b"refused",
            Refusal::Change => b"change",
            Refusal::TooLarge => {
                ffi::lua_settop(state, -2);
                ffi::lua_pushnumber(state, limit as f64);
                b"large"
            }
            Refusal::Raised | Refusal::Hold => b"text",
        };
        ffi::lua_pushnil(state);
        ffi::lua_insert(state, -2);
        push_bytes(state, reason);
        ffi::lua_insert(state, -2);
        let scratch = vm.take_scratch();
        match scratch.encode.why() {
            Some(why) => push_bytes(state, why.as_bytes()),
            None => ffi::lua_pushnil(state),
        }
        vm.return_scratch(scratch);
        4
    }
}

/// Encodes the value on top, and takes it off, into a message for any VM.
///
/// # Safety
/// In a C function of ours.
pub(super) unsafe fn encode_value(state: *mut lua_State, vm: &Vm, scanned: bool) -> Result<Message, Refusal> {
    let mut message = Message::default();
    let purpose = Purpose::Job { keep: false, capture: false, lend: false };
    let request = Request { count: 1, limit: LARGEST, scanned, purpose };
    // SAFETY: the caller's promise. What is left in the value's place is nil, or what was refused.
    unsafe {
        encode_top(state, vm, &mut message, request)?;
        ffi::lua_settop(state, -2);
    }
    Ok(message)
}

/// What a refusal of [`encode_value`] gives to Lua.
///
/// # Safety
/// In a C function of ours, right after.
pub(super) unsafe fn refused_value(state: *mut lua_State, vm: &Vm, refusal: Refusal) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { refused(state, vm, refusal, LARGEST) }
}

/// Gives `nil, reason, text`.
///
/// # Safety
/// In a C function of ours.
pub(super) unsafe fn failed(state: *mut lua_State, reason: &[u8], text: &str) -> c_int {
    // SAFETY: three pushes.
    unsafe {
        ffi::lua_pushnil(state);
        push_bytes(state, reason);
        push_bytes(state, text.as_bytes());
        3
    }
}

/// What a job is sent with, besides its values.
#[derive(Debug)]
struct Submission {
    mode: Mode,
    ticket: u64,
    slot: Option<usize>,
    session: Option<u64>,
    name: Option<Arc<str>>,
    flags: u32,
    limits: Option<Limits>,
    completes: bool,
}

/// What has become of it.
enum Sent {
    /// It is on its way, and this is its id; of mode `Kept`, the future is on top.
    Job(u64),
    /// Only its size was asked for.
    Size(usize),
    /// So many values say why not: nil, a reason, a value, and perhaps more.
    Refused(c_int),
}

/// Sends a job made of the values from stack index `first` on, which are taken off; what it leaves below what it gives
/// is not specified.
///
/// # Safety
/// In a C function of ours; `first` is a function.
unsafe fn send_job(state: *mut lua_State, vm: &Vm, pool: u32, first: c_int, submission: Submission) -> Sent {
    let Submission { mode, ticket, slot, session, name, flags, limits, completes } = submission;
    // SAFETY: what cannot be unwound is in `encode_top`; the rest pushes short strings at most.
    unsafe {
        // A child begins anew before it submits.
        if vm.is_lost() {
            return Sent::Refused(failed(state, b"lost", ""));
        }
        let Some(pool) = vm.pool(pool) else {
            return Sent::Refused(failed(state, b"unknown", ""));
        };
        if !View::of(state, vm.functions.direct).is_lua_function(first) {
            return Sent::Refused(failed(state, b"text", "closure must be a Lua function, got a C function"));
        }
        if let Err(error) = vm.admit(&pool, slot) {
            let reason: &[u8] = match (&error, pool.config.when_full) {
                (Error::PoolFull { .. }, WhenFull::Wait) => b"full",
                (Error::PoolFull { .. }, WhenFull::Fail) => b"backlog",
                (Error::PoolShutDown(_), _) => b"shutdown",
                _ => b"text",
            };
            return Sent::Refused(failed(state, reason, &error.to_string()));
        }
        let mut job = vm.take_parcel();
        let count = ffi::lua_gettop(state) + 1 - first;
        let measure = flags & MEASURE != 0;
        let limit = if measure { measuring(pool.config.max_message) } else { pool.config.max_message };
        let keep = mode == Mode::Sync && flags & NOT_IN_PLACE == 0;
        let lend = matches!(mode, Mode::Sync | Mode::Scheduled) && !measure;
        let purpose = Purpose::Job { keep, capture: flags & NO_CAPTURE == 0, lend };
        let request = Request { count, limit, scanned: flags & SCANNED != 0, purpose };
        if let Err(refusal) = encode_top(state, vm, &mut job.value.message, request) {
            vm.return_parcel(job);
            return Sent::Refused(refused(state, vm, refusal, limit));
        }
        if measure {
            let size = job.value.message.bytes.len();
            vm.return_parcel(job);
            return Sent::Size(size);
        }
        job.value.kept = job.value.message.has_kept();
        if job.value.kept {
            vm.functions.store(state, vm.functions.kept, ticket as c_int);
            vm.lend(ticket, &job.value.message.beside().lent);
        }
        let future = (mode == Mode::Kept).then(|| {
            let parent = slot.and_then(|slot| vm.describe(slot)).map_or(0, |(id, ..)| id);
            Arc::new(Future::new(vm.host_of(slot), parent))
        });
        let sink = future.clone().map(|future| -> Arc<dyn Sink> { future });
        let quiet = flags & QUIET != 0;
        let order = Order { sink, mode, ticket, slot, session, name, quiet, completes, limits };
        if let Some(future) = future {
            // What may raise comes before the job is sent.
            let future: Arc<dyn Object> = future;
            push_object(state, &future);
        }
        Sent::Job(vm.submit(&pool, job, order))
    }
}

/// The number of a session that has one.
///
/// # Safety
/// A valid index.
unsafe fn session_at(state: *mut lua_State, at: c_int) -> Option<u64> {
    // SAFETY: the caller's promise.
    unsafe { slot_at(state, at) }.map(|session| session as u64).filter(|session| *session != 0)
}

/// `submit(pool, mode, ticket, slot, session, name, flags, limits, closure, completion, args…)` → the job's id (or size),
/// or a future, or nil, reason, value, why
unsafe extern "C-unwind" fn submit(state: *mut lua_State) -> c_int {
    const LEADING: c_int = 8;
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let mode = match ffi::lua_tonumber(state, 2) as u32 {
            0 => Mode::Sync,
            1 => Mode::Async,
            2 => Mode::Scheduled,
            _ => Mode::Kept,
        };
        let submission = Submission {
            mode,
            ticket: ffi::lua_tonumber(state, 3) as u64,
            slot: slot_at(state, 4),
            session: session_at(state, 5),
            name: text(state, 6),
            flags: ffi::lua_tonumber(state, 7) as u32,
            limits: limits_at(state, LEADING),
            completes: mode == Mode::Async && ffi::lua_type(state, LEADING + 2) == ffi::LUA_TFUNCTION,
        };
        match send_job(state, vm, ffi::lua_tonumber(state, 1) as u32, LEADING + 1, submission) {
            Sent::Refused(count) => return count,
            Sent::Size(size) => ffi::lua_pushnumber(state, size as f64),
            Sent::Job(_) if mode == Mode::Kept => {}
            Sent::Job(id) => ffi::lua_pushnumber(state, id as f64),
        }
        1
    }
}

/// `send(pool, slot, session, flags, waiting, closure, third, mode)`, `third` and `mode` being those of `runInPool`:
/// → the ticket to wait for, or true; or nil, reason, value of a job that is to be sent in another way, or not at all
///
/// The completion stands in `waiting` afterwards, if this VM is to run it.
unsafe extern "C-unwind" fn send(state: *mut lua_State) -> c_int {
    const WAITING: c_int = 5;
    const CLOSURE: c_int = 6;
    const THIRD: c_int = 7;
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let view = View::of(state, vm.functions.direct);
        let mode = match view.kind(THIRD) {
            ffi::LUA_TNIL | ffi::LUA_TNONE => Mode::Sync,
            ffi::LUA_TBOOLEAN if !view.is_true(THIRD) => Mode::Sync,
            ffi::LUA_TBOOLEAN => Mode::Async,
            ffi::LUA_TFUNCTION if view.number(THIRD + 1) == Some(COMPLETE_HERE) => Mode::Scheduled,
            ffi::LUA_TFUNCTION => Mode::Async,
            _ => return 0,
        };
        if view.kind(CLOSURE) != ffi::LUA_TFUNCTION {
            return 0;
        }
        let ticket = if mode == Mode::Async { 0 } else { vm.new_ticket() };
        let completes = mode == Mode::Async && view.kind(THIRD) == ffi::LUA_TFUNCTION;
        let whole = |at| view.number(at).map(|number| number as u64);
        let pool = whole(1).unwrap_or_default() as u32;
        let submission = Submission {
            mode,
            ticket,
            slot: whole(2).map(|slot| slot as usize),
            session: whole(3).filter(|session| *session != 0),
            name: None,
            flags: whole(4).unwrap_or_default() as u32,
            limits: None,
            completes,
        };
        if mode == Mode::Scheduled {
            ffi::lua_settop(state, THIRD);
            ffi::lua_rawseti_(state, WAITING, ticket as c_int);
            ffi::lua_pushnil(state);
        } else if completes {
            ffi::lua_settop(state, THIRD);
        } else {
            ffi::lua_settop(state, CLOSURE);
            ffi::lua_pushnil(state);
        }
        match send_job(state, vm, pool, CLOSURE, submission) {
            Sent::Job(_) => {
                match mode {
                    Mode::Sync => ffi::lua_pushnumber(state, ticket as f64),
                    _ => ffi::lua_pushboolean(state, 1),
                }
                if mode == Mode::Scheduled {
                    vm.completions.set(vm.completions.get() + 1);
                }
                1
            }
            Sent::Size(_) => 0,
            Sent::Refused(count) => {
                if ticket != 0 {
                    if mode == Mode::Scheduled {
                        ffi::lua_pushboolean(state, 0);
                        ffi::lua_rawseti_(state, WAITING, ticket as c_int);
                    }
                    vm.release_ticket(ticket);
                }
                count
            }
        }
    }
}

/// `next(block, deep, ticket)`, the ticket being that of the caller if it cannot do anything else meanwhile → a kind
/// and what belongs to it: nothing · job (slot, whether `paths_of` has other paths, whether memory is short) · outcome
/// (ticket, values…) · report (false, error, info) · require (name) · end · lost · failed, of an outcome or report that
/// could not be decoded (ticket or nil, error, pool, job) · stop, of all jobs' waits (error, kind) · stop job, of one
/// (slot, kind, text)
unsafe extern "C-unwind" fn next(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours; no Rust value is live across a push that can raise but the parcel, which an
    // unwinding would drop with its message.
    unsafe {
        let vm = vm(state);
        let block = ffi::lua_toboolean(state, 1) != 0;
        vm.set_deep(ffi::lua_toboolean(state, 2) != 0);
        vm.forget_end();
        let awaited = slot_at(state, 3).map(|ticket| ticket as u64);
        ffi::lua_settop(state, 0);
        if let Some(job) = awaited.and_then(|ticket| vm.unpark(ticket)) {
            return event(state, vm, job, awaited);
        }
        let next = vm.next(state, block);
        give(state, vm, next, awaited)
    }
}

/// Gives what was next.
///
/// # Safety
/// In a C function of ours, with room for a few values; as `next`.
pub(super) unsafe fn give(state: *mut lua_State, vm: &Vm, next: Next, awaited: Option<u64>) -> c_int {
    // SAFETY: as `next`.
    unsafe {
        match next {
            Next::Nothing => {
                ffi::lua_pushnumber(state, kind::NOTHING);
                1
            }
            Next::Job(slot) => {
                ffi::lua_pushnumber(state, kind::JOB);
                ffi::lua_pushnumber(state, slot as f64);
                ffi::lua_pushboolean(state, c_int::from(vm.wants_other_paths(slot)));
                ffi::lua_pushboolean(state, c_int::from(vm.memory.as_ref().is_some_and(|memory| memory.is_short())));
                4
            }
            Next::Signal(ticket) => {
                ffi::lua_pushnumber(state, kind::OUTCOME);
                ffi::lua_pushnumber(state, ticket as f64);
                2
            }
            Next::Timer(ticket) => {
                ffi::lua_pushnumber(state, kind::OUTCOME);
                ffi::lua_pushnumber(state, ticket as f64);
                // To whoever waits for something else, too, the time that is over.
                ffi::lua_pushboolean(state, 1);
                3
            }
            Next::End => {
                ffi::lua_pushnumber(state, kind::END);
                1
            }
            Next::Stop => {
                ffi::lua_pushnumber(state, kind::STOP);
                let pool = vm.worker.as_ref().map_or("", |worker| &*worker.pool.config.name);
                let text = Error::PoolShutDown(pool.to_owned()).to_string();
                push_bytes(state, format!("msys: {text}").as_bytes());
                push_bytes(state, b"shutdown");
                3
            }
            Next::StopJob(slot, control) => {
                let stop = control.stop().cloned();
                drop(control);
                ffi::lua_pushnumber(state, kind::STOP_JOB);
                ffi::lua_pushnumber(state, slot as f64);
                2 + stop.map_or(0, |stop| push_stop(state, &stop))
            }
            Next::Lost => {
                ffi::lua_pushnumber(state, kind::LOST);
                1
            }
            Next::Event(job) => event(state, vm, job, awaited),
        }
    }
}

/// The first module of a message that the VM has not loaded, and has not just tried to in vain.
///
/// # Safety
/// In a C function of ours.
pub(super) unsafe fn missing_module(state: *mut lua_State, vm: &Vm, message: &Message) -> Option<Arc<str>> {
    let tried = vm.modules.borrow();
    message.beside().modules.iter().find(|module| {
        // SAFETY: the caller's promise.
        !tried.contains(*module) && unsafe { !is_loaded(state, module) }
    }).cloned()
}

/// Whether `package.loaded` has the module, and not LuaJIT's mark of one that is being loaded.
///
/// # Safety
/// In a C function of ours.
unsafe fn is_loaded(state: *mut lua_State, module: &str) -> bool {
    // SAFETY: three pushes, which are taken off again.
    unsafe {
        let top = ffi::lua_gettop(state);
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
        push_bytes(state, module.as_bytes());
        ffi::lua_rawget_(state, top + 1);
        let kind = ffi::lua_type(state, -1);
        ffi::lua_settop(state, top);
        kind == ffi::LUA_TTABLE || kind == ffi::LUA_TFUNCTION || kind == ffi::LUA_TUSERDATA
    }
}

/// Gives an outcome or a report.
///
/// # Safety
/// As [`give`].
pub(super) unsafe fn event(state: *mut lua_State, vm: &Vm, job: Job, awaited: Option<u64>) -> c_int {
    // SAFETY: as `next`.
    unsafe {
        let top = ffi::lua_gettop(state);
        // If it is awaited by the code that is loading the module, then decoding it says that the module is not there.
        let urgent = awaited == Some(job.value.ticket) && job.value.kind == Kind::Outcome;
        if let Some(module) = missing_module(state, vm, &job.value.message)
            && !(urgent && vm.is_loading(&module))
        {
            if !vm.park(Arc::clone(&module), job) {
                ffi::lua_pushnumber(state, kind::NOTHING);
                return 1;
            }
            ffi::lua_pushnumber(state, kind::REQUIRE);
            push_bytes(state, module.as_bytes());
            return 2;
        }
        let leading = if job.value.kind == Kind::Report {
            ffi::lua_pushnumber(state, kind::REPORT);
            1
        } else {
            ffi::lua_pushnumber(state, kind::OUTCOME);
            ffi::lua_pushnumber(state, job.value.ticket as f64);
            2
        };
        let kept = job.value.kept.then_some(job.value.ticket);
        let result = decode_onto(state, vm, &job.value.message, Role::Outcome(kept));
        if result == Err(decode::Raised::Hook) {
            // The outcome is still to come; what the hook raised is for the code that waits for it.
            vm.hold(job);
            ffi::lua_error(state);
        }
        if let Some(ticket) = kept {
            vm.take_back(ticket, job.value.rare().early);
            ffi::lua_pushnil(state);
            vm.functions.store(state, vm.functions.kept, ticket as c_int);
        }
        let count = match result {
            Ok(count) => count,
            // The outcome cannot be had here: that is a failure of its own.
            Err(decode::Raised::Error | decode::Raised::Hook) => {
                let parcel = &job.value;
                ffi::lua_pushnumber(state, kind::FAILED);
                ffi::lua_replace(state, top + 1);
                ffi::lua_pushnumber(state, f64::from(parcel.pool));
                ffi::lua_pushnumber(state, parcel.id as f64);
                if leading == 1 {
                    // A report is nobody's.
                    ffi::lua_pushnil(state);
                    ffi::lua_insert(state, top + 2);
                }
                let given = ffi::lua_gettop(state) - top;
                vm.return_parcel(job);
                return given;
            }
        };
        vm.return_parcel(job);
        leading + count
    }
}

/// `open(slot)` → the name of a module to load first; or closure, completion, args…; raises what decoding raised
unsafe extern "C-unwind" fn open(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours; the parcel is back in its slot before anything is raised.
    unsafe {
        let vm = vm(state);
        let slot = ffi::lua_tonumber(state, 1) as usize;
        ffi::lua_settop(state, 0);
        // The session's coroutine may have served a job that set the environment of its thread.
        vm.functions.reset_environment(state);
        match open_job(state, vm, slot) {
            Opened::Values(count) => count,
            Opened::Module => 1,
            Opened::Raised => ffi::lua_error(state),
        }
    }
}

/// What has become of opening a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// Closure, completion and arguments are on the stack: so many.
    Values(c_int),
    /// The name of a module that is to be loaded first.
    Module,
    /// An error, which is on the stack.
    Raised,
}

/// Pushes what the job in `slot` was sent; its code runs from now on. The parcel is in its slot afterwards.
///
/// # Safety
/// In a C function of ours.
pub(super) unsafe fn open_job(state: *mut lua_State, vm: &Vm, slot: usize) -> Opened {
    // SAFETY: as `open`.
    unsafe {
        let top = ffi::lua_gettop(state);
        let Some((mut message, _)) = vm.take_message(slot) else {
            push_bytes(state, b"msys.native.open: no such job");
            return Opened::Raised;
        };
        // One that was stopped before it began has a completion, for which it is to be decoded whole.
        let was_stopped = vm.stop_of(slot).is_some();
        if !was_stopped {
            enter_job(state, vm, Some(slot));
        }
        if let Some(module) = missing_module(state, vm, &message) {
            vm.put_message(slot, message, None);
            push_bytes(state, module.as_bytes());
            return Opened::Module;
        }
        let mut none = Origin::default();
        let mut origin = message.has_kept().then(|| vm.take_origin());
        let role = Role::Job { slot, origin: origin.as_deref_mut().unwrap_or(&mut none) };
        let result = decode_onto(state, vm, &message, role);
        let mut kept = None;
        if let (Some(mut origin), Ok(_)) = (origin, &result) {
            std::mem::swap(&mut origin.bytes, &mut message.bytes);
            if !message.beside().handles.is_empty() {
                std::mem::swap(&mut origin.handles, &mut message.beside_mut().handles);
            }
            kept = Some(origin);
        }
        message.clear_values();
        vm.put_message(slot, message, kept);
        match result {
            Ok(count) => {
                // One with a completion is begun only for that.
                if let Some(stop) = vm.stop_of(slot) {
                    push_bytes(state, stop.text.as_bytes());
                    drop(stop);
                    ffi::lua_pushcclosure(state, raise, 1);
                    ffi::lua_replace(state, top + 1);
                }
                if was_stopped {
                    enter_job(state, vm, Some(slot));
                }
                Opened::Values(count)
            }
            Err(decode::Raised::Error | decode::Raised::Hook) => Opened::Raised,
        }
    }
}

/// Raises its upvalue: in the place of the closure of a job that was stopped before it began.
unsafe extern "C-unwind" fn raise(state: *mut lua_State) -> c_int {
    // SAFETY: a C function raises.
    unsafe {
        ffi::lua_pushvalue(state, ffi::lua_upvalueindex(1));
        ffi::lua_error(state)
    }
}

/// `finish(slot, flags, ok, values…)` → true (or a size), whether the memory's limit was met; or nil, reason, value,
/// why and the job goes on
unsafe extern "C-unwind" fn finish(state: *mut lua_State) -> c_int {
    // SAFETY: as `open`.
    unsafe {
        let vm = vm(state);
        let slot = ffi::lua_tonumber(state, 1) as usize;
        let flags = ffi::lua_tonumber(state, 2) as u32;
        let ok = ffi::lua_toboolean(state, 3) != 0;
        let count = ffi::lua_gettop(state) - 2;
        let Some(mode) = vm.mode_of(slot) else {
            push_bytes(state, b"msys.native.finish: no such job");
            ffi::lua_error(state)
        };
        // It was stopped as it ended, or has caught what was raised, with its last call.
        if flags & (STOPPED | MEASURE) == 0 && vm.stop_of(slot).is_some() {
            return failed(state, b"stopped", "");
        }
        // Nobody reads the results of an asynchronous job.
        if mode != Mode::Async || !ok {
            // A failure of our own making is small, and has to get through.
            let ours = flags & (MEASURE | OURS) != 0;
            let limit = if flags & MEASURE != 0 { measuring(vm.message_limit()) } else if ours { LARGEST } else { vm.message_limit() };
            let scanned = flags & SCANNED != 0;
            let request = Request { count, limit, scanned, purpose: Purpose::Outcome(None) };
            let Some((mut message, origin)) = vm.take_message(slot) else { return 0 };
            let encoded = encode_outcome(state, vm, slot, &mut message, origin.as_deref(), flags, request);
            let size = message.bytes.len();
            vm.put_message(slot, message, origin);
            if let Err(refusal) = encoded {
                return refused(state, vm, refusal, limit);
            }
            if flags & MEASURE != 0 {
                ffi::lua_pushnumber(state, size as f64);
                return 1;
            }
        }
        // What the session's coroutine runs next has nothing to do with this job's environment.
        vm.functions.reset_environment(state);
        end_job(state, vm, slot, ok);
        ffi::lua_pushboolean(state, 1);
        ffi::lua_pushboolean(state, c_int::from(vm.memory.as_ref().is_some_and(|memory| memory.is_pressed())));
        2
    }
}

/// Ends the job in `slot`, whose message is the outcome: its stop, its hook and what it came in are over.
///
/// # Safety
/// In a C function of ours, with two free slots.
pub(super) unsafe fn end_job(state: *mut lua_State, vm: &Vm, slot: usize, ok: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        calm(state, vm);
        end_hook(state);
        forget_origin(state, vm, slot);
    }
    vm.end(slot, ok);
}

/// Takes away a debug hook that a job has left.
///
/// # Safety
/// In a C function of ours.
pub(super) unsafe fn end_hook(state: *mut lua_State) {
    // SAFETY: reads and writes a field of the VM.
    unsafe {
        if ffi::lua_gethookmask(state) != 0 {
            ffi::lua_sethook(state, None, 0, 0);
        }
    }
}

/// `unhook()`: takes away the debug hook of a worker's job, which has failed; a host's hook is its own
unsafe extern "C-unwind" fn unhook(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        if vm(state).worker.is_some() {
            end_hook(state);
        }
    }
    0
}

/// The outcome of the job in `slot` says no more of what it came in.
///
/// # Safety
/// In a C function of ours, with two free slots.
unsafe fn forget_origin(state: *mut lua_State, vm: &Vm, slot: usize) {
    if vm.forget_origin(slot) {
        // SAFETY: the place in the table has been used, so nothing is allocated.
        unsafe {
            ffi::lua_pushnil(state);
            vm.functions.store(state, vm.functions.theirs, slot as c_int);
        }
    }
}

/// `fail(slot, kind, text)`: ends a job whose outcome cannot be sent in any other way; allocates nothing in Lua
unsafe extern "C-unwind" fn fail(state: *mut lua_State) -> c_int {
    // SAFETY: as `open`.
    unsafe {
        let vm = vm(state);
        let slot = ffi::lua_tonumber(state, 1) as usize;
        let (kind, text) = (text(state, 2).unwrap_or_default(), text(state, 3).unwrap_or_default());
        calm(state, vm);
        end_hook(state);
        forget_origin(state, vm, slot);
        vm.fail(slot, &kind, &text);
    }
    0
}

/// `memory_settled()`: garbage has been collected
unsafe extern "C-unwind" fn memory_settled(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    let vm = unsafe { vm(state) };
    let is_full = vm.memory.as_ref().is_some_and(|memory| memory.settle());
    // What fills it may be what jobs have left here on purpose, or what those in progress have.
    if is_full {
        vm.retire();
    }
    0
}

/// Encodes a job's outcome, whose values are on top, with what the job has changed of what it was sent.
///
/// # Safety
/// In a C function of ours.
pub(super) unsafe fn encode_outcome<'a>(
    state: *mut lua_State,
    vm: &Vm,
    slot: usize,
    message: &mut Message,
    origin: Option<&'a Origin>,
    flags: u32,
    mut request: Request<'a>,
) -> Result<(), Refusal> {
    if let Some(origin) = origin.filter(|_| flags & NO_CHANGES == 0) {
        // SAFETY: as above.
        unsafe {
            let changes = if origin.keeps() {
                collect(state, vm, slot, origin, Wanted::Changes).map_err(|changes::Raised| Refusal::Raised)?
            } else {
                ffi::lua_pushnil(state);
                0
            };
            vm.functions.recall(state, vm.functions.theirs, slot as c_int);
            request.purpose = Purpose::Outcome(Some(Back { origin, changes }));
        }
    }
    // SAFETY: the caller's promise.
    unsafe { encode_top(state, vm, message, request) }
}

/// Collects what is wanted of the job in `slot`, which came in `origin`.
///
/// # Safety
/// In a C function of ours.
unsafe fn collect(
    state: *mut lua_State,
    vm: &Vm,
    slot: usize,
    origin: &Origin,
    wanted: Wanted,
) -> Result<c_int, changes::Raised> {
    let mut scratch = vm.take_scratch();
    // SAFETY: the table of the slot's objects is the one that belongs to `origin`; the fourth upvalue is the inner
    // function.
    let collected = unsafe {
        ffi::lua_checkstack(state, 6);
        let inner = ffi::lua_upvalueindex(CHANGES);
        vm.functions.recall(state, vm.functions.theirs, slot as c_int);
        changes::collect(state, inner, &vm.functions, HANDLES, origin, &mut scratch.changes, wanted)
    };
    vm.return_scratch(scratch);
    collected
}

/// `sent_to(slot)` → closure, completion and arguments of a job that somebody waits for, as they are now; nothing if
/// nothing of them can have changed
unsafe extern "C-unwind" fn sent_to(state: *mut lua_State) -> c_int {
    // SAFETY: as `open`.
    unsafe {
        let vm = vm(state);
        let slot = ffi::lua_tonumber(state, 1) as usize;
        ffi::lua_settop(state, 0);
        let Some((message, origin)) = vm.take_message(slot) else { return 0 };
        let count = match origin.as_deref() {
            Some(origin) if origin.keeps() => collect(state, vm, slot, origin, Wanted::Roots).unwrap_or(0),
            _ => 0,
        };
        vm.put_message(slot, message, origin);
        count
    }
}

/// `report(slot or nil, scanned, false, error, info)` → true, or nil, reason, value, why
unsafe extern "C-unwind" fn report(state: *mut lua_State) -> c_int {
    // SAFETY: as `open`.
    unsafe {
        let vm = vm(state);
        let slot = slot_at(state, 1);
        let scanned = ffi::lua_toboolean(state, 2) != 0;
        let count = ffi::lua_gettop(state) - 2;
        let mut message = Message::default();
        let request = Request { count, limit: LARGEST, scanned, purpose: Purpose::Outcome(None) };
        if let Err(refusal) = encode_top(state, vm, &mut message, request) {
            return refused(state, vm, refusal, LARGEST);
        }
        vm.report(slot, message);
        ffi::lua_pushboolean(state, 1);
        1
    }
}

/// `pack(flags, closure)` → true, the message being kept for the next `create`; or nil, reason, value, why
unsafe extern "C-unwind" fn pack(state: *mut lua_State) -> c_int {
    // SAFETY: as `open`.
    unsafe {
        let vm = vm(state);
        let flags = ffi::lua_tonumber(state, 1) as u32;
        let mut message = Message::default();
        let purpose = Purpose::Job { keep: false, capture: flags & NO_CAPTURE == 0, lend: false };
        let request = Request { count: 1, limit: LARGEST, scanned: flags & SCANNED != 0, purpose };
        if let Err(refusal) = encode_top(state, vm, &mut message, request) {
            return refused(state, vm, refusal, LARGEST);
        }
        *vm.packed.borrow_mut() = Some(Arc::new(message));
        ffi::lua_pushboolean(state, 1);
        1
    }
}

/// `measure(value)` → how many bytes it has in a message, infinity for more than is written to find out, or nothing if
/// it cannot cross
unsafe extern "C-unwind" fn measure(state: *mut lua_State) -> c_int {
    // SAFETY: as `open`.
    unsafe {
        let vm = vm(state);
        ffi::lua_settop(state, 1);
        let mut message = Message::default();
        let request = Request { count: 1, limit: measuring(0), scanned: true, purpose: Purpose::Outcome(None) };
        match encode_top(state, vm, &mut message, request) {
            Ok(()) => {}
            Err(Refusal::TooLarge) => {
                ffi::lua_pushnumber(state, f64::INFINITY);
                return 1;
            }
            Err(_) => return 0,
        }
        ffi::lua_pushnumber(state, message.bytes.len() as f64);
        1
    }
}

/// `copy(values…)` → the values as a job in this VM would get them; for benchmarks and tests
unsafe extern "C-unwind" fn copy(state: *mut lua_State) -> c_int {
    // SAFETY: as `open`.
    unsafe {
        let vm = vm(state);
        let mut job = vm.take_parcel();
        let purpose = Purpose::Job { keep: false, capture: false, lend: false };
        let request = Request { count: ffi::lua_gettop(state), limit: LARGEST, scanned: true, purpose };
        let encoded = encode_top(state, vm, &mut job.value.message, request);
        let decoded = encoded.is_ok().then(|| decode_onto(state, vm, &job.value.message, Role::Outcome(None)));
        vm.return_parcel(job);
        match decoded {
            Some(Ok(count)) => count,
            _ => ffi::lua_error(state),
        }
    }
}

/// `globals_of(function)` → the names of globals in its code, but for those that every VM has
unsafe extern "C-unwind" fn globals_of(state: *mut lua_State) -> c_int {
    // SAFETY: a Lua function is dumped; the names are pushed while the buffer may leak, should memory run out.
    unsafe {
        ffi::lua_settop(state, 1);
        if ffi::lua_iscfunction(state, 1) != 0 {
            return 0;
        }
        let Some(dump) = dump_of(state) else { return 0 };
        let usage = Usage::of(&dump);
        ffi::lua_createtable(state, usage.globals.len() as c_int, 0);
        for (name, place) in usage.globals.iter().zip(1..) {
            push_bytes(state, name);
            ffi::lua_rawseti_(state, -2, place);
        }
        1
    }
}

/// `describe(slot)` → id, pool, name or nil
unsafe extern "C-unwind" fn describe(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some((id, pool, name)) = vm(state).describe(ffi::lua_tonumber(state, 1) as usize) else { return 0 };
        ffi::lua_pushnumber(state, id as f64);
        push_bytes(state, pool.as_bytes());
        match name {
            Some(name) => push_bytes(state, name.as_bytes()),
            None => ffi::lua_pushnil(state),
        }
        3
    }
}
