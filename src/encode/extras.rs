//! What stands behind the values: the globals that a job's functions name, and the changes that an outcome brings.

use std::ffi::c_int;

use super::{Encoder, Step};
use crate::{
    luajit::{ffi, push_bytes, string_at},
    wire::{flag, put_string, put_varint, tag},
};

impl Encoder<'_> {
    /// Writes the next global that the message's functions name and this VM has; false if there is none left.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn next_global(&mut self) -> Step<bool> {
        while let Some(name) = self.scratch.naming.get(self.next_name).copied() {
            self.next_name += 1;
            // SAFETY: the message keeps the code and so the name. What is pushed is taken off.
            unsafe {
                let at = ffi::lua_gettop(self.state) + 1;
                push_bytes(self.state, &*name);
                let written = self.global(at, name)?;
                ffi::lua_settop(self.state, at - 1);
                if written {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Writes the global whose name is at `at`, unless there is none, or it is there.
    unsafe fn global(&mut self, at: c_int, name: *const [u8]) -> Step<bool> {
        // SAFETY: as `next_global`.
        unsafe {
            // Equal short strings are one object, and the functions keep this one alive.
            let address = string_at(self.state, at).as_ptr();
            if self.scratch.globals.contains(&address) {
                return Ok(false);
            }
            self.scratch.globals.push(address);
            if let Some((_, why)) = self.scratch.left_out.iter().find(|(other, _)| **other == *name) {
                self.bytes.push(tag::LEFT_OUT);
                put_string(&mut self.bytes, &*name);
                put_string(&mut self.bytes, why.as_bytes());
                self.flags |= flag::ENV;
                return Ok(true);
            }
            self.push_global(at);
            if ffi::lua_type(self.state, at + 1) == ffi::LUA_TNIL {
                return Ok(self.left_out_here(at));
            }
            self.flags |= flag::ENV;
            self.bytes.push(tag::GLOBAL);
            put_string(&mut self.bytes, &*name);
            self.global = Some(name);
            self.value(at + 1, 0)?;
            self.bodies()?;
            self.global = None;
            Ok(true)
        }
    }

    /// Whether the global whose name is at `name` was left out of the job that is running here: so it is of jobs of
    /// that job.
    unsafe fn left_out_here(&mut self, name: c_int) -> bool {
        // SAFETY: tables are asked for keys. What is pushed is taken off by the caller.
        unsafe {
            if ffi::lua_type(self.state, self.environment) != ffi::LUA_TTABLE
                || ffi::lua_getmetatable(self.state, self.environment) == 0
            {
                return false;
            }
            push_bytes(self.state, b"left_out");
            ffi::lua_rawget_(self.state, -2);
            if ffi::lua_type(self.state, -1) != ffi::LUA_TTABLE {
                return false;
            }
            ffi::lua_pushvalue(self.state, name);
            ffi::lua_rawget_(self.state, -2);
            if ffi::lua_type(self.state, -1) != ffi::LUA_TSTRING {
                return false;
            }
            self.bytes.push(tag::LEFT_OUT);
            put_string(&mut self.bytes, string_at(self.state, name));
            put_string(&mut self.bytes, string_at(self.state, -1));
            self.flags |= flag::ENV;
            true
        }
    }

    /// Pushes the value of the global whose name is at `name`: what a job here has of its own, or the VM's.
    unsafe fn push_global(&mut self, name: c_int) {
        // SAFETY: tables are asked for a key; one value is left.
        unsafe {
            if ffi::lua_type(self.state, self.environment) == ffi::LUA_TTABLE {
                ffi::lua_pushvalue(self.state, name);
                ffi::lua_rawget_(self.state, self.environment);
                if ffi::lua_type(self.state, -1) != ffi::LUA_TNIL {
                    return;
                }
                ffi::lua_settop(self.state, -2);
            }
            self.functions.push_globals(self.state);
            ffi::lua_pushvalue(self.state, name);
            ffi::lua_rawget_(self.state, -2);
            ffi::lua_remove(self.state, -2);
        }
    }

    /// After a refusal, whose value is on top: if it was a global's, that one is left out from now on.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn leave_out(&mut self) -> bool {
        let Some(name) = self.global else { return false };
        // SAFETY: the message keeps the code and so the name; the frame of the function is cleared by the caller.
        unsafe {
            let why = match self.scratch.why() {
                Some(why) => why.to_owned(),
                None => {
                    let refused = ffi::lua_gettop(self.state);
                    push_bytes(self.state, &*name);
                    self.push_global(refused + 1);
                    let itself = ffi::lua_rawequal(self.state, refused, refused + 2) != 0;
                    self.functions.push_kind(self.state, refused);
                    let kind = String::from_utf8_lossy(string_at(self.state, refused + 3));
                    if itself { kind.into_owned() } else { format!("it refers to a {kind}") }
                }
            };
            self.scratch.left_out.push(((*name).to_vec(), why));
            true
        }
    }

    /// Writes the changes listed at `list`, each of which is four values there: the tag, the ordinal, a key, a value.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn changes(&mut self, list: c_int, count: c_int) -> Step {
        // SAFETY: `changes` has made the list.
        unsafe {
            let base = ffi::lua_gettop(self.state);
            for change in 0..count {
                for field in 1..=4 {
                    ffi::lua_rawgeti_(self.state, list, change * 4 + field);
                }
                let kind = ffi::lua_tonumber(self.state, base + 1) as u8;
                self.bytes.push(kind);
                if kind != tag::SET_GLOBAL {
                    put_varint(&mut self.bytes, ffi::lua_tonumber(self.state, base + 2) as u64);
                }
                match kind {
                    tag::SET | tag::SET_GLOBAL => {
                        self.key(base + 3, 0)?;
                        self.value(base + 4, 0)?;
                    }
                    tag::SET_CELL => {
                        self.bytes.push(ffi::lua_tonumber(self.state, base + 3) as u8);
                        self.value(base + 4, 0)?;
                    }
                    tag::SET_BYTES => put_string(&mut self.bytes, string_at(self.state, base + 4)),
                    _ => self.value(base + 4, 0)?,
                }
                ffi::lua_settop(self.state, base);
                self.bodies()?;
            }
            Ok(())
        }
    }
}
