//! Lua values to a message (format and the reasons for it: `wire`).
//!
//! Called by `host`, through [`encode`]: an outer function that cannot raise around an inner one that can. The inner
//! one stops at the first value that cannot cross; Lua then looks for the path to it (`lua/msys/refusal.lua`),
//! so that the usual message pays nothing for paths.

use std::ffi::{c_int, c_void};

use rustc_hash::FxHashMap;

use crate::{
    code,
    functions::{Functions, write_dump},
    luajit::{self, ffi, lua_State, lua_upvalueid, string_at},
    wire::{self, MAX_DEPTH, MAX_KEYS, Message, put_string, put_varint, tag},
};

/// Why a message could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There may be names that the VM has not learnt: scan the modules and encode again.
    Scan,
    /// A value cannot cross; it is on top of the stack.
    Value,
    /// The message is larger than allowed.
    TooLarge(usize),
    /// LuaJIT raised (out of memory): the error is on top of the stack.
    Raised,
}

/// Memory that an encoding needs and the next one uses again.
#[derive(Debug, Default)]
pub struct Scratch {
    objects: FxHashMap<*const c_void, Seen>,
    cells: FxHashMap<*const c_void, SeenCell>,
    keys: FxHashMap<*const u8, u8>,
    dump: Vec<u8>,
}

impl Scratch {
    fn clear(&mut self) {
        /// A map that has grown beyond this is given back: clearing it would cost more than most messages.
        const KEEP: usize = 4096;
        if self.objects.capacity() > KEEP {
            self.objects = FxHashMap::default();
        }
        if self.cells.capacity() > KEEP {
            self.cells = FxHashMap::default();
        }
        self.objects.clear();
        self.cells.clear();
        self.keys.clear();
    }
}

/// An object met before.
#[derive(Clone, Copy, Debug)]
struct Seen {
    ordinal: u32,
    /// Where its tag stands, to be marked as shared.
    tag_at: usize,
}

/// A cell met before.
#[derive(Clone, Copy, Debug)]
struct SeenCell {
    ordinal: u32,
    tag_at: usize,
    /// The tag of the function in which it was met: the decoder finds the cell through that function.
    function_tag_at: usize,
}

/// A pool's id behind a userdata of ours: told by `host`, which owns the metatable.
pub type PoolOf = unsafe fn(*mut lua_State, c_int) -> Option<u32>;

struct Encoder<'a> {
    state: *mut lua_State,
    functions: &'a Functions,
    pool_of: PoolOf,
    message: &'a mut Message,
    scratch: &'a mut Scratch,
    /// Stack index of the table of objects whose contents are still to be written, or of a nil.
    deferred: c_int,
    deferred_count: c_int,
    ordinals: u32,
    cells: u32,
    limit: usize,
    /// Tables were written, which may be modules by now.
    has_tables: bool,
    /// The modules have just been scanned: what has no name now has none.
    scanned: bool,
    refusal: Option<Refusal>,
}

/// The inner function's way to stop.
struct Stop;
type Step = Result<(), Stop>;

/// Encodes the `count` topmost values of the stack, and removes them, into `message`.
///
/// On a refusal, one value is left in their place: what was refused, or LuaJIT's error; nil for the other reasons.
///
/// # Safety
/// `state` is the VM of `functions`, on this thread; `count` values are on the stack, with two more slots free; `inner` is
/// the stack index of [`inner`] as a C function.
#[allow(clippy::too_many_arguments, reason = "one call site each for closures and outcomes")]
pub unsafe fn encode(
    state: *mut lua_State,
    inner: c_int,
    count: c_int,
    functions: &Functions,
    pool_of: PoolOf,
    message: &mut Message,
    scratch: &mut Scratch,
    limit: usize,
    scanned: bool,
) -> Result<(), Refusal> {
    scratch.clear();
    message.clear_values();
    let mut encoder = Encoder {
        state,
        functions,
        pool_of,
        message,
        scratch,
        deferred: 0,
        deferred_count: 0,
        ordinals: 0,
        cells: 0,
        limit,
        has_tables: false,
        scanned,
        refusal: None,
    };
    // SAFETY: pushes within the promised slots, neither of which allocates; the encoder outlives the protected call.
    let rc = unsafe {
        ffi::lua_pushvalue(state, inner);
        ffi::lua_insert(state, -count - 1);
        ffi::lua_pushlightuserdata(state, (&raw mut encoder).cast());
        ffi::lua_insert(state, -count - 1);
        ffi::lua_pcall(state, count + 1, 1, 0)
    };
    let refusal = if rc == ffi::LUA_OK { encoder.refusal } else { Some(Refusal::Raised) };
    match refusal {
        Some(refusal) => Err(refusal),
        None => {
            // SAFETY: the call left one value.
            unsafe { ffi::lua_settop(state, -2) };
            Ok(())
        }
    }
}

