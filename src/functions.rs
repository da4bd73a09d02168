//! What one VM knows of functions: which objects it can name, and a factory for each code it has loaded.
//!
//! Called by `encode`, `decode` and `vm`.
//!
//! **Names.** A module, and a function that is a field of one, crosses as its name. Lua finds them
//! (`lua/msys/names.lua`) and tells them here by address; a Lua table keeps them alive, so an address stays theirs.
//! When to look again: an encoder that meets code it has never seen, or something that cannot cross, asks for a scan
//! and starts over; so does one that has sent a table while `package.loaded` holds other values than at the last scan.
//! So a module loaded since is found, and the usual message scans nothing.
//!
//! **Factories.** See `bytecode`. Loaded once per VM and code; two generations bound them, as in `code`.

use std::{
    cell::{Cell, OnceCell, RefCell},
    ffi::{CStr, c_int, c_void},
    sync::{Arc, OnceLock},
};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    bytecode::{Template, template_source},
    code::Code,
    layout,
    luajit::{MAX_UPVALUES, MODE_FUNCTION_OFF, ffi, lua_State, luaJIT_setmode, push_bytes, string_at},
    wire::{Handle, Object},
};

/// How many factories a generation holds.
const GENERATION: usize = 1024;
/// How many constructors are kept before all are forgotten.
const CONSTRUCTORS: usize = 1000;
/// How many codes are remembered as seen before all are forgotten (and scanned for again).
const SEEN: usize = 8192;

/// A module's name, and the name of a field in it or an empty string for the module itself.
#[derive(Clone, Debug)]
pub struct Name {
    /// As `require` takes it.
    pub module: Arc<str>,
    /// The field.
    pub field: Arc<str>,
    /// Every VM has it: the receiver need not load it first.
    pub builtin: bool,
}

/// What the VM's handles are, told by `host`, which owns their metatables.
#[derive(Clone, Copy, Debug)]
pub struct Handles {
    /// What the userdata at an index is a handle of, if it is one.
    pub of: unsafe fn(*mut lua_State, c_int) -> Option<Handle>,
    /// Pushes the VM's one handle of a pool. May raise.
    pub push_pool: unsafe fn(*mut lua_State, u32),
    /// Pushes the VM's one handle of an object. May raise, with the object uncounted.
    pub push_object: unsafe fn(*mut lua_State, &Arc<dyn Object>),
}

/// See the module.
#[derive(Debug)]
pub struct Functions {
    /// The VM's table of globals, by address: the environment that needs no mention.
    pub globals: *const c_void,
    globals_ref: c_int,
    /// The environment of msys's own modules in a worker, by address: to others it is the globals.
    pub own_environment: Cell<*const c_void>,
    /// What `package.loaded` held when it was last scanned.
    fingerprint: Cell<u64>,
    names: RefCell<FxHashMap<*const c_void, Name>>,
    /// A bit is set for each named object, by a hash of 12 bits: most objects are told from those without a look into
    /// the map. Made with the first name.
    filter: OnceCell<Box<[Cell<u64>; 64]>>,
    seen: RefCell<FxHashSet<u32>>,
    /// Registry references of the young and the old table of factories.
    young: Cell<c_int>,
    old: Cell<c_int>,
    loaded: Cell<usize>,
    /// Registry references of tables: by ticket, what jobs sent from here may speak of; by slot, the objects of jobs
    /// here.
    pub kept: c_int,
    /// See `kept`.
    pub theirs: c_int,
    /// Registry reference of the table of constructors by their source, and how many there are.
    constructors: c_int,
    constructor_count: Cell<usize>,
    /// Registry reference of a table with weak values, and what is known of codes as they lie in memory: see
    /// [`Functions::known_code`].
    witnesses: c_int,
    witness_table: *const layout::Table,
    codes: RefCell<FxHashMap<usize, (Arc<Code>, c_int)>>,
    /// Tables and functions may be read as they lie in memory.
    pub direct: bool,
    environments: Cell<Option<Environments>>,
    /// There has been an environment of a job's own.
    has_environments: Cell<bool>,
    /// All VMs see the scripts' globals: no job needs an environment of its own.
    pub shares_globals: Cell<bool>,
}

