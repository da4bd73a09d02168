//! Handles as userdata: one for each object in each VM, counted; and what compiled code calls through the FFI.

use std::{
    ffi::{CStr, c_int, c_void},
    sync::Arc,
};

use super::{Block, pool_of, push_pool};
use crate::{
    functions::Handles,
    handles::{Channel, Counter, Mutex, Sent, Stored, kind},
    locks::Session,
    luajit::{ffi, lua_State, push_bytes, push_registered},
    vm::{HeldLock, Vm},
    wire::{Handle, Object},
};

/// How `encode`, `decode` and `changes` deal with handles.
pub(super) const HANDLES: Handles = Handles { of: handle_of, push_pool, push_object };

/// Registry names: the metatables by kind, and the handles by object, held weakly.
const KINDS: &CStr = c"msys.kinds";
const OBJECTS: &CStr = c"msys.objects";
/// Registry name of the function from a buffer's handle to its cdata.
const BUFFER_VIEW: &CStr = c"msys.buffer.view";

/// What a metatable of a handle says it is, from Lua: also that of `getmetatable`, so that nobody has the metatable.
const NAMES: [&CStr; kind::COUNT] = [
    c"",
    c"thread.mutex",
    c"thread.condition",
    c"thread.rwlock",
    c"thread.channel",
    c"thread.counter",
    c"thread.shared",
    c"thread.buffer",
    c"msys.future",
    c"msys.canceller",
];

/// Its address stands in the metatables of handles, and in no others.
static MARK: u8 = 0;

/// The payload of a handle. Compiled code passes its address.
#[repr(C)]
struct Payload {
    /// The object, of the type that `kind` tells; null once the handle is collected.
    object: *const c_void,
    kind: u32,
    counted: Option<Arc<dyn Object>>,
}

/// Makes the metatables; the table `metatables` of the module on top has them by name, for Lua to fill.
///
/// # Safety
/// In protected mode, a table on top.
pub(super) unsafe fn open(state: *mut lua_State) {
    // SAFETY: what is pushed is stored.
    unsafe {
        let module = ffi::lua_gettop(state);
        ffi::lua_createtable(state, 0, kind::COUNT as c_int);
        ffi::lua_createtable(state, kind::COUNT as c_int, 0);
        let (by_name, by_kind) = (module + 1, module + 2);
        for (name, number) in NAMES.iter().zip(0..).skip(1) {
            ffi::lua_createtable(state, 0, 8);
            let meta = ffi::lua_gettop(state);
            for field in [c"__name", c"__metatable"] {
                push_bytes(state, name.to_bytes());
                ffi::lua_setfield(state, meta, field.as_ptr());
            }
            ffi::lua_pushcclosure(state, collect, 0);
            ffi::lua_setfield(state, meta, c"__gc".as_ptr());
            ffi::lua_pushvalue(state, meta);
            ffi::lua_setfield(state, by_name, name.as_ptr());
            // By this `payload` knows it: nobody outside has the metatable, and so nobody has put it into another.
            ffi::lua_pushlightuserdata(state, (&raw const MARK).cast_mut().cast());
            ffi::lua_rawseti_(state, meta, 1);
            ffi::lua_rawseti_(state, by_kind, number);
        }
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, KINDS.as_ptr());
        ffi::lua_setfield(state, module, c"metatables".as_ptr());
        push_weak_table(state, b"v");
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, OBJECTS.as_ptr());
        ffi::lua_pushlightuserdata(state, (&raw const API).cast_mut().cast());
        ffi::lua_setfield(state, module, c"api".as_ptr());
    }
}

/// Pushes a new table that holds its keys or values weakly. May raise.
///
/// # Safety
/// Three free stack slots.
pub(super) unsafe fn push_weak_table(state: *mut lua_State, mode: &[u8]) {
    // SAFETY: one value is left.
    unsafe {
        ffi::lua_createtable(state, 0, 4);
        ffi::lua_createtable(state, 0, 1);
        push_bytes(state, mode);
        ffi::lua_setfield(state, -2, c"__mode".as_ptr());
        ffi::lua_setmetatable(state, -2);
    }
}

/// `__gc` of a handle.
unsafe extern "C-unwind" fn collect(state: *mut lua_State) -> c_int {
    // SAFETY: LuaJIT calls a finalizer with its userdata, which is a payload; it is emptied, so a later call finds
    // nothing.
    unsafe {
        if let Some(payload) = ffi::lua_touserdata(state, 1).cast::<Payload>().as_mut() {
            payload.object = std::ptr::null();
            drop(payload.counted.take());
        }
    }
    0
}

/// The payload of the handle at `at`.
///
/// # Safety
/// A valid index, three free stack slots.
unsafe fn payload<'a>(state: *mut lua_State, at: c_int) -> Option<&'a Payload> {
    // SAFETY: the metatables are on payloads alone; what is pushed is taken off.
    unsafe {
        if ffi::lua_type(state, at) != ffi::LUA_TUSERDATA || ffi::lua_getmetatable(state, at) == 0 {
            return None;
        }
        ffi::lua_rawgeti_(state, -1, 1);
        let known = ffi::lua_touserdata(state, -1).cast_const() == (&raw const MARK).cast();
        ffi::lua_settop(state, -3);
        if !known {
            return None;
        }
        ffi::lua_touserdata(state, at).cast::<Payload>().as_ref()
    }
}

