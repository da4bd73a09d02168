//! A condition: sessions that have a mutex wait without it until another signals.
//!
//! A signal takes the first out of this queue and puts it into the mutex's, or gives it the mutex if that is free. So
//! nobody is woken in order to wait again, and one that was signalled has the mutex when it goes on.

//! The wait for the mutex is one as any other, and may close a cycle: of sessions that wait while nobody has signalled.
//! Then the session is refused its place in the queue, and has to ask for the mutex itself, which tells it why that
//! would never end.

use std::{collections::VecDeque, sync::Arc};

use super::{Guarded, Mutex, Session, Settled, Waiter, Waiting, Waits, Wake};

#[derive(Debug)]
struct State<W> {
    /// Who waits for a signal, and as what they will wait for the mutex.
    queue: VecDeque<(Waiter<W>, Option<Waiting>)>,
    /// Who was signalled and must not wait for the mutex; how deep they had locked it.
    refused: Vec<(Session, u32)>,
}

/// See the module.
#[derive(Debug)]
pub struct Condition<W> {
    mutex: Arc<Mutex<W>>,
    state: Guarded<State<W>>,
}

/// What has become of a wait for a signal. The number is how deep the session had locked the mutex.
#[derive(Debug)]
pub enum Waited<W> {
    /// It was signalled; what has become of its wait for the mutex.
    Locking(Settled<W>),
    /// It waits on.
    Waiting,
    /// The time is over; it does not wait, and does not have the mutex.
    Expired(u32),
    /// It was signalled, but waiting for the mutex would close a cycle; it does not wait, and does not have the mutex.
    Refused(u32),
}

impl<W: Wake> Condition<W> {
    /// One for those who have `mutex`.
    pub fn new(mutex: Arc<Mutex<W>>) -> Self {
        Self { mutex, state: Guarded::new(State { queue: VecDeque::new(), refused: Vec::new() }) }
    }

    /// The mutex.
    pub fn mutex(&self) -> &Arc<Mutex<W>> {
        &self.mutex
    }

    /// Releases the mutex, which the session has, and waits; `waiting` is its wait for the mutex, to come. Gives what
    /// to wake.
    pub fn wait(&self, waits: &mut Waits, mut waiter: Waiter<W>, waiting: Option<Waiting>) -> Option<W> {
        let (depth, wake) = self.mutex.suspend(waits);
        waiter.depth = depth;
        self.state.get(waits).queue.push_back((waiter, waiting));
        wake
    }

    /// Signals the first that waits; gives what to wake, or `None` if nobody waits.
    pub fn signal(&self, waits: &mut Waits) -> Option<Option<W>> {
        let (mut waiter, waiting) = self.state.get(waits).queue.pop_front()?;
        let session = waiter.session;
        if let Some(waiting) = waiting
            && waits.begin(session, waiting).is_err()
        {
            self.state.get(waits).refused.push((session, waiter.depth));
            return Some(waiter.wake.take());
        }
        match self.mutex.enter(waits, waiter) {
            Some(waiter) => {
                waits.end(session);
                Some(waiter.wake)
            }
            None => Some(None),
        }
    }

    /// What has become of a wait; `wake` is for the next time, if it waits on.
    pub fn settle(
        &self,
        waits: &mut Waits,
        session: Session,
        expired: bool,
        wake: impl FnOnce() -> W,
    ) -> Waited<W> {
        let state = self.state.get(waits);
        if let Some(place) = state.refused.iter().position(|(refused, _)| *refused == session) {
            return Waited::Refused(state.refused.swap_remove(place).1);
        }
        let Some(place) = state.queue.iter().position(|(waiter, _)| waiter.session == session) else {
            return Waited::Locking(self.mutex.settle(waits, session, false, wake));
        };
        if expired {
            return Waited::Expired(state.queue.remove(place).map_or(0, |(waiter, _)| waiter.depth));
        }
        if let Some((waiter, _)) = state.queue.get_mut(place) {
            waiter.wake = Some(wake());
        }
        Waited::Waiting
    }

    /// A session is gone. Gives what to wake.
    pub fn abandon(&self, waits: &mut Waits, session: Session) -> Option<W> {
        let state = self.state.get(waits);
        state.queue.retain(|(waiter, _)| waiter.session != session);
        state.refused.retain(|(refused, _)| *refused != session);
        self.mutex.abandon(waits, session).0
    }
}
