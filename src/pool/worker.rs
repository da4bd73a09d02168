//! A worker's side of its pool: find a job, sleep, end.
//!
//! Used on the worker's own thread only (`vm`).

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Own, Pool, RUNNING, STOPPING, Seat, stats};
use crate::{
    job::{Inbox, Job, Station},
    sleep::{Class, Rank},
    waker::{self, Patience, SPINS, Wait},
};

/// Every so many searches a worker looks at jobs from outside before its own submits, or these could keep the others
/// out for ever. A prime, as in tokio's scheduler, to fall in step with nothing.
const OUTSIDE_FIRST: u32 = 61;

/// Every so many looks at its inbox and the injector, a worker that is about to sleep looks at the others' queues: about
/// every two microseconds, since that takes a lock for readers, and lines that their owners write.
const GLANCE: u32 = 64;

/// For how long a worker sleeps before it gives back the memory that it keeps for jobs.
const KEEP_FOR: Duration = Duration::from_secs(1);

/// A worker's VM, of which only this matters here.
pub trait Keeps {
    /// Whether it keeps memory for jobs.
    fn keeps(&self) -> bool;
    /// Gives that back to the system.
    fn release(&self);
}

/// What a worker with nothing to run does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Look again.
    Again,
    /// End the waits of the jobs in progress: the pool does not wait for them.
    Stop,
    /// End: the pool is shut down or smaller now.
    End,
}

/// What a worker has in progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Jobs.
    pub sessions: usize,
    /// Those among them that wait for another job.
    pub waiting: usize,
}

/// See the module. Dropping it counts the worker out.
pub struct Worker {
    /// Its pool.
    pub pool: Arc<Pool>,
    seat: Arc<Seat>,
    own: Own,
    index: usize,
    searching: std::cell::Cell<bool>,
    tick: std::cell::Cell<u32>,
    left: std::cell::Cell<bool>,
    stopped: std::cell::Cell<bool>,
    patience: Patience,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("pool", &self.pool).field("index", &self.index).finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn new(pool: Arc<Pool>, seat: Arc<Seat>, own: Own, index: usize) -> Self {
        Self {
            pool,
            seat,
            own,
            index,
            searching: true.into(),
            tick: 0.into(),
            left: false.into(),
            stopped: false.into(),
            patience: Patience::default(),
        }
    }

    /// Makes the worker known under its inbox, before it sleeps for the first time.
    pub fn register(&self, inbox: Arc<Inbox>) {
        self.seat.station.register(inbox);
    }

    /// The worker as others see it.
    pub fn station(&self) -> &Arc<Station> {
        &self.seat.station
    }

    pub(super) fn push(&self, job: Job) {
        self.own.push(job, &self.seat.theirs);
    }

    /// Makes up for a quiet submit: jobs in the own deque are not going to be looked for at once after all.
    pub fn announce(&self) {
        if !self.seat.theirs.is_empty() {
            self.pool.follow(self.pool.sleep.pushed(self.seat.theirs.top_rank().unwrap_or_default()));
        }
    }

    /// A job for this worker, as much as `load` allows; with any session it leaves new jobs to workers that have none.
    pub fn find(&self, load: Load) -> Option<Job> {
        let least = self.least_rank(load);
        let tick = self.tick.get().wrapping_add(1);
        self.tick.set(tick);
        let outside_first = tick.is_multiple_of(OUTSIDE_FIRST);
        let job = if outside_first { self.take_outside(load, least) } else { None }
            .or_else(|| self.own.pop(least))
            .or_else(|| if outside_first { None } else { self.take_outside(load, least) })
            .or_else(|| self.steal(least))?;
        self.pool.took(&job);
        self.leave_search();
        Some(job)
    }

    /// The least rank of jobs that a worker may take.
    fn least_rank(&self, load: Load) -> Rank {
        if load.sessions < self.pool.config.sessions {
            Rank::Ordinary
        } else if load.waiting >= load.sessions {
            Rank::Nested
        } else if load.sessions < usize::MAX {
            Rank::Holding
        } else {
            Rank::Awaited
        }
    }

    /// The next of the worker's batch, or of the injector.
    fn take_outside(&self, load: Load, least: Rank) -> Option<Job> {
        if least == Rank::Ordinary
            && let Some(job) = self.own.pop_batch()
        {
            return Some(job);
        }
        let pool = &self.pool;
        if load.sessions > 0 && pool.sleep.has_free() && !pool.queues.is_empty() {
            // A push may have found us searching and woken nobody: that one is to take it.
            self.leave_search();
            pool.wake_one();
            return pool.queues.steal_into(&self.own, least.max(Rank::Nested));
        }
        pool.queues.steal_into(&self.own, least)
    }

