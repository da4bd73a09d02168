//! A whole number that all VMs count with.

use super::{Alive, kind};
use crate::{
    sync::atomic::{AtomicI64, Ordering},
    wire::Object,
};

/// See the module. A Lua number holds it as long as it is less than 2^53.
#[derive(Debug, Default)]
pub struct Counter(AtomicI64, Alive);

impl Counter {
    /// One that begins with `value`.
    pub fn new(value: i64) -> Self {
        Self(AtomicI64::new(value), Alive::default())
    }

    /// Adds, and gives the sum. Sequentially consistent, as all of a counter: scripts use one as a flag for other data.
    #[inline]
    pub fn add(&self, value: i64) -> i64 {
        self.0.fetch_add(value, Ordering::SeqCst).wrapping_add(value)
    }

    /// What it is.
    #[inline]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Sets it, and gives what it was.
    #[inline]
    pub fn set(&self, value: i64) -> i64 {
        self.0.swap(value, Ordering::SeqCst)
    }

    /// Sets it if it is `expected`: whether it was.
    #[inline]
    pub fn cas(&self, expected: i64, new: i64) -> bool {
        self.0.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Object for Counter {
    fn kind(&self) -> u32 {
        kind::COUNTER
    }
}
