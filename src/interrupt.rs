//! How running Lua code is stopped: what happens on the worker's own thread.
//!
//! Called by `reaper` (from its thread: [`probe`], [`open_window`]), `worker` and `isolate` (for their VMs: [`arm`],
//! [`calm`]), and `host` ([`set_hook`]). Knows no jobs: a [`Station`] says what is to be stopped.
//!
//! **The signal.** [`probe`] sends a real-time signal to the worker's thread. Its handler looks where the thread was:
//!
//! - *Not in compiled code*: it sets a count hook, as LuaJIT's own command does for Ctrl-C. The hook raises before the
//!   next instruction of the job's code, and of each one after, so that `pcall` does not help the job. A hook does not
//!   raise where msys's own code runs, which has to end the job.
//! - *In compiled code*, which sees no hooks: if a *window* is open (below), it calls LuaJIT's handler of `SIGPROF`,
//!   which makes the guards fail that an *armed* VM has in its compiled code; the interpreter then calls LuaJIT's
//!   profiler's callback, ours, which sets the hook and raises.
//! - In compiled code of a thread that is *condemned*, it ends the thread, by the system call and without unwinding:
//!   compiled code has no native frame above it and holds no lock.
//!
//! The handler only calls what is made for that: `lua_sethook` and LuaJIT's own handler. An update of LuaJIT's dispatch
//! table that it interrupts may undo what it has done; so it first takes away a hook that is set already, which makes
//! the next update a full one, and the reaper tries again until the job has ended.
//!
//! **The profiler** of LuaJIT belongs to one VM of the process at a time. A VM is armed by an attempt to start it in
//! line mode while another VM, a dummy, has it: that is refused, but the mode stays, and the compiler puts guards into
//! each trace. A window is the time in which the profiler belongs to the VM that is to be interrupted: opened by the
//! reaper when it has found the thread in compiled code, closed on the worker's own thread when the job is over
//! ([`calm`]). Its timer is of such a length that it never fires, and the process's handler of `SIGPROF` and its
//! profiling timer are put back at once, so that a host that profiles itself by other means is not disturbed. Where the
//! host uses LuaJIT's profiler, no window is to be had; the reaper then has other means.
//!
//! **Before the compiled code is thrown away**, which ending the profiler does, the recorder must have finished what an
//! error interrupted: it does with the next instruction, so [`calm`] calls an empty function first.

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int, c_void},
    ptr::{null, null_mut},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering, compiler_fence},
    },
};

use crate::{
    job::{Place, Station},
    luajit::{ffi, lua_State, push_bytes},
    sync::{Mutex, MutexGuard},
};

type Callback = unsafe extern "C-unwind" fn(*mut c_void, *mut lua_State, c_int, c_int);
type Start = unsafe extern "C-unwind" fn(*mut lua_State, *const c_char, Callback, *mut c_void);
type End = unsafe extern "C-unwind" fn(*mut lua_State);
type Handler = extern "C" fn(c_int);

thread_local! {
    /// The station of the worker whose thread this is.
    static STATION: Cell<*const Station> = const { Cell::new(null()) };
}

/// LuaJIT's profiler.
pub(crate) struct Profiler {
    start: Start,
    end: End,
    /// A VM that runs nothing.
    dummy: *mut lua_State,
    /// LuaJIT's own handler of `SIGPROF`.
    handler: libc::sighandler_t,
    /// The station that has the window.
    owner: *const Station,
}

// SAFETY: the dummy VM is used under the lock only; the rest are addresses.
unsafe impl Send for Profiler {}

/// `None` until it is first needed; `Some(None)` where this LuaJIT has none.
static PROFILER: Mutex<Option<Option<Profiler>>> = Mutex::new(None);

/// LuaJIT's handler of `SIGPROF`, for ours to call.
static TRIGGER: AtomicUsize = AtomicUsize::new(0);

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
        let mut profiler = Self { start, end, dummy, handler: libc::SIG_DFL, owner: null() };
        // Its handler is what changes when it begins.
        let before = disposition(libc::SIGPROF).sa_sigaction;
        let during = profiler.begin(dummy, null_mut());
        profiler.finish(dummy);
        if during == before || during == libc::SIG_DFL || during == libc::SIG_IGN {
            // The host has it; which is not known to be over.
            // SAFETY: nobody else has it.
            unsafe { ffi::lua_close(dummy) };
            return None;
        }
        profiler.handler = during;
        TRIGGER.store(during, Ordering::Relaxed);
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

    /// Begins it for a VM, if nobody has it; gives the handler that is set then.
    fn begin(&self, state: *mut lua_State, data: *mut c_void) -> libc::sighandler_t {
        // SAFETY: a live VM, of which only the address is used. The interval is a million milliseconds of CPU time.
        Self::aside(|| unsafe { (self.start)(state, c"i1000000".as_ptr(), interrupted, data) })
    }

    /// Ends it, if this VM has it. On the thread of the VM.
    fn finish(&self, state: *mut lua_State) {
        // SAFETY: a live VM of this thread, which runs no compiled code now.
        let _ = Self::aside(|| unsafe { (self.end)(state) });
    }

    /// Whether the host has it.
    fn is_hosts(&self) -> bool {
        disposition(libc::SIGPROF).sa_sigaction == self.handler
    }

    /// See [`arm`].
    fn arm(&self, state: *mut lua_State) -> bool {
        if self.is_hosts() {
            return false;
        }
        self.begin(self.dummy, null_mut());
        // SAFETY: a live VM of this thread. Refused, since the dummy has it.
        unsafe { (self.start)(state, c"l".as_ptr(), interrupted, null_mut()) };
        self.finish(self.dummy);
        true
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

/// Reads where compiled code may be: in memory that is executable and no file's. For the reaper's thread.
pub fn learn_areas() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let mut places = AREAS.iter();
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some("r-xp" | "rwxp")) = (words.next(), words.next()) else { continue };
        // Offset, device, inode; a name only where it is a file's or the system's.
        if words.nth(3).is_some() {
            continue;
        }
        let Some((from, to)) = range.split_once('-') else { continue };
        let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)) else { continue };
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
    let state = station.state().cast::<lua_State>();
    if compiled && station.is_condemned.load(Ordering::Relaxed) {
        station.is_dead.store(true, Ordering::Release);
        // SAFETY: ends this thread, and nothing else.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    } else if compiled && station.has_window.load(Ordering::Relaxed) {
        let trigger = TRIGGER.load(Ordering::Relaxed);
        if trigger != 0 {
            // SAFETY: LuaJIT's handler, while the profiler belongs to the VM of this thread.
            unsafe { std::mem::transmute::<usize, Handler>(trigger)(libc::SIGPROF) };
        }
    } else if !compiled && !state.is_null() && station.is_busy() {
        // SAFETY: a live VM of this thread.
        unsafe { set_hook_anew(state) };
        station.is_touched.store(true, Ordering::Relaxed);
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
        }
        set_hook_anew(state);
    }
}

