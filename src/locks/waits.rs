//! Who waits for what, and whether a wait would close a cycle: what is under the order.

use std::{cell::UnsafeCell, collections::HashMap, fmt, hash::BuildHasherDefault, sync::Arc};

use rustc_hash::FxHasher;

use super::Session;

/// The sessions that wait for a job's outcome, the nearest first: its submitter, that one's submitter, and so on.
/// Also those on whose stack a session waits.
pub type Ancestors = Option<Arc<Ancestor>>;

/// A link of [`Ancestors`].
#[derive(Debug)]
pub struct Ancestor {
    /// Who waits.
    pub session: Session,
    /// It has a lock meanwhile, which others may wait for.
    pub has_lock: bool,
    /// Who waits for it in turn.
    pub parent: Ancestors,
}

/// A lock, as one who looks for cycles sees it.
pub trait Held: Send + Sync {
    /// Who has it.
    fn holders(&self, waits: &mut Waits) -> Vec<Session>;
    /// What it is called: `thread.mutex: 0x…`.
    fn name(&self) -> String;
}

/// A session's wait without a limit of time.
pub struct Waiting {
    /// For what.
    pub lock: Arc<dyn Held>,
    /// Where in the program.
    pub place: String,
    /// Who waits for the session, or cannot go on before this wait ends.
    pub ancestors: Ancestors,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting")
            .field("lock", &self.lock.name())
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// A session of a cycle: it waits for a lock that the next one has. The first one would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Who waits.
    pub session: Session,
    /// Where in the program.
    pub place: String,
    /// For what.
    pub lock: String,
    /// Who has that.
    pub holder: Session,
}

/// Why a wait would never end: from the session that asks, around to one that is held up by it.
pub type Cycle = Vec<Link>;

type Map<V> = HashMap<Session, V, BuildHasherDefault<FxHasher>>;

/// See the module.
#[derive(Debug)]
pub struct Waits {
    waiting: Map<Waiting>,
    /// Of a session that waits for a job, or that cannot go on before a wait on top of its stack has ended: the
    /// sessions that wait for locks there. The last holds up the others.
    descendants: Map<Vec<Session>>,
    /// What sessions are called.
    names: Map<String>,
}

impl Waits {
    /// Nobody waits.
    pub const fn new() -> Self {
        const fn empty<V>() -> Map<V> {
            HashMap::with_hasher(BuildHasherDefault::new())
        }
        Self { waiting: empty(), descendants: empty(), names: empty() }
    }

    /// Says what a session is called, until it is forgotten.
    pub fn name(&mut self, session: Session, name: String) {
        self.names.insert(session, name);
    }

    /// A session has ended.
    pub fn forget(&mut self, session: Session) {
        self.names.remove(&session);
        self.end(session);
    }

    /// What a session is called.
    pub fn name_of(&self, session: Session) -> &str {
        self.names.get(&session).map_or("a session that has ended", String::as_str)
    }

    /// A session begins to wait, unless that would never end.
    ///
    /// # Errors
    /// The cycle that the wait would close.
    pub fn begin(&mut self, session: Session, waiting: Waiting) -> Result<(), Cycle> {
        let mut search = Search {
            target: session,
            ancestors: waiting.ancestors.clone(),
            seen: Vec::new(),
            cycle: Vec::new(),
        };
        if search.leads_back(self, session, &waiting) {
            search.cycle.reverse();
            return Err(search.cycle);
        }
        self.begin_surely(session, waiting);
        Ok(())
    }

    /// A session begins to wait, whatever comes of it.
    pub fn begin_surely(&mut self, session: Session, waiting: Waiting) {
        let mut ancestors = waiting.ancestors.as_ref();
        while let Some(ancestor) = ancestors {
            self.descendants.entry(ancestor.session).or_default().push(session);
            ancestors = ancestor.parent.as_ref();
        }
        self.waiting.insert(session, waiting);
    }

    /// A session waits no longer.
    pub fn end(&mut self, session: Session) {
        let Some(waiting) = self.waiting.remove(&session) else { return };
        let mut ancestors = waiting.ancestors.as_ref();
        while let Some(ancestor) = ancestors {
            if let Some(below) = self.descendants.get_mut(&ancestor.session) {
                below.retain(|other| *other != session);
                if below.is_empty() {
                    self.descendants.remove(&ancestor.session);
                }
            }
            ancestors = ancestor.parent.as_ref();
        }
    }

    /// The session that holds up `session`: itself if it waits for a lock, or whoever does so in a job that it waits
    /// for.
    fn waits_through(&self, session: Session) -> Option<Session> {
        if self.waiting.contains_key(&session) {
            Some(session)
        } else {
            self.descendants.get(&session).and_then(|below| below.last().copied())
        }
    }
}

/// A search for a cycle that a wait would close.
struct Search {
    target: Session,
    ancestors: Ancestors,
    seen: Vec<Session>,
    /// Once it is found: its links, the last first.
    cycle: Cycle,
}

impl Search {
    /// Whether what `session` waits for is held up by the session that asks.
    fn leads_back(&mut self, waits: &mut Waits, session: Session, waiting: &Waiting) -> bool {
        for holder in waiting.lock.holders(waits) {
            if self.seen.contains(&holder) {
                continue;
            }
            self.seen.push(holder);
            if self.is_target(holder) || self.through(waits, holder) {
                let (place, lock) = (waiting.place.clone(), waiting.lock.name());
                self.cycle.push(Link { session, place, lock, holder });
                return true;
            }
        }
        false
    }

    /// Whether a session is the one that asks, or waits for a job of which that is a part.
    fn is_target(&self, session: Session) -> bool {
        let mut ancestors = self.ancestors.as_ref();
        while let Some(ancestor) = ancestors {
            if ancestor.session == session {
                return true;
            }
            ancestors = ancestor.parent.as_ref();
        }
        session == self.target
    }

    fn through(&mut self, waits: &mut Waits, holder: Session) -> bool {
        let Some(next) = waits.waits_through(holder) else { return false };
        // Taken out while it is followed: its lock looks at the waits.
        let Some(waiting) = waits.waiting.remove(&next) else { return false };
        let leads = self.leads_back(waits, next, &waiting);
        waits.waiting.insert(next, waiting);
        leads
    }
}

impl Default for Waits {
    fn default() -> Self {
        Self::new()
    }
}

/// A lock's state that is touched under the order alone: whoever has the `Waits` has it.
#[derive(Debug, Default)]
pub struct Guarded<T>(UnsafeCell<T>);

// SAFETY: access takes the one `Waits` of the process, exclusively.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    /// A state.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The state.
    #[allow(clippy::mut_from_ref, reason = "the borrow of `Waits` excludes every other")]
    pub fn get<'a>(&'a self, _: &'a mut Waits) -> &'a mut T {
        // SAFETY: there is one `Waits` for all users of this lock, borrowed for as long as the state is.
        unsafe { &mut *self.0.get() }
    }
}
