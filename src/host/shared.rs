//! Channels, counters, shared tables and buffers, as Lua sees them.

use std::{
    ffi::{CStr, c_int},
    sync::{Arc, OnceLock},
};

use super::{
    jobs::{decode_onto, encode_value, missing_module, refused_value, slot_at},
    objects::{counted_at, object_at, push_new, push_object, push_weak_table, set_buffer_view, whole},
    text, vm,
};
use crate::{
    decode::Role,
    handles::{
        self, Buffer, Channel, Counter, Future, Key, Knock, OwnedKey, Packed, Received, Sent, Status, Stored, Table, kind, new_id,
    },
    job::Sink,
    luajit::{ffi, lua_State, push_bytes, string_at},
    outcome, registry,
    vm::{Awaited, Vm},
    wire::{Message, Object},
};

pub(super) const FUNCTIONS: &[(&CStr, ffi::lua_CFunction)] = &[
    (c"channel", channel),
    (c"channel_send", channel_send),
    (c"channel_receive", channel_receive),
    (c"channel_wait", channel_wait),
    (c"channel_close", channel_close),
    (c"channel_len", channel_len),
    (c"alive", alive),
    (c"new_table", new_table),
    (c"counter", counter),
    (c"shared", shared),
    (c"process_table", process_table),
    (c"share_globals", share_globals),
    (c"shares_globals", shares_globals),
    (c"shared_get", shared_get),
    (c"shared_peek", shared_peek),
    (c"shared_private", shared_private),
    (c"shared_set", shared_set),
    (c"shared_take", shared_take),
    (c"shared_version", shared_version),
    (c"shared_swap", shared_swap),
    (c"shared_len", shared_len),
    (c"shared_keys", shared_keys),
    (c"buffer", buffer),
    (c"buffer_memory", buffer_memory),
    (c"set_buffer_view", set_buffer_view),
    (c"failed_future", failed_future),
    (c"future_wait", future_wait),
    (c"future_outcome", future_outcome),
    (c"future_status", future_status),
];

/// What became of sending and receiving; `lua/msys/channel.lua` has the same.
pub(super) const DONE: f64 = 1.0;
/// As [`DONE`].
pub(super) const UNDONE: f64 = 0.0;
/// As [`DONE`].
pub(super) const CLOSED: f64 = -1.0;

/// Registry name of the functions read from what is shared, by their numbers, held weakly.
const SEEN_FUNCTIONS: &CStr = c"msys.functions.shared";

/// The key at `at`; `None` for what is no key.
///
/// # Safety
/// In a C function of ours; the value stays on the stack while the key is used.
unsafe fn key_at<'a>(state: *mut lua_State, at: c_int) -> Option<Key<'a>> {
    // SAFETY: each arm reads what fits the type.
    unsafe {
        match ffi::lua_type(state, at) {
            ffi::LUA_TSTRING => Some(Key::Text(string_at(state, at))),
            ffi::LUA_TNUMBER => Some(Key::Number(ffi::lua_tonumber(state, at))),
            ffi::LUA_TBOOLEAN => Some(Key::Boolean(ffi::lua_toboolean(state, at) != 0)),
            _ => None,
        }
    }
}

/// The value on top, to be kept; `Err` with what a refusal gives. The value is taken off.
///
/// # Safety
/// In a C function of ours.
unsafe fn store(state: *mut lua_State, vm: &Vm, scanned: bool) -> Result<Stored, c_int> {
    // SAFETY: each arm reads what fits the type.
    unsafe {
        let kind = ffi::lua_type(state, -1);
        let stored = match kind {
            ffi::LUA_TNIL => Stored::Nil,
            ffi::LUA_TBOOLEAN => Stored::Boolean(ffi::lua_toboolean(state, -1) != 0),
            ffi::LUA_TNUMBER => Stored::Number(ffi::lua_tonumber(state, -1)),
            ffi::LUA_TSTRING => Stored::Text(Arc::from(string_at(state, -1))),
            _ => {
                return match encode_value(state, vm, scanned) {
                    Ok(mut message) => {
                        let object = if message.is_handle() { message.beside_mut().handles.pop() } else { None };
                        Ok(object.map_or_else(|| Stored::packed(message, kind == ffi::LUA_TFUNCTION), Stored::Object))
                    }
                    Err(refusal) => Err(refused_value(state, vm, refusal)),
                };
            }
        };
        ffi::lua_settop(state, -2);
        Ok(stored)
    }
}

