//! When workers of a pool sleep, and who wakes them: the protocol of rayon and tokio, with two classes of sleepers.
//!
//! Called by `pool`. Knows neither queues nor VMs: the caller says whether there is work, and how a worker is woken.
//!
//! **Words.** A worker *searches* from the moment it is woken (or finds nothing) until it has a job or sleeps;
//! `searching` counts them. `sleepers` holds the workers that sleep for want of jobs: those without sessions; those
//! whose sessions wait, to which a job goes only if there is none of the former and no thread left to start; and those
//! that have as many sessions as they may, which take only jobs of a higher [`Rank`].
//!
//! **Steps.**
//! 1. *Submit*: push the job; full fence; if `searching` is 0 and there is anyone to wake or start,
//!    [`Sleep::wake_one`].
//! 2. *Wake one*: under the lock, if `searching` is still 0: take a sleeper (or reserve a thread to start), set
//!    `searching` to 1 on its behalf; outside the lock, signal it.
//! 3. *Found*: a searcher that found a job leaves `searching`; if it was the last and there is more work, it wakes one:
//!    so a batch of jobs wakes workers one after the other, and never all at once for one job.
//! 4. *Sleep*: under the lock, enter `sleepers`; leave `searching`; full fence; look at the queues **again**. If there
//!    is work that we may take, leave `sleepers` and search; if somebody has taken us out meanwhile, their wake is
//!    ours: search. If there is work that we may not take, being full, wake one who may.
//! 5. *Woken*: under the lock, if still in `sleepers` (a mailbox woke us), leave it, not searching; else, searching.
//!
//! **No job is left while a worker sleeps.** Take a job J pushed in step 1, and the submitter's load of `searching`.
//! If it reads 0 and finds no sleeper (under the lock, or by the count of those available, which a sleeper raises
//! before its fence), then every worker that enters `sleepers` later does so after the submitter's fence, and its
//! second look in step 4 sees J. One that ends instead looks at the queues after a fence of its own (`pool::worker`).
//! If it reads more than 0, some worker S was searching; by the fences, S's leave comes after J's push in their total
//! order. S leaves by step 4, and then its second look sees J; or by step 3, and then either it was the last, and its
//! look at the queues sees J, or another searcher is left, for which the same holds: the last of them sees J. Whoever
//! sees J searches or wakes. The loom models in `tests/loom.rs` check this for small numbers.

use crate::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering, fence},
};

/// How urgently a worker that has no room for a session must take a job all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Not at all.
    #[default]
    Ordinary,
    /// A job of another pool waits for it: taken where every job of the worker waits for a job itself. Otherwise two
    /// pools whose jobs call each other could stall, each full of jobs that wait for the other.
    Nested,
    /// Somebody who has a lock waits for it: taken by full workers too, whose jobs may all wait for that lock.
    Holding,
    /// A job of this very pool waits for it, directly or through other pools: always taken.
    Awaited,
}

/// How a sleeper stands to new jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No session on it: takes jobs first.
    Free,
    /// Some of its sessions wait, and would have to wait for the job too.
    Waiting,
    /// No room for a session, but all of them wait for jobs: takes nested and awaited jobs.
    Full,
    /// No room for a session: takes what its own jobs may wait for.
    Closed,
    /// About to begin or to end: takes awaited jobs only.
    Shut,
}

/// What [`Sleep::wake_one`] asks its caller to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Nothing: somebody searches, or nobody is left to wake.
    Nobody,
    /// Wake this worker; it counts as searching already.
    Worker(usize),
    /// Start a worker; it begins searching.
    Start,
}

#[derive(Debug, Default)]
struct Sleepers {
    free: Vec<usize>,
    waiting: Vec<usize>,
    full: Vec<usize>,
    closed: Vec<usize>,
    shut: Vec<usize>,
    /// Workers started and not ended.
    alive: usize,
    /// How many may be.
    limit: usize,
    /// How many of those alive take no new jobs, and do not count for the limit.
    retired: usize,
}

impl Sleepers {
    fn most(&self) -> usize {
        self.limit + self.retired
    }
}

/// See the module.
#[derive(Debug)]
pub struct Sleep {
    searching: AtomicUsize,
    /// Length of `sleepers.free`: a worker with waiting sessions leaves jobs to these.
    free: AtomicUsize,
    /// How many workers a push could wake or start: with none, it need not take the lock.
    available: AtomicUsize,
    sleepers: Mutex<Sleepers>,
}

impl Sleep {
    /// Nobody alive, at most `limit` workers.
    pub fn new(limit: usize) -> Self {
        Self {
            searching: AtomicUsize::new(0),
            free: AtomicUsize::new(0),
            available: AtomicUsize::new(limit),
            sleepers: Mutex::new(Sleepers { limit, ..Sleepers::default() }),
        }
    }

    /// Step 1, after the push of a job of this rank.
    #[inline]
    pub fn pushed(&self, rank: Rank) -> Wake {
        fence(Ordering::SeqCst);
        if self.searching.load(Ordering::SeqCst) == 0 && self.available.load(Ordering::Relaxed) != 0 {
            return self.wake_one(rank);
        }
        Wake::Nobody
    }

    /// Publishes what changed under the lock.
    fn publish(&self, sleepers: &Sleepers) {
        let Sleepers { free, waiting, full, closed, shut, alive, .. } = sleepers;
        self.free.store(free.len(), Ordering::Relaxed);
        let asleep = free.len() + waiting.len() + full.len() + closed.len() + shut.len();
        self.available.store(asleep + sleepers.most().saturating_sub(*alive), Ordering::Relaxed);
    }

