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
//! signals, and both kinds of signal are kept for a thread that blocks later: a park token, and the state itself, which
//! the kernel compares before a host's thread sleeps.
//! The exchange acquires what the `wake` released: the queue's new entry is visible when `wait` returns.

use std::time::Duration;

#[cfg(not(loom))]
use std::sync::atomic::AtomicUsize;

use crate::sync::{
    atomic::{AtomicU32, Ordering},
    thread,
};

/// How often an idle thread looks again in one round, of which it makes at least one before it sleeps, while a core is
/// free for it: some thirty microseconds.
pub const SPINS: u32 = 1_000;
/// About how long that takes.
#[cfg(not(loom))]
const ROUND: Duration = Duration::from_micros(30);

/// How many rounds a thread makes before it sleeps.
///
/// To be woken costs it and its waker some 20 to 50 microseconds each. So where what it waits for has lately come within
/// ten rounds, it makes as many as that took; else one.
#[cfg(not(loom))]
#[derive(Debug)]
pub struct Patience(std::cell::Cell<u32>);

#[cfg(not(loom))]
impl Default for Patience {
    fn default() -> Self {
        Self(1.into())
    }
}

#[cfg(not(loom))]
impl Patience {
    const MOST: u32 = 10;

    /// How many rounds.
    pub fn rounds(&self) -> u32 {
        self.0.get()
    }

    /// What was waited for has come in that round, from 0.
    pub fn came(&self, round: u32) {
        self.0.set((2 * round).max(self.0.get() - 1).clamp(1, Self::MOST));
    }

    /// It has come after all rounds, and a sleep of so long.
    pub fn slept(&self, slept: Duration) {
        let rounds = u128::from(self.0.get()) + slept.as_nanos() / ROUND.as_nanos();
        self.0.set(u32::try_from(rounds).ok().filter(|rounds| *rounds <= Self::MOST).unwrap_or(1));
    }
}

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
    Start = 10,
    /// The end of a worker.
    End = 6,
}

/// How many rounds the next host that waits may make.
#[cfg(not(loom))]
static EXPECTED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// Something comes soon: a host that waits for nothing else, and has a core for that, is not to sleep before.
#[cfg(not(loom))]
pub fn expect(soon: Soon) {
    EXPECTED.store(soon as u32, Ordering::Relaxed);
}

/// How many rounds the caller may make; once.
#[cfg(not(loom))]
pub fn take_expected() -> u32 {
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
    /// The host's thread, whichever that is: on the state, as a futex; and what a foreign event loop watches.
    #[cfg(not(loom))]
    Host(host::Watch),
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
    #[cfg(not(loom))]
    pub fn for_host() -> Self {
        AWAKE.fetch_add(1, Ordering::Relaxed);
        Self { state: AtomicU32::new(EMPTY), block: Block::Host(host::Watch::default()), counts: true.into() }
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
                Block::Host(_) => host::unblock(&self.state),
            }
        } else {
            #[cfg(not(loom))]
            if let Block::Host(watch) = &self.block {
                watch.signal();
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
            Block::Host(_) => host::block(&self.state, timeout),
        };
        #[cfg(not(loom))]
        AWAKE.fetch_add(1, Ordering::Relaxed);
        if self.state.swap(EMPTY, Ordering::AcqRel) == NOTIFIED { Wait::Woken } else { ended }
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
            Block::Host(watch) => {
                let descriptor = watch.begin()?;
                // What came before the watch began has not been signalled.
                if self.is_notified() {
                    watch.signal();
                }
                Ok(Some(descriptor))
            }
        }
    }

    /// Takes back the readiness of the watched descriptor; its timer is set to `timeout` from now.
    #[cfg(not(loom))]
    pub fn watch_until(&self, timeout: Option<Duration>) {
        if let Block::Host(watch) = &self.block {
            watch.until(timeout);
        }
    }

    /// Marks everything up to now as seen, before the queues are looked at.
    #[cfg(not(loom))]
    pub fn acknowledge(&self) {
        self.state.swap(EMPTY, Ordering::AcqRel);
        if let Block::Host(watch) = &self.block {
            watch.reset();
        }
    }
}

#[cfg(not(loom))]
impl Drop for Waker {
    fn drop(&mut self) {
        self.retire();
    }
}

/// How a host's thread blocks, and what it has for a foreign event loop.
#[cfg(not(loom))]
mod host {
    use std::{
        io,
        os::fd::{AsRawFd, FromRawFd, OwnedFd},
        sync::OnceLock,
        time::{Duration, Instant},
    };

    use super::{AtomicU32, Ordering, SLEEPING, Wait};

