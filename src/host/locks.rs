//! The slow side of locks: what Lua does when the fast exchange of `objects` is not enough.
//!
//! A wait in three calls: `await_…` enqueues the session under a ticket, the scheduler waits for that ticket,
//! `settle_…` says what has become of it. Texts are made under no lock, and nothing that may raise is called in the
//! order of locks.

use std::{
    ffi::{CStr, c_int},
    sync::Arc,
};

use super::{
    jobs::slot_at,
    objects::{counted_at, object_at, push_new, push_object},
    shared::{CLOSED, DONE, UNDONE},
    text, vm,
};
use crate::{
    handles::{self, Condition, Knock, Mutex, RwLock, kind},
    locks::{Access, Ancestors, Cycle, Held, Kind, Left, Locked, Session, Settled, Unlocked, Waited, Waiter, Waiting, Waits, Wake},
    luajit::{ffi, lua_State, push_bytes, string_at},
    vm::{Awaited, HeldLock, Vm},
    wire::Object,
};

pub(super) const FUNCTIONS: &[(&CStr, ffi::lua_CFunction)] = &[
    (c"new_session", new_session),
    (c"end_session", end_session),
    (c"mutex", mutex),
    (c"named_mutex", named_mutex),
    (c"rwlock", rwlock),
    (c"condition", condition),
    (c"condition_mutex", condition_mutex),
    (c"try_lock", try_lock),
    (c"await_lock", await_lock),
    (c"settle_lock", settle_lock),
    (c"unlock", unlock),
    (c"await_condition", await_condition),
    (c"settle_condition", settle_condition),
    (c"relock", relock),
    (c"signal", signal),
    (c"describe_lock", describe_lock),
    (c"leave", leave),
];

/// What became of an attempt or a wait; `lua/msys/locks.lua` has the same.
mod outcome {
    pub(super) const NO: f64 = 0.0;
    pub(super) const YES: f64 = 1.0;
    pub(super) const RELOCKED: f64 = 2.0;
    pub(super) const EXPIRED: f64 = 3.0;
}

/// The lock behind the handle at `at`.
///
/// # Safety
/// In a C function of ours.
unsafe fn lock_at(state: *mut lua_State, at: c_int) -> Option<HeldLock> {
    // SAFETY: the caller's promise.
    unsafe {
        counted_at::<Mutex>(state, at, kind::MUTEX)
            .map(HeldLock::Mutex)
            .or_else(|| counted_at::<RwLock>(state, at, kind::RWLOCK).map(HeldLock::RwLock))
    }
}

/// How a session wants a lock: for reading if the value at `at` is `false`.
///
/// # Safety
/// In a C function of ours.
unsafe fn access_at(state: *mut lua_State, at: c_int) -> Access {
    // SAFETY: reads a boolean or nothing.
    unsafe {
        let reads = ffi::lua_type(state, at) == ffi::LUA_TBOOLEAN && ffi::lua_toboolean(state, at) == 0;
        if reads { Access::Read } else { Access::Write }
    }
}

/// # Safety
/// In a C function of ours.
unsafe fn session_at(state: *mut lua_State, at: c_int) -> Session {
    // SAFETY: reads a number.
    unsafe { ffi::lua_tonumber(state, at) as Session }
}

impl HeldLock {
    fn attempt(&self, waits: &mut Waits, session: Session, access: Access) -> Locked {
        match self {
            Self::Mutex(mutex) => mutex.lock.lock(waits, session),
            Self::RwLock(lock) => lock.lock.lock(waits, session, access),
        }
    }

    fn settle(&self, waits: &mut Waits, session: Session, expired: bool, knock: impl FnOnce() -> Knock) -> Settled<Knock> {
        match self {
            Self::Mutex(mutex) => mutex.lock.settle(waits, session, expired, knock),
            Self::RwLock(lock) => lock.lock.settle(waits, session, expired, knock),
        }
    }

    fn as_held(&self) -> Arc<dyn Held> {
        match self {
            Self::Mutex(mutex) => Arc::<Mutex>::clone(mutex),
            Self::RwLock(lock) => Arc::<RwLock>::clone(lock),
        }
    }

    /// Its name, and whose it is, in words.
    fn describe(&self) -> (String, String) {
        let mut waits = handles::order();
        let holders = self.held().holders(&mut waits);
        let names: Vec<String> = holders.iter().map(|holder| waits.name_of(*holder).to_owned()).collect();
        drop(waits);
        let held = if names.is_empty() { "free".to_owned() } else { format!("locked by {}", names.join(", ")) };
        (self.held().name(), held)
    }
}

/// Gives one number.
///
/// # Safety
/// In a C function of ours.
unsafe fn give(state: *mut lua_State, number: f64) -> c_int {
    // SAFETY: one push.
    unsafe { ffi::lua_pushnumber(state, number) };
    1
}

