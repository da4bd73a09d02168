//! The format of values between VMs: tags, the message, a bounds-checked reader.
//!
//! Called by `encode` and `decode`, which know Lua; this file knows bytes. Little endian, no pointers: what cannot be
//! bytes (code, modules to load first) stands beside them in the [`Message`] and is named by its place there.
//!
//! ```text
//! message  = version flags keys:u8 objects:u32  count:varint  value*count  (body | extra)*
//! body     = what was left out of a deferred object, in their order; all that wait stand before the next extra
//! value    = NIL | FALSE | TRUE | NUMBER f64 | INT i32 | STR8 u8 bytes | STR32 u32 bytes | LIGHT u64
//!          | KEY bytes | KEYREF u8        a table's string keys: the n-th KEY of a message is KEYREF n later
//!          | NAMED str str                a module's field; an empty second name: the module itself
//!          | POOL u32 | HANDLE number       an object that crosses by reference, which stands beside the bytes
//!          | REF ordinal | OWN ordinal
//!          | LENT number | OWN_STRING number a long string that stands beside the bytes; one that the job was sent so
//!          | TABLE+flags [contents [value]]   the metatable behind the contents, where flags say META
//!          | FUNC+flags code:varint nups:u8 [value] [cell*nups]   the environment first, where flags say ENV
//!          | CDATA+flags str str            the name of an FFI type of numbers, and the bytes
//!          | PACKED+flags str value         the module that unpacks it, and what its `__msys_pack` gave
//! contents = narr:u32 nrec:u32 value*narr (value value)*nrec
//!          | narr:varint shape value*narr value*len      where flags say SHAPED: values under the shape's keys
//! shape    = number:varint, 0 for no key; the next new number: then also len:u8 (1 to MAX_SHAPE) str*len
//! cell     = CELL value | CELL_SHARED value | CELLREF ordinal | CELL_OWN ordinal upvalue:u8
//! extra    = GLOBAL str value | LEFT_OUT str str            a job's: a global by name; or why it is not there
//!          | SET ordinal value value | SET_META ordinal value | SET_CELL ordinal upvalue:u8 value an outcome's:
//!          changes
//!          | SET_ENV ordinal value | SET_GLOBAL value value | SET_BYTES ordinal str       of what the job was sent
//! ```
//! **Identity.** Tables, functions and cdata are numbered in the order in which they begin, cells in an order of their
//! own. An object is written where it is first met; met again, it is a REF, and the flag SHARED is set in the tag
//! already written. So the decoder keeps only those objects that are named again.
//!
//! **Shapes.** Records of one kind have the same string keys in the same order: those are written once, and numbered.
//!
//! **Both ways.** With the flag KEEP in a job's message, both sides keep all its objects by ordinal. The outcome then
//! names the submitter's own objects: OWN, CELL_OWN, and the SET extras, which change them.
//!
//! **Depth.** Beyond [`MAX_DEPTH`] nested objects an object's contents are DEFERRED: the value ends behind its head,
//! and the contents follow as a body behind the roots. Neither side recurses deeper, whatever the message.

use std::{fmt, sync::Arc};

use smallvec::SmallVec;

use crate::{code::Code, lease::Lease};

/// First byte of a message; a change of the format changes it.
pub const VERSION: u8 = 4;
/// How many bytes stand before the count of values.
pub const HEADER: usize = 7;
/// A head that says nothing, for what has no more to say.
pub const HEAD: [u8; HEADER] = [VERSION, 0, 0, 0, 0, 0, 0];
/// The same of a message with one object.
pub const HEAD_OF_ONE: [u8; HEADER] = [VERSION, 0, 0, 1, 0, 0, 0];
/// How many objects may be nested before contents are deferred. Two Lua stack slots are needed for each.
pub const MAX_DEPTH: usize = 48;
/// How long a string is lent and not copied, in bytes: where copying costs more than keeping account.
pub const LEND: usize = 64 << 10;
/// How many distinct keys a message numbers: the decoder keeps that many stack slots for them.
pub const MAX_KEYS: usize = 100;
/// How many keys a shape may have: what has more is hardly a record of which there are many.
pub const MAX_SHAPE: usize = 32;
/// How many shapes a message may have.
pub const MAX_SHAPES: usize = 1000;

/// The second byte of a message.
pub mod flag {
    /// Keep all objects: the outcome will speak of them.
    pub const KEEP: u8 = 1;
    /// Functions get an environment of the job's own.
    pub const ENV: u8 = 2;
    /// That environment can be looked at, or code that has not been seen may use it.
    pub const OPEN_ENV: u8 = 4;
}

