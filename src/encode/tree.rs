//! Tables, read as they lie in memory (`layout`): most of what a message holds goes this way.
//!
//! Nothing of a table is pushed on the stack to be read. What is no plain value (a function, an FFI object, what is to
//! be kept or left for later) is: the tables on the way to it are then pushed too, each from the one that it was found
//! in, and stay there until they are done with. So whatever runs Lua meanwhile, the tables that are being read are
//! alive. What Lua has changed of them does no harm to memory: every access is checked against the table as it is. That
//! an address stands for one object all through the message needs more: see `Encoder::holding`.

use std::{cell::Cell, ffi::c_int};

use super::{Encoder, Purpose, Step, shapes::Shape};
use crate::{
    layout::{self, Node, Slot, Table, Text, Value},
    luajit::{ffi, push_bytes},
    wire::{MAX_KEYS, MAX_SHAPE, put_string, put_varint, tag},
};

/// A table that is being written, and how it was found.
pub(super) struct Frame<'a> {
    table: *const Table,
    /// In which table, at which place; `None` for one that came from the stack.
    from: Option<(&'a Frame<'a>, Place)>,
    /// Its stack index, once it has one.
    at: Cell<c_int>,
}

#[derive(Clone, Copy)]
enum Place {
    Item(usize),
    Node(usize),
}

impl Frame<'static> {
    /// Of the table on the stack at `at`.
    pub(super) fn on_stack(table: *const Table, at: c_int) -> Self {
        Self { table, from: None, at: Cell::new(at) }
    }
}

/// What the hash part of a table has.
enum Records {
    /// This many string keys, few enough for a shape.
    Shape(usize),
    /// So many, with strings, numbers and booleans as keys.
    Plain(u32),
    /// Other keys too.
    Odd,
}

