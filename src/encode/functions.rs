//! Lua functions: code, environment, cells.

use std::{
    ffi::{c_int, c_void},
    sync::Arc,
};

use super::{Encoder, Purpose, Refusal, SeenCell, Step};
use crate::{
    code::{self, Code},
    functions::write_dump,
    luajit::{ffi, lua_upvalueid, push_bytes},
    usage::Usage,
    wire::{flag, put_varint, tag},
};

impl Encoder<'_> {
    /// Writes the function at `at`.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn function(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: a function at `at`; what is pushed is taken off again.
        unsafe {
            let object = ffi::lua_topointer(self.state, at);
            if self.again(object)? || self.own(object) || self.named(object) {
                return Ok(());
            }
            if ffi::lua_iscfunction(self.state, at) != 0 {
                return self.refuse_unless_named(at);
            }
            let code = self.code(at)?;
            let tag_at = self.begin(object, at)?;
            ffi::lua_getfenv(self.state, at);
            let env_at = ffi::lua_gettop(self.state);
            let own_env = !self.functions.is_globals(self.state, env_at);
            if let Purpose::Job { capture, .. } = self.request.purpose {
                let globals = if own_env { self.push_globals_behind(env_at) } else { Some(env_at) };
                self.note_usage(at, code, globals, capture);
            }
            ffi::lua_settop(self.state, env_at - 1);
            let deferred = self.is_deep(depth)?;
            let env = if own_env { tag::ENV } else { 0 };
            let later = if deferred { tag::DEFERRED } else { 0 };
            self.bytes.push(tag::FUNC | env | later);
            put_varint(&mut self.bytes, code as u64);
            if deferred {
                self.defer(at);
                return Ok(());
            }
            self.cells_of(at, tag_at, depth)
        }
    }

    /// Pushes what is behind the environment at `env`, by the `__index` of metatables: the globals, if they are.
    unsafe fn push_globals_behind(&mut self, env: c_int) -> Option<c_int> {
        /// As far as is looked.
        const CHAIN: usize = 8;
        // SAFETY: tables are asked for keys. What is pushed stays until the caller has looked at it.
        unsafe {
            let mut at = env;
            for _ in 0..CHAIN {
                if ffi::lua_getmetatable(self.state, at) == 0 {
                    return None;
                }
                push_bytes(self.state, b"__index");
                ffi::lua_rawget_(self.state, -2);
                at = ffi::lua_gettop(self.state);
                if ffi::lua_type(self.state, at) != ffi::LUA_TTABLE {
                    return None;
                } else if self.functions.is_globals(self.state, at) {
                    return Some(at);
                }
            }
            None
        }
    }

    /// Notes what a job's function at `at` needs besides itself; `globals` is the stack index of what it sees as the
    /// globals.
    unsafe fn note_usage(&mut self, at: c_int, place: usize, globals: Option<c_int>, capture: bool) {
        let Some(usage) = self.message.code(place).map(|code| &raw const *code.usage()) else { return };
        // SAFETY: the message keeps the code, and what has been found out about it stays.
        let usage = unsafe { &*usage };
        self.mutable |= usage.assigns_upvalues || usage.shares_upvalues;
        if usage.reaches_globals {
            self.flags |= flag::ENV | flag::OPEN_ENV;
        }
        if capture {
            // SAFETY: a Lua function is asked for upvalues that its code has.
            unsafe { self.note_fields(at, usage) };
        }
        let Some(globals) = globals else { return };
        if usage.assigns_globals {
            self.flags |= flag::ENV;
        }
        if capture && !usage.globals.is_empty() {
            if self.scratch.sees_globals.len() <= place {
                self.scratch.sees_globals.resize(place + 1, false);
            }
            if let Some(sees @ false) = self.scratch.sees_globals.get_mut(place) {
                *sees = true;
                self.scratch.naming.extend(usage.globals.iter().map(|name| &raw const **name));
            }
        }
        // SAFETY: a valid index.
        unsafe { self.see(globals) };
    }

    /// Notes the table of globals that a function sees, if it is a job's in this VM.
    unsafe fn see(&mut self, globals: c_int) {
        // SAFETY: `message_from` has made the slot.
        unsafe {
            let other = ffi::lua_topointer(self.state, globals) != self.functions.globals;
            if other && ffi::lua_type(self.state, self.environment) == ffi::LUA_TNIL {
                ffi::lua_pushvalue(self.state, globals);
                ffi::lua_replace(self.state, self.environment);
            }
        }
    }

    /// Notes the fields that a function names of upvalues that are the table of globals.
    unsafe fn note_fields(&mut self, at: c_int, usage: &Usage) {
        let mut last = (0, false);
        for (upvalue, name) in &usage.fields {
            // SAFETY: as `note_usage`; what is pushed is taken off.
            unsafe {
                if last.0 != upvalue + 1 {
                    last = (upvalue + 1, false);
                    if !ffi::lua_getupvalue(self.state, at, c_int::from(last.0)).is_null() {
                        let value = ffi::lua_gettop(self.state);
                        if ffi::lua_type(self.state, value) == ffi::LUA_TTABLE && self.functions.is_globals(self.state, value) {
                            last.1 = true;
                            self.see(value);
                        }
                        ffi::lua_settop(self.state, value - 1);
                    }
                }
            }
            if last.1 {
                self.scratch.naming.push(&raw const **name);
            }
        }
    }

    /// The place in the message of the code of the function at `at`.
    unsafe fn code(&mut self, at: c_int) -> Step<usize> {
        // SAFETY: a Lua function; the buffers belong to `encode`'s caller, as does the list of codes.
        unsafe {
            let function = self.functions.closure_at(self.state, at);
            let known = function.and_then(|function| self.functions.known_code(self.state, function));
            let is_known = known.is_some();
            let code = match known {
                Some(code) => code,
                None => self.dump(at)?,
            };
            let place = self.message.place_of(code);
            let Some(code) = self.message.code(place) else { return Ok(place) };
            if !is_known {
                self.functions.note_code(self.state, at, code);
            }
            if !self.functions.seen(code, self.request.scanned) && !self.request.scanned {
                self.refuse(Refusal::Scan)?;
            }
            Ok(place)
        }
    }

    /// The code of the function at `at`, by its dump.
    unsafe fn dump(&mut self, at: c_int) -> Step<Arc<Code>> {
        self.scratch.dump.clear();
        // SAFETY: a Lua function is on top when it is dumped; the buffer belongs to `encode`'s caller.
        unsafe {
            ffi::lua_pushvalue(self.state, at);
            let top = ffi::lua_gettop(self.state);
            let rc = ffi::lua_dump_(self.state, write_dump, (&raw mut self.scratch.dump).cast());
            ffi::lua_settop(self.state, top - 1);
            match rc {
                ffi::LUA_OK => {}
                ffi::LUA_ERRMEM => self.raise(b"not enough memory"),
                _ => self.refuse_value(at)?,
            }
        }
        Ok(code::intern(&self.scratch.dump))
    }

    /// Environment and upvalues.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn cells_of(&mut self, at: c_int, function_tag_at: usize, depth: usize) -> Step {
        // SAFETY: as `function`.
        unsafe {
            let env = ffi::lua_gettop(self.state) + 1;
            ffi::lua_getfenv(self.state, at);
            let own_env = !self.functions.is_globals(self.state, env);
            if own_env != self.bytes.get(function_tag_at).is_some_and(|tag| tag & tag::ENV != 0) {
                self.changed();
            }
            if own_env {
                self.value(env, depth + 1)?;
            }
            ffi::lua_settop(self.state, env - 1);
            let count_at = self.bytes.len();
            self.bytes.push(0);
            let mut count = 0u8;
            while !ffi::lua_getupvalue(self.state, at, c_int::from(count) + 1).is_null() {
                count += 1;
                let id = lua_upvalueid(self.state, at, c_int::from(count)).cast_const();
                if let Some(cell) = self.scratch.cells.get(&id).copied() {
                    if let Some(tag) = self.bytes.get_mut(cell.tag_at) {
                        *tag = tag::CELL_SHARED;
                    }
                    if let Some(tag) = self.bytes.get_mut(cell.function_tag_at) {
                        *tag |= tag::SHARED;
                    }
                    self.bytes.push(tag::CELLREF);
                    put_varint(&mut self.bytes, u64::from(cell.ordinal));
                } else if let Some((function, upvalue)) = self.own_cell(id) {
                    self.bytes.push(tag::CELL_OWN);
                    put_varint(&mut self.bytes, u64::from(function));
                    self.bytes.push(upvalue);
                } else {
                    let tag_at = self.bytes.len();
                    self.scratch.cells.insert(id, SeenCell { ordinal: self.cells, tag_at, function_tag_at });
                    self.cells = self.cells.wrapping_add(1);
                    self.bytes.push(tag::CELL);
                    self.value(env, depth + 1)?;
                }
                ffi::lua_settop(self.state, env - 1);
            }
            if let Some(byte) = self.bytes.get_mut(count_at) {
                *byte = count;
            }
            Ok(())
        }
    }

    /// The submitter's function and upvalue that have this cell, if they do.
    unsafe fn own_cell(&mut self, id: *const c_void) -> Option<(u32, u8)> {
        let Purpose::Outcome(Some(back)) = self.request.purpose else { return None };
        if back.origin.cells.is_empty() {
            return None;
        }
        if self.scratch.own_cells.is_empty() {
            for (function, upvalue) in back.origin.cells.iter().copied() {
                // SAFETY: the table holds the job's objects by ordinal; a function is asked for an upvalue that it has.
                unsafe {
                    ffi::lua_rawgeti_(self.state, self.theirs, function as c_int + 1);
                    let own = lua_upvalueid(self.state, -1, c_int::from(upvalue)).cast_const();
                    self.scratch.own_cells.insert(own, (function, upvalue));
                    ffi::lua_settop(self.state, -2);
                }
            }
        }
        self.scratch.own_cells.get(&id).copied()
    }
}