/// The protected part: arguments are the encoder and the values; gives nil or the refused value.
///
/// # Safety
/// Called by [`encode`] only.
pub unsafe extern "C-unwind" fn inner(state: *mut lua_State) -> c_int {
    // SAFETY: the first argument is the encoder in `encode`'s frame, which waits for this call and does not touch it.
    // The call may have come through another coroutine's frame of the same VM: its state is the one to work on.
    unsafe {
        let encoder = &mut *ffi::lua_touserdata(state, 1).cast::<Encoder<'_>>();
        encoder.state = state;
        if encoder.message_from(2).is_err() {
            // What was refused is on top.
            return 1;
        }
        ffi::lua_pushnil(state);
        1
    }
}

impl Encoder<'_> {
    /// # Safety
    /// (this and the following) In the protected call, with the state's stack as the doc says. What they hold is `Copy`.
    unsafe fn message_from(&mut self, first: c_int) -> Step {
        // SAFETY: room for the deepest nesting is made before it is used.
        unsafe {
            let top = ffi::lua_gettop(self.state);
            let room = (MAX_DEPTH * 4 + 40) as c_int;
            ffi::luaL_checkstack_(self.state, room, c"too many values to send".as_ptr());
            ffi::lua_pushnil(self.state);
            self.deferred = top + 1;
            self.message.bytes.extend_from_slice(&[wire::VERSION, 0]);
            put_varint(&mut self.message.bytes, (top + 1 - first) as u64);
            for at in first..=top {
                self.value(at, 0)?;
            }
            let mut next = 0;
            while next < self.deferred_count {
                next += 1;
                ffi::lua_rawgeti_(self.state, self.deferred, next);
                let at = ffi::lua_gettop(self.state);
                if ffi::lua_type(self.state, at) == ffi::LUA_TTABLE {
                    self.contents(at, 0)?;
                    if ffi::lua_getmetatable(self.state, at) != 0 {
                        self.value(at + 1, 1)?;
                    }
                } else {
                    let object = ffi::lua_topointer(self.state, at);
                    let tag_at = self.scratch.objects.get(&object).map_or(0, |seen| seen.tag_at);
                    self.cells_of(at, tag_at, 0)?;
                }
                ffi::lua_settop(self.state, at - 1);
            }
            if self.has_tables && !self.scanned && self.functions.modules_changed(self.state) {
                return self.refuse(Refusal::Scan);
            }
            if let Some(keys) = self.message.bytes.get_mut(1) {
                *keys = self.scratch.keys.len() as u8;
            }
            self.check_size()
        }
    }

    fn check_size(&mut self) -> Step {
        if self.message.bytes.len() > self.limit {
            return self.refuse(Refusal::TooLarge(self.message.bytes.len()));
        }
        Ok(())
    }

    fn refuse(&mut self, refusal: Refusal) -> Step {
        self.refusal = Some(refusal);
        if refusal != Refusal::Value {
            // SAFETY: `message_from` has made room.
            unsafe { ffi::lua_pushnil(self.state) };
        }
        Err(Stop)
    }

    /// Refuses the value at `at`.
    unsafe fn refuse_value(&mut self, at: c_int) -> Step {
        // SAFETY: as above.
        unsafe { ffi::lua_pushvalue(self.state, at) };
        self.refuse(Refusal::Value)
    }

    /// Refuses the value at `at`; but first, what it is part of may turn out to have a name.
    unsafe fn refuse_unless_named(&mut self, at: c_int) -> Step {
        // SAFETY: as above.
        if self.scanned { unsafe { self.refuse_value(at) } } else { self.refuse(Refusal::Scan) }
    }

    #[inline]
    unsafe fn value(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: `at` is a valid index, and each arm calls what fits the type.
        unsafe {
            match ffi::lua_type(self.state, at) {
                ffi::LUA_TNIL => self.message.bytes.push(tag::NIL),
                ffi::LUA_TBOOLEAN => {
                    let yes = ffi::lua_toboolean(self.state, at) != 0;
                    self.message.bytes.push(if yes { tag::TRUE } else { tag::FALSE });
                }
                ffi::LUA_TNUMBER => self.number(ffi::lua_tonumber(self.state, at)),
                ffi::LUA_TSTRING => self.string(at),
                ffi::LUA_TTABLE => return self.table(at, depth),
                ffi::LUA_TFUNCTION => return self.function(at, depth),
                ffi::LUA_TLIGHTUSERDATA => {
                    let pointer = ffi::lua_touserdata(self.state, at) as u64;
                    self.message.bytes.push(tag::LIGHT);
                    self.message.bytes.extend_from_slice(&pointer.to_le_bytes());
                }
                ffi::LUA_TUSERDATA => {
                    let Some(pool) = (self.pool_of)(self.state, at) else { return self.refuse_unless_named(at) };
                    self.message.bytes.push(tag::POOL);
                    self.message.bytes.extend_from_slice(&pool.to_le_bytes());
                }
                luajit::LUA_TCDATA => return self.cdata(at),
                // Coroutines stay where they are.
                _ => return self.refuse_unless_named(at),
            }
            Ok(())
        }
    }

    /// An FFI number or array, which Lua takes apart (`lua/msys/cdata.lua`).
    unsafe fn cdata(&mut self, at: c_int) -> Step {
        // SAFETY: a cdata object at `at`; its address is its payload's, which no other object has. Three values are pushed
        // and taken off. The call may raise, which ends the protected call; its two strings stay on the stack while read.
        unsafe {
            let object = ffi::lua_topointer(self.state, at);
            if self.again(object) {
                return Ok(());
            }
            let top = ffi::lua_gettop(self.state);
            ffi::lua_getfield_(self.state, ffi::LUA_REGISTRYINDEX, luajit::CDATA_PACK.as_ptr());
            ffi::lua_pushvalue(self.state, at);
            ffi::lua_call(self.state, 1, 2);
            let packed = (1..=2).all(|place| ffi::lua_type(self.state, top + place) == ffi::LUA_TSTRING);
            if !packed {
                ffi::lua_settop(self.state, top);
                return self.refuse_unless_named(at);
            }
            self.begin(object);
            self.message.bytes.push(tag::CDATA);
            for place in 1..=2 {
                put_string(&mut self.message.bytes, string_at(self.state, top + place));
            }
            ffi::lua_settop(self.state, top);
            self.check_size()
        }
    }

    #[inline]
    fn number(&mut self, number: f64) {
        let whole = number as i32;
        let out = &mut self.message.bytes;
        // -0 is not the 0 that an integer would give back.
        if f64::from(whole) == number && (whole != 0 || number.is_sign_positive()) {
            out.push(tag::INT);
            put_varint(out, u64::from(((whole << 1) ^ (whole >> 31)) as u32));
        } else {
            out.push(tag::NUMBER);
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    #[inline]
    unsafe fn string(&mut self, at: c_int) {
        // SAFETY: a string, kept alive by the stack.
        let bytes = unsafe { string_at(self.state, at) };
        let out = &mut self.message.bytes;
        match u8::try_from(bytes.len()) {
            Ok(len) => out.extend_from_slice(&[tag::STR8, len]),
            Err(_) => {
                out.push(tag::STR32);
                out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            }
        }
        out.extend_from_slice(bytes);
    }

    /// A table's key: a string is written once a message.
    #[inline]
    unsafe fn key(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: `lua_tolstring` is called on a string only, as `lua_next` demands.
        unsafe {
            if ffi::lua_type(self.state, at) != ffi::LUA_TSTRING {
                return self.value(at, depth);
            }
            let bytes = string_at(self.state, at);
            // Equal short strings are one object in a VM, so the address tells.
            if let Some(number) = self.scratch.keys.get(&bytes.as_ptr()) {
                self.message.bytes.extend_from_slice(&[tag::KEYREF, *number]);
            } else if self.scratch.keys.len() < MAX_KEYS {
                let number = self.scratch.keys.len() as u8;
                self.scratch.keys.insert(bytes.as_ptr(), number);
                self.message.bytes.push(tag::KEY);
                put_string(&mut self.message.bytes, bytes);
            } else {
                self.string(at);
            }
            Ok(())
        }
    }

    /// Whether the object has been written; if so, a reference now is.
    fn again(&mut self, object: *const c_void) -> bool {
        let Some(seen) = self.scratch.objects.get(&object).copied() else { return false };
        if let Some(tag) = self.message.bytes.get_mut(seen.tag_at) {
            *tag |= tag::SHARED;
        }
        self.message.bytes.push(tag::REF);
        put_varint(&mut self.message.bytes, u64::from(seen.ordinal));
        true
    }

    /// Writes the name of an object that has one.
    fn named(&mut self, object: *const c_void) -> bool {
        let Some(name) = self.functions.name_of(object) else { return false };
        let out = &mut self.message.bytes;
        out.push(tag::NAMED);
        for part in [&name.module, &name.field] {
            put_string(out, part.as_bytes());
        }
        if !name.builtin && !self.message.modules.contains(&name.module) {
            self.message.modules.push(name.module);
        }
        true
    }

    /// Numbers an object whose tag is about to be written.
    fn begin(&mut self, object: *const c_void) -> usize {
        let tag_at = self.message.bytes.len();
        self.scratch.objects.insert(object, Seen { ordinal: self.ordinals, tag_at });
        self.ordinals = self.ordinals.wrapping_add(1);
        tag_at
    }

    /// Leaves the contents of the object at `at` for later.
    unsafe fn defer(&mut self, at: c_int) {
        // SAFETY: the table is made when it is first needed.
        unsafe {
            if self.deferred_count == 0 {
                ffi::lua_createtable(self.state, 8, 0);
                ffi::lua_replace(self.state, self.deferred);
            }
            self.deferred_count += 1;
            ffi::lua_pushvalue(self.state, at);
            ffi::lua_rawseti_(self.state, self.deferred, self.deferred_count);
        }
    }

    unsafe fn table(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: a table at `at`; what is pushed is taken off again.
        unsafe {
            let object = ffi::lua_topointer(self.state, at);
            if self.again(object) || self.named(object) {
                return Ok(());
            }
            self.has_tables = true;
            self.begin(object);
            let meta = ffi::lua_getmetatable(self.state, at) != 0;
            let flags = if meta { tag::META } else { 0 };
            if depth >= MAX_DEPTH {
                if meta {
                    ffi::lua_settop(self.state, -2);
                }
                self.message.bytes.push(tag::TABLE | flags | tag::DEFERRED);
                self.defer(at);
                return Ok(());
            }
            self.message.bytes.push(tag::TABLE | flags);
            self.contents(at, depth)?;
            if meta {
                let meta_at = ffi::lua_gettop(self.state);
                self.value(meta_at, depth + 1)?;
                ffi::lua_settop(self.state, meta_at - 1);
            }
            self.check_size()
        }
    }

    unsafe fn contents(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: `lua_next` walks the table with its key on top; nothing here changes the table.
        unsafe {
            let counts_at = self.message.bytes.len();
            self.message.bytes.extend_from_slice(&[0; 8]);
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
                    self.key(key, depth + 1)?;
                }
                self.value(key + 1, depth + 1)?;
                ffi::lua_settop(self.state, key);
            }
            if let Some(counts) = self.message.bytes.get_mut(counts_at..counts_at + 8) {
                let (low, high) = counts.split_at_mut(4);
                low.copy_from_slice(&items.to_le_bytes());
                high.copy_from_slice(&records.to_le_bytes());
            }
            Ok(())
        }
    }

    unsafe fn function(&mut self, at: c_int, depth: usize) -> Step {
        // SAFETY: a function at `at`; what is pushed is taken off again.
        unsafe {
            let object = ffi::lua_topointer(self.state, at);
            if self.again(object) || self.named(object) {
                return Ok(());
            }
            if ffi::lua_iscfunction(self.state, at) != 0 {
                return self.refuse_unless_named(at);
            }
            let code = self.code(at)?;
            let tag_at = self.begin(object);
            ffi::lua_getfenv(self.state, at);
            let own_env = ffi::lua_topointer(self.state, -1) != self.functions.globals;
            let deferred = depth >= MAX_DEPTH;
            let env = if own_env { tag::ENV } else { 0 };
            let later = if deferred { tag::DEFERRED } else { 0 };
            self.message.bytes.push(tag::FUNC | env | later);
            put_varint(&mut self.message.bytes, code as u64);
            if deferred {
                ffi::lua_settop(self.state, -2);
                self.defer(at);
                return Ok(());
            }
            ffi::lua_settop(self.state, -2);
            self.cells_of(at, tag_at, depth)
        }
    }

    /// The place in the message of the code of the function at `at`.
    unsafe fn code(&mut self, at: c_int) -> Result<usize, Stop> {
        self.scratch.dump.clear();
        // SAFETY: a Lua function is on top when it is dumped; the buffer belongs to `encode`'s caller.
        let rc = unsafe {
            ffi::lua_pushvalue(self.state, at);
            let rc = ffi::lua_dump_(self.state, write_dump, (&raw mut self.scratch.dump).cast());
            ffi::lua_settop(self.state, -2);
            rc
        };
        if rc != 0 {
            // SAFETY: as above.
            unsafe { self.refuse_value(at)? };
        }
        let code = code::intern(&self.scratch.dump);
        if !self.functions.seen(&code, self.scanned) && !self.scanned {
            self.refuse(Refusal::Scan)?;
        }
        if let Some(place) = self.message.codes.iter().position(|known| known.id == code.id) {
            return Ok(place);
        }
        self.message.codes.push(code);
        Ok(self.message.codes.len() - 1)
    }

    /// Environment and upvalues.
    unsafe fn cells_of(&mut self, at: c_int, function_tag_at: usize, depth: usize) -> Step {
        // SAFETY: as `function`.
        unsafe {
            let env = ffi::lua_gettop(self.state) + 1;
            ffi::lua_getfenv(self.state, at);
            if ffi::lua_topointer(self.state, env) != self.functions.globals {
                self.value(env, depth + 1)?;
            }
            ffi::lua_settop(self.state, env - 1);
            let count_at = self.message.bytes.len();
            self.message.bytes.push(0);
            let mut count = 0u8;
            while !ffi::lua_getupvalue(self.state, at, c_int::from(count) + 1).is_null() {
                count += 1;
                let id = lua_upvalueid(self.state, at, c_int::from(count)).cast_const();
                if let Some(cell) = self.scratch.cells.get(&id).copied() {
                    for (place, tag) in [(cell.tag_at, tag::CELL_SHARED), (cell.function_tag_at, 0)] {
                        if let Some(byte) = self.message.bytes.get_mut(place) {
                            *byte = if tag == 0 { *byte | tag::SHARED } else { tag };
                        }
                    }
                    self.message.bytes.push(tag::CELLREF);
                    put_varint(&mut self.message.bytes, u64::from(cell.ordinal));
                } else {
                    let tag_at = self.message.bytes.len();
                    self.scratch.cells.insert(id, SeenCell { ordinal: self.cells, tag_at, function_tag_at });
                    self.cells = self.cells.wrapping_add(1);
                    self.message.bytes.push(tag::CELL);
                    self.value(env, depth + 1)?;
                }
                ffi::lua_settop(self.state, env - 1);
            }
            if let Some(byte) = self.message.bytes.get_mut(count_at) {
                *byte = count;
            }
            Ok(())
        }
    }
}
