//! Values that are no functions.

use std::{
    ffi::{c_int, c_void},
    sync::Arc,
};

use super::{Back, Encoder, Packing, Purpose, Refusal, Step, objects::Seen, tree::Frame};
use crate::{
    layout::Table,
    lease::Lease,
    luajit::{self, ffi, push_bytes, string_at},
    usage,
    wire::{Handle, LEND, MAX_DEPTH, flag, put_number, put_string, put_text, put_varint, tag},
};

/// More objects of the submitter's are looked up in a map, and not before those.
const FEW: usize = 16;

/// What a metatable says of a table that is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Metatable {
    /// Nothing that matters here.
    Plain,
    /// Its entries may be collected.
    Weak,
    /// It packs itself.
    Packer,
}

impl Encoder<'_> {
    /// Writes the value at `at`.
    ///
    /// # Safety
    /// As `message_from`.
    #[inline(always)]
    pub(super) unsafe fn value(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: `at` is a valid index, and each arm calls what fits the type.
        unsafe {
            match ffi::lua_type(self.state, at) {
                ffi::LUA_TNIL => self.bytes.push(tag::NIL),
                ffi::LUA_TBOOLEAN => {
                    let yes = ffi::lua_toboolean(self.state, at) != 0;
                    self.bytes.push(if yes { tag::TRUE } else { tag::FALSE });
                }
                ffi::LUA_TNUMBER => self.number(ffi::lua_tonumber(self.state, at)),
                ffi::LUA_TSTRING => self.string(at)?,
                ffi::LUA_TTABLE => return self.table(at, depth),
                ffi::LUA_TFUNCTION => return self.function(at, depth),
                ffi::LUA_TLIGHTUSERDATA => {
                    let pointer = ffi::lua_touserdata(self.state, at) as u64;
                    self.bytes.push(tag::LIGHT);
                    self.bytes.extend_from_slice(&pointer.to_le_bytes());
                }
                ffi::LUA_TUSERDATA => return self.userdata(at, depth),
                luajit::LUA_TCDATA => return self.cdata(at),
                // Coroutines stay where they are.
                _ => return self.refuse_unless_named(at),
            }
            Ok(())
        }
    }

    /// A handle of ours, or an object that packs itself.
    unsafe fn userdata(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: a userdata at `at`; what is pushed is taken off again.
        unsafe {
            match (self.handles.of)(self.state, at) {
                Some(Handle::Pool(pool)) => {
                    self.bytes.push(tag::POOL);
                    self.bytes.extend_from_slice(&pool.to_le_bytes());
                    return Ok(());
                }
                Some(Handle::Object(object)) => {
                    let handles = &mut self.message.beside_mut().handles;
                    let number = handles.iter().position(|known| Arc::ptr_eq(known, &object)).unwrap_or_else(|| {
                        handles.push(object);
                        handles.len() - 1
                    });
                    self.bytes.push(tag::HANDLE);
                    put_varint(&mut self.bytes, number as u64);
                    return Ok(());
                }
                None => {}
            }
            let object = ffi::lua_topointer(self.state, at);
            if self.again(object)? || self.own(object) {
                return Ok(());
            }
            if ffi::lua_getmetatable(self.state, at) != 0 {
                let meta = ffi::lua_gettop(self.state);
                if matches!(self.kind_of_metatable(meta), Metatable::Packer) {
                    return self.packed(at, depth);
                }
                ffi::lua_settop(self.state, meta - 1);
            }
            self.refuse_unless_named(at)
        }
    }

    /// An FFI object, which Lua takes apart (`lua/msys/cdata.lua`).
    unsafe fn cdata(&mut self, at: c_int) -> Step {
        // SAFETY: a cdata object at `at`; its address is its payload's, which no other object has. Three values are
        // pushed and taken off. The call may raise, which ends the protected call; its two strings stay on the stack
        // while read.
        unsafe {
            let object = ffi::lua_topointer(self.state, at);
            if self.again(object)? || self.own(object) {
                return Ok(());
            }
            let top = ffi::lua_gettop(self.state);
            luajit::push_registered(self.state, luajit::CDATA_PACK);
            ffi::lua_pushvalue(self.state, at);
            ffi::lua_call(self.state, 1, 2);
            if ffi::lua_type(self.state, top + 1) == ffi::LUA_TUSERDATA {
                // Memory that a handle is of.
                self.userdata(top + 1, 0)?;
                ffi::lua_settop(self.state, top);
                return Ok(());
            }
            let packed = (1..=2).all(|place| ffi::lua_type(self.state, top + place) == ffi::LUA_TSTRING);
            if !packed {
                ffi::lua_settop(self.state, top);
                return self.refuse_unless_named(at);
            }
            self.begin(object, at)?;
            if self.bytes.len().saturating_add(string_at(self.state, top + 2).len()) > self.request.limit {
                return self.refuse(Refusal::TooLarge);
            }
            self.bytes.push(tag::CDATA);
            for place in 1..=2 {
                put_string(&mut self.bytes, string_at(self.state, top + place));
            }
            ffi::lua_settop(self.state, top);
            Ok(())
        }
    }

    /// Writes a number.
    #[inline]
    pub(super) fn number(&mut self, number: f64) {
        put_number(&mut self.bytes, number);
    }

    #[inline]
    unsafe fn string(&mut self, at: c_int) -> Step {
        // SAFETY: a string, kept alive by the stack.
        unsafe {
            let bytes = string_at(self.state, at);
            if bytes.len() >= LEND && self.lends() {
                return self.lend(at, bytes);
            }
            if bytes.len() >= LEND && self.own_string(bytes) {
                return Ok(());
            }
            self.text(bytes);
            Ok(())
        }
    }

    /// Whether long strings are lent.
    #[inline]
    pub(super) fn lends(&self) -> bool {
        matches!(self.request.purpose, Purpose::Job { lend: true, .. })
    }

    /// Whether a long string may be written as more than its bytes.
    #[inline]
    pub(super) fn is_special(&self, bytes: &[u8]) -> bool {
        bytes.len() >= LEND
            && match self.request.purpose {
                Purpose::Job { lend, .. } => lend,
                Purpose::Outcome(back) => back.is_some_and(|back| !back.origin.strings.is_empty()),
            }
    }

    /// Lends the string at `at`, which is kept at a place below the objects'.
    unsafe fn lend(&mut self, at: c_int, bytes: &[u8]) -> Step {
        let known = self.message.beside().lent.iter().position(|lease| lease.is_of(bytes));
        let number = known.unwrap_or(self.message.beside().lent.len());
        if known.is_none() {
            self.lent_size += bytes.len();
            self.check_size()?;
            // SAFETY: the table keeps the string until the outcome has come, or the VM ends and withdraws the lease.
            unsafe {
                self.keep_at(at, -1 - number as c_int);
                self.message.beside_mut().lent.push(Arc::new(Lease::new(bytes)));
            }
        }
        self.bytes.push(tag::LENT);
        put_varint(&mut self.bytes, number as u64);
        Ok(())
    }

    /// Whether the submitter has lent this string; if so, its number there is written.
    fn own_string(&mut self, bytes: &[u8]) -> bool {
        let Purpose::Outcome(Some(Back { origin, .. })) = self.request.purpose else { return false };
        let Some(number) = origin.strings.iter().position(|string| *string == bytes.as_ptr()) else { return false };
        self.bytes.push(tag::OWN_STRING);
        put_varint(&mut self.bytes, number as u64);
        true
    }

    /// Writes a string.
    #[inline]
    pub(super) fn text(&mut self, bytes: &[u8]) {
        // Strings are what makes a message much larger than what it is made of.
        if self.bytes.len().saturating_add(bytes.len()) > self.request.limit {
            self.overflows = true;
            return;
        }
        put_text(&mut self.bytes, bytes);
    }

    /// A table's key: a string is written once a message.
    ///
    /// # Safety
    /// As `value`.
    #[inline(always)]
    pub(super) unsafe fn key(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: `lua_tolstring` is called on a string only, as `lua_next` demands.
        unsafe {
            if ffi::lua_type(self.state, at) != ffi::LUA_TSTRING {
                return self.value(at, depth);
            }
            let bytes = string_at(self.state, at);
            self.key_bytes(bytes);
            Ok(())
        }
    }

    /// Whether the object has been written; if so, a reference now is. Refused in an object's own packed value.
    pub(super) fn again(&mut self, object: *const c_void) -> Step<bool> {
        let Some(seen) = self.scratch.objects.get(object) else { return Ok(false) };
        self.refer(seen)?;
        Ok(true)
    }

    /// Writes a reference to an object that has been written.
    fn refer(&mut self, seen: Seen) -> Step {
        if self.scratch.packing.iter().any(|packing| packing.ordinal == seen.ordinal) {
            // SAFETY: what is being packed is on the stack.
            unsafe { self.refuse_packing("what its __msys_pack gives refers to the object itself")? };
        }
        if let Some(tag) = self.bytes.get_mut(seen.tag_at as usize) {
            *tag |= tag::SHARED;
        }
        // The closure of a job, which may come back.
        self.mutable |= seen.ordinal == 0;
        self.bytes.push(tag::REF);
        put_varint(&mut self.bytes, u64::from(seen.ordinal));
        Ok(())
    }

    /// Raises.
    pub(super) fn raise(&mut self, text: &[u8]) -> ! {
        // SAFETY: in the protected call; nothing of Rust's is live but what is `Copy`.
        unsafe {
            push_bytes(self.state, text);
            ffi::lua_error(self.state)
        }
    }

    /// Whether the submitter has the object; if so, its number there is written.
    pub(super) fn own(&mut self, object: *const c_void) -> bool {
        let Purpose::Outcome(Some(Back { origin, .. })) = self.request.purpose else { return false };
        let few = origin.objects.iter().take(FEW).position(|other| *other == object);
        let ordinal = few.map(|place| place as u32).or_else(|| {
            if origin.objects.len() > FEW && self.scratch.own.is_empty() {
                self.scratch.own.fill(&origin.objects);
            }
            self.scratch.own.get(object).map(|seen| seen.ordinal)
        });
        let Some(ordinal) = ordinal else { return false };
        self.bytes.push(tag::OWN);
        put_varint(&mut self.bytes, u64::from(ordinal));
        true
    }

    /// Writes the name of an object that has one.
    pub(super) fn named(&mut self, object: *const c_void) -> bool {
        let Some(name) = self.functions.name_of(object) else { return false };
        if name.field.is_empty() && &*name.module == "_G" {
            self.globals();
            return true;
        }
        if name.builtin && matches!(self.request.purpose, Purpose::Job { .. }) && usage::is_reaching(name.field.as_bytes()) {
            self.flags |= flag::ENV | flag::OPEN_ENV;
        }
        let out = &mut self.bytes;
        out.push(tag::NAMED);
        for part in [&name.module, &name.field] {
            put_string(out, part.as_bytes());
        }
        if !name.builtin && !self.message.beside().modules.contains(&name.module) {
            self.message.beside_mut().modules.push(name.module);
        }
        true
    }

    /// Writes "the globals": in a job, those are what that job sees, and can look at.
    fn globals(&mut self) {
        self.bytes.push(tag::NAMED);
        put_string(&mut self.bytes, b"_G");
        put_string(&mut self.bytes, b"");
        if let Purpose::Job { .. } = self.request.purpose {
            self.flags |= flag::ENV | flag::OPEN_ENV;
        }
    }

    /// Numbers the object at `at`, whose tag is about to be written; gives the tag's place.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn begin(&mut self, object: *const c_void, at: c_int) -> Step<usize> {
        let tag_at = self.number_object(object)?;
        if let Purpose::Job { keep: true, .. } = self.request.purpose {
            /// Behind the encoder.
            const FIRST: c_int = 2;
            if self.ordinals == 1 && at == FIRST {
                self.root_is_first = true;
            } else {
                // SAFETY: the object is at `at`.
                unsafe { self.keep_object(at) };
            }
        } else if self.holding {
            // SAFETY: as above.
            unsafe { self.hold(at) };
        }
        Ok(tag_at)
    }

    /// Numbers an object, unless the message is too large already.
    #[inline]
    pub(super) fn number_object(&mut self, object: *const c_void) -> Step<usize> {
        self.check_size()?;
        let tag_at = self.bytes.len();
        self.scratch.objects.insert(object, Seen { ordinal: self.ordinals, tag_at: tag_at as u32 });
        self.ordinals = self.ordinals.wrapping_add(1);
        Ok(tag_at)
    }

    /// Numbers an object, and gives its tag's place; or writes a reference to it if it has been written.
    #[inline]
    pub(super) fn number_or_refer(&mut self, object: *const c_void) -> Step<Option<usize>> {
        self.check_size()?;
        let tag_at = self.bytes.len();
        let new = Seen { ordinal: self.ordinals, tag_at: tag_at as u32 };
        if let Some(seen) = self.scratch.objects.insert(object, new) {
            self.refer(seen)?;
            return Ok(None);
        }
        self.ordinals = self.ordinals.wrapping_add(1);
        Ok(Some(tag_at))
    }

    /// Keeps the object at `at`, the last that was numbered.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn keep_object(&mut self, at: c_int) {
        // SAFETY: the caller's promise.
        unsafe { self.keep_at(at, self.ordinals as c_int) };
    }

    /// Puts the value at `at` at a place of the table of what is kept.
    unsafe fn keep_at(&mut self, at: c_int, place: c_int) {
        // SAFETY: the table is made when it is first needed.
        unsafe {
            if ffi::lua_type(self.state, self.kept) == ffi::LUA_TNIL {
                ffi::lua_createtable(self.state, 8, 1);
                ffi::lua_replace(self.state, self.kept);
            }
            ffi::lua_pushvalue(self.state, at);
            ffi::lua_rawseti_(self.state, self.kept, place);
        }
    }

    /// What the metatable at `meta` says of its tables; its `__msys_pack`, if it has one, is pushed.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn kind_of_metatable(&mut self, meta: c_int) -> Metatable {
        // SAFETY: a table is asked for keys.
        unsafe {
            let object = ffi::lua_topointer(self.state, meta);
            if self.is_plain(object.cast()) {
                return Metatable::Plain;
            }
            push_bytes(self.state, b"__msys_pack");
            ffi::lua_rawget_(self.state, meta);
            if ffi::lua_type(self.state, -1) == ffi::LUA_TFUNCTION {
                return Metatable::Packer;
            }
            ffi::lua_settop(self.state, -2);
            push_bytes(self.state, b"__mode");
            ffi::lua_rawget_(self.state, meta);
            let weak = ffi::lua_type(self.state, -1) == ffi::LUA_TSTRING;
            ffi::lua_settop(self.state, -2);
            if weak {
                return Metatable::Weak;
            }
            if self.holding {
                self.hold(meta);
            }
            self.plain.rotate_right(1);
            self.plain[0] = object.cast();
            Metatable::Plain
        }
    }

    /// Makes sure that all that is told by its address is held from now on, and has been.
    pub(super) fn need_hold(&mut self) -> Step {
        self.needs_hold = true;
        if self.holding { Ok(()) } else { self.refuse(Refusal::Hold) }
    }

    /// Whether the metatable was found to be [`Metatable::Plain`].
    pub(super) fn is_plain(&self, meta: *const Table) -> bool {
        self.plain.contains(&meta)
    }

    /// An object that packs itself: `__msys_pack` is on top, above the metatable, which are both taken off.
    unsafe fn packed(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: two values become two others, which are taken off at the end; or the outermost of the objects that
        // are being packed is refused. Text and name are copied before anything else is called.
        unsafe {
            self.need_hold()?;
            let value = ffi::lua_gettop(self.state);
            let object = ffi::lua_topointer(self.state, at);
            let ordinal = self.ordinals;
            self.scratch.packing.push(Packing { ordinal, at });
            if depth >= 2 * MAX_DEPTH {
                return self.refuse_packing("what its __msys_pack gives is nested too deeply");
            }
            ffi::luaL_checkstack_(self.state, (MAX_DEPTH * 4) as c_int, c"too many packed objects".as_ptr());
            ffi::lua_pushvalue(self.state, at);
            match ffi::lua_pcall(self.state, 1, 2, 0) {
                ffi::LUA_OK => {}
                ffi::LUA_ERRMEM => self.raise(b"not enough memory"),
                _ => return self.refuse_raised(),
            }
            let module = if ffi::lua_type(self.state, value + 1) == ffi::LUA_TSTRING {
                std::str::from_utf8(string_at(self.state, value + 1)).ok()
            } else {
                None
            };
            let Some(module) = module.filter(|name| !name.is_empty()) else {
                return self
                    .refuse_packing("its __msys_pack must give a value and the name of the module that unpacks it");
            };
            if !self.message.beside().modules.iter().any(|known| **known == *module) {
                self.message.beside_mut().modules.push(Arc::from(module));
            }
            self.begin(object, at)?;
            self.bytes.push(tag::PACKED);
            put_string(&mut self.bytes, module.as_bytes());
            self.hold(value);
            self.value(value, depth + 1)?;
            self.scratch.packing.pop();
            ffi::lua_settop(self.state, value - 2);
            Ok(())
        }
    }

    /// Refuses the object whose `__msys_pack` has raised what is on top.
    unsafe fn refuse_raised(&mut self) -> Step {
        // SAFETY: a string is copied at once.
        unsafe {
            let top = ffi::lua_gettop(self.state);
            let text = match ffi::lua_type(self.state, top) {
                ffi::LUA_TSTRING => String::from_utf8_lossy(string_at(self.state, top)).into_owned(),
                kind => {
                    let name = std::ffi::CStr::from_ptr(ffi::lua_typename(self.state, kind));
                    format!("it raised a {}", name.to_string_lossy())
                }
            };
            self.refuse_packing(&format!("its __msys_pack failed: {text}"))
        }
    }

    /// Refuses the outermost of the objects that are being packed, for this reason.
    pub(super) unsafe fn refuse_packing(&mut self, why: &str) -> Step {
        let at = self.scratch.packing.first().map_or(2, |outermost| outermost.at);
        self.scratch.why.clear();
        self.scratch.why.push_str(why);
        // SAFETY: the object is on the stack at `at`.
        unsafe { ffi::lua_pushvalue(self.state, at) };
        self.refuse(if self.in_changes { Refusal::Change } else { Refusal::Value })
    }

    /// Keeps the value at `at` until the message is written: objects and keys are told by address.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn hold(&mut self, at: c_int) {
        // SAFETY: the table is made when it is first needed.
        unsafe {
            if self.held_count == 0 {
                ffi::lua_createtable(self.state, 8, 0);
                ffi::lua_replace(self.state, self.held);
            }
            self.held_count += 1;
            ffi::lua_pushvalue(self.state, at);
            ffi::lua_rawseti_(self.state, self.held, self.held_count);
        }
    }

    /// Whether the contents of an object at this depth are to be deferred. Those of packed values cannot be: they are
    /// unpacked as soon as they are read. Makes room for them otherwise.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn is_deep(&mut self, depth: usize) -> Step<bool> {
        // SAFETY: the caller's promise.
        unsafe { self.make_room(depth) };
        if self.scratch.packing.is_empty() {
            return Ok(depth >= MAX_DEPTH);
        }
        if depth >= 2 * MAX_DEPTH {
            // SAFETY: what is being packed is on the stack.
            unsafe { self.refuse_packing("what its __msys_pack gives is nested too deeply")? };
        }
        Ok(false)
    }

    /// Writes the table at `at`.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn table(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: a table at `at`; what is pushed is taken off again.
        unsafe {
            let object = ffi::lua_topointer(self.state, at);
            if self.again(object)? || self.own(object) || self.named(object) {
                return Ok(());
            }
            if self.functions.is_environment(self.state, at) {
                self.globals();
                return Ok(());
            }
            self.has_tables = true;
            let meta = ffi::lua_getmetatable(self.state, at) != 0;
            let meta_at = ffi::lua_gettop(self.state);
            let kind = if meta { self.kind_of_metatable(meta_at) } else { Metatable::Plain };
            if matches!(kind, Metatable::Packer) {
                return self.packed(at, depth);
            }
            let tag_at = self.begin(object, at)?;
            let flags = if meta { tag::META } else { 0 };
            if self.is_deep(depth)? {
                if meta {
                    ffi::lua_settop(self.state, -2);
                }
                self.bytes.push(tag::TABLE | flags | tag::DEFERRED);
                self.defer(at);
                return Ok(());
            }
            self.bytes.push(tag::TABLE | flags);
            self.table_body(at, tag_at, kind, depth)?;
            if meta {
                self.value(meta_at, depth + 1)?;
                ffi::lua_settop(self.state, meta_at - 1);
            }
            Ok(())
        }
    }

    /// Items and records of the table at `at`, whose tag stands at `tag_at`.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn table_body(&mut self, at: c_int, tag_at: usize, kind: Metatable, depth: usize) -> Step {
        // SAFETY: a table at `at`.
        unsafe {
            let weak = matches!(kind, Metatable::Weak);
            if weak {
                self.need_hold()?;
            }
            // An entry of a weak table is on the stack from the moment that it is read, or may be gone.
            if weak || !self.functions.direct {
                return self.contents(at, weak, depth);
            }
            let table = ffi::lua_topointer(self.state, at).cast();
            self.body(&Frame::on_stack(table, at), tag_at, depth)
        }
    }

    /// A table's items and records, through the API.
    ///
    /// # Safety
    /// As `value`.
    pub(super) unsafe fn contents(&mut self, at: c_int, weak: bool, depth: usize) -> Step {
        // SAFETY: `lua_next` walks the table with its key on top; nothing here changes the table.
        unsafe {
            let counts_at = self.bytes.len();
            self.bytes.extend_from_slice(&[0; 8]);
            let (mut items, mut records) = (0u32, 0u32);
            let mut in_order = true;
            ffi::lua_pushnil(self.state);
            let key = ffi::lua_gettop(self.state);
            while ffi::lua_next(self.state, at) != 0 {
                // The array part comes first and in order: its keys need not be written.
                in_order = in_order
                    && ffi::lua_type(self.state, key) == ffi::LUA_TNUMBER
                    && ffi::lua_tonumber(self.state, key) == f64::from(items) + 1.0;
                if in_order {
                    items += 1;
                } else {
                    records += 1;
                    if weak {
                        // The entry may go, and its key with it, which is told by address.
                        self.value(key, depth + 1)?;
                    } else {
                        self.key(key, depth + 1)?;
                    }
                }
                self.value(key + 1, depth + 1)?;
                ffi::lua_settop(self.state, key);
            }
            if let Some(counts) = self.bytes.get_mut(counts_at..counts_at + 8) {
                let (low, high) = counts.split_at_mut(4);
                low.copy_from_slice(&items.to_le_bytes());
                high.copy_from_slice(&records.to_le_bytes());
            }
            Ok(())
        }
    }
}
