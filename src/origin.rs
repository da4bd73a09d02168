//! What a worker keeps of the message that a job came in, so that the job's outcome can speak of the submitter's
//! objects.
//!
//! `decode` fills it, `changes` compares with it, `encode` finds in it what the submitter has already.

use std::{ffi::c_void, sync::Arc};

use crate::wire::{self, Bytes, LARGE, Object};

/// See the module. The objects themselves are kept alive by a Lua table (`theirs` of `functions`).
#[derive(Debug, Default)]
pub struct Origin {
    /// The message's bytes.
    pub bytes: Bytes,
    /// The objects made from it, by ordinal.
    pub objects: Vec<*const c_void>,
    /// Its cells in order: the function and which upvalue of it.
    pub cells: Vec<(u32, u8)>,
    /// The strings made from those that were lent, by the address of their bytes.
    pub strings: Vec<*const u8>,
    /// The objects that crossed by reference.
    pub handles: Vec<Arc<dyn Object>>,
}

impl Origin {
    /// Whether the job's objects are kept; else it is here for strings alone.
    pub fn keeps(&self) -> bool {
        wire::keeps(&self.bytes)
    }

    /// Empties it; memory is kept, unless that is so large that keeping it would be a leak.
    pub fn clear(&mut self) {
        wire::empty_bytes(&mut self.bytes);
        if self.objects.capacity() > LARGE / size_of::<*const c_void>() {
            self.objects = Vec::new();
        }
        self.objects.clear();
        self.cells.clear();
        self.strings.clear();
        self.handles.clear();
    }
}
