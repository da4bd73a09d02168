//! The locks of `locks`, as objects with a name.

use std::{fmt, sync::Arc};

use super::{Alive, Knock, kind};
use crate::{
    locks::{self, Held, Session, Waits},
    wire::Object,
};

/// The address of an object: what tells it from others, for a person.
fn address<T>(object: &T) -> usize {
    std::ptr::from_ref(object).addr()
}

/// A mutex.
pub struct Mutex {
    /// What it is.
    pub lock: Arc<locks::Mutex<Knock>>,
    /// What `msys.lock` calls it.
    pub label: Option<Box<str>>,
    _alive: Alive,
}

impl Mutex {
    /// One of this kind; `name` is the one that `msys.lock` was given.
    pub fn new(kind: locks::Kind, name: Option<&[u8]>) -> Self {
        let label = name.map(|name| String::from_utf8_lossy(name).into());
        Self { lock: Arc::new(locks::Mutex::new(kind)), label, _alive: Alive::default() }
    }
}

impl fmt::Debug for Mutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Object for Mutex {
    fn kind(&self) -> u32 {
        kind::MUTEX
    }
}

impl Held for Mutex {
    fn holders(&self, _: &mut Waits) -> Vec<Session> {
        self.lock.holder().into_iter().collect()
    }

    fn name(&self) -> String {
        match &self.label {
            Some(label) => format!("the lock named '{label}'"),
            None => format!("thread.mutex: {:#x}", address(self)),
        }
    }
}

/// A condition.
#[derive(Debug)]
pub struct Condition {
    /// What it is.
    pub lock: locks::Condition<Knock>,
    /// Whose waiters it makes.
    pub mutex: Arc<Mutex>,
    _alive: Alive,
}

impl Condition {
    /// One for those who have `mutex`.
    pub fn new(mutex: Arc<Mutex>) -> Self {
        Self { lock: locks::Condition::new(Arc::clone(&mutex.lock)), mutex, _alive: Alive::default() }
    }
}

impl Object for Condition {
    fn kind(&self) -> u32 {
        kind::CONDITION
    }
}

/// A reader-writer lock.
#[derive(Default)]
pub struct RwLock {
    /// What it is.
    pub lock: locks::RwLock<Knock>,
    _alive: Alive,
}

impl fmt::Debug for RwLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Object for RwLock {
    fn kind(&self) -> u32 {
        kind::RWLOCK
    }
}

impl Held for RwLock {
    fn holders(&self, waits: &mut Waits) -> Vec<Session> {
        self.lock.holders(waits)
    }

    fn name(&self) -> String {
        format!("thread.rwlock: {:#x}", address(self))
    }
}
