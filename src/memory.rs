//! The memory of a worker's VM: a limit, and large blocks that are used again.
//!
//! Called by `worker`, which puts a [`Memory`] between LuaJIT and its own allocator. Knows no Lua but the type of an
//! allocator.
//!
//! **Large blocks.** LuaJIT maps each block of 128 KiB and more, and unmaps it when it is freed. The system gives such
//! memory page by page, as it is touched: a new string of 1 MiB costs 600 µs, of which the copying is 30. So some freed
//! blocks are kept. Sizes between [`LEAST`] and [`MOST`] are rounded up to a few classes, so that any block of a class
//! serves any request of it; what is beyond a request is not touched, and so is no memory. LuaJIT's collector goes by
//! small steps, of which a job that is sent a string of a MiB makes few: [`Memory::is_short`] says when so much is
//! garbage that it had better be collected at once. What is kept counts for the limit, and is given back before anything
//! is refused; so is all of it when the worker has slept for a while ([`Memory::release`]).
//!
//! **The limit.** What would exceed it is refused, and LuaJIT raises "not enough memory". It says so without collecting
//! garbage first: [`Memory::settle`] tells that the worker has done that. Until then there is a reserve, so that the
//! failure can be reported.
//!
//! LuaJITs before June 2023 may crash where memory is refused to compiled code. So it is given what it asks for, up to
//! once more the limit, if it can be made to raise the error in a moment ([`Overdraw`]).

use std::{
    cell::{Cell, RefCell},
    ffi::c_void,
    ptr::null_mut,
    rc::Rc,
};

use crate::luajit::{ffi, lua_State};

/// The smallest block that is kept; LuaJIT's own bound for mapping one. A power of two.
const LEAST: usize = 128 << 10;
const _: () = assert!(LEAST.is_power_of_two(), "two sizes are compared with it at once");
/// The smallest that is not: beyond this LuaJIT moves mapped pages when a block grows, which is better.
const MOST: usize = 16 << 20;
/// How much may be kept.
const KEPT: usize = 16 << 20;

/// Asked where the limit is met, by the VM's thread: whether compiled code asks, which is now going to raise "not enough
/// memory" by itself.
pub type Overdraw = fn() -> bool;

type Allocate = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, usize) -> *mut c_void;

/// See the module. Of one thread, as its VM is.
#[derive(Debug)]
pub struct Memory {
    inner: Allocate,
    inner_data: *mut c_void,
    used: Cell<usize>,
    limit: usize,
    /// How much more than that it may have, until garbage has been collected.
    extra: Cell<usize>,
    overdraw: Overdraw,
    /// How much large blocks in use have.
    large: Cell<usize>,
    /// How much was used when garbage had been collected, and how much of that in large blocks.
    live: Cell<usize>,
    live_large: Cell<usize>,
    /// The limit was met, and no garbage has been collected since.
    is_pressed: Cell<bool>,
    /// Blocks to be used again, and how much they are together.
    kept: RefCell<Vec<Kept>>,
    kept_size: Cell<usize>,
    /// How often garbage was collected at once ([`Memory::settle`]).
    collections: Cell<usize>,
}

/// A block that nobody uses.
#[derive(Debug)]
struct Kept {
    class: usize,
    block: *mut c_void,
    /// How often garbage had been collected when it was freed.
    freed: usize,
}

/// The size that a request of `size` bytes gets: powers of two, and three steps between them.
fn class_of(size: usize) -> usize {
    let step = (size.next_power_of_two() / 8).max(1);
    size.div_ceil(step) * step
}

fn is_large(size: usize) -> bool {
    (LEAST..MOST).contains(&size)
}

