//! A worker as it is seen by those who stop its jobs.
//!
//! The worker's thread writes what its VM is doing; `reaper` reads that, and `interrupt`'s signal handler and hooks,
//! which run on the worker's thread, read what the reaper has asked for.

use std::{
    ffi::c_void,
    ptr::{from_ref, null_mut},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{Control, Inbox, Keeper, Kind, Stop, new_job};
use crate::gate::{Inside, Thread};

/// No job's code runs: the scheduler's does, or none.
const NOBODY: usize = 0;
/// The code of a job without a control runs.
const SOMEBODY: usize = 1;

/// Where a signal found the worker's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Place {
    /// Not answered yet.
    Unknown,
    /// In what LuaJIT has compiled.
    Compiled,
    /// In the interpreter, or in C.
    Elsewhere,
}

/// See the module.
pub struct Station {
    /// The pool's name.
    pub pool: Arc<str>,
    /// Its number among the pool's workers.
    pub index: usize,
    keeper: Weak<dyn Keeper>,
    /// Whether the thread runs Lua, or C that Lua has called.
    pub(crate) inside: Inside,
    inbox: OnceLock<Arc<Inbox>>,
    tid: AtomicI32,
    /// What is running: a control's address, or one of the two words above.
    current: AtomicUsize,
    /// The Lua state that a hook is to be set in; null while there is none.
    state: AtomicPtr<c_void>,
    /// All its code is a job's (see `isolate`), msys's own modules included.
    pub is_isolated: AtomicBool,
    /// Its compiled code has guards, by which it can be left.
    pub is_armed: AtomicBool,
    /// A hook was set: to be undone when the job is left.
    pub is_touched: AtomicBool,
    /// The job does not end: what may keep hooks from being called is to be ended.
    pub is_late: AtomicBool,
    /// The signal's handler is to end the thread, if it finds it in compiled code.
    pub is_condemned: AtomicBool,
    /// It has done so.
    pub is_dead: AtomicBool,
    /// It is stuck in C.
    pub is_abandoned: AtomicBool,
    /// It has ended.
    pub is_over: AtomicBool,
    place: AtomicU8,
    /// Counts the signals that were answered.
    pub answers: AtomicU64,
    /// All jobs are to be stopped.
    stop_all: OnceLock<Stop>,
    /// The worker's VM, and what is done with it when its thread has ended by itself.
    vm: AtomicPtr<c_void>,
    estate: OnceLock<fn(*mut c_void, &str)>,
}

impl std::fmt::Debug for Station {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Station").field("pool", &self.pool).field("index", &self.index).finish_non_exhaustive()
    }
}

impl Thread for Station {
    fn is_inside(&self) -> bool {
        self.inside.is_inside()
    }

    fn time_used(&self) -> Option<Duration> {
        // The system's name for the clock of a thread, by its number: also of one that has just ended.
        let clock = (!self.tid() << 3) | 6;
        // SAFETY: the time is ours.
        unsafe {
            let mut time: libc::timespec = std::mem::zeroed();
            if libc::clock_gettime(clock, &raw mut time) != 0 {
                return None;
            }
            Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
        }
    }

    fn sleeps(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", self.tid())).unwrap_or_default();
        // Behind the name, which is in brackets and may contain some.
        matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('S' | 'D'))
    }
}

impl Station {
    /// Of a worker that is about to be started.
    pub fn new(pool: Arc<str>, index: usize, keeper: Weak<dyn Keeper>) -> Arc<Self> {
        Arc::new(Self {
            pool,
            index,
            keeper,
            inside: Inside::default(),
            inbox: OnceLock::new(),
            tid: AtomicI32::new(0),
            current: AtomicUsize::new(NOBODY),
            state: AtomicPtr::new(null_mut()),
            is_isolated: AtomicBool::new(false),
            is_armed: AtomicBool::new(false),
            is_touched: AtomicBool::new(false),
            is_late: AtomicBool::new(false),
            is_condemned: AtomicBool::new(false),
            is_dead: AtomicBool::new(false),
            is_abandoned: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            place: AtomicU8::new(Place::Unknown as u8),
            answers: AtomicU64::new(0),
            stop_all: OnceLock::new(),
            vm: AtomicPtr::new(null_mut()),
            estate: OnceLock::new(),
        })
    }

    /// The worker's thread has begun, with this inbox.
    pub fn register(&self, inbox: Arc<Inbox>) {
        // SAFETY: no preconditions.
        self.tid.store(unsafe { libc::gettid() }, Ordering::Release);
        let _ = self.inbox.set(inbox);
    }