/// Registry references of what makes the environments of jobs (`lua/msys/environment.lua`).
#[derive(Clone, Copy, Debug)]
pub struct Environments {
    /// The metatable of those that nobody looks at; its address too.
    pub behind: (c_int, *const c_void),
    /// `new(init)` → another environment
    pub new: c_int,
    /// `leave_out(environment, name, why)`
    pub leave_out: c_int,
    /// The set of those that `new` made, with weak keys.
    pub known: c_int,
    /// `kind_of(value)` → what it is, for a person
    pub kind_of: c_int,
}

impl Functions {
    /// For a VM that has just been opened. May raise (out of memory).
    ///
    /// # Safety
    /// `state` is a live VM of this thread with three free stack slots; nothing with a destructor is live in the
    /// caller.
    pub unsafe fn new(state: *mut lua_State) -> Self {
        // SAFETY: two tables and the globals, pushed and taken off again.
        unsafe {
            ffi::lua_createtable(state, 0, 0);
            let young = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
            ffi::lua_createtable(state, 0, 0);
            let old = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
            ffi::lua_pushvalue(state, ffi::LUA_GLOBALSINDEX);
            let globals_ref = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
            ffi::lua_createtable(state, 0, 0);
            let kept = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
            ffi::lua_createtable(state, 0, 0);
            let theirs = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
            ffi::lua_createtable(state, 0, 0);
            ffi::lua_createtable(state, 0, 1);
            push_bytes(state, b"v");
            ffi::lua_setfield(state, -2, c"__mode".as_ptr());
            ffi::lua_setmetatable(state, -2);
            let witness_table = ffi::lua_topointer(state, -1).cast();
            let witnesses = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
            let direct = layout::verify(state);
            ffi::lua_createtable(state, 0, 0);
            let constructors = ffi::luaL_ref(state, ffi::LUA_REGISTRYINDEX);
            Self {
                constructors,
                constructor_count: Cell::new(0),
                witnesses,
                witness_table,
                codes: RefCell::default(),
                direct,
                kept,
                theirs,
                globals_ref,
                own_environment: Cell::new(std::ptr::null()),
                fingerprint: Cell::new(0),
                globals: ffi::lua_topointer(state, ffi::LUA_GLOBALSINDEX),
                names: RefCell::default(),
                filter: OnceCell::new(),
                seen: RefCell::default(),
                young: Cell::new(young),
                old: Cell::new(old),
                loaded: Cell::new(0),
                environments: Cell::new(None),
                has_environments: Cell::new(false),
                shares_globals: Cell::new(false),
            }
        }
    }

    /// Names an object; the caller keeps it alive.
    pub fn learn(&self, object: *const c_void, name: Name) {
        let (word, bit) = Self::filter_place(object);
        let filter = self.filter.get_or_init(|| Box::new([const { Cell::new(0) }; 64]));
        if let Some(word) = filter.get(word) {
            word.set(word.get() | bit);
        }
        self.names.borrow_mut().insert(object, name);
    }

