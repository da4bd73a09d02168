//! A VM with msys's Lua face in it, whose memory is watched: for the tests and fuzz targets of what goes from VM to VM.
//!
//! It needs Debian's libluajit: `cargo test --no-default-features`.

#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

use std::{
    ffi::{CStr, CString, c_int, c_void},
    sync::Arc,
};

use msys::{
    changes::{self, Wanted},
    decode::{self, Raised, Role},
    encode::{self, Back, Purpose, Refusal, Request},
    functions::Handles,
    host,
    job::Inbox,
    luajit::{ffi, lua_State, string_at},
    mailbox::Mailbox,
    origin::Origin,
    vm::Vm,
    waker::Waker,
    wire::{Handle, Message, Object},
};

/// Stack places of the protected halves.
const ENCODE: c_int = 1;
const DECODE: c_int = 2;
const CHANGES: c_int = 3;
const BASE: c_int = 3;

/// The ticket and the slot under which the harness keeps what belongs to its one job.
pub const TICKET: u64 = 1;
const SLOT: usize = 0;

/// What stands between LuaJIT and its allocator.
pub struct Watch {
    inner: ffi::lua_Alloc,
    data: *mut c_void,
    /// Bytes in use.
    pub used: usize,
    /// The most that there have been since this was set.
    pub peak: usize,
    /// How many growing requests may still be met; then one is not.
    pub countdown: Option<usize>,
    /// One was not met.
    pub failed: bool,
}

unsafe extern "C" fn watched(watch: *mut c_void, block: *mut c_void, old: usize, new: usize) -> *mut c_void {
    // SAFETY: installed with a `Watch` that outlives the VM; blocks are LuaJIT's.
    unsafe {
        let watch = &mut *watch.cast::<Watch>();
        if new > old
            && let Some(left) = &mut watch.countdown
        {
            if *left == 0 {
                watch.countdown = None;
                watch.failed = true;
                return std::ptr::null_mut();
            }
            *left -= 1;
        }
        let given = (watch.inner)(watch.data, block, old, new);
        if new == 0 || !given.is_null() {
            watch.used = watch.used + new - old;
            watch.peak = watch.peak.max(watch.used);
        }
        given
    }
}

pub struct Harness {
    pub state: *mut lua_State,
    pub vm: Box<Vm>,
    pub watch: Box<Watch>,
}

impl Harness {
    pub fn new() -> Self {
        // SAFETY: a new VM of this thread; its allocator is wrapped before anything large is made.
        let (state, watch) = unsafe {
            let state = ffi::luaL_newstate();
            assert!(!state.is_null());
            let mut data = std::ptr::null_mut();
            let inner = ffi::lua_getallocf(state, &mut data);
            let mut watch = Box::new(Watch { inner, data, used: 0, peak: 0, countdown: None, failed: false });
            watch.used = ffi::lua_gc(state, ffi::LUA_GCCOUNT, 0) as usize * 1024
                + ffi::lua_gc(state, ffi::LUA_GCCOUNTB, 0) as usize;
            ffi::lua_setallocf(state, watched, (&raw mut *watch).cast());
            ffi::luaL_openlibs(state);
            (state, watch)
        };
        // SAFETY: as above.
        let lua = unsafe { mlua::Lua::get_or_init_from_ptr(state) };
        let inbox = Inbox::new(Mailbox::new(Waker::for_this_thread()));
        let mut vm = Box::new(Vm::new(host::functions_of(lua).expect("memory"), inbox, None, None));
        let native = host::open_worker(lua, &raw mut *vm).expect("memory");
        let package: mlua::Table = lua.globals().get("package").expect("package");
        let root = env!("CARGO_MANIFEST_DIR").trim_end_matches("/fuzz");
        package.set("path", format!("{root}/lua/?.lua;{root}/lua/?/init.lua")).expect("memory");
        let loaded: mlua::Table = package.get("loaded").expect("package.loaded");
        loaded.set("msys.native", native).expect("memory");
        // SAFETY: three functions at the bottom of the stack.
        unsafe {
            ffi::lua_settop(state, 0);
            ffi::lua_pushcclosure(state, encode::inner, 0);
            ffi::lua_pushcclosure(state, decode::inner, 0);
            ffi::lua_pushcclosure(state, changes::inner, 0);
        }
        let harness = Self { state, vm, watch };
        harness.run("local msys = require 'msys' require('msys.names').scan() _G.msys = msys");
        harness
    }

    /// Runs Lua code, leaving what it returns on the stack; gives how many values.
    pub fn run(&self, code: &str) -> c_int {
        self.try_run(code).unwrap_or_else(|text| panic!("{text}"))
    }

