//! How the one thread that runs a VM sleeps, and how any other wakes it.
//!
//! Called by `mailbox` and `sleep` (to wake) and by `vm` (to wait). Knows no queue.
//!
//! A waker is one word:
//!
//! | state | meaning | leaves it by |
//! |---|---|---|
//! | `EMPTY` | awake, nothing new | `wake` → `NOTIFIED`; `wait` → `SLEEPING` |
//! | `NOTIFIED` | something came since the last wait | `wait` → `EMPTY`, returning at once |
//! | `SLEEPING` | the thread is, or is about to be, blocked | `wake` → `NOTIFIED`, and the signal that unblocks |
//!
//! **No wake is lost.** A waiter looks at its queues, then calls `wait`. A `wake` before the waiter's exchange
//! finds `EMPTY` and leaves `NOTIFIED`, so the exchange fails and `wait` returns; one after it finds `SLEEPING` and
//! signals, and both kinds of signal (a park token, an eventfd's count) are kept for a thread that blocks later.
//! The exchange acquires what the `wake` released: the queue's new entry is visible when `wait` returns.

use std::time::Duration;

#[cfg(not(loom))]
use std::sync::atomic::AtomicUsize;

use crate::sync::{
    atomic::{AtomicU32, Ordering},
    thread,
};

/// How often an idle thread looks again before it sleeps, while a core is free for it: some ten microseconds, about
/// what waking it from sleep would cost.
pub const SPINS: u32 = 1_000;

/// VM threads of this process that are not blocked in a wait.
#[cfg(not(loom))]
static AWAKE: AtomicUsize = AtomicUsize::new(0);

/// In a fork's child: the threads that were counted are the parent's.
#[cfg(not(loom))]
pub fn begin_anew() {
    AWAKE.store(0, Ordering::Relaxed);
}

/// How many cores this process may use, as it was when first asked: to ask takes reading some files.
#[cfg(not(loom))]
pub fn cores() -> usize {
    // No lock, which another thread could have at a fork: whoever comes first asks, and perhaps another too.
    static CORES: AtomicUsize = AtomicUsize::new(0);
    match CORES.load(Ordering::Relaxed) {
        0 => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            CORES.store(cores, Ordering::Relaxed);
            cores
        }
        cores => cores,
    }
}

/// How many of our threads are awake; of workers, and of hosts.
#[cfg(not(loom))]
pub fn awake() -> usize {
    AWAKE.load(Ordering::Relaxed)
}

/// Whether all our threads that are awake have a core each. If not, a thread that spins keeps from running the very
/// thread that it spins for; as it does where there is but one core.
#[cfg(not(loom))]
pub fn core_is_free() -> bool {
    let cores = cores();
    cores > 1 && AWAKE.load(Ordering::Relaxed) <= cores
}

/// What a host may look for longer than usual: it is about to come, and would cost more to be woken for.
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug)]
pub enum Soon {
    /// A worker's first outcome: its VM is made in some 150 microseconds.
    Start = 25,
    /// The end of a worker.
    End = 15,
}

/// How many times [`SPINS`] the next host that waits may look.
#[cfg(not(loom))]
static EXPECTED: AtomicUsize = AtomicUsize::new(0);

/// Something comes soon: a host that waits for nothing else, and has a core for that, is not to sleep before.
#[cfg(not(loom))]
pub fn expect(soon: Soon) {
    EXPECTED.store(soon as usize, Ordering::Relaxed);
}

/// How many times more than usual the caller may look; once.
#[cfg(not(loom))]
pub fn take_expected() -> usize {
    if EXPECTED.load(Ordering::Relaxed) == 0 { 0 } else { EXPECTED.swap(0, Ordering::Relaxed) }
}

const EMPTY: u32 = 0;
const NOTIFIED: u32 = 1;
const SLEEPING: u32 = 2;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Somebody called [`Waker::wake`].
    Woken,
    /// The time ran out.
    TimedOut,
    /// A signal handler ran; only a host's wait says this, so that Ctrl-C reaches the script.
    Interrupted,
}

