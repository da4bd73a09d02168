//! What a job has changed of what it was sent: its message is read again, beside the objects that were made from it.
//!
//! Called by `host` when a synchronous job ends, through [`collect`]: an outer function that cannot raise around an
//! inner one that can. Nothing is written here; the changes are listed for `encode`, which writes them behind the
//! outcome.
//!
//! The way is the decoder's: each object is met where it was first met there, and compared with the object of that
//! ordinal, whatever has become of the one that held it. A table's keys are looked up one by one; then its entries are
//! counted, and only if there are more than were found is it asked which are new.

mod direct;
mod globals;
mod tables;

use std::{ffi::c_int, mem::take};

use crate::{
    functions::{Functions, Handles},
    layout::Slot,
    luajit::{self, ffi, lua_State, push_bytes, string_at},
    origin::Origin,
    wire::{MAX_DEPTH, MAX_KEYS, Malformed, Reader, flag, tag},
};

/// Memory that one collection needs and the next one uses again.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Ordinal, tag, and whether it is of a packed value alone.
    deferred: Vec<(u32, u8, bool)>,
    /// As the decoder's; and how much was to be read where the shape's keys stand.
    shapes: Vec<(u32, u8, usize)>,
    /// The shapes' keys, one after the other, and at which node each was last found.
    keys: Vec<(Slot, u32)>,
}

struct Collector<'a> {
    state: *mut lua_State,
    functions: &'a Functions,
    handles: Handles,
    origin: &'a Origin,
    reader: Reader<'a>,
    scratch: &'a mut Scratch,
    deferred_next: usize,
    flags: u8,
    ordinals: u32,
    keys: c_int,
    /// The keys seen so far are pushed, not made known: a second reading of the same bytes.
    again: bool,
    changes: c_int,
    /// What is being read is inside a packed value, and seen by nobody else: what unpacking has made of it is no
    /// change.
    muted: bool,
    /// What was sent is asked for, not what has changed of it.
    roots: bool,
}

/// Stack places in the inner function, behind its argument: the table of the job's objects, the list of changes or nil,
/// the set of names of globals that were sent, the table of the shapes' keys, the message's keys.
const OBJECTS: c_int = 2;
const CHANGES: c_int = 3;
const NAMES: c_int = 4;
const SHAPES: c_int = 5;
const FIRST_KEY: c_int = 6;

type Step<T = ()> = Result<T, Malformed>;

/// Collecting ended in an error, whose value is on top of the stack.
#[derive(Clone, Copy, Debug)]
pub struct Raised;

/// What [`collect`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The list of changes, or nil if there are none: pushes that, and gives the number of changes.
    Changes,
    /// What the job was sent, as it is now: pushes and counts those values.
    Roots,
}

/// Takes the table of the job's objects off, and pushes what is wanted.
///
/// # Safety
/// `state` is the VM of `functions`, on this thread, with two free slots; `inner` is the stack index of [`inner`] as a
/// C function; the table that belongs to `origin` is on top.
pub unsafe fn collect(
    state: *mut lua_State,
    inner: c_int,
    functions: &Functions,
    handles: Handles,
    origin: &Origin,
    scratch: &mut Scratch,
    wanted: Wanted,
) -> Result<c_int, Raised> {
    scratch.deferred.clear();
    scratch.shapes.clear();
    scratch.keys.clear();
    let mut collector = Collector {
        state,
        functions,
        handles,
        origin,
        reader: Reader::new(&origin.bytes),
        scratch,
        deferred_next: 0,
        flags: 0,
        ordinals: 0,
        keys: 0,
        again: false,
        changes: 0,
        muted: false,
        roots: wanted == Wanted::Roots,
    };
    // SAFETY: pushes within the promised slots, neither of which allocates; the collector outlives the protected call.
    unsafe {
        ffi::lua_pushvalue(state, inner);
        ffi::lua_insert(state, -2);
        ffi::lua_pushlightuserdata(state, (&raw mut collector).cast());
        ffi::lua_insert(state, -2);
        let top = ffi::lua_gettop(state) - 3;
        if ffi::lua_pcall(state, 2, ffi::LUA_MULTRET, 0) != ffi::LUA_OK {
            return Err(Raised);
        }
        Ok(if wanted == Wanted::Roots { ffi::lua_gettop(state) - top } else { collector.changes })
    }
}

