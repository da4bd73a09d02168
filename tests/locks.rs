//! The locks of sessions, with a thread for each session: what `host` and the Lua face do, in few lines.

#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::{
    cell::UnsafeCell,
    sync::{Arc, Condvar, Mutex as Plain},
    thread,
    time::{Duration, Instant},
};

use msys::locks::{
    Access, Ancestor, Condition, Held, Kind, Link, Locked, Mutex, RwLock, Session, Settled, Unlocked, Waited,
    Waiter, Waiting, Waits, Wake,
};

/// Wakes a thread.
#[derive(Clone, Debug, Default)]
struct Bell(Arc<(Plain<bool>, Condvar)>);

impl Wake for Bell {
    fn wake(self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_one();
    }
}

impl Bell {
    /// Waits until it rings, or until `deadline`: whether it rang.
    fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut rung = self.0.0.lock().unwrap();
        while !*rung {
            match deadline {
                None => rung = self.0.1.wait(rung).unwrap(),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    rung = self.0.1.wait_timeout(rung, left).unwrap().0;
                }
            }
        }
        *rung = false;
        true
    }
}

struct Order(Plain<Waits>);

impl Order {
    fn new() -> Arc<Self> {
        Arc::new(Self(Plain::new(Waits::new())))
    }

    fn within<T>(&self, act: impl FnOnce(&mut Waits) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }
}

fn ring(bells: impl IntoIterator<Item = Bell>) {
    bells.into_iter().for_each(Wake::wake);
}

/// Waits until settled: whether it was granted.
fn until_settled(
    order: &Order,
    bell: &Bell,
    limit: Option<Duration>,
    mut settle: impl FnMut(&mut Waits, bool) -> Settled<Bell>,
) -> bool {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let expired = !bell.wait(deadline);
        match order.within(|waits| settle(waits, expired)) {
            Settled::Granted => return true,
            Settled::Waiting => {}
            Settled::Expired(others) => {
                ring(others);
                return false;
            }
        }
    }
}

fn lock_within(order: &Order, mutex: &Mutex<Bell>, session: Session, limit: Option<Duration>) -> bool {
    if mutex.lock_fast(session) {
        return true;
    }
    let bell = Bell::default();
    let has = order.within(|waits| match mutex.lock(waits, session) {
        Locked::Yes => true,
        Locked::Relocked => panic!("locked twice"),
        Locked::No => mutex.enqueue(waits, Waiter::new(session, bell.clone())).is_some(),
    });
    has || until_settled(order, &bell, limit, |waits, expired| {
        mutex.settle(waits, session, expired, || bell.clone())
    })
}

fn unlock(order: &Order, mutex: &Mutex<Bell>, session: Session) {
    if mutex.unlock_fast(session) {
        return;
    }
    match order.within(|waits| mutex.unlock(waits, session)) {
        Unlocked::Yes(bells) => ring(bells),
        Unlocked::NotHeld(holder) => panic!("{session} does not have it, {holder:?} has"),
    }
}

/// Data that the lock under test is to guard.
struct Shared(UnsafeCell<u64>);

// SAFETY: that is what is tested.
unsafe impl Sync for Shared {}

impl Shared {
    fn add(&self) {
        // SAFETY: as above.
        unsafe { *self.0.get() += 1 };
    }
}

#[test]
fn a_stampede_counts_right() {
    const SESSIONS: u64 = 6;
    const TIMES: u64 = 20_000;
    let (order, mutex) = (Order::new(), Mutex::new(Kind::Normal));
    let count = Shared(UnsafeCell::new(0));
    thread::scope(|scope| {
        for session in 1..=SESSIONS {
            let (order, mutex, count) = (&order, &mutex, &count);
            scope.spawn(move || {
                for _ in 0..TIMES {
                    assert!(lock_within(order, mutex, session, None));
                    count.add();
                    unlock(order, mutex, session);
                }
            });
        }
    });
    assert_eq!(count.0.into_inner(), SESSIONS * TIMES);
    assert_eq!(mutex.holder(), None);
    assert!(mutex.lock_fast(9), "no mark is left");
}

