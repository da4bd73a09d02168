//! The thread that ends jobs whose time is over, or that were cancelled: one in the process, begun when first needed.
//!
//! Called by `vm` ([`watch`], [`stop`]), `handles` and `host` ([`stop`]), `pool` and `registry` ([`stop_all`]). Knows
//! jobs by their [`Control`]s and workers by their [`Station`]s; no Lua: what touches a VM is in `interrupt`, which says
//! so with [`use_means`].
//!
//! **The ladder**, for a job with a session on a worker (a queued one ends at once, [`Control::request`]):
//!
//! 1. An event to the worker's scheduler, which ends the job's wait, if it waits.
//! 2. Signals to the worker's thread ([`Means::probe`]) while the job's code runs there, at growing intervals:
//!    they stop the job in the interpreter and in compiled code, or when a C function returns to it.
//! 3. After [`GRACE`] the caller gets the outcome, whatever the worker does.
//! 4. A worker that is found in compiled code after [`PATIENCE`], because that has no guards or they are of no use,
//!    loses its thread. Its VM is lost, and another worker takes its place.
//! 5. A worker that is stuck in C after [`PATIENCE`] is *abandoned*: another takes its place; it ends when the call
//!    returns. A thread that merely gets no time from the system is no such: it is given [`LONG`].
//!
//! It is over when the session has ended ([`Control::is_gone`]), of which the thread learns by looking.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    gate::Thread,
    job::{self, Cause, Control, Place, Station, Stop, deliver},
    signals,
    sync::{Condvar, Mutex, MutexGuard},
};

/// How running code is stopped; see `interrupt`.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// Compiled code may be left from now on, where it can.
    pub open: fn(),
    /// Not any more.
    pub close: fn(),
    /// Finds out where compiled code may be.
    pub learn_areas: fn(),
    /// Sends the signal.
    pub probe: fn(&Station),
}

static MEANS: OnceLock<Means> = OnceLock::new();

/// Says how workers are interrupted, before there is one.
pub fn use_means(means: Means) {
    static AT_FORK: OnceLock<()> = OnceLock::new();
    MEANS.get_or_init(|| means);
    AT_FORK.get_or_init(|| {
        // SAFETY: functions without captures, in a module that is never unloaded.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child)) };
    });
}

/// How long a worker has to deliver the outcome of a stopped job itself.
const GRACE: Duration = Duration::from_millis(5);
/// How long a job may go on before it is taken for stuck.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long guards may fail to work, and signals to be answered.
const LAST: Duration = Duration::from_millis(500);
/// How long, if it gets no time to run.
const LONG: Duration = Duration::from_secs(5);
/// Between two signals, at first and at most; and to one that is abandoned.
const FIRST: Duration = Duration::from_micros(100);
const MOST: Duration = Duration::from_millis(5);
const SLOW: Duration = Duration::from_millis(100);
/// How much time on a core shows that a thread is not merely waiting for one: what [`PATIENCE`] is where it has one.
const ENOUGH: Duration = Duration::from_millis(40);
/// At how many looks in a row a thread sleeps that sleeps in a call; and the most that our signals make it use meanwhile.
const ASLEEP: u32 = 3;
const WOKEN: Duration = Duration::from_millis(1);
/// At how many jobs with a limit of time those that have ended are sorted out.
const FEW: usize = 1024;

/// A job's time.
#[derive(Debug)]
struct Timed(Instant, Arc<Control>);

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// What is being stopped.
#[derive(Debug)]
enum Target {
    Job(Arc<Control>),
    /// All jobs of the worker, which ends.
    All,
}

#[derive(Debug)]
struct Stopping {
    target: Target,
    station: Arc<Station>,
    since: Instant,
    next: Instant,
    interval: Duration,
    /// What the thread had used of a core when its job was first found running.
    used: Option<Duration>,
    /// What it had used at the last look, and at how many looks in a row it slept.
    slept: (Duration, u32),
    /// The thread was found running the job since then.
    answered: u64,
}

#[derive(Debug)]
struct Queue {
    timed: BinaryHeap<Reverse<Timed>>,
    /// At this length those that have ended are sorted out.
    purge: usize,
    /// For the thread, which takes them.
    new: Vec<Stopping>,
    /// The thread waits until then, or for ever.
    until: Option<Instant>,
    runs: bool,
    /// The thread is to end when nothing is left to do.
    rests: bool,
}

impl Queue {
    const fn new() -> Self {
        Self { timed: BinaryHeap::new(), purge: FEW, new: Vec::new(), until: None, runs: false, rests: false }
    }

    /// Forgets jobs that have ended before their time.
    fn sort_out(&mut self) {
        self.timed.retain(|Reverse(Timed(_, control))| !control.has_ended());
    }
}

static QUEUE: Mutex<Option<Queue>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();

