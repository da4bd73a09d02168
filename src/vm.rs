//! One VM's side of the traffic: its inbox, timers, jobs in progress, and what it does when nothing is ready.
//!
//! Called by `host` (the functions that Lua sees) and `worker`. A host and a worker are the same here, but that a
//! worker also asks its pool for jobs. Everything is of one thread but the inbox; no borrow is held while Lua may run.

use std::{
    cell::{Cell, RefCell},
    ffi::c_void,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    changes, decode, encode,
    error::{Error, Result},
    functions::Functions,
    handles,
    isolate::{self, Isolate},
    lease::Lease,
    job::{self, Cause, Chain, Control, Ids, Inbox, Job, Keeper, Kind, Mode, Rare, Sink, Station, Stop, deliver, new_job},
    luajit::{ffi, lua_State},
    locks::{Ancestor, Ancestors, Held, Left, Session, Wait, Wake},
    mailbox::{Mailbox, Taken},
    memory::Memory,
    origin::Origin,
    pool::{Keeps, Load, Pool, Turn, Worker},
    reaper, registry,
    sleep::Rank,
    timer::Timers,
    waker::{self, Patience, SPINS, Waker},
    wire::{self, Message},
};

/// Paths that nobody has told.
const NO_PATHS: u32 = u32::MAX;
/// Every so many turns a worker looks for a job before its events, or sessions that sleep shortly again and again would
/// keep new jobs out.
const JOBS_FIRST: u32 = 31;
/// How many spare parcels a host keeps; and a worker, where those of asynchronous jobs end, which it has little use
/// for.
const SPARE: usize = 4096;
const WORKER_SPARE: usize = 128;
/// How many bytes the buffers of those may have that are not small, together.
const MOST_LARGE: usize = 8 << 20;
/// How many spare origins a VM keeps.
const SPARE_ORIGINS: usize = 4;

/// What [`Vm::next`] found.
#[derive(Debug)]
pub enum Next {
    /// Nothing, though perhaps a signal or a change in what the caller waits for.
    Nothing,
    /// A job to run, in this slot.
    Job(usize),
    /// An outcome or a report.
    Event(Job),
    /// What a ticket waited for.
    Signal(u64),
    /// The time of a ticket is over.
    Timer(u64),
    /// The jobs in progress are not to wait any longer.
    Stop,
    /// The job in this slot is to be stopped.
    StopJob(usize, Arc<Control>),
    /// The worker is to end.
    End,
    /// The process is a fork's child: what was under way is not here.
    Lost,
}

/// A job in progress on a worker.
#[derive(Debug)]
pub struct Running {
    /// Its parcel; the message is the closure until it is opened.
    pub job: Job,
    /// What it came in, if its outcome is to speak of that.
    pub origin: Option<Box<Origin>>,
    started: Instant,
    /// Its code has ended, and what it ended with is known: what follows is not stopped with it.
    is_settled: bool,
}

impl Running {
    /// What it may be stopped by.
    fn control(&self) -> Option<&Arc<Control>> {
        self.job.value.rare().control.as_ref().filter(|_| !self.is_settled)
    }
}

/// A lock that a session has.
#[derive(Clone, Debug)]
pub enum HeldLock {
    /// A mutex.
    Mutex(Arc<handles::Mutex>),
    /// A reader-writer lock.
    RwLock(Arc<handles::RwLock>),
}

impl HeldLock {
    /// The address of the object.
    pub fn address(&self) -> *const c_void {
        match self {
            Self::Mutex(mutex) => Arc::as_ptr(mutex).cast(),
            Self::RwLock(lock) => Arc::as_ptr(lock).cast(),
        }
    }

    /// The session has it no more, nor waits for it; whether it had it.
    fn abandon(&self, session: Session) -> bool {
        let mut waits = handles::order();
        let (knocks, had): (Vec<_>, bool) = match self {
            Self::Mutex(mutex) => {
                let (knock, had) = mutex.lock.abandon(&mut waits, session);
                (knock.into_iter().collect(), had)
            }
            Self::RwLock(lock) => lock.lock.abandon(&mut waits, session),
        };
        drop(waits);
        knocks.into_iter().for_each(Wake::wake);
        had
    }

    /// What it is for those that wait.
    pub fn held(&self) -> &dyn Held {
        match self {
            Self::Mutex(mutex) => &**mutex,
            Self::RwLock(lock) => &**lock,
        }
    }
}

/// What a session waits for.
#[derive(Debug)]
pub enum Awaited {
    /// A lock.
    Lock(Session, HeldLock),
    /// A condition.
    Condition(Session, Arc<handles::Condition>),
    /// A channel.
    Channel(Arc<handles::Channel>),
    /// Any of some futures.
    Futures(Vec<Arc<handles::Future>>),
    /// Room in a pool's queue, or a token's being cancelled.
    Room(Arc<Pool>, Option<Arc<handles::Token>>),
}

fn any_has_lock(ancestors: &Ancestors) -> bool {
    let mut next = ancestors.as_ref();
    while let Some(ancestor) = next {
        if ancestor.has_lock {
            return true;
        }
        next = ancestor.parent.as_ref();
    }
    false
}

/// Buffers of one encoding or decoding.
#[derive(Debug, Default)]
pub struct Scratch {
    /// For `encode`.
    pub encode: encode::Scratch,
    /// For `decode`.
    pub decode: decode::Scratch,
    /// For `changes`.
    pub changes: changes::Scratch,
}

