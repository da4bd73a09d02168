//! Which lists of keys a message has numbered.

use rustc_hash::FxHashMap;

use crate::{layout::Text, wire::MAX_SHAPES};

/// See the module. Keys are told by address: what a message sends stays alive until it is written.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    /// The keys of all shapes, one after the other.
    keys: Vec<*const Text>,
    /// Where each shape's keys begin and end.
    places: Vec<(u32, u32)>,
    by_hash: FxHashMap<u64, u32>,
    last: u32,
}

/// A shape's number, from 1.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// It has been written.
    Known(u32),
    /// Its keys are to be written.
    New(u32),
    /// There is no number left.
    None,
}

impl Shapes {
    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.places.clear();
        self.by_hash.clear();
    }

    fn is(&self, number: u32, keys: &[*const Text]) -> bool {
        let place = (number as usize).wrapping_sub(1);
        let Some((start, end)) = self.places.get(place).copied() else { return false };
        self.keys.get(start as usize..end as usize) == Some(keys)
    }

    /// The number of the shape with these keys.
    #[inline]
    pub(super) fn number(&mut self, keys: &[*const Text]) -> Shape {
        if self.is(self.last, keys) {
            return Shape::Known(self.last);
        }
        let hash = keys.iter().fold(keys.len() as u64, |hash, key| {
            (hash.rotate_left(5) ^ key.addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        if let Some(number) = self.by_hash.get(&hash).copied() {
            if !self.is(number, keys) {
                return Shape::None;
            }
            self.last = number;
            return Shape::Known(number);
        }
        if self.places.len() >= MAX_SHAPES {
            return Shape::None;
        }
        let start = self.keys.len() as u32;
        self.keys.extend_from_slice(keys);
        self.places.push((start, self.keys.len() as u32));
        self.last = self.places.len() as u32;
        self.by_hash.insert(hash, self.last);
        Shape::New(self.last)
    }
}