/// Pushes a value that was kept. May raise: memory, or a module that cannot be loaded.
///
/// # Safety
/// In a C function of ours, which owns `stored`: should this raise, it is dropped by the unwinding.
unsafe fn push_stored(state: *mut lua_State, vm: &Vm, stored: &Stored) {
    // SAFETY: one value is pushed.
    unsafe {
        match stored {
            Stored::Nil => ffi::lua_pushnil(state),
            Stored::Boolean(yes) => ffi::lua_pushboolean(state, c_int::from(*yes)),
            Stored::Number(number) => ffi::lua_pushnumber(state, *number),
            Stored::Text(text) => push_bytes(state, text),
            Stored::Object(object) => push_object(state, object),
            Stored::Packed(packed) if packed.is_function => push_function(state, vm, packed),
            Stored::Packed(packed) => push_message(state, vm, &packed.message),
            Stored::Private(_) => ffi::lua_pushnil(state),
        }
    }
}

/// Pushes what a message has. May raise, as [`push_stored`].
///
/// # Safety
/// As [`push_stored`].
unsafe fn push_message(state: *mut lua_State, vm: &Vm, message: &Message) {
    // SAFETY: modules first, as decoding needs them.
    unsafe {
        ffi::luaL_checkstack_(state, 20, c"too many values".as_ptr());
        while let Some(module) = missing_module(state, vm, message) {
            ffi::lua_getfield(state, ffi::LUA_GLOBALSINDEX, c"require".as_ptr());
            push_bytes(state, module.as_bytes());
            ffi::lua_call(state, 1, 0);
            vm.modules.borrow_mut().insert(module);
        }
        if decode_onto(state, vm, message, Role::Outcome(None)).is_err() {
            ffi::lua_error(state);
        }
    }
}

/// Pushes a function, the same each time as long as this VM has it. May raise, as [`push_stored`].
///
/// # Safety
/// As [`push_stored`].
unsafe fn push_function(state: *mut lua_State, vm: &Vm, packed: &Packed) {
    // SAFETY: one value is left; the table is ours.
    unsafe {
        let top = ffi::lua_gettop(state);
        ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, SEEN_FUNCTIONS.as_ptr());
        ffi::lua_pushnumber(state, packed.id as f64);
        ffi::lua_rawget_(state, top + 1);
        if ffi::lua_type(state, top + 2) == ffi::LUA_TNIL {
            ffi::lua_settop(state, top + 1);
            push_message(state, vm, &packed.message);
            ffi::lua_pushnumber(state, packed.id as f64);
            ffi::lua_pushvalue(state, top + 2);
            ffi::lua_rawset(state, top + 1);
        }
        ffi::lua_replace(state, top + 1);
    }
}

/// Makes what reading needs, once in each VM.
///
/// # Safety
/// In protected mode.
pub(super) unsafe fn open(state: *mut lua_State) {
    // SAFETY: what is pushed is stored.
    unsafe {
        push_weak_table(state, b"v");
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, SEEN_FUNCTIONS.as_ptr());
    }
}

/// `channel(capacity)` → a handle; no capacity: no bound
unsafe extern "C-unwind" fn channel(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let capacity =
            if ffi::lua_type(state, 1) == ffi::LUA_TNUMBER { ffi::lua_tonumber(state, 1) as usize } else { usize::MAX };
        push_new(state, Channel::new(capacity));
    }
    1
}

/// `channel_send(channel, scanned, ticket, value)` → 1 if it is sent, -1 if it is closed, 0 if there is no room: then
/// the session waits, if the ticket is not 0; or nil, reason, value, why
unsafe extern "C-unwind" fn channel_send(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let Some(channel) = object_at::<Channel>(state, 1, kind::CHANNEL) else { return 0 };
        let (scanned, ticket) = (ffi::lua_toboolean(state, 2) != 0, ffi::lua_tonumber(state, 3) as u64);
        ffi::lua_settop(state, 4);
        let value = match store(state, vm, scanned) {
            Ok(value) => value,
            Err(count) => return count,
        };
        let sent = if ticket == 0 {
            match channel.send(value) {
                Sent::Yes => DONE,
                Sent::Full(_) => UNDONE,
                Sent::Closed => CLOSED,
            }
        } else {
            let Some(waited) = counted_at::<Channel>(state, 1, kind::CHANNEL) else { return 0 };
            let knock = Knock::new(vm.inbox(), ticket);
            match channel.send_or_wait(value, knock.wait(), knock) {
                Sent::Yes => DONE,
                Sent::Full(()) => {
                    vm.awaited.borrow_mut().insert(ticket, Awaited::Channel(waited));
                    UNDONE
                }
                Sent::Closed => CLOSED,
            }
        };
        ffi::lua_pushnumber(state, sent);
    }
    1
}