/// See the module.
#[derive(Debug)]
pub struct Vm {
    /// What it knows of functions.
    pub functions: Functions,
    /// For a worker: its side of the pool.
    pub worker: Option<Worker>,
    /// For a worker: its memory.
    pub memory: Option<Rc<Memory>>,
    /// Modules that it was told to load for the message at hand; if one is still not there, decoding says so.
    pub modules: RefCell<FxHashSet<Arc<str>>>,
    /// A message made for the next `create`.
    pub packed: RefCell<Option<Arc<Message>>>,
    /// Which of the host's module paths it has.
    pub paths: Cell<u32>,
    inbox: RefCell<Arc<Inbox>>,
    taken: RefCell<Taken<crate::job::Parcel>>,
    /// Events put back, the next one last.
    held: RefCell<Vec<Job>>,
    /// Events that need a module which is being loaded, with its name.
    parked: RefCell<Vec<(Arc<str>, Job)>>,
    /// Those modules.
    loading: RefCell<Vec<Arc<str>>>,
    timers: RefCell<Timers>,
    running: RefCell<Vec<Option<Running>>>,
    vacant: RefCell<Vec<usize>>,
    sessions: Cell<usize>,
    /// Jobs in progress that wait for another job.
    waiting: Cell<usize>,
    /// The host in whose name the worker last worked.
    root: RefCell<Option<Arc<Inbox>>>,
    /// Of completions that this worker's scheduler is to run: who waits for them to end.
    scheduled: RefCell<FxHashMap<u64, Arc<Inbox>>>,
    /// A job pushed without a wake, because this worker would look for it next.
    quiet: Cell<u64>,
    patience: Patience,
    /// The pool's init runs: no job begins but those that it waits for.
    initializing: Cell<bool>,
    deep: Cell<bool>,
    /// There is no memory for new jobs.
    full: Cell<bool>,
    turns: Cell<u32>,
    /// The session that runs is not to be used again as it is (`host/direct.rs`).
    pub touched: Cell<bool>,
    /// The slot that the session made for `turn` has in Lua.
    pub direct_slot: Cell<Option<usize>>,
    /// Lua takes the session of `turn` for the running one.
    pub is_direct: Cell<bool>,
    /// Registry reference of a function whose upvalue is the running session; 0 is none.
    pub current: Cell<std::ffi::c_int>,
    /// The scheduler's Lua is loaded.
    pub has_scheduler: Cell<bool>,
    /// When the last job ended, if nothing else has been done since: then the next one begins.
    ended: Cell<Option<Instant>>,
    /// The job that `turn` is about to run, or has run: should memory run out there, that is what is lost.
    pub in_hand: Cell<Option<usize>>,
    /// Completions of this VM's scheduler that are awaited or run.
    pub completions: Cell<isize>,
    tickets: Cell<u64>,
    spare_tickets: RefCell<Vec<u64>>,
    /// A signal ended the last wait, and nothing was waited for since.
    interrupted: Cell<bool>,
    generation: Cell<u32>,
    ids: RefCell<Ids>,
    spare: RefCell<Vec<Job>>,
    large: Cell<usize>,
    #[allow(clippy::vec_box, reason = "as `scratch`")]
    origins: RefCell<Vec<Box<Origin>>>,
    #[allow(clippy::vec_box, reason = "taken and given back as boxes: a call moves a pointer, not the maps")]
    scratch: RefCell<Vec<Box<Scratch>>>,
    pools: RefCell<Vec<Option<KnownPool>>>,
    /// A worker's VM for isolated executions, if it has one that can be used again; and buffers.
    pub isolate: RefCell<Option<Box<Isolate>>>,
    /// See `isolate`.
    pub isolate_scratch: RefCell<Option<Box<isolate::Scratch>>>,
    /// Locks that sessions of this VM have.
    pub locks: RefCell<Vec<(Session, HeldLock)>>,
    /// What sessions of this VM wait for, by ticket: to be left when the VM ends.
    pub awaited: RefCell<FxHashMap<u64, Awaited>>,
    /// Strings that were lent to jobs whose outcomes have not come, by ticket.
    leases: RefCell<FxHashMap<u64, Vec<Arc<Lease>>>>,
}

/// A pool that a VM knows.
#[allow(clippy::redundant_allocation, reason = "the count of this thread's is not shared with others")]
pub type KnownPool = Rc<Arc<Pool>>;

/// What `submit` is asked for, besides the message.
#[derive(Debug)]
pub struct Order {
    /// Who awaits it.
    pub mode: Mode,
    /// The submitter's name for the wait.
    pub ticket: u64,
    /// The slot of the submitting job, if it is one.
    pub slot: Option<usize>,
    /// What the user calls it.
    pub name: Option<Arc<str>>,
    /// Where the outcome goes, for the mode `Kept`.
    pub sink: Option<Arc<dyn Sink>>,
    /// The submitting session, if it has a number: it has had to do with locks.
    pub session: Option<Session>,
    /// The submitter looks for work right after.
    pub quiet: bool,
    /// It has a completion that runs where it does.
    pub completes: bool,
    /// When it is to be ended, if ever.
    pub limits: Option<Limits>,
}

/// What ends a job before it has ended itself.
#[derive(Debug)]
pub struct Limits {
    /// When the user's call was made, and how long after the job is to be over.
    pub timeout: Option<(Instant, Duration)>,
    /// Cancelling this ends it.
    pub token: Option<Arc<handles::Token>>,
}

impl Keeps for Vm {
    fn keeps(&self) -> bool {
        let mut keeps = false;
        self.each_memory(|memory| keeps |= memory.keeps());
        keeps
    }

    fn release(&self) {
        self.each_memory(Memory::release);
    }
}

impl Vm {
    /// A VM around an inbox that this thread (a worker's) or any (a host's) waits on.
    pub fn new(
        functions: Functions,
        inbox: Arc<Inbox>,
        worker: Option<Worker>,
        memory: Option<Rc<Memory>>,
    ) -> Self {
        Self {
            functions,
            worker,
            memory,
            modules: RefCell::default(),
            packed: RefCell::default(),
            paths: Cell::new(NO_PATHS),
            inbox: RefCell::new(inbox),
            taken: RefCell::new(Taken::none()),
            held: RefCell::default(),
            parked: RefCell::default(),
            loading: RefCell::default(),
            timers: RefCell::default(),
            running: RefCell::default(),
            vacant: RefCell::default(),
            sessions: Cell::new(0),
            waiting: Cell::new(0),
            root: RefCell::default(),
            scheduled: RefCell::default(),
            quiet: Cell::new(0),
            patience: Patience::default(),
            initializing: Cell::new(false),
            deep: Cell::new(false),
            full: Cell::new(false),
            interrupted: Cell::new(false),
            turns: Cell::new(0),
            touched: Cell::new(false),
            direct_slot: Cell::new(None),
            is_direct: Cell::new(false),
            current: Cell::new(0),
            has_scheduler: Cell::new(false),
            ended: Cell::new(None),
            in_hand: Cell::new(None),
            completions: Cell::new(0),
            tickets: Cell::new(0),
            spare_tickets: RefCell::default(),
            generation: Cell::new(registry::generation()),
            ids: RefCell::default(),
            spare: RefCell::default(),
            large: Cell::new(0),
            origins: RefCell::default(),
            scratch: RefCell::default(),
            pools: RefCell::default(),
            leases: RefCell::default(),
            isolate: RefCell::default(),
            isolate_scratch: RefCell::default(),
            locks: RefCell::default(),
            awaited: RefCell::default(),
        }
    }

