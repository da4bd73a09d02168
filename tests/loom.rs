//! loom models of the waker, the mailbox, the sleep protocol and leases: every interleaving of a few threads, within a
//! bound on preemptions. A lost wake-up shows as a deadlock, which loom reports.
//!
//! `make test-loom`, or `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --test loom`.
#![cfg(loom)]

use std::sync::Arc;

use loom::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use msys::{
    lease::Lease,
    mailbox::{Mailbox, Node},
    sleep::{Class, Rank, Sleep, Wake},
    waker::Waker,
};

fn model(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(body);
}

#[test]
fn a_wake_before_or_after_the_wait_ends_it() {
    model(3, || {
        let waker = Arc::new(Waker::for_this_thread());
        let flag = Arc::new(AtomicUsize::new(0));
        let other = {
            let (waker, flag) = (Arc::clone(&waker), Arc::clone(&flag));
            thread::spawn(move || {
                flag.store(1, Ordering::Relaxed);
                waker.wake();
            })
        };
        while flag.load(Ordering::Relaxed) == 0 {
            waker.wait(None);
        }
        other.join().unwrap();
    });
}

#[test]
fn a_woken_waiter_sees_what_was_written_before_the_wake() {
    model(3, || {
        let waker = Arc::new(Waker::for_this_thread());
        let value = Arc::new(AtomicUsize::new(0));
        let other = {
            let (waker, value) = (Arc::clone(&waker), Arc::clone(&value));
            thread::spawn(move || {
                value.store(7, Ordering::Relaxed);
                waker.wake();
            })
        };
        waker.wait(None);
        assert_eq!(value.load(Ordering::Relaxed), 7);
        other.join().unwrap();
    });
}

#[test]
fn nothing_is_left_in_a_mailbox_that_is_closed_meanwhile() {
    model(3, || {
        let value = Arc::new(());
        let mailbox = Arc::new(Mailbox::new(Waker::for_this_thread()));
        let pusher = {
            let (mailbox, value) = (Arc::clone(&mailbox), Arc::clone(&value));
            thread::spawn(move || {
                mailbox.push(Node::new(Arc::clone(&value)));
                mailbox.push(Node::new(value));
            })
        };
        drop(mailbox.take());
        mailbox.close();
        pusher.join().unwrap();
        // The mailbox is still there.
        assert_eq!(Arc::strong_count(&value), 1);
        assert!(mailbox.is_closed());
    });
}

#[test]
fn a_mailbox_loses_no_event_of_two_pushers() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(Waker::for_this_thread()));
        let pushers: Vec<_> = (0..2)
            .map(|pusher| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || mailbox.push(Node::new(pusher)))
            })
            .collect();
        let mut seen = [false; 2];
        while seen != [true; 2] {
            let before = seen;
            for node in mailbox.take() {
                assert!(!std::mem::replace(&mut seen[node.value], true), "an event came twice");
            }
            if seen == before {
                mailbox.waker().wait(None);
            }
        }
        for pusher in pushers {
            pusher.join().unwrap();
        }
    });
}

#[test]
fn a_pushers_events_stay_in_order() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(Waker::for_this_thread()));
        let pusher = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                mailbox.push(Node::new(0));
                mailbox.push(Node::new(1));
            })
        };
        let mut next = 0;
        while next < 2 {
            let before = next;
            for node in mailbox.take() {
                assert_eq!(node.value, next);
                next += 1;
            }
            if next == before {
                mailbox.waker().wait(None);
            }
        }
        pusher.join().unwrap();
    });
}

/// A pool in small: what `pool::Worker` does with the sleep protocol, over a counter of jobs.
struct Pool {
    sleep: Sleep,
    /// Ordinary and awaited jobs. Relaxed, so that nothing but the protocol's own fences orders them.
    jobs: [AtomicUsize; 2],
    wakers: Mutex<Vec<Option<Arc<Waker>>>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    done: AtomicUsize,
    total: usize,
}

impl Pool {
    fn new(workers: usize, total: usize) -> Arc<Self> {
        Arc::new(Self {
            sleep: Sleep::new(workers),
            jobs: [AtomicUsize::new(0), AtomicUsize::new(0)],
            wakers: Mutex::new(Vec::new()),
            threads: Mutex::new(Vec::new()),
            done: AtomicUsize::new(0),
            total,
        })
    }

    fn submit(self: &Arc<Self>, awaited: bool) {
        self.jobs[usize::from(awaited)].fetch_add(1, Ordering::Relaxed);
        self.follow(self.sleep.pushed(if awaited { Rank::Awaited } else { Rank::Ordinary }));
    }

    fn follow(self: &Arc<Self>, wake: Wake) {
        match wake {
            Wake::Nobody => {}
            Wake::Worker(index) => self.wake(index),
            Wake::Start => {
                let index = {
                    let mut wakers = self.wakers.lock().unwrap();
                    wakers.push(None);
                    wakers.len() - 1
                };
                let pool = Arc::clone(self);
                let thread = thread::spawn(move || pool.work(index));
                self.threads.lock().unwrap().push(thread);
            }
        }
    }

