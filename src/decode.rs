//! A message to Lua values (format: `wire`).
//!
//! Called by `host`, through [`decode`]: an outer function that cannot raise around an inner one that can. The bytes
//! are checked as they are read: what no encoder writes ends in an error or in other values, never in a read outside of
//! the message, and no table is made larger than the bytes that are left could fill.

use std::ffi::c_int;

use crate::{
    functions::{Functions, Handles},
    luajit::{self, ffi, lua_State, lua_upvaluejoin, push_bytes},
    origin::Origin,
    wire::{self, MAX_DEPTH, MAX_KEYS, MAX_SHAPE, MAX_SHAPES, Malformed, Message, Reader, flag, tag},
};

/// More strings than a message can lend.
const MAX_LENT: u64 = i32::MAX as u64 - 1;

/// What a message is to its receiver.
#[derive(Debug)]
pub enum Role<'a> {
    /// A job's, for the session in this slot; what the outcome may speak of is kept in `origin`.
    Job {
        /// The job's slot, under which its objects are kept.
        slot: usize,
        /// Filled if the message asks for it.
        origin: &'a mut Origin,
    },
    /// A pool's init.
    Init,
    /// An outcome or a report; of a job that was sent under this ticket, if it speaks of what was kept then.
    Outcome(Option<u64>),
}

/// Memory that a decoding needs and the next one uses again.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Objects without contents yet, in the order of their bodies.
    deferred: Vec<Deferred>,
    /// Cells in order: which function of those kept, and which upvalue of it. Unshared ones are never looked up.
    cells: Vec<(u32, u8)>,
    shapes: Vec<Shape>,
    /// Source of a constructor.
    source: Vec<u8>,
}

/// A list of keys. In the table of shapes, a constructor stands at `first`, if there is one, and the keys behind it.
#[derive(Clone, Copy, Debug)]
struct Shape {
    first: c_int,
    len: u8,
    /// How many tables of it there have been; more than [`OFTEN`] where there is no constructor to be had.
    uses: u8,
    constructor: bool,
}

/// A shape that comes again so often gets a constructor: a Lua function from the values to the table, which LuaJIT
/// copies from one that has the keys. That costs half of what setting each key does, and ten microseconds for the
/// first.
const OFTEN: u8 = 16;
/// More values are not passed to one.
const MAX_CONSTRUCTED: u8 = 16;
/// Every so many levels of nesting there is a look whether there is room for so many more.
const LEVELS: usize = 4;
/// Room for those, of four slots each, and for what is pushed meanwhile. Room for the deepest nesting at once would be
/// three kilobytes of a worker's memory, for jobs that nest hardly anything.
const ROOM: usize = LEVELS * 4 + 20;

#[derive(Clone, Copy, Debug)]
struct Deferred {
    ordinal: u32,
    tag: u8,
}

struct Decoder<'a> {
    state: *mut lua_State,
    functions: &'a Functions,
    handles: Handles,
    message: &'a Message,
    reader: Reader<'a>,
    scratch: &'a mut Scratch,
    role: Role<'a>,
    flags: u8,
    /// The next of the deferred objects to be filled.
    deferred_next: usize,
    ordinals: u32,
    /// How many keys have been met, and for how many there are places.
    keys: c_int,
    key_places: c_int,
    /// Lua code of ours that raises nothing is being called: a constructor, or [`inner`] itself, which a call hook may
    /// keep from beginning.
    harmless: bool,
    /// How many changes are to be made.
    changes: c_int,
}

/// Stack places in the inner function, behind its argument: the table of objects that are named again, the environment
/// of functions that have none of their own, the table of the receiver's own objects, that of the shapes' keys, that of
/// changes to be made (nil where there is none); the keys.
const OBJECTS: c_int = 2;
const ENVIRONMENT: c_int = 3;
const OWN: c_int = 4;
const SHAPES: c_int = 5;
const PENDING: c_int = 6;
const FIRST_KEY: c_int = 7;

/// How much a table has.
#[derive(Clone, Copy, Debug)]
struct Head {
    items: c_int,
    records: Records,
}

#[derive(Clone, Copy, Debug)]
enum Records {
    /// So many keys and values.
    Keyed(u32),
    /// Values, under a shape's keys.
    Shaped(Shape),
}

/// Why decoding stopped; a `Copy` type, since it passes frames that LuaJIT may unwind.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Malformed,
    /// LuaJIT refused the bytes of a function.
    Code,
}

impl From<Malformed> for Stop {
    fn from(_: Malformed) -> Self {
        Stop::Malformed
    }
}

type Step<T = ()> = Result<T, Stop>;

/// Decoding ended in an error, whose value is on top of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// The message's own, or memory's.
    Error,
    /// A hook's, where nothing of ours raises: for whoever waits for the hook, such as the user at the
    /// keyboard.
    Hook,
}

/// So many values are pushed without a protected call.
const PLAIN: usize = 4;
/// And so many upvalues of a job's closure.
const PLAIN_UPVALUES: usize = 8;
/// The free slots that [`plain_job`] needs.
pub const PLAIN_ROOM: usize = PLAIN + PLAIN_UPVALUES + 2;

/// Pushes the values of `message`, if they are few, and none of them can raise: no strings, no objects.
///
/// # Safety
/// `state` has [`PLAIN`] free slots.
pub unsafe fn plain(state: *mut lua_State, message: &Message) -> Option<c_int> {
    let (head, rest) = message.bytes.split_first_chunk()?;
    if *head != wire::HEAD {
        return None;
    }
    let mut reader = Reader::new(rest);
    let count = usize::from(reader.u8().ok()?);
    if count > PLAIN {
        return None;
    }
    // SAFETY: as many pushes as there is room for, or none.
    unsafe {
        let top = ffi::lua_gettop(state);
        if plain_values(state, &mut reader, count).is_err() || reader.remaining() != 0 {
            ffi::lua_settop(state, top);
            return None;
        }
    }
    Some(count as c_int)
}