impl Memory {
    /// Takes the place of the VM's allocator until [`Memory::remove`]; `limit` is in bytes.
    ///
    /// # Safety
    /// `state` is a live VM of this thread that has just been made, so that it has no large block yet. The memory is
    /// removed before it is closed.
    pub unsafe fn install(state: *mut lua_State, limit: usize, overdraw: Overdraw) -> Rc<Self> {
        let mut inner_data = null_mut();
        // SAFETY: the caller's promise.
        let inner = unsafe { ffi::lua_getallocf(state, &mut inner_data) };
        // SAFETY: asks for numbers.
        let (kilobytes, bytes) =
            unsafe { (ffi::lua_gc(state, ffi::LUA_GCCOUNT, 0), ffi::lua_gc(state, ffi::LUA_GCCOUNTB, 0)) };
        let used = kilobytes as usize * 1024 + bytes as usize;
        let memory = Rc::new(Self {
            inner,
            inner_data,
            used: Cell::new(used),
            limit,
            extra: Cell::new(0),
            overdraw,
            large: Cell::new(0),
            live: Cell::new(used),
            live_large: Cell::new(0),
            is_pressed: Cell::new(false),
            kept: RefCell::default(),
            kept_size: Cell::new(0),
            collections: Cell::new(0),
        });
        // SAFETY: the function is for this data; what was allocated before is freed by the same inner allocator.
        unsafe { ffi::lua_setallocf(state, allocate, Rc::as_ptr(&memory).cast_mut().cast()) };
        if limit != usize::MAX {
            // Garbage counts, and LuaJIT does not collect it when memory runs out: so it is not let grow.
            // SAFETY: sets two numbers.
            unsafe {
                ffi::lua_gc(state, ffi::LUA_GCSETPAUSE, 100);
                ffi::lua_gc(state, ffi::LUA_GCSETSTEPMUL, 400);
            }
        }
        memory
    }

    /// Gives LuaJIT its own allocator back, which it needs to close the VM.
    ///
    /// # Safety
    /// `state` is the VM that it was installed in.
    pub unsafe fn remove(&self, state: *mut lua_State) {
        // SAFETY: the VM's own allocator, which has given all the blocks.
        unsafe {
            self.release();
            ffi::lua_setallocf(state, self.inner, self.inner_data);
        }
    }

    /// Whether there are blocks to be used again.
    pub fn keeps(&self) -> bool {
        self.kept_size.get() > 0
    }

    /// Gives those back to the system.
    pub fn release(&self) {
        self.release_if(|_| true);
    }

    /// The same for some.
    fn release_if(&self, is_over: impl Fn(&Kept) -> bool) {
        self.kept.borrow_mut().retain(|kept| {
            let is_over = is_over(kept);
            if is_over {
                self.kept_size.set(self.kept_size.get() - kept.class);
                // SAFETY: a block of that size, which the VM's allocator has given and nobody uses; the memory is of one
                // thread.
                unsafe { (self.inner)(self.inner_data, kept.block, kept.class, 0) };
            }
            !is_over
        });
    }

    /// Whether garbage had better be collected before the next job begins. Under a limit, where a quarter of it may be
    /// garbage, or less where most of it is used. Else where large blocks have come in use that are more than all that
    /// was left, and with those that are kept already nearly as much as may be: more would be lost, and had from the
    /// system again.
    #[inline]
    pub fn is_short(&self) -> bool {
        let (used, live) = (self.used.get(), self.live.get());
        let large = self.large.get().saturating_sub(self.live_large.get());
        let fills = large + self.kept_size.get() > KEPT / 4 * 3;
        let garbage = used.saturating_sub(live);
        fills && large > (KEPT / 4).max(live)
            || garbage > self.limit / 4
            || used > self.limit / 4 * 3 && garbage > self.limit / 16
    }

    /// Whether there is a limit, and what may be garbage is a good part of it.
    pub fn has_garbage(&self) -> bool {
        self.limit != usize::MAX && self.used.get().saturating_sub(self.live.get()) > self.limit / 16
    }

    /// Whether the limit has been met since garbage was collected last.
    pub fn is_pressed(&self) -> bool {
        self.is_pressed.get()
    }

    /// Garbage has been collected; gives whether what is left leaves hardly room for anything else.
    pub fn settle(&self) -> bool {
        self.is_pressed.set(false);
        self.extra.set(0);
        self.live.set(self.used.get());
        self.live_large.set(self.large.get());
        self.collections.set(self.collections.get() + 1);
        self.used.get() > self.limit - self.limit / 16
    }

    /// Whether the VM may have `more` bytes.
    #[inline]
    fn allows(&self, more: usize) -> bool {
        let wanted = self.used.get().saturating_add(more);
        wanted.saturating_add(self.kept_size.get()) <= self.limit || self.allows_beyond(wanted, more)
    }