/// What the userdata at `at` is a handle of.
///
/// # Safety
/// As [`payload`].
unsafe fn handle_of(state: *mut lua_State, at: c_int) -> Option<Handle> {
    // SAFETY: the caller's promise.
    unsafe {
        match payload(state, at) {
            Some(payload) => payload.counted.clone().map(Handle::Object),
            None => pool_of(state, at).map(Handle::Pool),
        }
    }
}

/// The object behind the handle at `at`, which has to be of this kind.
///
/// # Safety
/// As [`payload`]; `T` is the type of that kind. The handle stays on the stack as long as the object is used.
pub(super) unsafe fn object_at<'a, T>(state: *mut lua_State, at: c_int, kind: u32) -> Option<&'a T> {
    // SAFETY: the kind tells the type.
    unsafe {
        let payload = payload(state, at)?;
        if payload.kind == kind { payload.object.cast::<T>().as_ref() } else { None }
    }
}

/// The same, counted.
///
/// # Safety
/// As [`object_at`].
pub(super) unsafe fn counted_at<T>(state: *mut lua_State, at: c_int, kind: u32) -> Option<Arc<T>> {
    // SAFETY: the pointer is that of an `Arc` that the payload has.
    unsafe { object_at::<T>(state, at, kind).map(|object| counted(std::ptr::from_ref(object))) }
}

/// # Safety
/// The object is in an `Arc`, of which somebody has a count.
unsafe fn counted<T>(object: *const T) -> Arc<T> {
    // SAFETY: the caller's promise.
    unsafe {
        Arc::increment_strong_count(object);
        Arc::from_raw(object)
    }
}

/// Pushes the VM's one handle of an object. May raise.
///
/// # Safety
/// Five free stack slots. The object outlives the call.
pub(super) unsafe fn push_object(state: *mut lua_State, object: &Arc<dyn Object>) {
    let address = Arc::as_ptr(object).cast::<c_void>();
    // SAFETY: one value is left. The count is taken when nothing is left that raises.
    unsafe {
        let top = ffi::lua_gettop(state);
        push_registered(state, OBJECTS);
        ffi::lua_pushlightuserdata(state, address.cast_mut());
        ffi::lua_rawget_(state, top + 1);
        if ffi::lua_type(state, top + 2) == ffi::LUA_TNIL {
            ffi::lua_settop(state, top + 1);
            let payload = ffi::lua_newuserdata(state, size_of::<Payload>()).cast::<Payload>();
            payload.write(Payload { object: std::ptr::null(), kind: 0, counted: None });
            ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, KINDS.as_ptr());
            ffi::lua_rawgeti_(state, top + 3, object.kind() as c_int);
            ffi::lua_setmetatable(state, top + 2);
            ffi::lua_settop(state, top + 2);
            ffi::lua_pushlightuserdata(state, address.cast_mut());
            ffi::lua_pushvalue(state, top + 2);
            ffi::lua_rawset(state, top + 1);
            payload.write(Payload { object: address, kind: object.kind(), counted: Some(Arc::clone(object)) });
        }
        ffi::lua_replace(state, top + 1);
        if object.kind() == kind::BUFFER {
            // What Lua sees of it is cdata.
            ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, BUFFER_VIEW.as_ptr());
            ffi::lua_insert(state, top + 1);
            ffi::lua_call(state, 1, 1);
        }
    }
}

/// `set_buffer_view(function)`: from a buffer's handle to the cdata that Lua sees of it
pub(super) unsafe extern "C-unwind" fn set_buffer_view(state: *mut lua_State) -> c_int {
    // SAFETY: one argument, which `setfield` takes off.
    unsafe {
        ffi::lua_settop(state, 1);
        ffi::lua_setfield(state, ffi::LUA_REGISTRYINDEX, BUFFER_VIEW.as_ptr());
    }
    0
}

/// Pushes a new object's handle; should that raise, the object leaks.
///
/// # Safety
/// As [`push_object`].
pub(super) unsafe fn push_new<T: Object + 'static>(state: *mut lua_State, object: T) {
    let object: Arc<dyn Object> = Arc::new(object);
    // SAFETY: the caller's promise.
    unsafe { push_object(state, &object) };
}

/// What compiled Lua calls: `lua/msys/handles.lua` declares the same. Each checks what it is given: a handle may have
/// been collected, and a VM closed, when finalizers run.
#[repr(C)]
struct Api {
    lock: unsafe extern "C" fn(*const c_void, *const c_void, f64) -> c_int,
    unlock: unsafe extern "C" fn(*const c_void, *const c_void, f64) -> c_int,
    add: unsafe extern "C" fn(*const c_void, f64) -> f64,
    get: unsafe extern "C" fn(*const c_void) -> f64,
    set: unsafe extern "C" fn(*const c_void, f64) -> f64,
    cas: unsafe extern "C" fn(*const c_void, f64, f64) -> c_int,
    send: unsafe extern "C" fn(*const c_void, f64) -> c_int,
    receive: unsafe extern "C" fn(*const c_void, *mut f64) -> c_int,
}

