//! loom models of mutex, condition and channel, and of waits that are given up: every interleaving of a few threads,
//! each of which does what a session does, within a bound on preemptions. A lost wake-up shows as a deadlock, two
//! owners as a race for the cell that the lock guards.
//!
//! `make test-loom`.
#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::sync::Arc;

use loom::{
    cell::UnsafeCell,
    sync::{
        Mutex as Plain,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use msys::{
    locks::{
        Channel, Condition, Kind, Left, Locked, Mutex, Received, Sent, Session, Settled, Unlocked, Wait,
        Waited, Waiter, Waits, Wake,
    },
    waker::Waker,
};

fn model(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(body);
}

/// Wakes the thread of a session.
#[derive(Clone, Debug)]
struct Bell(Arc<Waker>);

impl Bell {
    fn new() -> Self {
        Self(Arc::new(Waker::for_this_thread()))
    }

    fn wait(&self) {
        self.0.wait(None);
    }
}

impl Wake for Bell {
    fn wake(self) {
        self.0.wake();
    }
}

/// A mutex and what it guards.
struct Guarded {
    order: Plain<Waits>,
    mutex: Arc<Mutex<Bell>>,
    condition: Condition<Bell>,
    value: UnsafeCell<usize>,
}

// SAFETY: the value is touched by the mutex's owner alone; loom checks that.
unsafe impl Sync for Guarded {}
// SAFETY: as above.
unsafe impl Send for Guarded {}

impl Guarded {
    fn new() -> Arc<Self> {
        let mutex = Arc::new(Mutex::new(Kind::Normal));
        let condition = Condition::new(Arc::clone(&mutex));
        Arc::new(Self { order: Plain::new(Waits::new()), mutex, condition, value: UnsafeCell::new(0) })
    }

    fn within<T>(&self, act: impl FnOnce(&mut Waits) -> T) -> T {
        act(&mut self.order.lock().unwrap())
    }

    /// Begins to lock: whether that is done; if not, the session is in the queue.
    fn begin(&self, me: Session, bell: &Bell) -> bool {
        self.mutex.lock_fast(me)
            || self.within(|waits| match self.mutex.lock(waits, me) {
                Locked::Yes => true,
                Locked::Relocked => panic!("it is not mine"),
                Locked::No => self.mutex.enqueue(waits, Waiter::new(me, bell.clone())).is_some(),
            })
    }

    fn lock(&self, me: Session, bell: &Bell) {
        if self.begin(me, bell) {
            return;
        }
        loop {
            bell.wait();
            match self.within(|waits| self.mutex.settle(waits, me, false, || bell.clone())) {
                Settled::Granted => return,
                Settled::Waiting => {}
                Settled::Expired(_) => panic!("no time was given"),
            }
        }
    }

    /// Locks, or gives up at once if that is not to be had: whether it has it.
    fn lock_or_give_up(&self, me: Session, bell: &Bell) -> bool {
        if self.begin(me, bell) {
            return true;
        }
        match self.within(|waits| self.mutex.settle(waits, me, true, || bell.clone())) {
            Settled::Granted => true,
            Settled::Waiting => panic!("the time is over"),
            Settled::Expired(wakes) => {
                wakes.into_iter().for_each(Wake::wake);
                assert_ne!(self.mutex.holder(), Some(me), "one that gave up owns it");
                false
            }
        }
    }

    /// A session ends, which may have it or wait for it.
    fn abandon(&self, me: Session) {
        let (wake, _) = self.within(|waits| self.mutex.abandon(waits, me));
        wake.into_iter().for_each(Wake::wake);
    }

    fn unlock(&self, me: Session) {
        assert!(self.unlock_if_held(me), "it is mine");
    }

    /// Unlocks, unless the session has it no more.
    fn unlock_if_held(&self, me: Session) -> bool {
        if self.mutex.unlock_fast(me) {
            return true;
        }
        match self.within(|waits| self.mutex.unlock(waits, me)) {
            Unlocked::Yes(wakes) => {
                wakes.into_iter().for_each(Wake::wake);
                true
            }
            Unlocked::NotHeld(_) => false,
        }
    }

    fn add(&self) {
        // SAFETY: the caller has the mutex.
        self.value.with_mut(|value| unsafe { *value += 1 });
    }

    fn value(&self) -> usize {
        // SAFETY: as above.
        self.value.with(|value| unsafe { *value })
    }
}

fn in_threads(count: u64, body: impl Fn(u64) + Send + Sync + Clone + 'static) {
    let threads: Vec<_> = (1..=count)
        .map(|number| {
            let body = body.clone();
            thread::spawn(move || body(number))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_mutex_has_one_owner_and_forgets_nobody() {
    model(3, || {
        let guarded = Guarded::new();
        let shared = Arc::clone(&guarded);
        in_threads(2, move |me| {
            let bell = Bell::new();
            for _ in 0..2 {
                shared.lock(me, &bell);
                shared.add();
                shared.unlock(me);
            }
        });
        assert_eq!(guarded.value(), 4);
    });
}

#[test]
fn of_three_sessions_each_gets_the_mutex() {
    model(2, || {
        let guarded = Guarded::new();
        let shared = Arc::clone(&guarded);
        in_threads(3, move |me| {
            let bell = Bell::new();
            shared.lock(me, &bell);
            shared.add();
            shared.unlock(me);
        });
        assert_eq!(guarded.value(), 3);
    });
}

#[test]
fn one_that_gives_up_does_not_own_the_mutex_and_keeps_it_from_nobody() {
    model(2, || {
        let guarded = Guarded::new();
        let shared = Arc::clone(&guarded);
        in_threads(3, move |me| {
            let bell = Bell::new();
            if me == 3 {
                if !shared.lock_or_give_up(me, &bell) {
                    return;
                }
            } else {
                shared.lock(me, &bell);
            }
            shared.add();
            shared.unlock(me);
        });
        assert!(guarded.value() >= 2);
        assert_eq!(guarded.mutex.holder(), None);
    });
}

#[test]
fn a_session_that_ends_while_it_waits_leaves_the_mutex_to_the_others() {
    model(2, || {
        let guarded = Guarded::new();
        let shared = Arc::clone(&guarded);
        in_threads(3, move |me| {
            let bell = Bell::new();
            if me == 3 {
                shared.begin(me, &bell);
                // With the mutex, or on the way to it.
                shared.abandon(me);
                return;
            }
            shared.lock(me, &bell);
            shared.add();
            shared.unlock(me);
        });
        assert_eq!(guarded.value(), 2);
        assert_eq!(guarded.mutex.holder(), None);
    });
}

#[test]
fn a_mutex_that_is_released_in_its_owners_place_has_one_owner() {
    model(3, || {
        let guarded = Guarded::new();
        assert!(guarded.mutex.lock_fast(4));
        let shared = Arc::clone(&guarded);
        in_threads(3, move |me| {
            if me == 1 {
                shared.abandon(4);
                return;
            } else if me == 2 {
                // It comes back from C at just that moment.
                shared.unlock_if_held(4);
            }
            let bell = Bell::new();
            shared.lock(me, &bell);
            shared.add();
            shared.unlock(me);
        });
        assert_eq!(guarded.value(), 2);
        assert_eq!(guarded.mutex.holder(), None);
    });
}

#[test]
fn a_signal_wakes_one_that_waits_and_gives_it_the_mutex() {
    model(3, || {
        let guarded = Guarded::new();
        let shared = Arc::clone(&guarded);
        in_threads(2, move |me| {
            let bell = Bell::new();
            shared.lock(me, &bell);
            if me == 1 {
                shared.add();
                if let Some(wake) = shared.within(|waits| shared.condition.signal(waits)) {
                    wake.into_iter().for_each(Wake::wake);
                }
            } else {
                while shared.value() == 0 {
                    let wake = shared
                        .within(|waits| shared.condition.wait(waits, Waiter::new(me, bell.clone()), None));
                    wake.into_iter().for_each(Wake::wake);
                    loop {
                        bell.wait();
                        let settled =
                            shared.within(|waits| shared.condition.settle(waits, me, false, || bell.clone()));
                        if let Waited::Locking(Settled::Granted) = settled {
                            break;
                        }
                    }
                }
                assert_eq!(shared.mutex.holder(), Some(me));
            }
            shared.unlock(me);
        });
        assert_eq!(guarded.value(), 1);
    });
}

#[test]
fn a_signal_and_the_end_of_the_time_do_not_both_count() {
    model(3, || {
        let guarded = Guarded::new();
        let signalled = Arc::new(AtomicUsize::new(0));
        let (shared, count) = (Arc::clone(&guarded), Arc::clone(&signalled));
        in_threads(2, move |me| {
            let bell = Bell::new();
            shared.lock(me, &bell);
            if me == 1 {
                if let Some(wake) = shared.within(|waits| shared.condition.signal(waits)) {
                    count.fetch_add(1, Ordering::Relaxed);
                    wake.into_iter().for_each(Wake::wake);
                }
                shared.unlock(me);
                return;
            }
            let wake =
                shared.within(|waits| shared.condition.wait(waits, Waiter::new(me, bell.clone()), None));
            wake.into_iter().for_each(Wake::wake);
            // Its time is over at once.
            let mut expired = true;
            loop {
                match shared.within(|waits| shared.condition.settle(waits, me, expired, || bell.clone())) {
                    Waited::Locking(Settled::Granted) => {
                        count.fetch_add(10, Ordering::Relaxed);
                        break;
                    }
                    Waited::Locking(_) | Waited::Waiting => {
                        // It was signalled, and waits for the mutex.
                        expired = false;
                        bell.wait();
                    }
                    Waited::Expired(_) => {
                        shared.lock(me, &bell);
                        break;
                    }
                    Waited::Refused(_) => panic!("nobody else waits"),
                }
            }
            shared.add();
            shared.unlock(me);
        });
        let count = signalled.load(Ordering::Relaxed);
        assert!(count == 0 || count == 11, "signalled and granted: {count}");
        assert_eq!(guarded.value(), 1);
    });
}

fn wait(ticket: u64) -> Wait {
    Wait { vm: 0, ticket }
}

type Numbers = Channel<u32, Bell>;

fn send(channel: &Numbers, bell: &Bell, ticket: u64, value: u32) {
    let wait = wait(ticket);
    match channel.send_or_wait(value, wait, bell.clone()) {
        Sent::Yes => {}
        Sent::Full(()) => {
            bell.wait();
            assert_eq!(channel.leave(wait, false), Left::Done, "woken for nothing");
        }
        Sent::Closed => panic!("it is open"),
    }
}

fn receive(channel: &Numbers, bell: &Bell, ticket: u64) -> Option<u32> {
    let wait = wait(ticket);
    loop {
        match channel.receive() {
            Received::Item(item) => return Some(item),
            Received::Closed => return None,
            Received::Empty => {
                if channel.await_item(wait, bell.clone()) {
                    bell.wait();
                    channel.leave(wait, false);
                }
            }
        }
    }
}

fn brings_all(capacity: usize) {
    model(2, move || {
        let channel = Arc::new(Numbers::new(capacity));
        let sum = Arc::new(AtomicUsize::new(0));
        let (shared, total) = (Arc::clone(&channel), Arc::clone(&sum));
        in_threads(2, move |me| {
            let bell = Bell::new();
            if me == 1 {
                for value in [1, 10, 100] {
                    send(&shared, &bell, me, value);
                }
                shared.close();
            } else {
                while let Some(value) = receive(&shared, &bell, me) {
                    total.fetch_add(value as usize, Ordering::Relaxed);
                }
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 111);
    });
}

#[test]
fn a_channel_without_bound_brings_all() {
    brings_all(usize::MAX);
}

#[test]
fn a_channel_of_one_brings_all() {
    brings_all(1);
}

#[test]
fn a_channel_without_capacity_brings_all() {
    brings_all(0);
}

fn of_two_receivers_each_gets_an_item(capacity: usize) {
    model(2, move || {
        let channel = Arc::new(Numbers::new(capacity));
        let sum = Arc::new(AtomicUsize::new(0));
        let (shared, total) = (Arc::clone(&channel), Arc::clone(&sum));
        in_threads(3, move |me| {
            let bell = Bell::new();
            if me == 3 {
                send(&shared, &bell, me, 1);
                send(&shared, &bell, me, 10);
            } else if let Some(value) = receive(&shared, &bell, me) {
                total.fetch_add(value as usize, Ordering::Relaxed);
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 11);
    });
}

#[test]
fn of_two_receivers_each_gets_an_item_of_two() {
    of_two_receivers_each_gets_an_item(1);
}

#[test]
fn of_two_receivers_each_meets_a_sender() {
    of_two_receivers_each_gets_an_item(0);
}

#[test]
fn a_receiver_that_is_gone_passes_its_wake_up_on() {
    model(2, || {
        let channel = Arc::new(Numbers::new(usize::MAX));
        let shared = Arc::clone(&channel);
        in_threads(3, move |me| {
            let bell = Bell::new();
            match me {
                1 => send(&shared, &bell, me, 1),
                2 => assert_eq!(receive(&shared, &bell, me), Some(1)),
                // It waits, and its session ends without looking again, whether it was woken or not.
                _ => {
                    if shared.await_item(wait(me), bell.clone()) {
                        shared.leave(wait(me), true);
                    }
                }
            }
        });
    });
}

#[test]
fn a_sender_that_gives_up_has_sent_or_has_not() {
    model(2, || {
        for capacity in [0, 1] {
            let channel = Arc::new(Numbers::new(capacity));
            let received = Arc::new(AtomicUsize::new(0));
            let sent = Arc::new(AtomicUsize::new(0));
            if capacity == 1 {
                assert_eq!(channel.send(100), Sent::Yes);
            }
            let (shared, got, gave) = (Arc::clone(&channel), Arc::clone(&received), Arc::clone(&sent));
            in_threads(2, move |me| {
                let bell = Bell::new();
                if me == 1 {
                    let done = match shared.send_or_wait(1, wait(me), bell.clone()) {
                        Sent::Yes => true,
                        Sent::Full(()) => shared.leave(wait(me), true) == Left::Done,
                        Sent::Closed => panic!("it is open"),
                    };
                    gave.fetch_add(usize::from(done), Ordering::Relaxed);
                } else {
                    while let Received::Item(item) = shared.receive() {
                        got.fetch_add(item as usize % 100, Ordering::Relaxed);
                    }
                }
            });
            while let Received::Item(item) = channel.receive() {
                received.fetch_add(item as usize % 100, Ordering::Relaxed);
            }
            assert_eq!(received.load(Ordering::Relaxed), sent.load(Ordering::Relaxed));
        }
    });
}

#[test]
fn a_sender_learns_that_the_channel_was_closed() {
    model(2, || {
        let channel = Arc::new(Numbers::new(0));
        let received = Arc::new(AtomicUsize::new(0));
        let sent = Arc::new(AtomicUsize::new(0));
        let (shared, got, gave) = (Arc::clone(&channel), Arc::clone(&received), Arc::clone(&sent));
        in_threads(3, move |me| {
            let bell = Bell::new();
            match me {
                1 => {
                    if let Sent::Full(()) = shared.send_or_wait(1, wait(me), bell.clone()) {
                        bell.wait();
                        match shared.leave(wait(me), false) {
                            Left::Done => drop(gave.fetch_add(1, Ordering::Relaxed)),
                            left => assert_eq!(left, Left::Closed),
                        }
                    }
                }
                2 => {
                    if let Received::Item(item) = shared.receive() {
                        got.fetch_add(item as usize, Ordering::Relaxed);
                    }
                }
                _ => drop(shared.close()),
            }
        });
        assert_eq!(received.load(Ordering::Relaxed), sent.load(Ordering::Relaxed));
    });
}
