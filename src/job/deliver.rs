//! The way of an outcome to whoever awaits it.

use super::{Inbox, Job, Kind, Mode, new_job};
use crate::{outcome, wire::Message};

/// Brings an ended job's outcome (its message) to whoever awaits it, unless somebody has ended the job before.
pub fn deliver(mut job: Job, ok: bool) {
    if let Some(control) = job.value.any_rare().and_then(|rare| rare.control.take())
        && !control.finish()
    {
        return;
    }
    let reply = job.value.reply.take();
    if let Some(sink) = job.value.any_rare().and_then(|rare| rare.sink.take()) {
        let root = job.value.root.take().or(reply);
        sink.end(std::mem::take(&mut job.value.message), ok);
        if let Some(root) = root {
            root.end_pending();
        }
        return;
    }
    if job.value.mode != Mode::Async {
        job.value.kind = Kind::Outcome;
        if let Some(reply) = reply {
            reply.mailbox.push(job);
        }
        return;
    }
    let Some(root) = job.value.root.take().or(reply) else { return };
    if !ok {
        job.value.kind = Kind::Report;
        root.mailbox.push(job);
    }
    root.end_pending();
}

/// Ends a job with a failure that no Lua made.
pub fn fail(mut job: Job, pool: &str, kind: &str, text: &str, traceback: &str) {
    let id = job.value.id;
    outcome::failure(&mut job.value.message, text, traceback, kind, Some((pool, id)));
    deliver(job, false);
}

/// Reports a failure (a message `false, error, info`) that nobody waits for.
pub fn report(host: &Inbox, message: Message) {
    let mut job = new_job();
    job.value.kind = Kind::Report;
    job.value.message = message;
    host.mailbox.push(job);
}

/// Reports what no Lua has found.
pub fn report_text(host: &Inbox, text: &str) {
    let mut message = Message::default();
    outcome::failure(&mut message, text, text, "error", None);
    report(host, message);
}
