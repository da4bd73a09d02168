//! The primitives under everything that threads share: std's, without poison, or loom's in their place (`--cfg loom`).
//!
//! std's locks are futexes and nothing else, so a fork's child can use new ones whatever other threads were doing.
//! `parking_lot`'s park in one table of the process, whose own locks may be held by a thread that the child does not
//! have. Nothing here panics while it holds a lock, so poison would say nothing.

#[cfg(not(loom))]
pub(crate) use std::{sync::atomic, thread};

#[cfg(loom)]
pub(crate) use loom::{sync::atomic, thread};

#[cfg(loom)]
use loom::sync as primitives;
#[cfg(not(loom))]
use std::sync as primitives;

use std::sync::PoisonError;

/// A mutex.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(primitives::Mutex<T>);

pub(crate) use primitives::MutexGuard;

impl<T> Mutex<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Self {
        Self(primitives::Mutex::new(value))
    }

    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Self {
        Self(primitives::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(not(loom))]
pub(crate) use unmodelled::{Aligned, Condvar, RwLock, RwLockWriteGuard};

/// What no loom model uses.
#[cfg(not(loom))]
mod unmodelled {
    use std::{
        sync::{self, MutexGuard, PoisonError, RwLockReadGuard},
        time::{Duration, Instant},
    };

    pub(crate) use std::sync::RwLockWriteGuard;

    /// On a cache line of its own: written by one thread while others read or write what stands beside it.
    #[derive(Debug, Default)]
    #[repr(align(128))]
    pub(crate) struct Aligned<T>(pub(crate) T);

    /// A lock for many readers or one writer. A reader must not take it again: a writer may wait in between.
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// A condition.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(sync::Condvar);

    impl Condvar {
        pub(crate) const fn new() -> Self {
            Self(sync::Condvar::new())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        /// Waits.
        pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
        }

        /// Waits, at most until `deadline`; whether it passed.
        pub(crate) fn wait_until<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            deadline: Instant,
        ) -> (MutexGuard<'a, T>, bool) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return (guard, true);
            }
            let (guard, timeout) = self.0.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner);
            (guard, timeout.timed_out())
        }
    }
}
