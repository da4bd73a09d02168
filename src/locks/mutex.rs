//! A mutex whose owner is a session.
//!
//! The word is the owner's number, or 0, and [`CONTENDED`] while the queue is not empty.
//!
//! | word | means | who changes it |
//! |---|---|---|
//! | 0 | free | anyone, by an exchange to their number |
//! | owner | held, nobody waits | the owner, by an exchange to 0; who begins to wait, or releases it in the owner's place, adds `CONTENDED`, under the order |
//! | owner + `CONTENDED` | held, some wait | the owner, under the order |
//! | `CONTENDED` | free, some wait | anyone, under the order |

use std::collections::VecDeque;

use super::{Guarded, Locked, Session, Settled, Unlocked, Waiter, Waits, Wake};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const CONTENDED: u64 = 1 << 63;

/// What a session that has the mutex may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not lock it again.
    Normal,
    /// Lock it again, and unlock it as often.
    Recursive,
    /// As `Normal`; a name of the first seed's.
    ErrorCheck,
}

/// See the module.
#[derive(Debug)]
pub struct Mutex<W> {
    word: AtomicU64,
    /// How often the owner has locked it beyond the first time. The owner's own: ordered by the word.
    depth: AtomicU32,
    kind: Kind,
    queue: Guarded<VecDeque<Waiter<W>>>,
}

