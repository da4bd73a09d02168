//! What can go wrong for a user, each variant named by what they did. The Lua face raises these at the caller's line.

/// A refusal or failure, with the text that the user reads.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A pool name or id that nobody created.
    #[error("unknown pool {given}, known are: {known}")]
    UnknownPool {
        /// What the caller gave, quoted when it was a name.
        given: String,
        /// The names of all pools, separated by commas.
        known: String,
    },
    /// `create` with the name of a living pool.
    #[error("there is already a pool named '{0}'")]
    PoolExists(String),
    /// An option that does not exist, or has an unusable value.
    #[error("{0}")]
    BadOption(String),
    /// The pool was shut down.
    #[error("pool '{0}' is shut down")]
    PoolShutDown(String),
    /// The pool's queue is as long as `backlog` allows.
    #[error("pool '{pool}' is full: {backlog} jobs wait (backlog = {backlog})")]
    PoolFull {
        /// The pool's name.
        pool: String,
        /// Its limit, in jobs.
        backlog: usize,
    },
    /// Every worker of the pool is stuck in a C call.
    #[error("{0}")]
    PoolStuck(String),
    /// The operating system refused a thread.
    #[error("pool '{pool}' cannot start a worker: {source}")]
    NoThread {
        /// The pool's name.
        pool: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