/// Pushes so many values, or some of them if one is of another kind.
///
/// # Safety
/// `state` has room for them.
#[inline(always)]
unsafe fn plain_values(state: *mut lua_State, reader: &mut Reader<'_>, count: usize) -> Result<(), Malformed> {
    for _ in 0..count {
        let tag = reader.u8()?;
        // SAFETY: the caller's promise.
        unsafe { plain_value(state, reader, tag)? };
    }
    Ok(())
}

/// Pushes a value that has this tag, if that can't raise.
///
/// # Safety
/// `state` has a free slot.
#[inline(always)]
unsafe fn plain_value(state: *mut lua_State, reader: &mut Reader<'_>, tag: u8) -> Result<(), Malformed> {
    // SAFETY: the caller's promise.
    unsafe {
        match tag {
            tag::NIL => ffi::lua_pushnil(state),
            tag::FALSE => ffi::lua_pushboolean(state, 0),
            tag::TRUE => ffi::lua_pushboolean(state, 1),
            tag::NUMBER => ffi::lua_pushnumber(state, reader.f64()?),
            tag::INT => ffi::lua_pushnumber(state, reader.int()?),
            _ => return Err(Malformed),
        }
    }
    Ok(())
}

/// Pushes the values of a message that [`plain`] or [`plain_job`] can; else the message is for [`decode`].
///
/// # Safety
/// `state` is the VM of `functions`, on this thread, with [`PLAIN_ROOM`] free slots.
pub unsafe fn quick(
    state: *mut lua_State,
    functions: &Functions,
    message: &Message,
    role: &Role<'_>,
) -> Option<Result<c_int, Raised>> {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(count) = plain(state, message) {
            return Some(Ok(count));
        }
        if !matches!(role, Role::Job { .. }) {
            return None;
        }
        let top = ffi::lua_gettop(state);
        let result = plain_job(state, functions, message);
        if result.is_none() {
            ffi::lua_settop(state, top);
        }
        result
    }
}

/// Pushes the closure of a job and its arguments, if their values and those of its upvalues are as for [`plain`], and its
/// factory is at hand; what it leaves on the stack else is not specified. The factory is called under protection.
///
/// # Safety
/// `state` is the VM of `functions`, on this thread, with [`PLAIN_ROOM`] free slots.
unsafe fn plain_job(state: *mut lua_State, functions: &Functions, message: &Message) -> Option<Result<c_int, Raised>> {
    let (head, rest) = message.bytes.split_first_chunk()?;
    let &[count, tag::FUNC, 0, upvalues, ref rest @ ..] = rest else { return None };
    let (count, upvalues) = (usize::from(count), usize::from(upvalues));
    if *head != wire::HEAD_OF_ONE || !(1..=PLAIN).contains(&count) || upvalues > PLAIN_UPVALUES {
        return None;
    }
    let mut reader = Reader::new(rest);
    // SAFETY: as many pushes as there is room for; the factory makes a closure, and nothing of it is ours.
    unsafe {
        if !functions.push_factory(state, message.code(0)?) {
            return None;
        }
        for _ in 0..upvalues {
            if reader.u8().ok()? != tag::CELL {
                return None;
            }
            plain_values(state, &mut reader, 1).ok()?;
        }
        if !are_plain(reader, count - 1) {
            return None;
        }
        match ffi::lua_pcall(state, upvalues as c_int, 1, 0) {
            ffi::LUA_OK => {}
            // It raises nothing itself.
            ffi::LUA_ERRRUN => return Some(Err(Raised::Hook)),
            _ => return Some(Err(Raised::Error)),
        }
        plain_values(state, &mut reader, count - 1).ok()?;
    }
    Some(Ok(count as c_int))
}

/// Whether so many values are for [`plain_value`], and nothing follows.
fn are_plain(mut reader: Reader<'_>, count: usize) -> bool {
    for _ in 0..count {
        let passed = match reader.u8() {
            Ok(tag::NIL | tag::FALSE | tag::TRUE) => true,
            Ok(tag::NUMBER) => reader.f64().is_ok(),
            Ok(tag::INT) => reader.int().is_ok(),
            _ => false,
        };
        if !passed {
            return false;
        }
    }
    reader.remaining() == 0
}

/// Pushes the values of `message`; gives their number, or an error with its value on top of the stack.
///
/// # Safety
/// `state` is the VM of `functions`, on this thread, with two free slots; `inner` is the stack index of [`inner`] as a C
/// function.
pub unsafe fn decode(
    state: *mut lua_State,
    inner: c_int,
    functions: &Functions,
    handles: Handles,
    message: &Message,
    scratch: &mut Scratch,
    role: Role<'_>,
) -> Result<c_int, Raised> {
    scratch.deferred.clear();
    scratch.cells.clear();
    scratch.shapes.clear();
    let mut decoder = Decoder {
        state,
        functions,
        handles,
        message,
        reader: Reader::new(&message.bytes),
        scratch,
        role,
        flags: 0,
        deferred_next: 0,
        ordinals: 0,
        keys: 0,
        key_places: 0,
        harmless: true,
        changes: 0,
    };
    // SAFETY: pushes within the promised slots, neither of which allocates; the decoder outlives the protected call.
    let decoded = unsafe {
        let top = ffi::lua_gettop(state);
        ffi::lua_pushvalue(state, inner);
        ffi::lua_pushlightuserdata(state, (&raw mut decoder).cast());
        match ffi::lua_pcall(state, 1, ffi::LUA_MULTRET, 0) {
            ffi::LUA_OK => Ok(ffi::lua_gettop(state) - top),
            ffi::LUA_ERRRUN if decoder.harmless => Err(Raised::Hook),
            _ => Err(Raised::Error),
        }
    };
    if decoded.is_err() {
        message.beside().lent.iter().for_each(|lease| lease.end());
    }
    decoded
}