    pub fn try_run(&self, code: &str) -> Result<c_int, String> {
        let code = CString::new(code).expect("no zero byte");
        // SAFETY: the VM's own stack; errors are caught.
        unsafe {
            let top = ffi::lua_gettop(self.state);
            let failed = ffi::luaL_loadstring(self.state, code.as_ptr()) != ffi::LUA_OK
                || ffi::lua_pcall(self.state, 0, ffi::LUA_MULTRET, 0) != ffi::LUA_OK;
            if failed {
                let text = self.text(-1);
                ffi::lua_settop(self.state, top);
                return Err(text);
            }
            Ok(ffi::lua_gettop(self.state) - top)
        }
    }

    /// The string at `at`.
    pub fn text(&self, at: c_int) -> String {
        // SAFETY: a string's bytes are copied.
        unsafe {
            if ffi::lua_type(self.state, at) != ffi::LUA_TSTRING {
                let kind = CStr::from_ptr(ffi::lua_typename(self.state, ffi::lua_type(self.state, at)));
                return format!("({})", kind.to_string_lossy());
            }
            String::from_utf8_lossy(string_at(self.state, at)).into_owned()
        }
    }

    /// Forgets all values.
    pub fn clear(&self) {
        // SAFETY: the protected halves stay.
        unsafe { ffi::lua_settop(self.state, BASE) };
    }

    /// Collects garbage; gives the bytes in use.
    pub fn collect(&mut self) -> usize {
        for _ in 0..3 {
            // SAFETY: finalizers of the tests do not raise.
            unsafe { ffi::lua_gc(self.state, ffi::LUA_GCCOLLECT, 0) };
        }
        self.watch.used
    }

    /// Encodes all values as a job's message, whose objects are kept.
    pub fn encode_job(&self, message: &mut Message) -> Result<(), Refusal> {
        let result = self.encode(message, Purpose::Job { keep: true, capture: true, lend: true }, 0);
        if result.is_ok() {
            // SAFETY: what is kept is on top.
            unsafe { self.vm.functions.store(self.state, self.vm.functions.kept, TICKET as c_int) };
        }
        result
    }

    fn encode(&self, message: &mut Message, purpose: Purpose<'_>, extra: c_int) -> Result<(), Refusal> {
        let mut scratch = self.vm.take_scratch();
        // SAFETY: the values are on the stack above the protected halves.
        let result = unsafe {
            ffi::lua_checkstack(self.state, 8);
            let count = ffi::lua_gettop(self.state) - BASE - extra;
            let request = Request { count, limit: u32::MAX as usize, scanned: true, purpose };
            encode::encode(
                self.state,
                ENCODE,
                request,
                &self.vm.functions,
                NO_HANDLES,
                message,
                &mut scratch.encode,
            )
        };
        self.vm.return_scratch(scratch);
        result
    }

    fn decode(&self, message: &Message, role: Role<'_>) -> Result<c_int, Raised> {
        // SAFETY: as above; there is room for what is pushed.
        let quick = unsafe {
            ffi::lua_checkstack(self.state, decode::PLAIN_ROOM as c_int);
            decode::quick(self.state, &self.vm.functions, message, &role)
        };
        if let Some(result) = quick {
            return result;
        }
        let mut scratch = self.vm.take_scratch();
        // SAFETY: as above.
        let result = unsafe {
            ffi::lua_checkstack(self.state, 8);
            decode::decode(
                self.state,
                DECODE,
                &self.vm.functions,
                NO_HANDLES,
                message,
                &mut scratch.decode,
                role,
            )
        };
        self.vm.return_scratch(scratch);
        result
    }

    /// Decodes a job's message, leaving its values on the stack.
    pub fn decode_job(&self, message: &mut Message, origin: &mut Origin) -> Result<c_int, Raised> {
        let result = self.decode(message, Role::Job { slot: SLOT, origin });
        if result.is_ok() {
            std::mem::swap(&mut origin.bytes, &mut message.bytes);
        }
        result
    }

    /// Encodes all values as the outcome of the job that came in `origin`, with its changes.
    pub fn encode_outcome(&self, message: &mut Message, origin: &Origin) -> Result<(), Refusal> {
        let mut back = None;
        if origin.keeps() {
            let mut scratch = self.vm.take_scratch();
            // SAFETY: the slot's table belongs to the origin.
            let collected = unsafe {
                ffi::lua_checkstack(self.state, 8);
                self.vm.functions.recall(self.state, self.vm.functions.theirs, SLOT as c_int);
                let functions = &self.vm.functions;
                let wanted = Wanted::Changes;
                changes::collect(
                    self.state,
                    CHANGES,
                    functions,
                    NO_HANDLES,
                    origin,
                    &mut scratch.changes,
                    wanted,
                )
            };
            self.vm.return_scratch(scratch);
            let changes = collected.map_err(|changes::Raised| Refusal::Raised)?;
            // SAFETY: as above.
            unsafe { self.vm.functions.recall(self.state, self.vm.functions.theirs, SLOT as c_int) };
            back = Some(Back { origin, changes });
        }
        let extra = if back.is_some() { 2 } else { 0 };
        self.encode(message, Purpose::Outcome(back), extra)
    }

