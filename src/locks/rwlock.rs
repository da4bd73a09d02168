//! A lock for many readers or one writer, in the order in which they came: a writer that waits is passed by no new
//! reader.
//!
//! All of it is under the order: a reader's turn is longer than that, or a mutex would do.

use std::collections::VecDeque;

use super::{Guarded, Locked, Session, Settled, Unlocked, Waiter, Waits, Wake};

/// How a session has it, or wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Beside other readers.
    Read,
    /// Alone.
    Write,
}

#[derive(Debug)]
struct State<W> {
    writer: Option<Session>,
    /// Each reader, and how often it has locked.
    readers: Vec<(Session, u32)>,
    queue: VecDeque<(Waiter<W>, Access)>,
}

/// See the module.
#[derive(Debug)]
pub struct RwLock<W>(Guarded<State<W>>);

impl<W: Wake> State<W> {
    fn has(&self, session: Session) -> bool {
        self.writer == Some(session) || self.readers.iter().any(|(reader, _)| *reader == session)
    }

    fn add(&mut self, session: Session, access: Access) {
        match access {
            Access::Write => self.writer = Some(session),
            Access::Read => match self.readers.iter_mut().find(|(reader, _)| *reader == session) {
                Some((_, times)) => *times += 1,
                None => self.readers.push((session, 1)),
            },
        }
    }

    /// Lets in who can come in, from the front; gives those.
    fn admit(&mut self) -> Vec<(Session, Option<W>)> {
        let mut admitted = Vec::new();
        while let Some((_, access)) = self.queue.front() {
            let alone = self.writer.is_none() && self.readers.is_empty();
            let fits = alone || *access == Access::Read && self.writer.is_none();
            if !fits {
                break;
            }
            if let Some((waiter, access)) = self.queue.pop_front() {
                self.add(waiter.session, access);
                admitted.push((waiter.session, waiter.wake));
            }
        }
        admitted
    }
}

impl<W: Wake> RwLock<W> {
    /// A free one.
    pub fn new() -> Self {
        Self(Guarded::new(State { writer: None, readers: Vec::new(), queue: VecDeque::new() }))
    }

    /// Who has it: the writer, or the readers.
    pub fn holders(&self, waits: &mut Waits) -> Vec<Session> {
        let state = self.0.get(waits);
        state.writer.into_iter().chain(state.readers.iter().map(|(reader, _)| *reader)).collect()
    }

    /// Whether a writer has it.
    pub fn is_written(&self, waits: &mut Waits) -> bool {
        self.0.get(waits).writer.is_some()
    }

    /// Takes it, if it can be had now. A reader may read again, whoever waits.
    pub fn lock(&self, waits: &mut Waits, session: Session, access: Access) -> Locked {
        let state = self.0.get(waits);
        let reads = state.writer.is_none() && state.has(session);
        if state.has(session) && !(reads && access == Access::Read) {
            return Locked::Relocked;
        }
        let free = state.writer.is_none() && (access == Access::Read || state.readers.is_empty());
        if !(reads || free && state.queue.is_empty()) {
            return Locked::No;
        }
        state.add(session, access);
        Locked::Yes
    }

    /// Lets a session wait for it, that has just found it taken.
    pub fn enqueue(&self, waits: &mut Waits, waiter: Waiter<W>, access: Access) {
        self.0.get(waits).queue.push_back((waiter, access));
    }

    /// Releases it, as a reader or as the writer.
    pub fn unlock(&self, waits: &mut Waits, session: Session) -> Unlocked<W> {
        let state = self.0.get(waits);
        if state.writer == Some(session) {
            state.writer = None;
        } else if let Some(place) = state.readers.iter().position(|(reader, _)| *reader == session) {
            let times = state.readers.get_mut(place).map_or(0, |(_, times)| {
                *times -= 1;
                *times
            });
            if times == 0 {
                state.readers.swap_remove(place);
            }
        } else {
            return Unlocked::NotHeld(
                state.writer.or_else(|| state.readers.first().map(|(reader, _)| *reader)),
            );
        }
        Unlocked::Yes(self.admit(waits))
    }

    fn admit(&self, waits: &mut Waits) -> Vec<W> {
        let admitted = self.0.get(waits).admit();
        admitted
            .into_iter()
            .filter_map(|(session, wake)| {
                waits.end(session);
                wake
            })
            .collect()
    }

    /// What has become of a session's wait.
    pub fn settle(
        &self,
        waits: &mut Waits,
        session: Session,
        expired: bool,
        wake: impl FnOnce() -> W,
    ) -> Settled<W> {
        let state = self.0.get(waits);
        let Some(place) = state.queue.iter().position(|(waiter, _)| waiter.session == session) else {
            return Settled::Granted;
        };
        if expired {
            state.queue.remove(place);
            waits.end(session);
            // What stood behind it may come in.
            return Settled::Expired(self.admit(waits));
        }
        if let Some((waiter, _)) = state.queue.get_mut(place) {
            waiter.wake = Some(wake());
        }
        Settled::Waiting
    }

    /// A session is gone: it neither has it nor waits for it. Gives what to wake, and whether it had it.
    pub fn abandon(&self, waits: &mut Waits, session: Session) -> (Vec<W>, bool) {
        let state = self.0.get(waits);
        let had = state.has(session);
        if state.writer == Some(session) {
            state.writer = None;
        }
        state.readers.retain(|(reader, _)| *reader != session);
        state.queue.retain(|(waiter, _)| waiter.session != session);
        waits.end(session);
        (self.admit(waits), had)
    }
}

impl<W: Wake> Default for RwLock<W> {
    fn default() -> Self {
        Self::new()
    }
}