/// The first byte of a value or an extra.
pub mod tag {
    #![allow(missing_docs, reason = "the grammar above says what each is")]
    pub const NIL: u8 = 0;
    pub const FALSE: u8 = 1;
    pub const TRUE: u8 = 2;
    pub const NUMBER: u8 = 3;
    pub const INT: u8 = 4;
    pub const STR8: u8 = 5;
    pub const STR32: u8 = 6;
    pub const LIGHT: u8 = 7;
    pub const KEY: u8 = 8;
    pub const KEYREF: u8 = 9;
    pub const NAMED: u8 = 10;
    pub const POOL: u8 = 11;
    pub const REF: u8 = 12;
    pub const CELL: u8 = 13;
    pub const CELL_SHARED: u8 = 14;
    pub const CELLREF: u8 = 15;
    pub const CELL_OWN: u8 = 16;
    pub const OWN: u8 = 17;
    pub const GLOBAL: u8 = 18;
    pub const LEFT_OUT: u8 = 19;
    pub const SET: u8 = 20;
    pub const SET_META: u8 = 21;
    pub const SET_CELL: u8 = 22;
    pub const SET_ENV: u8 = 23;
    pub const SET_GLOBAL: u8 = 24;
    pub const SET_BYTES: u8 = 25;
    pub const LENT: u8 = 26;
    pub const OWN_STRING: u8 = 27;
    pub const HANDLE: u8 = 28;
    pub const TABLE: u8 = 0x40;
    pub const FUNC: u8 = 0x60;
    pub const CDATA: u8 = 0x80;
    pub const PACKED: u8 = 0xa0;
    /// The kinds with flags: `tag & KIND`.
    pub const KIND: u8 = 0xe0;
    pub const SHARED: u8 = 1;
    pub const DEFERRED: u8 = 2;
    pub const META: u8 = 4;
    /// Of a function.
    pub const ENV: u8 = 8;
    /// Of a table.
    pub const SHAPED: u8 = 8;
}

/// Values on their way from one VM to another.
#[derive(Debug, Default)]
pub struct Message {
    /// The values, in the format above.
    pub bytes: Bytes,
    /// The code of the functions among them: the first.
    code: Option<Arc<Code>>,
    beside: Option<Box<Beside>>,
}

/// A message's bytes: those of a closure with three numbers as upvalues need no memory of their own.
pub type Bytes = SmallVec<[u8; 32]>;

/// What few messages have.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The codes behind the first.
    codes: Vec<Arc<Code>>,
    /// Modules that the receiver loads before it decodes.
    pub modules: Vec<Arc<str>>,
    /// Strings that stay with the sender until the outcome has come.
    pub lent: Vec<Arc<Lease>>,
    /// The objects that cross by reference.
    pub handles: Vec<Arc<dyn Object>>,
}

static NOTHING_BESIDE: Beside =
    Beside { codes: Vec::new(), modules: Vec::new(), lent: Vec::new(), handles: Vec::new() };

/// What a handle is of. The kinds are in `handles`.
pub trait Object: fmt::Debug + Send + Sync {
    /// A number for its type: whoever knows that knows what is behind the pointer.
    fn kind(&self) -> u32;
}

/// What crosses by reference.
#[derive(Clone, Debug)]
pub enum Handle {
    /// A pool, by its id.
    Pool(u32),
    /// Any other object.
    Object(Arc<dyn Object>),
}

impl Message {
    /// The same with other bytes.
    pub fn with_bytes(&self, bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), code: self.code.clone(), beside: self.beside.clone() }
    }

    /// The code at a place.
    #[inline]
    pub fn code(&self, place: usize) -> Option<&Arc<Code>> {
        match place.checked_sub(1) {
            None => self.code.as_ref(),
            Some(behind) => self.beside().codes.get(behind),
        }
    }

    /// The place of a code, which is added where it is not there.
    pub fn place_of(&mut self, code: Arc<Code>) -> usize {
        match &self.code {
            None => {
                self.code = Some(code);
                0
            }
            Some(first) if first.id == code.id => 0,
            Some(_) => {
                let codes = &mut self.beside_mut().codes;
                let known = codes.iter().position(|known| known.id == code.id);
                1 + known.unwrap_or_else(|| {
                    codes.push(code);
                    codes.len() - 1
                })
            }
        }
    }

    /// What stands beside bytes and codes.
    #[inline]
    pub fn beside(&self) -> &Beside {
        self.beside.as_deref().unwrap_or(&NOTHING_BESIDE)
    }

    /// The same, to be changed.
    pub fn beside_mut(&mut self) -> &mut Beside {
        self.beside.get_or_insert_default()
    }

    /// Takes the bytes that were written into `written`, and leaves memory for the next ones there.
    #[inline]
    pub fn take_bytes(&mut self, written: &mut Vec<u8>) {
        /// Beyond this, a copy costs more than the memory for the next ones.
        const COPIED: usize = 4096;
        // Whoever keeps the message is not to keep what a larger one has left.
        if written.len() <= COPIED || written.capacity() > 2 * written.len() {
            self.bytes.clear();
            self.bytes.extend_from_slice(written);
            return;
        }
        let before = std::mem::take(&mut self.bytes);
        let spare = if before.spilled() { before.into_vec() } else { Vec::new() };
        self.bytes = Bytes::from_vec(std::mem::replace(written, spare));
    }

    /// Whether it is of one value, which is a handle of an object.
    pub fn is_handle(&self) -> bool {
        self.bytes.get(HEADER..) == Some(&[1, tag::HANDLE, 0][..])
    }

    /// Whether its sender keeps something until the outcome has come: what it may speak of, or what was lent.
    pub fn has_kept(&self) -> bool {
        self.keeps() || !self.beside().lent.is_empty()
    }

    /// Whether it asks its receiver to keep its objects.
    pub fn keeps(&self) -> bool {
        keeps(&self.bytes)
    }

    /// Empties the message; its memory is kept: see [`empty`].
    pub fn clear(&mut self) {
        self.clear_values();
        self.code = None;
        if let Some(beside) = &mut self.beside {
            beside.codes.clear();
        }
    }

    /// As [`Message::clear`], but for the codes: whoever has put them in lets go of them when the message is back, so
    /// that their counts stay in that core's cache.
    pub fn clear_values(&mut self) {
        empty_bytes(&mut self.bytes);
        if let Some(beside) = &mut self.beside {
            beside.modules.clear();
            beside.lent.clear();
            beside.handles.clear();
        }
    }
}

