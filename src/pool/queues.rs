//! Where jobs wait: the pool's injectors, and deques on each worker.
//!
//! Jobs from outside go to an injector; a worker takes them in batches, oldest first, so that with one worker the order
//! is that of submission. A worker's own submits go to deques of their own: it takes them back newest first, others
//! steal the oldest. Each [`Rank`] has queues apart: a worker at its limit of sessions takes only jobs above a rank.
//! Whoever is waited for by a job of the pool is then runnable by the very worker that waits, so no chain of waiting
//! jobs can stall.

use std::{cell::OnceCell, sync::OnceLock};

use crossbeam_deque::{Injector, Steal, Stealer, Worker as Deque};

use crate::{job::Job, sleep::Rank};

/// The ranks that a full worker may take, the most urgent first.
const EXEMPT: [Rank; 3] = [Rank::Awaited, Rank::Holding, Rank::Nested];

/// The pool's half, by rank.
#[derive(Debug)]
pub(crate) struct Queues([Injector<Job>; 4]);

/// A worker's half. Its deques for what it submits are made by the first such job: most workers submit nothing, and each
/// takes a KiB.
#[derive(Debug)]
pub(crate) struct Own {
    submitted: [OnceCell<Deque<Job>>; 4],
    /// Ordinary jobs taken from elsewhere and not begun.
    batch: Deque<Job>,
}

/// What others may take from a worker.
#[derive(Debug)]
pub(crate) struct Theirs {
    submitted: [OnceLock<Stealer<Job>>; 4],
    batch: Stealer<Job>,
}

impl Own {
    pub(crate) fn new() -> Self {
        Self { submitted: Default::default(), batch: Deque::new_fifo() }
    }

    pub(crate) fn theirs(&self) -> Theirs {
        Theirs { submitted: Default::default(), batch: self.batch.stealer() }
    }

    /// Adds one that the worker has submitted; `theirs` are the others' halves of these deques.
    pub(crate) fn push(&self, job: Job, theirs: &Theirs) {
        let place = job.value.rank as usize;
        let deque = self.submitted[place].get_or_init(|| {
            let deque = Deque::new_lifo();
            theirs.submitted[place].get_or_init(|| deque.stealer());
            deque
        });
        deque.push(job);
    }

    /// The newest of its own submits of this rank or above.
    pub(crate) fn pop(&self, least: Rank) -> Option<Job> {
        let pop = |rank: Rank| self.submitted[rank as usize].get().and_then(Deque::pop);
        let exempt = EXEMPT.into_iter().filter(|rank| *rank >= least).find_map(pop);
        exempt.or_else(|| if least == Rank::Ordinary { pop(Rank::Ordinary) } else { None })
    }

    /// Whether it has no job at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.submitted.iter().filter_map(OnceCell::get).all(Deque::is_empty)
    }

    /// The oldest of its batch.
    pub(crate) fn pop_batch(&self) -> Option<Job> {
        self.batch.pop()
    }
}

impl Theirs {
    pub(crate) fn is_empty(&self) -> bool {
        self.top_rank().is_none()
    }

    /// The highest rank of a job that is here.
    pub(crate) fn top_rank(&self) -> Option<Rank> {
        let exempt = EXEMPT.into_iter().find(|rank| self.filled(*rank).is_some());
        exempt.or_else(|| {
            (self.filled(Rank::Ordinary).is_some() || !self.batch.is_empty()).then_some(Rank::Ordinary)
        })
    }

    /// The deque of this rank, if there are jobs in it.
    fn filled(&self, rank: Rank) -> Option<&Stealer<Job>> {
        self.submitted[rank as usize].get().filter(|deque| !deque.is_empty())
    }

    /// The oldest job of an exempt rank, else half of the ordinary ones.
    pub(crate) fn steal_into(&self, own: &Own, least: Rank) -> Option<Job> {
        let mut exempt = EXEMPT.into_iter().filter(|rank| *rank >= least);
        exempt.find_map(|rank| self.filled(rank).and_then(|deque| settle(|| deque.steal()))).or_else(|| {
            if least != Rank::Ordinary {
                return None;
            }
            let batch_of = |deque: &Stealer<Job>| settle(|| deque.steal_batch_and_pop(&own.batch));
            let batch = if self.batch.is_empty() { None } else { batch_of(&self.batch) };
            batch.or_else(|| self.filled(Rank::Ordinary).and_then(batch_of))
        })
    }
}

impl Queues {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| Injector::new()))
    }

    pub(crate) fn push(&self, job: Job) {
        self.0[job.value.rank as usize].push(job);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Injector::is_empty)
    }

    /// The highest rank of a job that is here.
    pub(crate) fn top_rank(&self) -> Option<Rank> {
        let exempt = EXEMPT.into_iter().find(|rank| !self.0[*rank as usize].is_empty());
        exempt.or_else(|| (!self.0[0].is_empty()).then_some(Rank::Ordinary))
    }

    /// The oldest job; a batch of those behind it moves to `own`, in order.
    pub(crate) fn steal_into(&self, own: &Own, least: Rank) -> Option<Job> {
        // An injector that looks empty is not tried: a try costs a full fence. One that is filled just now is found at
        // the next look, which the sleep protocol has behind a fence.
        let mut exempt = EXEMPT.into_iter().filter(|rank| *rank >= least && !self.0[*rank as usize].is_empty());
        exempt.find_map(|rank| settle(|| self.0[rank as usize].steal())).or_else(|| {
            let ordinary = &self.0[0];
            if least != Rank::Ordinary || ordinary.is_empty() {
                return None;
            }
            settle(|| ordinary.steal_batch_and_pop(&own.batch))
        })
    }

    /// The oldest job alone.
    pub(crate) fn steal(&self) -> Option<Job> {
        self.0.iter().find_map(|queue| settle(|| queue.steal()))
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
