//! LuaJIT's dump format, as far as a factory needs it (format: LuaJIT's `lj_bcdump.h`).
//!
//! Called by `usage` and `functions`. Knows bytes only, no VM.
//!
//! ```text
//! dump   = ESC 'L' 'J' version flags [namelen name] proto* 0        version: one byte, the others: ULEB128
//! proto  = length body                                              children stand before their parent
//! body   = flags numparams framesize numuv  numkgc numkn numbc      four bytes, then three ULEB128
//!          [debuglen [firstline numline]]  bytecode[4*numbc]  upvalues[2*numuv]  constants  debug
//! ```
//! The brackets of `namelen` and `debuglen` are absent in a stripped dump.
//!
//! A **factory** is a dump whose main function makes a closure over one fixed prototype: the last prototype of a
//! dumped function spliced under the main function of [`template_source`]. Loading it once and calling it many times
//! gives closures that share their prototype, and so its compiled traces, but each have cells of their own. For that
//! the child's upvalues must say "local slot i of the parent, mutable", which is what the template's own child says:
//! its `2*numuv` bytes replace the child's. The prototype's code is untouched.
//!
//! **Many closures.** The compiler takes a function for one closure, whose upvalues it may take for constants, until
//! three were made of its prototype; a trace that it has made by then is left at each call of another. A job's
//! functions are made anew in each job, so [`MANY`] in the flags of their prototypes says from the beginning what would
//! be known after the third.
//!
//! **Guards of loops.** In pools whose jobs can be stopped, the compiler puts a guard wherever the line changes. The end
//! of a numeric `for` counts as the line of its `for`, so that a loop with a body of one line has two guards a round.
//! Nothing is ever raised there: it is given the line of such a body, which leaves one.

use std::sync::OnceLock;

/// First bytes of every dump, and the one version whose layout is known here.
const MAGIC: [u8; 3] = [0x1b, b'L', b'J'];
const VERSION: u8 = 2;
const FLAG_BIG_ENDIAN: u64 = 1;
const FLAG_STRIPPED: u64 = 2;
/// Flags that say nothing about how the code is written: FFI, operators on bits, deterministic. LuaJITs that have the
/// second (2026) set it for any function of which four closures were made, whose count has the same bit.
const FLAGS_FREE: u64 = 4 | 0x10 | 0x8000_0000;
/// All flags that this file understands: endianness, strip, two-slot frames, and those.
const FLAGS_KNOWN: u64 = 1 | 2 | 8 | FLAGS_FREE;

/// In a prototype's flags, of which it is the part that LuaJIT counts closures in: enough of them.
const MANY: u8 = 0x60;

/// The instruction that ends a numeric `for`, once a [`Template`] was read.
static FOR_END: OnceLock<u8> = OnceLock::new();

/// Lua source of a function that makes closures with `upvalues` upvalues, its arguments; its dump is the donor of a
/// factory.
pub fn template_source(upvalues: usize) -> String {
    if upvalues == 0 {
        return "return function() for _ = 1, 1 do end end".to_owned();
    }
    let names: Vec<String> = (1..=upvalues).map(|i| format!("u{i}")).collect();
    let names = names.join(",");
    format!("local {names} = ... return function() {names} = {names} for _ = 1, 1 do end end")
}

/// The parts of a template's dump that a factory takes over.
#[derive(Debug)]
pub struct Template {
    /// The main prototype with its length prefix.
    parent: Vec<u8>,
    /// The child's upvalue descriptions.
    upvalues: Vec<u8>,
    flags: u64,
}

impl Template {
    /// Reads the dump of [`template_source`]; `None` where the format is not the known one.
    pub fn new(dump: &[u8]) -> Option<Self> {
        let parsed = Dump::parse(dump)?;
        let [child, parent] = parsed.protos.as_slice() else { return None };
        if let [.., for_end, _return] = child.code(dump)? {
            FOR_END.get_or_init(|| for_end[0]);
        }
        Some(Self {
            parent: dump.get(parent.start..parent.end)?.to_vec(),
            upvalues: dump.get(child.upvalues_at..child.upvalues_at + child.upvalues_len)?.to_vec(),
            flags: parsed.flags,
        })
    }