/// The queue, with a thread that sees to it, if the system gives one.
fn queue() -> MutexGuard<'static, Option<Queue>> {
    let mut guard = QUEUE.lock();
    let queue = guard.get_or_insert_with(Queue::new);
    queue.rests = false;
    if !queue.runs {
        let builder = std::thread::Builder::new().name("msys reaper".to_owned()).stack_size(256 << 10);
        queue.runs = signals::with_signals_blocked(|| builder.spawn(run)).is_ok();
    }
    guard
}

/// Ends the job when its time is over.
pub fn watch(control: &Arc<Control>) {
    let Some(deadline) = control.deadline() else { return };
    let mut guard = queue();
    let Some(queue) = guard.as_mut() else { return };
    if queue.timed.len() >= queue.purge {
        queue.sort_out();
        queue.purge = FEW.max(2 * queue.timed.len());
    }
    queue.timed.push(Reverse(Timed(deadline, Arc::clone(control))));
    let sooner = queue.until.is_none_or(|until| deadline < until);
    drop(guard);
    if sooner {
        CHANGED.notify_all();
    }
}

/// Ends a job: at once, if no worker has begun it; else its caller has the outcome within [`GRACE`]. Whether it had not
/// ended, nor been asked to.
pub fn stop(control: &Arc<Control>, cause: Cause) -> bool {
    if control.stop().is_some() || control.has_ended() {
        return false;
    }
    let mut all = vec![(Arc::clone(control), cause)];
    // What it waits for may be what its worker runs, which would have to end first for it to hear of its own end.
    while let Some((control, cause)) = all.pop() {
        if let Some((station, slot)) = job::request(&control, cause) {
            station.post_stop(&control, slot);
            push(Target::Job(Arc::clone(&control)), station);
        }
        if let Some(stop) = control.stop() {
            all.extend(control.children().into_iter().map(|child| (child, Cause::Parent(stop.clone()))));
        }
    }
    true
}

/// Stops whatever a worker runs, which is to end.
pub fn stop_all(station: &Arc<Station>, stop: Stop) {
    if station.stops_all().is_some() {
        return;
    }
    station.stop_all(stop);
    // One that is not in Lua sees it when it enters a job's code; see `Station::enter`.
    if station.inside.is_inside() {
        push(Target::All, Arc::clone(station));
    }
}

/// Ends the thread, unless jobs are still to be stopped: for the end of the process's last host.
pub fn rest() {
    let mut guard = QUEUE.lock();
    let deadline = Instant::now() + LAST;
    while let Some(queue) = guard.as_mut().filter(|queue| queue.runs) {
        queue.rests = true;
        CHANGED.notify_all();
        let late;
        (guard, late) = CHANGED.wait_until(guard, (Instant::now() + MOST).min(deadline));
        if late && Instant::now() >= deadline {
            return;
        }
    }
}

fn push(target: Target, station: Arc<Station>) {
    let now = Instant::now();
    let stopping = Stopping { target, station, since: now, next: now, interval: FIRST, used: None, slept: (Duration::ZERO, 0), answered: 0 };
    let mut guard = queue();
    if let Some(queue) = guard.as_mut() {
        queue.new.push(stopping);
    }
    drop(guard);
    CHANGED.notify_all();
}

fn run() {
    // Where it may, it goes before what it is to stop.
    // SAFETY: no pointers; on Linux a thread has a niceness of its own.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, libc::gettid().cast_unsigned(), -10) };
    let mut all: Vec<Stopping> = Vec::new();
    let mut guard = QUEUE.lock();
    loop {
        let Some(queue) = guard.as_mut() else { return };
        let now = Instant::now();
        all.append(&mut queue.new);
        let mut due = Vec::new();
        while queue.timed.peek().is_some_and(|Reverse(Timed(at, _))| *at <= now) {
            due.extend(queue.timed.pop().map(|Reverse(Timed(_, control))| control));
        }
        let mut until = queue.timed.peek().map(|Reverse(Timed(at, _))| *at);
        queue.until = Some(now);
        drop(guard);
        for control in due {
            stop(&control, Cause::Timeout);
        }
        let now = Instant::now();
        let mut areas_known = false;
        all.retain_mut(|stopping| stopping.next > now || stopping.step(now, &mut areas_known));
        if all.is_empty()
            && let Some(means) = MEANS.get()
        {
            (means.close)();
        }
        let soonest = all.iter().map(|stopping| stopping.next).min();
        until = until.into_iter().chain(soonest).min();
        guard = QUEUE.lock();
        let Some(queue) = guard.as_mut() else { return };
        if queue.rests && all.is_empty() && queue.new.is_empty() {
            queue.sort_out();
            if queue.timed.is_empty() {
                queue.runs = false;
                drop(guard);
                CHANGED.notify_all();
                return;
            }
        }
        // What has come meanwhile has found that nobody waits.
        let sooner = queue.timed.peek().map(|Reverse(Timed(at, _))| *at);
        until = until.into_iter().chain(sooner).min();
        if queue.new.is_empty() {
            queue.until = until;
            guard = match until {
                Some(until) => CHANGED.wait_until(guard, until).0,
                None => CHANGED.wait(guard),
            };
        }
    }
}

