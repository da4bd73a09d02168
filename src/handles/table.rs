//! A table that all VMs see: keys are strings, numbers and booleans, values are [`Stored`].
//!
//! A lock for readers and writers around maps; nothing is done under it but to look up, to set and to copy a value,
//! none of which calls Lua. Each value has a version, so that one that was read, changed by a function and written back
//! is known not to have been set meanwhile (`thread.update`).

use rustc_hash::FxHashMap;

use super::{Alive, Stored, bury, kind};
use crate::{sync::RwLock, wire::Object};

/// A key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Key<'a> {
    /// A string.
    Text(&'a [u8]),
    /// A number, not NaN.
    Number(f64),
    /// A boolean.
    Boolean(bool),
}

/// A key that is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedKey {
    /// As of [`Key`].
    Text(Box<[u8]>),
    /// As of [`Key`].
    Number(f64),
    /// As of [`Key`].
    Boolean(bool),
}

#[derive(Clone, Debug, Default)]
struct Slot {
    value: Stored,
    version: u64,
}

#[derive(Debug, Default)]
struct State {
    /// From the key 1 on, without end in nil.
    list: Vec<Slot>,
    texts: FxHashMap<Box<[u8]>, Slot>,
    /// By the bits of the number; -0 is 0.
    numbers: FxHashMap<u64, Slot>,
    booleans: [Slot; 2],
    /// Of the last change.
    version: u64,
    /// Of the last change that removed something.
    removed: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    state: RwLock<State>,
    _alive: Alive,
}

fn bits(number: f64) -> u64 {
    // -0 is the key 0.
    (number + 0.0).to_bits()
}

/// The place in the list of a key that is one.
fn place(number: f64) -> Option<usize> {
    let place = number as usize;
    (place as f64 == number && place >= 1).then(|| place - 1)
}

impl State {
    #[inline]
    fn slot(&self, key: Key<'_>) -> Option<&Slot> {
        let slot = match key {
            Key::Text(text) => self.texts.get(text),
            Key::Number(number) => match place(number).and_then(|place| self.list.get(place)) {
                Some(slot) => Some(slot),
                None => self.numbers.get(&bits(number)),
            },
            Key::Boolean(yes) => self.booleans.get(usize::from(yes)),
        };
        slot.filter(|slot| !slot.value.is_nil())
    }

    fn set(&mut self, key: Key<'_>, value: Stored) {
        self.version += 1;
        let version = self.version;
        if value.is_nil() {
            self.remove(key);
            return;
        }
        let slot = Slot { value, version };
        match key {
            Key::Text(text) => match self.texts.get_mut(text) {
                Some(known) => *known = slot,
                None => drop(self.texts.insert(text.into(), slot)),
            },
            Key::Number(number) => match place(number) {
                Some(place) if place < self.list.len() => self.list[place] = slot,
                Some(place) if place == self.list.len() => {
                    self.list.push(slot);
                    // What stood behind a gap that is none now.
                    while let Some(next) = self.numbers.remove(&bits((self.list.len() + 1) as f64)) {
                        self.list.push(next);
                    }
                    // A list that has grown over a number of its own.
                    self.numbers.remove(&bits(number));
                }
                _ => drop(self.numbers.insert(bits(number), slot)),
            },
            Key::Boolean(yes) => self.booleans[usize::from(yes)] = slot,
        }
    }

    fn remove(&mut self, key: Key<'_>) {
        self.removed = self.version;
        match key {
            Key::Text(text) => drop(self.texts.remove(text)),
            Key::Number(number) => match place(number) {
                Some(place) if place < self.list.len() => {
                    self.list[place] = Slot::default();
                    while self.list.last().is_some_and(|last| last.value.is_nil()) {
                        self.list.pop();
                    }
                }
                _ => drop(self.numbers.remove(&bits(number))),
            },
            Key::Boolean(yes) => self.booleans[usize::from(yes)] = Slot::default(),
        }
    }
}

impl Table {
    /// The value under a key.
    #[inline]
    pub fn get(&self, key: Key<'_>) -> Stored {
        self.state.read().slot(key).map(|slot| slot.value.clone()).unwrap_or_default()
    }

