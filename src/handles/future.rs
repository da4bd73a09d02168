//! The outcome of a job that somebody may wait for later, or several, in any VM, or nobody.
//!
//! 1. *The job's end* ([`Sink::end`]): keep the outcome, take the list of those that wait, and wake them.
//! 2. *Wait*: under the lock, see whether there is an outcome; if not, join the list.
//!
//! A failure that nobody has asked for is reported when the last handle goes: errors are never lost.

use std::sync::Arc;

use super::{Alive, Knock, Wait, kind};
use crate::{
    job::{Inbox, Kind, Sink, new_job},
    locks::Wake,
    sync::Mutex,
    wire::{Message, Object},
};

#[derive(Debug, Default)]
enum State {
    /// In a queue.
    #[default]
    Queued,
    /// A worker has it.
    Running,
    /// It has ended.
    Ended { ok: bool, outcome: Arc<Message> },
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    waiters: Vec<Knock>,
    /// Somebody has asked for the outcome.
    observed: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Future {
    inner: Mutex<Inner>,
    /// The host to which a failure is reported that nobody asks for.
    root: Arc<Inbox>,
    _alive: Alive,
}

/// How far the job has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It waits for a worker.
    Queued,
    /// It has begun.
    Running,
    /// It has given results.
    Done,
    /// It has failed.
    Failed,
}

impl Future {
    /// Of a job that is about to be sent in the name of `root`.
    pub fn new(root: Arc<Inbox>) -> Self {
        Self { inner: Mutex::default(), root, _alive: Alive::default() }
    }

    /// How far it has come, and whether somebody has asked for the outcome.
    pub fn status(&self) -> (Status, bool) {
        let inner = self.inner.lock();
        let status = match inner.state {
            State::Queued => Status::Queued,
            State::Running => Status::Running,
            State::Ended { ok: true, .. } => Status::Done,
            State::Ended { ok: false, .. } => Status::Failed,
        };
        (status, inner.observed)
    }

    /// The outcome, if it has ended: the message of `true, results…` or `false, error, info`.
    pub fn outcome(&self) -> Option<Arc<Message>> {
        let mut inner = self.inner.lock();
        let State::Ended { outcome, .. } = &inner.state else { return None };
        let outcome = Arc::clone(outcome);
        inner.observed = true;
        Some(outcome)
    }

    /// Waits for its end, unless it has ended: then false.
    pub fn wait(&self, knock: Knock) -> bool {
        let mut inner = self.inner.lock();
        if matches!(inner.state, State::Ended { .. }) {
            return false;
        }
        inner.waiters.push(knock);
        true
    }

    /// A session waits no longer.
    pub fn leave(&self, wait: Wait) {
        self.inner.lock().waiters.retain(|other| other.wait() != wait);
    }

    /// Ends it in the place of its job, if that has not begun: whether it had not.
    pub fn end_if_queued(&self, outcome: Message) -> bool {
        let mut inner = self.inner.lock();
        if !matches!(inner.state, State::Queued) {
            return false;
        }
        inner.state = State::Ended { ok: false, outcome: Arc::new(outcome) };
        inner.observed = true;
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        waiters.into_iter().for_each(Wake::wake);
        true
    }
}

impl Sink for Future {
    fn begin(&self) -> bool {
        let mut inner = self.inner.lock();
        if !matches!(inner.state, State::Queued) {
            return false;
        }
        inner.state = State::Running;
        true
    }

    fn end(&self, outcome: Message, ok: bool) {
        let mut inner = self.inner.lock();
        if !matches!(inner.state, State::Ended { .. }) {
            inner.state = State::Ended { ok, outcome: Arc::new(outcome) };
        }
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        waiters.into_iter().for_each(Wake::wake);
    }
}

impl Object for Future {
    fn kind(&self) -> u32 {
        kind::FUTURE
    }
}

impl Drop for Future {
    fn drop(&mut self) {
        let inner = std::mem::take(&mut *self.inner.lock());
        if let State::Ended { ok: false, outcome } = inner.state
            && !inner.observed
            && let Ok(outcome) = Arc::try_unwrap(outcome)
        {
            let mut report = new_job();
            report.value.kind = Kind::Report;
            report.value.message = outcome;
            self.root.mailbox.push(report);
        }
    }
}
