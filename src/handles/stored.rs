//! A value that is kept outside of all VMs.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::wire::{Message, Object};

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