impl Stopping {
    fn is_over(&self) -> bool {
        match &self.target {
            Target::Job(control) => control.is_gone(),
            Target::All => self.station.is_over.load(Ordering::Acquire),
        }
    }

    fn is_running(&self) -> bool {
        match &self.target {
            Target::Job(control) => self.station.is_running(control),
            Target::All => self.station.is_busy(),
        }
    }

    /// Does what is due; false when nothing is left to do.
    fn step(&mut self, now: Instant, areas_known: &mut bool) -> bool {
        if self.is_over() {
            self.station.is_condemned.store(false, Ordering::Release);
            return false;
        }
        let since = now.saturating_duration_since(self.since);
        if since >= GRACE
            && let Target::Job(control) = &self.target
            && let Some(job) = control.take_over(false)
        {
            deliver(job, false);
        }
        if !self.is_running() {
            // It waits, and its scheduler knows; or its worker runs another job, which comes first.
            self.used = None;
            self.next = now + (since / 8).clamp(FIRST * 5, SLOW);
            return true;
        }
        let place = self.station.place();
        let answers = self.station.answers.load(Ordering::Acquire);
        let is_fresh = answers != self.answered;
        self.answered = answers;
        let used = self.station.time_used().unwrap_or_default();
        let began = *self.used.get_or_insert(used);
        // Once is not enough: a page that is fetched, a lock of the system's.
        let is_asleep = since >= PATIENCE && used.saturating_sub(self.slept.0) < WOKEN && self.station.sleeps();
        self.slept = (used, if is_asleep { self.slept.1 + 1 } else { 0 });
        let had_time = since >= PATIENCE && (used.saturating_sub(began) >= ENOUGH || self.slept.1 >= ASLEEP);
        let is_stuck = had_time || since >= LONG;
        let Some(means) = MEANS.get() else { return false };
        if !*areas_known {
            *areas_known = true;
            (means.learn_areas)();
        }
        (means.open)();
        self.station.is_late.store(since >= GRACE * 4, Ordering::Release);
        if is_stuck && place == Place::Compiled && is_fresh {
            self.station.is_condemned.store(true, Ordering::Release);
        } else if is_stuck && (place == Place::Elsewhere || since >= LAST && place == Place::Unknown) {
            self.abandon();
        }
        self.station.set_place(Place::Unknown);
        (means.probe)(&self.station);
        if self.station.is_condemned.load(Ordering::Acquire) && self.has_died() {
            return false;
        }
        self.next = now + self.interval;
        let most = if self.station.is_abandoned.load(Ordering::Acquire) { SLOW } else { MOST };
        self.interval = (self.interval * 2).min(most);
        true
    }

    /// Lets another worker take the place of one that is stuck in C.
    fn abandon(&self) {
        if self.station.is_abandoned.swap(true, Ordering::AcqRel) {
            return;
        }
        // It may use a core for ever: others go first.
        // SAFETY: no pointers; on Linux a thread has a niceness of its own.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, self.station.tid().cast_unsigned(), 19) };
        let job = match &self.target {
            Target::Job(control) => Some(&**control),
            Target::All => None,
        };
        if let Some(keeper) = self.station.keeper() {
            keeper.abandon(&self.station, job);
        }
    }

    /// Whether the thread has ended by itself; if so, sees to what it has left.
    fn has_died(&self) -> bool {
        // The handler says so just before it ends the thread; then there is a moment left.
        let deadline = Instant::now() + Duration::from_millis(2);
        while !self.station.is_dead.load(Ordering::Acquire) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::yield_now();
        }
        while std::path::Path::new(&format!("/proc/self/task/{}", self.station.tid())).exists() {
            std::thread::yield_now();
        }
        if let Some(inbox) = self.station.inbox() {
            inbox.mailbox.waker().retire();
        }
        let text = match &self.target {
            Target::Job(control) => format!(
                "msys: the worker of pool '{}' was ended, because job {} could not be stopped in any other way",
                self.station.pool,
                control.id()
            ),
            Target::All => format!("msys: the worker of pool '{}' was ended", self.station.pool),
        };
        if let Target::Job(control) = &self.target
            && let Some(job) = control.take_over(true)
        {
            deliver(job, false);
        }
        self.station.settle_estate(&text);
        if let Some(keeper) = self.station.keeper() {
            keeper.lost(&self.station);
        }
        true
    }
}

thread_local! {
    /// What must not be anybody else's at a fork.
    static HELD: RefCell<Option<MutexGuard<'static, Option<Queue>>>> = const { RefCell::new(None) };
}

extern "C" fn before_fork() {
    HELD.set(Some(QUEUE.lock()));
}

extern "C" fn after_fork_in_parent() {
    HELD.take();
}

extern "C" fn after_fork_in_child() {
    if let Some(mut queue) = HELD.take() {
        // The parent's jobs, and its thread.
        std::mem::forget(queue.take());
    }
}
