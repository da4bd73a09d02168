//! LuaJIT's tables and strings as they lie in memory: read, never written.
//!
//! Called by `encode` and `changes`, which go through every field of what is sent: four calls of the C API for a field
//! are most of what that costs. What is read here is not LuaJIT's API, so it is not believed: [`verify`] makes tables
//! of every shape, and compares what it reads with what the API says, in the first VM of the process. Where anything
//! differs (an architecture with other numbers, a LuaJIT of the future) all goes through the API, as it does when
//! `MSYS_DIRECT=off` stands in the environment, for the tests.
//!
//! ```text
//! slot    = a double, or 13 bits of ones, a tag of 4 bits, a pointer of 47 bits      (GC64)
//! string  = next:8 marks:4 id:4 hash:4 length:4 bytes
//! table   = next:8 marks:4 -:4 items:8 list:8 metatable:8 nodes:8 item_count:4 node_mask:4 free:8 [items]
//! node    = value:8 key:8 next:8
//! Lua function = next:8 marks:4 -:4 environment:8 list:8 code:8 [cells]
//! cell    = next:8 marks:4 -:4 [value] -:8 value:8
//! state   = next:8 marks:4 -:4 -:8 list:8 first:8 behind:8       the values of the running function
//! ```
//!
//! **What may be read when.** The values of a function until the next call of the API. A table that the stack holds, at
//! any time. A table or string that was found in one, until the next call of the API that may allocate or run Lua: only
//! then can a collector run, and a finalizer change what it likes.

use std::{
    ffi::{c_int, c_void},
    sync::OnceLock,
};

use crate::luajit::{LUA_TCDATA, ffi, lua_State, lua_upvalueid, push_bytes, string_at};

const POINTER: u64 = (1 << 47) - 1;

/// Tags as LuaJIT numbers them, from the top.
mod tag {
    pub(super) const NIL: u32 = !0;
    pub(super) const FALSE: u32 = !1;
    pub(super) const TRUE: u32 = !2;
    pub(super) const LIGHT: u32 = !3;
    pub(super) const STRING: u32 = !4;
    pub(super) const THREAD: u32 = !6;
    pub(super) const FUNCTION: u32 = !8;
    pub(super) const CDATA: u32 = !10;
    pub(super) const TABLE: u32 = !11;
    pub(super) const USERDATA: u32 = !12;
    /// Of an integer where LuaJIT has them; all below are numbers.
    pub(super) const INTEGER: u32 = !13;
}

/// A value in a table or on a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Slot(u64);

/// What a slot holds.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// Nothing.
    Nil,
    /// A boolean.
    Boolean(bool),
    /// A number.
    Number(f64),
    /// A string.
    String(*const Text),
    /// A table.
    Table(*const Table),
    /// A function, userdata, cdata or coroutine: for the API.
    Other,
}

impl Slot {
    /// An empty one.
    pub const NIL: Self = Self(!0);

    /// What it holds.
    #[inline(always)]
    pub fn value(self) -> Value {
        let tag = ((self.0 as i64) >> 47) as u32;
        if tag < tag::INTEGER {
            return Value::Number(f64::from_bits(self.0));
        }
        match tag {
            tag::STRING => Value::String((self.0 & POINTER) as *const Text),
            tag::TABLE => Value::Table((self.0 & POINTER) as *const Table),
            tag::NIL => Value::Nil,
            tag::FALSE => Value::Boolean(false),
            tag::TRUE => Value::Boolean(true),
            _ => Value::Other,
        }
    }

    /// Whether it is empty.
    #[inline(always)]
    pub fn is_nil(self) -> bool {
        ((self.0 as i64) >> 47) as u32 == tag::NIL
    }

    /// Its type, as the API numbers them.
    #[inline(always)]
    fn kind(self) -> c_int {
        let tag = ((self.0 as i64) >> 47) as u32;
        if tag < tag::INTEGER {
            return ffi::LUA_TNUMBER;
        }
        match tag {
            tag::NIL => ffi::LUA_TNIL,
            tag::FALSE | tag::TRUE => ffi::LUA_TBOOLEAN,
            tag::LIGHT => ffi::LUA_TLIGHTUSERDATA,
            tag::STRING => ffi::LUA_TSTRING,
            tag::THREAD => ffi::LUA_TTHREAD,
            tag::FUNCTION => ffi::LUA_TFUNCTION,
            tag::TABLE => ffi::LUA_TTABLE,
            tag::USERDATA => ffi::LUA_TUSERDATA,
            tag::CDATA => LUA_TCDATA,
            _ => ffi::LUA_TNONE,
        }
    }