/// How the thread blocks.
#[derive(Debug)]
enum Block {
    /// A worker's own thread.
    Thread(thread::Thread),
    /// The host's thread, whichever that is: a file descriptor, whose `poll` a signal interrupts.
    #[cfg(not(loom))]
    Fd(eventfd::EventFd),
}

/// See the module.
#[derive(Debug)]
pub struct Waker {
    state: AtomicU32,
    block: Block,
    /// Its thread counts as one that may be awake.
    #[cfg(not(loom))]
    counts: std::sync::atomic::AtomicBool,
}

impl Waker {
    /// A waker for the calling thread, which alone may wait on it.
    pub fn for_this_thread() -> Self {
        #[cfg(not(loom))]
        AWAKE.fetch_add(1, Ordering::Relaxed);
        Self {
            state: AtomicU32::new(EMPTY),
            block: Block::Thread(thread::current()),
            #[cfg(not(loom))]
            counts: true.into(),
        }
    }

    /// A waker for a host, which may change its thread between waits.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    #[cfg(not(loom))]
    pub fn for_host() -> std::io::Result<Self> {
        let block = Block::Fd(eventfd::EventFd::new()?);
        AWAKE.fetch_add(1, Ordering::Relaxed);
        Ok(Self { state: AtomicU32::new(EMPTY), block, counts: true.into() })
    }

    /// Its thread waits no more, and ends or has ended: whoever keeps this keeps no core from being free.
    #[cfg(not(loom))]
    pub fn retire(&self) {
        if self.counts.swap(false, Ordering::Relaxed) {
            AWAKE.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Ends the current or the next wait.
    pub fn wake(&self) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == SLEEPING {
            match &self.block {
                Block::Thread(thread) => thread.unpark(),
                #[cfg(not(loom))]
                Block::Fd(fd) => fd.signal(),
            }
        } else {
            #[cfg(not(loom))]
            if let Block::Fd(fd) = &self.block {
                fd.signal_if_watched();
            }
        }
    }

    /// Whether a wake came since the last wait: cheap, for spinning.
    pub fn is_notified(&self) -> bool {
        self.state.load(Ordering::Relaxed) == NOTIFIED
    }

    /// Blocks until a wake, at most for `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> Wait {
        if self.state.compare_exchange(EMPTY, SLEEPING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            self.state.swap(EMPTY, Ordering::AcqRel);
            return Wait::Woken;
        }
        #[cfg(not(loom))]
        AWAKE.fetch_sub(1, Ordering::Relaxed);
        let ended = match &self.block {
            Block::Thread(_) => self.park(timeout),
            #[cfg(not(loom))]
            Block::Fd(fd) => fd.wait(timeout),
        };
        #[cfg(not(loom))]
        AWAKE.fetch_add(1, Ordering::Relaxed);
        if self.state.swap(EMPTY, Ordering::AcqRel) == NOTIFIED {
            #[cfg(not(loom))]
            if let Block::Fd(fd) = &self.block {
                fd.reset();
            }
            return Wait::Woken;
        }
        ended
    }

    /// A park may end for no reason, or by a token of an earlier wake: only the state tells.
    #[cfg(not(loom))]
    fn park(&self, timeout: Option<Duration>) -> Wait {
        let deadline = timeout.and_then(|timeout| std::time::Instant::now().checked_add(timeout));
        while self.state.load(Ordering::Acquire) == SLEEPING {
            match deadline {
                None => thread::park(),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(std::time::Instant::now());
                    if left.is_zero() {
                        return Wait::TimedOut;
                    }
                    thread::park_timeout(left);
                }
            }
        }
        Wait::Woken
    }

    #[cfg(loom)]
    fn park(&self, _timeout: Option<Duration>) -> Wait {
        while self.state.load(Ordering::Acquire) == SLEEPING {
            thread::park();
        }
        Wait::Woken
    }

    /// A descriptor that is readable when a wake came or the timer of [`Waker::watch_until`] ran out; for a host.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    #[cfg(not(loom))]
    pub fn watched_fd(&self) -> std::io::Result<Option<i32>> {
        match &self.block {
            Block::Thread(_) => Ok(None),
            Block::Fd(fd) => {
                let descriptor = fd.watch()?;
                // What came before the watch began has not been signalled.
                if self.is_notified() {
                    fd.signal();
                }
                Ok(Some(descriptor))
            }
        }
    }

    /// Takes back the readiness of the watched descriptor; its timer is set to `timeout` from now.
    #[cfg(not(loom))]
    pub fn watch_until(&self, timeout: Option<Duration>) {
        if let Block::Fd(fd) = &self.block {
            fd.watch_until(timeout);
        }
    }

    /// Marks everything up to now as seen, before the queues are looked at.
    #[cfg(not(loom))]
    pub fn acknowledge(&self) {
        self.state.swap(EMPTY, Ordering::AcqRel);
        if let Block::Fd(fd) = &self.block {
            fd.reset_if_watched();
        }
    }
}