/// Gives nil and a text, and frees that before it could raise.
///
/// # Safety
/// In a C function of ours, with nothing else that has a destructor live.
unsafe fn refuse(state: *mut lua_State, text: String) -> c_int {
    // SAFETY: two pushes; should the second raise, the text is freed by the unwinding.
    unsafe {
        ffi::lua_pushnil(state);
        push_bytes(state, text.as_bytes());
    }
    2
}

/// `new_session(name, slot or nil)` → a number for the session that has this name in messages, and is this job
unsafe extern "C-unwind" fn new_session(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let session = vm.new_session();
        vm.touched.set(true);
        let name = text(state, 1).map_or_else(String::new, |name| name.to_string());
        handles::order().name(session, name);
        if let Some(slot) = slot_at(state, 2) {
            vm.note_session(slot, session);
        }
        give(state, session as f64)
    }
}

/// `end_session(session, slot or nil)` → a list of what is to be reported of locks that it still had, or nothing. In a
/// worker that is reported here, without Lua's memory, which may have run out.
unsafe extern "C-unwind" fn end_session(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let left = vm.end_session(session_at(state, 1));
        if vm.worker.is_some() {
            vm.report_left(slot_at(state, 2), &left);
            return 0;
        } else if left.is_empty() {
            return 0;
        }
        ffi::lua_createtable(state, left.len() as c_int, 0);
        for (text, place) in left.iter().zip(1..) {
            push_bytes(state, text.as_bytes());
            ffi::lua_rawseti_(state, -2, place);
        }
        1
    }
}

/// `mutex(kind)` → a handle
unsafe extern "C-unwind" fn mutex(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let kind = match ffi::lua_tonumber(state, 1) as u32 {
            1 => Kind::Recursive,
            2 => Kind::ErrorCheck,
            _ => Kind::Normal,
        };
        let mutex: Arc<dyn Object> = handles::new_mutex(kind);
        push_object(state, &mutex);
    }
    1
}

/// `named_mutex(name)` → the process's handle for that name
unsafe extern "C-unwind" fn named_mutex(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours; the name is a string.
    unsafe {
        let mutex: Arc<dyn Object> = handles::named_mutex(string_at(state, 1));
        push_object(state, &mutex);
    }
    1
}

/// `rwlock()` → a handle
unsafe extern "C-unwind" fn rwlock(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let lock: Arc<dyn Object> = handles::new_rwlock();
        push_object(state, &lock);
    }
    1
}

/// `condition(mutex)` → a handle
unsafe extern "C-unwind" fn condition(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(mutex) = counted_at::<Mutex>(state, 1, kind::MUTEX) else { return 0 };
        push_new(state, Condition::new(mutex));
    }
    1
}

/// `condition_mutex(condition)` → the handle of its mutex
unsafe extern "C-unwind" fn condition_mutex(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(condition) = object_at::<Condition>(state, 1, kind::CONDITION) else { return 0 };
        let mutex: Arc<dyn Object> = Arc::<Mutex>::clone(&condition.mutex);
        push_object(state, &mutex);
    }
    1
}

/// `try_lock(handle, session, write)` → what became of it
unsafe extern "C-unwind" fn try_lock(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let Some(lock) = lock_at(state, 1) else { return 0 };
        let (session, access) = (session_at(state, 2), access_at(state, 3));
        let locked = lock.attempt(&mut handles::order(), session, access);
        give(state, match locked {
            Locked::Yes => {
                vm.note_lock(session, lock);
                outcome::YES
            }
            Locked::Relocked => outcome::RELOCKED,
            Locked::No => outcome::NO,
        })
    }
}

/// What is wrong with a wait that would close a cycle.
fn explain(cycle: &Cycle) -> String {
    let waits = handles::order();
    let mut text = String::from("this wait would never end:");
    for (place, link) in cycle.iter().enumerate() {
        let would = if place == 0 { "would wait" } else { "waits" };
        text.push_str(&format!(
            "\n\t{} {would} at {} for {}, which {} has",
            waits.name_of(link.session),
            link.place,
            link.lock,
            waits.name_of(link.holder)
        ));
    }
    text
}

