//! A queue of values between sessions: many may send, many may receive.
//!
//! 1. *Send*: if there is room, push, and take the first receiver that waits out of the list, to be woken; else
//!    wait in the list of senders, with the value.
//! 2. *Receive*: if there is an item, take it, and move the value of the first sender that waits into its place. That
//!    is sent then, and its sender is woken to go on. So senders take turns, and no value is made ready twice.
//! 3. A receiver that was woken tries again, and waits again if somebody else was faster. One who gives up tries once
//!    more too: so an item for which somebody was woken is used by them or seen by the next. A sender asks whether its
//!    value is still with it ([`Channel::leave`]).
//!
//! All under the channel's own lock; who is to be woken is woken after it. A receiver that is gone passes its wake-up
//! on.
//!
//! Without capacity, there is room for as many items as receivers wait for; a value is taken from its sender.

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

/// A sender that waits.
#[derive(Debug)]
struct Sender<T, W> {
    wait: Wait,
    wake: W,
    value: T,
}

#[derive(Debug)]
struct State<T, W> {
    items: VecDeque<T>,
    /// Who waits for an item.
    receivers: VecDeque<(Wait, W)>,
    /// Who waits for room. Once it is closed, who has not heard of that yet.
    senders: VecDeque<Sender<T, W>>,
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

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Something came of it: a sender's value is in the channel, or was received; a receiver was woken.
    Done,
    /// Nothing, and nothing will.
    Undone,
    /// Nothing: the channel was closed. Of senders.
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
        let state = State {
            items: VecDeque::new(),
            receivers: VecDeque::new(),
            senders: VecDeque::new(),
            closed: false,
        };
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
        self.send_or(value, |_, value| Sent::Full(value))
    }

    /// Sends if there is room; else the value waits under `wait`: `Full`.
    pub fn send_or_wait(&self, value: T, wait: Wait, wake: W) -> Sent<()> {
        self.send_or(value, |state, value| {
            state.senders.push_back(Sender { wait, wake, value });
            Sent::Full(())
        })
    }

    #[inline]
    fn send_or<U>(&self, value: T, full: impl FnOnce(&mut State<T, W>, T) -> Sent<U>) -> Sent<U> {
        let mut state = self.state.lock();
        if state.closed {
            return Sent::Closed;
        }
        // There is room for each receiver that waits, whatever those that were woken have still to take.
        if state.receivers.is_empty() && state.items.len() >= self.capacity {
            return full(&mut state, value);
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
        match state.items.pop_front() {
            Some(item) => {
                if let Some(sender) = self.next_sender(&mut state) {
                    state.items.push_back(sender.value);
                    drop(state);
                    sender.wake.wake();
                }
                Received::Item(item)
            }
            None if state.closed => Received::Closed,
            None => {
                // Of a channel without capacity.
                let Some(sender) = state.senders.pop_front() else { return Received::Empty };
                drop(state);
                sender.wake.wake();
                Received::Item(sender.value)
            }
        }
    }

    /// The front item, if `pick` makes something of it.
    #[inline]
    pub fn receive_as<U>(&self, pick: impl FnOnce(&T) -> Option<U>) -> Option<U> {
        let mut state = self.state.lock();
        let picked = pick(state.items.front()?)?;
        state.items.pop_front();
        if let Some(sender) = self.next_sender(&mut state) {
            state.items.push_back(sender.value);
            drop(state);
            sender.wake.wake();
        }
        Some(picked)
    }

    /// The sender whose value comes into the place of an item that was taken.
    #[inline]
    fn next_sender(&self, state: &mut State<T, W>) -> Option<Sender<T, W>> {
        if state.closed || state.items.len() >= self.capacity { None } else { state.senders.pop_front() }
    }

    /// Waits for an item under `wait`, unless there is one by now: then false.
    pub fn await_item(&self, wait: Wait, wake: W) -> bool {
        let mut state = self.state.lock();
        if state.closed || !state.items.is_empty() || !state.senders.is_empty() {
            return false;
        }
        state.receivers.push_back((wait, wake));
        true
    }

    /// A session waits no longer, or was woken. If that was as a receiver, and it is not going to try, the next one is
    /// woken.
    pub fn leave(&self, wait: Wait, pass_on: bool) -> Left {
        let mut state = self.state.lock();
        if let Some(place) = state.senders.iter().position(|sender| sender.wait == wait) {
            let sender = state.senders.remove(place);
            let left = if state.closed { Left::Closed } else { Left::Undone };
            drop(state);
            // Not under the lock: a value may hold this very channel.
            drop(sender);
            return left;
        }
        if let Some(place) = state.receivers.iter().position(|(other, _)| *other == wait) {
            state.receivers.remove(place);
            return Left::Undone;
        }
        let next = if pass_on && !state.items.is_empty() { state.receivers.pop_front() } else { None };
        drop(state);
        if let Some((_, wake)) = next {
            wake.wake();
        }
        Left::Done
    }

    /// Ends it: no more is sent; what is in it can be received. False if it was closed.
    pub fn close(&self) -> bool
    where
        W: Clone,
    {
        let mut state = self.state.lock();
        let was_open = !std::mem::replace(&mut state.closed, true);
        let receivers = std::mem::take(&mut state.receivers).into_iter().map(|(_, wake)| wake);
        let senders = state.senders.iter().map(|sender| sender.wake.clone());
        let waiting: Vec<W> = if was_open { receivers.chain(senders).collect() } else { Vec::new() };
        drop(state);
        waiting.into_iter().for_each(Wake::wake);
        was_open
    }
}
