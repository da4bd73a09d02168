//! Locks that sessions of all VMs share: who holds one, who waits for it, and whether that wait could ever end.
//! Channels, by which they wait for values, are beside them, and have nothing to do with the rest.
//!
//! Called by `host`. Knows no Lua and no VM: a waiter is whatever can be woken ([`Wake`]).
//!
//! **Fast and slow.** A mutex that nobody waits for is taken and released by one exchange of its word. All else happens
//! under one lock of the process, whose guard is a [`Waits`]: enqueuing, handing over, and looking for cycles, which
//! takes the waits for all locks together. It is held for some hundred nanoseconds; a wait takes microseconds.
//!
//! **Handing over.** An unlock with waiters leaves the mutex free and wakes the first, so that whoever runs meanwhile
//! may take it (barging: a session that goes on locking need not be switched for each turn). A waiter that was woken
//! and came too late is *starving*: the next unlock gives it the mutex. So each waiter is passed by a bounded number of
//! times, and a mutex that sessions of one VM contend for costs no switch for each turn.
//!
//! **Wake-ups.** A waiter stands in a queue with what wakes it. Whoever wakes it takes that out; the waiter then asks
//! what has become of it ([`Mutex::settle`]), and gets the lock, or puts a new wake in. A wait with a limit of time
//! asks the same way when the limit has passed. Both under the order, so no wake is lost, and one that gave up never
//! owns.
//!
//! **Cycles.** [`Waits`] knows, for each session that waits without a limit of time, for which lock. A session that is
//! about to wait follows the chain: the lock's holder; what that waits for; its holder. A holder that waits for a job's
//! outcome waits for the session of that job, or of a job of that: those know their ancestors, and are found by them.
//! If the chain comes to the session that asks, the wait would never end, and is refused. Waits with a limit end by
//! themselves, and are no part of it.

mod channel;
mod condition;
mod mutex;
mod rwlock;
mod waits;

pub use channel::{Channel, Left, Received, Sent, Wait};
pub use condition::{Condition, Waited};
pub use mutex::{Kind, Mutex};
pub use rwlock::{Access, RwLock};
pub use waits::{Ancestor, Ancestors, Cycle, Guarded, Held, Link, Waiting, Waits};

/// A session, unique in the process; never 0, and less than 2^53, so that a Lua number holds it.
pub type Session = u64;

/// What wakes a waiter.
pub trait Wake: Send {
    /// Wakes it, once.
    fn wake(self);
}

/// A session that waits for a lock.
#[derive(Debug)]
pub struct Waiter<W> {
    /// Who.
    pub session: Session,
    /// What wakes it; taken out by whoever does.
    pub wake: Option<W>,
    /// It was woken once and came too late.
    starving: bool,
    /// How often it will have locked a recursive mutex beyond the first time, when it has it.
    depth: u32,
}

impl<W> Waiter<W> {
    /// A session that is woken by `wake`.
    pub fn new(session: Session, wake: W) -> Self {
        Self { session, wake: Some(wake), starving: false, depth: 0 }
    }
}

/// What became of an attempt to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// The session has it.
    Yes,
    /// The session had it already, and the lock is not recursive.
    Relocked,
    /// Another session has it.
    No,
}

/// What became of an attempt to unlock.
#[derive(Debug)]
pub enum Unlocked<W> {
    /// It is released, and these are to be woken, when the order has been left.
    Yes(Vec<W>),
    /// It is not the session's; whose it is.
    NotHeld(Option<Session>),
}

/// What has become of a wait.
#[derive(Debug)]
pub enum Settled<W> {
    /// The session has the lock.
    Granted,
    /// It waits on.
    Waiting,
    /// The time is over, and it waits no longer; these are to be woken.
    Expired(Vec<W>),
}
