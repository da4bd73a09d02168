//! What the process has one of: the pools by name and id, the hosts' module paths, the count of hosts, `fork`.
//!
//! Called by `vm`, `worker` and `host`. Knows no Lua values.
//!
//! **Hosts.** Any number of Lua states may load the module; they see the same pools. When the last one closes, workers
//! end and the table is made anew for whoever comes next.
//!
//! **Fork.** Threads do not survive it. The handlers of `pthread_atfork` hold the workers back from Lua (see `gate`)
//! and the locks of this table and of the codes over the fork, so that the child finds them whole; the child puts pools
//! with the same ids and options in place of the old ones, which it forgets (their locks may be held by threads that
//! are no more). A VM sees by [`generation`] that it must begin anew.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    code,
    error::{Error, Result},
    gate, handles,
    locks::Waits,
    pool::{self, Config, Pool, Worker},
    reaper,
    sync::{Mutex, MutexGuard, RwLockWriteGuard},
    waker,
};

/// The id of the pool named `CPU`.
pub const CPU: u32 = 0;
/// The id of the pool named `IO`.
pub const IO: u32 = 1;
/// How many workers `IO` may have.
const IO_WORKERS: usize = 50;
/// How long the last host's close waits for workers that are in the middle of a job.
const GRACE: Duration = Duration::from_millis(200);

struct Table {
    run: fn(Box<Worker>),
    hosts: usize,
    /// By id. One that was shut down stays, for its handles.
    pools: Vec<Arc<Pool>>,
    names: HashMap<String, u32>,
    paths: Vec<Arc<Paths>>,
    /// Scripts' own globals are shared by all VMs.
    shares_globals: bool,
}

/// Where `require` looks, as the host has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// `package.path`
    pub path: Vec<u8>,
    /// `package.cpath`
    pub cpath: Vec<u8>,
}

static SHARED: Mutex<Option<Table>> = Mutex::new(None);
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// Changes in a child process: what a VM remembers of pools and jobs is void if it differs.
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// The table, or what to say when no host has loaded the module: only code that outlives all hosts can meet that.
fn with_table<T>(act: impl FnOnce(&mut Table) -> Result<T>) -> Result<T> {
    act(SHARED.lock().as_mut().ok_or_else(|| Error::PoolShutDown("CPU".to_owned()))?)
}

/// A Lua state of the program has loaded the module; `run` is what workers do.
pub fn host_opened(run: fn(Box<Worker>)) {
    static AT_FORK: OnceLock<()> = OnceLock::new();
    AT_FORK.get_or_init(|| {
        // SAFETY: the handlers are functions without captures, in a module that is never unloaded.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child)) };
    });
    let mut shared = SHARED.lock();
    let table = shared.get_or_insert_with(|| Table {
        run,
        hosts: 0,
        pools: Vec::new(),
        names: HashMap::new(),
        paths: Vec::new(),
        shares_globals: false,
    });
    if table.pools.is_empty() {
        table.insert(Config::named("CPU"));
        table.insert(Config { concurrency: IO_WORKERS, ..Config::named("IO") });
    }
    table.hosts += 1;
}

/// One of them closes; after the last, the workers end.
pub fn host_closed() {
    let pools: Vec<Arc<Pool>> = {
        let mut shared = SHARED.lock();
        let Some(table) = shared.as_mut() else { return };
        table.hosts -= 1;
        if table.hosts > 0 {
            return;
        }
        table.names.clear();
        table.pools.drain(..).collect()
    };
    for pool in &pools {
        pool.stop();
        pool.stop_jobs();
    }
    let deadline = Instant::now() + GRACE;
    for pool in &pools {
        pool.join(deadline);
    }
    if pools.iter().all(|pool| pool.inside().is_empty()) {
        reaper::rest();
    }
}

impl Table {
    fn insert(&mut self, config: Config) -> Arc<Pool> {
        let name = config.name.to_lowercase();
        let id = u32::try_from(self.pools.len()).unwrap_or(u32::MAX);
        let pool = Pool::new(id, config, self.run);
        self.pools.push(Arc::clone(&pool));
        self.names.insert(name, id);
        pool
    }
}