    /// Decodes an outcome of the job whose objects were kept by `encode_job`.
    pub fn decode_outcome(&self, message: &Message) -> Result<c_int, Raised> {
        self.decode(message, Role::Outcome(Some(TICKET)))
    }

    /// Ends the job: nothing of it is kept.
    pub fn end(&self) {
        // SAFETY: nils are stored.
        unsafe {
            ffi::lua_settop(self.state, BASE);
            ffi::lua_pushnil(self.state);
            self.vm.functions.store(self.state, self.vm.functions.kept, TICKET as c_int);
            ffi::lua_pushnil(self.state);
            self.vm.functions.store(self.state, self.vm.functions.theirs, SLOT as c_int);
            self.vm.functions.reset_environment(self.state);
        }
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        // SAFETY: LuaJIT closes a VM with its own allocator; no call is under way.
        unsafe {
            ffi::lua_setallocf(self.state, self.watch.inner, self.watch.data);
            ffi::lua_close(self.state);
        }
    }
}

const NO_HANDLES: Handles = Handles { of: no_handle, push_pool: push_no_pool, push_object: push_no_object };

unsafe fn no_handle(_: *mut lua_State, _: c_int) -> Option<Handle> {
    None
}

unsafe fn push_no_pool(state: *mut lua_State, _: u32) {
    // SAFETY: one push.
    unsafe { ffi::lua_pushnil(state) };
}

unsafe fn push_no_object(state: *mut lua_State, _: &Arc<dyn Object>) {
    // SAFETY: one push.
    unsafe { ffi::lua_pushnil(state) };
}

/// Lua code that gives a closure, a completion that is none, and arguments: all that the format has, in few bytes.
pub const MESSAGES: &[&str] = &[
    "return function() end",
    "local a, b = 1, 'two' return function() a, b = b, a return a end, nil, {}, {1, 2.5, -0, 'x', true, false}",
    "local t = { 1, nil, 3, nil, nil, 6, [0] = 0, [-1] = 'm', [1.5] = 'f', [true] = 1, [false] = 0, ['k\\0'] = 'v' }
     return function() return t end, nil, t, { t, t }",
    "local list = {} for i = 1, 40 do list[i] = { id = i, name = 'n' .. i, score = i / 2, tags = { 'a', i } } end
     return function() list[3].name = 'new' return list end, nil, list",
    "local n = 0
     local function up() n = n + 1 return n end
     local function down() n = n - 1 return up end
     return function() return up() + down()() end, nil, { up = up, down = down, up, down }",
    "local Class = { __index = {} } Class.__index.get = function(self) return self.x end
     local objects = {} for i = 1, 20 do objects[i] = setmetatable({ x = i }, Class) end
     objects[21] = setmetatable({}, objects[1])
     return function() return objects[1]:get() end, nil, objects, Class",
    "local deep = {} for i = 1, 120 do deep = { deep, i = i } end
     local fn = function() return deep end for i = 1, 60 do local inner = fn fn = function() return inner end end
     return fn, nil, deep",
    "local t = {} t.self, t[t], t[1] = t, t, { t } setmetatable(t, t) return function() return t end, nil, t",
    "local map = {} for i = 1, 150 do map['key ' .. i] = i map[i * 1000] = 'key ' .. i end
     return function() return map end, nil, map, map",
    "local keys = {} for i = 1, 5 do keys[{ i }] = i keys[function() return i end] = i end
     return function() return keys end, nil, keys",
    "a_global, another = { 1 }, function() return a_global end
     return function() b_global = a_global return another(), no_such end, nil, string, string.rep, _G, print",
    "return setfenv(function() return x end, { x = 1, { 2 } }), nil, setfenv(function() end, setmetatable({}, { __index = _G }))",
    "local ffi = require 'ffi' local a = ffi.new('int[3]', 1, 2, 3)
     return function() a[1] = 9 return a end, nil, 1LL, 2ULL, a, { a, [1LL] = 1 }, ffi.new('complex', 1, 2)",
    "package.loaded.packing = { __msys_unpack = function(v) return v.nothing and nil or { unpacked = v } end }
     local meta = { __msys_pack = function(o) return { of = o.of, nothing = o.nothing }, 'packing' end }
     local o = setmetatable({ of = { 1 } }, meta)
     return function() return o end, nil, o, { o, setmetatable({ of = o }, meta) }, setmetatable({ nothing = true }, meta)",
    "local long, other = ('x'):rep(70000), ('y'):rep(65536)
     return function() return long end, nil, { long, other, long, [other] = long }",
    "local fs = {} for i = 1, 30 do local a, b = i, { i } fs[i] = function() a = a + 1 return a, b end end
     return function() for i = 1, 30 do fs[i]() end return fs end, nil, fs",
    "return function(...) return ... end, nil, nil, nil, nil, 5, nil",
];

/// Numbers for tests: the same for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % most.max(1)
    }
}