    /// The factory of the function dumped in `dump`; `None` where it cannot be spliced (then load `dump` itself).
    pub fn splice(&self, dump: &[u8]) -> Option<Vec<u8>> {
        let parsed = Dump::parse(dump)?;
        let main = parsed.protos.last()?;
        if main.upvalues_len != self.upvalues.len() || (parsed.flags ^ self.flags) & !FLAGS_FREE != 0 {
            return None;
        }
        let mut out = Vec::with_capacity(dump.len() + self.parent.len());
        out.extend_from_slice(dump.get(..main.upvalues_at)?);
        out.extend_from_slice(&self.upvalues);
        out.extend_from_slice(dump.get(main.upvalues_at + main.upvalues_len..main.end)?);
        out.extend_from_slice(&self.parent);
        out.push(0);
        mark(&parsed, &mut out);
        Some(out)
    }
}

/// Says of all functions of a dump, which `bytes` begin with but for upvalues, that there are many closures of each; and
/// gives the ends of their loops other lines.
fn mark(dump: &Dump, bytes: &mut [u8]) {
    let for_end = FOR_END.get().copied();
    for proto in &dump.protos {
        if let Some(flags) = bytes.get_mut(proto.flags_at) {
            *flags |= MANY;
        }
        if let Some(for_end) = for_end {
            move_loop_ends(proto, for_end, bytes);
        }
    }
}

/// Gives each end of a numeric `for` the line of its body, where that has one line.
fn move_loop_ends(proto: &Proto, for_end: u8, bytes: &mut [u8]) -> Option<()> {
    let Lines { at, size } = proto.lines?;
    for place in 1..proto.code(bytes)?.len() {
        let [opcode, _, low, high] = *proto.code(bytes)?.get(place)?;
        let line = at + place * size;
        if opcode != for_end || line + size > proto.end {
            continue;
        }
        // It jumps back to the body's first instruction.
        let back = 0x8000usize.checked_sub(usize::from(u16::from_le_bytes([low, high])) + 1);
        let Some(first) = back.and_then(|back| place.checked_sub(back)).filter(|first| *first < place) else { continue };
        let body = bytes.get(at + first * size..line)?;
        if body.chunks_exact(size).all(|other| other == &body[..size]) {
            bytes.copy_within(line - size..line, line);
        }
    }
    Some(())
}

/// The dump of a function of which there will be many closures, as there will be of those in it; `None` where the
/// format is not the known one.
pub fn of_many(dump: &[u8]) -> Option<Vec<u8>> {
    let parsed = Dump::parse(dump)?;
    let mut bytes = dump.to_vec();
    mark(&parsed, &mut bytes);
    Some(bytes)
}

/// How many upvalues the function dumped in `dump` has; `None` where the format is not the known one.
pub fn upvalue_count(dump: &[u8]) -> Option<usize> {
    Some(Dump::parse(dump)?.protos.last()?.upvalues_len / 2)
}

/// Where one prototype and its parts stand in its dump.
#[derive(Debug)]
pub(crate) struct Proto {
    /// Offset of the length prefix.
    start: usize,
    /// Offset behind the last byte.
    pub(crate) end: usize,
    flags_at: usize,
    pub(crate) code_at: usize,
    pub(crate) upvalues_at: usize,
    pub(crate) upvalues_len: usize,
    /// How many constants there are that are objects; they stand behind the upvalues.
    pub(crate) constants: usize,
    lines: Option<Lines>,
}

/// Where the lines of a prototype's instructions stand, one for each, and how many bytes each has.
#[derive(Clone, Copy, Debug)]
struct Lines {
    at: usize,
    size: usize,
}

impl Proto {
    fn code<'a>(&self, dump: &'a [u8]) -> Option<&'a [[u8; 4]]> {
        Some(dump.get(self.code_at..self.upvalues_at)?.as_chunks().0)
    }
}

#[derive(Debug)]
pub(crate) struct Dump {
    flags: u64,
    pub(crate) protos: Vec<Proto>,
}