    fn wake(&self, index: usize) {
        let waker = self.wakers.lock().unwrap()[index].clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn has_work(&self, with_room: bool) -> bool {
        let [ordinary, awaited] = &self.jobs;
        awaited.load(Ordering::Relaxed) != 0 || with_room && ordinary.load(Ordering::Relaxed) != 0
    }

    fn take(&self) -> bool {
        self.jobs.iter().any(|jobs| {
            let less = |count: usize| count.checked_sub(1);
            jobs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
        })
    }

    fn wake_one(self: &Arc<Self>) {
        if self.has_work(true) {
            let rank = if self.has_work(false) { Rank::Awaited } else { Rank::Ordinary };
            self.follow(self.sleep.wake_one(rank));
        }
    }

    fn work(self: &Arc<Self>, index: usize) {
        let waker = Arc::new(Waker::for_this_thread());
        self.wakers.lock().unwrap()[index] = Some(Arc::clone(&waker));
        let mut searching = true;
        loop {
            if self.take() {
                if std::mem::take(&mut searching) && self.sleep.found() {
                    self.wake_one();
                }
                if self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.total {
                    let count = self.wakers.lock().unwrap().len();
                    (0..count).for_each(|other| self.wake(other));
                }
                continue;
            }
            if self.done.load(Ordering::Acquire) == self.total {
                return;
            }
            if !searching {
                searching = true;
                self.sleep.search();
                continue;
            }
            if !self.sleep.sleep(index, Class::Free, || self.has_work(true)) {
                continue;
            }
            waker.wait(None);
            searching = self.sleep.woken(index);
        }
    }

    fn join(&self) {
        loop {
            let Some(thread) = self.threads.lock().unwrap().pop() else { break };
            thread.join().unwrap();
        }
        assert_eq!(self.done.load(Ordering::Acquire), self.total);
        assert!(!self.has_work(true));
    }
}

#[test]
fn one_worker_sleeps_over_no_job() {
    model(3, || {
        let pool = Pool::new(1, 2);
        pool.submit(false);
        pool.submit(false);
        pool.join();
    });
}

#[test]
fn two_workers_sleep_over_no_job() {
    model(2, || {
        let pool = Pool::new(2, 2);
        pool.submit(false);
        pool.submit(true);
        pool.join();
    });
}

#[test]
fn two_submitters_and_one_worker_leave_no_job() {
    model(2, || {
        let pool = Pool::new(1, 2);
        let other = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || pool.submit(false))
        };
        pool.submit(false);
        other.join().unwrap();
        pool.join();
    });
}

#[test]
fn an_ordinary_job_passes_a_full_worker_by() {
    // Worker 0 sleeps full, worker 1 sleeps free; a push must reach worker 1, whoever wakes first.
    model(2, || {
        let sleep = Arc::new(Sleep::new(2));
        let jobs = Arc::new(Mutex::new(0));
        // Both workers are started by hand, searching.
        for _ in 0..2 {
            assert_eq!(sleep.wake_one(Rank::Ordinary), Wake::Start);
            assert!(sleep.found());
        }
        let free_waker = Arc::new(Mutex::new(None::<Arc<Waker>>));
        let full = {
            let (sleep, jobs, free_waker) = (Arc::clone(&sleep), Arc::clone(&jobs), Arc::clone(&free_waker));
            thread::spawn(move || {
                sleep.search();
                assert!(sleep.sleep(0, Class::Full, || false), "nothing is awaited");
                if *jobs.lock().unwrap() != 0
                    && sleep.wake_one(Rank::Ordinary) == Wake::Worker(1)
                    && let Some(waker) = free_waker.lock().unwrap().as_ref()
                {
                    waker.wake();
                }
            })
        };
        let free = {
            let (sleep, jobs, free_waker) = (Arc::clone(&sleep), Arc::clone(&jobs), Arc::clone(&free_waker));
            thread::spawn(move || {
                let waker = Arc::new(Waker::for_this_thread());
                *free_waker.lock().unwrap() = Some(Arc::clone(&waker));
                sleep.search();
                loop {
                    if std::mem::take(&mut *jobs.lock().unwrap()) != 0 {
                        let _last = sleep.found();
                        return;
                    }
                    if !sleep.sleep(1, Class::Free, || *jobs.lock().unwrap() != 0) {
                        continue;
                    }
                    waker.wait(None);
                    if !sleep.woken(1) {
                        sleep.search();
                    }
                }
            })
        };
        *jobs.lock().unwrap() = 1;
        match sleep.pushed(Rank::Ordinary) {
            Wake::Worker(1) => {
                if let Some(waker) = free_waker.lock().unwrap().as_ref() {
                    waker.wake();
                }
            }
            Wake::Worker(_) => panic!("a full worker was woken for an ordinary job"),
            Wake::Nobody | Wake::Start => {}
        }
        full.join().unwrap();
        free.join().unwrap();
    });
}

#[test]
fn what_is_lent_is_not_freed_while_it_is_read() {
    model(3, || {
        // The sender's memory: 1 while it is there.
        let memory = Arc::new(AtomicUsize::new(1));
        let bytes = *b"lent";
        // SAFETY: the bytes are on this stack, which outlives both threads.
        let lease = Arc::new(unsafe { Lease::new(&bytes) });
        let address = bytes.as_ptr().addr();
        let reader = {
            let (lease, memory) = (Arc::clone(&lease), Arc::clone(&memory));
            thread::spawn(move || {
                let read = lease.begin();
                if read.cast::<u8>().addr() == address {
                    assert_eq!(memory.load(Ordering::Relaxed), 1, "read when it was freed");
                } else {
                    // SAFETY: the lease's own copy.
                    assert_eq!(unsafe { &*read }, b"lent");
                }
                lease.end();
            })
        };
        lease.withdraw();
        memory.store(0, Ordering::Relaxed);
        reader.join().unwrap();
        assert_ne!(lease.begin().cast::<u8>().addr(), address);
    });
}
