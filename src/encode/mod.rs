//! Lua values to a message (format and the reasons for it: `wire`).
//!
//! Called by `host`, through [`encode`]: an outer function that cannot raise around an inner one that can. The inner
//! one stops at the first value that cannot cross; Lua then looks for the path to it (`lua/msys/refusal.lua`),
//! so that the usual message pays nothing for paths.

mod extras;
mod functions;
mod objects;
mod plain;
mod shapes;
mod tree;
mod values;

use std::ffi::{c_int, c_void};

use rustc_hash::FxHashMap;

use crate::{
    functions::{Functions, Handles},
    layout::Table,
    luajit::{ffi, lua_State, string_at},
    origin::Origin,
    wire::{self, Message, flag, put_varint, tag},
};

pub(crate) use plain::write as write_plain;
use values::Metatable;

/// Why a message could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There may be names that the VM has not learnt: scan the modules and encode again.
    Scan,
    /// A value cannot cross; it is on top of the stack.
    Value,
    /// As `Value`, in a change that the job made of what it was sent.
    Change,
    /// The message is larger than allowed.
    TooLarge,
    /// LuaJIT raised (out of memory): the error is on top of the stack.
    Raised,
    /// What is sent may be collected before it is written: begin again, and hold it. Not seen outside.
    Hold,
}

/// What the values are.
#[derive(Clone, Copy, Debug)]
pub enum Purpose<'a> {
    /// A job's closure, its completion and arguments.
    Job {
        /// Objects are kept, for the outcome to speak of.
        keep: bool,
        /// Globals come along.
        capture: bool,
        /// Long strings are lent: they are kept too.
        lend: bool,
    },
    /// A job's outcome.
    Outcome(Option<Back<'a>>),
}

/// What an outcome says of the submitter's objects. Two more values are on top of the outcome's: the list of changes
/// (see
/// `changes`) or nil, and the table of the job's objects.
#[derive(Clone, Copy, Debug)]
pub struct Back<'a> {
    /// What the job came in.
    pub origin: &'a Origin,
    /// How many changes are listed.
    pub changes: c_int,
}

/// What is asked of an encoding.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// How many values there are on top of the stack, below those of [`Back`].
    pub count: c_int,
    /// The largest message, in bytes.
    pub limit: usize,
    /// The modules have just been scanned: what has no name now has none.
    pub scanned: bool,
    /// What they are.
    pub purpose: Purpose<'a>,
}

/// Memory that an encoding needs and the next one uses again.
#[derive(Debug, Default)]
pub struct Scratch {
    /// What is written, until all of it is known to cross.
    bytes: Vec<u8>,
    objects: objects::Objects,
    cells: FxHashMap<*const c_void, SeenCell>,
    keys: FxHashMap<*const u8, u8>,
    shapes: shapes::Shapes,
    /// A key's bytes.
    key: Vec<u8>,
    dump: Vec<u8>,
    /// Which of the message's codes belong to functions that see the globals.
    sees_globals: Vec<bool>,
    /// The globals that those name. The message keeps the codes, and so the names.
    naming: Vec<*const [u8]>,
    /// Globals that are in the message, by the address of their name.
    globals: Vec<*const u8>,
    /// Globals that cannot cross: name and reason.
    left_out: Vec<(Vec<u8>, String)>,
    /// The objects that are being packed, the outermost first.
    packing: Vec<Packing>,
    /// Why the refused value cannot cross, if that is more than its kind.
    why: String,
    /// The last message had to be held.
    held_last: bool,
    /// The submitter's objects and cells, by address, once an outcome has asked for one.
    own: objects::Objects,
    own_cells: FxHashMap<*const c_void, (u32, u8)>,
}

impl Scratch {
    fn clear(&mut self) {
        /// A map that has grown beyond this, and whose last message needed little of it, is given back.
        const KEEP: usize = 4096;
        fn empty<K, V>(map: &mut FxHashMap<K, V>) {
            if map.capacity() > KEEP && map.len() < map.capacity() / 16 {
                *map = FxHashMap::default();
            }
            map.clear();
        }
        self.objects.clear();
        empty(&mut self.cells);
        self.own.clear();
        empty(&mut self.own_cells);
        self.keys.clear();
        self.shapes.clear();
        self.sees_globals.clear();
        self.naming.clear();
        self.globals.clear();
        self.packing.clear();
        self.why.clear();
    }

    /// Why the value that was refused last cannot cross, if that is more than its kind.
    pub fn why(&self) -> Option<&str> {
        (!self.why.is_empty()).then_some(&self.why)
    }
}

