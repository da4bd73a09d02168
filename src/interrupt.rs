//! How running Lua code is stopped: what happens on the worker's own thread.
//!
//! Called by `reaper` (from its thread, by [`MEANS`]: [`probe`], [`open`], [`close`]), `worker` and `isolate` (for their
//! VMs: [`arm`], [`calm`], [`overdraw`]), and `host` ([`set_hook`]). Knows no jobs: a [`Station`] says what is to be stopped.
//!
//! **The signal.** [`probe`] sends a real-time signal to the worker's thread. Its handler sets a count hook, as
//! LuaJIT's own command does for Ctrl-C. The hook raises before the next instruction of the job's code, and of each one
//! after, so that `pcall` does not help the job. It does not raise where msys's own code runs, which has to end the job.
//!
//! **Compiled code** sees no hooks. But LuaJIT's compiler puts guards into what it compiles for a VM that is profiled
//! by lines, which look at one bit of the VM's hook mask, the one by which LuaJIT's profiler asks for its turn. A VM is
//! *armed* by an attempt to start the profiler for it while another VM, a dummy, has it: that is refused, but the mode
//! stays. To stop compiled code, the handler sets that bit; the guards fail, the interpreter goes on, and calls the
//! profiler's callback, which is ours, sets the hook and raises.
//!
//! **The callback** is that of whoever started the profiler last. So while the reaper interrupts, the profiler is
//! *open*: started for the dummy, with a timer of such a length that it never fires, and the process's handler of
//! `SIGPROF` and its profiling timer put back at once. A host that starts the profiler in these milliseconds is
//! refused. A host that has it already keeps it, and compiled code is then not left but ended (below).
//!
//! **The hook mask** is a byte at the same distance from each VM's main state. It is found by comparing what
//! `lua_sethook` sets with what is there ([`find_mask`]), and checked; where it is not found, no VM is armed. With it
//! the handler also ends what keeps hooks from being called: a job may hang in a finalizer, or in a hook of its own.
//!
//! **Ending the thread.** Where the handler finds the thread in compiled code, and the reaper has *condemned* it, it
//! ends the thread, by the system call and without unwinding: compiled code has no native frame above it and holds no
//! lock. The VM is lost.
//!
//! **Memory.** LuaJITs before June 2023 may crash where memory is refused to compiled code: [`overdraw`] has that raise
//! the error at its next guard, as if it was to be stopped, but once.
//!
//! The handler only calls `lua_sethook`, which is made for that, and writes one byte. An update of LuaJIT's dispatch
//! table that it interrupts may undo what it has done; so it first takes away a hook that is set already, which makes
//! the next update a full one, and the reaper tries again until the job has ended.

use std::{
    cell::{Cell, RefCell},
    ffi::{CStr, c_char, c_int, c_void},
    ptr::{null, null_mut},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence},
    },
};

use crate::{
    job::{Place, Station},
    luajit::{ffi, lua_State, push_bytes},
    reaper::{self, Means},
    sync::{Mutex, MutexGuard},
    trace,
};

type Callback = unsafe extern "C-unwind" fn(*mut c_void, *mut lua_State, c_int, c_int);
type Start = unsafe extern "C-unwind" fn(*mut lua_State, *const c_char, Callback, *mut c_void);
type End = unsafe extern "C-unwind" fn(*mut lua_State);

thread_local! {
    /// The station of the worker whose thread this is.
    static STATION: Cell<*const Station> = const { Cell::new(null()) };
    /// The code that runs is to raise "not enough memory".
    static SHORT: Cell<bool> = const { Cell::new(false) };
    /// The hook that its job had set, with its mask and count.
    static JOBS_HOOK: Cell<Option<(Option<ffi::lua_Hook>, c_int, c_int)>> = const { Cell::new(None) };
}

/// LuaJIT's profiler.
struct Profiler {
    start: Start,
    end: End,
    /// A VM that runs nothing.
    dummy: *mut lua_State,
    /// LuaJIT's own handler of `SIGPROF`.
    handler: libc::sighandler_t,
    /// Begun for the dummy.
    is_open: bool,
}

