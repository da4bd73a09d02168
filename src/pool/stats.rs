//! What a pool counts, and the table that `msys.threadpool.stat` gives.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// One worker's counters, on cache lines of their own: only it writes them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct WorkerStats {
    /// Jobs that ended here.
    pub(crate) invocations: AtomicU64,
    /// Those that failed.
    pub(crate) errors: AtomicU64,
    /// Sum of their durations, from their beginning to the outcome, in nanoseconds. One that was here already when the
    /// job before it ended begins then, so that the sending of that one's outcome counts with it.
    pub(crate) wallclock: AtomicU64,
    /// Jobs in progress: running or waiting.
    pub(crate) running: AtomicU64,
}

/// Adds to a counter that only this thread writes.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// Sums over the workers.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) invocations: u64,
    pub(crate) errors: u64,
    pub(crate) wallclock: u64,
    pub(crate) running: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, stats: &WorkerStats) {
        self.invocations += stats.invocations.load(Ordering::Relaxed);
        self.errors += stats.errors.load(Ordering::Relaxed);
        self.wallclock += stats.wallclock.load(Ordering::Relaxed);
        self.running += stats.running.load(Ordering::Relaxed);
    }
}

/// What `stat` gives; counts are of one moment, but not all of the same one.
#[derive(Clone, Debug, Serialize)]
pub struct Stat {
    /// The pool's name.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// How many workers it may have.
    pub concurrency: usize,
    /// Jobs that ended.
    pub invocations: u64,
    /// Those that failed.
    pub errors: u64,
    /// Jobs in progress, on average since the pool was made.
    pub avg_concurrency: f64,
    /// Active workers as a share of `concurrency`, now: 0 to 1.
    pub saturation: f64,
    /// Seconds from a job's start to its end, on average, its waits included.
    pub avg_wallclock_time_per_op: f64,
    /// Jobs that wait for a worker.
    pub queue_sz: usize,
    /// The same, by the name that the first seed's family also uses.
    pub job_num_queued: usize,
    /// Jobs in progress: running, or waiting for something.
    pub job_num_running: u64,
    /// Workers alive.
    pub num_threads: usize,
    /// Workers that run or look for jobs.
    pub num_active_threads: usize,
    /// Workers that sleep.
    pub num_inactive_threads: usize,
    /// Workers started since the pool was made.
    pub threads_started: u64,
    /// Workers alive that are stuck in a C call, whose job was given up.
    pub num_abandoned: usize,
    /// How many that happened to since the pool was made.
    pub abandoned: u64,
    /// Workers that were ended with their VMs, because their job could not be stopped in any other way.
    pub killed: u64,
    /// Whether the pool was shut down.
    pub shut_down: bool,
}
