//! How many jobs the queues of a pool hold.
//!
//! Those who push count on one cache line, those who take on another: one count for both would go from core to core
//! twice a job. Whoever asks whether there is room has seen some takes before, and most often those are enough to say yes.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sync::Aligned;

/// See the module. Counts wrap.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    submitters: Aligned<Submitters>,
    taken: Aligned<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Submitters {
    pushed: AtomicUsize,
    /// What `taken` was at some time.
    seen: AtomicUsize,
}

impl Backlog {
    /// A job is about to be pushed.
    pub(super) fn pushed(&self) {
        self.submitters.0.pushed.fetch_add(1, Ordering::Relaxed);
    }

    /// A job has been taken.
    pub(super) fn taken(&self) {
        self.taken.0.fetch_add(1, Ordering::SeqCst);
    }

    /// How many there are: no fewer than when the call began, but for those taken since.
    pub(super) fn len(&self) -> usize {
        // In this order: what was taken has been counted as pushed.
        let taken = self.taken.0.load(Ordering::SeqCst);
        self.submitters.0.pushed.load(Ordering::Relaxed).wrapping_sub(taken)
    }

    /// Whether there are fewer than `most`.
    pub(super) fn has_room(&self, most: usize) -> bool {
        let Submitters { pushed, seen } = &self.submitters.0;
        // In this order, as in `len`. What another thread has seen may still be ahead: then the difference is huge.
        let before = seen.load(Ordering::Acquire);
        if pushed.load(Ordering::Relaxed).wrapping_sub(before) < most {
            return true;
        }
        let taken = self.taken.0.load(Ordering::Acquire);
        seen.store(taken, Ordering::Release);
        pushed.load(Ordering::Relaxed).wrapping_sub(taken) < most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_seen_as_soon_as_a_job_is_taken() {
        let backlog = Backlog::default();
        for _ in 0..5 {
            assert!(backlog.has_room(2));
            backlog.pushed();
            assert!(backlog.has_room(2));
            backlog.pushed();
            assert!(!backlog.has_room(2));
            backlog.taken();
            assert!(backlog.has_room(2));
            backlog.taken();
            assert_eq!(backlog.len(), 0);
        }
    }
}
