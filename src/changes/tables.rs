//! Tables: their items, records and metatables.

use std::ffi::c_int;

use super::{Collector, OBJECTS, SHAPES, Step};
use crate::{
    layout,
    luajit::{ffi, push_bytes, string_at},
    wire::tag,
};

/// How much a table has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) items: u32,
    pub(super) records: u32,
    /// Where the keys of its shape begin; 0 if each record has its key before it.
    pub(super) shape: c_int,
}

impl Collector<'_> {
    /// Reads how much a table has.
    pub(super) unsafe fn head(&mut self, tag: u8) -> Step<Head> {
        if tag & tag::SHAPED == 0 {
            return Ok(Head { items: self.reader.u32()?, records: self.reader.u32()?, shape: 0 });
        }
        let items = self.reader.varint()? as u32;
        let number = self.reader.varint()? as usize;
        if number == 0 {
            return Ok(Head { items, records: 0, shape: 0 });
        }
        let here = self.reader.remaining();
        if number <= self.scratch.shapes.len() {
            let (first, len, keys_at) = self.scratch.shapes.get(number.wrapping_sub(1)).copied().unwrap_or_default();
            if keys_at == here {
                // A second reading.
                for _ in 0..self.reader.u8()? {
                    self.reader.string()?;
                }
            }
            return Ok(Head { items, records: u32::from(len), shape: first as c_int });
        }
        let len = self.reader.u8()?;
        let first = self.scratch.shapes.last().map_or(1, |(first, len, _)| first + u32::from(*len));
        // SAFETY: the table is made when it is first needed; strings are pushed and put into it.
        unsafe {
            if ffi::lua_type(self.state, SHAPES) == ffi::LUA_TNIL {
                ffi::lua_createtable(self.state, c_int::from(len), 0);
                ffi::lua_replace(self.state, SHAPES);
            }
            for place in 0..c_int::from(len) {
                push_bytes(self.state, self.reader.string()?);
                self.scratch.keys.push((layout::string_slot(string_at(self.state, -1)), 0));
                ffi::lua_rawseti_(self.state, SHAPES, first as c_int + place);
            }
        }
        self.scratch.shapes.push((first, len, here));
        Ok(Head { items, records: u32::from(len), shape: first as c_int })
    }

    /// Compares items, records and metatable.
    ///
    /// # Safety
    /// As `message`; the object of this ordinal is a table.
    pub(super) unsafe fn table(&mut self, ordinal: u32, tag: u8) -> Step {
        // SAFETY: the table stays at `at`; what is pushed is taken off.
        unsafe {
            let head = self.head(tag)?;
            if self.functions.direct && tag & tag::SHAPED != 0 {
                return self.shaped_table(ordinal, tag, head);
            }
            ffi::lua_rawgeti_(self.state, OBJECTS, ordinal as c_int + 1);
            let at = ffi::lua_gettop(self.state);
            let start = (self.reader, self.ordinals);
            let mut present = 0u64;
            for place in 1..=head.items {
                ffi::lua_rawgeti_(self.state, at, place as c_int);
                let now = ffi::lua_gettop(self.state);
                present += u64::from(ffi::lua_type(self.state, now) != ffi::LUA_TNIL);
                if !self.is_same(now)? {
                    ffi::lua_pushnumber(self.state, f64::from(place));
                    ffi::lua_insert(self.state, -2);
                    self.change(tag::SET, ordinal);
                }
                ffi::lua_settop(self.state, now - 1);
            }
            for place in 0..head.records {
                if head.shape > 0 {
                    ffi::lua_rawgeti_(self.state, SHAPES, head.shape + place as c_int);
                } else {
                    self.push_original()?;
                }
                let key = ffi::lua_gettop(self.state);
                ffi::lua_pushvalue(self.state, key);
                ffi::lua_rawget_(self.state, at);
                present += u64::from(ffi::lua_type(self.state, key + 1) != ffi::LUA_TNIL);
                if !self.is_same(key + 1)? {
                    self.change(tag::SET, ordinal);
                }
                ffi::lua_settop(self.state, key - 1);
            }
            let mut count = 0u64;
            let top = ffi::lua_gettop(self.state);
            ffi::lua_pushnil(self.state);
            while ffi::lua_next(self.state, at) != 0 {
                count += 1;
                ffi::lua_settop(self.state, top + 1);
            }
            if count > present {
                let end = (self.reader, self.ordinals);
                (self.reader, self.ordinals) = start;
                self.new_records(at, ordinal, head)?;
                (self.reader, self.ordinals) = end;
            }
            let has_meta = ffi::lua_getmetatable(self.state, at) != 0;
            if !has_meta {
                ffi::lua_pushnil(self.state);
            }
            let meta = ffi::lua_gettop(self.state);
            let same = if tag & tag::META != 0 { self.is_same(meta)? } else { !has_meta };
            if !same {
                ffi::lua_pushnil(self.state);
                ffi::lua_insert(self.state, -2);
                self.change(tag::SET_META, ordinal);
            }
            ffi::lua_settop(self.state, at - 1);
            Ok(())
        }
    }

    /// Lists the records that the table has besides those of the message.
    pub(super) unsafe fn new_records(&mut self, at: c_int, ordinal: u32, head: Head) -> Step {
        // SAFETY: as `table`.
        unsafe {
            let known = ffi::lua_gettop(self.state) + 1;
            ffi::lua_createtable(self.state, 0, head.records as c_int);
            self.again = true;
            for _ in 0..head.items {
                self.skip()?;
            }
            for place in 0..head.records {
                if head.shape > 0 {
                    ffi::lua_rawgeti_(self.state, SHAPES, head.shape + place as c_int);
                } else {
                    self.push_key_again()?;
                }
                ffi::lua_pushboolean(self.state, 1);
                ffi::lua_rawset(self.state, known);
                self.skip()?;
            }
            self.again = false;
            ffi::lua_pushnil(self.state);
            while ffi::lua_next(self.state, at) != 0 {
                let key = known + 1;
                let item = ffi::lua_type(self.state, key) == ffi::LUA_TNUMBER && {
                    let number = ffi::lua_tonumber(self.state, key);
                    number >= 1.0 && number <= f64::from(head.items) && number.fract() == 0.0
                };
                ffi::lua_pushvalue(self.state, key);
                ffi::lua_rawget_(self.state, known);
                let new = !item && ffi::lua_type(self.state, -1) == ffi::LUA_TNIL;
                ffi::lua_settop(self.state, key + 1);
                if new {
                    ffi::lua_pushvalue(self.state, key);
                    ffi::lua_insert(self.state, key + 1);
                    self.change(tag::SET, ordinal);
                }
                ffi::lua_settop(self.state, key);
            }
            ffi::lua_settop(self.state, known - 1);
            Ok(())
        }
    }

    /// Pushes a key as it was, without comparing what is in it.
    unsafe fn push_key_again(&mut self) -> Step {
        let (reader, ordinal) = (self.reader, self.ordinals);
        // SAFETY: one value is pushed.
        unsafe {
            let tag = self.reader.u8()?;
            if tag & tag::KIND == 0 {
                return self.push_plain(tag);
            }
            self.reader = reader;
            ffi::lua_rawgeti_(self.state, OBJECTS, ordinal as c_int + 1);
            self.skip()
        }
    }
}
