//! A queue of values between sessions: many may send, many may receive.
//!
//! 1. *Send*: if there is room, push, and take the first receiver that waits out of the list, to be woken; else
//!    wait in the list of senders.
//! 2. *Receive*: if there is an item, take it, and the first sender that waits, to be woken; else wait in the list of receivers.
//! 3. Whoever was woken tries again, and waits again if somebody else was faster. One who gives up tries once more too: so
//!    an item, or room, for which somebody was woken is used by them or seen by the next.
//!
//! All under the channel's own lock; who is to be woken is woken after it. A session that is gone passes its wake-up on.
//!
//! Without capacity, there is room for as many items as receivers wait for: a sender waits for a receiver.

use std::collections::VecDeque;

use super::Wake;
use crate::sync::Mutex;

/// What tells a wait from all others: the VM, by an address of its own, and the ticket there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The VM.
    pub vm: usize,
    /// The ticket.
    pub ticket: u64,
}

#[derive(Debug)]
struct State<T, W> {
    items: VecDeque<T>,
    /// Who waits for an item.
    receivers: VecDeque<(Wait, W)>,
    /// Who waits for room.
    senders: VecDeque<(Wait, W)>,
    closed: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Channel<T, W> {
    state: Mutex<State<T, W>>,
    capacity: usize,
}

/// What became of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent<T> {
    /// It is in the channel.
    Yes,
    /// There is no room: the value comes back.
    Full(T),
    /// Nobody will receive it.
    Closed,
}

/// What became of receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<T> {
    /// An item.
    Item(T),
    /// There is none.
    Empty,
    /// There is none, and there will be none.
    Closed,
}

impl<T, W: Wake> Channel<T, W> {
    /// One that holds so many items.
    pub fn new(capacity: usize) -> Self {
        let state =
            State { items: VecDeque::new(), receivers: VecDeque::new(), senders: VecDeque::new(), closed: false };
        Self { state: Mutex::new(state), capacity }
    }

    /// How many items it holds at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many items are in it, and whether it is closed.
    pub fn len(&self) -> (usize, bool) {
        let state = self.state.lock();
        (state.items.len(), state.closed)
    }

    /// Sends if there is room.
    #[inline]
    pub fn send(&self, value: T) -> Sent<T> {
        let mut state = self.state.lock();
        if state.closed {
            return Sent::Closed;
        }
        if state.items.len() >= self.capacity.saturating_add(state.receivers.len()) {
            return Sent::Full(value);
        }
        state.items.push_back(value);
        let receiver = state.receivers.pop_front();
        drop(state);
        if let Some((_, wake)) = receiver {
            wake.wake();
        }
        Sent::Yes
    }

    /// Receives if there is an item.
    #[inline]
    pub fn receive(&self) -> Received<T> {
        let mut state = self.state.lock();
        let Some(item) = state.items.pop_front() else {
            return if state.closed { Received::Closed } else { Received::Empty };
        };
        let sender = state.senders.pop_front();
        drop(state);
        if let Some((_, wake)) = sender {
            wake.wake();
        }
        Received::Item(item)
    }

    /// The front item, if `pick` makes something of it.
    #[inline]
    pub fn receive_as<U>(&self, pick: impl FnOnce(&T) -> Option<U>) -> Option<U> {
        let mut state = self.state.lock();
        let picked = pick(state.items.front()?)?;
        state.items.pop_front();
        let sender = state.senders.pop_front();
        drop(state);
        if let Some((_, wake)) = sender {
            wake.wake();
        }
        Some(picked)
    }

    /// Waits for an item under `wait`, unless there is one by now: then false.
    pub fn await_item(&self, wait: Wait, wake: W) -> bool {
        let mut state = self.state.lock();
        if state.closed || !state.items.is_empty() {
            return false;
        }
        state.receivers.push_back((wait, wake));
        // A sender that waits for somebody to receive has one now.
        let sender = if self.capacity == 0 { state.senders.pop_front() } else { None };
        drop(state);
        if let Some((_, wake)) = sender {
            wake.wake();
        }
        true
    }

    /// Waits for room under `wait`, unless there is some by now: then false.
    pub fn await_room(&self, wait: Wait, wake: W) -> bool {
        let mut state = self.state.lock();
        if state.closed || state.items.len() < self.capacity.saturating_add(state.receivers.len()) {
            return false;
        }
        state.senders.push_back((wait, wake));
        true
    }

    /// A session waits no longer. If it was woken, and is not going to try, the next one is.
    pub fn leave(&self, wait: Wait, pass_on: bool) {
        let mut state = self.state.lock();
        let waited = state.receivers.len() + state.senders.len();
        state.receivers.retain(|(other, _)| *other != wait);
        state.senders.retain(|(other, _)| *other != wait);
        let was_woken = waited == state.receivers.len() + state.senders.len();
        let mut next = [None, None];
        if pass_on && was_woken {
            if !state.items.is_empty() {
                next[0] = state.receivers.pop_front();
            }
            if state.items.len() < self.capacity {
                next[1] = state.senders.pop_front();
            }
        }
        drop(state);
        next.into_iter().flatten().for_each(|(_, wake)| wake.wake());
    }

    /// Ends it: no more is sent; what is in it can be received. False if it was closed.
    pub fn close(&self) -> bool {
        let mut state = self.state.lock();
        let was_open = !std::mem::replace(&mut state.closed, true);
        let waiting: Vec<_> = std::mem::take(&mut state.receivers).into_iter().chain(std::mem::take(&mut state.senders)).collect();
        drop(state);
        waiting.into_iter().for_each(|(_, wake)| wake.wake());
        was_open
    }
}
