//! A long string that stays in the VM that sends it, and is read there by the one that receives it: copied once, not
//! twice.
//!
//! Called by `encode` (lends), `decode` (reads) and `vm` (withdraws). Knows no Lua: a lease is memory that somebody
//! keeps.
//!
//! The sender keeps the string in a table until the job has ended, so only the end of the sender's VM is in the way:
//! LuaJIT frees all its strings then, while the job may still wait in a queue or be read. So:
//!
//! 1. *Reader*: `LENT` → `READING`, reads, → `LENT`. Where it finds `OWNED`, it reads the lease's own copy.
//! 2. *Sender*, before its VM goes: `LENT` → `COPYING`, copies the string into the lease, → `OWNED`; while it finds
//!    `READING` it waits.
//! 3. *Reader* that finds `COPYING` waits.
//!
//! Of reader and sender, one changes `LENT` first; the other waits for what cannot take longer than to copy a string.
//! The store that ends `READING` releases what the reader has read, and the sender's exchange acquires it, so the
//! memory is freed after the reading. `OWNED` is stored after the copy, with release, and is final.

use crate::sync::{
    Mutex,
    atomic::{AtomicU8, Ordering},
    thread,
};

const LENT: u8 = 0;
const READING: u8 = 1;
const COPYING: u8 = 2;
const OWNED: u8 = 3;

/// See the module.
#[derive(Debug)]
pub struct Lease {
    state: AtomicU8,
    bytes: *const u8,
    len: usize,
    owned: Mutex<Option<Box<[u8]>>>,
}

// SAFETY: the bytes are only read, and as the protocol says: while the sender keeps them.
unsafe impl Send for Lease {}
// SAFETY: as above.
unsafe impl Sync for Lease {}

impl Lease {
    /// Lends bytes.
    ///
    /// # Safety
    /// They stay where and what they are until [`Lease::withdraw`] has returned, or the last reading has ended and none
    /// begins.
    pub unsafe fn new(bytes: &[u8]) -> Self {
        Self { state: AtomicU8::new(LENT), bytes: bytes.as_ptr(), len: bytes.len(), owned: Mutex::default() }
    }

    /// Whether it is of these bytes, and not of equal ones.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        self.bytes == bytes.as_ptr()
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Begins to read: the bytes are there until [`Lease::end`].
    pub fn begin(&self) -> *const [u8] {
        loop {
            match self.state.compare_exchange(LENT, READING, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return std::ptr::slice_from_raw_parts(self.bytes, self.len),
                Err(OWNED) => {
                    // Final, so the copy stays where it is when the lock is gone.
                    let owned = self.owned.lock();
                    let bytes = owned.as_deref().unwrap_or_default();
                    return std::ptr::from_ref(bytes);
                }
                // The sender copies; or another reader, of which there is none.
                Err(_) => thread::yield_now(),
            }
        }
    }

    /// Ends what [`Lease::begin`] began; of no consequence where that was not so.
    pub fn end(&self) {
        let _ = self.state.compare_exchange(READING, LENT, Ordering::Release, Ordering::Relaxed);
    }

    /// Makes the lease independent of the sender's memory.
    pub fn withdraw(&self) {
        loop {
            match self.state.compare_exchange(LENT, COPYING, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(OWNED) => return,
                Err(_) => thread::yield_now(),
            }
        }
        // SAFETY: the sender calls this, and keeps the bytes until it returns.
        let bytes = unsafe { std::slice::from_raw_parts(self.bytes, self.len) };
        *self.owned.lock() = Some(bytes.into());
        self.state.store(OWNED, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_withdrawn_lease_has_a_copy() {
        let bytes = vec![7u8; 1000];
        // SAFETY: dropped after the withdrawal.
        let lease = unsafe { Lease::new(&bytes) };
        assert_eq!(lease.begin().cast::<u8>(), bytes.as_ptr());
        lease.end();
        lease.withdraw();
        drop(bytes);
        // SAFETY: the lease's own.
        assert_eq!(unsafe { &*lease.begin() }, &[7u8; 1000]);
        lease.end();
        lease.withdraw();
        assert_eq!(lease.len(), 1000);
    }
}