/// `channel_receive(channel)` → 1 and an item; 0 if there is none, -1 if there will be none
unsafe extern "C-unwind" fn channel_receive(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let Some(channel) = object_at::<Channel>(state, 1, kind::CHANNEL) else { return 0 };
        let item = match channel.receive() {
            Received::Item(item) => item,
            other => {
                ffi::lua_pushnumber(state, if matches!(other, Received::Closed) { CLOSED } else { UNDONE });
                return 1;
            }
        };
        ffi::lua_pushnumber(state, DONE);
        push_stored(state, vm, &item);
    }
    2
}

/// `channel_wait(channel, ticket)` → whether the session waits for an item; if not, it is to try again
unsafe extern "C-unwind" fn channel_wait(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let Some(channel) = counted_at::<Channel>(state, 1, kind::CHANNEL) else { return 0 };
        let ticket = ffi::lua_tonumber(state, 2) as u64;
        let knock = Knock::new(vm.inbox(), ticket);
        let waits = channel.await_item(knock.wait(), knock);
        if waits {
            vm.awaited.borrow_mut().insert(ticket, Awaited::Channel(channel));
        }
        ffi::lua_pushboolean(state, c_int::from(waits));
    }
    1
}

/// `channel_close(channel)` → whether it was open
unsafe extern "C-unwind" fn channel_close(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(channel) = object_at::<Channel>(state, 1, kind::CHANNEL) else { return 0 };
        ffi::lua_pushboolean(state, c_int::from(channel.close()));
    }
    1
}

/// `channel_len(channel)` → how many items are in it, its capacity or nil, whether it is closed
unsafe extern "C-unwind" fn channel_len(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(channel) = object_at::<Channel>(state, 1, kind::CHANNEL) else { return 0 };
        let (len, closed) = channel.len();
        ffi::lua_pushnumber(state, len as f64);
        match channel.capacity() {
            usize::MAX => ffi::lua_pushnil(state),
            capacity => ffi::lua_pushnumber(state, capacity as f64),
        }
        ffi::lua_pushboolean(state, c_int::from(closed));
    }
    3
}

/// `alive()` → how many objects there are in the process that have handles, or had
unsafe extern "C-unwind" fn alive(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { ffi::lua_pushnumber(state, handles::alive() as f64) };
    1
}

/// `new_table(items, fields)` → a table with room for those
unsafe extern "C-unwind" fn new_table(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours; makes one table, or raises.
    unsafe { ffi::lua_createtable(state, ffi::lua_tonumber(state, 1) as c_int, ffi::lua_tonumber(state, 2) as c_int) };
    1
}

/// `counter(value)` → a handle, or nothing if the value is no whole number
unsafe extern "C-unwind" fn counter(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(value) = whole(ffi::lua_tonumber(state, 1)) else { return 0 };
        push_new(state, Counter::new(value));
    }
    1
}

/// `shared()` → a handle of a new table
unsafe extern "C-unwind" fn shared(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { push_new(state, Table::default()) };
    1
}

/// `process_table(number)` → the handle of one of the process's own: 1 for `msys.shareSet`, 2 for the globals
unsafe extern "C-unwind" fn process_table(state: *mut lua_State) -> c_int {
    static TABLES: [OnceLock<Arc<Table>>; 2] = [const { OnceLock::new() }; 2];
    // SAFETY: a C function of ours.
    unsafe {
        let number = ffi::lua_tonumber(state, 1) as usize;
        let Some(table) = TABLES.get(number.wrapping_sub(1)) else { return 0 };
        let table: Arc<dyn Object> = table.get_or_init(Arc::default).clone();
        push_object(state, &table);
    }
    1
}

/// `share_globals()` → whether scripts' own globals are shared by all VMs from now on
unsafe extern "C-unwind" fn share_globals(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let shared = registry::share_globals();
        vm(state).functions.shares_globals.set(shared);
        ffi::lua_pushboolean(state, c_int::from(shared));
    }
    1
}

/// `shares_globals()` → whether they are
unsafe extern "C-unwind" fn shares_globals(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe { ffi::lua_pushboolean(state, c_int::from(registry::shares_globals())) };
    1
}