    /// Its inbox, once it has begun.
    pub fn inbox(&self) -> Option<&Arc<Inbox>> {
        self.inbox.get()
    }

    /// The number by which the system knows the thread; 0 before it has begun.
    pub fn tid(&self) -> i32 {
        self.tid.load(Ordering::Acquire)
    }

    /// Whether its thread is the one that asks.
    pub fn is_here(&self) -> bool {
        // SAFETY: no preconditions.
        self.tid() == unsafe { libc::gettid() }
    }

    /// Who has its pool.
    pub fn keeper(&self) -> Option<Arc<dyn Keeper>> {
        self.keeper.upgrade()
    }

    /// The state to set hooks in; null for none.
    pub fn state(&self) -> *mut c_void {
        self.state.load(Ordering::Acquire)
    }

    /// From now on this state runs the jobs' code; gives the one before.
    pub fn set_state(&self, state: *mut c_void) -> *mut c_void {
        self.state.swap(state, Ordering::AcqRel)
    }

    /// The code of a job runs from now on; whether it is to be stopped.
    #[inline]
    pub fn enter(&self, control: Option<&Arc<Control>>) -> bool {
        match control {
            None => {
                self.current.store(SOMEBODY, Ordering::Relaxed);
                self.stop_all.get().is_some()
            }
            Some(control) => {
                // Whoever stops it sets that first, and then looks here; see `is_running`.
                self.current.swap(from_ref::<Control>(control).expose_provenance(), Ordering::SeqCst);
                control.stop().is_some() || self.stop_all.get().is_some()
            }
        }
    }

    /// No job's code runs from now on.
    #[inline]
    pub fn leave(&self) {
        self.current.store(NOBODY, Ordering::Relaxed);
    }

    /// Whether this job's code is what runs.
    pub fn is_running(&self, control: &Arc<Control>) -> bool {
        self.current.load(Ordering::SeqCst) == from_ref::<Control>(control).expose_provenance()
    }

    /// Whether any job's code runs.
    pub fn is_busy(&self) -> bool {
        self.current.load(Ordering::SeqCst) != NOBODY
    }

    /// Why the code that runs is to be stopped, if it is. On the worker's own thread.
    pub fn stop(&self) -> Option<&Stop> {
        let current = self.current.load(Ordering::Relaxed);
        if current == NOBODY {
            return None;
        }
        if let Some(stop) = self.stop_all.get() {
            return Some(stop);
        }
        if current == SOMEBODY {
            return None;
        }
        // SAFETY: set by `enter`, and left before the job's parcel lets go of its control, by this thread.
        let control = unsafe { &*std::ptr::with_exposed_provenance::<Control>(current) };
        control.stop()
    }

    /// All jobs are to be stopped, and those to come.
    pub fn stop_all(&self, stop: Stop) {
        let _ = self.stop_all.set(stop);
    }

    /// Why all are to be stopped, if they are.
    pub fn stops_all(&self) -> Option<&Stop> {
        self.stop_all.get()
    }

    /// Tells the worker's scheduler to end the waits of a job.
    pub fn post_stop(&self, control: &Arc<Control>, slot: usize) {
        let Some(inbox) = self.inbox.get() else { return };
        let mut job = new_job();
        job.value.kind = Kind::Stop;
        job.value.ticket = slot as u64;
        job.value.rare_mut().control = Some(Arc::clone(control));
        inbox.mailbox.push(job);
    }

    /// Where the last signal found the thread.
    pub fn place(&self) -> Place {
        match self.place.load(Ordering::Acquire) {
            1 => Place::Compiled,
            2 => Place::Elsewhere,
            _ => Place::Unknown,
        }
    }

    /// The signal's handler has found it there.
    pub fn set_place(&self, place: Place) {
        self.place.store(place as u8, Ordering::Release);
    }

    /// What is left when the thread ends by itself: `estate` is then called with the VM and a text.
    pub fn set_vm(&self, vm: *mut c_void, estate: fn(*mut c_void, &str)) {
        let _ = self.estate.set(estate);
        self.vm.store(vm, Ordering::Release);
    }

    /// The VM is gone.
    pub fn forget_vm(&self) {
        self.vm.store(null_mut(), Ordering::Release);
    }

    /// Ends what a dead thread has left. Once.
    pub fn settle_estate(&self, text: &str) {
        let vm = self.vm.swap(null_mut(), Ordering::AcqRel);
        if let (false, Some(estate)) = (vm.is_null(), self.estate.get()) {
            estate(vm, text);
        }
    }
}