/// An object whose `__msys_pack` is called, or whose packed value is being written.
#[derive(Clone, Copy, Debug)]
struct Packing {
    ordinal: u32,
    /// Its stack index.
    at: c_int,
}

/// A cell met before.
#[derive(Clone, Copy, Debug)]
struct SeenCell {
    ordinal: u32,
    tag_at: usize,
    /// The tag of the function in which it was met: the decoder finds the cell through that function.
    function_tag_at: usize,
}

struct Encoder<'a> {
    state: *mut lua_State,
    functions: &'a Functions,
    handles: Handles,
    /// Of `scratch`; becomes the message's.
    bytes: Vec<u8>,
    message: &'a mut Message,
    scratch: &'a mut Scratch,
    request: Request<'a>,
    /// Stack index of the table of objects whose contents are still to be written, or of a nil.
    deferred: c_int,
    deferred_count: c_int,
    /// The next one to be written.
    deferred_next: c_int,
    /// Stack index of the table of kept objects, or of a nil.
    kept: c_int,
    /// Ordinal 0 is the first value, the closure: it is kept only if there is a reason to keep anything.
    root_is_first: bool,
    /// Stack index of the environment that the job's functions have in this VM, if they are of a job here; else of a
    /// nil.
    environment: c_int,
    ordinals: u32,
    cells: u32,
    /// How many bytes have been lent: they count as the message's.
    lent_size: usize,
    flags: u8,
    /// Something of the message can be assigned, or come back as itself: a cell that its function assigns or shares
    /// with functions that it makes, the closure.
    mutable: bool,
    /// Tables were written, which may be modules by now.
    has_tables: bool,
    /// Which of the names of globals is next.
    next_name: usize,
    /// The global that is being written: if it cannot cross, it is left out. Lives as long as its code.
    global: Option<*const [u8]>,
    /// Stack index of the table of the job's objects.
    theirs: c_int,
    in_changes: bool,
    /// The last metatables that had no `__msys_pack`.
    plain: [*const Table; 4],
    /// Stack index of the table of what is held until the message is written, or of a nil.
    held: c_int,
    held_count: c_int,
    /// All that is told by its address is held: the message has weak tables, or objects that pack themselves, which run
    /// Lua. Nothing else that is sent can be collected meanwhile.
    holding: bool,
    /// Something was met for which that is needed.
    needs_hold: bool,
    /// A string was not written, because the message would have been too large.
    overflows: bool,
    refusal: Option<Refusal>,
}

/// The inner function's way to stop.
struct Stop;
type Step<T = ()> = Result<T, Stop>;

/// Encodes the topmost values of the stack, and removes them, into `message`. What is kept for the outcome, a table or
/// nil, is left in their place.
///
/// On a refusal, the one value left is what was refused, or LuaJIT's error; nil for the other reasons.
///
/// # Safety
/// `state` is the VM of `functions`, on this thread; the values are on the stack, with two more slots free; `inner` is
/// the stack index of [`inner`] as a C function.
pub unsafe fn encode(
    state: *mut lua_State,
    inner: c_int,
    request: Request<'_>,
    functions: &Functions,
    handles: Handles,
    message: &mut Message,
    scratch: &mut Scratch,
) -> Result<(), Refusal> {
    scratch.left_out.clear();
    let (beside, changes) = match request.purpose {
        Purpose::Outcome(Some(back)) => (2, back.changes),
        _ => (0, 0),
    };
    // SAFETY: the values are there; they are taken off for a nil.
    unsafe {
        let last = ffi::lua_gettop(state) - beside;
        let first = last + 1 - request.count;
        if changes == 0 && plain::write(state, (first, last), &request, functions, message, scratch).is_some() {
            ffi::lua_settop(state, first - 1);
            ffi::lua_pushnil(state);
            return Ok(());
        }
    }
    let mut encoder = Encoder {
        state,
        functions,
        handles,
        bytes: std::mem::take(&mut scratch.bytes),
        message,
        scratch,
        request,
        deferred: 0,
        deferred_count: 0,
        deferred_next: 0,
        kept: 0,
        root_is_first: false,
        environment: 0,
        ordinals: 0,
        cells: 0,
        lent_size: 0,
        flags: 0,
        mutable: false,
        has_tables: false,
        next_name: 0,
        global: None,
        theirs: 0,
        in_changes: false,
        plain: [std::ptr::null(); 4],
        held: 0,
        held_count: 0,
        holding: false,
        needs_hold: false,
        overflows: false,
        refusal: None,
    };
    encoder.holding = encoder.scratch.held_last;
    let count = request.count + beside;
    // SAFETY: two pushes, for which there is room, and which do not allocate; the encoder outlives the protected call.
    let rc = unsafe {
        ffi::lua_checkstack(state, 4);
        ffi::lua_pushvalue(state, inner);
        ffi::lua_insert(state, -count - 1);
        ffi::lua_pushlightuserdata(state, (&raw mut encoder).cast());
        ffi::lua_insert(state, -count - 1);
        ffi::lua_pcall(state, count + 1, 1, 0)
    };
    let refusal = if rc == ffi::LUA_OK { encoder.refusal } else { Some(Refusal::Raised) };
    encoder.scratch.held_last = encoder.needs_hold;
    encoder.message.take_bytes(&mut encoder.bytes);
    wire::empty(&mut encoder.bytes);
    encoder.scratch.bytes = encoder.bytes;
    refusal.map_or(Ok(()), Err)
}