static API: Api = Api { lock, unlock, add, get, set, cas, send, receive };

/// # Safety
/// `handle` is the payload of a handle; `T` is the type of that kind.
#[inline]
unsafe fn behind<'a, T>(handle: *const c_void, kind: u32) -> Option<&'a T> {
    // SAFETY: the kind tells the type; the object is null once the handle is collected.
    unsafe {
        let payload = handle.cast::<Payload>().as_ref()?;
        if payload.kind == kind { payload.object.cast::<T>().as_ref() } else { None }
    }
}

/// # Safety
/// `block` is the block of a VM.
#[inline]
unsafe fn vm_behind<'a>(block: *const c_void) -> Option<&'a Vm> {
    // SAFETY: as `vm` of the parent module.
    unsafe { block.cast::<Block>().as_ref()?.vm.as_ref() }
}

/// Takes a mutex that is free: 1; 0 where more is to be done.
unsafe extern "C" fn lock(block: *const c_void, handle: *const c_void, session: f64) -> c_int {
    let session = session as Session;
    // SAFETY: Lua passes the VM's block, and a handle whose kind it has checked.
    unsafe {
        let (Some(vm), Some(mutex)) = (vm_behind(block), behind::<Mutex>(handle, kind::MUTEX)) else { return 0 };
        if session == 0 || !mutex.lock.lock_fast(session) {
            return 0;
        }
        vm.locks.borrow_mut().push((session, HeldLock::Mutex(counted(mutex))));
    }
    1
}

/// Releases a mutex that nobody waits for: 1; 0 where more is to be done.
unsafe extern "C" fn unlock(block: *const c_void, handle: *const c_void, session: f64) -> c_int {
    let session = session as Session;
    // SAFETY: as `lock`.
    unsafe {
        let (Some(vm), Some(mutex)) = (vm_behind(block), behind::<Mutex>(handle, kind::MUTEX)) else { return 0 };
        if session == 0 || !mutex.lock.unlock_fast(session) {
            return 0;
        }
        vm.forget_lock(session, std::ptr::from_ref(mutex).cast());
    }
    1
}

/// Adds to a counter and gives the sum; NaN for what is no whole number.
unsafe extern "C" fn add(handle: *const c_void, value: f64) -> f64 {
    // SAFETY: as `lock`.
    let counter = unsafe { behind::<Counter>(handle, kind::COUNTER) };
    match (counter, whole(value)) {
        (Some(counter), Some(value)) => counter.add(value) as f64,
        _ => f64::NAN,
    }
}

/// The whole number that a Lua number is.
#[inline]
pub(super) fn whole(value: f64) -> Option<i64> {
    const MOST: f64 = (1u64 << 53) as f64;
    let whole = value as i64;
    (whole as f64 == value && value.abs() <= MOST).then_some(whole)
}

/// What a counter is.
unsafe extern "C" fn get(handle: *const c_void) -> f64 {
    // SAFETY: as `lock`.
    unsafe { behind::<Counter>(handle, kind::COUNTER) }.map_or(f64::NAN, |counter| counter.get() as f64)
}

/// Sets a counter, and gives what it was; NaN for what is no whole number.
unsafe extern "C" fn set(handle: *const c_void, value: f64) -> f64 {
    // SAFETY: as `lock`.
    let counter = unsafe { behind::<Counter>(handle, kind::COUNTER) };
    match (counter, whole(value)) {
        (Some(counter), Some(value)) => counter.set(value) as f64,
        _ => f64::NAN,
    }
}

/// Sets a counter if it is as expected: 1 if so, 0 if not, -1 for what is no whole number.
unsafe extern "C" fn cas(handle: *const c_void, expected: f64, new: f64) -> c_int {
    // SAFETY: as `lock`.
    let counter = unsafe { behind::<Counter>(handle, kind::COUNTER) };
    match (counter, whole(expected), whole(new)) {
        (Some(counter), Some(expected), Some(new)) => c_int::from(counter.cas(expected, new)),
        _ => -1,
    }
}

/// Sends a number: 1; 0 where more is to be done.
unsafe extern "C" fn send(handle: *const c_void, value: f64) -> c_int {
    // SAFETY: as `lock`.
    let channel = unsafe { behind::<Channel>(handle, kind::CHANNEL) };
    let sent = channel.map(|channel| channel.send(Stored::Number(value)));
    c_int::from(matches!(sent, Some(Sent::Yes)))
}

/// Receives a number: 1; 0 where the next item is none, or there is none.
unsafe extern "C" fn receive(handle: *const c_void, value: *mut f64) -> c_int {
    // SAFETY: as `lock`; the place for the number is Lua's own.
    unsafe {
        let number = behind::<Channel>(handle, kind::CHANNEL).and_then(Channel::receive_number);
        if let (Some(number), false) = (number, value.is_null()) {
            value.write(number);
            return 1;
        }
    }
    0
}