    #[cold]
    fn allows_beyond(&self, wanted: usize, more: usize) -> bool {
        // What is kept is the VM's, too.
        self.release();
        if wanted <= self.limit {
            return true;
        }
        let limit = self.limit.saturating_add(self.extra.get());
        if wanted <= limit {
            return true;
        }
        // A sixteenth, but enough for a traceback, to say so with.
        let reserve = (self.limit / 16).max(256 << 10);
        let was_pressed = self.is_pressed.replace(true);
        if was_pressed && more < LEAST && wanted <= limit.saturating_add(reserve) {
            return true;
        }
        let overdraws = wanted / 2 <= self.limit && (self.overdraw)();
        if overdraws {
            self.extra.set(wanted - self.limit);
        }
        overdraws
    }

    /// A block of a large class.
    unsafe fn take(&self, size: usize) -> *mut c_void {
        let class = class_of(size);
        let mut kept = self.kept.borrow_mut();
        let block = match kept.iter().rposition(|kept| kept.class == class) {
            Some(place) => {
                self.kept_size.set(self.kept_size.get() - class);
                kept.swap_remove(place).block
            }
            // SAFETY: the VM's own allocator is asked for a new block.
            None => unsafe { (self.inner)(self.inner_data, null_mut(), 0, class) },
        };
        if !block.is_null() {
            self.large.set(self.large.get() + class);
        }
        block
    }

    /// Keeps a block of a large class, or frees it.
    unsafe fn give(&self, block: *mut c_void, size: usize) {
        let class = class_of(size);
        self.large.set(self.large.get().saturating_sub(class));
        if self.kept_size.get() + class > KEPT {
            // What no job has used since the collection before the last is not going to be asked for.
            let collections = self.collections.get();
            self.release_if(|kept| kept.freed + 1 < collections);
        }
        // The block counts as used until it is given.
        if self.kept_size.get() + class <= KEPT && self.used.get().saturating_add(self.kept_size.get()) <= self.limit {
            self.kept_size.set(self.kept_size.get() + class);
            self.kept.borrow_mut().push(Kept { class, block, freed: self.collections.get() });
        } else {
            // SAFETY: the block came from there.
            unsafe { (self.inner)(self.inner_data, block, class, 0) };
        }
    }

    /// Moves what is in a block to one of another size, one of them being large.
    unsafe fn resize(&self, block: *mut c_void, old: usize, new: usize) -> *mut c_void {
        // SAFETY: both blocks have what is copied; a block goes back where it came from.
        unsafe {
            if is_large(old) && is_large(new) && class_of(old) == class_of(new) {
                return block;
            }
            let place = if is_large(new) { self.take(new) } else { (self.inner)(self.inner_data, null_mut(), 0, new) };
            if !place.is_null() {
                std::ptr::copy_nonoverlapping(block.cast::<u8>(), place.cast::<u8>(), old.min(new));
                if is_large(old) {
                    self.give(block, old);
                } else {
                    (self.inner)(self.inner_data, block, old, 0);
                }
            }
            place
        }
    }
}

/// What LuaJIT calls for every block.
///
/// # Safety
/// As LuaJIT's allocators; `data` is a [`Memory`].
unsafe extern "C" fn allocate(data: *mut c_void, block: *mut c_void, old: usize, new: usize) -> *mut c_void {
    // SAFETY: the memory outlives its use as an allocator. Blocks are LuaJIT's to give.
    unsafe {
        let memory = &*data.cast::<Memory>();
        if new > old && !memory.allows(new - old) {
            return null_mut();
        }
        // The first is nearly always so, and said by one comparison.
        let given = if (old | new) < LEAST || !is_large(old) && !is_large(new) {
            (memory.inner)(memory.inner_data, block, old, new)
        } else if new == 0 {
            memory.give(block, old);
            null_mut()
        } else if block.is_null() {
            memory.take(new)
        } else {
            memory.resize(block, old, new)
        };
        if new == 0 || !given.is_null() {
            memory.used.set(memory.used.get().wrapping_add(new).wrapping_sub(old));
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_its_sizes_and_little_more() {
        for size in (LEAST..MOST).step_by(4093) {
            let class = class_of(size);
            assert!(class >= size && class < size + size / 4, "{size} gets {class}");
            assert_eq!(class_of(class), class);
        }
        assert_eq!(class_of(LEAST), LEAST);
    }
}
