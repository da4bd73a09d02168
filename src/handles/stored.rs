//! A value that is kept outside of all VMs.

use std::sync::Arc;

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
    Packed(Arc<Message>),
}

impl Stored {
    /// Whether it is nothing.
    pub fn is_nil(&self) -> bool {
        matches!(self, Self::Nil)
    }
}