    /// As it lies in memory.
    #[inline(always)]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The string that it holds.
    #[inline(always)]
    pub fn string(self) -> Option<*const Text> {
        (((self.0 as i64) >> 47) as u32 == tag::STRING).then_some((self.0 & POINTER) as *const Text)
    }
}

/// A string; its bytes stand behind.
#[derive(Debug)]
#[repr(C)]
pub struct Text {
    _next: u64,
    _marks: u32,
    _id: u32,
    _hash: u32,
    length: u32,
}

/// The bytes of a string.
///
/// # Safety
/// The string is alive and stays so while the bytes are used.
#[inline(always)]
pub unsafe fn bytes<'a>(text: *const Text) -> &'a [u8] {
    // SAFETY: the caller's promise; the bytes stand behind the head.
    unsafe { std::slice::from_raw_parts(text.add(1).cast(), (*text).length as usize) }
}

/// The slot that holds a string, by the bytes that LuaJIT gave of it.
pub fn string_slot(bytes: &[u8]) -> Slot {
    slot(tag::STRING, text_of(bytes).addr())
}

/// The slot that holds a table.
pub fn table_slot(table: *const Table) -> Slot {
    slot(tag::TABLE, table.addr())
}

fn slot(tag: u32, address: usize) -> Slot {
    Slot(u64::from(tag) << 47 | address as u64)
}

/// The head of a string whose bytes LuaJIT gave.
fn text_of(bytes: &[u8]) -> *const Text {
    bytes.as_ptr().cast::<Text>().wrapping_sub(1)
}

/// A node of a table's hash part.
#[derive(Debug)]
#[repr(C)]
pub struct Node {
    /// What is there; nil where nothing is, whatever the key says.
    pub value: Slot,
    /// Under which key.
    pub key: Slot,
    _next: u64,
}

/// The head of a table.
#[derive(Debug)]
#[repr(C)]
pub struct Table {
    _next: u64,
    marks: [u8; 4],
    items: *const Slot,
    _list: u64,
    metatable: *const Table,
    nodes: *const Node,
    item_count: u32,
    node_mask: u32,
    free: *const Node,
}

/// Items that LuaJIT places behind a table's head, at most.
const BESIDE: usize = 16;

impl Table {
    /// How many slots the array part has; the first is for the key 0.
    #[inline(always)]
    pub fn item_count(&self) -> usize {
        self.item_count as usize
    }

    /// How many nodes the hash part has, used or not.
    #[inline(always)]
    pub fn node_count(&self) -> usize {
        self.node_mask as usize + 1
    }

    /// A slot of the array part.
    ///
    /// # Safety
    /// The table is alive.
    #[inline(always)]
    pub unsafe fn item(&self, place: usize) -> Slot {
        if place >= self.item_count() {
            return Slot::NIL;
        }
        // SAFETY: within the array, which has that many.
        unsafe { *self.items.add(place) }
    }

    /// All nodes of the hash part: see [`Table::node`].
    ///
    /// # Safety
    /// As [`Table::node`].
    #[inline(always)]
    pub unsafe fn nodes<'a>(&self) -> &'a [Node] {
        // SAFETY: there are that many; one without nodes has a node of the VM's, which is empty.
        unsafe { std::slice::from_raw_parts(self.nodes, self.node_count()) }
    }

    /// A node of the hash part. Of its strings and objects, only those of a node whose value is not nil are alive.
    ///
    /// # Safety
    /// The table is alive, and nothing changes it while the node is used.
    #[inline(always)]
    pub unsafe fn node<'a>(&self, place: usize) -> Option<&'a Node> {
        if place > self.node_mask as usize {
            return None;
        }
        // SAFETY: within the hash part; one without nodes has a node of the VM's, which is empty.
        unsafe { self.nodes.add(place).as_ref() }
    }