/// Creates a pool; the name of one that was shut down is free again.
///
/// # Errors
/// [`Error::PoolExists`].
pub fn create(config: Config) -> Result<Arc<Pool>> {
    with_table(|table| {
        let name = config.name.to_lowercase();
        if let Some(old) = table.names.get(&name).copied()
            && table.pools.get(old as usize).is_some_and(|pool| pool.is_running())
        {
            return Err(Error::PoolExists(config.name.to_string()));
        }
        Ok(table.insert(config))
    })
}

/// The pool with this id.
pub fn by_id(id: u32) -> Option<Arc<Pool>> {
    with_table(|table| Ok(table.pools.get(id as usize).cloned())).ok().flatten()
}

/// The pool with this name, in any case.
pub fn by_name(name: &str) -> Option<Arc<Pool>> {
    let id = with_table(|table| Ok(table.names.get(&name.to_lowercase()).copied())).ok().flatten()?;
    by_id(id)
}

/// All pools by id, those that were shut down included.
pub fn all() -> Vec<Arc<Pool>> {
    with_table(|table| Ok(table.pools.clone())).unwrap_or_default()
}

/// From now on, scripts' own globals are shared by all VMs: whether that can be, since no worker has globals of its
/// own.
pub fn share_globals() -> bool {
    with_table(|table| {
        table.shares_globals |= table.pools.iter().all(|pool| !pool.has_started());
        Ok(table.shares_globals)
    })
    .unwrap_or_default()
}

/// Whether they are.
pub fn shares_globals() -> bool {
    with_table(|table| Ok(table.shares_globals)).unwrap_or_default()
}

/// A number for these paths, the same for equal ones.
pub fn remember_paths(paths: &Paths) -> u32 {
    let found = with_table(|table| {
        if let Some(at) = table.paths.iter().position(|known| **known == *paths) {
            return Ok(at);
        }
        table.paths.push(Arc::new(paths.clone()));
        Ok(table.paths.len() - 1)
    });
    u32::try_from(found.unwrap_or_default()).unwrap_or_default()
}

/// The paths with this number.
pub fn paths(number: u32) -> Option<Arc<Paths>> {
    with_table(|table| Ok(table.paths.get(number as usize).cloned())).ok().flatten()
}

thread_local! {
    /// The locks, from just before a fork to just after, on the forking thread: in the child, its only one.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// The locks that a child needs whole: this table's, the gate's, that of the codes, and the order of sessions' locks.
type Held =
    (MutexGuard<'static, Option<Table>>, gate::Closed, RwLockWriteGuard<'static, code::Table>, MutexGuard<'static, Waits>);

extern "C" fn before_fork() {
    let shared = SHARED.lock();
    let pools = shared.as_ref().map_or(&[][..], |table| &table.pools);
    let inside = || pools.iter().flat_map(|pool| pool.inside()).filter(|station| !station.is_here()).collect();
    let closed = gate::close(inside);
    HELD.set(Some((shared, closed, code::lock(), handles::order())));
}

extern "C" fn after_fork_in_parent() {
    if let Some((_shared, closed, ..)) = HELD.take() {
        gate::open(closed);
    }
}

extern "C" fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    waker::begin_anew();
    let Some((mut shared, closed, ..)) = HELD.take() else { return };
    gate::open(closed);
    if let Some(table) = shared.as_mut() {
        let old = std::mem::take(&mut table.pools);
        table.pools = old.iter().map(|pool| pool.recreate()).collect();
        // The old ones' threads are gone, whatever they held locked: no destructor may look at them.
        std::mem::forget(old);
    }
}

/// The names of pools that take jobs, for messages.
pub fn known_names() -> String {
    let names: Vec<String> =
        all().iter().filter(|pool| pool.is_running()).map(|pool| pool.config.name.to_string()).collect();
    names.join(", ")
}

/// Checks a size given to `resize`.
///
/// # Errors
/// [`Error::BadOption`].
pub fn check_concurrency(given: f64) -> Result<usize> {
    pool::whole("concurrency", given, 1, pool::MAX_WORKERS)
}