// SAFETY: the dummy VM is used under the lock only; the rest are addresses.
unsafe impl Send for Profiler {}

/// `None` until it is first needed; `Some(None)` where this LuaJIT has none.
static PROFILER: Mutex<Option<Option<Profiler>>> = Mutex::new(None);

/// Where the hook mask is, from a VM's main state on; 0 where that is not known.
static MASK: AtomicUsize = AtomicUsize::new(0);
/// Guards may be made to fail.
static IS_OPEN: AtomicBool = AtomicBool::new(false);

/// Bits of the hook mask, besides the events': a hook runs, LuaJIT's compiler tells of an event, a finalizer runs; and
/// the profiler asks for its turn.
const BUSY: u8 = 0x10 | 0x20 | 0x40;
const PROFILE: u8 = 0x80;

/// The names of the chunks that are msys's own.
static OURS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

/// Where compiled code may be: pairs of addresses, from and to; unused ones are 0.
const MOST_AREAS: usize = 512;
static AREAS: [[AtomicUsize; 2]; MOST_AREAS] = [const { [AtomicUsize::new(0), AtomicUsize::new(0)] }; MOST_AREAS];

fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: a name that ends with a zero.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

fn disposition(signal: c_int) -> libc::sigaction {
    // SAFETY: all-zero is a valid value to be filled in; nothing is changed.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, null(), &raw mut action);
        action
    }
}

impl Profiler {
    fn find() -> Option<Self> {
        let (start, end) = (symbol(c"luaJIT_profile_start"), symbol(c"luaJIT_profile_stop"));
        if start.is_null() || end.is_null() {
            return None;
        }
        // SAFETY: the functions of those names have these types.
        let (start, end) = unsafe {
            (std::mem::transmute::<*mut c_void, Start>(start), std::mem::transmute::<*mut c_void, End>(end))
        };
        // SAFETY: no preconditions.
        let dummy = unsafe { ffi::luaL_newstate() };
        if dummy.is_null() {
            return None;
        }
        let mut profiler = Self { start, end, dummy, handler: libc::SIG_DFL, is_open: false };
        // Its handler is what changes when it begins.
        let before = disposition(libc::SIGPROF).sa_sigaction;
        let during = profiler.begin();
        profiler.finish();
        if during == before || during == libc::SIG_DFL || during == libc::SIG_IGN {
            // The host has it; which is not known to be over.
            // SAFETY: nobody else has it.
            unsafe { ffi::lua_close(dummy) };
            return None;
        }
        profiler.handler = during;
        // SAFETY: a new state, of which nobody else knows.
        let Some(mask) = (unsafe { find_mask(dummy) }) else {
            // SAFETY: as above.
            unsafe { ffi::lua_close(dummy) };
            return None;
        };
        MASK.store(mask, Ordering::Relaxed);
        Some(profiler)
    }

    /// Runs `act`, which changes the process's profiling signal and timer, and puts them back. Gives what the handler
    /// was in between.
    fn aside(act: impl FnOnce()) -> libc::sighandler_t {
        // SAFETY: plain values of ours.
        unsafe {
            let before = disposition(libc::SIGPROF);
            let mut timer: libc::itimerval = std::mem::zeroed();
            let none = timer;
            libc::getitimer(libc::ITIMER_PROF, &raw mut timer);
            let runs = timer.it_value.tv_sec != 0 || timer.it_value.tv_usec != 0;
            if runs {
                libc::setitimer(libc::ITIMER_PROF, &raw const none, null_mut());
            }
            act();
            let during = disposition(libc::SIGPROF);
            libc::sigaction(libc::SIGPROF, &raw const before, null_mut());
            libc::setitimer(libc::ITIMER_PROF, &raw const timer, null_mut());
            during.sa_sigaction
        }
    }

    /// Begins it for the dummy, if nobody has it; gives the handler that is set then.
    fn begin(&self) -> libc::sighandler_t {
        // SAFETY: a live VM, of which only the address is used. The interval is a million milliseconds of CPU time.
        Self::aside(|| unsafe { (self.start)(self.dummy, c"i1000000".as_ptr(), interrupted, null_mut()) })
    }

