//! A pool: queues, workers, their sleep, and its end. Generic over what a worker is: a function that gets a [`Worker`].
//!
//! Called by `registry`, `vm` and `host`. Knows no Lua.
//!
//! **A job's way.** [`Pool::submit`] counts it in, pushes it (own deque or injector) and wakes at most one worker. A
//! worker's [`Worker::find`] takes it and counts it out. [`deliver`] brings the outcome to the submitter's inbox.
//!
//! **The end of a pool.** `shutdown` sets the state, so that submits are refused, and wakes everyone. A worker without
//! sessions that finds no job then ends. A submit that read the state before still pushes: after its fence it
//! either finds a worker that will look again, or none alive and starts one, and a worker that ends looks at the
//! queues once more after it has been counted out. So no accepted job is left. The last one out signals who waits.

mod backlog;
mod config;
mod queues;
mod stats;
mod worker;

use std::{
    collections::VecDeque,
    fmt,
    os::unix::thread::JoinHandleExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use backlog::Backlog;
pub use config::{Config, MAX_WORKERS, Options, WhenFull, whole};
use queues::{Own, Queues, Theirs};
pub use stats::Stat;
use stats::{Totals, WorkerStats};
pub use worker::{Keeps, Load, Turn, Worker};

use crate::{
    error::{Error, Result},
    handles,
    job::{Control, Inbox, Job, Keeper, Station, Stop, fail, report_text, signal},
    reaper, signals,
    sleep::{Rank, Sleep, Wake},
    sync::{Condvar, Mutex, RwLock},
    waker::{self, Soon},
};

const RUNNING: u8 = 0;
/// Queued jobs are finished, then the workers end.
const DRAINING: u8 = 1;
/// The process's last host is gone: workers end as soon as they look.
const STOPPING: u8 = 2;

/// A worker as others see it.
struct Seat {
    theirs: Theirs,
    station: Arc<Station>,
    stats: WorkerStats,
    /// It takes no new jobs, and another may take its place.
    retired: AtomicBool,
    /// Its init has succeeded.
    serving: AtomicBool,
    /// It is stuck in C; and nobody has taken its place.
    abandoned: AtomicBool,
    unreplaced: AtomicBool,
}

impl Seat {
    /// Wakes the worker; one that has not registered yet has not slept either.
    fn wake(&self) {
        if let Some(inbox) = self.station.inbox() {
            inbox.mailbox.waker().wake();
        }
    }
}

/// See the module.
pub struct Pool {
    /// Unique among living pools; 0 is `CPU`, 1 is `IO`.
    pub id: u32,
    /// What it was created with.
    pub config: Config,
    run: fn(Box<Worker>),
    state: AtomicU8,
    queues: Queues,
    backlog: Backlog,
    sleep: Sleep,
    seats: RwLock<Vec<Option<Arc<Seat>>>>,
    concurrency: AtomicUsize,
    /// There may be more workers than `concurrency`.
    shrinking: AtomicBool,
    /// It ends without waiting for what its jobs wait for.
    dropping: AtomicBool,
    /// Callers that wait for room in the queue.
    waiters: Mutex<VecDeque<(Arc<Inbox>, u64)>>,
    has_waiters: AtomicBool,
    /// Callers that wait for the end.
    mourners: Mutex<Vec<(Arc<Inbox>, u64)>>,
    threads: Mutex<Vec<(Arc<Station>, JoinHandle<()>)>>,
    last_one_out: Condvar,
    /// Workers alive whose init has succeeded.
    serving: AtomicUsize,
    /// Workers stuck in C: alive, and ever.
    abandoned: AtomicUsize,
    abandoned_ever: AtomicU64,
    /// Workers that were ended with their VMs.
    killed: AtomicU64,
    /// Those alive and stuck whose place nobody has taken.
    unreplaced: AtomicUsize,
    created: Instant,
    started: AtomicU64,
    /// Of workers that have ended.
    past: Mutex<Totals>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("id", &self.id).field("name", &self.config.name).finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool without workers; `run` is what each worker's thread does.
    pub fn new(id: u32, config: Config, run: fn(Box<Worker>)) -> Arc<Self> {
        Arc::new(Self {
            id,
            run,
            state: AtomicU8::new(RUNNING),
            queues: Queues::new(),
            backlog: Backlog::default(),
            sleep: Sleep::new(config.concurrency),
            seats: RwLock::new(Vec::new()),
            concurrency: AtomicUsize::new(config.concurrency),
            shrinking: AtomicBool::new(false),
            dropping: AtomicBool::new(false),
            waiters: Mutex::new(VecDeque::new()),
            has_waiters: AtomicBool::new(false),
            mourners: Mutex::new(Vec::new()),
            threads: Mutex::new(Vec::new()),
            last_one_out: Condvar::new(),
            serving: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
            abandoned_ever: AtomicU64::new(0),
            killed: AtomicU64::new(0),
            unreplaced: AtomicUsize::new(0),
            created: Instant::now(),
            started: AtomicU64::new(0),
            past: Mutex::new(Totals::default()),
            config,
        })
    }

    /// What creates this pool anew, in a child process.
    pub fn recreate(&self) -> Arc<Self> {
        let config = Config { concurrency: self.concurrency.load(Ordering::Relaxed), ..self.config.clone() };
        let pool = Self::new(self.id, config, self.run);
        pool.state.store(self.state.load(Ordering::Relaxed), Ordering::Relaxed);
        pool
    }

    /// Whether it takes a job now.
    ///
    /// # Errors
    /// [`Error::PoolShutDown`], or [`Error::PoolFull`] unless `exempt`.
    pub fn admit(&self, exempt: bool) -> Result<()> {
        if !self.is_running() {
            return Err(Error::PoolShutDown(self.config.name.to_string()));
        }
        if self.unreplaced.load(Ordering::Relaxed) != 0 && self.is_stuck() {
            return Err(Error::PoolStuck(self.stuck_text()));
        }
        if !exempt && !self.backlog.has_room(self.config.backlog) {
            return Err(Error::PoolFull { pool: self.config.name.to_string(), backlog: self.config.backlog });
        }
        Ok(())
    }

    /// Accepts a job: into the deque of `worker`, if that is one of this pool, else into the injector. A `quiet` one is
    /// pushed without a wake: the caller promises to look for work next.
    pub fn submit(self: &Arc<Self>, job: Job, worker: Option<&Worker>, quiet: bool) {
        let rank = job.value.rank;
        self.backlog.pushed();
        match worker {
            Some(worker) => worker.push(job),
            None => self.queues.push(job),
        }
        if !quiet {
            self.follow(self.sleep.pushed(rank));
        }
    }

    /// Signals `ticket` when there may be room in the queue (perhaps at once).
    pub fn await_room(&self, inbox: Arc<Inbox>, ticket: u64) {
        self.waiters.lock().push_back((inbox, ticket));
        self.has_waiters.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // A take before the store above saw no waiters: then its count is seen here.
        if self.queued() < self.config.backlog || !self.is_running() {
            self.release_waiters(usize::MAX);
        }
    }

    /// A caller waits for room no longer. If it has been signalled, and is `gone` without using that, the next one is.
    pub fn leave_room(&self, inbox: &Arc<Inbox>, ticket: u64, gone: bool) {
        let mut waiters = self.waiters.lock();
        let place = waiters.iter().position(|(other, its)| Arc::ptr_eq(other, inbox) && *its == ticket);
        if let Some(place) = place {
            waiters.remove(place);
            self.has_waiters.store(!waiters.is_empty(), Ordering::SeqCst);
            return;
        }
        drop(waiters);
        if gone && self.queued() < self.config.backlog {
            self.release_waiters(1);
        }
    }

    fn release_waiters(&self, most: usize) {
        let mut released = 0;
        while released < most {
            let mut waiters = self.waiters.lock();
            let first = waiters.pop_front();
            self.has_waiters.store(!waiters.is_empty(), Ordering::SeqCst);
            drop(waiters);
            let Some((inbox, ticket)) = first else { return };
            released += usize::from(inbox.mailbox.push(signal(ticket)));
        }
    }

    /// A job has been taken from the queues; one that was ended there counts no more.
    fn took(&self, job: &Job) {
        if job.value.rare().control.as_ref().is_none_or(|control| control.leave_queue()) {
            self.taken();
        }
    }

    /// There is a job less in the queues.
    fn taken(&self) {
        self.backlog.taken();
        if self.has_waiters.load(Ordering::SeqCst) {
            self.release_waiters(1);
        }
    }

    /// The workers that run Lua.
    pub fn inside(&self) -> Vec<Arc<Station>> {
        let seats = self.seats.read();
        let inside = seats.iter().flatten().filter(|seat| seat.station.inside.is_inside());
        inside.map(|seat| Arc::clone(&seat.station)).collect()
    }

    /// Whether it accepts jobs.
    pub fn is_running(&self) -> bool {
        self.state.load(Ordering::Acquire) == RUNNING
    }

    /// The highest rank of a job that waits.
    fn top_rank(&self) -> Option<Rank> {
        let seats = self.seats.read();
        let of_workers = seats.iter().flatten().filter_map(|seat| seat.theirs.top_rank()).max();
        of_workers.max(self.queues.top_rank())
    }

    /// Whether there is a job for a worker that takes those of rank `least` or above.
    fn has_work(&self, least: Rank) -> bool {
        self.top_rank() >= Some(least)
    }

    /// Wakes one worker if there is work for it.
    fn wake_one(self: &Arc<Self>) {
        if let Some(rank) = self.top_rank() {
            self.follow(self.sleep.wake_one(rank));
        }
    }

    /// Does what the sleep protocol asks for.
    fn follow(self: &Arc<Self>, wake: Wake) {
        match wake {
            Wake::Nobody => {}
            Wake::Worker(index) => self.wake(index),
            Wake::Start => self.start(),
        }
    }

    fn wake(&self, index: usize) {
        let seats = self.seats.read();
        if let Some(seat) = seats.get(index).and_then(Option::as_ref) {
            seat.wake();
        }
    }

    fn wake_all(&self) {
        for seat in self.seats.read().iter().flatten() {
            seat.wake();
        }
    }

    /// Starts a worker that the sleep protocol has counted in, searching.
    fn start(self: &Arc<Self>) {
        let own = Own::new();
        let keeper: Arc<dyn Keeper> = Arc::<Self>::clone(self);
        let (seat, station, index) = {
            let mut seats = self.seats.write();
            let index = seats.iter().position(Option::is_none).unwrap_or(seats.len());
            if index == seats.len() {
                seats.push(None);
            }
            let station = Station::new(Arc::clone(&self.config.name), index, Arc::downgrade(&keeper));
            if self.dropping.load(Ordering::Acquire) {
                station.stop_all(self.end());
            }
            let seat = Arc::new(Seat {
                theirs: own.theirs(),
                station: Arc::clone(&station),
                stats: WorkerStats::default(),
                retired: AtomicBool::new(false),
                serving: AtomicBool::new(false),
                abandoned: AtomicBool::new(false),
                unreplaced: AtomicBool::new(false),
            });
            seats[index] = Some(Arc::clone(&seat));
            (seat, station, index)
        };
        // In a box: what the thread is given lies on its stack as long as it lives.
        let worker = Box::new(Worker::new(Arc::clone(self), seat, own, index));
        let run = self.run;
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        // Linux shows 15 bytes of a thread's name.
        let name = format!("msys {}-{number}", self.config.name).replace('\0', "");
        let builder = std::thread::Builder::new().name(name).stack_size(self.config.stack_size);
        let spawned = signals::with_signals_blocked(|| builder.spawn(move || run(worker)));
        match spawned {
            Ok(thread) => {
                let mut threads = self.threads.lock();
                threads.retain(|(_, thread)| !thread.is_finished());
                threads.push((station, thread));
                waker::expect(Soon::Start);
            }
            Err(source) => {
                // The closure was dropped, and with it the worker: it has been counted out.
                let error = Error::NoThread { pool: self.config.name.to_string(), source };
                if self.sleep.census().0 == 0 {
                    let text = error.to_string();
                    self.fail_queued("error", &text, &text);
                }
            }
        }
    }

    /// Starts all workers that it may have.
    pub fn start_all(self: &Arc<Self>) {
        while self.is_running() && self.sleep.start_one() {
            self.start();
        }
    }

    /// Whether it has ever had a worker.
    pub fn has_started(&self) -> bool {
        self.started.load(Ordering::Relaxed) > 0
    }

    /// Ends the jobs that are queued now, and not those that come meanwhile, with a failure.
    pub fn fail_queued(&self, kind: &str, text: &str, traceback: &str) {
        let seats: Vec<_> = self.seats.read().iter().flatten().cloned().collect();
        let spare = Own::new();
        let mut left = self.queued();
        loop {
            let job = self.queues.steal().or_else(|| spare.pop_batch());
            let Some(job) = job.or_else(|| seats.iter().find_map(|seat| seat.theirs.steal_into(&spare, Rank::Ordinary))) else {
                return;
            };
            // One that was ended in the queue does not count.
            if job.value.rare().control.as_ref().is_some_and(|control| control.has_ended()) {
                continue;
            }
            if left == 0 {
                self.queues.push(job);
                break;
            }
            self.took(&job);
            left -= 1;
            fail(job, &self.config.name, kind, text, traceback);
        }
        // What a batch brought along, and is not to fail.
        while let Some(job) = spare.pop_batch() {
            self.queues.push(job);
        }
    }

    /// Refuses new jobs and ends when the queued ones and those in progress have. With `drop_queued` the queued ones
    /// fail, and those in progress are stopped.
    pub fn shutdown(&self, drop_queued: bool) {
        self.state.fetch_max(DRAINING, Ordering::AcqRel);
        if drop_queued {
            self.dropping.store(true, Ordering::Release);
            let text = Error::PoolShutDown(self.config.name.to_string()).to_string();
            // Before, so that a worker which has stopped its job begins none of them; after, for what that job has sent.
            self.fail_queued("shutdown", &text, &text);
            self.stop_jobs();
            self.fail_queued("shutdown", &text, &text);
        }
        self.release_waiters(usize::MAX);
        self.wake_all();
        waker::expect(Soon::End);
        self.bury();
    }

    /// Signals `ticket` when no worker is left.
    pub fn await_end(&self, inbox: Arc<Inbox>, ticket: u64) {
        self.mourners.lock().push((inbox, ticket));
        self.bury();
    }

    fn bury(&self) {
        // Those that are stuck in C may never end.
        let alive = self.sleep.census().0.saturating_sub(self.abandoned.load(Ordering::Acquire));
        if self.is_running() || alive != 0 || !self.queues.is_empty() {
            return;
        }
        for (inbox, ticket) in self.mourners.lock().drain(..) {
            inbox.mailbox.push(signal(ticket));
        }
        let _threads = self.threads.lock();
        self.last_one_out.notify_all();
    }

    /// Tells the workers to end whatever waits; for the end of the process's last host.
    pub fn stop(&self) {
        self.state.store(STOPPING, Ordering::Release);
        self.wake_all();
    }

    /// Waits for all workers to end, at most until `deadline`, and joins those that did.
    pub fn join(&self, deadline: Instant) {
        let mut threads = self.threads.lock();
        while self.sleep.census().0 != 0 {
            let late;
            (threads, late) = self.last_one_out.wait_until(threads, deadline);
            if late {
                threads.retain(|(_, thread)| !thread.is_finished());
                return;
            }
        }
        // A worker that has been counted out may still be about to take this lock.
        let ended = std::mem::take(&mut *threads);
        drop(threads);
        for (_, thread) in ended {
            // A worker's panic has been reported by its thread; nothing is left to do for it.
            let _ = thread.join();
        }
    }

    /// Whether all its workers are stuck in C calls, and no more may take their place.
    fn is_stuck(&self) -> bool {
        self.unreplaced.load(Ordering::Acquire) >= self.concurrency.load(Ordering::Relaxed)
    }

    fn stuck_text(&self) -> String {
        format!(
            "pool '{}' has {} workers stuck in C calls, of which max_abandoned = {} were replaced, and none is left",
            self.config.name,
            self.abandoned.load(Ordering::Relaxed),
            self.config.max_abandoned
        )
    }

    /// Why its jobs are stopped when it ends.
    fn end(&self) -> Stop {
        let text = format!("msys: {}", Error::PoolShutDown(self.config.name.to_string()));
        Stop { kind: "shutdown", text: text.into() }
    }

    /// Stops the jobs in progress, whatever they do.
    pub fn stop_jobs(&self) {
        let stop = self.end();
        let stations: Vec<_> = self.seats.read().iter().flatten().map(|seat| Arc::clone(&seat.station)).collect();
        for station in stations {
            reaper::stop_all(&station, stop.clone());
        }
    }

    /// Jobs in progress on workers that are stuck in C.
    pub fn behind_stuck(&self) -> u64 {
        let seats = self.seats.read();
        let stuck = seats.iter().flatten().filter(|seat| seat.abandoned.load(Ordering::Acquire));
        stuck.map(|seat| seat.stats.running.load(Ordering::Relaxed)).sum()
    }

    /// Sets how many workers it may have; superfluous ones end when they have no session.
    pub fn resize(self: &Arc<Self>, concurrency: usize) {
        self.concurrency.store(concurrency, Ordering::Relaxed);
        self.sleep.set_limit(concurrency);
        self.shrinking.store(true, Ordering::Release);
        self.wake_all();
        self.wake_one();
    }

    /// Jobs that wait in its queues.
    pub fn queued(&self) -> usize {
        self.backlog.len()
    }

    /// What it has done and is doing.
    pub fn stat(&self) -> Stat {
        let (alive, asleep) = self.sleep.census();
        let mut totals = Totals::default();
        {
            let past = self.past.lock();
            totals.invocations += past.invocations;
            totals.errors += past.errors;
            totals.wallclock += past.wallclock;
        }
        for seat in self.seats.read().iter().flatten() {
            totals.add(&seat.stats);
        }
        let concurrency = self.concurrency.load(Ordering::Relaxed);
        let active = alive.saturating_sub(asleep);
        let wallclock = Duration::from_nanos(totals.wallclock).as_secs_f64();
        Stat {
            name: self.config.name.to_string(),
            id: self.id,
            concurrency,
            invocations: totals.invocations,
            errors: totals.errors,
            avg_concurrency: wallclock / self.created.elapsed().as_secs_f64().max(1e-9),
            saturation: active as f64 / concurrency.max(1) as f64,
            avg_wallclock_time_per_op: wallclock / totals.invocations.max(1) as f64,
            queue_sz: self.queued(),
            job_num_queued: self.queued(),
            job_num_running: totals.running,
            num_threads: alive,
            num_active_threads: active,
            num_inactive_threads: asleep,
            threads_started: self.started.load(Ordering::Relaxed),
            num_abandoned: self.abandoned.load(Ordering::Relaxed),
            abandoned: self.abandoned_ever.load(Ordering::Relaxed),
            killed: self.killed.load(Ordering::Relaxed),
            shut_down: !self.is_running(),
        }
    }
}

impl Keeper for Pool {
    fn left_queue(self: Arc<Self>) {
        self.taken();
    }

    fn abandon(self: Arc<Self>, station: &Station, job: Option<&Control>) -> bool {
        if let Some(job) = job {
            // First, for it may come back meanwhile, and end.
            let host = job.host();
            let left = handles::release(job.session.load(Ordering::Acquire));
            if let Some(host) = host {
                left.iter().for_each(|text| report_text(&host, text));
            }
        }
        // A worker that ends gives up its seat first, and is counted out after.
        let seats = self.seats.read();
        let seat = seats.get(station.index).and_then(Option::as_ref);
        let Some(seat) = seat.filter(|seat| std::ptr::eq(&*seat.station, station)) else { return false };
        self.abandoned_ever.fetch_add(1, Ordering::Relaxed);
        let replaces = self.abandoned.fetch_add(1, Ordering::AcqRel) < self.config.max_abandoned;
        seat.abandoned.store(true, Ordering::Release);
        if !replaces {
            seat.unreplaced.store(true, Ordering::Release);
            self.unreplaced.fetch_add(1, Ordering::AcqRel);
        }
        let retires = replaces && !seat.retired.swap(true, Ordering::AcqRel);
        drop(seats);
        if retires {
            self.sleep.retire();
            self.wake_one();
        } else if self.is_stuck() {
            let text = self.stuck_text();
            self.fail_queued("killed", &text, &text);
        }
        self.bury();
        replaces
    }

    fn lost(self: Arc<Self>, station: &Station) {
        let seat = {
            let mut seats = self.seats.write();
            let place = seats.get_mut(station.index);
            place.and_then(|place| place.take_if(|seat| std::ptr::eq(&*seat.station, station)))
        };
        let Some(seat) = seat else { return };
        self.killed.fetch_add(1, Ordering::Relaxed);
        // What it had taken and not begun is for the others.
        let spare = Own::new();
        while let Some(job) = seat.theirs.steal_into(&spare, Rank::Ordinary).or_else(|| spare.pop_batch()) {
            self.queues.push(job);
        }
        let thread = {
            let mut threads = self.threads.lock();
            let place = threads.iter().position(|(other, _)| std::ptr::eq(&**other, station));
            place.map(|place| threads.swap_remove(place).1)
        };
        if let Some(thread) = thread {
            // std would look for the result of the thread's function, which has not returned.
            // SAFETY: the thread has ended, and nobody else has this handle.
            unsafe { libc::pthread_join(thread.into_pthread_t(), std::ptr::null_mut()) };
        }
        self.count_out(&seat, false);
        self.wake_one();
        self.bury();
    }
}