    /// Step 2, for a job of this rank: only workers that may take it are woken.
    pub fn wake_one(&self, rank: Rank) -> Wake {
        let mut sleepers = self.sleepers.lock();
        if self.searching.load(Ordering::SeqCst) != 0 {
            return Wake::Nobody;
        }
        let wake = if let Some(worker) = sleepers.free.pop() {
            Wake::Worker(worker)
        } else if sleepers.alive < sleepers.most() {
            sleepers.alive += 1;
            Wake::Start
        } else if let Some(worker) = sleepers.waiting.pop() {
            Wake::Worker(worker)
        } else {
            let mut worker = None;
            if rank >= Rank::Nested {
                worker = sleepers.full.pop();
            }
            if rank >= Rank::Holding && worker.is_none() {
                worker = sleepers.closed.pop();
            }
            if rank == Rank::Awaited && worker.is_none() {
                worker = sleepers.shut.pop();
            }
            let Some(worker) = worker else { return Wake::Nobody };
            Wake::Worker(worker)
        };
        self.publish(&sleepers);
        self.searching.fetch_add(1, Ordering::SeqCst);
        wake
    }

    /// Counts one more worker in, which begins searching, if there may be one: for a pool that starts all at once.
    pub fn start_one(&self) -> bool {
        let mut sleepers = self.sleepers.lock();
        if sleepers.alive >= sleepers.most() {
            return false;
        }
        sleepers.alive += 1;
        self.publish(&sleepers);
        self.searching.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// Step 3, for a searcher that found a job: whether it was the last, and so has to look for more work.
    #[must_use]
    pub fn found(&self) -> bool {
        self.searching.fetch_sub(1, Ordering::SeqCst) == 1
    }

    /// A worker that has nothing to do begins to search.
    pub fn search(&self) {
        self.searching.fetch_add(1, Ordering::SeqCst);
    }

    /// Step 4 for a worker that searches: whether it sleeps now (then it waits, and calls [`Sleep::woken`] after);
    /// otherwise it still searches.
    ///
    /// `has_work` speaks of work that this worker may take.
    #[must_use]
    pub fn sleep(&self, worker: usize, class: Class, has_work: impl Fn() -> bool) -> bool {
        {
            let mut sleepers = self.sleepers.lock();
            match class {
                Class::Free => sleepers.free.push(worker),
                Class::Waiting => sleepers.waiting.push(worker),
                Class::Full => sleepers.full.push(worker),
                Class::Closed => sleepers.closed.push(worker),
                Class::Shut => sleepers.shut.push(worker),
            }
            self.publish(&sleepers);
        }
        self.searching.fetch_sub(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !has_work() {
            return true;
        }
        if self.leave(worker) {
            self.search();
        }
        false
    }

    /// Step 5: whether the worker searches (a job's push woke it) or not (something else did).
    #[must_use]
    pub fn woken(&self, worker: usize) -> bool {
        !self.leave(worker)
    }

    /// Whether the worker was among the sleepers, and is not any more.
    fn leave(&self, worker: usize) -> bool {
        let mut sleepers = self.sleepers.lock();
        let Sleepers { free, waiting, full, closed, shut, .. } = &mut *sleepers;
        let left = [free, waiting, full, closed, shut].into_iter().any(|class| {
            // A worker sleeps once, and the newest sleepers are the likeliest to leave.
            let place = class.iter().rposition(|other| *other == worker);
            place.map(|place| class.remove(place)).is_some()
        });
        self.publish(&sleepers);
        left
    }

    /// Whether a worker without sessions sleeps; a hint.
    pub fn has_free(&self) -> bool {
        self.free.load(Ordering::Relaxed) != 0
    }

    /// How many workers search; a hint.
    pub fn searchers(&self) -> usize {
        self.searching.load(Ordering::Relaxed)
    }

    /// Workers alive, and how many of them sleep.
    pub fn census(&self) -> (usize, usize) {
        let sleepers = self.sleepers.lock();
        let Sleepers { free, waiting, full, closed, shut, alive, .. } = &*sleepers;
        (*alive, free.len() + waiting.len() + full.len() + closed.len() + shut.len())
    }

    /// Sets how many workers may live. The caller wakes those that are too many.
    pub fn set_limit(&self, limit: usize) {
        let mut sleepers = self.sleepers.lock();
        sleepers.limit = limit;
        self.publish(&sleepers);
    }

    /// Whether there are more workers than the limit; if so, the calling worker, which does not search, is counted out.
    #[must_use]
    pub fn leave_if_too_many(&self) -> bool {
        let mut sleepers = self.sleepers.lock();
        if sleepers.alive <= sleepers.most() {
            return false;
        }
        sleepers.alive -= 1;
        self.publish(&sleepers);
        true
    }

    /// A worker takes no new jobs from now on, and does not count for the limit: another may be started in its place.
    pub fn retire(&self) {
        let mut sleepers = self.sleepers.lock();
        sleepers.retired += 1;
        self.publish(&sleepers);
    }

    /// A worker that was retired has ended.
    pub fn retired_ended(&self) -> usize {
        self.sleepers.lock().retired -= 1;
        self.ended()
    }

    /// A worker ended (or could not be started); gives how many are left.
    pub fn ended(&self) -> usize {
        let mut sleepers = self.sleepers.lock();
        sleepers.alive -= 1;
        self.publish(&sleepers);
        sleepers.alive
    }
}
