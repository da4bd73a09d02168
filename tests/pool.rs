//! Pools without a VM: a worker here is a loop that takes jobs and delivers them, so that queues, sleeping, waking and
//! the ends of pools are tested by cargo alone.
#![cfg(not(loom))]

use std::{
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use msys::{
    error::Error,
    job::{self, Inbox, Job, Kind, Mode, new_job},
    mailbox::Mailbox,
    pool::{Config, Keeps, Load, Pool, Turn, Worker},
    waker::Waker,
};

/// The longest that a test waits for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// The ticket of a job that ends when four such jobs run.
const MEET: u64 = u64::MAX;
static ALL_FOUR: Barrier = Barrier::new(4);

/// A worker's VM, which is not there.
struct NoVm;

impl Keeps for NoVm {
    fn keeps(&self) -> bool {
        false
    }

    fn release(&self) {}
}

/// A worker that ends each job at once, but for those that meet.
#[allow(clippy::boxed_local, reason = "as the pool gives it")]
fn echo(worker: Box<Worker>) {
    let inbox = Inbox::new(Mailbox::new(Waker::for_this_thread()));
    worker.register(Arc::clone(&inbox));
    loop {
        if worker.is_superfluous() {
            return;
        }
        match worker.find(Load::default()) {
            Some(job) => {
                worker.job_begins();
                if job.value.ticket == MEET {
                    ALL_FOUR.wait();
                }
                worker.job_ended(Duration::ZERO, true);
                job::deliver(job, true);
            }
            None if worker.idle(&inbox, Load::default(), None, &NoVm) == Turn::End => return,
            None => {}
        }
    }
}

fn make(workers: usize, config: impl FnOnce(&mut Config)) -> Arc<Pool> {
    let mut options = Config { concurrency: workers, ..Config::named("test") };
    config(&mut options);
    Pool::new(7, options, echo)
}

fn inbox() -> Arc<Inbox> {
    Inbox::new(Mailbox::new(Waker::for_this_thread()))
}

fn sync_job(inbox: &Arc<Inbox>, ticket: u64) -> Job {
    let mut job = new_job();
    job.value.mode = Mode::Sync;
    job.value.ticket = ticket;
    job.value.reply = Some(Arc::clone(inbox));
    job
}

/// Takes events until there are `count`; gives their kinds and tickets.
fn collect(inbox: &Inbox, count: usize) -> Vec<(Kind, u64)> {
    let deadline = Instant::now() + LIMIT;
    let mut events = Vec::new();
    while events.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} events came", events.len());
        let before = events.len();
        events.extend(inbox.mailbox.take().map(|node| (node.value.kind, node.value.ticket)));
        if events.len() == before {
            inbox.mailbox.waker().wait(Some(Duration::from_millis(100)));
        }
    }
    events
}

fn end(pool: &Arc<Pool>) {
    pool.shutdown(false);
    pool.join(Instant::now() + LIMIT);
    assert_eq!(pool.stat().num_threads, 0, "workers are left");
    assert_eq!(pool.queued(), 0, "jobs are left");
}

#[test]
fn smoke() {
    let pool = make(2, |_| {});
    assert_eq!(pool.stat().num_threads, 0, "workers start only when there is work");
    let inbox = inbox();
    pool.submit(sync_job(&inbox, 1), None, false);
    assert_eq!(collect(&inbox, 1), [(Kind::Outcome, 1)]);
    end(&pool);
}

#[test]
fn spsc_round_trips_wake_the_worker_each_time() {
    let pool = make(1, |_| {});
    let inbox = inbox();
    for ticket in 0..5_000 {
        pool.submit(sync_job(&inbox, ticket), None, false);
        assert_eq!(collect(&inbox, 1), [(Kind::Outcome, ticket)]);
    }
    end(&pool);
}

#[test]
fn one_worker_keeps_the_order_of_submission() {
    let pool = make(1, |_| {});
    let inbox = inbox();
    for ticket in 0..10_000 {
        pool.submit(sync_job(&inbox, ticket), None, false);
    }
    let tickets: Vec<u64> = collect(&inbox, 10_000).into_iter().map(|(_, ticket)| ticket).collect();
    assert!(tickets.is_sorted());
    end(&pool);
}

#[test]
fn a_stampede_of_submitters_gets_every_outcome_once() {
    const SUBMITTERS: u64 = 8;
    const EACH: u64 = 5_000;
    let pool = make(4, |_| {});
    let submitters: Vec<_> = (0..SUBMITTERS)
        .map(|_| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || {
                let inbox = inbox();
                for ticket in 0..EACH {
                    pool.submit(sync_job(&inbox, ticket), None, false);
                }
                let mut tickets: Vec<u64> =
                    collect(&inbox, EACH as usize).into_iter().map(|(_, t)| t).collect();
                tickets.sort_unstable();
                assert!(tickets.into_iter().eq(0..EACH));
            })
        })
        .collect();
    for submitter in submitters {
        submitter.join().expect("a submitter failed");
    }
    assert_eq!(pool.stat().invocations, SUBMITTERS * EACH);
    end(&pool);
}