/// The protected part: its arguments are the collector and the table of objects; gives the list of changes.
///
/// # Safety
/// Called by [`collect`] only.
pub unsafe extern "C-unwind" fn inner(state: *mut lua_State) -> c_int {
    // SAFETY: the argument is the collector in `collect`'s frame, which waits for this call and does not touch it.
    unsafe {
        let collector = &mut *ffi::lua_touserdata(state, 1).cast::<Collector<'_>>();
        collector.state = state;
        match collector.message() {
            Ok(count) if collector.roots => count,
            Ok(_) => {
                ffi::lua_pushvalue(state, CHANGES);
                1
            }
            Err(Malformed) => {
                push_bytes(state, b"msys: malformed message");
                ffi::lua_error(state)
            }
        }
    }
}

impl<'a> Collector<'a> {
    /// # Safety
    /// (this and the following) In the protected call.
    unsafe fn message(&mut self) -> Step<c_int> {
        // SAFETY: room is made before values are pushed.
        unsafe {
            self.reader.u8()?;
            self.flags = self.reader.u8()?;
            self.keys = c_int::from(self.reader.u8()?);
            self.reader.u32()?;
            let count = self.reader.varint()? as c_int;
            let room = count.saturating_add((MAX_DEPTH * 6 + MAX_KEYS + 40) as c_int);
            ffi::luaL_checkstack_(self.state, room, c"too many values".as_ptr());
            ffi::lua_settop(self.state, FIRST_KEY + take(&mut self.keys).min(MAX_KEYS as c_int) - 1);
            let base = ffi::lua_gettop(self.state);
            for _ in 0..count {
                // Nothing holds an argument: only what is in it can have changed.
                self.push_original()?;
                if !self.roots {
                    ffi::lua_settop(self.state, base);
                }
            }
            if self.roots {
                return Ok(count);
            }
            loop {
                self.bodies()?;
                if self.reader.remaining() == 0 {
                    break;
                }
                self.global()?;
                ffi::lua_settop(self.state, base);
            }
            if self.flags & flag::ENV != 0 {
                self.new_globals()?;
            }
            Ok(count)
        }
    }

    unsafe fn bodies(&mut self) -> Step {
        // SAFETY: each object is pushed, compared and taken off.
        unsafe {
            while let Some((ordinal, tag, muted)) = self.scratch.deferred.get(self.deferred_next).copied() {
                self.deferred_next += 1;
                self.muted = muted;
                ffi::lua_rawgeti_(self.state, OBJECTS, ordinal as c_int + 1);
                let at = ffi::lua_gettop(self.state);
                if tag & tag::KIND == tag::TABLE {
                    self.table(ordinal, tag)?;
                } else {
                    self.function(at, ordinal, tag)?;
                }
                ffi::lua_settop(self.state, at - 1);
            }
            self.muted = false;
            Ok(())
        }
    }

    /// Lists a change; key and value are on top, and are taken off.
    unsafe fn change(&mut self, tag: u8, ordinal: u32) {
        // SAFETY: the list is made when it is first needed.
        unsafe {
            if self.muted {
                ffi::lua_settop(self.state, -3);
                return;
            }
            if ffi::lua_type(self.state, CHANGES) == ffi::LUA_TNIL {
                ffi::lua_createtable(self.state, 8, 0);
                ffi::lua_replace(self.state, CHANGES);
            }
            let place = self.changes * 4;
            ffi::lua_rawseti_(self.state, CHANGES, place + 4);
            ffi::lua_rawseti_(self.state, CHANGES, place + 3);
            ffi::lua_pushnumber(self.state, f64::from(tag));
            ffi::lua_rawseti_(self.state, CHANGES, place + 1);
            ffi::lua_pushnumber(self.state, f64::from(ordinal));
            ffi::lua_rawseti_(self.state, CHANGES, place + 2);
            self.changes += 1;
        }
    }

