//! What somebody who is not its worker may do to a job: end it while it is queued, have it stopped, and deliver its
//! outcome in its place.
//!
//! Only jobs that may be stopped have a [`Control`]: those with a limit of time or a token, futures, and what a job
//! with one waits for. It is in the job's parcel, and with whoever may stop the job.
//!
//! | state | means | leaves it by |
//! |---|---|---|
//! | `Queued` | no worker has begun it | [`Control::begin`] → `Running`; [`Control::take_queued`] → `Ended` |
//! | `Running` | it has a session on a worker | [`Control::finish`] or [`Control::take_over`] → `Ended` |
//! | `Ended` | its outcome is, or is about to be, on its way | |
//!
//! Whoever changes the state to `Ended` delivers the outcome, and nobody else does. The state is under a lock with
//! what belongs to it: who stops a job sets [`Control::stop`] first and then looks at the state; a worker sets the
//! state first and then looks whether the job is to be stopped. So one of them sees the other.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Inbox, Job, Kind, Mode, Parcel, Sink, Station, deliver, new_job};
use crate::{outcome, sync::Mutex};

/// Who has the queue that a job is in: a pool.
pub trait Keeper: Send + Sync {
    /// A queued job was ended, and will not be begun.
    fn left_queue(self: Arc<Self>);
    /// The worker of this station is stuck in a C call on behalf of this job, if it is to be stopped alone, and another
    /// is to take its place: whether one does.
    fn abandon(self: Arc<Self>, station: &Station, job: Option<&Control>) -> bool;
    /// The worker of this station is no more, and has not said so itself.
    fn lost(self: Arc<Self>, station: &Station);
}

/// Why a job is stopped.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The outcome's kind.
    pub kind: &'static str,
    /// The outcome's error, and what is raised in the job.
    pub text: Arc<str>,
}

/// What asks for a stop.
#[derive(Clone, Debug)]
pub enum Cause {
    /// Its time is over.
    Timeout,
    /// Somebody cancelled it, for this reason.
    Cancelled(Arc<str>),
    /// What waited for it was stopped.
    Parent(Stop),
}

/// Where the outcome goes.
#[derive(Debug)]
struct Address {
    mode: Mode,
    ticket: u64,
    parent: Option<usize>,
    kept: bool,
    pool: u32,
    reply: Option<Arc<Inbox>>,
    root: Option<Arc<Inbox>>,
    sink: Option<Arc<dyn Sink>>,
}

impl Address {
    fn host(&self) -> Option<&Arc<Inbox>> {
        self.root.as_ref().or(self.reply.as_ref())
    }
}

#[derive(Debug)]
enum State {
    Queued,
    Running(Arc<Station>, usize),
    Ended,
}

#[derive(Debug)]
struct Inner {
    state: State,
    address: Option<Address>,
    /// The host in whose name it runs, where somebody else than its worker has ended it.
    host: Option<Arc<Inbox>>,
    /// It counts as one in the pool's queue.
    is_counted: bool,
    /// The jobs that it waits for, to be stopped with it.
    children: Vec<Weak<Control>>,
}

/// See the module.
pub struct Control {
    stop: OnceLock<Stop>,
    /// Its session's number in the process, or 0 while it has had nothing to do with locks.
    pub session: AtomicU64,
    /// It has no session any more: nothing is left to stop.
    gone: AtomicBool,
    submitted: Instant,
    begun: OnceLock<Instant>,
    deadline: Option<(Instant, Duration)>,
    /// A completion runs where the job does: it is what gets the outcome, so a worker has to begin with the job.
    completes: bool,
    id: u64,
    pool: Arc<str>,
    name: Option<Arc<str>>,
    keeper: Weak<dyn Keeper>,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("id", &self.id).field("stop", &self.stop).finish_non_exhaustive()
    }
}

/// What has to be done to stop a job.
#[derive(Debug)]
pub enum Todo {
    /// Nothing: it has ended, or is being stopped.
    Nothing,
    /// It was queued; this is its outcome, to be delivered.
    Deliver(Job),
    /// It has a session there, in this slot.
    Running(Arc<Station>, usize),
}