impl Dump {
    pub(crate) fn parse(dump: &[u8]) -> Option<Self> {
        let mut at = Cursor { bytes: dump, pos: 0 };
        if at.take(3)? != MAGIC || at.byte()? != VERSION {
            return None;
        }
        let flags = at.uleb()?;
        if flags & !FLAGS_KNOWN != 0 || (flags & FLAG_BIG_ENDIAN != 0) != cfg!(target_endian = "big") {
            return None;
        }
        let stripped = flags & FLAG_STRIPPED != 0;
        if !stripped {
            let name = at.length()?;
            at.take(name)?;
        }
        let mut protos = Vec::new();
        loop {
            let start = at.pos;
            let length = at.length()?;
            if length == 0 {
                return (at.pos == dump.len() && !protos.is_empty()).then_some(Self { flags, protos });
            }
            let end = at.pos.checked_add(length)?;
            let body_at = at.pos;
            let mut body = Cursor { bytes: at.take(length)?, pos: 0 };
            let mut proto = proto_of(&mut body, stripped)?;
            proto.start = start;
            proto.end = end;
            proto.flags_at = body_at;
            proto.code_at += body_at;
            proto.upvalues_at += body_at;
            proto.lines = proto.lines.map(|lines| Lines { at: lines.at + body_at, ..lines });
            protos.push(proto);
        }
    }
}

/// The parts of one prototype, by their places in its body.
fn proto_of(at: &mut Cursor<'_>, stripped: bool) -> Option<Proto> {
    at.take(3)?; // flags, parameters, frame size
    let upvalues_len = usize::from(at.byte()?) * 2;
    let constants = at.length()?;
    at.uleb()?; // numeric constants
    let code = at.length()?.checked_mul(4)?;
    let debug_len = if stripped { 0 } else { at.length()? };
    let mut lines = None;
    if debug_len != 0 {
        at.uleb()?; // first line
        let size = match at.uleb()? {
            0..=0xff => 1,
            0x100..=0xffff => 2,
            _ => 4,
        };
        lines = Some(Lines { at: at.bytes.len().checked_sub(debug_len)?, size });
    }
    let code_at = at.pos;
    at.take(code)?;
    let upvalues_at = at.pos;
    at.take(upvalues_len)?;
    Some(Proto { start: 0, end: 0, flags_at: 0, code_at, upvalues_at, upvalues_len, constants, lines })
}

/// A bounds-checked reader: every method gives `None` at the end of the bytes.
pub(crate) struct Cursor<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) pos: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.pos.checked_add(len)?;
        let taken = self.bytes.get(self.pos..end)?;
        self.pos = end;
        Some(taken)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(crate) fn uleb(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    pub(crate) fn length(&mut self) -> Option<usize> {
        usize::try_from(self.uleb()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_dump_is_no_template() {
        assert!(Template::new(b"").is_none());
        assert!(Template::new(b"\x1bLJ\x02").is_none());
        assert!(Template::new(b"\x1bLJ\x09\x00\x00\x00").is_none(), "an unknown version");
    }

    #[test]
    fn a_length_beyond_the_end_is_refused() {
        let mut dump = vec![0x1b, b'L', b'J', VERSION, 2];
        dump.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        assert!(Dump::parse(&dump).is_none());
    }

    /// As LuaJITs of 2026 dump a function of which four closures were made.
    #[test]
    fn code_said_to_use_operators_on_bits_is_spliced() {
        // Of `template_source(1)`, stripped.
        let template = b"\x1bLJ\x02\x0a\x29\x00\x00\x04\x01\x00\x00\x08\x2d\x00\x00\x00\x2e\x00\x00\x00\x29\x00\
            \x01\x00\x29\x01\x01\x00\x29\x02\x01\x00\x4d\x00\x01\x80\x4f\x00\xff\x7f\x4b\x00\x01\x00\x00\x80\x18\x03\
            \x00\x02\x00\x01\x00\x04\x2b\x00\x00\x00\x33\x01\x00\x00\x32\x00\x00\x80\x4c\x01\x02\x00\x00\x00";
        // Of `local u return function() return u end`, its inner function.
        let plain = b"\x1bLJ\x02\x0a\x11\x00\x00\x01\x01\x00\x00\x02\x2d\x00\x00\x00\x4c\x00\x02\x00\x01\xc0\x00";
        let mut counted = *plain;
        counted[4] |= 0x10;
        counted[6] |= 0x80;
        let template = Template::new(template).expect("a template");
        let (one, other) = (template.splice(plain).expect("plain"), template.splice(&counted).expect("counted"));
        assert_eq!(one.len(), other.len());
        assert!(one.len() > plain.len());
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut dump = vec![0x1b, b'L', b'J', VERSION, 2];
            dump.extend(&bytes);
            let _ = Dump::parse(&dump);
            let _ = Template::new(&dump).map(|t| t.splice(&dump));
        }
    }
}