    /// As long as a wait without a timeout takes: three years. With a timeout, a signal's handler ends the system's wait;
    /// without, the system would begin it again behind the handler, and Ctrl-C would not reach the script.
    const FOREVER: Duration = Duration::from_secs(100_000_000);

    /// Blocks while `state` is `SLEEPING`, at most for `timeout`, and till a signal has been handled.
    pub(super) fn block(state: &AtomicU32, timeout: Option<Duration>) -> Wait {
        let mut left = timespec(timeout.unwrap_or(FOREVER));
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while state.load(Ordering::Acquire) == SLEEPING {
            let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
            // SAFETY: a word and a timeout that outlive the call.
            let rc = unsafe {
                libc::syscall(libc::SYS_futex, state.as_ptr(), operation, SLEEPING, &raw const left)
            };
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) if rc < 0 => return Wait::Interrupted,
                Some(libc::ETIMEDOUT) if rc < 0 && timeout.is_some() => return Wait::TimedOut,
                _ => {}
            }
            if let Some(deadline) = deadline {
                left = timespec(deadline.saturating_duration_since(Instant::now()));
            }
        }
        Wait::Woken
    }

    /// Ends what [`block`] does.
    pub(super) fn unblock(state: &AtomicU32) {
        let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the word is only named.
        unsafe { libc::syscall(libc::SYS_futex, state.as_ptr(), operation, 1) };
    }

    #[derive(Debug)]
    struct Descriptors {
        event: OwnedFd,
        timer: OwnedFd,
        epoll: OwnedFd,
    }

    /// A descriptor to be watched, once the host asks for one: an epoll over an eventfd and a timer.
    #[derive(Debug, Default)]
    pub(super) struct Watch(OnceLock<Descriptors>);

    fn owned(fd: i32) -> io::Result<OwnedFd> {
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system call that made `fd` succeeded, and nobody else knows it yet.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    impl Watch {
        /// It becomes readable.
        pub(super) fn signal(&self) {
            let Some(descriptors) = self.0.get() else { return };
            let one = 1u64;
            // SAFETY: eight readable bytes. A full counter (EAGAIN) is readable already, so the result is of no use.
            unsafe { libc::write(descriptors.event.as_raw_fd(), (&raw const one).cast(), 8) };
        }

        /// It is not readable for what came up to now.
        pub(super) fn reset(&self) {
            let Some(descriptors) = self.0.get() else { return };
            let mut count = 0u64;
            // SAFETY: eight writable bytes; the descriptor does not block.
            unsafe { libc::read(descriptors.event.as_raw_fd(), (&raw mut count).cast(), 8) };
        }

        /// The descriptor.
        pub(super) fn begin(&self) -> io::Result<i32> {
            if let Some(descriptors) = self.0.get() {
                return Ok(descriptors.epoll.as_raw_fd());
            }
            // SAFETY: no pointers.
            let event = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
            // SAFETY: no pointers.
            let timer = owned(unsafe {
                libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)
            })?;
            // SAFETY: no pointers.
            let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
            for fd in [&event, &timer] {
                let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
                // SAFETY: two descriptors of ours and an event that the call copies.
                let rc = unsafe {
                    libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
                };
                if rc < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(self.0.get_or_init(|| Descriptors { event, timer, epoll }).epoll.as_raw_fd())
        }

        /// It becomes readable when the timeout is over, and not for one set before.
        pub(super) fn until(&self, timeout: Option<Duration>) {
            let Some(descriptors) = self.0.get() else { return };
            // All zero disarms; a timer that is due already must not be zero.
            let value =
                timeout.map_or(timespec(Duration::ZERO), |t| timespec(t.max(Duration::from_nanos(1))));
            let spec = libc::itimerspec { it_interval: timespec(Duration::ZERO), it_value: value };
            // SAFETY: a timer of ours, a specification that the call copies.
            unsafe {
                libc::timerfd_settime(descriptors.timer.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut())
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn as_much_patience_as_what_came_last_needed() {
        let patience = Patience::default();
        assert_eq!(patience.rounds(), 1);
        // Jobs of 120 microseconds: slept through once, looked for from then on.
        patience.slept(Duration::from_micros(90));
        assert_eq!(patience.rounds(), 4);
        patience.came(3);
        assert_eq!(patience.rounds(), 6);
        // A long one, and the next are not waited for.
        patience.slept(Duration::from_millis(5));
        assert_eq!(patience.rounds(), 1);
        // Short ones: less and less.
        patience.slept(Duration::from_micros(100));
        for _ in 0..10 {
            patience.came(0);
        }
        assert_eq!(patience.rounds(), 1);
    }
}