    /// Whether the value at `at` is what the message has next; what the message has next is compared inside too.
    unsafe fn is_same(&mut self, at: c_int) -> Step<bool> {
        let tag = self.reader.u8()?;
        // SAFETY: `at` is a valid index; what is pushed is taken off.
        unsafe {
            let kind = ffi::lua_type(self.state, at);
            let is = |other: c_int| kind == other;
            Ok(match tag {
                tag::NIL => is(ffi::LUA_TNIL),
                tag::FALSE => is(ffi::LUA_TBOOLEAN) && ffi::lua_toboolean(self.state, at) == 0,
                tag::TRUE => is(ffi::LUA_TBOOLEAN) && ffi::lua_toboolean(self.state, at) != 0,
                tag::NUMBER => {
                    let (was, number) = (self.reader.f64()?, is(ffi::LUA_TNUMBER));
                    let now = ffi::lua_tonumber(self.state, at);
                    number && (now.to_bits() == was.to_bits() || now.is_nan() && was.is_nan())
                }
                tag::INT => {
                    let was = self.reader.int()?;
                    is(ffi::LUA_TNUMBER) && ffi::lua_tonumber(self.state, at).to_bits() == was.to_bits()
                }
                tag::STR8 | tag::STR32 => {
                    let was = self.string(tag)?;
                    is(ffi::LUA_TSTRING) && string_at(self.state, at) == was
                }
                tag::LENT => {
                    let was = self.lent()?;
                    is(ffi::LUA_TSTRING) && string_at(self.state, at).as_ptr() == was
                }
                tag::LIGHT => {
                    let was = self.reader.u64()?;
                    is(ffi::LUA_TLIGHTUSERDATA) && ffi::lua_touserdata(self.state, at) as u64 == was
                }
                tag::REF => {
                    let ordinal = self.reader.varint()?;
                    self.push_kept(ordinal as u32);
                    let same = ffi::lua_rawequal(self.state, at, -1) != 0;
                    ffi::lua_settop(self.state, -2);
                    same
                }
                _ if tag & tag::KIND == tag::PACKED => {
                    // What was unpacked may be no object.
                    let ordinal = self.ordinals;
                    self.push_kept(ordinal);
                    let object = ffi::lua_gettop(self.state);
                    let same = ffi::lua_rawequal(self.state, at, object) != 0;
                    self.object(object, tag)?;
                    ffi::lua_settop(self.state, object - 1);
                    same
                }
                _ if tag & tag::KIND != 0 => {
                    let ordinal = self.ordinals;
                    let same = self.is_object(at, ordinal);
                    if same {
                        self.object(at, tag)?;
                    } else {
                        ffi::lua_rawgeti_(self.state, OBJECTS, ordinal as c_int + 1);
                        let object = ffi::lua_gettop(self.state);
                        self.object(object, tag)?;
                        ffi::lua_settop(self.state, object - 1);
                    }
                    same
                }
                _ => {
                    self.push_plain(tag)?;
                    let same = ffi::lua_rawequal(self.state, at, -1) != 0;
                    ffi::lua_settop(self.state, -2);
                    same
                }
            })
        }
    }

    /// Pushes an object of the job's.
    unsafe fn push_kept(&mut self, ordinal: u32) {
        // SAFETY: one value is pushed.
        unsafe {
            ffi::lua_rawgeti_(self.state, OBJECTS, (ordinal as c_int).wrapping_add(1));
            luajit::nil_for_nothing(self.state);
        }
    }

    unsafe fn is_object(&self, at: c_int, ordinal: u32) -> bool {
        // SAFETY: a valid index.
        let object = unsafe { ffi::lua_topointer(self.state, at) };
        !object.is_null() && self.origin.objects.get(ordinal as usize) == Some(&object)
    }

    /// The bytes of the string made from one that was lent, by address: the table of objects keeps it.
    fn lent(&mut self) -> Step<*const u8> {
        let number = self.reader.varint()? as usize;
        self.origin.strings.get(number).copied().ok_or(Malformed)
    }

