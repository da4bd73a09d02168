//! Which lists of keys a message has numbered.

use rustc_hash::FxHashMap;

use crate::{
    layout::{Node, Slot},
    wire::MAX_SHAPES,
};

/// See the module. Keys are told by address: they live as long as the tables that have them, or are held.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    /// The keys of all shapes, one after the other.
    keys: Vec<Slot>,
    /// Where each shape's keys begin and end.
    places: Vec<(u32, u32)>,
    by_hash: FxHashMap<u64, u32>,
    /// The last one at each depth of nesting, modulo a few: most often, the next there is of the same shape.
    recent: [u32; 8],
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
        self.recent = [0; 8];
    }

    /// The keys of a shape.
    #[inline]
    pub(super) fn keys(&self, number: u32) -> &[Slot] {
        let place = (number as usize).wrapping_sub(1);
        let (start, end) = self.places.get(place).copied().unwrap_or_default();
        self.keys.get(start as usize..end as usize).unwrap_or_default()
    }

    /// The number of the last shape at this depth, if these nodes have its keys in its order.
    #[inline]
    pub(super) fn guess(&self, nodes: &[Node], depth: usize) -> Option<u32> {
        let number = *self.recent.get(depth % 8)?;
        let mut expected = self.keys(number).iter();
        for node in nodes {
            if !node.value.is_nil() && expected.next() != Some(&node.key) {
                return None;
            }
        }
        (number > 0 && expected.len() == 0).then_some(number)
    }

    /// The number of the shape with these keys.
    pub(super) fn number(&mut self, keys: &[Slot], depth: usize) -> Shape {
        let hash = keys.iter().fold(keys.len() as u64, |hash, key| {
            (hash.rotate_left(5) ^ key.bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        let known = self.by_hash.get(&hash).copied();
        if known.is_some_and(|number| self.keys(number) != keys) || known.is_none() && self.places.len() >= MAX_SHAPES {
            return Shape::None;
        }
        let number = known.unwrap_or_else(|| {
            let start = self.keys.len() as u32;
            self.keys.extend_from_slice(keys);
            self.places.push((start, self.keys.len() as u32));
            let number = self.places.len() as u32;
            self.by_hash.insert(hash, number);
            number
        });
        if let Some(recent) = self.recent.get_mut(depth % 8) {
            *recent = number;
        }
        if known.is_some() { Shape::Known(number) } else { Shape::New(number) }
    }
}