impl<W: Wake> Mutex<W> {
    /// A free one.
    pub fn new(kind: Kind) -> Self {
        Self { word: AtomicU64::new(0), depth: AtomicU32::new(0), kind, queue: Guarded::new(VecDeque::new()) }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Who has it. May be over when this returns, unless it is the caller, or the order is held and some wait.
    pub fn holder(&self) -> Option<Session> {
        let holder = self.word.load(Ordering::Relaxed) & !CONTENDED;
        (holder != 0).then_some(holder)
    }

    /// Takes it, if nobody has it and nobody waits.
    #[inline]
    pub fn lock_fast(&self, session: Session) -> bool {
        // Acquire: what the last owner did is seen.
        self.word.compare_exchange(0, session, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Releases it, if the session has locked it once and nobody waits.
    #[inline]
    pub fn unlock_fast(&self, session: Session) -> bool {
        // If the session is the owner, the depth is its own.
        self.depth.load(Ordering::Relaxed) == 0
            && self.word.compare_exchange(session, 0, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Takes it if nobody has it; passes those that wait by.
    pub fn lock(&self, _: &mut Waits, session: Session) -> Locked {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let holder = word & !CONTENDED;
            if holder == session {
                if self.kind != Kind::Recursive {
                    return Locked::Relocked;
                }
                self.depth.store(self.depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                return Locked::Yes;
            } else if holder != 0 {
                return Locked::No;
            }
            match self.word.compare_exchange(word, session | word, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Locked::Yes,
                Err(current) => word = current,
            }
        }
    }

    /// Takes it for a session, if it is free: true. If not, whoever has it will come to the queue when they release it.
    fn take_or_mark(&self, session: Session) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let is_free = word & !CONTENDED == 0;
            let new = if is_free { session | word } else { word | CONTENDED };
            match self.word.compare_exchange(word, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return is_free,
                Err(current) => word = current,
            }
        }
    }

    /// Lets a session wait for it, that has just found it held. If it is free by now, the session has it, and the
    /// waiter comes back.
    pub fn enqueue(&self, waits: &mut Waits, waiter: Waiter<W>) -> Option<Waiter<W>> {
        if self.take_or_mark(waiter.session) {
            self.depth.store(waiter.depth, Ordering::Relaxed);
            return Some(waiter);
        }
        self.queue.get(waits).push_back(waiter);
        None
    }

    /// Releases it.
    pub fn unlock(&self, waits: &mut Waits, session: Session) -> Unlocked<W> {
        let word = self.word.load(Ordering::Relaxed);
        if word & !CONTENDED != session {
            return Unlocked::NotHeld(self.holder());
        }
        let depth = self.depth.load(Ordering::Relaxed);
        if depth > 0 {
            self.depth.store(depth - 1, Ordering::Relaxed);
            return Unlocked::Yes(Vec::new());
        }
        Unlocked::Yes(self.pass_on(waits).into_iter().collect())
    }

    /// Takes it from its owner, whatever its depth: for one who waits for a condition. Gives the depth.
    pub(super) fn suspend(&self, waits: &mut Waits) -> (u32, Option<W>) {
        let depth = self.depth.swap(0, Ordering::Relaxed);
        (depth, self.pass_on(waits))
    }

    /// The owner's last act: frees it, or gives it to the next.
    fn pass_on(&self, waits: &mut Waits) -> Option<W> {
        let queue = self.queue.get(waits);
        let Some(front) = queue.front_mut() else {
            self.word.store(0, Ordering::Release);
            return None;
        };
        if !front.starving {
            // Free for whoever comes first. If the front has been woken already, it is on its way.
            let wake = front.wake.take();
            self.word.store(CONTENDED, Ordering::Release);
            return wake;
        }
        let next = queue.pop_front()?;
        let mark = if queue.is_empty() { 0 } else { CONTENDED };
        self.depth.store(next.depth, Ordering::Relaxed);
        // The new owner learns of it under the order, which orders what was done before.
        self.word.store(next.session | mark, Ordering::Release);
        waits.end(next.session);
        next.wake
    }

    /// What has become of a session's wait; `wake` is for the next time, if it waits on.
    pub fn settle(
        &self,
        waits: &mut Waits,
        session: Session,
        expired: bool,
        wake: impl FnOnce() -> W,
    ) -> Settled<W> {
        let word = self.word.load(Ordering::Relaxed);
        if word & !CONTENDED == session {
            return Settled::Granted;
        }
        let queue = self.queue.get(waits);
        let Some(place) = queue.iter().position(|waiter| waiter.session == session) else {
            // Nobody takes a waiter out but to give it the mutex; so it never waited.
            return Settled::Expired(Vec::new());
        };
        if word == CONTENDED {
            let waiter = queue.remove(place);
            let mark = if queue.is_empty() { 0 } else { CONTENDED };
            self.depth.store(waiter.map_or(0, |waiter| waiter.depth), Ordering::Relaxed);
            self.word.swap(session | mark, Ordering::Acquire);
            waits.end(session);
            return Settled::Granted;
        }
        if expired {
            return Settled::Expired(self.leave(waits, place).into_iter().collect());
        }
        if let Some(waiter) = queue.get_mut(place) {
            // Only one that was woken has come too late; a false alarm is none.
            waiter.starving |= waiter.wake.is_none();
            waiter.wake = Some(wake());
        }
        Settled::Waiting
    }

    /// Takes a waiter out of the queue; gives what to wake, if the mutex is free and that waiter was to have it.
    fn leave(&self, waits: &mut Waits, place: usize) -> Option<W> {
        let queue = self.queue.get(waits);
        let waiter = queue.remove(place)?;
        let word = self.word.load(Ordering::Relaxed);
        let mut next = None;
        if queue.is_empty() {
            // A fast unlock cannot come in between: the mark is there until now.
            self.word.store(word & !CONTENDED, Ordering::Relaxed);
        } else if word == CONTENDED {
            next = queue.front_mut().and_then(|front| front.wake.take());
        }
        waits.end(waiter.session);
        next
    }

    /// A session is gone: if it has the mutex, or waits for it, it does no more. Gives what to wake, and whether it had
    /// it.
    pub fn abandon(&self, waits: &mut Waits, session: Session) -> (Option<W>, bool) {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & !CONTENDED == session {
            // The session may be another thread's, and just about to unlock it: the mark keeps the fast way from it.
            match self.word.compare_exchange(word, word | CONTENDED, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    self.depth.store(0, Ordering::Relaxed);
                    return (self.pass_on(waits), true);
                }
                Err(current) => word = current,
            }
        }
        let place = self.queue.get(waits).iter().position(|waiter| waiter.session == session);
        (place.and_then(|place| self.leave(waits, place)), false)
    }

    /// Adds one who was signalled by a condition: it waits for its turn, or comes back and has the mutex.
    pub(super) fn enter(&self, waits: &mut Waits, mut waiter: Waiter<W>) -> Option<Waiter<W>> {
        waiter.starving = true;
        self.enqueue(waits, waiter)
    }
}