/// `shared_get(table, key)` → the value; the `__index` of shared tables
unsafe extern "C-unwind" fn shared_get(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let (Some(table), Some(key)) = (object_at::<Table>(state, 1, kind::TABLE), key_at(state, 2)) else { return 0 };
        let value = table.get(key);
        push_stored(state, vm, &value);
    }
    1
}

/// `shared_peek(table, key, known)` → the value; with a number, if it is one that each VM has for itself, and without
/// the value, if that is the known number or that of another VM's value
unsafe extern "C-unwind" fn shared_peek(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let (Some(table), Some(key)) = (object_at::<Table>(state, 1, kind::TABLE), key_at(state, 2)) else { return 0 };
        let known = ffi::lua_tonumber(state, 3);
        let value = table.get(key);
        match value.id() {
            None => {
                push_stored(state, vm, &value);
                return 1;
            }
            Some(id) if id as f64 == known => ffi::lua_pushnil(state),
            Some(_) => push_stored(state, vm, &value),
        }
        ffi::lua_pushnumber(state, value.id().unwrap_or_default() as f64);
    }
    2
}

/// `shared_private(table, key)` → a number for a value that cannot leave this VM; others find nil under the key
unsafe extern "C-unwind" fn shared_private(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let (Some(table), Some(key)) = (object_at::<Table>(state, 1, kind::TABLE), key_at(state, 2)) else { return 0 };
        let id = new_id();
        drop(table.set(key, Stored::Private(id)));
        ffi::lua_pushnumber(state, id as f64);
    }
    1
}

/// `shared_set(table, scanned, key, value)` → true, and its number, if it is a value that each VM has for itself; or
/// nil, reason, value, why
unsafe extern "C-unwind" fn shared_set(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let scanned = ffi::lua_toboolean(state, 2) != 0;
        ffi::lua_settop(state, 4);
        let (Some(table), Some(key)) = (object_at::<Table>(state, 1, kind::TABLE), key_at(state, 3)) else { return 0 };
        let id = match store(state, vm, scanned) {
            Ok(value) => {
                let id = value.id();
                drop(table.set(key, value));
                id
            }
            Err(count) => return count,
        };
        ffi::lua_pushboolean(state, 1);
        if let Some(id) = id {
            ffi::lua_pushnumber(state, id as f64);
            return 2;
        }
    }
    1
}

/// `shared_take(table, key)` → the value, which is there no longer
unsafe extern "C-unwind" fn shared_take(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let (Some(table), Some(key)) = (object_at::<Table>(state, 1, kind::TABLE), key_at(state, 2)) else { return 0 };
        let value = table.set(key, Stored::Nil);
        push_stored(state, vm, &value);
    }
    1
}

/// `shared_version(table, key)` → the value's version, the value
unsafe extern "C-unwind" fn shared_version(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let (Some(table), Some(key)) = (object_at::<Table>(state, 1, kind::TABLE), key_at(state, 2)) else { return 0 };
        let (value, version) = table.get_with_version(key);
        ffi::lua_pushnumber(state, version as f64);
        push_stored(state, vm, &value);
    }
    2
}

/// `shared_swap(table, scanned, version, key, value)` → whether it had this version still; or nil, reason, value, why
unsafe extern "C-unwind" fn shared_swap(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let (scanned, version) = (ffi::lua_toboolean(state, 2) != 0, ffi::lua_tonumber(state, 3) as u64);
        ffi::lua_settop(state, 5);
        let (Some(table), Some(key)) = (object_at::<Table>(state, 1, kind::TABLE), key_at(state, 4)) else { return 0 };
        let swapped = match store(state, vm, scanned) {
            Ok(value) => table.swap(key, version, value),
            Err(count) => return count,
        };
        ffi::lua_pushboolean(state, c_int::from(swapped));
    }
    1
}

/// `shared_len(table)` → as of `#`; the `__len` of shared tables
unsafe extern "C-unwind" fn shared_len(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(table) = object_at::<Table>(state, 1, kind::TABLE) else { return 0 };
        ffi::lua_pushnumber(state, table.len() as f64);
    }
    1
}

