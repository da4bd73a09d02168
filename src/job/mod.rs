//! A job, from its submission to its outcome: one box that goes to the pool, to a worker and back.
//!
//! Called by `pool`, `vm` and `host`. Knows no Lua: values are a [`Message`].
//!
//! The same [`Parcel`] carries the closure there and the outcome back, so a round trip allocates nothing that the
//! submitter cannot use again for its next job.

mod control;
mod deliver;
mod station;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

pub use control::{Cause, Control, Keeper, Stop, Todo, request};
pub use deliver::{deliver, fail, report, report_text};
pub use station::{Place, Station};

use crate::{
    locks::Ancestors,
    mailbox::{Mailbox, Node},
    sleep::Rank,
    sync::Aligned,
    wire::Message,
};

/// How the submitter awaits the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A session (or the blocked host) waits for the outcome.
    #[default]
    Sync,
    /// Nobody waits; a failure is reported. A completion, if there is one, runs where the job ran.
    Async,
    /// The submitter's scheduler runs a completion with the outcome.
    Scheduled,
    /// The outcome is kept, for whoever will ask.
    Kept,
}

/// Where the outcome of a job of mode `Kept` goes.
pub trait Sink: fmt::Debug + Send + Sync {
    /// The job is about to be queued.
    fn submitted(&self, control: &Arc<Control>);
    /// Who would ask for the outcome is stopped too.
    fn forget(&self);
    /// A worker begins with the job.
    fn begin(&self);
    /// The job has ended.
    fn end(&self, outcome: Message, ok: bool);
}

/// What a parcel in a mailbox means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A job on its way to a worker (never in a mailbox).
    #[default]
    Job,
    /// The job's end: `true, results…` or `false, error, info`.
    Outcome,
    /// The failure of a job or completion that nobody waits for: `error, info`.
    Report,
    /// What the ticket waited for has come (room in a queue, the end of a pool).
    Signal,
    /// The job in the slot that is the ticket, which has this control, is to be stopped.
    Stop,
}

/// The mailbox of one VM, and what else other threads know of that VM. Once the VM is gone, the mailbox is closed.
#[derive(Debug)]
pub struct Inbox {
    /// Its events.
    pub mailbox: Mailbox<Parcel>,
    /// For a host: asynchronous jobs accepted in its name that have not ended; its exit waits for them.
    pending: Aligned<AtomicUsize>,
}

impl Inbox {
    /// An inbox for a VM that waits on the mailbox's waker.
    pub fn new(mailbox: Mailbox<Parcel>) -> Arc<Self> {
        Arc::new(Self { mailbox, pending: Aligned(AtomicUsize::new(0)) })
    }

    /// One asynchronous job more.
    pub fn begin_pending(&self) {
        self.pending.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less; the last one wakes a host that waits to exit. Releases what the job did to that host's acquire.
    pub fn end_pending(&self) {
        let less = |count: usize| count.checked_sub(1);
        // In a fork's child, an inbox ends what it has not begun: the completion in which the fork was.
        if self.pending.0.fetch_update(Ordering::Release, Ordering::Relaxed, less) == Ok(1) {
            self.mailbox.waker().wake();
        }
    }

    /// Whether another thread holds this inbox: if none does, nothing can come.
    pub fn has_company(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 2
    }

    /// How many asynchronous jobs are still to end.
    pub fn pending(&self) -> usize {
        self.pending.0.load(Ordering::Acquire)
    }
}

/// The pools in which a job has ancestors that wait for it, without repetition: so at most as long as there are pools.
#[derive(Debug)]
pub struct Chain {
    pool: u32,
    parent: Option<Arc<Chain>>,
}

impl Chain {
    /// `parent` and a waiting job in `pool`.
    pub fn extend(parent: Option<&Arc<Chain>>, pool: u32) -> Arc<Chain> {
        match parent {
            Some(chain) if Self::contains(Some(chain), pool) => Arc::clone(chain),
            _ => Arc::new(Chain { pool, parent: parent.cloned() }),
        }
    }