/// Raises in a job that is to be stopped.
unsafe extern "C-unwind" fn hook(state: *mut lua_State, at: *mut ffi::lua_Debug) {
    // SAFETY: the thread's station; a hook may use the stack, and raise. Nothing here has a destructor.
    unsafe {
        let Some(station) = STATION.get().as_ref() else { return };
        let Some(stop) = station.stop() else {
            // Another job's code runs.
            ffi::lua_sethook(state, None, 0, 0);
            return;
        };
        if !station.is_isolated.load(Ordering::Relaxed) && is_ours(state, at) {
            return;
        }
        push_bytes(state, stop.text.as_bytes());
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
        source.starts_with(b"=[msys") || source == b"=[thread]"
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
                return;
            }
        }
        station.is_touched.store(true, Ordering::Relaxed);
        set_hook_anew(state);
        push_bytes(state, stop.text.as_bytes());
        ffi::lua_error(state)
    }
}

/// Opens a window for a worker whose thread was found in compiled code; whether it is open. For the reaper's thread.
pub fn open_window(station: &Arc<Station>) -> bool {
    if station.has_window.load(Ordering::Acquire) {
        return true;
    }
    let state = station.state().cast::<lua_State>();
    let opened = with_profiler(|profiler| {
        if !profiler.owner.is_null() || profiler.is_hosts() || state.is_null() {
            return false;
        }
        if profiler.begin(state, null_mut()) != profiler.handler {
            return false;
        }
        profiler.owner = Arc::as_ptr(station);
        station.is_touched.store(true, Ordering::Release);
        station.has_window.store(true, Ordering::Release);
        true
    });
    opened.unwrap_or_default()
}

/// Sends the signal; whether there is a thread that gets it.
pub fn probe(station: &Station) -> bool {
    let (tid, Some(signal)) = (station.tid(), signal()) else { return false };
    // By number: that of a thread which has just ended is nobody's, or that of one which has no station.
    // SAFETY: no pointers.
    tid != 0 && unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) } == 0
}

/// After a job that was to be stopped, or was taken for it: no hook, no window, and guards for what is compiled next.
///
/// # Safety
/// A live VM of this thread, a worker's, which is that of `station`; called by its Lua code, so that no compiled code
/// is under way.
pub unsafe fn calm(state: *mut lua_State, station: &Station) {
    if !station.is_touched.swap(false, Ordering::AcqRel) {
        return;
    }
    // SAFETY: the caller's promise; the empty function raises nothing, and has the stack slots that are asked for.
    unsafe {
        ffi::lua_sethook(state, None, 0, 0);
        let top = ffi::lua_gettop(state);
        if ffi::lua_checkstack(state, 2) != 0 && ffi::luaL_loadstring(state, c"".as_ptr()) == 0 {
            ffi::lua_pcall(state, 0, 0, 0);
        }
        ffi::lua_settop(state, top);
    }
    close_window(state, station);
}

/// Closes the window, if it is this worker's.
fn close_window(state: *mut lua_State, station: &Station) {
    if !station.has_window.swap(false, Ordering::AcqRel) {
        return;
    }
    let armed = with_profiler(|profiler| {
        if std::ptr::eq(profiler.owner, station) {
            profiler.finish(state);
            profiler.owner = null();
        }
        profiler.arm(state)
    });
    station.is_armed.store(armed.unwrap_or_default(), Ordering::Release);
}

/// Closes the window of a thread that has ended in compiled code.
pub fn forget(station: &Station) {
    if station.has_window.swap(false, Ordering::AcqRel) {
        with_profiler(|profiler| {
            if std::ptr::eq(profiler.owner, station) {
                // Its VM is never entered again, and nobody else is in it.
                profiler.finish(station.state().cast());
                profiler.owner = null();
            }
        });
    }
}

/// See [`hold`].
pub(crate) type Hold = MutexGuard<'static, Option<Option<Profiler>>>;

/// For the time of a fork: nobody else has the profiler's lock.
pub(crate) fn hold() -> Hold {
    PROFILER.lock()
}

/// Threads inherit the mask: the host's handlers are not for ours.
pub fn with_signals_blocked<T>(spawn: impl FnOnce() -> T) -> T {
    // SAFETY: all-zero is a valid signal set to be filled in by the calls.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: two signal sets of ours.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    let result = spawn();
    // SAFETY: the set that the call above filled in.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut()) };
    result
}