    fn filter_place(object: *const c_void) -> (usize, u64) {
        let hash = (object.addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
        ((hash >> 6) as usize, 1 << (hash & 63))
    }

    /// Forgets all names, before a scan.
    pub fn forget_names(&self) {
        self.filter.get().into_iter().flat_map(|filter| filter.iter()).for_each(|word| word.set(0));
        self.names.borrow_mut().clear();
    }

    /// The object's name, if it has one.
    #[inline]
    pub fn name_of(&self, object: *const c_void) -> Option<Name> {
        let (word, bit) = Self::filter_place(object);
        if self.filter.get()?.get(word)?.get() & bit == 0 {
            return None;
        }
        self.names.borrow().get(&object).cloned()
    }

    /// Tells what makes the environments of jobs.
    pub fn set_environments(&self, environments: Environments) {
        self.environments.set(Some(environments));
    }

    /// Whether it is known what makes the environments of jobs.
    pub fn makes_environments(&self) -> bool {
        self.environments.get().is_some()
    }

    /// Whether there has been an environment of a job's own.
    #[inline]
    pub fn has_environments(&self) -> bool {
        self.has_environments.get()
    }

    /// Pushes a new environment for a job. May raise.
    ///
    /// # Safety
    /// As `push_closure`.
    pub unsafe fn push_environment(&self, state: *mut lua_State, open: bool, init: bool) {
        // SAFETY: a function and its arguments, of which one value is left.
        unsafe {
            let Some(environments) = self.environments.get() else {
                ffi::lua_pushvalue(state, ffi::LUA_GLOBALSINDEX);
                return;
            };
            self.has_environments.set(true);
            if !open && !init {
                ffi::lua_createtable(state, 0, 1);
                ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, environments.behind.0);
                ffi::lua_setmetatable(state, -2);
                return;
            }
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, environments.new);
            ffi::lua_pushboolean(state, c_int::from(init));
            ffi::lua_call(state, 1, 1);
        }
    }

    /// Notes in the environment at `at` why the global `name` is not there. May raise.
    ///
    /// # Safety
    /// As `push_closure`.
    pub unsafe fn leave_out(&self, state: *mut lua_State, at: c_int, name: &[u8], why: &[u8]) {
        let Some(environments) = self.environments.get() else { return };
        // SAFETY: a function and its arguments, which the call takes off.
        unsafe {
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, environments.leave_out);
            ffi::lua_pushvalue(state, at);
            push_bytes(state, name);
            push_bytes(state, why);
            ffi::lua_call(state, 3, 0);
        }
    }

    /// Takes a name and a value off, which an init's environment at `at` has where the VM has no such global. May
    /// raise.
    ///
    /// # Safety
    /// As `push_closure`, an environment made for an init at `at`, a string and a value on top.
    pub unsafe fn offer(&self, state: *mut lua_State, at: c_int) {
        // SAFETY: such an environment has a metatable with a table of that name; what is pushed is taken off.
        unsafe {
            let top = ffi::lua_gettop(state) - 2;
            if ffi::lua_getmetatable(state, at) != 0 {
                push_bytes(state, b"sent");
                ffi::lua_rawget_(state, -2);
                if ffi::lua_type(state, -1) == ffi::LUA_TTABLE {
                    ffi::lua_pushvalue(state, top + 1);
                    ffi::lua_pushvalue(state, top + 2);
                    ffi::lua_rawset(state, -3);
                }
            }
            ffi::lua_settop(state, top);
        }
    }

    /// Pushes what the value at `at` is, in words. May raise.
    ///
    /// # Safety
    /// As `push_closure`.
    pub unsafe fn push_kind(&self, state: *mut lua_State, at: c_int) {
        // SAFETY: a function and its argument, of which a string is left.
        unsafe {
            let Some(environments) = self.environments.get() else { return push_bytes(state, b"value") };
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, environments.kind_of);
            ffi::lua_pushvalue(state, at);
            ffi::lua_call(state, 1, 1);
        }
    }

    /// Whether the table at `at` is the globals or the environment of a job: what crosses as the receiver's globals.
    ///
    /// # Safety
    /// As `push_closure`.
    #[inline]
    pub unsafe fn is_globals(&self, state: *mut lua_State, at: c_int) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let table = ffi::lua_topointer(state, at);
            table == self.globals || table == self.own_environment.get() || self.is_environment(state, at)
        }
    }

    /// Whether the table at `at` is the environment of a job.
    ///
    /// # Safety
    /// As `push_closure`.
    #[inline]
    pub unsafe fn is_environment(&self, state: *mut lua_State, at: c_int) -> bool {
        let Some(environments) = self.environments.get().filter(|_| self.has_environments.get()) else { return false };
        // SAFETY: asks a table for a key; what is pushed is taken off.
        unsafe {
            if ffi::lua_getmetatable(state, at) == 0 {
                return false;
            }
            let meta = ffi::lua_topointer(state, -1);
            ffi::lua_settop(state, -2);
            if meta == environments.behind.1 {
                return true;
            }
            let top = ffi::lua_gettop(state);
            ffi::lua_pushvalue(state, at);
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, environments.known);
            ffi::lua_insert(state, -2);
            ffi::lua_rawget_(state, -2);
            let known = ffi::lua_type(state, -1) != ffi::LUA_TNIL;
            ffi::lua_settop(state, top);
            known
        }
    }

    /// Takes the value on top off, and makes it entry `place` of the table `table` ([`Self::kept`], [`Self::theirs`]).
    /// May raise.
    ///
    /// # Safety
    /// As `push_closure`, a value on top.
    pub unsafe fn store(&self, state: *mut lua_State, table: c_int, place: c_int) {
        // SAFETY: the references are tables.
        unsafe {
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, table);
            ffi::lua_insert(state, -2);
            ffi::lua_rawseti_(state, -2, place);
            ffi::lua_settop(state, -2);
        }
    }

    /// Pushes entry `place` of the table `table`.
    ///
    /// # Safety
    /// As `push_closure`.
    pub unsafe fn recall(&self, state: *mut lua_State, table: c_int, place: c_int) {
        // SAFETY: the references are tables.
        unsafe {
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, table);
            ffi::lua_rawgeti_(state, -1, place);
            ffi::lua_remove(state, -2);
        }
    }

    /// Pushes the VM's globals.
    ///
    /// # Safety
    /// As `push_closure`.
    pub unsafe fn push_globals(&self, state: *mut lua_State) {
        // SAFETY: one push.
        unsafe { ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, self.globals_ref) };
    }

    /// Gives the running coroutine's thread the VM's globals, if something has set others.
    ///
    /// # Safety
    /// `state` is a coroutine of this VM with two free stack slots.
    pub unsafe fn reset_environment(&self, state: *mut lua_State) {
        // SAFETY: pushes two values and takes them off.
        unsafe {
            if ffi::lua_topointer(state, ffi::LUA_GLOBALSINDEX) != self.globals {
                ffi::lua_pushthread(state);
                ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, self.globals_ref);
                ffi::lua_setfenv(state, -2);
                ffi::lua_settop(state, -2);
            }
        }
    }

    /// Whether `package.loaded` holds other values than at the last scan.
    ///
    /// # Safety
    /// As `push_closure`.
    pub unsafe fn modules_changed(&self, state: *mut lua_State) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.fingerprint_of(state) != self.fingerprint.get() }
    }

    /// All modules that are loaded now have been learnt.
    ///
    /// # Safety
    /// As `push_closure`.
    pub unsafe fn scanned(&self, state: *mut lua_State) {
        // SAFETY: the caller's promise.
        self.fingerprint.set(unsafe { self.fingerprint_of(state) });
    }

    /// A number for the set of values in `package.loaded`: their sum by address, whatever the order.
    ///
    /// # Safety
    /// As `push_closure`.
    unsafe fn fingerprint_of(&self, state: *mut lua_State) -> u64 {
        let mut sum = 0u64;
        let mut add = |value: u64| sum = sum.wrapping_add(value.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 1);
        // SAFETY: walks a table that nothing changes meanwhile, if it is one.
        unsafe {
            let top = ffi::lua_gettop(state);
            ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
            if ffi::lua_type(state, -1) == ffi::LUA_TTABLE {
                if self.direct {
                    let loaded = &*ffi::lua_topointer(state, -1).cast::<layout::Table>();
                    let items = (0..loaded.item_count()).map(|place| loaded.item(place));
                    let all = items.chain(loaded.nodes().iter().map(|node| node.value));
                    all.filter(|value| !value.is_nil()).for_each(|value| add(value.bits()));
                } else {
                    ffi::lua_pushnil(state);
                    while ffi::lua_next(state, top + 1) != 0 {
                        add(ffi::lua_topointer(state, -1) as u64);
                        ffi::lua_settop(state, -2);
                    }
                }
            }
            ffi::lua_settop(state, top);
            sum
        }
    }

    /// The Lua function at `at` as it lies in memory, where that may be read.
    ///
    /// # Safety
    /// As `push_closure`, a Lua function at `at`, which stays alive.
    #[inline]
    pub unsafe fn closure_at<'a>(&self, state: *mut lua_State, at: c_int) -> Option<&'a layout::Closure> {
        // SAFETY: the caller's promise.
        self.direct.then(|| unsafe { layout::closure_at(state, at) })
    }

    /// The code of a Lua function, if a closure of the same prototype was sent before and is still there.
    ///
    /// A prototype's address tells which it is, as long as it is alive; and it is as long as a closure of it is. So each
    /// has a witness, a closure in a table with weak values, and what is known of a code counts while that is there. A
    /// closure that is made in a loop is collected before its successors; then one of them is dumped again, and is the
    /// next witness.
    ///
    /// # Safety
    /// As `push_closure`, with a live Lua function.
    #[inline]
    pub unsafe fn known_code(&self, state: *mut lua_State, function: &layout::Closure) -> Option<Arc<Code>> {
        let codes = self.codes.borrow();
        let (code, place) = codes.get(&function.code)?;
        // SAFETY: the table is there as long as the VM is; what is pushed is taken off.
        let is_there = unsafe {
            !(*self.witness_table).item(*place as usize).is_nil() || {
                // It may stand in the table's other part.
                ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, self.witnesses);
                ffi::lua_rawgeti_(state, -1, *place);
                let is_there = ffi::lua_type(state, -1) == ffi::LUA_TFUNCTION;
                ffi::lua_settop(state, -3);
                is_there
            }
        };
        is_there.then(|| Arc::clone(code))
    }

    /// Makes the Lua function at `at` the witness of its code. May raise.
    ///
    /// # Safety
    /// As [`Self::known_code`]; the caller's frame can be unwound, and `code` outlives it.
    pub unsafe fn note_code(&self, state: *mut lua_State, at: c_int, code: &Arc<Code>) {
        // SAFETY: as above. No borrow is held where memory may run out.
        unsafe {
            let Some(address) = self.closure_at(state, at).map(|function| function.code) else { return };
            let known = self.codes.borrow().get(&address).map(|(_, place)| *place);
            let place = known.unwrap_or_else(|| {
                let mut codes = self.codes.borrow_mut();
                if codes.len() >= GENERATION {
                    codes.clear();
                }
                codes.len() as c_int + 1
            });
            let function = if at < 0 { at - 1 } else { at };
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, self.witnesses);
            ffi::lua_pushvalue(state, function);
            ffi::lua_rawseti_(state, -2, place);
            ffi::lua_settop(state, -2);
            self.codes.borrow_mut().insert(address, (Arc::clone(code), place));
        }
    }

    /// Whether this code was seen before; it is from now on if `mark`.
    pub fn seen(&self, code: &Code, mark: bool) -> bool {
        let mut seen = self.seen.borrow_mut();
        if seen.contains(&code.id) {
            return true;
        }
        if mark {
            if seen.len() >= SEEN {
                seen.clear();
            }
            seen.insert(code.id);
        }
        false
    }

    /// Pushes a closure over this VM's prototype of `code`, its upvalues nil and its own. Raises when memory runs out.
    ///
    /// Returns false, with nothing pushed, when LuaJIT does not take the bytes.
    ///
    /// # Safety
    /// `state` is this VM, with four free stack slots; the caller's frame can be unwound, and `code` outlives it.
    pub unsafe fn push_closure(&self, state: *mut lua_State, code: &Code) -> bool {
        let key = code.id as c_int;
        // SAFETY: the references are tables; each branch leaves one function or nothing more on the stack.
        unsafe {
            if self.push_factory(state, code) {
                ffi::lua_call(state, 0, 1);
                return true;
            }
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, self.young.get());
            // The old table may still have it.
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, self.old.get());
            ffi::lua_rawgeti_(state, -1, key);
            ffi::lua_remove(state, -2);
            if ffi::lua_type(state, -1) != ffi::LUA_TFUNCTION {
                ffi::lua_settop(state, -2);
                match code.factory(template_for(code, state)) {
                    Some(factory) if load(state, factory) => self.give_globals(state),
                    _ => {
                        // No factory for this code: a prototype of its own each time, and right all the same.
                        ffi::lua_settop(state, -2);
                        if !load(state, &code.bytes) {
                            return false;
                        }
                        self.give_globals(state);
                        return true;
                    }
                }
            }
            ffi::lua_pushvalue(state, -1);
            ffi::lua_rawseti_(state, -3, key);
            self.count_loaded(state);
            ffi::lua_call(state, 0, 1);
            ffi::lua_remove(state, -2);
            true
        }
    }

    /// Pushes the factory of the closures of `code`, which takes the upvalues' values; or nothing, if it is not at hand.
    /// Raises nothing.
    ///
    /// # Safety
    /// `state` is this VM, with two free stack slots.
    pub unsafe fn push_factory(&self, state: *mut lua_State, code: &Code) -> bool {
        // SAFETY: the reference is a table; one function is left, or nothing.
        unsafe {
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, self.young.get());
            ffi::lua_rawgeti_(state, -1, code.id as c_int);
            ffi::lua_remove(state, -2);
            let is_there = ffi::lua_type(state, -1) == ffi::LUA_TFUNCTION;
            if !is_there {
                ffi::lua_settop(state, -2);
            }
            is_there
        }
    }

    /// Pushes the function that `source` gives, which makes a table of its arguments; compiled once in the VM. May
    /// raise.
    ///
    /// # Safety
    /// As `push_closure`; `source` outlives the call and is not of the caller's frame.
    pub unsafe fn push_constructor(&self, state: *mut lua_State, source: &[u8]) -> bool {
        // SAFETY: a table is asked for a key, or given one. A function is left on success, nothing else.
        unsafe {
            let top = ffi::lua_gettop(state);
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, self.constructors);
            push_bytes(state, source);
            ffi::lua_pushvalue(state, -1);
            ffi::lua_rawget_(state, top + 1);
            if ffi::lua_type(state, -1) != ffi::LUA_TFUNCTION {
                ffi::lua_settop(state, top + 2);
                if !load(state, source) || ffi::lua_pcall(state, 0, 1, 0) != ffi::LUA_OK {
                    ffi::lua_settop(state, top);
                    return false;
                }
                // It is called from C: there is nothing to compile it into.
                luaJIT_setmode(state, -1, MODE_FUNCTION_OFF);
                self.constructor_count.set(self.constructor_count.get() + 1);
                if self.constructor_count.get() > CONSTRUCTORS {
                    self.constructor_count.set(1);
                    ffi::lua_createtable(state, 0, 0);
                    ffi::lua_pushvalue(state, -1);
                    ffi::lua_rawseti_(state, ffi::LUA_REGISTRYINDEX, self.constructors);
                    ffi::lua_replace(state, top + 1);
                }
                ffi::lua_pushvalue(state, top + 2);
                ffi::lua_pushvalue(state, top + 3);
                ffi::lua_rawset(state, top + 1);
            }
            ffi::lua_replace(state, top + 1);
            ffi::lua_settop(state, top + 1);
            true
        }
    }

    /// Gives the function on top the VM's globals, whatever the environment of the thread that loaded it.
    ///
    /// # Safety
    /// As `push_closure`, a function on top.
    unsafe fn give_globals(&self, state: *mut lua_State) {
        // SAFETY: pushes one value, which `setfenv` takes off.
        unsafe {
            ffi::lua_rawgeti_(state, ffi::LUA_REGISTRYINDEX, self.globals_ref);
            ffi::lua_setfenv(state, -2);
        }
    }

    /// Turns the generations when the young table is full.
    ///
    /// # Safety
    /// As `push_closure`.
    unsafe fn count_loaded(&self, state: *mut lua_State) {
        self.loaded.set(self.loaded.get() + 1);
        if self.loaded.get() < GENERATION {
            return;
        }
        // SAFETY: a new table takes the place of the old one in the registry.
        unsafe {
            ffi::lua_createtable(state, 0, 0);
            ffi::lua_rawseti_(state, ffi::LUA_REGISTRYINDEX, self.old.get());
        }
        self.loaded.set(0);
        self.young.set(self.old.replace(self.young.get()));
    }
}