impl Encoder<'_> {
    /// Pushes the frame's table, and those on the way to it, unless it is on the stack; gives its index.
    unsafe fn anchor(&mut self, frame: &Frame<'_>) -> c_int {
        // SAFETY: `message_from` has made room for a chain of the deepest nesting.
        unsafe {
            if let (0, Some((parent, place))) = (frame.at.get(), frame.from) {
                let at = self.anchor(parent);
                self.push_place(parent.table, at, place);
                let top = ffi::lua_gettop(self.state);
                if ffi::lua_topointer(self.state, top) != frame.table.cast() {
                    self.changed();
                }
                frame.at.set(top);
            }
            frame.at.get()
        }
    }

    /// Pushes what a table, which is on the stack at `at`, has at a place.
    unsafe fn push_place(&mut self, table: *const Table, at: c_int, place: Place) {
        // SAFETY: the table is alive. A key's bytes are copied before LuaJIT is called, which may collect.
        unsafe {
            match place {
                Place::Item(place) => ffi::lua_rawgeti_(self.state, at, place as c_int),
                Place::Node(place) => {
                    let node = (*table).node(place).filter(|node| !node.value.is_nil());
                    match node.map(|node| node.key.value()) {
                        Some(Value::String(text)) => {
                            self.scratch.key.clear();
                            self.scratch.key.extend_from_slice(layout::bytes(text));
                            push_bytes(self.state, &self.scratch.key);
                        }
                        Some(Value::Number(number)) => ffi::lua_pushnumber(self.state, number),
                        Some(Value::Boolean(yes)) => ffi::lua_pushboolean(self.state, c_int::from(yes)),
                        _ => self.changed(),
                    }
                    ffi::lua_rawget_(self.state, at);
                }
            }
        }
    }

    /// Raises: a finalizer or an object's `__msys_pack` has changed what is being sent.
    pub(super) fn changed(&mut self) -> ! {
        self.raise(b"msys: a table was changed while it was being sent");
    }

    /// Writes a table that was found in another.
    unsafe fn tree(&mut self, frame: &Frame<'_>, depth: usize) -> Step {
        // SAFETY: the table was found in a living one, and no Lua has run since.
        unsafe {
            let meta = (*frame.table).metatable();
            // What is known of a metatable decides whether the table is more than that.
            if !meta.is_null() && (self.functions.has_environments() || !self.is_plain(meta)) {
                let at = self.anchor(frame);
                return self.table(at, depth);
            }
            let object = frame.table.cast();
            if self.own(object) || self.named(object) {
                return Ok(());
            }
            let Some(tag_at) = self.number_or_refer(object)? else { return Ok(()) };
            self.has_tables = true;
            if let Purpose::Job { keep: true, .. } = self.request.purpose {
                let at = self.anchor(frame);
                self.keep_object(at);
            } else if self.holding {
                let at = self.anchor(frame);
                self.hold(at);
            }
            let flags = if meta.is_null() { 0 } else { tag::META };
            if self.is_deep(depth)? {
                let at = self.anchor(frame);
                self.bytes.push(tag::TABLE | flags | tag::DEFERRED);
                self.defer(at);
                return Ok(());
            }
            self.bytes.push(tag::TABLE | flags);
            self.body(frame, tag_at, depth)?;
            if !(meta.is_null() || self.again(meta.cast())? || self.own(meta.cast()) || self.named(meta.cast())) {
                let at = self.anchor(frame);
                if ffi::lua_getmetatable(self.state, at) == 0 {
                    self.changed();
                }
                let meta_at = ffi::lua_gettop(self.state);
                self.value(meta_at, depth + 1)?;
                ffi::lua_settop(self.state, meta_at - 1);
            }
            Ok(())
        }
    }

    /// Writes items and records of a table whose tag stands at `tag_at`.
    ///
    /// # Safety
    /// As `value`; the frame's table is alive.
    pub(super) unsafe fn body(&mut self, frame: &Frame<'_>, tag_at: usize, depth: usize) -> Step {
        // SAFETY: what is read is checked against the table as it is at that moment.
        unsafe {
            let table = &*frame.table;
            let (items, sparse) = if table.item_count() == 0 { (0, 0) } else { items_of(table) };
            if sparse == 0 && let Some(number) = self.scratch.shapes.guess(table.nodes(), depth) {
                self.shaped(tag_at, items, number);
                self.items(frame, items, depth)?;
                return self.values_of(frame, number, items == 0, depth);
            }
            let mut keys = [Slot::NIL; MAX_SHAPE];
            let mut records = records_of(table.nodes(), &mut keys);
            if let (Records::Shape(count), true) = (&records, sparse > 0) {
                records = Records::Plain(*count as u32);
            }
            let plain = match records {
                Records::Odd => {
                    let at = self.anchor(frame);
                    return self.contents(at, false, depth);
                }
                Records::Plain(count) => count,
                Records::Shape(0) => {
                    self.shaped(tag_at, items, 0);
                    return self.items(frame, items, depth);
                }
                Records::Shape(count) => {
                    let keys = keys.get(..count).unwrap_or_default();
                    match self.scratch.shapes.number(keys, depth) {
                        Shape::None => count as u32,
                        Shape::Known(number) => {
                            self.shaped(tag_at, items, number);
                            self.items(frame, items, depth)?;
                            return self.values_of(frame, number, items == 0, depth);
                        }
                        Shape::New(number) => {
                            self.shaped(tag_at, items, number);
                            self.bytes.push(count as u8);
                            for text in keys.iter().filter_map(|key| key.string()) {
                                put_string(&mut self.bytes, layout::bytes(text));
                            }
                            if self.holding {
                                self.hold_keys(keys);
                            }
                            self.items(frame, items, depth)?;
                            return self.values_of(frame, number, items == 0, depth);
                        }
                    }
                }
            };
            let count = plain + sparse;
            self.bytes.extend_from_slice(&(items as u32).to_le_bytes());
            self.bytes.extend_from_slice(&count.to_le_bytes());
            self.items(frame, items, depth)?;
            self.records(frame, items, count, depth)
        }
    }

    /// Writes the head of a table that has items, and the keys of a shape or none.
    #[inline]
    fn shaped(&mut self, tag_at: usize, items: usize, shape: u32) {
        if let Some(tag) = self.bytes.get_mut(tag_at) {
            *tag |= tag::SHAPED;
        }
        put_varint(&mut self.bytes, items as u64);
        put_varint(&mut self.bytes, u64::from(shape));
    }

    /// Writes the items from 1 to `count`.
    unsafe fn items(&mut self, frame: &Frame<'_>, count: usize, depth: usize) -> Step {
        for place in 1..=count {
            // SAFETY: as `body`.
            unsafe { self.slot((*frame.table).item(place), frame, Place::Item(place), depth)? };
        }
        Ok(())
    }

    /// Writes the values of a table that has this shape's keys: `surely`, if that has just been found out; but Lua may
    /// run meanwhile.
    #[inline]
    unsafe fn values_of(&mut self, frame: &Frame<'_>, shape: u32, mut surely: bool, depth: usize) -> Step {
        let mut written = 0;
        // SAFETY: as `body`.
        unsafe {
            for place in 0..(*frame.table).node_count() {
                let Some(node) = (*frame.table).node(place) else { break };
                if node.value.is_nil() {
                    continue;
                }
                if !surely && self.scratch.shapes.keys(shape).get(written) != Some(&node.key) {
                    self.changed();
                }
                written += 1;
                match node.value.value() {
                    Value::Number(number) => self.number(number),
                    Value::String(text) if !self.is_special(layout::bytes(text)) => self.text(layout::bytes(text)),
                    _ => {
                        surely = false;
                        self.slot(node.value, frame, Place::Node(place), depth)?;
                    }
                }
            }
        }
        if !surely && self.scratch.shapes.keys(shape).len() != written {
            self.changed();
        }
        Ok(())
    }

    /// Writes all that is not among the first items, with its keys.
    unsafe fn records(&mut self, frame: &Frame<'_>, items: usize, count: u32, depth: usize) -> Step {
        let mut written = 0;
        // SAFETY: as `body`.
        unsafe {
            for place in [0].into_iter().chain(items + 1..(*frame.table).item_count()) {
                let slot = (*frame.table).item(place);
                if !slot.is_nil() {
                    written += 1;
                    self.number(place as f64);
                    self.slot(slot, frame, Place::Item(place), depth)?;
                }
            }
            for place in 0..(*frame.table).node_count() {
                let Some(node) = (*frame.table).node(place) else { break };
                let (key, value) = (node.key, node.value);
                if value.is_nil() {
                    continue;
                }
                written += 1;
                match key.value() {
                    Value::String(text) => self.key_text(text),
                    Value::Number(number) => self.number(number),
                    Value::Boolean(yes) => self.bytes.push(if yes { tag::TRUE } else { tag::FALSE }),
                    _ => self.changed(),
                }
                self.slot(value, frame, Place::Node(place), depth)?;
            }
        }
        if written != count {
            self.changed();
        }
        Ok(())
    }

    /// Writes what a slot holds.
    #[inline(always)]
    unsafe fn slot(&mut self, slot: Slot, frame: &Frame<'_>, place: Place, depth: usize) -> Step {
        // SAFETY: the slot has just been read from a living table.
        unsafe {
            match slot.value() {
                Value::Number(number) => self.number(number),
                Value::String(text) if !self.is_special(layout::bytes(text)) => self.text(layout::bytes(text)),
                Value::Nil => self.bytes.push(tag::NIL),
                Value::Boolean(yes) => self.bytes.push(if yes { tag::TRUE } else { tag::FALSE }),
                Value::Table(table) => {
                    let inner = Frame { table, from: Some((frame, place)), at: Cell::new(0) };
                    self.tree(&inner, depth + 1)?;
                    if inner.at.get() != 0 {
                        ffi::lua_settop(self.state, inner.at.get() - 1);
                    }
                }
                Value::Other | Value::String(_) => {
                    let at = self.anchor(frame);
                    self.push_place(frame.table, at, place);
                    let top = ffi::lua_gettop(self.state);
                    self.value(top, depth + 1)?;
                    ffi::lua_settop(self.state, top - 1);
                }
            }
        }
        Ok(())
    }

    /// A string as a key: written once a message.
    unsafe fn key_text(&mut self, text: *const Text) {
        // SAFETY: as `slot`.
        let bytes = unsafe { layout::bytes(text) };
        self.key_bytes(bytes);
    }

    /// Holds the keys of a shape.
    unsafe fn hold_keys(&mut self, keys: &[Slot]) {
        // SAFETY: the keys have just been read from a living table. They are copied before the first is held, when Lua
        // may run.
        unsafe {
            let texts: Vec<Vec<u8>> =
                keys.iter().filter_map(|key| key.string()).map(|text| layout::bytes(text).to_vec()).collect();
            for text in &texts {
                self.hold_text(text);
            }
        }
    }

    /// Holds the string of these bytes, which this VM has.
    unsafe fn hold_text(&mut self, bytes: &[u8]) {
        // SAFETY: the bytes are copied, since LuaJIT may collect before it looks for the string.
        unsafe {
            self.scratch.key.clear();
            self.scratch.key.extend_from_slice(bytes);
            push_bytes(self.state, &self.scratch.key);
            let at = ffi::lua_gettop(self.state);
            self.hold(at);
            ffi::lua_settop(self.state, at - 1);
        }
    }

    /// Writes a key; equal short strings are one object in a VM, so the address tells.
    pub(super) fn key_bytes(&mut self, bytes: &[u8]) {
        if self.holding && !self.scratch.keys.contains_key(&bytes.as_ptr()) {
            // SAFETY: as `value`; the table that has the key is on the stack, or held.
            unsafe { self.hold_text(bytes) };
        }
        let keys = &mut self.scratch.keys;
        if let Some(number) = keys.get(&bytes.as_ptr()) {
            self.bytes.extend_from_slice(&[tag::KEYREF, *number]);
        } else if keys.len() < MAX_KEYS {
            let number = keys.len() as u8;
            keys.insert(bytes.as_ptr(), number);
            self.bytes.push(tag::KEY);
            put_string(&mut self.bytes, bytes);
        } else {
            self.text(bytes);
        }
    }
}

