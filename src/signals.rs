//! The signals of threads that are ours.
//!
//! Called by whoever starts one: `pool`, `reaper`.

use std::ptr::null_mut;

/// Threads inherit the mask: the host's handlers are not for ours.
pub fn with_signals_blocked<T>(spawn: impl FnOnce() -> T) -> T {
    // SAFETY: all-zero is a valid signal set to be filled in by the calls.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: two signal sets of ours.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    let result = spawn();
    // SAFETY: the set that the call above filled in.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut()) };
    result
}
