//! A queue of values between sessions of all VMs: the protocol is in `locks::channel`.

use std::ops::Deref;

use super::{Alive, Knock, Received, Stored, bury, kind};
use crate::{locks, wire::Object};

/// See the module.
#[derive(Debug)]
pub struct Channel(locks::Channel<Stored, Knock>, Alive);

impl Channel {
    /// One that holds so many items.
    pub fn new(capacity: usize) -> Self {
        Self(locks::Channel::new(capacity), Alive::default())
    }

    /// The front item, if it is a number: for compiled code, which takes those without Lua's stack.
    #[inline]
    pub fn receive_number(&self) -> Option<f64> {
        self.receive_as(|item| if let Stored::Number(number) = item { Some(*number) } else { None })
    }
}

impl Deref for Channel {
    type Target = locks::Channel<Stored, Knock>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        bury(std::iter::from_fn(|| match self.0.receive() {
            Received::Item(item) => Some(item),
            Received::Empty | Received::Closed => None,
        }));
    }
}

impl Object for Channel {
    fn kind(&self) -> u32 {
        kind::CHANNEL
    }
}
