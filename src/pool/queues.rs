//! Where jobs wait: the pool's injectors, and three deques on each worker.
//!
//! Jobs from outside go to an injector; a worker takes them in batches, oldest first, so that with one worker the order is
//! that of submission. A worker's own submits go to a deque of their own: it takes them back newest first, others steal the
//! oldest. *Awaited* jobs (a job of this pool waits for them: see `Parcel::awaited`) have queues apart: a worker at
//! its limit of sessions takes only those. Whoever is waited for is then runnable by the very worker that waits, so no
//! chain of waiting jobs can stall.

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
    submitted: Deque<Job>,
    /// Taken from elsewhere and not begun.
    batch: Deque<Job>,
}

/// What others may take from a worker.
#[derive(Debug)]
pub(crate) struct Theirs {
    awaited: Stealer<Job>,
    submitted: Stealer<Job>,
    batch: Stealer<Job>,
}

impl Own {
    pub(crate) fn new() -> Self {
        Self { awaited: Deque::new_lifo(), submitted: Deque::new_lifo(), batch: Deque::new_fifo() }
    }

    pub(crate) fn theirs(&self) -> Theirs {
        Theirs {
            awaited: self.awaited.stealer(),
            submitted: self.submitted.stealer(),
            batch: self.batch.stealer(),
        }
    }

    pub(crate) fn push(&self, job: Job) {
        if job.value.awaited { self.awaited.push(job) } else { self.submitted.push(job) }
    }

    /// The newest of its own submits.
    pub(crate) fn pop(&self, with_room: bool) -> Option<Job> {
        self.awaited.pop().or_else(|| if with_room { self.submitted.pop() } else { None })
    }

    /// The oldest of its batch.
    pub(crate) fn pop_batch(&self) -> Option<Job> {
        self.batch.pop()
    }
}

impl Theirs {
    pub(crate) fn is_empty(&self) -> bool {
        self.awaited.is_empty() && self.submitted.is_empty() && self.batch.is_empty()
    }

    pub(crate) fn has_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// The oldest awaited job, else half of the ordinary ones.
    pub(crate) fn steal_into(&self, own: &Own, with_room: bool) -> Option<Job> {
        settle(|| self.awaited.steal()).or_else(|| {
            if !with_room {
                return None;
            }
            settle(|| self.batch.steal_batch_and_pop(&own.batch))
                .or_else(|| settle(|| self.submitted.steal_batch_and_pop(&own.batch)))
        })
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
            .or_else(|| if with_room { settle(|| self.ordinary.steal_batch_and_pop(&own.batch)) } else { None })
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