    /// Ends it, if the dummy has it.
    fn finish(&self) {
        // SAFETY: a live VM, which runs nothing.
        let _ = Self::aside(|| unsafe { (self.end)(self.dummy) });
    }

    /// Whether the host has it.
    fn is_hosts(&self) -> bool {
        disposition(libc::SIGPROF).sa_sigaction == self.handler
    }

    /// Makes our callback the one that guards call; whether it is.
    fn claim(&self) -> bool {
        if self.is_open {
            return true;
        }
        if self.is_hosts() {
            return false;
        }
        let is_ours = self.begin() == self.handler;
        self.finish();
        is_ours
    }

    /// See [`arm`].
    fn arm(&self, state: *mut lua_State) -> bool {
        if !self.is_open && (self.is_hosts() || self.begin() != self.handler) {
            return false;
        }
        // SAFETY: a live VM of this thread. Refused, since the dummy has it.
        unsafe { (self.start)(state, c"l".as_ptr(), interrupted, null_mut()) };
        if !self.is_open {
            self.finish();
        }
        true
    }
}

/// Finds the hook mask: the one byte that is what `lua_sethook` is told, whatever that is.
///
/// # Safety
/// A live VM, in which nothing runs.
unsafe fn find_mask(state: *mut lua_State) -> Option<usize> {
    /// The state, and what stands with it in one block: its first part has the mask.
    const NEAR: usize = 1024;
    let mut candidates: Vec<usize> = (0..NEAR).collect();
    for mask in (0..16u8).chain((0..16).rev()) {
        // SAFETY: the block that has the state is larger; it may change while it is read.
        unsafe {
            ffi::lua_sethook(state, Some(hook), c_int::from(mask), 1000);
            candidates.retain(|at| state.cast::<u8>().add(*at).read_volatile() & 0x0f == mask);
        }
    }
    // SAFETY: the caller's promise.
    unsafe { ffi::lua_sethook(state, None, 0, 0) };
    match candidates[..] {
        [at] => Some(at),
        _ => None,
    }
}

/// The hook mask of a VM, if it is known where that is.
fn mask_of(state: *mut lua_State) -> Option<*mut u8> {
    match MASK.load(Ordering::Relaxed) {
        0 => None,
        // SAFETY: within the block of the state.
        at => Some(unsafe { state.cast::<u8>().add(at) }),
    }
}

fn with_profiler<T>(act: impl FnOnce(&mut Profiler) -> T) -> Option<T> {
    PROFILER.lock().get_or_insert_with(Profiler::find).as_mut().map(act)
}

/// Makes the compiler put guards into what it compiles for this VM from now on, by which compiled code can be left;
/// whether it will.
///
/// # Safety
/// A live VM of this thread, in which nothing runs.
pub unsafe fn arm(state: *mut lua_State) -> bool {
    with_profiler(|profiler| profiler.arm(state)).unwrap_or_default()
}

/// The signal that interrupts workers: one that nobody has. Its handler is set the first time.
fn signal() -> Option<c_int> {
    static SIGNAL: OnceLock<Option<c_int>> = OnceLock::new();
    *SIGNAL.get_or_init(|| {
        let free = (libc::SIGRTMIN() + 1..libc::SIGRTMAX()).rev();
        let signal = free.into_iter().find(|signal| disposition(*signal).sa_sigaction == libc::SIG_DFL)?;
        // SAFETY: a handler of the type that the flag says.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigfillset(&raw mut action.sa_mask);
            (libc::sigaction(signal, &raw const action, null_mut()) == 0).then_some(signal)
        }
    })
}

/// What is done once in a process, by its first host and before there is a worker: a fork must not find another thread
/// in the middle of it. No code of these modules will be interrupted.
pub fn prepare(modules: impl Iterator<Item = &'static str>) {
    static AT_FORK: OnceLock<()> = OnceLock::new();
    OURS.get_or_init(|| modules.map(|name| format!("=[{name}]").into_bytes()).collect());
    AT_FORK.get_or_init(|| {
        // SAFETY: functions without captures, in a module that is never unloaded.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) };
    });
    reaper::use_means(MEANS);
    let _ = signal();
}

