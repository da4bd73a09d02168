//! Where jobs wait: the pool's two injectors, and two deques on each worker.
//!
//! Jobs from outside go to an injector, a worker's own to its deque: it takes them back newest first, others steal the
//! oldest. Each exists twice: for *awaited* jobs (a job of this pool waits for them: see `Parcel::awaited`) and for
//! ordinary ones. A worker at its limit of sessions takes only awaited ones. Whoever is waited for is then runnable by
//! the very worker that waits, so no chain of waiting jobs can stall.

use crossbeam_deque::{Injector, Steal, Stealer, Worker as Deque};

use crate::job::Job;

/// The pool's half.
#[derive(Debug)]
pub(crate) struct Queues {
    awaited: Injector<Job>,
    ordinary: Injector<Job>,
}

/// A worker's half.
#[derive(Debug)]
pub(crate) struct Own {
    awaited: Deque<Job>,
    ordinary: Deque<Job>,
}

/// What others may take from a worker.
#[derive(Debug)]
pub(crate) struct Theirs {
    awaited: Stealer<Job>,
    ordinary: Stealer<Job>,
}

impl Own {
    pub(crate) fn new() -> Self {
        Self { awaited: Deque::new_lifo(), ordinary: Deque::new_lifo() }
    }

    pub(crate) fn theirs(&self) -> Theirs {
        Theirs { awaited: self.awaited.stealer(), ordinary: self.ordinary.stealer() }
    }

    pub(crate) fn push(&self, job: Job) {
        if job.value.awaited { self.awaited.push(job) } else { self.ordinary.push(job) }
    }

    /// The newest of its own.
    pub(crate) fn pop(&self, with_room: bool) -> Option<Job> {
        self.awaited.pop().or_else(|| if with_room { self.ordinary.pop() } else { None })
    }
}

impl Theirs {
    pub(crate) fn is_empty(&self) -> bool {
        self.awaited.is_empty() && self.ordinary.is_empty()
    }

    pub(crate) fn has_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// The oldest awaited job, else half of the ordinary ones.
    pub(crate) fn steal_into(&self, own: &Own, with_room: bool) -> Option<Job> {
        settle(|| self.awaited.steal())
            .or_else(|| if with_room { settle(|| self.ordinary.steal_batch_and_pop(&own.ordinary)) } else { None })
    }
}

impl Queues {
    pub(crate) fn new() -> Self {
        Self { awaited: Injector::new(), ordinary: Injector::new() }
    }

    pub(crate) fn push(&self, job: Job) {
        if job.value.awaited { self.awaited.push(job) } else { self.ordinary.push(job) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.awaited.is_empty() && self.ordinary.is_empty()
    }

    pub(crate) fn has_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// The oldest job; a batch of those behind it moves to `own`, in order.
    pub(crate) fn steal_into(&self, own: &Own, with_room: bool) -> Option<Job> {
        settle(|| self.awaited.steal())
            .or_else(|| if with_room { settle(|| self.ordinary.steal_batch_and_pop(&own.ordinary)) } else { None })
    }

    /// The oldest job alone.
    pub(crate) fn steal(&self) -> Option<Job> {
        settle(|| self.awaited.steal()).or_else(|| settle(|| self.ordinary.steal()))
    }
}

/// Repeats an attempt that lost a race.
fn settle(attempt: impl Fn() -> Steal<Job>) -> Option<Job> {
    loop {
        match attempt() {
            Steal::Success(job) => return Some(job),
            Steal::Empty => return None,
            Steal::Retry => std::hint::spin_loop(),
        }
    }
}