    /// Its metatable, or null.
    #[inline(always)]
    pub fn metatable(&self) -> *const Table {
        self.metatable
    }
}

/// What a table was: where its parts lie, and what is in them.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape {
    places: [usize; 3],
    counts: [u32; 2],
    items: Vec<u64>,
    nodes: Vec<[u64; 3]>,
}

/// As the fields of a [`Shape`].
type Parts<'a> = ([usize; 3], [u32; 2], &'a [u64], &'a [[u64; 3]]);

impl Shape {
    /// Of a table as it is now.
    ///
    /// # Safety
    /// The table is alive, and tables lie as [`verify`] has found.
    pub unsafe fn of(table: *const Table) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let (places, counts, items, nodes) = Self::parts(table);
            Self { places, counts, items: items.to_vec(), nodes: nodes.to_vec() }
        }
    }

    /// Whether a table is still what it was: nothing is followed before it is known to be.
    ///
    /// # Safety
    /// As [`Shape::of`]; the table is the one of then.
    pub unsafe fn is_of(&self, table: *const Table) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let (places, counts, items, nodes) = Self::parts(table);
            places == self.places && counts == self.counts && items == self.items && nodes == self.nodes
        }
    }

    /// # Safety
    /// As [`Shape::of`].
    unsafe fn parts<'a>(table: *const Table) -> Parts<'a> {
        // SAFETY: a live table; its parts have the sizes that its head says. A node is three words.
        unsafe {
            let head = &*table;
            let items = match head.item_count() {
                0 => &[],
                count => std::slice::from_raw_parts(head.items.cast::<u64>(), count),
            };
            let nodes = std::slice::from_raw_parts(head.nodes.cast::<[u64; 3]>(), head.node_count());
            let places = [head.metatable.addr(), head.items.addr(), head.nodes.addr()];
            (places, [head.item_count, head.node_mask], items, nodes)
        }
    }
}

/// Whether tables and strings of this process's LuaJIT lie as this file says. May raise (out of memory).
///
/// # Safety
/// `state` is a VM of this thread; nothing with a destructor is live in the caller.
pub unsafe fn verify(state: *mut lua_State) -> bool {
    static VERIFIED: OnceLock<bool> = OnceLock::new();
    if let Some(verified) = VERIFIED.get() {
        return *verified;
    }
    let wanted = cfg!(all(target_arch = "x86_64", target_endian = "little"))
        && std::env::var_os("MSYS_DIRECT").is_none_or(|direct| direct != "off");
    // SAFETY: the caller's promise; what is pushed is taken off. The raising part comes before the cell is entered.
    let verified = wanted
        && unsafe {
            let top = ffi::lua_gettop(state);
            ffi::luaL_checkstack_(state, 20, c"no room".as_ptr());
            let fits = heads_fit(state) && contents_fit(state) && functions_fit(state) && views_fit(state);
            ffi::lua_settop(state, top);
            fits
        };
    *VERIFIED.get_or_init(|| verified)
}

/// Compares the heads of tables of known sizes: nothing is followed that has not been found to be right.
///
/// # Safety
/// As [`verify`].
unsafe fn heads_fit(state: *mut lua_State) -> bool {
    // SAFETY: three tables on the stack. A head is 64 bytes, and no LuaJIT of 64 bits has a smaller one with what
    // follows it.
    unsafe {
        let at = ffi::lua_gettop(state) + 1;
        ffi::lua_createtable(state, 0, 0);
        ffi::lua_createtable(state, 3, 0);
        ffi::lua_createtable(state, 0, 4);
        ffi::lua_createtable(state, 100, 0);
        ffi::lua_pushvalue(state, at);
        ffi::lua_setmetatable(state, at + 1);
        let head = |place: c_int| &*ffi::lua_topointer(state, place).cast::<Table>();
        let (empty, list, hash, long) = (head(at), head(at + 1), head(at + 2), head(at + 3));
        let kind = !tag::TABLE as u8;
        [empty, list, hash, long].iter().all(|table| table.marks[1] == kind)
            && (empty.item_count, empty.node_mask, empty.items.is_null()) == (0, 0, true)
            && (list.item_count, list.node_mask) == (4, 0)
            && list.items.cast::<u8>() == std::ptr::from_ref(list).cast::<u8>().add(size_of::<Table>())
            && list.metatable == std::ptr::from_ref(empty)
            && empty.metatable.is_null()
            && (hash.item_count, hash.node_mask, hash.items.is_null()) == (0, 3, true)
            && hash.free.addr().wrapping_sub(hash.nodes.addr()) == 4 * size_of::<Node>()
            && list.nodes == empty.nodes
            && hash.nodes != empty.nodes
            && (long.item_count, long.node_mask) == (101, 0)
            && long.item_count() > BESIDE
            && !long.items.is_null()
    }
}