/// `shared_keys(table)` → a list of the keys that there are now
unsafe extern "C-unwind" fn shared_keys(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours; should a push raise, the keys are freed by the unwinding.
    unsafe {
        let Some(table) = object_at::<Table>(state, 1, kind::TABLE) else { return 0 };
        let keys = table.keys();
        ffi::lua_createtable(state, keys.len() as c_int, 0);
        for (key, place) in keys.iter().zip(1..) {
            match key {
                OwnedKey::Text(text) => push_bytes(state, text),
                OwnedKey::Number(number) => ffi::lua_pushnumber(state, *number),
                OwnedKey::Boolean(yes) => ffi::lua_pushboolean(state, c_int::from(*yes)),
            }
            ffi::lua_rawseti_(state, -2, place);
        }
    }
    1
}

/// `buffer(ctype, count, size)` → what a buffer is seen as; nothing where there is no such memory
unsafe extern "C-unwind" fn buffer(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours; the type is a string.
    unsafe {
        let ctype = String::from_utf8_lossy(string_at(state, 1)).into_owned();
        let (count, size) = (ffi::lua_tonumber(state, 2) as usize, ffi::lua_tonumber(state, 3) as usize);
        let buffer = Buffer::new(&ctype, count, size);
        drop(ctype);
        let Some(buffer) = buffer else { return 0 };
        push_new(state, buffer);
    }
    1
}

/// `buffer_memory(handle)` → where it begins, the type of its items, their number
unsafe extern "C-unwind" fn buffer_memory(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(buffer) = object_at::<Buffer>(state, 1, kind::BUFFER) else { return 0 };
        ffi::lua_pushlightuserdata(state, buffer.memory().cast());
        push_bytes(state, buffer.ctype().as_bytes());
        ffi::lua_pushnumber(state, buffer.count() as f64);
    }
    3
}

/// `failed_future(text, pool)` → a future of a job that its pool did not take
unsafe extern "C-unwind" fn failed_future(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let (text, pool) = (text(state, 1).unwrap_or_default(), text(state, 2).unwrap_or_default());
        let future = Future::new(vm.host_of(None), 0);
        let mut message = Message::default();
        outcome::failure(&mut message, &text, &text, "shutdown", Some((&pool, 0)));
        future.end(message, false);
        push_new(state, future);
    }
    1
}

/// `future_wait(ticket, list, count, slot or nil)` → whether the session waits for the end of any; if not, one has ended
unsafe extern "C-unwind" fn future_wait(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let vm = vm(state);
        let ticket = ffi::lua_tonumber(state, 1) as u64;
        let count = ffi::lua_tonumber(state, 3) as c_int;
        let slot = slot_at(state, 4);
        ffi::lua_settop(state, 2);
        let future_at = |place| {
            ffi::lua_rawgeti_(state, 2, place);
            let future = counted_at::<Future>(state, 3, kind::FUTURE);
            ffi::lua_settop(state, 2);
            future
        };
        let futures: Vec<_> = (1..=count).filter_map(future_at).collect();
        let waits = futures.iter().all(|future| future.wait(Knock::new(vm.inbox(), ticket)));
        if let (true, Some(slot)) = (waits, slot) {
            vm.adopt(slot, &futures);
        }
        if waits {
            vm.awaited.borrow_mut().insert(ticket, Awaited::Futures(futures));
        } else {
            futures.iter().for_each(|future| future.leave(vm.wait_of(ticket)));
        }
        ffi::lua_pushboolean(state, c_int::from(waits));
    }
    1
}

/// `future_outcome(future)` → true, results… or false, error, info; nothing if it has not ended
unsafe extern "C-unwind" fn future_outcome(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours; should decoding raise, the message is let go of by the unwinding.
    unsafe {
        let vm = vm(state);
        let Some(future) = object_at::<Future>(state, 1, kind::FUTURE) else { return 0 };
        let Some(outcome) = future.outcome() else { return 0 };
        let top = ffi::lua_gettop(state);
        push_message(state, vm, &outcome);
        ffi::lua_gettop(state) - top
    }
}

/// `future_status(future)` → "queued", "running", "done" or "failed"; whether somebody has asked for the outcome
unsafe extern "C-unwind" fn future_status(state: *mut lua_State) -> c_int {
    // SAFETY: a C function of ours.
    unsafe {
        let Some(future) = object_at::<Future>(state, 1, kind::FUTURE) else { return 0 };
        let (status, observed) = future.status();
        push_bytes(state, match status {
            Status::Queued => b"queued",
            Status::Running => b"running",
            Status::Done => b"done",
            Status::Failed => b"failed",
        });
        ffi::lua_pushboolean(state, c_int::from(observed));
    }
    2
}
