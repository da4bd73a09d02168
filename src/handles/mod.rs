//! What sessions of all VMs share, each behind a handle: locks, channels, counters, tables, buffers.
//!
//! Called by `host`, which makes the handles that Lua sees. Knows no Lua: values are [`Stored`].

mod buffer;
mod channel;
mod counter;
mod future;
mod mutex;
mod stored;
mod table;
mod token;

use std::sync::{
    Arc, Weak,
    atomic::{AtomicUsize, Ordering},
};

use rustc_hash::FxHashMap;

pub use buffer::Buffer;
pub use channel::Channel;
pub use counter::Counter;
pub use future::{Future, Status};
pub use mutex::{Condition, Mutex, RwLock};
pub use crate::locks::{Left, Received, Sent, Wait};
pub use stored::{Packed, Stored, bury, new_id};
pub use table::{Key, OwnedKey, Table};
pub use token::Token;

use crate::{
    job::{Inbox, signal},
    locks::{self, Held, Session, Waits, Wake},
    sync,
};

/// The kinds of objects, as `wire::Object` tells them; `lua/msys/handles.lua` has the same.
pub mod kind {
    #![allow(missing_docs, reason = "named by their types")]
    pub const MUTEX: u32 = 1;
    pub const CONDITION: u32 = 2;
    pub const RWLOCK: u32 = 3;
    pub const CHANNEL: u32 = 4;
    pub const COUNTER: u32 = 5;
    pub const TABLE: u32 = 6;
    pub const BUFFER: u32 = 7;
    pub const FUTURE: u32 = 8;
    pub const TOKEN: u32 = 9;
    /// How many numbers there are, with 0 for none.
    pub const COUNT: usize = 10;
}

/// Counts the objects of the process: each has one.
#[derive(Debug)]
pub struct Alive(());

static ALIVE: AtomicUsize = AtomicUsize::new(0);

impl Default for Alive {
    fn default() -> Self {
        ALIVE.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many objects there are that any VM, or a message, has.
pub fn alive() -> usize {
    ALIVE.load(Ordering::Relaxed)
}

/// Wakes a session that waits under a ticket of its VM.
#[derive(Clone, Debug)]
pub struct Knock {
    inbox: Arc<Inbox>,
    ticket: u64,
}

impl Knock {
    /// For the session that waits under `ticket` in the VM of `inbox`.
    pub fn new(inbox: Arc<Inbox>, ticket: u64) -> Self {
        Self { inbox, ticket }
    }

    /// What tells that wait from all others.
    pub fn wait(&self) -> Wait {
        Wait { vm: Arc::as_ptr(&self.inbox).addr(), ticket: self.ticket }
    }
}

impl Wake for Knock {
    fn wake(self) {
        self.inbox.mailbox.push(signal(self.ticket));
    }
}

/// A lock that somebody may have to release in its holder's place.
enum Lock {
    Mutex(Weak<Mutex>),
    RwLock(Weak<RwLock>),
}

impl Lock {
    fn is_gone(&self) -> bool {
        match self {
            Self::Mutex(mutex) => mutex.strong_count() == 0,
            Self::RwLock(lock) => lock.strong_count() == 0,
        }
    }
}

/// All of the process, and at how many those that are gone are sorted out.
static LOCKS: sync::Mutex<(Vec<Lock>, usize)> = sync::Mutex::new((Vec::new(), 64));

fn remember(lock: Lock) {
    let mut guard = LOCKS.lock();
    let (locks, purge) = &mut *guard;
    if locks.len() >= *purge {
        locks.retain(|lock| !lock.is_gone());
        *purge = 64.max(2 * locks.len());
    }
    locks.push(lock);
}

/// A new mutex without a name.
pub fn new_mutex(kind: locks::Kind) -> Arc<Mutex> {
    let mutex = Arc::new(Mutex::new(kind, None));
    remember(Lock::Mutex(Arc::downgrade(&mutex)));
    mutex
}

/// A new reader-writer lock.
pub fn new_rwlock() -> Arc<RwLock> {
    let lock = Arc::new(RwLock::default());
    remember(Lock::RwLock(Arc::downgrade(&lock)));
    lock
}

/// What is reported of a lock that a session had when it ended.
pub fn left_locked(lock: &dyn Held, session: &str) -> String {
    format!("msys: {} was still locked when {session} ended, and is released", lock.name())
}

/// Releases all locks that a session has, which will not do it itself, and gives what is to be reported; 0 is none.
pub fn release(session: Session) -> Vec<String> {
    if session == 0 {
        return Vec::new();
    }
    let (mut mutexes, mut rwlocks) = (Vec::new(), Vec::new());
    for lock in &LOCKS.lock().0 {
        match lock {
            Lock::Mutex(mutex) => mutexes.extend(mutex.upgrade()),
            Lock::RwLock(lock) => rwlocks.extend(lock.upgrade()),
        }
    }
    let mut order = order();
    let name = order.name_of(session).to_owned();
    let mut knocks: Vec<Knock> = Vec::new();
    let mut left = Vec::new();
    for mutex in &mutexes {
        let (knock, had) = mutex.lock.abandon(&mut order, session);
        knocks.extend(knock);
        left.extend(had.then(|| left_locked(&**mutex, &name)));
    }
    for lock in &rwlocks {
        let (all, had) = lock.lock.abandon(&mut order, session);
        knocks.extend(all);
        left.extend(had.then(|| left_locked(&**lock, &name)));
    }
    drop(order);
    knocks.into_iter().for_each(Wake::wake);
    left
}

type Named = FxHashMap<Box<[u8]>, Weak<Mutex>>;

/// The mutexes that have a name, as long as anybody has them.
static NAMED: sync::Mutex<Option<Named>> = sync::Mutex::new(None);

/// The process's mutex of this name.
pub fn named_mutex(name: &[u8]) -> Arc<Mutex> {
    let mut named = NAMED.lock();
    let named = named.get_or_insert_default();
    if let Some(mutex) = named.get(name).and_then(Weak::upgrade) {
        return mutex;
    }
    // As many that nobody has as are in use, at most.
    if named.len() >= 32 && named.len().is_power_of_two() {
        named.retain(|_, mutex| mutex.strong_count() > 0);
    }
    let mutex = Arc::new(Mutex::new(locks::Kind::Normal, Some(name)));
    named.insert(name.into(), Arc::downgrade(&mutex));
    remember(Lock::Mutex(Arc::downgrade(&mutex)));
    mutex
}

/// The waits of the process for locks: see `locks`.
static WAITS: sync::Mutex<Waits> = sync::Mutex::new(Waits::new());

/// Enters the order of all locks. Nothing that may raise or wait comes before it is left.
pub fn order() -> sync::MutexGuard<'static, Waits> {
    WAITS.lock()
}