/// The head of a coroutine, or of a VM's main one.
#[derive(Debug)]
#[repr(C)]
struct State {
    _next: u64,
    _marks: [u8; 8],
    _vm: u64,
    _list: u64,
    first: *const Slot,
    behind: *const Slot,
}

/// The values of the running C function, or those on a coroutine that does not run: read where they lie, or by the API
/// where that may not be. Not to be used after a call of the API.
#[derive(Clone, Copy, Debug)]
pub struct View {
    state: *mut lua_State,
    /// Null where the API is asked.
    first: *const Slot,
    behind: *const Slot,
}

impl View {
    /// Of a state as it is now.
    ///
    /// # Safety
    /// `state` is of this thread; `direct` only where [`verify`] has found that it may be read.
    #[inline(always)]
    pub unsafe fn of(state: *mut lua_State, direct: bool) -> Self {
        if !direct {
            return Self { state, first: std::ptr::null(), behind: std::ptr::null() };
        }
        // SAFETY: the caller's promise.
        let head = unsafe { &*state.cast::<State>() };
        Self { state, first: head.first, behind: head.behind }
    }

    /// The value at a positive index, if the view reads it and there is one.
    ///
    /// # Safety
    /// No call of the API has been made since it was taken.
    #[inline(always)]
    unsafe fn slot(&self, at: c_int) -> Option<Slot> {
        let place = self.first.wrapping_add(at as usize - 1);
        // SAFETY: between the first value and what is behind the last.
        (place < self.behind).then(|| unsafe { *place })
    }

    /// The type of the value at a positive index, as `lua_type` gives it.
    ///
    /// # Safety
    /// As [`View::slot`].
    #[inline(always)]
    pub unsafe fn kind(&self, at: c_int) -> c_int {
        // SAFETY: the caller's promise; else LuaJIT checks the index.
        unsafe {
            if self.first.is_null() {
                return ffi::lua_type(self.state, at);
            }
            self.slot(at).map_or(ffi::LUA_TNONE, Slot::kind)
        }
    }

    /// The number there, if it is one.
    ///
    /// # Safety
    /// As [`View::slot`].
    #[inline(always)]
    pub unsafe fn number(&self, at: c_int) -> Option<f64> {
        // SAFETY: as `kind`.
        unsafe {
            if self.first.is_null() {
                return (ffi::lua_type(self.state, at) == ffi::LUA_TNUMBER).then(|| ffi::lua_tonumber(self.state, at));
            }
            match self.slot(at)?.value() {
                Value::Number(number) => Some(number),
                _ => None,
            }
        }
    }

    /// Whether what is there counts as true.
    ///
    /// # Safety
    /// As [`View::slot`].
    #[inline(always)]
    pub unsafe fn is_true(&self, at: c_int) -> bool {
        // SAFETY: as `kind`.
        unsafe {
            if self.first.is_null() {
                return ffi::lua_toboolean(self.state, at) != 0;
            }
            self.slot(at).is_some_and(|slot| !matches!(slot.value(), Value::Nil | Value::Boolean(false)))
        }
    }

    /// The bytes of the string there, which are there as long as it is.
    ///
    /// # Safety
    /// As [`View::slot`]; a string is there.
    #[inline(always)]
    pub unsafe fn bytes<'a>(&self, at: c_int) -> &'a [u8] {
        // SAFETY: the caller's promise.
        unsafe {
            match self.slot(at).and_then(Slot::string) {
                Some(text) if !self.first.is_null() => bytes(text),
                _ => string_at(self.state, at),
            }
        }
    }