/// Who waits for the session in the slot at `at`: also all in the list behind it, of numbers (or 0) and slots (or -1),
/// which cannot go on before.
///
/// # Safety
/// In a C function of ours.
unsafe fn ancestors_at(state: *mut lua_State, vm: &Vm, at: c_int) -> Ancestors {
    // SAFETY: reads numbers.
    unsafe {
        let mut ancestors = vm.ancestors(slot_at(state, at));
        if ffi::lua_type(state, at + 1) != ffi::LUA_TTABLE {
            return ancestors;
        }
        let number = |place: usize| {
            ffi::lua_rawgeti_(state, at + 1, place as c_int);
            let number = ffi::lua_tonumber(state, -1);
            ffi::lua_settop(state, -2);
            number
        };
        for place in (1..ffi::lua_objlen(state, at + 1)).step_by(2) {
            let (session, slot) = (number(place), number(place + 1));
            let session = (session != 0.0).then_some(session as Session);
            ancestors = vm.with_ancestor(ancestors, session, (slot >= 0.0).then_some(slot as usize));
        }
        ancestors
    }
}

/// `await_lock(handle, session, write, ticket, timed, place, slot, below)` → yes, or no and the session waits; or nil
/// and why it must not
unsafe extern "C-unwind" fn await_lock(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let Some(lock) = lock_at(state, 1) else { return 0 };
        let (session, access) = (session_at(state, 2), access_at(state, 3));
        let ticket = ffi::lua_tonumber(state, 4) as u64;
        let timed = ffi::lua_toboolean(state, 5) != 0;
        let place = text(state, 6).map_or_else(String::new, |place| place.to_string());
        let ancestors = ancestors_at(state, vm, 7);
        let waiting = Waiting { lock: lock.as_held(), place, ancestors };
        match enqueue(vm, &lock, session, access, ticket, (!timed).then_some(waiting)) {
            Ok(has) => {
                if has {
                    vm.note_lock(session, lock);
                } else {
                    vm.awaited.borrow_mut().insert(ticket, Awaited::Lock(session, lock));
                }
                give(state, if has { outcome::YES } else { outcome::NO })
            }
            Err(cycle) => {
                drop(lock);
                let text = explain(&cycle);
                drop(cycle);
                refuse(state, text)
            }
        }
    }
}

/// Takes the lock, or enqueues the session; whether it has it.
fn enqueue(
    vm: &Vm,
    lock: &HeldLock,
    session: Session,
    access: Access,
    ticket: u64,
    waiting: Option<Waiting>,
) -> Result<bool, Cycle> {
    let mut waits = handles::order();
    if lock.attempt(&mut waits, session, access) == Locked::Yes {
        return Ok(true);
    }
    if let Some(waiting) = waiting {
        waits.begin(session, waiting)?;
    }
    let waiter = Waiter::new(session, Knock::new(vm.inbox(), ticket));
    match lock {
        HeldLock::Mutex(mutex) => {
            if mutex.lock.enqueue(&mut waits, waiter).is_some() {
                waits.end(session);
                return Ok(true);
            }
        }
        HeldLock::RwLock(lock) => lock.lock.enqueue(&mut waits, waiter, access),
    }
    Ok(false)
}

/// Notes what a wait has come to; gives the number for Lua.
fn settled(vm: &Vm, ticket: u64, session: Session, lock: impl FnOnce() -> HeldLock, settled: Settled<Knock>) -> f64 {
    match settled {
        Settled::Waiting => outcome::NO,
        Settled::Granted => {
            vm.awaited.borrow_mut().remove(&ticket);
            vm.note_lock(session, lock());
            outcome::YES
        }
        Settled::Expired(knocks) => {
            vm.awaited.borrow_mut().remove(&ticket);
            knocks.into_iter().for_each(Wake::wake);
            outcome::EXPIRED
        }
    }
}

/// `settle_lock(handle, session, ticket, expired)` → what became of the wait
unsafe extern "C-unwind" fn settle_lock(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let Some(lock) = lock_at(state, 1) else { return 0 };
        let (session, ticket) = (session_at(state, 2), ffi::lua_tonumber(state, 3) as u64);
        let expired = ffi::lua_toboolean(state, 4) != 0;
        let knock = || Knock::new(vm.inbox(), ticket);
        let result = lock.settle(&mut handles::order(), session, expired, knock);
        give(state, settled(vm, ticket, session, || lock, result))
    }
}

/// `unlock(handle, session)` → true, or nil and whose it is
unsafe extern "C-unwind" fn unlock(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let Some(lock) = lock_at(state, 1) else { return 0 };
        let session = session_at(state, 2);
        let mut waits = handles::order();
        let unlocked = match &lock {
            HeldLock::Mutex(mutex) => mutex.lock.unlock(&mut waits, session),
            HeldLock::RwLock(lock) => lock.lock.unlock(&mut waits, session),
        };
        let has_still = lock.held().holders(&mut waits).contains(&session);
        drop(waits);
        match unlocked {
            Unlocked::Yes(knocks) => {
                knocks.into_iter().for_each(Wake::wake);
                if !has_still {
                    vm.forget_lock(session, lock.address());
                }
                drop(lock);
                ffi::lua_pushboolean(state, 1);
                1
            }
            Unlocked::NotHeld(_) => {
                let (name, held) = lock.describe();
                drop(lock);
                refuse(state, format!("{name} ({held})"))
            }
        }
    }
}