/// Whether the message with these bytes asks its receiver to keep its objects.
pub fn keeps(bytes: &[u8]) -> bool {
    bytes.get(1).is_some_and(|flags| flags & flag::KEEP != 0)
}

/// What a buffer may have without being counted by whoever keeps it.
pub const SMALL: usize = 64 * 1024;
/// What a buffer may have and be kept: memory that has just been used is there at once, and new memory costs more than
/// what is written into it. A VM keeps few that are not small.
pub const LARGE: usize = 2 << 20;

/// Empties a buffer and keeps its memory, unless that is too large.
pub fn empty(bytes: &mut Vec<u8>) {
    if bytes.capacity() > LARGE {
        *bytes = Vec::new();
    } else {
        bytes.clear();
    }
}

/// The same of a message's bytes.
#[inline]
pub fn empty_bytes(bytes: &mut Bytes) {
    if bytes.capacity() > LARGE {
        *bytes = Bytes::new();
    } else {
        bytes.clear();
    }
}

/// Appends `value` as a LEB128 varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    if value < 0x80 {
        out.push(value as u8);
        return;
    }
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a number with its tag.
#[inline]
pub fn put_number(out: &mut Vec<u8>, number: f64) {
    let whole = number as i32;
    // Bit by bit: -0 is not the 0 that an integer would give back.
    if f64::from(whole).to_bits() == number.to_bits() {
        let [a, b, c, d] = whole.to_le_bytes();
        out.extend_from_slice(&[tag::INT, a, b, c, d]);
    } else {
        let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
        out.extend_from_slice(&[tag::NUMBER, a, b, c, d, e, f, g, h]);
    }
}

/// Appends a string with its tag.
#[inline]
pub fn put_text(out: &mut Vec<u8>, bytes: &[u8]) {
    match u8::try_from(bytes.len()) {
        Ok(len) => out.extend_from_slice(&[tag::STR8, len]),
        Err(_) => {
            out.push(tag::STR32);
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

/// Appends a byte string behind its varint length.
#[inline]
pub fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The bytes are not what an encoder writes. Cannot happen inside one process, and is checked all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads a message; every method fails with [`Malformed`] rather than pass the end.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left: an upper bound for the number of values.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    #[inline]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.rest.split_first().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*first)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// The next four bytes.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next eight bytes.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next eight bytes as a number.
    #[inline]
    pub fn f64(&mut self) -> Result<f64, Malformed> {
        self.array().map(f64::from_le_bytes)
    }

    /// A LEB128 varint.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// A whole number of 32 bits.
    #[inline]
    pub fn int(&mut self) -> Result<f64, Malformed> {
        self.array().map(|bytes| f64::from(i32::from_le_bytes(bytes)))
    }

    /// A byte string behind its varint length.
    pub fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.varint()?;
        self.take(usize::try_from(len).map_err(|_| Malformed)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_varint_reads_back(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut reader = Reader::new(&out);
            proptest::prop_assert_eq!(reader.varint(), Ok(value));
            proptest::prop_assert_eq!(reader.remaining(), 0);
        }
    }

    #[test]
    fn a_message_takes_the_buffer_only_where_it_fills_it() {
        let mut message = Message::default();
        let mut written = Vec::with_capacity(1 << 20);
        written.resize(5000, 1);
        message.take_bytes(&mut written);
        assert_eq!(message.bytes.len(), 5000);
        assert!(message.bytes.capacity() < 16 << 10 && written.capacity() >= 1 << 20);
        written.resize(1 << 20, 2);
        let place = written.as_ptr();
        message.take_bytes(&mut written);
        assert_eq!(message.bytes.as_ptr(), place);
    }

    #[test]
    fn reading_past_the_end_is_malformed() {
        let mut reader = Reader::new(&[1, 2]);
        assert_eq!(reader.u32(), Err(Malformed));
        assert_eq!(reader.take(3), Err(Malformed));
        assert_eq!(reader.take(2), Ok(&[1u8, 2][..]));
        assert_eq!(reader.u8(), Err(Malformed));
    }
}