    fn string(&mut self, tag: u8) -> Step<&'a [u8]> {
        let len = if tag == tag::STR8 { usize::from(self.reader.u8()?) } else { self.reader.u32()? as usize };
        self.reader.take(len)
    }

    /// Pushes what the message has next, as it was made from it; its contents are compared.
    unsafe fn push_original(&mut self) -> Step {
        let tag = self.reader.u8()?;
        // SAFETY: one value is pushed.
        unsafe {
            if tag & tag::KIND != 0 {
                self.push_kept(self.ordinals);
                let at = ffi::lua_gettop(self.state);
                self.object(at, tag)
            } else {
                self.push_plain(tag)
            }
        }
    }

    /// Pushes a value that has no contents of its own here.
    unsafe fn push_plain(&mut self, tag: u8) -> Step {
        // SAFETY: one value is pushed; a module's `__index` may raise, as it may when it is decoded.
        unsafe {
            match tag {
                tag::NIL => ffi::lua_pushnil(self.state),
                tag::FALSE => ffi::lua_pushboolean(self.state, 0),
                tag::TRUE => ffi::lua_pushboolean(self.state, 1),
                tag::NUMBER => ffi::lua_pushnumber(self.state, self.reader.f64()?),
                tag::INT => ffi::lua_pushnumber(self.state, self.reader.int()?),
                tag::STR8 | tag::STR32 => {
                    push_bytes(self.state, self.string(tag)?);
                }
                tag::LIGHT => {
                    let pointer = self.reader.u64()? as usize;
                    ffi::lua_pushlightuserdata(self.state, pointer as *mut _);
                }
                tag::LENT => {
                    let number = self.reader.varint()?;
                    ffi::lua_rawgeti_(self.state, OBJECTS, (-1 as c_int).wrapping_sub(number as c_int));
                }
                tag::KEY => {
                    push_bytes(self.state, self.reader.string()?);
                    if !self.again {
                        ffi::lua_pushvalue(self.state, -1);
                        ffi::lua_replace(self.state, FIRST_KEY + self.keys);
                        self.keys += 1;
                    }
                }
                tag::KEYREF => {
                    let number = c_int::from(self.reader.u8()?);
                    if number >= self.keys {
                        return Err(Malformed);
                    }
                    ffi::lua_pushvalue(self.state, FIRST_KEY + number);
                }
                tag::POOL => (self.handles.push_pool)(self.state, self.reader.u32()?),
                tag::HANDLE => {
                    let number = self.reader.varint()? as usize;
                    let object = self.origin.handles.get(number).ok_or(Malformed)?;
                    (self.handles.push_object)(self.state, object);
                }
                tag::REF => {
                    let ordinal = self.reader.varint()?;
                    self.push_kept(ordinal as u32);
                }
                tag::NAMED => {
                    let (module, field) = (self.reader.string()?, self.reader.string()?);
                    if module == b"_G" && field.is_empty() && self.flags & flag::ENV != 0 {
                        ffi::lua_rawgeti_(self.state, OBJECTS, 0);
                        return Ok(());
                    }
                    ffi::lua_getfield_(self.state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
                    push_bytes(self.state, module);
                    ffi::lua_rawget_(self.state, -2);
                    ffi::lua_remove(self.state, -2);
                    if !field.is_empty() && ffi::lua_type(self.state, -1) == ffi::LUA_TTABLE {
                        push_bytes(self.state, field);
                        ffi::lua_gettable_(self.state, -2);
                        ffi::lua_remove(self.state, -2);
                    }
                }
                _ => return Err(Malformed),
            }
            Ok(())
        }
    }

    /// Compares the contents of the object at `at`, the next to be numbered, with the message's.
    unsafe fn object(&mut self, at: c_int, tag: u8) -> Step {
        let ordinal = self.ordinals;
        self.ordinals = self.ordinals.wrapping_add(1);
        // What is met again may be seen from outside of the packed value that it was met in.
        let muted = self.muted;
        self.muted &= tag & tag::SHARED == 0;
        // SAFETY: the object of that ordinal is at `at`, so it is of the kind that its tag says.
        let compared = unsafe { self.contents(at, ordinal, tag) };
        self.muted = muted;
        compared
    }

    unsafe fn contents(&mut self, at: c_int, ordinal: u32, tag: u8) -> Step {
        // SAFETY: as `object`.
        unsafe {
            match tag & tag::KIND {
                tag::TABLE if tag & tag::DEFERRED == 0 => self.table(ordinal, tag),
                tag::FUNC => {
                    self.reader.varint()?;
                    if tag & tag::DEFERRED == 0 {
                        return self.function(at, ordinal, tag);
                    }
                    self.scratch.deferred.push((ordinal, tag, self.muted));
                    Ok(())
                }
                tag::TABLE => {
                    self.scratch.deferred.push((ordinal, tag, self.muted));
                    Ok(())
                }
                tag::CDATA => self.cdata(at, ordinal),
                tag::PACKED => {
                    // What it was made from is the object's own business; but there may be what others see too.
                    self.reader.string()?;
                    self.muted = true;
                    self.push_original()?;
                    ffi::lua_settop(self.state, -2);
                    Ok(())
                }
                _ => Err(Malformed),
            }
        }
    }

    /// Passes a value without comparing it.
    unsafe fn skip(&mut self) -> Step {
        let tag = self.reader.u8()?;
        // SAFETY: a pushed value is taken off.
        unsafe {
            match tag & tag::KIND {
                0 => {
                    self.push_plain(tag)?;
                    ffi::lua_settop(self.state, -2);
                    return Ok(());
                }
                tag::TABLE => {
                    self.ordinals = self.ordinals.wrapping_add(1);
                    if tag & tag::DEFERRED != 0 {
                        return Ok(());
                    }
                    let head = self.head(tag)?;
                    let values = if head.shape > 0 { head.records } else { 2 * head.records };
                    for _ in 0..u64::from(head.items) + u64::from(values) {
                        self.skip()?;
                    }
                    if tag & tag::META != 0 {
                        self.skip()?;
                    }
                }
                tag::FUNC => {
                    self.ordinals = self.ordinals.wrapping_add(1);
                    self.reader.varint()?;
                    if tag & tag::DEFERRED != 0 {
                        return Ok(());
                    }
                    if tag & tag::ENV != 0 {
                        self.skip()?;
                    }
                    for _ in 0..self.reader.u8()? {
                        match self.reader.u8()? {
                            tag::CELLREF => drop(self.reader.varint()?),
                            _ => self.skip()?,
                        }
                    }
                }
                tag::CDATA => {
                    self.ordinals = self.ordinals.wrapping_add(1);
                    self.reader.string()?;
                    self.reader.string()?;
                }
                tag::PACKED => {
                    self.ordinals = self.ordinals.wrapping_add(1);
                    self.reader.string()?;
                    self.skip()?;
                }
                _ => return Err(Malformed),
            }
        }
        Ok(())
    }

    /// Compares environment and cells.
    unsafe fn function(&mut self, at: c_int, ordinal: u32, tag: u8) -> Step {
        // SAFETY: the function stays at `at`; what is pushed is taken off.
        unsafe {
            ffi::lua_getfenv(self.state, at);
            let now = ffi::lua_gettop(self.state);
            let same = if tag & tag::ENV != 0 {
                self.is_same(now)?
            } else {
                ffi::lua_rawgeti_(self.state, OBJECTS, 0);
                let environment = ffi::lua_topointer(self.state, now + 1);
                ffi::lua_settop(self.state, now);
                let expected = if environment.is_null() { self.functions.globals } else { environment };
                std::ptr::eq(ffi::lua_topointer(self.state, now), expected)
            };
            if !same {
                ffi::lua_pushnil(self.state);
                ffi::lua_insert(self.state, -2);
                self.change(tag::SET_ENV, ordinal);
            }
            ffi::lua_settop(self.state, now - 1);
            for upvalue in 1..=self.reader.u8()? {
                if self.reader.u8()? == tag::CELLREF {
                    self.reader.varint()?;
                    continue;
                }
                if ffi::lua_getupvalue(self.state, at, c_int::from(upvalue)).is_null() {
                    return Err(Malformed);
                }
                if !self.is_same(now)? {
                    ffi::lua_pushnumber(self.state, f64::from(upvalue));
                    ffi::lua_insert(self.state, -2);
                    self.change(tag::SET_CELL, ordinal);
                }
                ffi::lua_settop(self.state, now - 1);
            }
            Ok(())
        }
    }

    /// Compares the bytes of an FFI object that can be changed: one made of many numbers.
    unsafe fn cdata(&mut self, at: c_int, ordinal: u32) -> Step {
        let name = self.reader.string()?;
        let was = self.reader.string()?;
        if !name.contains(&b'[') && !name.starts_with(b"struct ") && !name.starts_with(b"union ") {
            return Ok(());
        }
        // SAFETY: a function and its argument become two strings. The call may raise.
        unsafe {
            let top = ffi::lua_gettop(self.state);
            luajit::push_registered(self.state, luajit::CDATA_PACK);
            ffi::lua_pushvalue(self.state, at);
            ffi::lua_call(self.state, 1, 2);
            if ffi::lua_type(self.state, top + 2) == ffi::LUA_TSTRING && string_at(self.state, top + 2) != was {
                self.change(tag::SET_BYTES, ordinal);
            }
            ffi::lua_settop(self.state, top);
            Ok(())
        }
    }
}
