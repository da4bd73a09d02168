//! A value that is kept outside of all VMs.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::wire::{Message, Object};

thread_local! {
    /// What is to be dropped when the outermost [`bury`] of the thread comes to it, if one is at work.
    static DEAD: RefCell<Option<Vec<Stored>>> = const { RefCell::new(None) };
}

/// Drops values, which may be the last to hold others of their kind, one after the other: a chain of a million tables
/// must not take a million frames.
pub fn bury(values: impl Iterator<Item = Stored>) {
    let deep = values.filter(|value| matches!(value, Stored::Object(_) | Stored::Packed(_)));
    let outermost = DEAD.try_with(|dead| {
        let mut dead = dead.borrow_mut();
        let is_outermost = dead.is_none();
        dead.get_or_insert_default().extend(deep);
        is_outermost
    });
    // At the thread's end there is no such list any more, and they were dropped as the iterator was.
    if outermost != Ok(true) {
        return;
    }
    loop {
        let next = DEAD.with(|dead| dead.borrow_mut().as_mut().and_then(Vec::pop));
        let Some(next) = next else { break };
        drop(next);
    }
    DEAD.with(|dead| dead.borrow_mut().take());
}

/// See the module. Most are small; the others are messages, decoded anew by each who reads them.
#[derive(Clone, Debug, Default)]
pub enum Stored {
    /// Nothing.
    #[default]
    Nil,
    /// A boolean.
    Boolean(bool),
    /// A number.
    Number(f64),
    /// A string.
    Text(Arc<[u8]>),
    /// What a handle is of.
    Object(Arc<dyn Object>),
    /// Any other sendable value.
    Packed(Arc<Packed>),
    /// A value that cannot leave its VM, which has it under this number.
    Private(u64),
}

/// A value as a message, with a number by which VMs know what they have decoded already.
#[derive(Debug)]
pub struct Packed {
    /// No other in the process has it.
    pub id: u64,
    /// The value.
    pub message: Message,
    /// It is a function.
    pub is_function: bool,
}

/// A number that nothing in the process has had.
pub fn new_id() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

impl Stored {
    /// Whether it is nothing.
    pub fn is_nil(&self) -> bool {
        matches!(self, Self::Nil)
    }

    /// A message to be kept.
    pub fn packed(message: Message, is_function: bool) -> Self {
        Self::Packed(Arc::new(Packed { id: new_id(), message, is_function }))
    }

    /// The number of what each VM has for itself.
    pub fn id(&self) -> Option<u64> {
        match self {
            Self::Packed(packed) => Some(packed.id),
            Self::Private(id) => Some(*id),
            _ => None,
        }
    }
}