    /// From the other workers, beginning behind oneself so that not all begin at the same.
    fn steal(&self, least: Rank) -> Option<Job> {
        let seats = self.pool.seats.read();
        let (before, behind) = seats.split_at_checked(self.index)?;
        behind
            .iter()
            .skip(1)
            .chain(before)
            .flatten()
            .find_map(|seat| seat.theirs.steal_into(&self.own, least))
    }

    /// The only job in hand is about to end, and there seems to be no other: it searches from now on. Whoever gets the
    /// outcome may send the next one at once, and is to wake nobody for that before this worker has looked.
    pub fn foresee_search(&self) {
        if !self.searching.get() && self.own.is_empty() && self.pool.queues.is_empty() {
            self.searching.set(true);
            self.pool.sleep.search();
        }
    }

    /// Whether it looks for its next job.
    pub fn is_searching(&self) -> bool {
        self.searching.get()
    }

    /// Step 3 of the sleep protocol, if it searches: it has found something to do.
    pub fn leave_search(&self) {
        if self.searching.replace(false) && self.pool.sleep.found() {
            self.pool.wake_one();
        }
    }

    /// Nothing to run: sleeps until there is a job, an event in `inbox`, or `timeout` is over. While a
    /// core is free for it, it looks for a while before. Memory that is kept for jobs goes back to the system once it
    /// has slept for a while.
    pub fn idle(&self, inbox: &Inbox, load: Load, timeout: Option<Duration>, memory: &impl Keeps) -> Turn {
        if self.must_end(load.sessions) {
            return Turn::End;
        }
        if self.pool.dropping.load(Ordering::Acquire) && !self.stopped.replace(true) {
            return Turn::Stop;
        }
        let least = self.least_rank(load);
        let sleep = &self.pool.sleep;
        if !self.searching.replace(true) {
            sleep.search();
            // A push since our last look may have relied on a searcher; now that we are one, look again.
            return Turn::Again;
        }
        let rounds = if timeout.is_none() { self.patience.rounds() } else { 1 };
        'looking: for round in 0..rounds {
            if sleep.searchers() != 1 || !waker::core_is_free() {
                break;
            }
            for spin in 1..=SPINS {
                std::hint::spin_loop();
                // What another worker has sent is in that one's own queue; nobody else is woken for it meanwhile.
                let is_there = spin.is_multiple_of(GLANCE) && self.pool.has_work(least);
                if is_there || !inbox.mailbox.is_empty() {
                    self.patience.came(round);
                    return Turn::Again;
                }
                // What it was woken for may be done already: the wait below takes that in, and ends at once.
                if inbox.mailbox.waker().is_notified() {
                    break 'looking;
                }
                if !self.pool.queues.is_empty() {
                    if least == Rank::Ordinary {
                        self.patience.came(round);
                        return Turn::Again;
                    }
                    break 'looking;
                }
            }
        }
        let class = match (least, load.sessions) {
            (Rank::Awaited, _) => Class::Shut,
            (Rank::Holding, _) => Class::Closed,
            (Rank::Nested, _) => Class::Full,
            (Rank::Ordinary, 0) => Class::Free,
            (Rank::Ordinary, _) => Class::Waiting,
        };
        if !sleep.sleep(self.index, class, || self.pool.has_work(least)) {
            return Turn::Again;
        }
        self.searching.set(false);
        if least != Rank::Ordinary {
            // A push may have relied on us, and we leave that job to others.
            self.pool.wake_one();
        }
        // Events come by the same waker; timers end the wait. No signal reaches a worker.
        let begun = Instant::now();
        if timeout.is_some_and(|timeout| timeout <= KEEP_FOR) || !memory.keeps() {
            let _: Wait = inbox.mailbox.waker().wait(timeout);
        } else if inbox.mailbox.waker().wait(Some(KEEP_FOR)) == Wait::TimedOut {
            memory.release();
        }
        self.patience.slept(begun.elapsed());
        self.searching.set(sleep.woken(self.index));
        Turn::Again
    }

    fn must_end(&self, sessions: usize) -> bool {
        let state = self.pool.state.load(Ordering::Acquire);
        if state == STOPPING {
            return true;
        }
        if sessions > 0 {
            return false;
        }
        if state != RUNNING {
            return true;
        }
        if self.is_superfluous() {
            return true;
        }
        false
    }

    /// Whether the pool has become smaller and this worker, which has no session, is one too many: then it is counted
    /// out, and must end, though there may be jobs.
    pub fn is_superfluous(&self) -> bool {
        if !self.pool.shrinking.load(Ordering::Acquire) {
            return false;
        }
        if self.pool.sleep.leave_if_too_many() {
            self.left.set(true);
            return true;
        }
        self.pool.shrinking.store(false, Ordering::Release);
        false
    }

    /// It takes no new jobs any more, and ends when those in progress have: another may take its place now, since they may
    /// wait for jobs in the queue.
    pub fn retire(&self) {
        if !self.seat.retired.swap(true, Ordering::AcqRel) {
            self.pool.sleep.retire();
            self.pool.wake_one();
        }
    }

    /// Whether another may have taken its place.
    pub fn is_retired(&self) -> bool {
        self.seat.retired.load(Ordering::Acquire)
    }

    /// Goes back to Lua, after a fork that may be going on.
    pub fn enter_lua(&self) {
        self.seat.station.inside.enter();
    }

    /// The job that it was stuck in has ended.
    pub fn returned(&self) {
        self.pool.returned(&self.seat);
        // It has the lowest priority, which not everyone may take back: so another takes its place.
        self.retire();
        self.seat.station.is_abandoned.store(false, Ordering::Release);
    }

    /// Has come out of Lua.
    pub fn leave_lua(&self) {
        self.seat.station.inside.leave();
    }

    /// A job begins here.
    pub fn job_begins(&self) {
        stats::add(&self.seat.stats.running, 1);
    }

    /// A job has ended here, after `wallclock`.
    pub fn job_ended(&self, wallclock: Duration, ok: bool) {
        let stats = &self.seat.stats;
        stats::add(&stats.running, u64::MAX);
        stats::add(&stats.invocations, 1);
        stats::add(&stats.errors, u64::from(!ok));
        stats::add(&stats.wallclock, u64::try_from(wallclock.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The pool's init has succeeded here.
    pub fn serves(&self) {
        if !self.seat.serving.swap(true, Ordering::AcqRel) {
            self.pool.serving.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether it has begun to take jobs.
    pub fn is_serving(&self) -> bool {
        self.seat.serving.load(Ordering::Acquire)
    }

    /// Whether the pool has no worker whose init has succeeded: then its jobs would wait for one in vain.
    pub fn nobody_serves(&self) -> bool {
        self.pool.serving.load(Ordering::Acquire) == 0
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Jobs of its own that it never began are for the others.
        while let Some(job) = self.own.pop(Rank::Ordinary).or_else(|| self.own.pop_batch()) {
            self.pool.queues.push(job);
        }
        if let Some(seat) = self.pool.seats.write().get_mut(self.index) {
            *seat = None;
        }
        if self.searching.get() {
            let _last = self.pool.sleep.found();
        }
        self.pool.count_out(&self.seat, self.left.get());
        // A push that counted on this worker came before it was counted out, or finds it gone and starts another.
        std::sync::atomic::fence(Ordering::SeqCst);
        // One that never ran (the system refused the thread) does not try again: its pool fails the jobs.
        if self.seat.station.inbox().is_some() && self.pool.state.load(Ordering::Acquire) != STOPPING {
            self.pool.wake_one();
        }
        self.pool.bury();
    }
}

impl Pool {
    /// A worker is not stuck any more, if it was.
    fn returned(&self, seat: &Seat) {
        if seat.abandoned.swap(false, Ordering::AcqRel) {
            self.abandoned.fetch_sub(1, Ordering::AcqRel);
        }
        if seat.unreplaced.swap(false, Ordering::AcqRel) {
            self.unreplaced.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A worker is no more, whose seat is empty; `left` if it does not count any more.
    pub(super) fn count_out(&self, seat: &Seat, left: bool) {
        if seat.serving.load(Ordering::Acquire) {
            self.serving.fetch_sub(1, Ordering::AcqRel);
        }
        self.past.lock().add(&seat.stats);
        self.returned(seat);
        if seat.retired.load(Ordering::Acquire) {
            self.sleep.retired_ended();
        } else if !left {
            self.sleep.ended();
        }
        seat.station.is_over.store(true, Ordering::Release);
    }
}