/// `await_condition(handle, session, ticket, place, slot, below)` → true, and the session waits without the mutex; or
/// nil and whose that is
unsafe extern "C-unwind" fn await_condition(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let Some(condition) = counted_at::<Condition>(state, 1, kind::CONDITION) else { return 0 };
        let (session, ticket) = (session_at(state, 2), ffi::lua_tonumber(state, 3) as u64);
        let waiter = Waiter::new(session, Knock::new(vm.inbox(), ticket));
        let place = text(state, 4).map_or_else(String::new, |place| place.to_string());
        let lock: Arc<dyn Held> = Arc::<Mutex>::clone(&condition.mutex);
        let waiting = Waiting { lock, place, ancestors: ancestors_at(state, vm, 5) };
        // Under the order, as it may be released in this session's place.
        let mut order = handles::order();
        if condition.mutex.lock.holder() != Some(session) {
            drop(order);
            let (name, held) = HeldLock::Mutex(Arc::clone(&condition.mutex)).describe();
            drop((condition, waiter, waiting));
            return refuse(state, format!("{name} ({held})"));
        }
        let knock = condition.lock.wait(&mut order, waiter, Some(waiting));
        drop(order);
        knock.into_iter().for_each(Wake::wake);
        vm.forget_lock(session, Arc::as_ptr(&condition.mutex).cast());
        vm.awaited.borrow_mut().insert(ticket, Awaited::Condition(session, condition));
        ffi::lua_pushboolean(state, 1);
        1
    }
}

/// `settle_condition(handle, session, ticket, expired)` → what became of the wait; if it ended without the mutex, how
/// deep that was locked, and whether the session was signalled
unsafe extern "C-unwind" fn settle_condition(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let Some(condition) = counted_at::<Condition>(state, 1, kind::CONDITION) else { return 0 };
        let (session, ticket) = (session_at(state, 2), ffi::lua_tonumber(state, 3) as u64);
        let expired = ffi::lua_toboolean(state, 4) != 0;
        let knock = || Knock::new(vm.inbox(), ticket);
        let (result, depth, signalled) = match condition.lock.settle(&mut handles::order(), session, expired, knock) {
            Waited::Locking(result) => (result, 0, true),
            Waited::Waiting => (Settled::Waiting, 0, false),
            Waited::Expired(depth) => (Settled::Expired(Vec::new()), depth, false),
            Waited::Refused(depth) => (Settled::Expired(Vec::new()), depth, true),
        };
        let lock = || HeldLock::Mutex(Arc::clone(&condition.mutex));
        let given = settled(vm, ticket, session, lock, result);
        drop(condition);
        give(state, given);
        give(state, f64::from(depth));
        ffi::lua_pushboolean(state, c_int::from(signalled));
        3
    }
}

/// `relock(mutex, session, depth)`: the session, which has it, has locked it so often more
unsafe extern "C-unwind" fn relock(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        if let Some(mutex) = object_at::<Mutex>(state, 1, kind::MUTEX) {
            let mut waits = handles::order();
            for _ in 0..ffi::lua_tonumber(state, 3) as u32 {
                mutex.lock.lock(&mut waits, session_at(state, 2));
            }
        }
    }
    0
}

/// `signal(condition, all)` → how many were signalled
unsafe extern "C-unwind" fn signal(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(condition) = object_at::<Condition>(state, 1, kind::CONDITION) else { return 0 };
        let all = ffi::lua_toboolean(state, 2) != 0;
        let mut count = 0;
        while all || count == 0 {
            let Some(knock) = condition.lock.signal(&mut handles::order()) else { break };
            knock.into_iter().for_each(Wake::wake);
            count += 1;
        }
        give(state, f64::from(count))
    }
}

/// `describe_lock(handle)` → its name, whose it is
unsafe extern "C-unwind" fn describe_lock(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours; should a push raise, the texts are freed by the unwinding.
    unsafe {
        let Some(lock) = lock_at(state, 1) else { return 0 };
        let (name, held) = lock.describe();
        drop(lock);
        push_bytes(state, name.as_bytes());
        push_bytes(state, held.as_bytes());
    }
    2
}

/// `leave(ticket, gone)` → the session waits no longer: how that ended, for a channel
unsafe extern "C-unwind" fn leave(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let left = vm(state).leave(ffi::lua_tonumber(state, 1) as u64, ffi::lua_toboolean(state, 2) != 0);
        give(state, match left {
            Left::Done => DONE,
            Left::Undone => UNDONE,
            Left::Closed => CLOSED,
        })
    }
}