#[cfg(not(loom))]
impl Drop for Waker {
    fn drop(&mut self) {
        self.retire();
    }
}

/// The host's descriptors: an eventfd, and once the host asks for one to watch, a timer and an epoll over both.
#[cfg(not(loom))]
mod eventfd {
    use std::{
        io,
        os::fd::{AsRawFd, FromRawFd, OwnedFd},
        sync::OnceLock,
        time::Duration,
    };

    use super::Wait;

    #[derive(Debug)]
    struct Watched {
        timer: OwnedFd,
        epoll: OwnedFd,
    }

    #[derive(Debug)]
    pub(super) struct EventFd {
        event: OwnedFd,
        watched: OnceLock<Watched>,
    }

    fn owned(fd: i32) -> io::Result<OwnedFd> {
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system call that made `fd` succeeded, and nobody else knows it yet.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    impl EventFd {
        pub(super) fn new() -> io::Result<Self> {
            // SAFETY: no pointers.
            let event = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
            Ok(Self { event, watched: OnceLock::new() })
        }

        pub(super) fn signal(&self) {
            let one = 1u64;
            // SAFETY: eight readable bytes. A full counter (EAGAIN) is readable already, so the result is of no use.
            unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
        }

        pub(super) fn signal_if_watched(&self) {
            if self.watched.get().is_some() {
                self.signal();
            }
        }

        pub(super) fn reset(&self) {
            let mut count = 0u64;
            // SAFETY: eight writable bytes; the descriptor does not block.
            unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), 8) };
        }

        pub(super) fn reset_if_watched(&self) {
            if self.watched.get().is_some() {
                self.reset();
            }
        }

        pub(super) fn wait(&self, timeout: Option<Duration>) -> Wait {
            let mut poll = libc::pollfd { fd: self.event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let timeout = timeout.map(timespec);
            let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            // SAFETY: one pollfd, a timeout that outlives the call or none, no signal mask.
            match unsafe { libc::ppoll(&raw mut poll, 1, timeout, std::ptr::null()) } {
                0 => Wait::TimedOut,
                1.. => Wait::Woken,
                _ => Wait::Interrupted,
            }
        }

        pub(super) fn watch(&self) -> io::Result<i32> {
            if let Some(watched) = self.watched.get() {
                return Ok(watched.epoll.as_raw_fd());
            }
            // SAFETY: no pointers.
            let timer = owned(unsafe {
                libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)
            })?;
            // SAFETY: no pointers.
            let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
            for fd in [&self.event, &timer] {
                let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
                // SAFETY: two descriptors of ours and an event that the call copies.
                let rc = unsafe {
                    libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
                };
                if rc < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(self.watched.get_or_init(|| Watched { timer, epoll }).epoll.as_raw_fd())
        }

        pub(super) fn watch_until(&self, timeout: Option<Duration>) {
            let Some(watched) = self.watched.get() else { return };
            // All zero disarms; a timer that is due already must not be zero.
            let value =
                timeout.map_or(timespec(Duration::ZERO), |t| timespec(t.max(Duration::from_nanos(1))));
            let spec = libc::itimerspec { it_interval: timespec(Duration::ZERO), it_value: value };
            // SAFETY: a timer of ours, a specification that the call copies.
            unsafe {
                libc::timerfd_settime(watched.timer.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut())
            };
        }
    }

    fn timespec(duration: Duration) -> libc::timespec {
        libc::timespec {
            tv_sec: duration.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: duration.subsec_nanos().into(),
        }
    }
}