/// Loads a dump as a function on the stack; false, with nothing pushed, if LuaJIT refuses it.
///
/// # Safety
/// As `push_closure`.
unsafe fn load(state: *mut lua_State, dump: &[u8]) -> bool {
    // SAFETY: pointer and length describe `dump`; the name is a C string.
    unsafe {
        if ffi::luaL_loadbuffer(state, dump.as_ptr().cast(), dump.len(), c"=msys".as_ptr()) == ffi::LUA_OK {
            return true;
        }
        ffi::lua_settop(state, -2);
        false
    }
}

/// Appends what `lua_dump` writes to the `Vec<u8>` behind `buffer`.
///
/// # Safety
/// As LuaJIT calls it; `buffer` is a `Vec<u8>` that nobody else uses meanwhile.
pub unsafe extern "C-unwind" fn write_dump(
    _state: *mut lua_State,
    piece: *const c_void,
    len: usize,
    buffer: *mut c_void,
) -> c_int {
    if len > 0 {
        // SAFETY: the caller's promise, and LuaJIT's for the piece.
        let (buffer, piece) =
            unsafe { (&mut *buffer.cast::<Vec<u8>>(), std::slice::from_raw_parts(piece.cast::<u8>(), len)) };
        buffer.extend_from_slice(piece);
    }
    0
}

