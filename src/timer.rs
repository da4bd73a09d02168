//! The timers of one VM: which ticket is due when.
//!
//! Called by `vm`. One thread's own, so no locks; it knows no clock but the instants it is given.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use rustc_hash::FxHashSet;

/// So many ended timers stay in the heap at any rate.
const FEW: usize = 64;

/// A heap of deadlines; equal deadlines fire in the order in which they were set.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64, u64)>>,
    /// Distinguishes equal deadlines.
    sequence: u64,
    /// Tickets whose timers are in the heap, and are of no use.
    ended: FxHashSet<u64>,
}

impl Timers {
    /// Sets a timer for `ticket`.
    pub fn set(&mut self, deadline: Instant, ticket: u64) {
        self.sequence += 1;
        self.heap.push(Reverse((deadline, self.sequence, ticket)));
    }

    /// Ends the timer of a ticket that is used once.
    pub fn end(&mut self, ticket: u64) {
        self.ended.insert(ticket);
        if self.ended.len() > FEW.max(self.heap.len() / 2) {
            self.heap.retain(|Reverse((_, _, ticket))| !self.ended.contains(ticket));
            self.ended.clear();
        }
    }

    /// A timer that is due at `now`, removed.
    pub fn due(&mut self, now: Instant) -> Option<u64> {
        loop {
            let Reverse((deadline, _, ticket)) = self.heap.peek()?;
            let ticket = *ticket;
            if *deadline > now {
                return None;
            }
            self.heap.pop();
            if !self.ended.remove(&ticket) {
                return Some(ticket);
            }
        }
    }

    /// How long from `now` until the next timer is due; `None` when there is none.
    pub fn next_in(&self, now: Instant) -> Option<Duration> {
        self.heap.peek().map(|Reverse((deadline, ..))| deadline.saturating_duration_since(now))
    }

    /// Whether there is none, so that the clock need not be read.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_by_deadline_and_then_in_order() {
        let now = Instant::now();
        let mut timers = Timers::default();
        timers.set(now + Duration::from_millis(2), 1);
        timers.set(now + Duration::from_millis(1), 2);
        timers.set(now + Duration::from_millis(1), 3);
        assert_eq!(timers.next_in(now), Some(Duration::from_millis(1)));
        assert_eq!(timers.due(now), None);
        let later = now + Duration::from_millis(5);
        assert_eq!([timers.due(later), timers.due(later), timers.due(later)], [Some(2), Some(3), Some(1)]);
        assert_eq!(timers.due(later), None);
        assert!(timers.is_empty());
    }
    #[test]
    fn an_ended_timer_neither_fires_nor_stays() {
        let now = Instant::now();
        let mut timers = Timers::default();
        timers.set(now, 1);
        timers.set(now, 2);
        timers.end(1);
        assert_eq!([timers.due(now), timers.due(now)], [Some(2), None]);
        for ticket in 10..10_000 {
            timers.set(now + Duration::from_secs(3600), ticket);
            timers.end(ticket);
            assert!(timers.heap.len() <= 2 * FEW + 2, "{} are kept", timers.heap.len());
        }
        timers.set(now, 1);
        assert_eq!(timers.due(now), Some(1), "a number that had ended before is a new timer's");
    }
}
