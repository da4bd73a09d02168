//! The events for one VM: many threads push, the VM's thread takes all at once.
//!
//! Called by `pool` and `host` (push) and `vm` (take). Generic over what is sent.
//!
//! A stack of nodes (Treiber's), of which the consumer takes the whole and reverses it: so the order is that of the
//! pushes, a push is one exchange, and there is no ABA, since nothing is popped singly.
//!
//! 1. `push` links its node before the head and exchanges the head. If the list was empty, it wakes the consumer.
//! 2. `take` exchanges the head with null and owns the list.
//!
//! **No event is lost.** The consumer waits only after a `take` that gave nothing. The first push after that
//! `take` finds the list empty, so it wakes; later pushes before the next `take` need not, since that wake is still
//! to be seen. The push's release pairs with the take's acquire: a node's contents are visible with it.
//!
//! **No event is left.** An event may hold the mailbox that it is in (an outcome names its inbox), which would then never
//! be freed. So a consumer that ends closes it: the head becomes a mark, which no push replaces.

use std::ptr;

use crate::{
    sync::atomic::{AtomicPtr, Ordering},
    waker::Waker,
};

/// What is pushed: a value and the link to the node pushed before it.
#[derive(Debug)]
pub struct Node<T> {
    next: *mut Node<T>,
    /// The event.
    pub value: T,
}

// SAFETY: `next` is null except inside a mailbox, where the mailbox owns the node it points to.
unsafe impl<T: Send> Send for Node<T> {}

impl<T> Node<T> {
    /// A node, ready to be pushed; it can be pushed again after it was taken.
    pub fn new(value: T) -> Box<Self> {
        Box::new(Self { next: ptr::null_mut(), value })
    }
}

/// See the module.
#[derive(Debug)]
pub struct Mailbox<T> {
    /// The newest node, or null. Owns the list.
    head: AtomicPtr<Node<T>>,
    waker: Waker,
}

// SAFETY: nodes move between threads whole (`T: Send`), and shared access reads only the atomic head and the waker.
unsafe impl<T: Send> Sync for Mailbox<T> {}
// SAFETY: as above; the raw pointer owns its list.
unsafe impl<T: Send> Send for Mailbox<T> {}

impl<T> Mailbox<T> {
    /// An empty mailbox whose consumer waits on `waker`.
    pub fn new(waker: Waker) -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()), waker }
    }

    /// The consumer's waker.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// What the head is once the mailbox is closed: no node has this address.
    const CLOSED: *mut Node<T> = ptr::dangling_mut();

    /// Adds an event, and wakes the consumer if it could have seen none; in a closed mailbox, drops it. Whether it was
    /// added.
    pub fn push(&self, node: Box<Node<T>>) -> bool {
        let node = Box::into_raw(node);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == Self::CLOSED {
                // SAFETY: the node came from a box, and nobody else has got it.
                drop(unsafe { Box::from_raw(node) });
                return false;
            }
            // SAFETY: the node came from a box, so it is valid, and nobody else has it until the exchange succeeds.
            unsafe { (*node).next = head };
            match self.head.compare_exchange_weak(head, node, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(current) => head = current,
            }
        }
        if head.is_null() {
            self.waker.wake();
        }
        true
    }

    /// Whether a `take` would give nothing; a hint.
    pub fn is_empty(&self) -> bool {
        let head = self.head.load(Ordering::Relaxed);
        head.is_null() || head == Self::CLOSED
    }

    /// Whether it is closed; a hint, unless the consumer asks.
    pub fn is_closed(&self) -> bool {
        self.head.load(Ordering::Relaxed) == Self::CLOSED
    }

    /// Takes all events, oldest first. The consumer's alone, before it closes the mailbox.
    pub fn take(&self) -> Taken<T> {
        self.take_for(ptr::null_mut())
    }

    /// The consumer is gone: drops what is here, and what comes.
    pub fn close(&self) {
        drop(self.take_for(Self::CLOSED));
    }

    fn take_for(&self, head: *mut Node<T>) -> Taken<T> {
        let mut newest = self.head.swap(head, Ordering::Acquire);
        if newest == Self::CLOSED {
            newest = ptr::null_mut();
        }
        let mut oldest = ptr::null_mut();
        while !newest.is_null() {
            let node = newest;
            // SAFETY: the exchange gave us the whole list; each node in it came from `Box::into_raw`.
            unsafe {
                newest = (*node).next;
                (*node).next = oldest;
            }
            oldest = node;
        }
        Taken { oldest }
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        self.close();
    }
}

/// Events taken from a mailbox, oldest first; those not iterated over are dropped with it.
#[derive(Debug)]
pub struct Taken<T> {
    oldest: *mut Node<T>,
}

impl<T> Taken<T> {
    /// Whether there are any left.
    pub fn has_more(&self) -> bool {
        !self.oldest.is_null()
    }

    /// No events.
    pub fn none() -> Self {
        Self { oldest: ptr::null_mut() }
    }
}

impl<T> Iterator for Taken<T> {
    type Item = Box<Node<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.oldest.is_null() {
            return None;
        }
        // SAFETY: a non-null link of a taken list is a node from `Box::into_raw` that nobody else reaches.
        let mut node = unsafe { Box::from_raw(self.oldest) };
        self.oldest = std::mem::replace(&mut node.next, ptr::null_mut());
        Some(node)
    }
}

impl<T> Drop for Taken<T> {
    fn drop(&mut self) {
        for node in self.by_ref() {
            drop(node);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn events_come_in_the_order_of_their_pushes() {
        let mailbox = Mailbox::new(Waker::for_this_thread());
        for value in 0..3 {
            mailbox.push(Node::new(value));
        }
        let taken: Vec<i32> = mailbox.take().map(|node| node.value).collect();
        assert_eq!(taken, [0, 1, 2]);
        assert!(mailbox.is_empty());
    }

    #[test]
    fn what_was_not_taken_is_dropped_with_the_mailbox() {
        let value = Arc::new(());
        let mailbox = Mailbox::new(Waker::for_this_thread());
        mailbox.push(Node::new(Arc::clone(&value)));
        mailbox.push(Node::new(Arc::clone(&value)));
        let mut taken = mailbox.take();
        mailbox.push(Node::new(Arc::clone(&value)));
        assert!(taken.next().is_some());
        drop((mailbox, taken));
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_closed_mailbox_keeps_nothing() {
        let value = Arc::new(());
        let mailbox = Mailbox::new(Waker::for_this_thread());
        assert!(mailbox.push(Node::new(Arc::clone(&value))));
        mailbox.close();
        assert!(!mailbox.push(Node::new(Arc::clone(&value))));
        assert_eq!(Arc::strong_count(&value), 1);
        assert!(mailbox.is_closed() && mailbox.is_empty());
    }

    #[test]
    fn a_stampede_of_pushers_loses_nothing() {
        const EACH: usize = 20_000;
        let mailbox = Arc::new(Mailbox::new(Waker::for_this_thread()));
        let pushers: Vec<_> = (0..4)
            .map(|pusher| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || assert!((0..EACH).all(|n| mailbox.push(Node::new((pusher, n))))))
            })
            .collect();
        let mut next = [0; 4];
        while next.iter().sum::<usize>() < 4 * EACH {
            let mut any = false;
            for node in mailbox.take() {
                let (pusher, n) = node.value;
                assert_eq!(n, next[pusher], "pusher {pusher} out of order");
                next[pusher] += 1;
                any = true;
            }
            if !any {
                mailbox.waker().wait(None);
            }
        }
        for pusher in pushers {
            pusher.join().expect("a pusher panicked");
        }
    }
}