    /// The value, and its version for [`Table::swap`].
    pub fn get_with_version(&self, key: Key<'_>) -> (Stored, u64) {
        let state = self.state.read();
        match state.slot(key) {
            Some(slot) => (slot.value.clone(), slot.version),
            // If something is removed and set and removed again meanwhile, that is a change too.
            None => (Stored::Nil, state.removed),
        }
    }

    /// Sets the value under a key; nil removes it. What was there is dropped by the caller, outside of the lock.
    pub fn set(&self, key: Key<'_>, value: Stored) -> Stored {
        let mut state = self.state.write();
        let old = state.slot(key).map(|slot| slot.value.clone()).unwrap_or_default();
        state.set(key, value);
        old
    }

    /// Sets the value, if it has still this version: whether it had.
    pub fn swap(&self, key: Key<'_>, version: u64, value: Stored) -> bool {
        let mut state = self.state.write();
        let now = state.slot(key).map_or(state.removed, |slot| slot.version);
        if now != version {
            return false;
        }
        state.set(key, value);
        true
    }

    /// How long the list from the key 1 is, or a border of it, as of `#`.
    pub fn len(&self) -> usize {
        self.state.read().list.len()
    }

    /// Whether the list has no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys that there are now: those of the list in order, then the others.
    pub fn keys(&self) -> Vec<OwnedKey> {
        let state = self.state.read();
        let mut keys = Vec::with_capacity(state.list.len() + state.texts.len() + state.numbers.len());
        let list = state.list.iter().zip(1u32..).filter(|(slot, _)| !slot.value.is_nil());
        keys.extend(list.map(|(_, place)| OwnedKey::Number(f64::from(place))));
        keys.extend(state.numbers.keys().map(|bits| OwnedKey::Number(f64::from_bits(*bits))));
        keys.extend(state.texts.keys().map(|text| OwnedKey::Text(text.clone())));
        for yes in [false, true] {
            if state.slot(Key::Boolean(yes)).is_some() {
                keys.push(OwnedKey::Boolean(yes));
            }
        }
        keys
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let mut state = self.state.write();
        let State { list, texts, numbers, booleans, .. } = std::mem::take(&mut *state);
        let slots = list.into_iter().chain(texts.into_values()).chain(numbers.into_values()).chain(booleans);
        bury(slots.map(|slot| slot.value));
    }
}

impl Object for Table {
    fn kind(&self) -> u32 {
        kind::TABLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(stored: &Stored) -> Option<f64> {
        match stored {
            Stored::Number(number) => Some(*number),
            _ => None,
        }
    }

    proptest::proptest! {
        /// The same as a plain map does.
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0u8..12, 0u8..4), 0..200)) {
            let table = Table::default();
            let mut model = std::collections::HashMap::new();
            for (key, value) in steps {
                let at = f64::from(key) - 2.0;
                let stored = if value == 0 { Stored::Nil } else { Stored::Number(f64::from(value)) };
                let old = table.set(Key::Number(at), stored);
                let before = if value == 0 { model.remove(&key) } else { model.insert(key, value) };
                assert_eq!(number(&old), before.map(f64::from));
                for (key, value) in &model {
                    let found = table.get(Key::Number(f64::from(*key) - 2.0));
                    assert_eq!(number(&found), Some(f64::from(*value)));
                }
                assert_eq!(table.keys().len(), model.len());
                // A border: present at the length, absent behind it.
                let len = table.len();
                assert!(len == 0 || !table.get(Key::Number(len as f64)).is_nil());
                assert!(table.get(Key::Number(len as f64 + 1.0)).is_nil());
            }
        }
    }

    #[test]
    fn a_swap_needs_the_version_that_was_read() {
        let table = Table::default();
        let key = Key::Text(b"count");
        let (_, version) = table.get_with_version(key);
        assert!(table.swap(key, version, Stored::Number(1.0)));
        assert!(!table.swap(key, version, Stored::Number(1.0)), "it is there by now");
        let (_, version) = table.get_with_version(key);
        table.set(key, Stored::Nil);
        assert!(!table.swap(key, version, Stored::Number(2.0)), "it is gone");
        let (_, version) = table.get_with_version(key);
        table.set(key, Stored::Number(3.0));
        table.set(key, Stored::Nil);
        assert!(!table.swap(key, version, Stored::Number(2.0)), "it was there meanwhile");
    }
}
