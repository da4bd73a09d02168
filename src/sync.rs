//! The primitives under the concurrency layer, so that loom can put its models in their place (`--cfg loom`).
//!
//! `parking_lot`'s mutex neither poisons nor allocates; loom's is wrapped to the same shape.

#[cfg(not(loom))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(loom))]
pub(crate) use std::{sync::atomic, thread};

#[cfg(loom)]
pub(crate) use loom::{sync::atomic, thread};

/// loom's mutex with `parking_lot`'s signature.
#[cfg(loom)]
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