/// How many items are written as such, and how many of the array part are not: an array with few holes is written with
/// them, so that it is as long there as here.
unsafe fn items_of(table: &Table) -> (usize, u32) {
    // SAFETY: the caller's table is alive.
    unsafe {
        let zero = u32::from(!table.item(0).is_nil());
        let mut last = table.item_count().saturating_sub(1);
        while last > 0 && table.item(last).is_nil() {
            last -= 1;
        }
        let holes = (1..last).filter(|place| table.item(*place).is_nil()).count();
        if holes * 2 <= last {
            return (last, zero);
        }
        let first_hole = (1..last).find(|place| table.item(*place).is_nil()).unwrap_or(last);
        let items = first_hole.saturating_sub(1);
        (items, (last - holes - items) as u32 + zero)
    }
}

/// What the hash part has; string keys are put into `keys`.
fn records_of(nodes: &[Node], keys: &mut [Slot; MAX_SHAPE]) -> Records {
    let mut count = 0;
    let mut shaped = true;
    for node in nodes {
        if node.value.is_nil() {
            continue;
        }
        match (node.key.value(), keys.get_mut(count as usize)) {
            (Value::String(_), Some(key)) => *key = node.key,
            (Value::String(_) | Value::Number(_) | Value::Boolean(_), _) => shaped = false,
            _ => return Records::Odd,
        }
        count += 1;
    }
    if shaped { Records::Shape(count as usize) } else { Records::Plain(count) }
}

const _: () = assert!(MAX_SHAPE < 256, "a shape's length is a byte");