    /// Its inbox.
    pub fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox.borrow())
    }

    /// Buffers for one encoding or decoding; give them back.
    pub fn take_scratch(&self) -> Box<Scratch> {
        self.scratch.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives buffers back.
    pub fn return_scratch(&self, scratch: Box<Scratch>) {
        self.scratch.borrow_mut().push(scratch);
    }

    /// Room for what a job came in.
    pub fn take_origin(&self) -> Box<Origin> {
        self.origins.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives it back.
    pub fn return_origin(&self, mut origin: Box<Origin>) {
        origin.clear();
        let mut origins = self.origins.borrow_mut();
        // Each may have large buffers; few jobs of one VM are in progress at a time.
        if origins.len() < SPARE_ORIGINS {
            origins.push(origin);
        }
    }

    /// Notes what was lent to the job that has this ticket.
    pub fn lend(&self, ticket: u64, leases: &[Arc<Lease>]) {
        if !leases.is_empty() {
            self.leases.borrow_mut().insert(ticket, leases.to_vec());
        }
    }

    /// The job's outcome has come: nobody reads what was lent to it. But if the outcome is `early`, somebody may.
    pub fn take_back(&self, ticket: u64, early: bool) {
        let mut leases = self.leases.borrow_mut();
        if !leases.is_empty() {
            let lent = leases.remove(&ticket);
            if early {
                lent.iter().flatten().for_each(|lease| lease.withdraw());
            }
        }
    }

    /// Makes all that is lent independent of this VM's memory, which is about to be freed.
    pub fn withdraw(&self) {
        for (_, leases) in self.leases.borrow_mut().drain() {
            leases.iter().for_each(|lease| lease.withdraw());
        }
    }

    /// A session has released a lock.
    #[inline]
    pub fn forget_lock(&self, session: Session, object: *const c_void) {
        let mut locks = self.locks.borrow_mut();
        // The last that was locked is most often the first to be released.
        let found = locks.iter().rposition(|(holder, lock)| *holder == session && std::ptr::eq(lock.address(), object));
        if let Some(place) = found {
            let (_, lock) = locks.swap_remove(place);
            drop(locks);
            drop(lock);
        }
    }

    /// A session has a lock; it may have had it before.
    pub fn note_lock(&self, session: Session, lock: HeldLock) {
        let mut locks = self.locks.borrow_mut();
        if !locks.iter().any(|(holder, known)| *holder == session && std::ptr::eq(known.address(), lock.address())) {
            locks.push((session, lock));
        }
    }

    /// A session has ended: releases the locks that it still had, and gives what is to be reported.
    pub fn end_session(&self, session: Session) -> Vec<String> {
        let mut left = Vec::new();
        loop {
            let mut locks = self.locks.borrow_mut();
            let Some(place) = locks.iter().position(|(holder, _)| *holder == session) else { break };
            let (_, lock) = locks.remove(place);
            drop(locks);
            if lock.abandon(session) {
                left.push(lock);
            }
        }
        let mut order = handles::order();
        let texts = left.iter().map(|lock| handles::left_locked(lock.held(), order.name_of(session))).collect();
        order.forget(session);
        texts
    }

    /// What tells the wait of a ticket from those of other VMs.
    pub fn wait_of(&self, ticket: u64) -> Wait {
        Wait { vm: Arc::as_ptr(&self.inbox.borrow()).addr(), ticket }
    }

    /// A session waits no longer for what has this ticket; `gone` if it was not to be woken, and is not going to try.
    /// Says how that wait ended, where it was for a channel.
    pub fn leave(&self, ticket: u64, gone: bool) -> Left {
        let awaited = self.awaited.borrow_mut().remove(&ticket);
        match awaited {
            Some(Awaited::Channel(channel)) => return channel.leave(self.wait_of(ticket), gone),
            Some(Awaited::Futures(futures)) => {
                let wait = self.wait_of(ticket);
                futures.iter().for_each(|future| future.leave(wait));
            }
            Some(Awaited::Room(pool, token)) => {
                if let Some(token) = token {
                    token.leave(self.wait_of(ticket));
                }
                pool.leave_room(&self.inbox(), ticket, gone);
            }
            Some(Awaited::Lock(session, lock)) if gone => drop(lock.abandon(session)),
            Some(Awaited::Condition(session, condition)) if gone => {
                let knock = condition.lock.abandon(&mut handles::order(), session);
                knock.into_iter().for_each(Wake::wake);
            }
            _ => {}
        }
        Left::Undone
    }

    /// This VM's sessions are gone, with what they had and waited for. What a worker's had is reported.
    pub fn end_sessions(&self) {
        let tickets: Vec<u64> = self.awaited.borrow().keys().copied().collect();
        for ticket in tickets {
            self.leave(ticket, true);
        }
        let sessions: FxHashSet<Session> = self.locks.borrow().iter().map(|(session, _)| *session).collect();
        for session in sessions {
            let left = self.end_session(session);
            self.report_left(self.slot_of(session), &left);
        }
    }

    /// Reports what a worker's session has left, which was the job in `slot`.
    pub fn report_left(&self, slot: Option<usize>, left: &[String]) {
        if let Some(host) = self.reports_to(slot) {
            left.iter().for_each(|text| job::report_text(&host, text));
        }
    }

    /// The slot of the job that has this session, if it is known.
    fn slot_of(&self, session: Session) -> Option<usize> {
        let is_its = |running: &Running| {
            let control = running.job.value.rare().control.as_ref();
            control.is_some_and(|control| control.session.load(Ordering::Acquire) == session)
        };
        self.running.borrow().iter().position(|running| running.as_ref().is_some_and(is_its))
    }

    /// An empty parcel.
    pub fn take_parcel(&self) -> Job {
        let Some(job) = self.spare.borrow_mut().pop() else { return new_job() };
        let capacity = job.value.message.bytes.capacity();
        if capacity > wire::SMALL {
            self.large.set(self.large.get().saturating_sub(capacity));
        }
        job
    }

    /// Keeps a parcel whose contents are no longer needed.
    pub fn return_parcel(&self, mut job: Job) {
        let mut spare = self.spare.borrow_mut();
        let most = if self.worker.is_some() { WORKER_SPARE } else { SPARE };
        if spare.len() < most {
            let parcel = &mut job.value;
            parcel.message.clear();
            let capacity = parcel.message.bytes.capacity();
            if capacity > wire::SMALL {
                if self.large.get() + capacity > MOST_LARGE {
                    parcel.message.bytes = wire::Bytes::new();
                } else {
                    self.large.set(self.large.get() + capacity);
                }
            }
            (parcel.reply, parcel.root) = (None, None);
            if let Some(rare) = parcel.any_rare() {
                *rare = Rare::default();
            }
            spare.push(job);
        }
    }

    /// The pool with this id; remembered, so that most calls take no lock.
    pub fn pool(&self, id: u32) -> Option<KnownPool> {
        let place = id as usize;
        if let Some(Some(pool)) = self.pools.borrow().get(place) {
            return Some(Rc::clone(pool));
        }
        let pool = Rc::new(registry::by_id(id)?);
        let mut pools = self.pools.borrow_mut();
        if pools.len() <= place {
            pools.resize(place + 1, None);
        }
        pools[place] = Some(Rc::clone(&pool));
        Some(pool)
    }

    /// Forgets a pool that was shut down.
    pub fn forget_pool(&self, id: u32) {
        if let Some(place) = self.pools.borrow_mut().get_mut(id as usize) {
            *place = None;
        }
    }

    /// Whether this is a child process that has not begun anew. If so, it begins: nothing of before will come.
    pub fn is_lost(&self) -> bool {
        if self.generation.get() == registry::generation() {
            return false;
        }
        self.generation.set(registry::generation());
        // The parent's threads may have held these at the fork; no destructor may touch them.
        std::mem::forget(std::mem::take(&mut *self.pools.borrow_mut()));
        std::mem::forget(self.held.take());
        std::mem::forget(self.parked.take());
        std::mem::forget(self.taken.replace(Taken::none()));
        self.scheduled.borrow_mut().clear();
        // In the parent; one that a thread there was reading would never end here.
        std::mem::forget(self.leases.take());
        std::mem::forget(self.awaited.take());
        std::mem::forget(self.locks.take());
        // The old one was counted as awake in the parent, and is not dropped here, like all that was under way.
        std::mem::forget(self.inbox.replace(Inbox::new(Mailbox::new(Waker::for_host()))));
        true
    }

    /// The largest outcome that a worker may send, in bytes.
    pub fn message_limit(&self) -> usize {
        self.worker.as_ref().map_or(u32::MAX as usize, |worker| worker.pool.config.max_message)
    }

    /// Whether this VM's worker is one of `pool`, whose queue its submits may exceed.
    pub fn works_for(&self, pool: &Pool) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.pool.id == pool.id)
    }

    /// Sends a parcel, whose message is the closure, to a pool that has admitted it; gives the job's id.
    pub fn submit(&self, pool: &Arc<Pool>, mut job: Job, order: Order) -> u64 {
        let id = self.ids.borrow_mut().issue();
        let running = self.running.borrow();
        let parent = order.slot.and_then(|slot| running.get(slot)?.as_ref());
        let parcel = &mut job.value;
        parcel.kind = Kind::Job;
        parcel.mode = order.mode;
        parcel.id = id;
        parcel.pool = pool.id;
        parcel.paths = self.paths.get();
        parcel.ticket = order.ticket;
        let above = parent.and_then(|parent| parent.job.value.rare().ancestors.clone());
        let ancestors = match order.session {
            _ if order.mode != Mode::Sync => None,
            Some(session) => {
                let has_lock = self.locks.borrow().iter().any(|(holder, _)| *holder == session);
                Some(Arc::new(Ancestor { session, has_lock, parent: above }))
            }
            None => above,
        };
        // Of a future, it may be the submitting job that waits.
        let mut chain = parent
            .filter(|_| matches!(order.mode, Mode::Sync | Mode::Kept))
            .map(|parent| Chain::extend(parent.job.value.rare().chain.as_ref(), parent.job.value.pool));
        if let (true, Some(worker)) = (self.initializing.get(), &self.worker) {
            chain = Some(Chain::extend(None, worker.pool.id));
        }
        parcel.rank = match &chain {
            Some(chain) if Chain::contains(Some(chain), pool.id) => Rank::Awaited,
            _ if any_has_lock(&ancestors) => Rank::Holding,
            Some(_) => Rank::Nested,
            None => Rank::Ordinary,
        };
        let waits_here = chain.as_ref().and(order.slot).filter(|_| order.mode == Mode::Sync);
        if waits_here.is_some() {
            self.waiting.set(self.waiting.get() + 1);
        }
        if order.name.is_some() || order.sink.is_some() || ancestors.is_some() || chain.is_some() {
            let rare = parcel.rare_mut();
            rare.parent = waits_here;
            rare.name = order.name;
            rare.chain = chain;
            rare.sink = order.sink;
            rare.ancestors = ancestors;
        }
        let inbox = self.inbox.borrow();
        // A host's own jobs name it once: each count of an inbox is one more to pull from another core.
        let root = match (&self.worker, parent) {
            (None, _) => None,
            (Some(_), Some(parent)) => parent.job.value.host().cloned(),
            (Some(_), None) => self.root.borrow().clone(),
        };
        // What waits for it is stopped with it.
        let above = parent.and_then(|parent| parent.job.value.rare().control.clone()).filter(|_| order.mode == Mode::Sync);
        drop(running);
        if order.mode != Mode::Sync {
            let root = root.as_ref().unwrap_or(&inbox);
            root.begin_pending();
            if order.mode == Mode::Scheduled && self.worker.is_some() {
                self.scheduled.borrow_mut().insert(order.ticket, Arc::clone(root));
            }
        }
        parcel.root = root;
        parcel.reply = Some(Arc::clone(&inbox));
        drop(inbox);
        let control = (above.is_some() || order.mode == Mode::Kept || order.limits.is_some()).then(|| {
            let timeout = order.limits.as_ref().and_then(|limits| limits.timeout);
            let keeper: Arc<dyn Keeper> = Arc::<Pool>::clone(pool);
            let submitted = timeout.map_or_else(Instant::now, |(submitted, _)| submitted);
            let after = timeout.map(|(_, timeout)| timeout);
            Control::new(parcel, order.completes, &pool.config.name, Arc::downgrade(&keeper), submitted, after)
        });
        if let Some(control) = &control {
            let rare = parcel.rare_mut();
            if let Some(sink) = &rare.sink {
                sink.submitted(control);
            }
            rare.control = Some(Arc::clone(control));
        }
        let token = order.limits.as_ref().and_then(|limits| limits.token.as_ref());
        if let (Some(control), Some(reason)) = (&control, token.and_then(|token| token.reason()))
            && !order.completes
        {
            // It is not queued at all.
            control.leave_queue();
            reaper::stop(control, Cause::Cancelled(reason));
            return id;
        }
        let worker = self.worker.as_ref().filter(|worker| worker.pool.id == pool.id);
        let quiet = order.quiet && worker.is_some();
        if quiet {
            self.announce();
            self.quiet.set(id);
        }
        pool.submit(job, worker, quiet);
        if let Some(control) = control {
            if let Some(stop) = above.and_then(|above| above.adopt(&control)) {
                reaper::stop(&control, Cause::Parent(stop));
            }
            if let Some(limits) = order.limits {
                reaper::watch(&control);
                if let Some(token) = limits.token {
                    token.add(&control);
                }
            }
        }
        id
    }

    /// The job in `slot` waits for these futures: those that it has sent itself are stopped with it.
    pub fn adopt(&self, slot: usize, futures: &[Arc<handles::Future>]) {
        let running = self.running.borrow();
        let parent = running.get(slot).and_then(|running| running.as_ref()?.job.value.rare().control.clone());
        drop(running);
        let Some(parent) = parent else { return };
        for child in futures.iter().filter(|future| future.parent() == parent.id()).filter_map(|future| future.control()) {
            if let Some(stop) = parent.adopt(child) {
                reaper::stop(child, Cause::Parent(stop));
            }
        }
    }

    /// The worker as those see it that stop its jobs.
    pub fn station(&self) -> Option<&Arc<Station>> {
        self.worker.as_ref().map(Worker::station)
    }

    /// The code of the job in `slot` runs from now on, or none of a job's; whether it is to be stopped.
    pub fn enter(&self, slot: Option<usize>) -> bool {
        let Some(station) = self.station() else { return false };
        let running = self.running.borrow();
        match slot.and_then(|slot| running.get(slot)?.as_ref()) {
            Some(running) => station.enter(running.control()),
            // A session of its own, or the pool's init: stopped with all.
            None => station.enter(None),
        }
    }

    /// Why the job in `slot` is to be stopped, if it is.
    pub fn stop_of(&self, slot: usize) -> Option<Stop> {
        let running = self.running.borrow();
        let control = running.get(slot)?.as_ref()?.control();
        let stop = control.and_then(|control| control.stop().cloned());
        stop.or_else(|| self.station()?.stops_all().cloned())
    }

    /// The code of the job in `slot` has ended: gives why it was stopped, if it was. With a completion, which follows,
    /// it is not stopped any more.
    pub fn settle_job(&self, slot: usize, completes: bool) -> Option<Stop> {
        let stop = self.stop_of(slot);
        if completes && let Some(Some(running)) = self.running.borrow_mut().get_mut(slot) {
            running.is_settled = true;
            if let Some(control) = &running.job.value.rare().control {
                control.leave();
            }
        }
        stop
    }

    /// The session of the job in `slot` has this number.
    pub fn note_session(&self, slot: usize, session: Session) {
        if let Some(Some(running)) = self.running.borrow().get(slot)
            && let Some(control) = &running.job.value.rare().control
        {
            control.session.store(session, Ordering::Release);
        }
    }

    /// Makes up for a job pushed quietly.
    fn announce(&self) {
        if self.quiet.replace(0) != 0
            && let Some(worker) = &self.worker
        {
            worker.announce();
        }
    }

    /// A completion that this VM's scheduler ran for `ticket` has ended.
    pub fn settle(&self, ticket: u64) {
        if self.worker.is_none() {
            self.inbox.borrow().end_pending();
        } else if let Some(root) = self.scheduled.borrow_mut().remove(&ticket) {
            root.end_pending();
        }
    }

    /// The completion with this ticket has run to its end.
    pub fn end_completion(&self, ticket: u64) {
        self.completions.set(self.completions.get() - 1);
        self.settle(ticket);
        self.release_ticket(ticket);
    }

    /// A ticket that nobody uses. Those that are done with are used again, so that what waits stays an array.
    pub fn new_ticket(&self) -> u64 {
        self.spare_tickets.borrow_mut().pop().unwrap_or_else(|| {
            self.tickets.set(self.tickets.get() + 1);
            self.tickets.get()
        })
    }

    /// Ends a ticket: nothing will come for it any more.
    pub fn release_ticket(&self, ticket: u64) {
        self.spare_tickets.borrow_mut().push(ticket);
    }

    /// How many tickets there are, used or not.
    pub fn tickets(&self) -> u64 {
        self.tickets.get()
    }

    /// Sets a timer.
    pub fn set_timer(&self, seconds: f64, ticket: u64) {
        // More than the clock can hold is "never"; ten years are enough for that.
        let after = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(Duration::from_secs(315_360_000));
        self.timers.borrow_mut().set(Instant::now() + after, ticket);
    }

    /// Ends the timer of a ticket that is used once.
    pub fn end_timer(&self, ticket: u64) {
        self.timers.borrow_mut().end(ticket);
    }

    /// The next event, job or timer. With `block`, waits for one; may give nothing all the same.
    ///
    /// # Safety
    /// `state` is this VM's, on this thread.
    pub unsafe fn next(&self, state: *mut lua_State, block: bool) -> Next {
        // SAFETY: the caller's promise; a field of the VM is read.
        let hooks = || unsafe { ffi::lua_gethookmask(state) };
        let Some(worker) = &self.worker else { return self.find_next(block, hooks) };
        worker.leave_lua();
        let next = self.find_next(block, hooks);
        // Whatever it does now, it does not look for jobs: others are to be woken for them.
        worker.leave_search();
        worker.enter_lua();
        next
    }

    fn find_next(&self, block: bool, hooks: impl Fn() -> std::ffi::c_int) -> Next {
        self.interrupted.set(false);
        if self.is_lost() {
            return Next::Lost;
        }
        if let Some(worker) = &self.worker {
            worker.station().leave();
        }
        self.turns.set(self.turns.get().wrapping_add(1));
        let mut jobs_first = self.turns.get().is_multiple_of(JOBS_FIRST);
        loop {
            if !jobs_first && let Some(event) = self.next_event() {
                self.forget_end();
                if let Some(worker) = &self.worker {
                    // It runs what waited for the event, and looks for no job meanwhile.
                    worker.leave_search();
                }
                self.announce();
                return event;
            }
            if let Some(worker) = &self.worker {
                if self.sessions.get() == 0 && (self.full.get() || worker.is_retired() || worker.is_superfluous()) {
                    // Full with nothing in progress: another worker, with a new VM, takes its place.
                    return Next::End;
                }
                if let Some(job) = worker.find(self.load()) {
                    if self.quiet.get() != job.value.id {
                        self.announce();
                    }
                    self.quiet.set(0);
                    match self.begin(worker, job) {
                        Some(slot) => return Next::Job(slot),
                        None => continue,
                    }
                }
            }
            if std::mem::take(&mut jobs_first) {
                continue;
            }
            if !block {
                return Next::Nothing;
            }
            self.forget_end();
            let timeout = {
                let timers = self.timers.borrow();
                if timers.is_empty() { None } else { timers.next_in(Instant::now()) }
            };
            let inbox = self.inbox();
            match &self.worker {
                Some(worker) => {
                    match worker.idle(&inbox, self.load(), timeout, self) {
                        Turn::End => return Next::End,
                        Turn::Stop => return Next::Stop,
                        Turn::Again => {}
                    }
                }
                None => {
                    let hooks_before = hooks();
                    if self.spin(&inbox, timeout) {
                        continue;
                    }
                    // A signal's handler that asks for the interpreter has run meanwhile: it would not end the wait.
                    if hooks() != hooks_before {
                        self.interrupted.set(true);
                        return Next::Nothing;
                    }
                    let begun = Instant::now();
                    let waited = inbox.mailbox.waker().wait(timeout);
                    self.patience.slept(begun.elapsed());
                    // Whatever woke us, the caller looks at its conditions once if there is no event.
                    self.interrupted.set(waited == waker::Wait::Interrupted);
                    return self.next_event().unwrap_or(Next::Nothing);
                }
            }
        }
    }

    /// Calls `act` with what keeps memory for jobs: of its own VM, and of that for isolated executions.
    fn each_memory(&self, mut act: impl FnMut(&Memory)) {
        if let Some(memory) = &self.memory {
            act(memory);
        }
        if let Some(isolate) = &*self.isolate.borrow() {
            act(isolate.memory());
        }
    }

    /// Jobs in progress, as `find` and `idle` count them.
    fn load(&self) -> Load {
        let is_retired = self.worker.as_ref().is_some_and(Worker::is_retired);
        if self.initializing.get() || self.deep.get() || self.full.get() || is_retired {
            // Room for nothing but what is waited for.
            return Load { sessions: usize::MAX, waiting: 0 };
        }
        Load { sessions: self.sessions.get(), waiting: self.waiting.get() }
    }

    /// Whether the stack is deep in waits that cannot suspend, so that no new job is to begin on top of them.
    pub fn set_deep(&self, deep: bool) {
        self.deep.set(deep);
    }

    /// Its memory is used up: it is to take no new job, and to end when those in progress have.
    pub fn retire(&self) {
        self.full.set(true);
        if let Some(worker) = &self.worker {
            worker.retire();
        }
    }

    /// The pool's init begins or has ended.
    pub fn set_initializing(&self, initializing: bool) {
        self.initializing.set(initializing);
    }

    /// Whether the job in `slot`, or one that waits for it, is one of this pool: then it must not wait for that pool's
    /// end.
    pub fn has_ancestor_in(&self, slot: Option<usize>, pool: u32) -> bool {
        let running = self.running.borrow();
        let parcel = slot.and_then(|slot| running.get(slot)?.as_ref()).map(|running| &running.job.value);
        parcel.is_some_and(|parcel| parcel.pool == pool || Chain::contains(parcel.rare().chain.as_ref(), pool))
    }

    /// Whether a signal ended the last wait. If the host's handler made the interpreter raise, nothing has been waited
    /// for since; after any other signal the scheduler goes on waiting.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.get()
    }

    /// Whether something came within a short spin; none is tried while no core is free for it.
    fn spin(&self, inbox: &Arc<Inbox>, timeout: Option<Duration>) -> bool {
        if !inbox.has_company() {
            return false;
        }
        // With more, a timer would come late.
        let rounds = if timeout.is_none() { waker::take_expected().max(self.patience.rounds()) } else { 1 };
        for round in 0..rounds {
            if !waker::core_is_free() {
                break;
            }
            for _ in 0..SPINS {
                if !inbox.mailbox.is_empty() {
                    self.patience.came(round);
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        false
    }

    /// An event that is here.
    fn next_event(&self) -> Option<Next> {
        loop {
            let next = self.next_of_any()?;
            // One that has ended meanwhile needs no stop.
            if let Next::StopJob(slot, control) = &next
                && !self.runs(*slot, control)
            {
                continue;
            }
            return Some(next);
        }
    }

    /// Whether the job with this control has this slot.
    fn runs(&self, slot: usize, control: &Arc<Control>) -> bool {
        let running = self.running.borrow();
        let own = running.get(slot).and_then(|running| running.as_ref()?.control());
        own.is_some_and(|own| Arc::ptr_eq(own, control))
    }

    fn next_of_any(&self) -> Option<Next> {
        let mut held = self.held.borrow_mut().pop();
        if held.is_none() {
            held = self.taken.borrow_mut().next();
        }
        if held.is_none() {
            let inbox = self.inbox.borrow();
            if !inbox.mailbox.is_empty() {
                let mut taken = inbox.mailbox.take();
                held = taken.next();
                *self.taken.borrow_mut() = taken;
            }
        }
        if let Some(mut job) = held {
            if job.value.any_rare().is_some_and(|rare| rare.parent.take().is_some()) {
                self.waiting.set(self.waiting.get().saturating_sub(1));
            }
            return Some(match job.value.kind {
                Kind::Signal => Next::Signal(job.value.ticket),
                Kind::Stop => match job.value.any_rare().and_then(|rare| rare.control.take()) {
                    Some(control) => Next::StopJob(job.value.ticket as usize, control),
                    None => Next::Nothing,
                },
                Kind::Job | Kind::Outcome | Kind::Report => Next::Event(job),
            });
        }
        let mut timers = self.timers.borrow_mut();
        if timers.is_empty() {
            return None;
        }
        timers.due(Instant::now()).map(Next::Timer)
    }

    /// Puts an event back, to be the next one.
    pub fn hold(&self, job: Job) {
        self.held.borrow_mut().push(job);
    }

    /// Puts an event aside until its module is loaded; whether the caller is to load it, since nobody does yet.
    pub fn park(&self, module: Arc<str>, job: Job) -> bool {
        let first = !self.is_loading(&module);
        if first {
            self.loading.borrow_mut().push(Arc::clone(&module));
        }
        self.parked.borrow_mut().push((module, job));
        first
    }

    /// Whether a module is being loaded for an event.
    pub fn is_loading(&self, module: &Arc<str>) -> bool {
        self.loading.borrow().contains(module)
    }

    /// The outcome for `ticket`, if it waits for a module: which waits for it, if somebody asks.
    pub fn unpark(&self, ticket: u64) -> Option<Job> {
        let mut parked = self.parked.borrow_mut();
        let place = parked.iter().position(|(_, job)| job.value.kind == Kind::Outcome && job.value.ticket == ticket)?;
        Some(parked.remove(place).1)
    }

    /// A module has been loaded, or cannot be: what needs it goes on.
    pub fn module_tried(&self, module: Arc<str>) {
        self.loading.borrow_mut().retain(|other| *other != module);
        let mut held = self.held.borrow_mut();
        let before = held.len();
        held.extend(self.parked.borrow_mut().extract_if(.., |(other, _)| *other == module).map(|(_, job)| job));
        if let Some(new) = held.get_mut(before..) {
            new.reverse();
        }
        self.modules.borrow_mut().insert(module);
    }

    /// Before a foreign event loop's turn is served: what has been signalled up to now is being looked at.
    pub fn acknowledge(&self) {
        self.inbox.borrow().mailbox.waker().acknowledge();
    }

    /// After it: the descriptor becomes readable at the next timer, or at once if sessions are ready.
    pub fn watch(&self, ready: bool) {
        let inbox = self.inbox.borrow();
        let waker = inbox.mailbox.waker();
        let timers = self.timers.borrow();
        waker.watch_until(if timers.is_empty() { None } else { timers.next_in(Instant::now()) });
        let left = !self.held.borrow().is_empty() || self.taken.borrow().has_more() || !inbox.mailbox.is_empty();
        if ready || left {
            waker.wake();
        }
    }

    /// Begins with a job, unless it has been ended while it was queued.
    fn begin(&self, worker: &Worker, job: Job) -> Option<usize> {
        if let Some(control) = &job.value.rare().control {
            let slot = self.vacant.borrow().last().copied().unwrap_or_else(|| self.running.borrow().len());
            if !control.begin(worker.station(), slot) {
                // It has been ended, or is about to be: its time is over.
                reaper::stop(control, Cause::Timeout);
                if !control.begin(worker.station(), slot) {
                    return None;
                }
            }
            if let Some(sink) = &job.value.rare().sink {
                sink.begin();
            }
        }
        worker.job_begins();
        let host = job.value.host();
        if host.map(Arc::as_ptr) != self.root.borrow().as_ref().map(Arc::as_ptr) {
            *self.root.borrow_mut() = host.cloned();
        }
        self.sessions.set(self.sessions.get() + 1);
        let started = self.ended.take().unwrap_or_else(Instant::now);
        let running = Some(Running { job, origin: None, started, is_settled: false });
        let mut slots = self.running.borrow_mut();
        if let Some(slot) = self.vacant.borrow_mut().pop()
            && let Some(place) = slots.get_mut(slot)
        {
            *place = running;
            return Some(slot);
        }
        slots.push(running);
        Some(slots.len() - 1)
    }

    /// The message of the job in `slot`, and what it came in, taken out while Lua may run; put them back with
    /// [`Vm::put_message`]. What the job is stays known meanwhile.
    pub fn take_message(&self, slot: usize) -> Option<(Message, Option<Box<Origin>>)> {
        let mut running = self.running.borrow_mut();
        let running = running.get_mut(slot)?.as_mut()?;
        Some((std::mem::take(&mut running.job.value.message), running.origin.take()))
    }

    /// Lets `write` make the outcome of the job in `slot`, if that was sent nothing which its outcome may speak of; `write`
    /// runs no Lua. Whether there is an outcome now.
    pub fn write_outcome(&self, slot: usize, write: impl FnOnce(&mut Message) -> Option<()>) -> bool {
        let mut running = self.running.borrow_mut();
        let Some(Some(running)) = running.get_mut(slot) else { return false };
        running.origin.is_none() && write(&mut running.job.value.message).is_some()
    }

    /// Which module paths the submitter of the job in `slot` has.
    pub fn paths_of(&self, slot: usize) -> Option<u32> {
        self.running.borrow().get(slot)?.as_ref().map(|running| running.job.value.paths)
    }

    /// Lets go of what the job in `slot` came in; whether there was anything.
    pub fn forget_origin(&self, slot: usize) -> bool {
        let origin = self.running.borrow_mut().get_mut(slot).and_then(|running| running.as_mut()?.origin.take());
        origin.map(|origin| self.return_origin(origin)).is_some()
    }

    /// Puts them back.
    pub fn put_message(&self, slot: usize, message: Message, origin: Option<Box<Origin>>) {
        if let Some(Some(running)) = self.running.borrow_mut().get_mut(slot) {
            running.job.value.message = message;
            running.origin = origin;
        }
    }

    /// Who awaits the job in `slot`.
    pub fn mode_of(&self, slot: usize) -> Option<Mode> {
        self.running.borrow().get(slot)?.as_ref().map(|running| running.job.value.mode)
    }

    /// Whether the job in `slot` can look at its environment as a table, which its coroutine is then to have too.
    pub fn has_open_environment(&self, slot: usize) -> bool {
        let running = self.running.borrow();
        let message = running.get(slot).and_then(|running| Some(&running.as_ref()?.job.value.message));
        message.and_then(|message| message.bytes.get(1)).is_some_and(|flags| flags & wire::flag::OPEN_ENV != 0)
    }

    /// Whether the job in `slot` expects other module paths than this VM has.
    pub fn wants_other_paths(&self, slot: usize) -> bool {
        self.paths_of(slot).is_some_and(|wanted| wanted != NO_PATHS && wanted != self.paths.get())
    }

    /// Puts it back.
    pub fn put_running(&self, slot: usize, running: Running) {
        if let Some(place) = self.running.borrow_mut().get_mut(slot) {
            *place = Some(running);
        }
    }

    /// The sessions that wait for the job in `slot`.
    pub fn ancestors(&self, slot: Option<usize>) -> Ancestors {
        let running = self.running.borrow();
        slot.and_then(|slot| running.get(slot)?.as_ref()).and_then(|running| running.job.value.rare().ancestors.clone())
    }

    /// `above`, and a session of this VM that cannot go on before; it is the job in `slot`, if it is one.
    pub fn with_ancestor(&self, above: Ancestors, session: Option<Session>, slot: Option<usize>) -> Ancestors {
        let mut all = above;
        let own = self.ancestors(slot);
        let mut next = own.as_ref();
        while let Some(ancestor) = next {
            all = Some(Arc::new(Ancestor { session: ancestor.session, has_lock: ancestor.has_lock, parent: all }));
            next = ancestor.parent.as_ref();
        }
        match session {
            Some(session) => Some(Arc::new(Ancestor { session, has_lock: false, parent: all })),
            None => all,
        }
    }

    /// The host in whose name the job in `slot` works, or this VM.
    pub fn host_of(&self, slot: Option<usize>) -> Arc<Inbox> {
        self.reports_to(slot).unwrap_or_else(|| self.inbox())
    }

    /// A number for a session, unique in the process.
    pub fn new_session(&self) -> Session {
        self.ids.borrow_mut().issue()
    }

    /// Id of the job in `slot`, its pool's name, and its own.
    pub fn describe(&self, slot: usize) -> Option<(u64, Arc<str>, Option<Arc<str>>)> {
        let running = self.running.borrow();
        let parcel = &running.get(slot)?.as_ref()?.job.value;
        let pool = self.worker.as_ref().map(|worker| Arc::clone(&worker.pool.config.name))?;
        Some((parcel.id, pool, parcel.rare().name.clone()))
    }

    /// The job in `slot` has ended; its message is the outcome.
    pub fn end(&self, slot: usize, ok: bool) {
        if let Some(job) = self.vacate(slot, ok) {
            self.deliver(job, ok);
        }
    }

    /// Something else is done than to begin with the next job.
    pub fn forget_end(&self) {
        self.ended.set(None);
    }

    /// The worker does not look for a job after all.
    pub fn end_search(&self) {
        if let Some(worker) = &self.worker {
            worker.leave_search();
        }
    }

    /// Before [`Vm::end`], if the worker looks for its next job right after that; else [`Vm::end_search`] follows.
    pub fn foresee_end(&self) {
        if let Some(worker) = &self.worker
            && self.sessions.get() == 1
        {
            worker.foresee_search();
        }
    }

    /// Ends the job in `slot` with a failure that no Lua made.
    pub fn fail(&self, slot: usize, kind: &str, text: &str) {
        let Some(job) = self.vacate(slot, false) else { return };
        let Some(worker) = &self.worker else { return };
        job::fail(job, &worker.pool.config.name, kind, text, text);
    }

    /// The jobs that those in progress wait for, and would end with.
    pub fn children(&self) -> Vec<Arc<Control>> {
        let running = self.running.borrow();
        let controls = running.iter().flatten().filter_map(|running| running.job.value.rare().control.as_ref());
        controls.flat_map(|control| control.children()).collect()
    }

    /// Ends all jobs in progress, with their VM. Who waits for one is to find its locks free.
    pub fn fail_running(&self, kind: &str, text: &str) {
        self.end_sessions();
        let slots = self.running.borrow().len();
        for slot in 0..slots {
            self.fail(slot, kind, text);
        }
    }

    /// Takes a job that has ended out of its slot.
    fn vacate(&self, slot: usize, ok: bool) -> Option<Job> {
        let running = self.running.borrow_mut().get_mut(slot)?.take()?;
        if let Some(worker) = &self.worker {
            worker.station().leave();
        }
        if let Some(control) = &running.job.value.rare().control {
            control.leave();
        }
        self.vacant.borrow_mut().push(slot);
        self.sessions.set(self.sessions.get().saturating_sub(1));
        if let Some(worker) = &self.worker {
            let now = Instant::now();
            worker.job_ended(now.duration_since(running.started), ok);
            // Where it searches, whoever gets the outcome may run on this core before there is a next job.
            self.ended.set((!worker.is_searching()).then_some(now));
        }
        Some(running.job)
    }

    fn deliver(&self, mut job: Job, ok: bool) {
        if ok && job.value.mode == Mode::Async {
            if job.value.rare().control.as_ref().is_some_and(|control| !control.finish()) {
                return;
            }
            if let Some(host) = job.value.host() {
                host.end_pending();
            }
            self.return_parcel(job);
            return;
        }
        // The worker has the inbox already: to let go of the job's would be to pull its count from another core.
        if let Some(root) = &*self.root.borrow()
            && job.value.replies()
            && job.value.reply.as_ref().is_some_and(|reply| Arc::ptr_eq(reply, root))
        {
            job.value.kind = Kind::Outcome;
            root.mailbox.push(job);
            return;
        }
        deliver(job, ok);
    }

    /// The host in whose name a worker's job in `slot` works, or has worked last.
    fn reports_to(&self, slot: Option<usize>) -> Option<Arc<Inbox>> {
        let running = self.running.borrow();
        let parent = slot.and_then(|slot| running.get(slot)?.as_ref());
        parent.and_then(|parent| parent.job.value.host().cloned()).or_else(|| self.root.borrow().clone())
    }

    /// Reports a failure (a message `false, error, info`) that nobody waits for, to the host of the job in `slot`.
    pub fn report(&self, slot: Option<usize>, message: Message) {
        if let Some(host) = self.reports_to(slot) {
            job::report(&host, message);
        }
    }

    /// The pool's admission, with this VM's exemptions.
    ///
    /// # Errors
    /// [`Error::PoolShutDown`], [`Error::PoolFull`].
    pub fn admit(&self, pool: &Arc<Pool>, slot: Option<usize>) -> Result<()> {
        // Waiting for room in a queue is waiting for its workers: those must not wait for us.
        let admitted = pool.admit(self.works_for(pool) || slot.is_some());
        if matches!(admitted, Err(Error::PoolShutDown(_))) {
            self.forget_pool(pool.id);
        }
        admitted
    }
}

impl Drop for Vm {
    /// Jobs that are still in progress end with their VM.
    fn drop(&mut self) {
        self.withdraw();
        self.end_sessions();
        self.inbox.borrow().mailbox.close();
        self.inbox.borrow().mailbox.waker().retire();
        let Some(worker) = &self.worker else { return };
        let text = format!("the worker of pool '{}' ended while the job was in progress", worker.pool.config.name);
        self.fail_running("shutdown", &text);
        for (_, root) in self.scheduled.get_mut().drain() {
            root.end_pending();
        }
    }
}
