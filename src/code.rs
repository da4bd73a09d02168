//! The process's table of function code: equal bytes get one entry, found by a 128-bit hash.
//!
//! Called by `functions` and carried by `wire::Message`. A message holds an `Arc` of each code it names, so an entry
//! that the table has dropped is still at hand for the VM that has not loaded it yet.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use rustc_hash::FxHashMap;

use crate::{
    bytecode::Template,
    sync::{RwLock, RwLockWriteGuard},
    usage::Usage,
};

/// How many codes each generation of the table remembers. A program has hundreds; generated code may have more.
const GENERATION: usize = 2048;

/// The code of one Lua function, without its upvalues. Aligned, so that it does not share a cache line with the count
/// of its `Arc`, which each message changes.
#[derive(Debug)]
#[repr(align(64))]
pub struct Code {
    /// Unique in the process, never used again.
    pub id: u32,
    /// The dump, as `string.dump` writes it, debug information included.
    pub bytes: Box<[u8]>,
    factory: OnceLock<Option<Box<[u8]>>>,
    usage: OnceLock<Usage>,
}

impl Code {
    /// The factory's dump, spliced once in the process; `None` where this code cannot be spliced.
    pub fn factory(&self, template: Option<&Template>) -> Option<&[u8]> {
        self.factory
            .get_or_init(|| template?.splice(&self.bytes).map(Vec::into_boxed_slice))
            .as_deref()
    }

    /// What it reads and assigns, found once in the process.
    #[inline]
    pub fn usage(&self) -> &Usage {
        self.usage.get_or_init(|| Usage::of(&self.bytes))
    }
}

/// Two generations: a code found in the old one moves to the young one; when that is full it becomes the old one.
/// So what is in use stays, and what is not goes after at most two generations.
#[derive(Debug, Default)]
pub struct Table {
    young: FxHashMap<u128, Arc<Code>>,
    old: FxHashMap<u128, Arc<Code>>,
}

static TABLE: OnceLock<RwLock<Table>> = OnceLock::new();
static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// Holds the table still, for a fork.
pub(crate) fn lock() -> RwLockWriteGuard<'static, Table> {
    TABLE.get_or_init(RwLock::default).write()
}

/// The code with these bytes, a new one if the table has none.
pub fn intern(bytes: &[u8]) -> Arc<Code> {
    let hash = twox_hash::XxHash3_128::oneshot(bytes);
    let table = TABLE.get_or_init(RwLock::default);
    let known = table.read().young.get(&hash).cloned();
    if let Some(code) = known {
        return code;
    }
    let mut table = table.write();
    let code = match table.young.get(&hash).cloned().or_else(|| table.old.remove(&hash)) {
        Some(code) => code,
        None => Arc::new(Code {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            bytes: bytes.into(),
            factory: OnceLock::new(),
            usage: OnceLock::new(),
        }),
    };
    if table.young.len() >= GENERATION {
        table.old = std::mem::take(&mut table.young);
    }
    table.young.insert(hash, Arc::clone(&code));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_are_one_code() {
        let one = intern(b"equal bytes");
        assert_eq!(one.id, intern(b"equal bytes").id);
        assert_ne!(one.id, intern(b"other bytes").id);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_is_in_use() {
        let kept = intern(b"in use");
        for round in 0..3 * GENERATION {
            intern(format!("filler {round}").as_bytes());
            if round % 1000 == 0 {
                assert_eq!(intern(b"in use").id, kept.id, "dropped in round {round}");
            }
        }
        let table = TABLE.get().map(|table| table.read().young.len() + table.read().old.len());
        assert!(table <= Some(2 * GENERATION + 1), "{table:?}");
    }
}