/// Makes the calling thread, a worker's, one that can be interrupted.
pub fn enter(station: &Arc<Station>) {
    STATION.set(Arc::as_ptr(station));
    let Some(signal) = signal() else { return };
    // SAFETY: a set of ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, null_mut());
    }
}

/// The thread is about to end.
pub fn leave() {
    STATION.set(null());
}

/// Where the interrupted instruction is.
fn instruction(context: *mut c_void) -> usize {
    if context.is_null() {
        return 0;
    }
    // SAFETY: the third argument of a handler is such a context.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    #[cfg(target_arch = "x86_64")]
    return context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize;
    #[cfg(target_arch = "aarch64")]
    return context.uc_mcontext.pc as usize;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = context;
        0
    }
}

fn is_compiled(instruction: usize) -> bool {
    AREAS.iter().any(|[from, to]| {
        (from.load(Ordering::Relaxed)..to.load(Ordering::Relaxed)).contains(&instruction)
    })
}

/// Where compiled code may be: in memory that is executable and no file's.
fn compiled_areas() -> Vec<(usize, usize)> {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return Vec::new() };
    let area = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (range, "r-xp" | "rwxp") = (words.next()?, words.next()?) else { return None };
        // Offset, device, inode; a name only where it is a file's or the system's.
        if words.nth(3).is_some() {
            return None;
        }
        let (from, to) = range.split_once('-')?;
        Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
    };
    maps.lines().filter_map(area).collect()
}