    /// Whether a job in `pool` waits.
    pub fn contains(chain: Option<&Arc<Chain>>, pool: u32) -> bool {
        let mut at = chain;
        while let Some(link) = at {
            if link.pool == pool {
                return true;
            }
            at = link.parent.as_ref();
        }
        false
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Parcel {
    /// What it means where it is.
    pub kind: Kind,
    /// How the submitter awaits it.
    pub mode: Mode,
    /// Which limits on sessions it is exempt from.
    pub rank: Rank,
    /// The submitter keeps, under that ticket, the objects of which the outcome may speak.
    pub kept: bool,
    /// The pool's id.
    pub pool: u32,
    /// Which state of the host's module paths the job expects (see `registry`).
    pub paths: u32,
    /// The submitter's name for whatever waits.
    pub ticket: u64,
    /// Unique in the process.
    pub id: u64,
    /// Where the outcome goes; it may name the inbox that it is in.
    pub reply: Option<Arc<Inbox>>,
    /// The host in whose name it runs, if that is not `reply`: reports go there.
    pub root: Option<Arc<Inbox>>,
    rare: Option<Box<Rare>>,
    /// The closure, and later the outcome.
    pub message: Message,
}

/// What only few jobs have. It is apart, so that a parcel is of two cache lines: they go from core to core and back.
#[derive(Debug, Default)]
pub struct Rare {
    /// The submitting job's slot in its VM, for a synchronous job of a job.
    pub parent: Option<usize>,
    /// What the user calls it, for errors and statistics.
    pub name: Option<Arc<str>>,
    /// The ancestors that wait for it.
    pub chain: Option<Arc<Chain>>,
    /// Where its outcome goes, if not to `reply`.
    pub sink: Option<Arc<dyn Sink>>,
    /// What others may do to it, if anything.
    pub control: Option<Arc<Control>>,
    /// It is an outcome that somebody else than its worker has sent, who may still be reading what was lent to it.
    pub early: bool,
    /// The sessions that wait for it, of those that have had to do with locks.
    pub ancestors: Ancestors,
}

static NOTHING_RARE: Rare =
    Rare { parent: None, name: None, chain: None, sink: None, control: None, early: false, ancestors: None };

// With the link to the next and the allocator's word, 128 bytes: what glibc keeps for reuse without merging it.
const _: () = assert!(size_of::<Node<Parcel>>() <= 120);

impl Parcel {
    /// What it has of what only few have.
    #[inline]
    pub fn rare(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&NOTHING_RARE)
    }

    /// The same, to be changed.
    pub fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// The same, if there is anything.
    #[inline]
    pub fn any_rare(&mut self) -> Option<&mut Rare> {
        self.rare.as_deref_mut()
    }

    /// The host in whose name it runs.
    pub fn host(&self) -> Option<&Arc<Inbox>> {
        self.root.as_ref().or(self.reply.as_ref())
    }

    /// Whether its outcome goes to `reply` whatever has become of it.
    pub fn replies(&self) -> bool {
        let rare = self.rare();
        matches!(self.mode, Mode::Sync | Mode::Scheduled) && rare.control.is_none() && rare.sink.is_none()
    }
}

/// A parcel with the link that mailboxes need.
pub type Job = Box<Node<Parcel>>;

/// A new, empty one.
pub fn new_job() -> Job {
    Node::new(Parcel::default())
}

/// A signal for `ticket`.
pub fn signal(ticket: u64) -> Job {
    Node::new(Parcel { kind: Kind::Signal, ticket, ..Parcel::default() })
}

/// How many ids one VM takes at a time, so that the shared counter is touched rarely.
const BLOCK: u64 = 1024;
static NEXT_BLOCK: AtomicU64 = AtomicU64::new(1);

/// Job ids for one VM: unique in the process, in order within a VM.
#[derive(Debug, Default)]
pub struct Ids {
    next: u64,
    end: u64,
}

impl Ids {
    /// A new one.
    pub fn issue(&mut self) -> u64 {
        if self.next == self.end {
            self.next = NEXT_BLOCK.fetch_add(BLOCK, Ordering::Relaxed);
            self.end = self.next + BLOCK;
        }
        let id = self.next;
        self.next += 1;
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_each_pool_once() {
        let one = Chain::extend(None, 1);
        let two = Chain::extend(Some(&one), 2);
        let again = Chain::extend(Some(&two), 1);
        assert!(Arc::ptr_eq(&two, &again));
        assert!(Chain::contains(Some(&two), 1) && Chain::contains(Some(&two), 2));
        assert!(!Chain::contains(Some(&two), 3));
    }

    #[test]
    fn ids_of_two_vms_differ() {
        let (mut one, mut two) = (Ids::default(), Ids::default());
        let mut seen = std::collections::HashSet::new();
        for _ in 0..3 * BLOCK {
            assert!(seen.insert(one.issue()));
            assert!(seen.insert(two.issue()));
        }
    }
}