    /// Whether a Lua function is there, and not one of C's.
    ///
    /// # Safety
    /// As [`View::slot`].
    #[inline(always)]
    pub unsafe fn is_lua_function(&self, at: c_int) -> bool {
        // SAFETY: as `kind`.
        unsafe {
            if self.first.is_null() {
                return ffi::lua_type(self.state, at) == ffi::LUA_TFUNCTION && ffi::lua_iscfunction(self.state, at) == 0;
            }
            self.closure(at).is_some()
        }
    }

    /// The Lua function there, if it is one, where it may be read.
    ///
    /// # Safety
    /// As [`View::slot`].
    #[inline(always)]
    pub unsafe fn closure<'a>(&self, at: c_int) -> Option<&'a Closure> {
        // SAFETY: the caller's promise; a function is alive while it is there.
        unsafe {
            let slot = self.slot(at).filter(|slot| slot.kind() == ffi::LUA_TFUNCTION && !self.first.is_null())?;
            Some(&*((slot.0 & POINTER) as *const Closure)).filter(|closure| closure.is_lua())
        }
    }
}

/// Compares what a view gives of values of each type with what the API does, on a state and on a new coroutine.
///
/// # Safety
/// As [`verify`].
unsafe fn views_fit(state: *mut lua_State) -> bool {
    unsafe extern "C-unwind" fn nothing(_: *mut lua_State) -> c_int {
        0
    }
    // SAFETY: what is pushed is taken off by the caller. A state has more than its head's 48 bytes, and nothing is
    // followed before the distance between its two pointers is known to be that of its values.
    unsafe {
        let thread = ffi::lua_newthread(state);
        let first = ffi::lua_gettop(state) + 1;
        ffi::lua_pushnil(state);
        ffi::lua_pushboolean(state, 0);
        ffi::lua_pushboolean(state, 1);
        ffi::lua_pushnumber(state, -1.5);
        ffi::lua_pushnumber(state, f64::NAN);
        push_bytes(state, b"a string");
        ffi::lua_createtable(state, 0, 0);
        ffi::lua_pushcclosure(state, nothing, 0);
        ffi::lua_pushlightuserdata(state, (&raw mut *thread).cast());
        ffi::lua_newuserdata(state, 8);
        ffi::lua_pushthread(state);
        if ffi::luaL_loadbuffer(state, b"return".as_ptr().cast(), 6, c"=msys".as_ptr()) != ffi::LUA_OK {
            return false;
        }
        let count = ffi::lua_gettop(state) + 1 - first;
        if !view_fits(state) || ffi::lua_checkstack(thread, count) == 0 || !view_fits(thread) {
            return false;
        }
        ffi::lua_xmove(state, thread, count);
        view_fits(state) && view_fits(thread)
    }
}

/// Compares what a view gives of all values of a state with what the API does.
///
/// # Safety
/// As [`verify`].
unsafe fn view_fits(state: *mut lua_State) -> bool {
    // SAFETY: as `views_fit`.
    unsafe {
        let (view, api, top) = (View::of(state, true), View::of(state, false), ffi::lua_gettop(state));
        if view.first.is_null() || view.behind.addr().wrapping_sub(view.first.addr()) != top as usize * size_of::<Slot>() {
            return false;
        }
        (1..=top + 1).all(|at| {
            let kind = ffi::lua_type(state, at);
            view.kind(at) == kind
                && view.is_true(at) == api.is_true(at)
                && view.number(at).map(f64::to_bits) == api.number(at).map(f64::to_bits)
                && (kind != ffi::LUA_TSTRING || std::ptr::eq(view.bytes(at), api.bytes(at)))
                && view.is_lua_function(at) == api.is_lua_function(at)
        })
    }
}

/// The head of a Lua function; its cells stand behind.
#[derive(Debug)]
#[repr(C)]
pub struct Closure {
    _next: u64,
    marks: [u8; 4],
    environment: *const c_void,
    _list: u64,
    /// Its code, which all closures of one prototype have in common, and no others as long as one of them is alive.
    pub code: usize,
}