/// The protected part: arguments are the encoder and the values; gives what is kept, or the refused value.
///
/// # Safety
/// Called by [`encode`] only.
pub unsafe extern "C-unwind" fn inner(state: *mut lua_State) -> c_int {
    // SAFETY: the first argument is the encoder in `encode`'s frame, which waits for this call and does not touch it.
    // The call may have come through another coroutine's frame of the same VM: its state is the one to work on.
    unsafe {
        let encoder = &mut *ffi::lua_touserdata(state, 1).cast::<Encoder<'_>>();
        encoder.state = state;
        let top = ffi::lua_gettop(state);
        while encoder.message_from(2).is_err() {
            let again = match encoder.refusal {
                Some(Refusal::Hold) => {
                    encoder.holding = true;
                    true
                }
                Some(Refusal::Value) => encoder.leave_out(),
                _ => false,
            };
            if !again {
                // What was refused is on top.
                return 1;
            }
            ffi::lua_settop(state, top);
        }
        ffi::lua_pushvalue(state, encoder.kept);
        1
    }
}

impl Encoder<'_> {
    /// Writes the values from stack index `first` on.
    ///
    /// # Safety
    /// (this and the following) In the protected call, with the state's stack as the doc says. What they hold is
    /// `Copy`.
    unsafe fn message_from(&mut self, first: c_int) -> Step {
        self.scratch.clear();
        self.message.clear_values();
        self.bytes.clear();
        self.refusal = None;
        (self.deferred_count, self.deferred_next, self.ordinals, self.cells, self.flags) = (0, 0, 0, 0, 0);
        (self.mutable, self.in_changes, self.root_is_first, self.held_count, self.lent_size) = (false, false, false, 0, 0);
        (self.next_name, self.global, self.overflows) = (0, None, false);
        self.plain = [std::ptr::null(); 4];
        // SAFETY: room is made before it is used.
        unsafe {
            let top = ffi::lua_gettop(self.state);
            self.make_room(0);
            ffi::lua_settop(self.state, top + 4);
            (self.deferred, self.kept, self.environment, self.held) = (top + 1, top + 2, top + 3, top + 4);
            let back = if let Purpose::Outcome(back) = self.request.purpose { back } else { None };
            self.theirs = top;
            let last = if back.is_some() { top - 2 } else { top };
            self.bytes.extend_from_slice(&wire::HEAD);
            put_varint(&mut self.bytes, (last + 1 - first) as u64);
            for at in first..=last {
                self.value(at, 0)?;
            }
            self.bodies()?;
            if let Some(back) = back {
                self.in_changes = true;
                self.changes(top - 1, back.changes)?;
            }
            while self.next_global()? {
                self.bodies()?;
            }
            if self.has_tables && !self.request.scanned && self.functions.modules_changed(self.state) {
                return self.refuse(Refusal::Scan);
            }
            self.settle_flags(first);
            if let Some([_, flags, keys, objects @ ..]) = self.bytes.first_chunk_mut::<{ wire::HEADER }>() {
                *flags = self.flags;
                *keys = self.scratch.keys.len() as u8;
                *objects = self.ordinals.to_le_bytes();
            }
            self.check_size()
        }
    }

    /// Makes room for values at this depth, where not enough may be left: for four slots a level, those of all tables on
    /// the way (`tree`), and what is pushed meanwhile. Room for the deepest nesting at once would be two kilobytes of
    /// each coroutine that sends. (Where there is none left, LuaJIT's pushes make some; that they may raise does no harm
    /// here.)
    ///
    /// # Safety
    /// As `message_from`. May raise.
    #[inline]
    unsafe fn make_room(&mut self, depth: usize) {
        /// Every so many levels.
        const LEVELS: usize = 8;
        if depth.is_multiple_of(LEVELS) {
            let room = (depth + LEVELS * 5 + 40) as c_int;
            // SAFETY: the caller's promise.
            unsafe { ffi::luaL_checkstack_(self.state, room, c"too many values to send".as_ptr()) };
        }
    }

    /// Writes the contents of all deferred objects.
    unsafe fn bodies(&mut self) -> Step {
        // SAFETY: the table holds what `defer` has put there.
        unsafe {
            while self.deferred_next < self.deferred_count {
                self.deferred_next += 1;
                ffi::lua_rawgeti_(self.state, self.deferred, self.deferred_next);
                let at = ffi::lua_gettop(self.state);
                let object = ffi::lua_topointer(self.state, at);
                let tag_at = self.scratch.objects.get(object).map_or(0, |seen| seen.tag_at as usize);
                if ffi::lua_type(self.state, at) == ffi::LUA_TTABLE {
                    let had_meta = self.bytes.get(tag_at).is_some_and(|tag| tag & tag::META != 0);
                    let meta = ffi::lua_getmetatable(self.state, at) != 0;
                    if meta != had_meta {
                        self.changed();
                    }
                    let kind = if meta { self.kind_of_metatable(at + 1) } else { Metatable::Plain };
                    if matches!(kind, Metatable::Packer) {
                        self.changed();
                    }
                    self.table_body(at, tag_at, kind, 0)?;
                    if meta {
                        self.value(at + 1, 1)?;
                    }
                } else {
                    self.cells_of(at, tag_at, 0)?;
                }
                ffi::lua_settop(self.state, at - 1);
            }
            Ok(())
        }
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

    /// Decides what the outcome may speak of, and keeps what that needs; nothing, if nothing can have changed.
    unsafe fn settle_flags(&mut self, first: c_int) {
        let Purpose::Job { keep, .. } = self.request.purpose else { return };
        if self.functions.shares_globals.get() {
            self.flags &= !(flag::ENV | flag::OPEN_ENV);
        }
        // SAFETY: slots made by `message_from`; the table is on its slot, or made now.
        unsafe {
            let has_kept = ffi::lua_type(self.state, self.kept) == ffi::LUA_TTABLE;
            if !keep || !(self.ordinals > 1 || self.mutable || self.flags & flag::ENV != 0) {
                return;
            }
            self.flags |= flag::KEEP;
            if !has_kept {
                ffi::lua_createtable(self.state, 1, 1);
                ffi::lua_replace(self.state, self.kept);
            }
            if self.root_is_first {
                ffi::lua_pushvalue(self.state, first);
                ffi::lua_rawseti_(self.state, self.kept, 1);
            }
            if self.flags & flag::ENV != 0 {
                if ffi::lua_type(self.state, self.environment) == ffi::LUA_TTABLE {
                    ffi::lua_pushvalue(self.state, self.environment);
                } else {
                    self.functions.push_globals(self.state);
                }
                ffi::lua_rawseti_(self.state, self.kept, 0);
            }
        }
    }

    /// Whatever a message may be allowed, places in it are numbers of 32 bits.
    #[inline]
    fn check_size(&mut self) -> Step {
        if self.overflows || self.bytes.len().saturating_add(self.lent_size) > self.request.limit {
            return self.refuse(Refusal::TooLarge);
        }
        Ok(())
    }

    fn refuse(&mut self, refusal: Refusal) -> Step {
        self.refusal = Some(refusal);
        if refusal != Refusal::Value && refusal != Refusal::Change {
            // SAFETY: `message_from` has made room.
            unsafe { ffi::lua_pushnil(self.state) };
        }
        Err(Stop)
    }

    /// Refuses the value at `at`.
    unsafe fn refuse_value(&mut self, at: c_int) -> Step {
        // SAFETY: as above. A kind's name is copied at once.
        unsafe {
            if !self.scratch.packing.is_empty() {
                self.functions.push_kind(self.state, at);
                let kind = String::from_utf8_lossy(string_at(self.state, -1)).into_owned();
                return self.refuse_packing(&format!("what its __msys_pack gives cannot be sent: {kind}"));
            }
            ffi::lua_pushvalue(self.state, at);
        }
        self.refuse(if self.in_changes { Refusal::Change } else { Refusal::Value })
    }

    /// Refuses the value at `at`; but first, what it is part of may turn out to have a name.
    unsafe fn refuse_unless_named(&mut self, at: c_int) -> Step {
        // SAFETY: as above. A global is left out at each call: only what has been loaded since is worth a scan.
        unsafe {
            if self.request.scanned || (self.global.is_some() && !self.functions.modules_changed(self.state)) {
                self.refuse_value(at)
            } else {
                self.refuse(Refusal::Scan)
            }
        }
    }
}
