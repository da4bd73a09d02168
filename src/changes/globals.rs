//! The globals that came along with a job, and those that it has assigned.

use std::ffi::c_int;

use super::{Collector, NAMES, OBJECTS, Step};
use crate::{
    luajit::{ffi, push_bytes, string_at},
    wire::{Malformed, tag},
};

impl Collector<'_> {
    /// Compares a global that came along.
    ///
    /// # Safety
    /// As `message`.
    pub(super) unsafe fn global(&mut self) -> Step {
        let tag = self.reader.u8()?;
        // SAFETY: what is pushed is taken off by the caller.
        unsafe {
            let name = ffi::lua_gettop(self.state) + 1;
            push_bytes(self.state, self.reader.string()?);
            if tag == tag::LEFT_OUT {
                self.reader.string()?;
            } else if tag != tag::GLOBAL {
                return Err(Malformed);
            }
            if ffi::lua_type(self.state, NAMES) == ffi::LUA_TNIL {
                ffi::lua_createtable(self.state, 0, 4);
                ffi::lua_replace(self.state, NAMES);
            }
            ffi::lua_pushvalue(self.state, name);
            ffi::lua_pushboolean(self.state, 1);
            ffi::lua_rawset(self.state, NAMES);
            if tag == tag::LEFT_OUT {
                // If the job has assigned it, that is found among the new ones.
                ffi::lua_pushvalue(self.state, name);
                ffi::lua_pushnil(self.state);
                ffi::lua_rawset(self.state, NAMES);
                return Ok(());
            }
            ffi::lua_rawgeti_(self.state, OBJECTS, 0);
            ffi::lua_pushvalue(self.state, name);
            ffi::lua_rawget_(self.state, name + 1);
            ffi::lua_remove(self.state, name + 1);
            let same = self.is_same(name + 1)?;
            if !(same || self.is_own_global(name)) {
                self.change(tag::SET_GLOBAL, 0);
            }
            Ok(())
        }
    }

    /// Whether this VM has a global of its own by the name at `name`, which is why the job did not get the one that
    /// came along; and the job's, which is behind the name, is that, or nil where it sees this VM's behind its own.
    unsafe fn is_own_global(&self, name: c_int) -> bool {
        // SAFETY: what is pushed is taken off.
        unsafe {
            let top = ffi::lua_gettop(self.state);
            self.functions.push_globals(self.state);
            ffi::lua_pushvalue(self.state, name);
            ffi::lua_rawget_(self.state, -2);
            let own = ffi::lua_gettop(self.state);
            let has = ffi::lua_type(self.state, own) != ffi::LUA_TNIL;
            let same = ffi::lua_type(self.state, name + 1) == ffi::LUA_TNIL
                || ffi::lua_rawequal(self.state, name + 1, own) != 0;
            ffi::lua_settop(self.state, top);
            has && same
        }
    }

    /// Lists the globals that the job has assigned and that did not come along.
    ///
    /// # Safety
    /// As `message`.
    pub(super) unsafe fn new_globals(&mut self) -> Step {
        // SAFETY: what is pushed is taken off.
        unsafe {
            let base = ffi::lua_gettop(self.state);
            let environment = base + 1;
            ffi::lua_rawgeti_(self.state, OBJECTS, 0);
            if ffi::lua_type(self.state, environment) != ffi::LUA_TTABLE {
                return Err(Malformed);
            }
            let key = base + 3;
            self.functions.push_globals(self.state);
            ffi::lua_pushnil(self.state);
            while ffi::lua_next(self.state, environment) != 0 {
                let value = key + 1;
                // An open environment begins as a copy of the globals, with itself as `_G`.
                ffi::lua_pushvalue(self.state, key);
                ffi::lua_rawget_(self.state, base + 2);
                let mut old = ffi::lua_rawequal(self.state, value, value + 1) != 0
                    || ffi::lua_rawequal(self.state, value, environment) != 0
                        && ffi::lua_type(self.state, key) == ffi::LUA_TSTRING
                        && string_at(self.state, key) == b"_G";
                old |= self.is_named(key);
                ffi::lua_settop(self.state, value);
                if !old {
                    ffi::lua_pushvalue(self.state, key);
                    ffi::lua_insert(self.state, value);
                    self.change(tag::SET_GLOBAL, 0);
                }
                ffi::lua_settop(self.state, key);
            }
            self.removed_globals(environment)?;
            ffi::lua_settop(self.state, base);
            Ok(())
        }
    }
    /// Lists the globals that the job has set to nil, and that it saw behind its environment or in a copy there
    /// (`lua/msys/environment.lua`).
    unsafe fn removed_globals(&mut self, environment: c_int) -> Step {
        // SAFETY: what is pushed is taken off by the caller.
        unsafe {
            if ffi::lua_getmetatable(self.state, environment) == 0 {
                return Ok(());
            }
            let meta = ffi::lua_gettop(self.state);
            for field in [&b"removed"[..], b"copied"] {
                push_bytes(self.state, field);
                ffi::lua_rawget_(self.state, meta);
                if ffi::lua_type(self.state, -1) != ffi::LUA_TTABLE {
                    ffi::lua_settop(self.state, meta);
                    continue;
                }
                let key = meta + 2;
                ffi::lua_pushnil(self.state);
                while ffi::lua_next(self.state, meta + 1) != 0 {
                    ffi::lua_pushvalue(self.state, key);
                    ffi::lua_rawget_(self.state, environment);
                    let removed = ffi::lua_type(self.state, -1) == ffi::LUA_TNIL && !self.is_named(key);
                    ffi::lua_settop(self.state, key);
                    if removed {
                        ffi::lua_pushvalue(self.state, key);
                        ffi::lua_pushnil(self.state);
                        self.change(tag::SET_GLOBAL, 0);
                    }
                }
                ffi::lua_settop(self.state, meta);
            }
            Ok(())
        }
    }

    /// Whether a global of the name at `key` came along.
    unsafe fn is_named(&self, key: c_int) -> bool {
        // SAFETY: what is pushed is taken off.
        unsafe {
            if ffi::lua_type(self.state, NAMES) != ffi::LUA_TTABLE {
                return false;
            }
            ffi::lua_pushvalue(self.state, key);
            ffi::lua_rawget_(self.state, NAMES);
            let named = ffi::lua_type(self.state, -1) != ffi::LUA_TNIL;
            ffi::lua_settop(self.state, -2);
            named
        }
    }
}
