//! Holds the workers back from Lua while the process forks.
//!
//! Called by `pool::worker` (which passes it whenever it goes back to Lua) and `registry` (around a fork).
//!
//! A thread that is in the middle of something at a fork leaves its locks taken in the child for ever. Ours are seen
//! to; but while a worker runs Lua it may hold those of C libraries: LuaJIT throws to end the recording of a trace, and
//! libgcc then holds a lock that the child's first throw waits for. So a fork first waits until no worker runs Lua:
//!
//! 1. *Fork*: set `FORKING`; wait until no seat says `inside`, at most for [`PATIENCE`]; then for those that have not
//!    been given time on a core to come out, at most for [`LAST`].
//! 2. *Worker*, before it returns to Lua: set its `inside`; if `FORKING`, clear it, wait until the fork is over, begin
//!    again.
//! 3. *After the fork*: clear `FORKING`, wake who waits.
//!
//! Both flags are stored and loaded sequentially consistent: of a worker that enters and a fork that begins, one sees
//! the other. A worker with a long job outlasts the patience; then the fork goes ahead, with the risk that every
//! program with threads has.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::sync::{Condvar, Mutex, MutexGuard};

/// The longest that a fork waits for workers to come out of Lua.
const PATIENCE: Duration = Duration::from_millis(50);
/// And for those which the system lets wait, while other processes run.
const LAST: Duration = Duration::from_secs(1);
/// With so much time on a core a worker comes out, unless its job is a long one.
const ENOUGH: Duration = Duration::from_millis(10);

static FORKING: AtomicBool = AtomicBool::new(false);
static OVER: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());

/// What the forking thread has in hand meanwhile.
pub(crate) type Closed = MutexGuard<'static, ()>;

/// Whether a worker runs Lua.
#[derive(Debug, Default)]
pub(crate) struct Inside(AtomicBool);

impl Inside {
    /// Step 2.
    #[inline]
    pub(crate) fn enter(&self) {
        self.0.store(true, Ordering::SeqCst);
        while FORKING.load(Ordering::SeqCst) {
            self.leave();
            wait_until_over();
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// The worker has come out of Lua.
    #[inline]
    pub(crate) fn leave(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// For the fork.
    pub(crate) fn is_inside(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[cold]
fn wait_until_over() {
    let (lock, over) = &OVER;
    let mut guard = lock.lock();
    over.notify_all();
    while FORKING.load(Ordering::SeqCst) {
        // A bound, for the child whose parent had it set: it has no such thread, and no other wait is meant.
        (guard, _) = over.wait_until(guard, Instant::now() + PATIENCE);
    }
}

/// A worker's thread, as the fork sees it.
pub(crate) trait Thread {
    /// Whether it runs Lua.
    fn is_inside(&self) -> bool;
    /// How much time on a core it has used.
    fn time_used(&self) -> Option<Duration>;
    /// Whether the system says that it sleeps, in a call that has not returned.
    fn sleeps(&self) -> bool;
}

/// Step 1; `inside` gives the other workers that run Lua. Nobody else has the lock that is given at the fork.
pub(crate) fn close<T: Thread>(inside: impl FnOnce() -> Vec<Arc<T>>) -> Closed {
    FORKING.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let mut waited_for: Vec<_> = inside().into_iter().map(|worker| (worker.time_used(), worker)).collect();
    while !waited_for.is_empty() && began.elapsed() < PATIENCE {
        waited_for.retain(|(_, worker)| worker.is_inside());
        std::thread::yield_now();
    }
    while !waited_for.is_empty() && began.elapsed() < LAST {
        waited_for.retain(|(before, worker)| {
            let used = worker.time_used().zip(*before).map(|(now, before)| now.saturating_sub(before));
            worker.is_inside() && used.is_some_and(|used| used < ENOUGH) && !worker.sleeps()
        });
        // Whoever is about to enter wakes us; those that have come out for other things are found by looking.
        let (lock, over) = &OVER;
        let _ = over.wait_until(lock.lock(), Instant::now() + Duration::from_millis(1));
    }
    OVER.0.lock()
}

/// Step 3, in the parent, and in the child, where nobody waits.
pub(crate) fn open(closed: Closed) {
    FORKING.store(false, Ordering::SeqCst);
    drop(closed);
    OVER.1.notify_all();
}