/// What `lua_dump` writes of the Lua function on top; nothing where it cannot.
///
/// # Safety
/// As `push_closure`, a function on top. Nothing is raised.
pub unsafe fn dump_of(state: *mut lua_State) -> Option<Vec<u8>> {
    let mut dump: Vec<u8> = Vec::new();
    // SAFETY: the buffer is ours. LuaJIT catches what it raises.
    let status = unsafe { ffi::lua_dump_(state, write_dump, (&raw mut dump).cast()) };
    (status == ffi::LUA_OK).then_some(dump)
}

/// The bytecode that LuaJIT makes of a source; nothing where it refuses it.
///
/// # Safety
/// As `push_closure`. Nothing is raised, and nothing left on the stack.
pub unsafe fn compile(state: *mut lua_State, source: &[u8]) -> Option<Vec<u8>> {
    // SAFETY: the caller's promise; the function is taken off.
    unsafe {
        if !load(state, source) {
            return None;
        }
        let dump = dump_of(state);
        ffi::lua_settop(state, -2);
        dump
    }
}

/// What becomes of a chunk's debug information: lines and names of locals, for tracebacks and debuggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugInfo {
    /// It stays.
    Kept,
    /// It is left out, which takes less memory.
    Stripped,
}

/// Pushes a chunk: from its bytecode, which the first to come makes of the source. Whether that has gone well; else the
/// error is on top.
///
/// # Safety
/// Six free slots. Where it is stripped, in protected mode, and nobody has replaced `string.dump`; else nothing is
/// raised.
pub unsafe fn load_chunk(
    state: *mut lua_State,
    chunk: &CStr,
    source: &str,
    debug_info: DebugInfo,
    code: &OnceLock<Box<[u8]>>,
) -> bool {
    let load = |bytes: &[u8]| {
        // SAFETY: the bytes are a slice's; what is wrong with them is caught.
        unsafe { ffi::luaL_loadbuffer(state, bytes.as_ptr().cast(), bytes.len(), chunk.as_ptr()) == ffi::LUA_OK }
    };
    if let Some(code) = code.get() {
        return load(code);
    }
    if !load(source.as_bytes()) {
        return false;
    }
    if debug_info == DebugInfo::Stripped {
        // SAFETY: five values, which are taken off. LuaJIT's API has no function for this; nothing with a destructor is
        // live where it may raise.
        unsafe {
            let top = ffi::lua_gettop(state);
            ffi::lua_getfield_(state, ffi::LUA_REGISTRYINDEX, c"_LOADED".as_ptr());
            ffi::lua_getfield_(state, -1, c"string".as_ptr());
            ffi::lua_getfield_(state, -1, c"dump".as_ptr());
            ffi::lua_pushvalue(state, top);
            ffi::lua_pushboolean(state, 1);
            ffi::lua_call(state, 2, 1);
            let code = code.get_or_init(|| string_at(state, -1).into());
            ffi::lua_settop(state, top - 1);
            return load(code);
        }
    }
    // SAFETY: a function is on top.
    if let Some(dump) = unsafe { dump_of(state) } {
        code.get_or_init(|| dump.into_boxed_slice());
    }
    true
}

/// The template for code with as many upvalues, made once in the process by whichever VM needs it first.
///
/// # Safety
/// As `push_closure`.
unsafe fn template_for(code: &Code, state: *mut lua_State) -> Option<&'static Template> {
    static TEMPLATES: [OnceLock<Option<Template>>; MAX_UPVALUES + 1] = [const { OnceLock::new() }; MAX_UPVALUES + 1];
    let upvalues = crate::bytecode::upvalue_count(&code.bytes)?;
    let slot = TEMPLATES.get(upvalues)?;
    if let Some(template) = slot.get() {
        return template.as_ref();
    }
    // The VM's part is done before the slot is entered, which nothing is to raise through.
    // SAFETY: the caller's promise.
    let dump = unsafe { compile(state, template_source(upvalues).as_ref()) };
    slot.get_or_init(|| Template::new(&dump?)).as_ref()
}