/// The protected part: its argument is the decoder; gives the values or raises.
///
/// # Safety
/// Called by [`decode`] only.
pub unsafe extern "C-unwind" fn inner(state: *mut lua_State) -> c_int {
    // SAFETY: the argument is the decoder in `decode`'s frame, which waits for this call and does not touch it.
    unsafe {
        let decoder = &mut *ffi::lua_touserdata(state, 1).cast::<Decoder<'_>>();
        decoder.state = state;
        decoder.harmless = false;
        match decoder.values() {
            Ok(count) => count,
            Err(stop) => {
                let text: &[u8] = match stop {
                    Stop::Malformed => b"msys: malformed message",
                    Stop::Code => b"msys: this LuaJIT cannot load a function of the message",
                };
                push_bytes(state, text);
                ffi::lua_error(state)
            }
        }
    }
}

impl Decoder<'_> {
    /// # Safety
    /// (this and the following) In the protected call. Each leaves what its doc says on the stack.
    unsafe fn values(&mut self) -> Step<c_int> {
        // SAFETY: room is made before values are pushed.
        unsafe {
            if self.reader.u8()? != wire::VERSION {
                return Err(Stop::Malformed);
            }
            self.flags = self.reader.u8()?;
            if self.flags & flag::OPEN_ENV != 0 && self.flags & flag::ENV == 0 {
                return Err(Stop::Malformed);
            }
            self.key_places = c_int::from(self.reader.u8()?);
            if self.key_places > MAX_KEYS as c_int {
                return Err(Stop::Malformed);
            }
            let objects = self.reader.u32()?;
            let count = self.reader.varint()?;
            if count > self.reader.remaining() as u64 {
                return Err(Stop::Malformed);
            }
            let count = count as c_int;
            self.make_room(count.saturating_add(self.key_places));
            ffi::lua_settop(self.state, FIRST_KEY + self.key_places - 1);
            if self.flags & flag::KEEP != 0 {
                // An object is two bytes at least.
                let objects = (objects as usize).min(self.reader.remaining() / 2);
                ffi::lua_createtable(self.state, objects as c_int, 1);
                ffi::lua_replace(self.state, OBJECTS);
            }
            self.prepare();
            for _ in 0..count {
                self.value(0)?;
            }
            loop {
                self.bodies()?;
                if self.reader.remaining() == 0 {
                    break;
                }
                self.extra()?;
            }
            self.apply()?;
            self.keep_all();
            Ok(count)
        }
    }

    /// Makes room for so many slots, and a few levels of nesting. May raise.
    unsafe fn make_room(&mut self, slots: c_int) {
        // SAFETY: as `values`.
        unsafe {
            let room = slots.saturating_add(ROOM as c_int);
            ffi::luaL_checkstack_(self.state, room, c"too many values received".as_ptr());
        }
    }

    /// The same for what is at this depth, where not enough may be left.
    #[inline]
    unsafe fn make_room_at(&mut self, depth: usize) {
        if depth > 0 && depth.is_multiple_of(LEVELS) {
            // SAFETY: as above.
            unsafe { self.make_room(0) };
        }
    }

    /// Makes or finds what the role brings.
    unsafe fn prepare(&mut self) {
        // SAFETY: what is pushed goes to the places made for it.
        unsafe {
            match self.role {
                Role::Job { .. } | Role::Init => {
                    if self.flags & flag::ENV != 0 {
                        if !self.functions.makes_environments() {
                            luajit::load_all(self.state);
                        }
                        let init = matches!(self.role, Role::Init);
                        let open = self.flags & flag::OPEN_ENV != 0;
                        self.functions.push_environment(self.state, open, init);
                        ffi::lua_replace(self.state, ENVIRONMENT);
                    }
                }
                Role::Outcome(Some(ticket)) => {
                    self.functions.recall(self.state, self.functions.kept, ticket as c_int);
                    if ffi::lua_type(self.state, -1) == ffi::LUA_TTABLE {
                        // The globals that the sender had, if those are a job's here.
                        ffi::lua_rawgeti_(self.state, -1, 0);
                        if self.functions.is_environment(self.state, -1) {
                            ffi::lua_replace(self.state, ENVIRONMENT);
                        } else {
                            ffi::lua_settop(self.state, -2);
                        }
                    }
                    ffi::lua_replace(self.state, OWN);
                }
                Role::Outcome(None) => {}
            }
        }
    }

    /// Fills all objects that were deferred.
    unsafe fn bodies(&mut self) -> Step {
        // SAFETY: each object is pushed, filled and taken off.
        unsafe {
            while let Some(Deferred { ordinal, tag }) = self.scratch.deferred.get(self.deferred_next).copied() {
                self.deferred_next += 1;
                self.push_object(ordinal)?;
                let at = ffi::lua_gettop(self.state);
                if tag & tag::KIND == tag::TABLE {
                    let head = self.head(tag)?;
                    self.contents(at, head, 0)?;
                    self.metatable(at, tag, 0)?;
                } else {
                    self.cells_of(at, ordinal, tag, 0)?;
                }
                ffi::lua_settop(self.state, at - 1);
            }
            Ok(())
        }
    }

    /// Stores what the job's end will need, and gives the job's thread its environment if that can be looked at.
    unsafe fn keep_all(&mut self) {
        let Role::Job { slot, origin } = &mut self.role else { return };
        // SAFETY: what is pushed is stored or taken off.
        unsafe {
            if self.flags & flag::OPEN_ENV != 0 && ffi::lua_type(self.state, ENVIRONMENT) == ffi::LUA_TTABLE {
                ffi::lua_pushthread(self.state);
                ffi::lua_pushvalue(self.state, ENVIRONMENT);
                ffi::lua_setfenv(self.state, -2);
                ffi::lua_settop(self.state, -2);
            }
            if self.flags & flag::KEEP == 0 && origin.strings.is_empty() {
                return;
            }
            if self.flags & flag::KEEP != 0 {
                std::mem::swap(&mut origin.cells, &mut self.scratch.cells);
            }
            if ffi::lua_type(self.state, OBJECTS) == ffi::LUA_TNIL {
                ffi::lua_createtable(self.state, 0, 1);
                ffi::lua_replace(self.state, OBJECTS);
            }
            ffi::lua_pushvalue(self.state, ENVIRONMENT);
            ffi::lua_rawseti_(self.state, OBJECTS, 0);
            ffi::lua_pushvalue(self.state, OBJECTS);
            self.functions.store(self.state, self.functions.theirs, *slot as c_int);
        }
    }

    /// Reads what stands behind the values.
    unsafe fn extra(&mut self) -> Step {
        let tag = self.reader.u8()?;
        // SAFETY: what is pushed is stored or taken off.
        unsafe {
            let top = ffi::lua_gettop(self.state);
            match tag {
                tag::GLOBAL | tag::LEFT_OUT => self.global(tag)?,
                tag::SET..=tag::SET_BYTES => self.change(tag)?,
                _ => return Err(Stop::Malformed),
            }
            ffi::lua_settop(self.state, top);
            Ok(())
        }
    }

    /// A global of the script's: it goes into the job's environment, unless this VM has one of that name.
    unsafe fn global(&mut self, tag: u8) -> Step {
        let name = self.reader.string()?;
        // SAFETY: as `extra`; the environment is a table.
        unsafe {
            if ffi::lua_type(self.state, ENVIRONMENT) != ffi::LUA_TTABLE {
                return Err(Stop::Malformed);
            }
            if tag == tag::LEFT_OUT {
                let why = self.reader.string()?;
                self.functions.leave_out(self.state, ENVIRONMENT, name, why);
                return Ok(());
            }
            push_bytes(self.state, name);
            self.value(0)?;
            if matches!(self.role, Role::Init) {
                self.functions.offer(self.state, ENVIRONMENT);
                return Ok(());
            }
            self.functions.push_globals(self.state);
            ffi::lua_pushvalue(self.state, -3);
            ffi::lua_rawget_(self.state, -2);
            let has = ffi::lua_type(self.state, -1) != ffi::LUA_TNIL;
            ffi::lua_settop(self.state, -3);
            if !has {
                ffi::lua_rawset(self.state, ENVIRONMENT);
            }
            Ok(())
        }
    }

    /// Reads a change of one of the receiver's own objects, to be made when all have been read: four values in the
    /// table of changes, the object, the kind of change, a key, a value.
    unsafe fn change(&mut self, tag: u8) -> Step {
        // SAFETY: as `extra`; the type of each object is checked before it is changed.
        unsafe {
            let at = ffi::lua_gettop(self.state) + 1;
            if tag == tag::SET_GLOBAL {
                if ffi::lua_type(self.state, OWN) != ffi::LUA_TTABLE {
                    return Err(Stop::Malformed);
                }
                ffi::lua_rawgeti_(self.state, OWN, 0);
            } else {
                self.push_own()?;
            }
            let kind = ffi::lua_type(self.state, at);
            let fits = match tag {
                tag::SET | tag::SET_META | tag::SET_GLOBAL => kind == ffi::LUA_TTABLE,
                tag::SET_BYTES => kind == luajit::LUA_TCDATA,
                _ => kind == ffi::LUA_TFUNCTION && ffi::lua_iscfunction(self.state, at) == 0,
            };
            if !fits {
                return Err(Stop::Malformed);
            }
            ffi::lua_pushnumber(self.state, f64::from(tag));
            match tag {
                tag::SET | tag::SET_GLOBAL => {
                    self.value(0)?;
                    let key = ffi::lua_type(self.state, at + 2);
                    if key == ffi::LUA_TNIL || key == ffi::LUA_TNUMBER && ffi::lua_tonumber(self.state, at + 2).is_nan() {
                        return Err(Stop::Malformed);
                    }
                    self.value(0)?;
                }
                tag::SET_CELL => {
                    ffi::lua_pushnumber(self.state, f64::from(self.reader.u8()?));
                    self.value(0)?;
                }
                tag::SET_BYTES => {
                    ffi::lua_pushnil(self.state);
                    push_bytes(self.state, self.reader.string()?);
                }
                _ => {
                    ffi::lua_pushnil(self.state);
                    self.value(0)?;
                    let kind = ffi::lua_type(self.state, at + 3);
                    if kind != ffi::LUA_TTABLE && !(tag == tag::SET_META && kind == ffi::LUA_TNIL) {
                        return Err(Stop::Malformed);
                    }
                }
            }
            if self.changes == 0 {
                ffi::lua_createtable(self.state, 16, 0);
                ffi::lua_replace(self.state, PENDING);
            }
            for field in (1..=4).rev() {
                ffi::lua_rawseti_(self.state, PENDING, self.changes * 4 + field);
            }
            self.changes += 1;
            Ok(())
        }
    }

    /// Makes the changes that have been read.
    unsafe fn apply(&mut self) -> Step {
        // SAFETY: the table holds what `change` has put there, and checked.
        unsafe {
            let at = ffi::lua_gettop(self.state) + 1;
            for change in 0..self.changes {
                for field in 1..=4 {
                    ffi::lua_rawgeti_(self.state, PENDING, change * 4 + field);
                }
                match ffi::lua_tonumber(self.state, at + 1) as u8 {
                    tag::SET | tag::SET_GLOBAL => ffi::lua_rawset(self.state, at),
                    tag::SET_CELL => {
                        let upvalue = ffi::lua_tonumber(self.state, at + 2) as c_int;
                        if ffi::lua_setupvalue(self.state, at, upvalue).is_null() {
                            return Err(Stop::Malformed);
                        }
                    }
                    tag::SET_BYTES => {
                        luajit::push_registered(self.state, luajit::CDATA_FILL);
                        ffi::lua_pushvalue(self.state, at);
                        ffi::lua_pushvalue(self.state, at + 3);
                        ffi::lua_call(self.state, 2, 0);
                    }
                    tag::SET_META => {
                        ffi::lua_setmetatable(self.state, at);
                    }
                    _ => {
                        ffi::lua_setfenv(self.state, at);
                    }
                }
                ffi::lua_settop(self.state, at - 1);
            }
            Ok(())
        }
    }

    /// Pushes one of the receiver's own objects.
    unsafe fn push_own(&mut self) -> Step {
        let ordinal = u32::try_from(self.reader.varint()?).map_err(|_| Stop::Malformed)?;
        // SAFETY: a table is asked for a field, or nothing happens.
        unsafe {
            if ffi::lua_type(self.state, OWN) != ffi::LUA_TTABLE {
                return Err(Stop::Malformed);
            }
            ffi::lua_rawgeti_(self.state, OWN, (ordinal as c_int).wrapping_add(1));
            if ffi::lua_type(self.state, -1) == ffi::LUA_TNIL { Err(Stop::Malformed) } else { Ok(()) }
        }
    }

    /// Pushes the next value.
    #[inline]
    unsafe fn value(&mut self, depth: usize) -> Step {
        let tag = self.reader.u8()?;
        // SAFETY: one value is pushed; room was made.
        unsafe {
            match tag {
                tag::NIL | tag::FALSE | tag::TRUE | tag::NUMBER | tag::INT => {
                    plain_value(self.state, &mut self.reader, tag)?;
                }
                tag::STR8 => {
                    let len = usize::from(self.reader.u8()?);
                    push_bytes(self.state, self.reader.take(len)?);
                }
                tag::STR32 => {
                    let len = self.reader.u32()? as usize;
                    push_bytes(self.state, self.reader.take(len)?);
                }
                tag::LIGHT => {
                    let pointer = self.reader.u64()? as usize;
                    ffi::lua_pushlightuserdata(self.state, pointer as *mut _);
                }
                tag::LENT => return self.lent(),
                tag::OWN_STRING => return self.own_string(),
                tag::KEY => {
                    if self.keys >= self.key_places {
                        return Err(Stop::Malformed);
                    }
                    push_bytes(self.state, self.reader.string()?);
                    ffi::lua_pushvalue(self.state, -1);
                    ffi::lua_replace(self.state, FIRST_KEY + self.keys);
                    self.keys += 1;
                }
                tag::KEYREF => {
                    let number = c_int::from(self.reader.u8()?);
                    if number >= self.keys {
                        return Err(Stop::Malformed);
                    }
                    ffi::lua_pushvalue(self.state, FIRST_KEY + number);
                }
                tag::NAMED => return self.named(),
                tag::POOL => (self.handles.push_pool)(self.state, self.reader.u32()?),
                tag::HANDLE => return self.handle(),
                tag::OWN => return self.push_own(),
                tag::REF => {
                    let ordinal = self.reader.varint()?;
                    return self.push_object(u32::try_from(ordinal).map_err(|_| Stop::Malformed)?);
                }
                _ if tag & tag::KIND == tag::TABLE => return self.table(tag, depth),
                _ if tag & tag::KIND == tag::CDATA => return self.cdata(tag),
                _ if tag & tag::KIND == tag::FUNC => return self.function(tag, depth),
                _ if tag & tag::KIND == tag::PACKED => return self.packed(tag, depth),
                _ => return Err(Stop::Malformed),
            }
        }
        Ok(())
    }

    /// Pushes the handle of an object that stands beside the bytes.
    unsafe fn handle(&mut self) -> Step {
        let number = usize::try_from(self.reader.varint()?).map_err(|_| Stop::Malformed)?;
        let message = self.message;
        let object = message.beside().handles.get(number).ok_or(Stop::Malformed)?;
        // SAFETY: one push, in the protected call; the message outlives it.
        unsafe { (self.handles.push_object)(self.state, object) };
        Ok(())
    }

    /// Pushes a string that was lent; made once, and kept for the outcome, which may speak of it.
    unsafe fn lent(&mut self) -> Step {
        let number = usize::try_from(self.reader.varint()?).map_err(|_| Stop::Malformed)?;
        let message = self.message;
        let lease = message.beside().lent.get(number).ok_or(Stop::Malformed)?;
        let Role::Job { origin, .. } = &mut self.role else { return Err(Stop::Malformed) };
        // SAFETY: a string is pushed. Should that raise, `decode` ends the reading.
        unsafe {
            if number < origin.strings.len() {
                ffi::lua_rawgeti_(self.state, OBJECTS, -1 - number as c_int);
                return Ok(());
            }
            // They are numbered as they are met.
            if number > origin.strings.len() {
                return Err(Stop::Malformed);
            }
            push_bytes(self.state, &*lease.begin());
            lease.end();
            origin.strings.push(luajit::string_at(self.state, -1).as_ptr());
            if ffi::lua_type(self.state, OBJECTS) == ffi::LUA_TNIL {
                ffi::lua_createtable(self.state, 0, 2);
                ffi::lua_replace(self.state, OBJECTS);
            }
            ffi::lua_pushvalue(self.state, -1);
            ffi::lua_rawseti_(self.state, OBJECTS, -1 - number as c_int);
            Ok(())
        }
    }

    /// Pushes a string that was lent to the job and comes back.
    unsafe fn own_string(&mut self) -> Step {
        let number = self.reader.varint()?;
        if number > MAX_LENT {
            return Err(Stop::Malformed);
        }
        // SAFETY: a table is asked for a field, or nothing happens.
        unsafe {
            if ffi::lua_type(self.state, OWN) != ffi::LUA_TTABLE {
                return Err(Stop::Malformed);
            }
            ffi::lua_rawgeti_(self.state, OWN, -1 - number as c_int);
            if ffi::lua_type(self.state, -1) == ffi::LUA_TSTRING { Ok(()) } else { Err(Stop::Malformed) }
        }
    }

    /// Pushes an FFI object, which Lua makes (`lua/msys/cdata.lua`).
    unsafe fn cdata(&mut self, tag: u8) -> Step {
        let name = self.reader.string()?;
        let bytes = self.reader.string()?;
        // SAFETY: three values at most, one of which is left. A raise ends the protected call.
        unsafe {
            luajit::push_registered(self.state, luajit::CDATA_UNPACK);
            push_bytes(self.state, name);
            push_bytes(self.state, bytes);
            ffi::lua_call(self.state, 2, 1);
            // Contents cannot be deferred: an object without any has nothing to be filled later.
            self.begin(tag & !tag::DEFERRED);
        }
        Ok(())
    }

    /// Pushes an object that its module's `__msys_unpack` makes.
    unsafe fn packed(&mut self, tag: u8, depth: usize) -> Step {
        if depth > 2 * MAX_DEPTH || tag & tag::DEFERRED != 0 {
            return Err(Stop::Malformed);
        }
        let module = self.reader.string()?;
        let ordinal = self.ordinals;
        self.ordinals = self.ordinals.wrapping_add(1);
        let kept = self.origin().map(|origin| origin.objects.push(std::ptr::null())).is_some();
        // SAFETY: a function and its argument become the object. A raise ends the protected call.
        unsafe {
            self.make_room_at(depth);
            let at = ffi::lua_gettop(self.state) + 1;
            self.push_named(module, b"__msys_unpack")?;
            self.value(depth + 1)?;
            ffi::lua_call(self.state, 1, 1);
            let is_object = matches!(
                ffi::lua_type(self.state, at),
                ffi::LUA_TTABLE | ffi::LUA_TFUNCTION | ffi::LUA_TUSERDATA | luajit::LUA_TCDATA
            );
            let object = if is_object { ffi::lua_topointer(self.state, at) } else { std::ptr::null() };
            if kept
                && let Some(origin) = self.origin()
                && let Some(place) = origin.objects.get_mut(ordinal as usize)
            {
                *place = object;
            }
            if kept || tag & tag::SHARED != 0 {
                if ffi::lua_type(self.state, at) == ffi::LUA_TNIL {
                    luajit::push_nothing(self.state);
                } else {
                    ffi::lua_pushvalue(self.state, at);
                }
                self.keep(ordinal);
                ffi::lua_settop(self.state, at);
            }
        }
        Ok(())
    }

    /// What is kept for the job's end, if the message asks for it.
    fn origin(&mut self) -> Option<&mut Origin> {
        match &mut self.role {
            Role::Job { origin, .. } if self.flags & flag::KEEP != 0 => Some(origin),
            _ => None,
        }
    }

    unsafe fn named(&mut self) -> Step {
        let module = self.reader.string()?;
        let field = self.reader.string()?;
        // SAFETY: one value is pushed.
        unsafe {
            if module == b"_G" && field.is_empty() && ffi::lua_type(self.state, ENVIRONMENT) == ffi::LUA_TTABLE {
                ffi::lua_pushvalue(self.state, ENVIRONMENT);
                return Ok(());
            }
            self.push_named(module, field)
        }
    }

    /// Pushes `package.loaded[module]`, or a field of it.
    unsafe fn push_named(&mut self, module: &[u8], field: &[u8]) -> Step {
        // SAFETY: four values at most. A module's `__index` may raise, which ends the decoding with its error.
        unsafe {
            ffi::lua_getfield_(self.state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
            push_bytes(self.state, module);
            ffi::lua_rawget_(self.state, -2);
            ffi::lua_remove(self.state, -2);
            // While a module is being loaded, and after it failed, LuaJIT keeps a light userdata in its place.
            let absent = matches!(
                ffi::lua_type(self.state, -1),
                ffi::LUA_TNIL | ffi::LUA_TBOOLEAN | ffi::LUA_TLIGHTUSERDATA
            );
            if absent {
                if !module.starts_with(b"msys.") {
                    return self.missing(module, b"");
                }
                // One of ours, which a worker loads when it needs it.
                ffi::lua_settop(self.state, -2);
                luajit::load_all(self.state);
                ffi::lua_getfield_(self.state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
                push_bytes(self.state, module);
                ffi::lua_rawget_(self.state, -2);
                ffi::lua_remove(self.state, -2);
                if ffi::lua_type(self.state, -1) == ffi::LUA_TNIL {
                    return self.missing(module, b"");
                }
            }
            if !field.is_empty() {
                push_bytes(self.state, field);
                ffi::lua_gettable_(self.state, -2);
                ffi::lua_remove(self.state, -2);
                if ffi::lua_type(self.state, -1) == ffi::LUA_TNIL {
                    return self.missing(module, field);
                }
            }
        }
        Ok(())
    }

    /// Raises what names the module that this VM lacks.
    unsafe fn missing(&mut self, module: &[u8], field: &[u8]) -> Step {
        // SAFETY: strings are pushed, joined and raised; nothing of Rust's is live.
        unsafe {
            push_bytes(self.state, if field.is_empty() { b"msys: module '" } else { b"msys: '" });
            push_bytes(self.state, module);
            if field.is_empty() {
                push_bytes(self.state, b"' is not loaded in this VM");
                ffi::lua_concat(self.state, 3);
            } else {
                push_bytes(self.state, b".");
                push_bytes(self.state, field);
                push_bytes(self.state, b"' does not exist in this VM");
                ffi::lua_concat(self.state, 5);
            }
            ffi::lua_error(self.state)
        }
    }

    /// Keeps the object on top of the stack for references to it.
    unsafe fn keep(&mut self, ordinal: u32) {
        // SAFETY: the table is made when it is first needed.
        unsafe {
            if ffi::lua_type(self.state, OBJECTS) == ffi::LUA_TNIL {
                ffi::lua_createtable(self.state, 4, 0);
                ffi::lua_replace(self.state, OBJECTS);
            }
            ffi::lua_pushvalue(self.state, -1);
            ffi::lua_rawseti_(self.state, OBJECTS, ordinal as c_int + 1);
        }
    }

    /// Pushes an object that was kept.
    unsafe fn push_object(&mut self, ordinal: u32) -> Step {
        // SAFETY: a table is asked for a field, or nothing happens.
        unsafe {
            if ordinal >= self.ordinals || ffi::lua_type(self.state, OBJECTS) != ffi::LUA_TTABLE {
                return Err(Stop::Malformed);
            }
            ffi::lua_rawgeti_(self.state, OBJECTS, ordinal as c_int + 1);
            if ffi::lua_type(self.state, -1) == ffi::LUA_TNIL {
                return Err(Stop::Malformed);
            }
            luajit::nil_for_nothing(self.state);
            Ok(())
        }
    }

    /// Numbers the object on top of the stack, and keeps it if it will be named again.
    unsafe fn begin(&mut self, tag: u8) -> u32 {
        let ordinal = self.ordinals;
        self.ordinals = self.ordinals.wrapping_add(1);
        // SAFETY: the caller has pushed the object.
        let object = unsafe { ffi::lua_topointer(self.state, -1) };
        let kept = self.origin().map(|origin| origin.objects.push(object)).is_some();
        if kept || tag & (tag::SHARED | tag::DEFERRED) != 0 {
            // SAFETY: as above.
            unsafe { self.keep(ordinal) };
        }
        if tag & tag::DEFERRED != 0 {
            self.scratch.deferred.push(Deferred { ordinal, tag });
        }
        ordinal
    }

    /// Reads how much a table has. Every item is a byte at least, every record two, or one under a shape's key: no more
    /// than that is believed.
    unsafe fn head(&mut self, tag: u8) -> Step<Head> {
        // SAFETY: nothing is left on the stack.
        unsafe {
            let (items, records, least) = if tag & tag::SHAPED != 0 {
                let items = self.reader.varint()?;
                let shape = self.shape()?;
                (items, Records::Shaped(shape), items.saturating_add(u64::from(shape.len)))
            } else {
                let (items, records) = (u64::from(self.reader.u32()?), self.reader.u32()?);
                (items, Records::Keyed(records), items + 2 * u64::from(records))
            };
            if least > self.reader.remaining() as u64 {
                return Err(Stop::Malformed);
            }
            Ok(Head { items: items as c_int, records })
        }
    }

    /// Reads a shape. A new one's keys are put into the table of shapes.
    #[inline]
    unsafe fn shape(&mut self) -> Step<Shape> {
        let number = self.reader.varint()?;
        if number == 0 {
            return Ok(Shape { first: 0, len: 0, uses: 0, constructor: false });
        }
        let place = (number - 1) as usize;
        let count = self.scratch.shapes.len();
        // SAFETY: as the caller.
        unsafe {
            match self.scratch.shapes.get_mut(place) {
                Some(shape) if shape.constructor || shape.uses > OFTEN => Ok(*shape),
                Some(shape) => {
                    shape.uses += 1;
                    let shape = *shape;
                    if shape.uses > OFTEN { self.construct(place, shape) } else { Ok(shape) }
                }
                None if place == count && place < MAX_SHAPES => self.new_shape(),
                None => Err(Stop::Malformed),
            }
        }
    }

    #[cold]
    unsafe fn new_shape(&mut self) -> Step<Shape> {
        let len = self.reader.u8()?;
        if !(1..=MAX_SHAPE).contains(&usize::from(len)) {
            return Err(Stop::Malformed);
        }
        let first = self.scratch.shapes.last().map_or(1, |last| last.first + c_int::from(last.len) + 1);
        // SAFETY: the table is made when it is first needed; strings are pushed and put into it.
        unsafe {
            if ffi::lua_type(self.state, SHAPES) == ffi::LUA_TNIL {
                ffi::lua_createtable(self.state, c_int::from(len) + 1, 0);
                ffi::lua_replace(self.state, SHAPES);
            }
            ffi::lua_pushboolean(self.state, 0);
            ffi::lua_rawseti_(self.state, SHAPES, first);
            for place in 1..=c_int::from(len) {
                push_bytes(self.state, self.reader.string()?);
                ffi::lua_rawseti_(self.state, SHAPES, first + place);
            }
        }
        let shape = Shape { first, len, uses: 0, constructor: false };
        self.scratch.shapes.push(shape);
        Ok(shape)
    }

    /// Finds or makes a constructor for a shape, if it can have one.
    #[cold]
    unsafe fn construct(&mut self, place: usize, mut shape: Shape) -> Step<Shape> {
        if shape.len > MAX_CONSTRUCTED {
            return Ok(shape);
        }
        let source = &mut self.scratch.source;
        source.clear();
        source.extend_from_slice(b"return function(");
        for value in 1..=shape.len {
            source.extend_from_slice(if value > 1 { b",v" } else { b"v" });
            source.extend_from_slice(value.to_string().as_bytes());
        }
        source.extend_from_slice(b") return {");
        // SAFETY: keys are pushed, read and taken off; the source belongs to `decode`'s caller.
        unsafe {
            for value in 1..=shape.len {
                ffi::lua_rawgeti_(self.state, SHAPES, shape.first + c_int::from(value));
                source.extend_from_slice(b"[\"");
                for byte in luajit::string_at(self.state, -1) {
                    source.extend_from_slice(&[b'\\', b'0' + byte / 100, b'0' + byte / 10 % 10, b'0' + byte % 10]);
                }
                source.extend_from_slice(b"\"]=v");
                source.extend_from_slice(value.to_string().as_bytes());
                source.push(b',');
                ffi::lua_settop(self.state, -2);
            }
            source.extend_from_slice(b"} end");
            if self.functions.push_constructor(self.state, &self.scratch.source) {
                ffi::lua_rawseti_(self.state, SHAPES, shape.first);
                shape.constructor = true;
            }
        }
        if let Some(known) = self.scratch.shapes.get_mut(place) {
            *known = shape;
        }
        Ok(shape)
    }

    unsafe fn table(&mut self, tag: u8, depth: usize) -> Step {
        if depth > 2 * MAX_DEPTH {
            return Err(Stop::Malformed);
        }
        // SAFETY: the table stays on the stack while it is filled.
        unsafe {
            self.make_room_at(depth);
            if tag & tag::DEFERRED != 0 {
                ffi::lua_createtable(self.state, 0, 0);
                self.begin(tag);
                return Ok(());
            }
            let head = self.head(tag)?;
            let records = match head.records {
                Records::Keyed(count) => count as c_int,
                Records::Shaped(shape) if shape.constructor && tag & tag::SHARED == 0 && head.items == 0 => {
                    return self.constructed(tag, shape, depth);
                }
                Records::Shaped(shape) => c_int::from(shape.len),
            };
            ffi::lua_createtable(self.state, head.items, records);
            let at = ffi::lua_gettop(self.state);
            self.begin(tag);
            self.contents(at, head, depth)?;
            self.metatable(at, tag, depth)
        }
    }

    /// Pushes a table that a constructor makes. Nothing in it refers to it, so it may come after its values.
    unsafe fn constructed(&mut self, tag: u8, shape: Shape, depth: usize) -> Step {
        let ordinal = self.ordinals;
        self.ordinals = self.ordinals.wrapping_add(1);
        let kept = self.origin().map(|origin| origin.objects.push(std::ptr::null())).is_some();
        // SAFETY: room is made for the values; a function and its arguments become a table.
        unsafe {
            self.make_room(c_int::from(MAX_CONSTRUCTED) + 2);
            ffi::lua_rawgeti_(self.state, SHAPES, shape.first);
            for _ in 0..shape.len {
                self.value(depth + 1)?;
            }
            self.harmless = true;
            ffi::lua_call(self.state, c_int::from(shape.len), 1);
            self.harmless = false;
            if kept {
                let object = ffi::lua_topointer(self.state, -1);
                if let Some(origin) = self.origin()
                    && let Some(place) = origin.objects.get_mut(ordinal as usize)
                {
                    *place = object;
                }
                self.keep(ordinal);
            }
            let at = ffi::lua_gettop(self.state);
            self.metatable(at, tag, depth)
        }
    }

    unsafe fn contents(&mut self, at: c_int, head: Head, depth: usize) -> Step {
        // SAFETY: each assignment takes off what was pushed. A nil or NaN key raises.
        unsafe {
            for place in 1..=head.items {
                self.value(depth + 1)?;
                ffi::lua_rawseti_(self.state, at, place);
            }
            match head.records {
                Records::Keyed(count) => {
                    for _ in 0..count {
                        self.value(depth + 1)?;
                        self.value(depth + 1)?;
                        ffi::lua_rawset(self.state, at);
                    }
                }
                Records::Shaped(shape) => {
                    for place in 1..=c_int::from(shape.len) {
                        ffi::lua_rawgeti_(self.state, SHAPES, shape.first + place);
                        self.value(depth + 1)?;
                        ffi::lua_rawset(self.state, at);
                    }
                }
            }
            Ok(())
        }
    }

    unsafe fn metatable(&mut self, at: c_int, tag: u8, depth: usize) -> Step {
        if tag & tag::META == 0 {
            return Ok(());
        }
        // SAFETY: only a table may become a metatable.
        unsafe {
            self.value(depth + 1)?;
            if ffi::lua_type(self.state, -1) != ffi::LUA_TTABLE {
                return Err(Stop::Malformed);
            }
            ffi::lua_setmetatable(self.state, at);
            Ok(())
        }
    }

    unsafe fn function(&mut self, tag: u8, depth: usize) -> Step {
        if depth > 2 * MAX_DEPTH {
            return Err(Stop::Malformed);
        }
        let code = usize::try_from(self.reader.varint()?).map_err(|_| Stop::Malformed)?;
        let message = self.message;
        let code = message.code(code).ok_or(Stop::Malformed)?;
        // SAFETY: the message, and so the code, outlives the call.
        unsafe {
            self.make_room_at(depth);
            if !self.functions.push_closure(self.state, code) {
                return Err(Stop::Code);
            }
            let at = ffi::lua_gettop(self.state);
            if tag & tag::ENV == 0 && ffi::lua_type(self.state, ENVIRONMENT) == ffi::LUA_TTABLE {
                ffi::lua_pushvalue(self.state, ENVIRONMENT);
                ffi::lua_setfenv(self.state, at);
            }
            let ordinal = self.begin(tag);
            if tag & tag::DEFERRED != 0 {
                return Ok(());
            }
            self.cells_of(at, ordinal, tag, depth)
        }
    }

    /// Environment and upvalues of the closure at `at`.
    unsafe fn cells_of(&mut self, at: c_int, ordinal: u32, tag: u8, depth: usize) -> Step {
        // SAFETY: as `table`; indices of upvalues are checked by LuaJIT (setupvalue) or here (join).
        unsafe {
            if tag & tag::ENV != 0 {
                self.value(depth + 1)?;
                if ffi::lua_type(self.state, -1) != ffi::LUA_TTABLE {
                    return Err(Stop::Malformed);
                }
                ffi::lua_setfenv(self.state, at);
            }
            let count = self.reader.u8()?;
            for upvalue in 1..=count {
                let cell = self.reader.u8()?;
                match cell {
                    tag::CELL | tag::CELL_SHARED => {
                        self.scratch.cells.push((ordinal, upvalue));
                        self.value(depth + 1)?;
                        if ffi::lua_setupvalue(self.state, at, c_int::from(upvalue)).is_null() {
                            return Err(Stop::Malformed);
                        }
                    }
                    tag::CELLREF => {
                        let number = usize::try_from(self.reader.varint()?).map_err(|_| Stop::Malformed)?;
                        let (owner, place) = self.scratch.cells.get(number).copied().ok_or(Stop::Malformed)?;
                        self.push_object(owner)?;
                        self.join(at, upvalue, place)?;
                    }
                    tag::CELL_OWN => {
                        self.push_own()?;
                        let place = self.reader.u8()?;
                        self.join(at, upvalue, place)?;
                    }
                    _ => return Err(Stop::Malformed),
                }
            }
            Ok(())
        }
    }

    /// Ties upvalue `mine` of the closure at `at` to cell `theirs` of the closure on top, which is taken off.
    unsafe fn join(&mut self, at: c_int, mine: u8, theirs: u8) -> Step {
        let (mine, theirs) = (c_int::from(mine), c_int::from(theirs));
        // SAFETY: LuaJIT checks neither the type nor the indices in a release build, so they are checked here.
        unsafe {
            let owner = ffi::lua_gettop(self.state);
            let has = |function: c_int, upvalue: c_int| {
                let has = ffi::lua_type(self.state, function) == ffi::LUA_TFUNCTION
                    && ffi::lua_iscfunction(self.state, function) == 0
                    && !ffi::lua_getupvalue(self.state, function, upvalue).is_null();
                ffi::lua_settop(self.state, owner);
                has
            };
            if !has(owner, theirs) || !has(at, mine) {
                return Err(Stop::Malformed);
            }
            lua_upvaluejoin(self.state, at, mine, owner, theirs);
            ffi::lua_settop(self.state, owner - 1);
            Ok(())
        }
    }
}