#[test]
fn one_whose_time_is_over_never_owns() {
    const SESSIONS: u64 = 4;
    let (order, mutex) = (Order::new(), Mutex::new(Kind::Normal));
    let count = Shared(UnsafeCell::new(0));
    let got: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (1..=SESSIONS)
            .map(|session| {
                let (order, mutex, count) = (&order, &mutex, &count);
                scope.spawn(move || {
                    let mut got = 0;
                    for round in 0..3000u64 {
                        let limit = Duration::from_micros(round % 40);
                        if lock_within(order, mutex, session, Some(limit)) {
                            count.add();
                            got += 1;
                            if round % 7 == 0 {
                                thread::yield_now();
                            }
                            unlock(order, mutex, session);
                        } else {
                            assert_ne!(mutex.holder(), Some(session));
                        }
                    }
                    got
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(count.0.into_inner(), got);
    assert!(mutex.lock_fast(9), "nobody has it, and no mark is left");
}

#[test]
fn a_recursive_mutex_is_released_as_often_as_it_was_locked() {
    let (order, mutex) = (Order::new(), Mutex::<Bell>::new(Kind::Recursive));
    assert!(mutex.lock_fast(1));
    for _ in 0..3 {
        assert_eq!(order.within(|waits| mutex.lock(waits, 1)), Locked::Yes);
    }
    for _ in 0..3 {
        assert!(!mutex.unlock_fast(1));
        assert!(matches!(order.within(|waits| mutex.unlock(waits, 1)), Unlocked::Yes(_)));
        assert_eq!(mutex.holder(), Some(1));
    }
    assert!(mutex.unlock_fast(1));
    assert_eq!(mutex.holder(), None);
}

#[test]
fn a_waiter_that_came_too_late_is_next() {
    let (order, mutex) = (Order::new(), Mutex::new(Kind::Normal));
    let bells = [Bell::default(), Bell::default()];
    order.within(|waits| {
        assert_eq!(mutex.lock(waits, 1), Locked::Yes);
        assert!(mutex.enqueue(waits, Waiter::new(2, bells[0].clone())).is_none());
        assert!(mutex.enqueue(waits, Waiter::new(3, bells[1].clone())).is_none());
    });
    unlock(&order, &mutex, 1);
    assert!(bells[0].wait(None));
    // Somebody passes it by.
    assert_eq!(order.within(|waits| mutex.lock(waits, 1)), Locked::Yes);
    let settled = order.within(|waits| mutex.settle(waits, 2, false, || bells[0].clone()));
    assert!(matches!(settled, Settled::Waiting));
    unlock(&order, &mutex, 1);
    assert_eq!(mutex.holder(), Some(2), "it has been given to the one that waits");
    assert_eq!(order.within(|waits| mutex.lock(waits, 1)), Locked::No);
    assert!(bells[0].wait(None));
    assert!(matches!(order.within(|waits| mutex.settle(waits, 2, false, Bell::default)), Settled::Granted));
    // A session that is gone passes on what it has.
    let (bell, had) = order.within(|waits| mutex.abandon(waits, 2));
    assert!(had);
    ring(bell);
    assert!(bells[1].wait(None));
    assert!(matches!(order.within(|waits| mutex.settle(waits, 3, false, Bell::default)), Settled::Granted));
    unlock(&order, &mutex, 3);
    assert!(mutex.lock_fast(1));
}

#[test]
fn a_condition_hands_its_mutex_over() {
    const CONSUMERS: u64 = 3;
    const ITEMS: u64 = 3000;
    let order = Order::new();
    let mutex = Arc::new(Mutex::new(Kind::Normal));
    let condition = Condition::new(Arc::clone(&mutex));
    // Items made, and items taken.
    let (made, taken) = (Shared(UnsafeCell::new(0)), Shared(UnsafeCell::new(0)));
    thread::scope(|scope| {
        for session in 1..=CONSUMERS {
            let (order, mutex, condition, made, taken) = (&order, &mutex, &condition, &made, &taken);
            scope.spawn(move || {
                loop {
                    assert!(lock_within(order, mutex, session, None));
                    // SAFETY: under the mutex.
                    while unsafe { *made.0.get() == *taken.0.get() && *taken.0.get() < ITEMS } {
                        let bell = Bell::default();
                        ring(
                            order.within(|waits| {
                                condition.wait(waits, Waiter::new(session, bell.clone()), None)
                            }),
                        );
                        let limit = if session == 1 { Some(Duration::from_micros(50)) } else { None };
                        let signalled = until_settled(order, &bell, limit, |waits, expired| match condition
                            .settle(waits, session, expired, || bell.clone())
                        {
                            Waited::Locking(settled) => settled,
                            Waited::Waiting => Settled::Waiting,
                            Waited::Expired(depth) | Waited::Refused(depth) => {
                                assert_eq!(depth, 0);
                                Settled::Expired(Vec::new())
                            }
                        });
                        if !signalled {
                            assert!(lock_within(order, mutex, session, None));
                        }
                        assert_eq!(mutex.holder(), Some(session));
                    }
                    // SAFETY: as above.
                    let done = unsafe { *taken.0.get() == ITEMS };
                    if !done {
                        taken.add();
                    }
                    unlock(order, mutex, session);
                    if done {
                        return;
                    }
                }
            });
        }
        let session = 9;
        for item in 1..=ITEMS {
            assert!(lock_within(&order, &mutex, session, None));
            made.add();
            let wake = order.within(|waits| condition.signal(waits));
            ring(wake.flatten());
            unlock(&order, &mutex, session);
            if item == ITEMS {
                // Those that wait for more than there will be.
                loop {
                    assert!(lock_within(&order, &mutex, session, None));
                    // SAFETY: under the mutex.
                    let done = unsafe { *taken.0.get() == ITEMS };
                    while let Some(wake) = order.within(|waits| condition.signal(waits)) {
                        ring(wake);
                    }
                    unlock(&order, &mutex, session);
                    if done {
                        break;
                    }
                    thread::yield_now();
                }
            }
        }
        // A consumer may have begun to wait after that look.
        while order.within(|waits| condition.signal(waits)).map(ring).is_some() {}
    });
    assert_eq!(taken.0.into_inner(), ITEMS);
}

#[test]
fn a_writer_is_alone_and_is_passed_by_no_new_reader() {
    const TIMES: u64 = 3000;
    let (order, lock) = (Order::new(), RwLock::new());
    let count = Shared(UnsafeCell::new(0));
    let take = |session: Session, access: Access| {
        let bell = Bell::default();
        let locked = order.within(|waits| {
            let locked = lock.lock(waits, session, access);
            if locked == Locked::No {
                lock.enqueue(waits, Waiter::new(session, bell.clone()), access);
            }
            locked
        });
        assert_ne!(locked, Locked::Relocked);
        if locked == Locked::No {
            let settle =
                |waits: &mut Waits, expired: bool| lock.settle(waits, session, expired, || bell.clone());
            assert!(until_settled(&order, &bell, None, settle));
        }
    };
    let release = |session: Session| match order.within(|waits| lock.unlock(waits, session)) {
        Unlocked::Yes(bells) => ring(bells),
        Unlocked::NotHeld(_) => panic!("not held"),
    };
    thread::scope(|scope| {
        for session in 1..=4 {
            let (take, release, count) = (&take, &release, &count);
            scope.spawn(move || {
                for round in 0..TIMES {
                    if (round + session) % 3 == 0 {
                        take(session, Access::Write);
                        count.add();
                    } else {
                        take(session, Access::Read);
                        take(session, Access::Read);
                        // SAFETY: as long as nobody writes.
                        let before = unsafe { std::ptr::read_volatile(count.0.get()) };
                        thread::yield_now();
                        // SAFETY: as above.
                        assert_eq!(before, unsafe { std::ptr::read_volatile(count.0.get()) });
                        release(session);
                    }
                    release(session);
                }
            });
        }
    });
    assert_eq!(count.0.into_inner(), 4 * TIMES / 3);

    // Fair: the writer that waits keeps new readers out.
    let bells = [Bell::default(), Bell::default()];
    order.within(|waits| {
        assert_eq!(lock.lock(waits, 1, Access::Read), Locked::Yes);
        assert_eq!(lock.lock(waits, 2, Access::Write), Locked::No);
        lock.enqueue(waits, Waiter::new(2, bells[0].clone()), Access::Write);
        assert_eq!(lock.lock(waits, 3, Access::Read), Locked::No);
        lock.enqueue(waits, Waiter::new(3, bells[1].clone()), Access::Read);
        assert_eq!(lock.lock(waits, 1, Access::Read), Locked::Yes, "who reads may read");
        assert_eq!(lock.lock(waits, 1, Access::Write), Locked::Relocked);
    });
    // The writer gives up: what stood behind it comes in.
    match order.within(|waits| lock.settle(waits, 2, true, Bell::default)) {
        Settled::Expired(bells) => ring(bells),
        other => panic!("{other:?}"),
    }
    assert!(bells[1].wait(None));
    assert_eq!(order.within(|waits| lock.holders(waits)), [1, 3]);
}

/// A mutex, as one who looks for cycles sees it.
struct Named(&'static str, Arc<Mutex<Bell>>);

impl Held for Named {
    fn holders(&self, _: &mut Waits) -> Vec<Session> {
        self.1.holder().into_iter().collect()
    }

    fn name(&self) -> String {
        self.0.to_owned()
    }
}

#[test]
fn a_wait_that_would_close_a_cycle_is_refused_with_its_links() {
    let order = Order::new();
    let locks: Vec<_> =
        ["a", "b", "c"].map(|name| Arc::new(Named(name, Arc::new(Mutex::new(Kind::Normal))))).into();
    let wait = |session: Session, lock: usize, place: &str, ancestors: &[Session]| {
        let lock = Arc::clone(&locks[lock]);
        let mut chain = None;
        for session in ancestors.iter().rev() {
            chain = Some(Arc::new(Ancestor { session: *session, has_lock: false, parent: chain }));
        }
        let waiting = Waiting { lock: lock as Arc<dyn Held>, place: place.to_owned(), ancestors: chain };
        order.within(|waits| waits.begin(session, waiting))
    };
    let link = |session, place: &str, lock: &str, holder| Link {
        session,
        place: place.to_owned(),
        lock: lock.to_owned(),
        holder,
    };
    for (session, lock) in (1..=3).zip(&locks) {
        assert!(lock.1.lock_fast(session));
    }
    // Of three: 1 has a and waits for b, 2 has b and waits for c, 3 has c and would wait for a.
    assert_eq!(wait(1, 1, "x:1", &[]), Ok(()));
    assert_eq!(wait(2, 2, "x:2", &[]), Ok(()));
    let cycle = vec![link(3, "x:3", "a", 1), link(1, "x:1", "b", 2), link(2, "x:2", "c", 3)];
    assert_eq!(wait(3, 0, "x:3", &[]), Err(cycle));
    // Somebody else may wait for any of them, and the others wait on.
    assert_eq!(wait(4, 0, "x:4", &[]), Ok(()));
    order.within(|waits| waits.end(2));
    assert_eq!(wait(3, 0, "x:3", &[]), Ok(()));
    for session in 1..=4 {
        order.within(|waits| waits.end(session));
    }
    // 1 has a, and waits for job 7, whose job 8 would wait for a.
    assert_eq!(wait(8, 0, "y:8", &[7, 1]), Err(vec![link(8, "y:8", "a", 1)]));
    // 1 has a and waits for job 7, which waits for b; 2 has b and would wait for a.
    assert_eq!(wait(7, 1, "y:7", &[1]), Ok(()));
    assert_eq!(wait(2, 0, "y:2", &[]), Err(vec![link(2, "y:2", "a", 1), link(7, "y:7", "b", 2)]));
    // A job of 2's has no part in what 2 has but through 2, which waits for it: 1, 7, 2.
    assert_eq!(wait(9, 0, "y:9", &[2]), Err(vec![link(9, "y:9", "a", 1), link(7, "y:7", "b", 2)]));
    assert_eq!(wait(9, 2, "y:9", &[2]), Ok(()));
}
