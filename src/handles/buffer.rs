//! Memory that all VMs see at once, as FFI cdata: never copied, and guarded by nothing but what the script does.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ptr::NonNull,
};

use super::{Alive, kind};
use crate::wire::Object;

/// As wide as a cache line, and as any type that C has needs.
const ALIGNMENT: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Buffer {
    memory: NonNull<u8>,
    layout: Layout,
    ctype: Box<str>,
    count: usize,
    _alive: Alive,
}

// SAFETY: the memory is the object's own; what is done with it is the scripts' to agree on, as with any FFI pointer.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `count` items of `size` bytes each, all zero; `None` where there is no such memory.
    pub fn new(ctype: &str, count: usize, size: usize) -> Option<Self> {
        let bytes = count.checked_mul(size)?.max(1);
        let layout = Layout::from_size_align(bytes, ALIGNMENT).ok()?;
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { memory, layout, ctype: ctype.into(), count, _alive: Alive::default() })
    }

    /// Where it begins.
    pub fn memory(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// What the items are, as `ffi.typeof` takes it.
    pub fn ctype(&self) -> &str {
        &self.ctype
    }

    /// How many items there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

impl Object for Buffer {
    fn kind(&self) -> u32 {
        kind::BUFFER
    }
}
