//! The outcome of a job that somebody may wait for later, or several, in any VM, or nobody.
//!
//! 1. *The job's end* ([`Sink::end`]): keep the outcome, take the list of those that wait, and wake them.
//! 2. *Wait*: under the lock, see whether there is an outcome; if not, join the list.
//!
//! A failure that nobody has asked for is reported when the last handle goes: errors are never lost.

use std::sync::{Arc, OnceLock};

use super::{Alive, Knock, Wait, kind};
use crate::{
    job::{self, Cause, Control, Inbox, Sink},
    locks::Wake,
    reaper,
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
    /// The job that has sent it, or 0; and its own.
    parent: u64,
    control: OnceLock<Arc<Control>>,
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
    /// Of a job that is about to be sent in the name of `root`, by the job `parent` (0 for none).
    pub fn new(root: Arc<Inbox>, parent: u64) -> Self {
        Self { inner: Mutex::default(), root, parent, control: OnceLock::new(), _alive: Alive::default() }
    }

    /// The job that has sent it; 0 for none.
    pub fn parent(&self) -> u64 {
        self.parent
    }

    /// What its job is stopped by.
    pub fn control(&self) -> Option<&Arc<Control>> {
        self.control.get()
    }

    /// Stops its job; whether that had not ended, nor been stopped before.
    pub fn stop(&self, cause: Cause) -> bool {
        let Some(control) = self.control.get() else { return false };
        let stops = reaper::stop(control, cause);
        if stops {
            // Whoever does that knows how it ends.
            self.inner.lock().observed = true;
        }
        stops
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
}

impl Sink for Future {
    fn submitted(&self, control: &Arc<Control>) {
        let _ = self.control.set(Arc::clone(control));
    }

    fn forget(&self) {
        self.inner.lock().observed = true;
    }

    fn begin(&self) {
        self.inner.lock().state = State::Running;
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
            job::report(&self.root, outcome);
        }
    }
}
