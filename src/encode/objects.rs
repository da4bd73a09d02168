//! The objects of one message by address: an open-addressing map, since a general one is half of what a small table
//! costs.

use std::ffi::c_void;

/// An object met before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Its number.
    pub(super) ordinal: u32,
    /// Where its tag stands, to be marked as shared. Messages are smaller than 4 GiB.
    pub(super) tag_at: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Null where there is none.
    object: *const c_void,
    seen: Seen,
}

const EMPTY: Entry = Entry { object: std::ptr::null(), seen: Seen { ordinal: 0, tag_at: 0 } };

/// See the module. At most half of the entries are used, so a search ends soon.
#[derive(Debug, Default)]
pub(super) struct Objects {
    /// None, or a power of two.
    entries: Vec<Entry>,
    count: usize,
}

impl Objects {
    /// Forgets all; memory beyond what the last message needed is given back.
    pub(super) fn clear(&mut self) {
        /// As many are kept whatever the last message needed.
        const KEEP: usize = 4096;
        if self.entries.len() > KEEP && self.count < self.entries.len() / 16 {
            self.entries = Vec::new();
        } else if self.count > 0 {
            self.entries.fill(EMPTY);
        }
        self.count = 0;
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds objects, numbered in their order, to an empty map; null stands for none.
    pub(super) fn fill(&mut self, objects: &[*const c_void]) {
        let needed = (objects.len() * 2).next_power_of_two().max(32);
        if self.entries.len() < needed {
            self.entries = vec![EMPTY; needed];
        }
        for (object, ordinal) in objects.iter().zip(0..).filter(|(object, _)| !object.is_null()) {
            self.insert(*object, Seen { ordinal, tag_at: 0 });
        }
    }

    /// Where the object is, or could be; the entries are not empty.
    #[inline]
    fn place(&self, object: *const c_void) -> usize {
        let mask = self.entries.len().wrapping_sub(1);
        // Fibonacci hashing: the upper bits of the product depend on all of the address.
        let mut place = (object.addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20) as usize & mask;
        while self.entries.get(place).is_some_and(|entry| !entry.object.is_null() && entry.object != object) {
            place = (place + 1) & mask;
        }
        place
    }

    /// What is known of the object.
    #[inline]
    pub(super) fn get(&self, object: *const c_void) -> Option<Seen> {
        self.entries.get(self.place(object)).filter(|entry| !entry.object.is_null()).map(|entry| entry.seen)
    }

    /// Adds an object, or gives what is known of it.
    #[inline]
    pub(super) fn insert(&mut self, object: *const c_void, seen: Seen) -> Option<Seen> {
        if self.count * 2 >= self.entries.len() {
            self.grow();
        }
        let place = self.place(object);
        let entry = self.entries.get_mut(place)?;
        if !entry.object.is_null() {
            return Some(entry.seen);
        }
        *entry = Entry { object, seen };
        self.count += 1;
        None
    }

    #[cold]
    fn grow(&mut self) {
        let larger = (self.entries.len() * 2).max(32);
        let old = std::mem::replace(&mut self.entries, vec![EMPTY; larger]);
        for entry in old.into_iter().filter(|entry| !entry.object.is_null()) {
            let place = self.place(entry.object);
            if let Some(free) = self.entries.get_mut(place) {
                *free = entry;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_is_found_under_its_address_alone() {
        let mut objects = Objects::default();
        for round in 0..3 {
            let many = if round == 1 { 10 } else { 10_000 };
            let address = |number: usize| (number * 64 + 64) as *const c_void;
            for number in 0..many {
                assert!(objects.get(address(number)).is_none(), "{number} in round {round}");
                assert!(objects.insert(address(number), Seen { ordinal: number as u32, tag_at: 7 }).is_none());
            }
            for number in 0..many {
                let other = Seen { ordinal: 1, tag_at: 1 };
                assert_eq!(objects.insert(address(number), other).map(|seen| seen.ordinal), Some(number as u32));
                assert_eq!(objects.get(address(number)).map(|seen| seen.ordinal), Some(number as u32));
            }
            assert!(objects.get(address(many)).is_none());
            objects.clear();
        }
    }
}