/// A cell: an upvalue's value, or where on a stack that is.
#[derive(Debug)]
#[repr(C)]
pub struct Cell {
    _next: u64,
    _marks: [u8; 4],
    own: [Slot; 2],
    value: *const Slot,
}

impl Closure {
    /// Whether it is what it is taken for: C functions have the same type.
    #[inline(always)]
    fn is_lua(&self) -> bool {
        let [_, _, of_c, _] = self.marks;
        of_c == 0
    }

    /// Its environment.
    #[inline(always)]
    pub fn environment(&self) -> *const c_void {
        self.environment
    }

    /// The values of its upvalues.
    ///
    /// # Safety
    /// The function is alive; nothing runs that may assign them while they are used.
    #[inline(always)]
    pub unsafe fn upvalues(&self) -> impl ExactSizeIterator<Item = Slot> {
        // SAFETY: the caller's promise; a cell says where its value is.
        unsafe { self.cells() }.iter().map(|cell| unsafe { *(**cell).value })
    }

    /// Whether two of its upvalues may be one cell, as `debug.upvaluejoin` makes them: with many, it is not known.
    ///
    /// # Safety
    /// The function is alive.
    #[inline(always)]
    pub unsafe fn has_equal_cells(&self) -> bool {
        /// Each is compared with each.
        const FEW: usize = 8;
        // SAFETY: the caller's promise.
        let cells = unsafe { self.cells() };
        cells.len() > FEW || cells.iter().enumerate().any(|(place, cell)| cells.iter().skip(place + 1).any(|other| other == cell))
    }

    /// # Safety
    /// The function is alive.
    #[inline(always)]
    unsafe fn cells(&self) -> &[*const Cell] {
        let [.., count] = self.marks;
        // SAFETY: as many as the head says stand behind it.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).add(1).cast(), usize::from(count)) }
    }
}

/// A Lua function at a stack index.
///
/// # Safety
/// A Lua function that is alive, where [`verify`] has found that it may be read.
#[inline(always)]
pub unsafe fn closure_at<'a>(state: *mut lua_State, at: c_int) -> &'a Closure {
    // SAFETY: the caller's promise.
    unsafe { &*ffi::lua_topointer(state, at).cast() }
}

/// Compares closures of known prototypes: two of one, two of others; and the cells of two. Nothing is followed that has
/// not been found to be right.
///
/// # Safety
/// As [`verify`].
unsafe fn functions_fit(state: *mut lua_State) -> bool {
    const SOURCE: &[u8] = b"local other; local function make(x) return function() return x end end \
        return make(1), make(2), make, function() return make end, function() return make, other end";
    const MANY: c_int = 5;
    // SAFETY: functions on the stack; each has a head of 40 bytes or more on 64 bits, and a cell has 48.
    unsafe {
        let top = ffi::lua_gettop(state);
        if ffi::luaL_loadbuffer(state, SOURCE.as_ptr().cast(), SOURCE.len(), c"=msys".as_ptr()) != ffi::LUA_OK {
            return false;
        }
        ffi::lua_call(state, 0, MANY);
        let closure = |place: c_int| closure_at(state, top + place);
        let codes = [1, 3, 4, 5].map(|place| closure(place).code);
        let differ = codes.iter().enumerate().all(|(place, code)| *code != 0 && !codes[..place].contains(code));
        ffi::lua_getfenv(state, top + 1);
        let environment = ffi::lua_topointer(state, -1);
        ffi::lua_settop(state, -2);
        let fits = (1..=MANY).all(|place| {
            let closure = closure(place);
            let count = (1..).take_while(|at| !ffi::lua_getupvalue(state, top + place, *at).is_null()).count();
            ffi::lua_settop(state, top + MANY);
            closure.environment == environment
                && usize::from(closure.marks[3]) == count
                && closure.cells().iter().zip(1..).all(|(cell, at)| {
                    let id = lua_upvalueid(state, top + place, at).cast_const();
                    cell.cast::<c_void>() == id && (**cell).value == &raw const (**cell).own[0]
                })
        });
        let value = |place: c_int| closure(place).upvalues().next().map(Slot::value);
        differ
            && codes[0] == closure(2).code
            && fits
            && matches!(value(1), Some(Value::Number(1.0)))
            && matches!(value(2), Some(Value::Number(2.0)))
            && matches!(value(4), Some(Value::Other))
            && value(3).is_none()
    }
}