impl Control {
    /// For a parcel that is about to be queued. `timeout` is counted from `submitted`.
    pub fn new(
        parcel: &Parcel,
        completes: bool,
        pool: &Arc<str>,
        keeper: Weak<dyn Keeper>,
        submitted: Instant,
        timeout: Option<Duration>,
    ) -> Arc<Self> {
        let address = Address {
            mode: parcel.mode,
            ticket: parcel.ticket,
            parent: parcel.rare().parent,
            kept: parcel.kept,
            pool: parcel.pool,
            reply: parcel.reply.clone(),
            root: parcel.root.clone(),
            sink: parcel.rare().sink.clone(),
        };
        Arc::new(Self {
            stop: OnceLock::new(),
            session: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            submitted,
            begun: OnceLock::new(),
            deadline: timeout.and_then(|timeout| Some((submitted.checked_add(timeout)?, timeout))),
            completes,
            id: parcel.id,
            pool: Arc::clone(pool),
            name: parcel.rare().name.clone(),
            keeper,
            inner: Mutex::new(Inner {
                state: State::Queued,
                address: Some(address),
                host: None,
                is_counted: true,
                children: Vec::new(),
            }),
        })
    }

    /// When its time is over.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.map(|(at, _)| at)
    }

    /// The job's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The host in whose name it runs, until its worker has ended it.
    pub fn host(&self) -> Option<Arc<Inbox>> {
        let inner = self.inner.lock();
        inner.address.as_ref().and_then(Address::host).or(inner.host.as_ref()).cloned()
    }

    /// Who has its queue.
    pub fn keeper(&self) -> Option<Arc<dyn Keeper>> {
        self.keeper.upgrade()
    }

    /// Why it is stopped, if it is.
    #[inline]
    pub fn stop(&self) -> Option<&Stop> {
        self.stop.get()
    }

    /// Whether its session has ended, or it never had one.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Its session has ended.
    pub fn leave(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// It waits for that job, which is to be stopped with it; gives the reason, if it is being stopped already.
    pub fn adopt(&self, child: &Arc<Control>) -> Option<Stop> {
        let mut inner = self.inner.lock();
        // Under the lock, so that either the child is seen by `children`, or the reason here.
        if let Some(stop) = self.stop.get() {
            return Some(stop.clone());
        }
        inner.children.retain(|other| other.upgrade().is_some_and(|other| !other.is_gone()));
        inner.children.push(Arc::downgrade(child));
        None
    }

    /// Those that it waits for, once, when it is being stopped.
    pub fn children(&self) -> Vec<Arc<Control>> {
        std::mem::take(&mut self.inner.lock().children).iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether its outcome is on its way.
    pub fn has_ended(&self) -> bool {
        matches!(self.inner.lock().state, State::Ended)
    }

    /// A worker begins with it: false if it need not, because it has been ended or its time is over.
    pub fn begin(&self, station: &Arc<Station>, slot: usize) -> bool {
        let now = Instant::now();
        if self.stop().is_none() && self.deadline().is_some_and(|deadline| deadline <= now) {
            // Whoever sees that first ends it.
            return false;
        }
        let mut inner = self.inner.lock();
        if !matches!(inner.state, State::Queued) {
            return false;
        }
        let _ = self.begun.set(now);
        inner.state = State::Running(Arc::clone(station), slot);
        true
    }

    /// It has left its pool's queue: whether it counted in it until now.
    pub fn leave_queue(&self) -> bool {
        std::mem::take(&mut self.inner.lock().is_counted)
    }

    /// Its worker has its outcome: whether that is to be delivered.
    pub fn finish(&self) -> bool {
        let mut inner = self.inner.lock();
        let had_ended = matches!(inner.state, State::Ended);
        inner.state = State::Ended;
        (inner.address, inner.host) = (None, None);
        !had_ended
    }

    fn words(&self, cause: Cause) -> Stop {
        let now = Instant::now();
        let (kind, what) = match cause {
            Cause::Parent(stop) => return stop,
            Cause::Timeout => {
                let timeout = self.deadline.map_or(0.0, |(_, timeout)| timeout.as_secs_f64());
                ("timeout", format!("timed out after {timeout} s"))
            }
            Cause::Cancelled(reason) if reason.is_empty() => ("cancelled", "was cancelled".to_owned()),
            Cause::Cancelled(reason) => ("cancelled", format!("was cancelled: {reason}")),
        };
        let name = self.name.as_ref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
        let begun = self.begun.get().copied().unwrap_or(now);
        let waited = begun.saturating_duration_since(self.submitted).as_secs_f64();
        let ran = now.saturating_duration_since(begun).as_secs_f64();
        let text = format!(
            "msys: job {}{name} of pool '{}' {what} (it waited {waited:.3} s for a worker and ran {ran:.3} s)",
            self.id, self.pool
        );
        Stop { kind, text: text.into() }
    }

    /// Asks for its end, for the first reason that is given. What is left to do is the caller's.
    pub fn request(&self, cause: Cause) -> Todo {
        let is_child = matches!(cause, Cause::Parent(_));
        if self.stop.get().is_some() || self.has_ended() || self.stop.set(self.words(cause)).is_err() {
            return Todo::Nothing;
        }
        let mut inner = self.inner.lock();
        let sink = inner.address.as_ref().and_then(|address| address.sink.clone());
        if let (true, Some(sink)) = (is_child, sink) {
            sink.forget();
        }
        match &inner.state {
            State::Ended => Todo::Nothing,
            State::Running(station, slot) => Todo::Running(Arc::clone(station), *slot),
            // Whoever begins with it sees that it is to be stopped.
            State::Queued if self.completes => Todo::Nothing,
            State::Queued => {
                let was_counted = std::mem::take(&mut inner.is_counted);
                let job = self.end(&mut inner);
                drop(inner);
                self.leave();
                if was_counted && let Some(keeper) = self.keeper() {
                    keeper.left_queue();
                }
                job.map_or(Todo::Nothing, Todo::Deliver)
            }
        }
    }

    /// Ends it in its worker's place, which has not done so: its outcome, if it is running and to be stopped. One with a
    /// completion is ended by its worker, unless that is `dead`.
    pub fn take_over(&self, dead: bool) -> Option<Job> {
        let mut inner = self.inner.lock();
        if self.completes && !dead {
            return None;
        }
        if !matches!(inner.state, State::Running(..)) {
            return None;
        }
        inner.host = inner.address.as_ref().and_then(Address::host).cloned();
        self.end(&mut inner)
    }

    fn end(&self, inner: &mut Inner) -> Option<Job> {
        let address = inner.address.take()?;
        let stop = self.stop()?;
        inner.state = State::Ended;
        let mut job = new_job();
        let parcel = &mut job.value;
        parcel.kind = Kind::Outcome;
        parcel.mode = address.mode;
        parcel.id = self.id;
        parcel.pool = address.pool;
        parcel.ticket = address.ticket;
        parcel.kept = address.kept;
        parcel.reply = address.reply;
        parcel.root = address.root;
        let rare = parcel.rare_mut();
        rare.parent = address.parent;
        // Its worker may still read what was lent to it.
        rare.early = true;
        rare.sink = address.sink;
        outcome::failure(&mut parcel.message, &stop.text, &stop.text, stop.kind, Some((&self.pool, self.id)));
        Some(job)
    }
}

/// Ends a job whose control is given, or finds out where it has to be stopped.
pub fn request(control: &Control, cause: Cause) -> Option<(Arc<Station>, usize)> {
    match control.request(cause) {
        Todo::Nothing => None,
        Todo::Deliver(job) => {
            deliver(job, false);
            None
        }
        Todo::Running(station, slot) => Some((station, slot)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{mailbox::Mailbox, waker::Waker};

    #[derive(Default)]
    struct Queue(AtomicU64);

    impl Keeper for Queue {
        fn left_queue(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn abandon(self: Arc<Self>, _: &Station, _: Option<&Control>) -> bool {
            false
        }

        fn lost(self: Arc<Self>, _: &Station) {}
    }

    struct Setting {
        queue: Arc<Queue>,
        inbox: Arc<Inbox>,
        station: Arc<Station>,
        control: Arc<Control>,
    }

    fn setting(timeout: Option<Duration>) -> Setting {
        let queue = Arc::new(Queue::default());
        let keeper: Arc<dyn Keeper> = Arc::<Queue>::clone(&queue);
        let inbox = Inbox::new(Mailbox::new(Waker::for_this_thread()));
        let parcel = Parcel { id: 7, ticket: 5, reply: Some(Arc::clone(&inbox)), ..Parcel::default() };
        let pool: Arc<str> = "p".into();
        let control = Control::new(&parcel, false, &pool, Arc::downgrade(&keeper), Instant::now(), timeout);
        Setting { queue, inbox, station: Station::new(pool, 0, Arc::downgrade(&keeper)), control }
    }

    fn outcomes(inbox: &Inbox) -> Vec<u64> {
        inbox.mailbox.take().map(|job| job.value.ticket).collect()
    }

    #[test]
    fn a_queued_job_is_ended_once_and_never_begun() {
        let Setting { queue, inbox, station, control } = setting(None);
        assert!(request(&control, Cause::Cancelled("why".into())).is_none());
        assert!(request(&control, Cause::Timeout).is_none());
        assert_eq!((outcomes(&inbox), queue.0.load(Ordering::Relaxed)), (vec![5], 1));
        assert!(!control.begin(&station, 0) && !control.leave_queue() && !control.finish());
        let stop = control.stop().expect("a reason");
        assert_eq!(stop.kind, "cancelled");
        assert!(stop.text.starts_with("msys: job 7 of pool 'p' was cancelled: why (it waited 0."), "{}", stop.text);
    }

    #[test]
    fn a_running_job_is_delivered_by_its_worker_or_in_its_place() {
        let Setting { queue, inbox, station, control } = setting(None);
        assert!(control.leave_queue() && control.begin(&station, 3));
        let (found, slot) = request(&control, Cause::Cancelled("".into())).expect("it runs");
        assert!(Arc::ptr_eq(&found, &station) && slot == 3);
        assert!(control.take_over(false).is_some_and(|job| job.value.rare().early && job.value.ticket == 5));
        assert!(control.take_over(false).is_none() && !control.finish());
        assert_eq!((outcomes(&inbox), queue.0.load(Ordering::Relaxed)), (vec![], 0));

        let Setting { station, control, .. } = setting(None);
        assert!(control.begin(&station, 0) && control.finish());
        assert!(request(&control, Cause::Timeout).is_none() && control.take_over(true).is_none());
    }

    #[test]
    fn a_job_whose_time_is_over_is_not_begun() {
        let Setting { inbox, station, control, .. } = setting(Some(Duration::ZERO));
        assert!(!control.begin(&station, 0));
        assert!(request(&control, Cause::Timeout).is_none());
        assert_eq!(outcomes(&inbox), [5]);
        assert_eq!(control.stop().map(|stop| stop.kind), Some("timeout"));
    }

    #[test]
    fn a_child_is_stopped_with_its_parent_whichever_comes_first() {
        let (parent, child) = (setting(None).control, setting(None).control);
        assert!(parent.adopt(&child).is_none());
        let _ = parent.request(Cause::Cancelled("x".into()));
        assert!(parent.children().iter().any(|other| Arc::ptr_eq(other, &child)));
        assert_eq!(parent.adopt(&child).map(|stop| stop.kind), Some("cancelled"));
    }

    #[test]
    fn a_worker_and_a_stopper_see_one_another() {
        for _ in 0..2000 {
            let Setting { inbox, station, control, .. } = setting(None);
            let other = Arc::clone(&control);
            let stopper = std::thread::spawn(move || request(&other, Cause::Cancelled("".into())).is_some());
            let begun = control.begin(&station, 0);
            let stops = begun && (station.enter(Some(&control)) || stopper.is_finished());
            let running = stopper.join().expect("no panic");
            // Either it was queued and is ended, or it runs and the stopper knows where.
            assert_eq!(begun, running);
            assert_eq!(outcomes(&inbox).len(), usize::from(!begun));
            assert!(!stops || control.stop().is_some());
        }
    }
}
