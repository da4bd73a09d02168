//! Tables, read as they lie in memory (`layout`): compared without a call of LuaJIT's API where nothing has changed.
//!
//! Every object of the job is in the table of objects, so all that is read here is alive, whatever Lua has run.

use std::ffi::c_int;

use super::{Collector, OBJECTS, SHAPES, Step, tables::Head};
use crate::{
    layout::{self, Slot, Table, Value},
    luajit::ffi,
    wire::{Malformed, tag},
};

/// Hash parts with more nodes are asked for a key through the API, which hashes.
const MANY: usize = 64;

/// A key of a table that is compared.
#[derive(Clone, Copy)]
enum Key {
    Item(u32),
    /// By its place in the list of the shapes' keys.
    Shape(usize),
}

impl Collector<'_> {
    /// Compares items and records under a shape's keys, and the metatable, of the table that is `ordinal`.
    ///
    /// # Safety
    /// As `message`; the object of this ordinal is a table.
    pub(super) unsafe fn shaped_table(&mut self, ordinal: u32, tag: u8, head: Head) -> Step {
        // SAFETY: the table of objects holds the table.
        unsafe {
            let table = self.table_of(ordinal)?;
            let start = (self.reader, self.ordinals);
            let mut present = 0;
            for place in 1..=head.items {
                present += self.compare(ordinal, table, Key::Item(place))?;
            }
            let first = (head.shape as usize).wrapping_sub(1);
            for place in 0..head.records as usize {
                present += self.compare(ordinal, table, Key::Shape(first.wrapping_add(place)))?;
            }
            if entries(&*table) > present {
                let end = (self.reader, self.ordinals);
                (self.reader, self.ordinals) = start;
                ffi::lua_rawgeti_(self.state, OBJECTS, ordinal as c_int + 1);
                let at = ffi::lua_gettop(self.state);
                self.new_records(at, ordinal, head)?;
                ffi::lua_settop(self.state, at - 1);
                (self.reader, self.ordinals) = end;
            }
            let meta = (*table).metatable();
            let now = if meta.is_null() { Slot::NIL } else { layout::table_slot(meta) };
            let known = if tag & tag::META == 0 { Some(now.is_nil()) } else { self.is_same_slot(now)? };
            let same = match known {
                Some(same) => same,
                None => {
                    self.push_metatable(ordinal);
                    let top = ffi::lua_gettop(self.state);
                    let same = self.is_same(top)?;
                    ffi::lua_settop(self.state, top - 1);
                    same
                }
            };
            if !same {
                ffi::lua_pushnil(self.state);
                self.push_metatable(ordinal);
                self.change(tag::SET_META, ordinal);
            }
            Ok(())
        }
    }

    /// Compares what the table has under a key with what the message has next; gives 1 if there is anything now.
    #[inline]
    unsafe fn compare(&mut self, ordinal: u32, table: *const Table, key: Key) -> Step<usize> {
        // SAFETY: as `shaped_table`.
        unsafe {
            let found = match key {
                Key::Item(place) if (place as usize) < (*table).item_count() => Some((*table).item(place as usize)),
                Key::Item(_) => None,
                Key::Shape(place) => self.find(&*table, place),
            };
            let Some(now) = found else { return self.compare_pushed(ordinal, key) };
            match self.is_same_slot(now)? {
                Some(true) => {}
                Some(false) => {
                    self.push_entry(ordinal, key);
                    self.change(tag::SET, ordinal);
                }
                None => return self.compare_pushed(ordinal, key),
            }
            Ok(usize::from(!now.is_nil()))
        }
    }

    /// As `compare`, through the API.
    unsafe fn compare_pushed(&mut self, ordinal: u32, key: Key) -> Step<usize> {
        // SAFETY: key and value are pushed, and taken off.
        unsafe {
            self.push_entry(ordinal, key);
            let value = ffi::lua_gettop(self.state);
            let present = ffi::lua_type(self.state, value) != ffi::LUA_TNIL;
            if self.is_same(value)? {
                ffi::lua_settop(self.state, value - 2);
            } else {
                self.change(tag::SET, ordinal);
            }
            Ok(usize::from(present))
        }
    }

    /// Pushes a key and what the table has under it.
    unsafe fn push_entry(&mut self, ordinal: u32, key: Key) {
        // SAFETY: two values are left.
        unsafe {
            let at = ffi::lua_gettop(self.state) + 1;
            match key {
                Key::Item(place) => ffi::lua_pushnumber(self.state, f64::from(place)),
                Key::Shape(place) => {
                    ffi::lua_rawgeti_(self.state, SHAPES, place as c_int + 1);
                }
            }
            ffi::lua_rawgeti_(self.state, OBJECTS, ordinal as c_int + 1);
            ffi::lua_pushvalue(self.state, at);
            ffi::lua_rawget_(self.state, at + 1);
            ffi::lua_remove(self.state, at + 1);
        }
    }

    unsafe fn push_metatable(&mut self, ordinal: u32) {
        // SAFETY: one value is left.
        unsafe {
            let at = ffi::lua_gettop(self.state) + 1;
            ffi::lua_rawgeti_(self.state, OBJECTS, ordinal as c_int + 1);
            if ffi::lua_getmetatable(self.state, at) == 0 {
                ffi::lua_pushnil(self.state);
            }
            ffi::lua_remove(self.state, at);
        }
    }

    fn table_of(&self, ordinal: u32) -> Step<*const Table> {
        let object = self.origin.objects.get(ordinal as usize).copied().unwrap_or(std::ptr::null());
        if object.is_null() { Err(Malformed) } else { Ok(object.cast()) }
    }

    /// What the table has under a shape's key; `None` where the API has to be asked.
    #[inline]
    unsafe fn find(&mut self, table: &Table, place: usize) -> Option<Slot> {
        let (key, hint) = self.scratch.keys.get_mut(place)?;
        // SAFETY: the table is alive; the slices are read before anything else is done.
        unsafe {
            let nodes = table.nodes();
            if let Some(node) = nodes.get(*hint as usize).filter(|node| node.key == *key && !node.value.is_nil()) {
                return Some(node.value);
            }
            if nodes.len() > MANY {
                return None;
            }
            let found = nodes.iter().position(|node| node.key == *key && !node.value.is_nil());
            *hint = found.unwrap_or(0) as u32;
            Some(found.and_then(|place| nodes.get(place)).map_or(Slot::NIL, |node| node.value))
        }
    }

    /// Whether a slot holds what the message has next, which is compared inside too; `None`, with nothing read, where
    /// the value has to be pushed for that.
    #[inline]
    unsafe fn is_same_slot(&mut self, now: Slot) -> Step<Option<bool>> {
        let before = self.reader;
        let tag = self.reader.u8()?;
        // SAFETY: a string that is read is alive: its table is, and nothing has run since it was found there.
        unsafe {
            Ok(Some(match tag {
                tag::NIL => now.is_nil(),
                tag::FALSE => matches!(now.value(), Value::Boolean(false)),
                tag::TRUE => matches!(now.value(), Value::Boolean(true)),
                tag::NUMBER => {
                    let was = self.reader.f64()?;
                    matches!(now.value(), Value::Number(now) if now.to_bits() == was.to_bits() || now.is_nan() && was.is_nan())
                }
                tag::INT => {
                    let was = self.reader.int()?;
                    matches!(now.value(), Value::Number(now) if now.to_bits() == was.to_bits())
                }
                tag::STR8 | tag::STR32 => {
                    let was = self.string(tag)?;
                    matches!(now.value(), Value::String(text) if layout::bytes(text) == was)
                }
                tag::LENT => {
                    let was = self.lent()?;
                    matches!(now.value(), Value::String(text) if layout::bytes(text).as_ptr() == was)
                }
                tag::REF => {
                    let ordinal = self.reader.varint()? as usize;
                    let object = self.origin.objects.get(ordinal).copied().unwrap_or(std::ptr::null());
                    match now.value() {
                        Value::Table(table) if !object.is_null() => std::ptr::eq(table.cast(), object),
                        _ => {
                            // Of other objects, the API's address is not that of the head; and what was unpacked may be
                            // no object.
                            self.reader = before;
                            return Ok(None);
                        }
                    }
                }
                // Inside a packed value, more is asked: see `object`.
                _ if tag & tag::KIND == tag::TABLE && !self.muted => {
                    let ordinal = self.ordinals;
                    self.ordinals = self.ordinals.wrapping_add(1);
                    let object = self.origin.objects.get(ordinal as usize).copied();
                    let same = matches!(now.value(), Value::Table(table) if object == Some(table.cast()));
                    if tag & tag::DEFERRED != 0 {
                        self.scratch.deferred.push((ordinal, tag, false));
                    } else {
                        self.table(ordinal, tag)?;
                    }
                    same
                }
                _ => {
                    self.reader = before;
                    return Ok(None);
                }
            }))
        }
    }
}

/// How many entries a table has.
unsafe fn entries(table: &Table) -> usize {
    // SAFETY: the table is alive.
    unsafe {
        let items = (0..table.item_count()).filter(|place| !table.item(*place).is_nil()).count();
        items + table.nodes().iter().filter(|node| !node.value.is_nil()).count()
    }
}