#[test]
fn shutdown_finishes_what_was_accepted_and_refuses_the_rest() {
    for round in 0..200 {
        let pool = make(3, |_| {});
        let inbox = inbox();
        let jobs = round % 7;
        for ticket in 0..jobs {
            pool.submit(sync_job(&inbox, ticket), None, false);
        }
        pool.shutdown(false);
        assert!(matches!(pool.admit(true), Err(Error::PoolShutDown(_))));
        collect(&inbox, jobs as usize);
        end(&pool);
    }
}

#[test]
fn the_end_of_a_pool_is_signalled_once_and_also_afterwards() {
    let pool = make(2, |_| {});
    let inbox = inbox();
    pool.submit(sync_job(&inbox, 1), None, false);
    collect(&inbox, 1);
    pool.await_end(Arc::clone(&inbox), 2);
    pool.shutdown(false);
    assert_eq!(collect(&inbox, 1), [(Kind::Signal, 2)]);
    pool.await_end(Arc::clone(&inbox), 3);
    assert_eq!(collect(&inbox, 1), [(Kind::Signal, 3)]);
    end(&pool);
}

#[test]
fn a_submitter_that_waits_for_room_is_signalled() {
    let pool = make(1, |config| config.backlog = 2);
    let inbox = inbox();
    let (mut sent, mut ended) = (0, 0);
    while sent < 2_000 {
        match pool.admit(false) {
            Ok(()) => {
                pool.submit(sync_job(&inbox, 0), None, false);
                sent += 1;
            }
            Err(_) => {
                pool.await_room(Arc::clone(&inbox), 9);
                let mut room = false;
                while !room {
                    for (kind, _) in collect(&inbox, 1) {
                        room |= kind == Kind::Signal;
                        ended += usize::from(kind == Kind::Outcome);
                    }
                }
            }
        }
    }
    collect(&inbox, sent - ended);
    end(&pool);
}

#[test]
fn resizing_under_load_loses_nothing() {
    let pool = make(4, |_| {});
    let inbox = inbox();
    let mut sent = 0;
    for round in 0..200 {
        for _ in 0..50 {
            pool.submit(sync_job(&inbox, sent), None, false);
            sent += 1;
        }
        pool.resize(1 + round % 6);
    }
    collect(&inbox, sent as usize);
    end(&pool);
}

#[test]
fn a_smaller_pool_ends_the_workers_that_are_too_many() {
    let pool = make(4, |_| {});
    let inbox = inbox();
    (0..4).for_each(|_| pool.submit(sync_job(&inbox, MEET), None, false));
    collect(&inbox, 4);
    assert_eq!(pool.stat().num_threads, 4);
    pool.resize(1);
    let deadline = Instant::now() + LIMIT;
    while pool.stat().num_threads > 1 {
        assert!(Instant::now() < deadline, "{} workers", pool.stat().num_threads);
        thread::yield_now();
    }
    end(&pool);
}

#[test]
fn jobs_of_a_system_without_threads_fail_and_do_not_hang() {
    // No address space holds such a stack.
    let pool = make(1, |config| config.stack_size = 1 << 46);
    let inbox = inbox();
    pool.submit(sync_job(&inbox, 5), None, false);
    assert_eq!(collect(&inbox, 1), [(Kind::Outcome, 5)]);
    end(&pool);
}

#[test]
fn pending_jobs_are_counted_until_they_end() {
    let pool = make(2, |_| {});
    let inbox = inbox();
    for _ in 0..1_000 {
        let mut job = new_job();
        job.value.mode = Mode::Async;
        job.value.root = Some(Arc::clone(&inbox));
        inbox.begin_pending();
        pool.submit(job, None, false);
    }
    let deadline = Instant::now() + LIMIT;
    while inbox.pending() > 0 {
        assert!(Instant::now() < deadline, "{} are pending", inbox.pending());
        inbox.mailbox.waker().wait(Some(Duration::from_millis(100)));
    }
    assert!(inbox.mailbox.is_empty(), "successes are not reported");
    end(&pool);
}

#[test]
fn promises_about_threads_hold() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<Job>();
    send::<Worker>();
    send::<Arc<Pool>>();
    sync::<Pool>();
    sync::<Inbox>();
    send::<job::Parcel>();
}