/// Notes where compiled code may be. For the reaper's thread.
fn learn_areas() {
    let mut places = AREAS.iter();
    for (from, to) in compiled_areas() {
        let Some([place_from, place_to]) = places.next() else { return };
        // A handler in between finds an empty range, or a part of one.
        place_to.store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        place_from.store(from, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        place_to.store(to, Ordering::Relaxed);
    }
    for [_, to] in places {
        to.store(0, Ordering::Relaxed);
    }
}

/// The signal's handler.
extern "C" fn handle(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let station = STATION.get();
    // SAFETY: set by the thread for its whole life.
    let Some(station) = (unsafe { station.as_ref() }) else { return };
    // SAFETY: the thread's own.
    let errno = unsafe { *libc::__errno_location() };
    let compiled = is_compiled(instruction(context));
    station.set_place(if compiled { Place::Compiled } else { Place::Elsewhere });
    if compiled && station.is_condemned.load(Ordering::Relaxed) {
        station.is_dead.store(true, Ordering::Release);
        // SAFETY: ends this thread, and nothing else.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let state = station.state().cast::<lua_State>();
    if !state.is_null() && station.is_busy() {
        station.is_touched.store(true, Ordering::Relaxed);
        let guards = station.is_armed.load(Ordering::Relaxed) && IS_OPEN.load(Ordering::Acquire);
        let off = if station.is_late.load(Ordering::Relaxed) { BUSY } else { 0 };
        // SAFETY: a live VM of this thread.
        unsafe {
            change_mask(state, off, if guards { PROFILE } else { 0 });
            set_hook_anew(state);
        }
    }
    station.answers.fetch_add(1, Ordering::Release);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// # Safety
/// A live VM of this thread.
unsafe fn set_hook_anew(state: *mut lua_State) {
    // SAFETY: the caller's promise.
    unsafe {
        ffi::lua_sethook(state, None, 0, 0);
        ffi::lua_sethook(state, Some(hook), ffi::LUA_MASKCOUNT, 1);
    }
}

/// Has the job whose code is about to run stopped at its first instruction.
///
/// # Safety
/// A live VM of the calling thread, which is a worker's.
pub unsafe fn set_hook(state: *mut lua_State) {
    // SAFETY: the thread has set it; the caller's promise.
    unsafe {
        if let Some(station) = STATION.get().as_ref() {
            station.is_touched.store(true, Ordering::Relaxed);
            if station.is_armed.load(Ordering::Relaxed) && IS_OPEN.load(Ordering::Acquire) {
                change_mask(station.state().cast(), 0, PROFILE);
            }
        }
        set_hook_anew(state);
    }
}

/// Whether a job's compiled code calls the calling function; then it raises "not enough memory" at its next guard, or
/// where the interpreter goes on.
pub fn overdraw() -> bool {
    // SAFETY: the thread has set it, for its whole life.
    let Some(station) = (unsafe { STATION.get().as_ref() }) else { return false };
    let main = station.state().cast::<lua_State>();
    // SAFETY: a live VM of this thread.
    if main.is_null() || !station.is_busy() || !unsafe { trace::runs(main) } {
        return false;
    }
    station.is_touched.store(true, Ordering::Relaxed);
    // SAFETY: as above.
    unsafe {
        SHORT.set(true);
        if !is_ours_set(main) {
            JOBS_HOOK.set(Some((ffi::lua_gethook(main), ffi::lua_gethookmask(main), ffi::lua_gethookcount(main))));
        }
        if station.is_armed.load(Ordering::Relaxed) && with_profiler(|profiler| profiler.claim()) == Some(true) {
            change_mask(main, 0, PROFILE);
        }
        set_hook_anew(main);
    }
    true
}

/// Whether the hook of a VM is our own.
///
/// # Safety
/// A live VM of this thread.
unsafe fn is_ours_set(state: *mut lua_State) -> bool {
    // SAFETY: the caller's promise.
    let set = unsafe { ffi::lua_gethook(state) };
    set.is_some_and(|set| std::ptr::fn_addr_eq(set, hook as ffi::lua_Hook))
}

/// What [`overdraw`] has asked for has been done, or is not to be: the job's hook is what it was, if it has set no other.
///
/// # Safety
/// A live VM of this thread.
unsafe fn forget_debt(state: *mut lua_State) {
    SHORT.set(false);
    let (own, mask, count) = JOBS_HOOK.take().unwrap_or((None, 0, 0));
    // SAFETY: the caller's promise; the hook was set by the job. What is set in between makes the update a full one.
    unsafe {
        if is_ours_set(state) {
            ffi::lua_sethook(state, Some(hook), ffi::LUA_MASKCOUNT, c_int::MAX);
            ffi::lua_sethook(state, own, mask, count);
        }
    }
}

/// Another session's code is about to run: what the last one's compiled code was to raise is not for that.
///
/// # Safety
/// A live VM of this thread, a worker's, which is that of `station`; called by its Lua code.
pub unsafe fn leave_debt(state: *mut lua_State, station: &Station) {
    if !SHORT.get() {
        return;
    }
    let main = station.state().cast::<lua_State>();
    // SAFETY: the caller's promise.
    unsafe {
        change_mask(main, PROFILE, 0);
        forget_debt(state);
    }
}

/// The VM of the code that owes anything is left for another one.
pub fn drop_debt() {
    SHORT.set(false);
    JOBS_HOOK.set(None);
}

/// Takes bits out of a VM's hook mask, if it is known where that is, and puts others in: with [`PROFILE`] the guards of
/// its compiled code fail.
///
/// # Safety
/// Null, or the main state of a live VM of this thread.
unsafe fn change_mask(main: *mut lua_State, off: u8, on: u8) {
    if !main.is_null()
        && let Some(mask) = mask_of(main)
    {
        // SAFETY: the mask of this thread's VM.
        unsafe { mask.write_volatile(mask.read_volatile() & !off | on) };
    }
}

/// Raises in a job that is to be stopped.
unsafe extern "C-unwind" fn hook(state: *mut lua_State, at: *mut ffi::lua_Debug) {
    // SAFETY: the thread's station; a hook may use the stack, and raise. Nothing here has a destructor.
    unsafe {
        let Some(station) = STATION.get().as_ref() else { return };
        let stop = station.stop();
        if stop.is_none() && !SHORT.get() {
            // Another job's code runs.
            ffi::lua_sethook(state, None, 0, 0);
            return;
        }
        if !station.is_isolated.load(Ordering::Relaxed) && is_ours(state, at) {
            return;
        }
        match stop {
            Some(stop) => push_bytes(state, stop.text.as_bytes()),
            None => {
                forget_debt(state);
                push_bytes(state, b"not enough memory");
            }
        }
        ffi::lua_error(state)
    }
}

/// Whether the running function is of msys's own, compiled in.
///
/// # Safety
/// In a hook.
unsafe fn is_ours(state: *mut lua_State, at: *mut ffi::lua_Debug) -> bool {
    // SAFETY: the record of a hook; "S" neither raises nor allocates.
    unsafe {
        if ffi::lua_getinfo(state, c"S".as_ptr(), at) == 0 || (*at).source.is_null() {
            return false;
        }
        let source = CStr::from_ptr((*at).source).to_bytes();
        // All of ours begin like that.
        source == b"=msys" || source.starts_with(b"=[") && OURS.get().is_some_and(|ours| ours.iter().any(|name| name == source))
    }
}

/// LuaJIT's profiler calls this where an armed VM's compiled code was left, or between two instructions.
unsafe extern "C-unwind" fn interrupted(_: *mut c_void, state: *mut lua_State, _: c_int, _: c_int) {
    // SAFETY: as `hook`. The hook stays, because this raises.
    unsafe {
        let Some(station) = STATION.get().as_ref() else { return };
        if station.state().is_null() {
            return;
        }
        let Some(stop) = station.stop() else { return };
        if !station.is_isolated.load(Ordering::Relaxed) {
            let mut at: ffi::lua_Debug = std::mem::zeroed();
            if ffi::lua_getstack(state, 0, &raw mut at) != 0 && is_ours(state, &raw mut at) {
                // Not asked for again here: LuaJIT would come back at once, and never go on.
                return;
            }
        }
        station.is_touched.store(true, Ordering::Relaxed);
        set_hook_anew(state);
        push_bytes(state, stop.text.as_bytes());
        ffi::lua_error(state)
    }
}

/// From now on guards may be made to fail; not where the host has the profiler, or there is none. For the reaper's
/// thread.
fn open() {
    if !IS_OPEN.load(Ordering::Relaxed) {
        with_profiler(|profiler| {
            profiler.is_open = !profiler.is_hosts() && profiler.begin() == profiler.handler;
            IS_OPEN.store(profiler.is_open, Ordering::Release);
        });
    }
}

/// Ends what [`open`] has begun. A guard that has been made to fail calls our callback all the same, if the host does
/// not start the profiler before.
fn close() {
    if IS_OPEN.swap(false, Ordering::AcqRel) {
        with_profiler(|profiler| {
            profiler.finish();
            profiler.is_open = false;
        });
    }
}

/// Sends the signal, if the thread has begun.
fn probe(station: &Station) {
    // By number: that of a thread which has just ended is nobody's, or that of one which has no station.
    if let (1.., Some(signal)) = (station.tid(), signal()) {
        // SAFETY: no pointers.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), station.tid(), signal) };
    }
}

/// After a job that was to be stopped, or was taken for it: no hook is left, nor what else was asked of the VM.
///
/// # Safety
/// A live VM of this thread, a worker's, which is that of `station`; called by its Lua code, or when none runs.
pub unsafe fn calm(state: *mut lua_State, station: &Station) {
    if !station.is_touched.swap(false, Ordering::AcqRel) {
        return;
    }
    drop_debt();
    let main = station.state().cast::<lua_State>();
    station.is_late.store(false, Ordering::Relaxed);
    // SAFETY: the caller's promise. No hook and no finalizer runs, as this is called by code of ours; the mask may say
    // so all the same, where one was left by an error. The hook that is set in between makes the update a full one.
    unsafe {
        ffi::lua_sethook(state, Some(hook), ffi::LUA_MASKCOUNT, c_int::MAX);
        change_mask(main, BUSY | PROFILE, 0);
        ffi::lua_sethook(state, None, 0, 0);
    }
}

thread_local! {
    /// The profiler's lock, over a fork on this thread.
    static HELD: RefCell<Option<MutexGuard<'static, Option<Option<Profiler>>>>> = const { RefCell::new(None) };
}

extern "C" fn before_fork() {
    HELD.set(Some(PROFILER.lock()));
}

extern "C" fn after_fork() {
    HELD.take();
}

/// What the reaper needs of this file.
pub const MEANS: Means = Means { open, close, learn_areas, probe };
