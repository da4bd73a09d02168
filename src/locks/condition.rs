//! A condition: sessions that have a mutex wait without it until another signals.
//!
//! A signal takes the first out of this queue and puts it into the mutex's, or gives it the mutex if that is free. So nobody
//! is woken in order to wait again, and one that was signalled has the mutex when it goes on.

use std::{collections::VecDeque, sync::Arc};

use super::{Guarded, Mutex, Session, Settled, Waiter, Waits, Wake};

/// See the module.
#[derive(Debug)]
pub struct Condition<W> {
    mutex: Arc<Mutex<W>>,
    queue: Guarded<VecDeque<Waiter<W>>>,
}

impl<W: Wake> Condition<W> {
    /// One for those who have `mutex`.
    pub fn new(mutex: Arc<Mutex<W>>) -> Self {
        Self { mutex, queue: Guarded::new(VecDeque::new()) }
    }

    /// The mutex.
    pub fn mutex(&self) -> &Arc<Mutex<W>> {
        &self.mutex
    }

    /// Releases the mutex, which the session has, and waits. Gives what to wake.
    pub fn wait(&self, waits: &mut Waits, mut waiter: Waiter<W>) -> Option<W> {
        let (depth, wake) = self.mutex.suspend(waits);
        waiter.depth = depth;
        self.queue.get(waits).push_back(waiter);
        wake
    }

    /// Signals the first that waits; gives what to wake, or `None` if nobody waits.
    pub fn signal(&self, waits: &mut Waits) -> Option<Option<W>> {
        let waiter = self.queue.get(waits).pop_front()?;
        Some(self.mutex.enter(waits, waiter))
    }

    /// What has become of a wait: as for the mutex. One whose time is over waits no longer, and has to take the mutex; the
    /// depth that it had is for that.
    pub fn settle(
        &self,
        waits: &mut Waits,
        session: Session,
        expired: bool,
        wake: impl FnOnce() -> W,
    ) -> (Settled<W>, u32) {
        let queue = self.queue.get(waits);
        let Some(place) = queue.iter().position(|waiter| waiter.session == session) else {
            return (self.mutex.settle(waits, session, false, wake), 0);
        };
        if expired {
            let depth = queue.remove(place).map_or(0, |waiter| waiter.depth);
            return (Settled::Expired(Vec::new()), depth);
        }
        if let Some(waiter) = queue.get_mut(place) {
            waiter.wake = Some(wake());
        }
        (Settled::Waiting, 0)
    }

    /// A session is gone. Gives what to wake.
    pub fn abandon(&self, waits: &mut Waits, session: Session) -> Option<W> {
        self.queue.get(waits).retain(|waiter| waiter.session != session);
        self.mutex.abandon(waits, session).0
    }
}