/// Fills tables with values of every kind, and compares each with what `lua_next` gives, in its order.
///
/// # Safety
/// As [`verify`]; the heads fit.
unsafe fn contents_fit(state: *mut lua_State) -> bool {
    // SAFETY: what is pushed is stored, or taken off by the caller.
    unsafe {
        let table = ffi::lua_gettop(state) + 1;
        ffi::lua_createtable(state, 2, 2);
        for round in 0..200 {
            let number = f64::from(round);
            match round % 5 {
                0 => ffi::lua_pushnumber(state, f64::from(round / 5)),
                1 => ffi::lua_pushnumber(state, number * 1.5 - 100.0),
                2 => push_bytes(state, &b"a key, and one that is longer than others, with a zero byte \0 in it"[..round as usize % 67]),
                3 => ffi::lua_pushboolean(state, c_int::from(round > 100)),
                _ => ffi::lua_createtable(state, 0, 0),
            }
            match round / 3 % 6 {
                0 => ffi::lua_pushnumber(state, number * -0.25),
                1 => push_bytes(state, &[round as u8; 300][..round as usize]),
                2 => ffi::lua_pushboolean(state, round & 1),
                3 => ffi::lua_createtable(state, 1, 0),
                4 => ffi::lua_pushnumber(state, [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0][round as usize % 4]),
                _ => ffi::lua_pushnil(state),
            }
            ffi::lua_rawset(state, table);
        }
        walk_fits(state, table) && {
            // Again, with what lies in the array part alone.
            ffi::lua_createtable(state, 100, 0);
            for place in 0..100 {
                ffi::lua_pushnumber(state, f64::from(place));
                ffi::lua_rawseti_(state, table + 1, place);
            }
            walk_fits(state, table + 1)
        }
    }
}

/// # Safety
/// As [`contents_fit`], a table at `at`.
unsafe fn walk_fits(state: *mut lua_State, at: c_int) -> bool {
    // SAFETY: the table is on the stack, and nothing changes it here.
    unsafe {
        let table = &*ffi::lua_topointer(state, at).cast::<Table>();
        let items = (0..table.item_count()).map(|place| (Slot((place as f64).to_bits()), table.item(place)));
        let nodes = (0..table.node_count()).filter_map(|place| table.node(place)).map(|node| (node.key, node.value));
        let mut found = items.chain(nodes).filter(|(_, value)| !value.is_nil());
        ffi::lua_pushnil(state);
        let key = ffi::lua_gettop(state);
        while ffi::lua_next(state, at) != 0 {
            let Some((its_key, its_value)) = found.next() else { return false };
            if !is(state, key, its_key) || !is(state, key + 1, its_value) {
                return false;
            }
            ffi::lua_settop(state, key);
        }
        found.next().is_none()
    }
}

/// Whether the slot holds what the API finds at `at`.
///
/// # Safety
/// As [`contents_fit`], a valid index.
unsafe fn is(state: *mut lua_State, at: c_int, slot: Slot) -> bool {
    // SAFETY: a value on the stack; a string's head is read only where its bytes are.
    unsafe {
        match (ffi::lua_type(state, at), slot.value()) {
            (ffi::LUA_TNUMBER, Value::Number(number)) => {
                let other = ffi::lua_tonumber(state, at);
                number.to_bits() == other.to_bits() || number.is_nan() && other.is_nan()
            }
            (ffi::LUA_TBOOLEAN, Value::Boolean(yes)) => (ffi::lua_toboolean(state, at) != 0) == yes,
            (ffi::LUA_TSTRING, Value::String(text)) => {
                let expected = string_at(state, at);
                text == text_of(expected) && bytes(text) == expected && slot == string_slot(expected)
            }
            (ffi::LUA_TTABLE, Value::Table(table)) => {
                table.cast() == ffi::lua_topointer(state, at) && slot == table_slot(table)
            }
            _ => false,
        }
    }
}
