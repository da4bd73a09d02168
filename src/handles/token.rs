//! A cancel token: what one side cancels, and any number of jobs are stopped by.

use std::sync::{Arc, Weak};

use super::{Alive, Knock, Wait, kind};
use crate::{
    job::{Cause, Control},
    locks::Wake,
    reaper,
    sync::Mutex,
    wire::Object,
};

#[derive(Debug, Default)]
struct Inner {
    /// Why it was cancelled, if it was.
    reason: Option<Arc<str>>,
    jobs: Vec<Weak<Control>>,
    /// Who is to be woken.
    waiters: Vec<Knock>,
    /// At how many jobs those that have ended are sorted out.
    purge: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Token(Mutex<Inner>, Alive);

impl Token {
    /// Whether it was cancelled, and why.
    pub fn reason(&self) -> Option<Arc<str>> {
        self.0.lock().reason.clone()
    }

    /// Stops all its jobs, and those that it will be given; whether it is the first time.
    pub fn cancel(&self, reason: &Arc<str>) -> bool {
        let (jobs, waiters) = {
            let mut inner = self.0.lock();
            if inner.reason.is_some() {
                return false;
            }
            inner.reason = Some(Arc::clone(reason));
            (std::mem::take(&mut inner.jobs), std::mem::take(&mut inner.waiters))
        };
        waiters.into_iter().for_each(Wake::wake);
        // The newest first: those that are queued, before a worker that one of the others leaves takes them.
        for job in jobs.iter().rev().filter_map(Weak::upgrade) {
            reaper::stop(&job, Cause::Cancelled(Arc::clone(reason)));
        }
        true
    }

    /// Wakes a session when it is cancelled, or at once if it was.
    pub fn wait(&self, knock: Knock) {
        let mut inner = self.0.lock();
        if inner.reason.is_some() {
            drop(inner);
            knock.wake();
        } else {
            inner.waiters.push(knock);
        }
    }

    /// A session waits no longer.
    pub fn leave(&self, wait: Wait) {
        self.0.lock().waiters.retain(|other| other.wait() != wait);
    }

    /// Stops this job too when it is cancelled, or at once if it was.
    pub fn add(&self, job: &Arc<Control>) {
        let mut inner = self.0.lock();
        if let Some(reason) = inner.reason.clone() {
            drop(inner);
            reaper::stop(job, Cause::Cancelled(reason));
            return;
        }
        if inner.jobs.len() >= inner.purge {
            inner.jobs.retain(|job| job.upgrade().is_some_and(|job| !job.has_ended()));
            inner.purge = 64.max(2 * inner.jobs.len());
        }
        inner.jobs.push(Arc::downgrade(job));
    }
}

impl Object for Token {
    fn kind(&self) -> u32 {
        kind::TOKEN
    }
}
