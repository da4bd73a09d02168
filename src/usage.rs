//! What a function's code reads and assigns outside of itself, found in its dump (format: `bytecode`).
//!
//! Called by `code` (which keeps what was found) for `encode`. Functions nested in it count as part of it. Knows bytes
//! only: the numbers of the instructions, which differ between versions of LuaJIT, are read from the dump of a known
//! function, and a dump that cannot be read counts as one that may do anything.

use std::sync::OnceLock;

use crate::bytecode::{Cursor, Dump, Proto};

/// Names of globals by which code can reach all others, or run code that has not been seen.
const REACHING: [&[u8]; 7] = [b"_G", b"getfenv", b"setfenv", b"loadstring", b"load", b"loadfile", b"dofile"];

/// Source of a function whose nested function has one instruction of each kind that is looked for, in the order of
/// [`Opcodes`].
pub const OPCODES_SOURCE: &str = "local u return function(a) u = a u = 's' u = 1 u = true g = g end";

/// The numbers of instructions.
#[derive(Clone, Copy, Debug)]
struct Opcodes {
    /// Assign an upvalue: from a slot, a string, a number, or nil, false or true.
    upvalue_set: [u8; 4],
    global_get: u8,
    global_set: u8,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Globals that it names, but for those that every VM has.
    pub globals: Vec<Box<[u8]>>,
    /// It assigns globals.
    pub assigns_globals: bool,
    /// It may reach any global, by other ways than its name.
    pub reaches_globals: bool,
    /// It assigns upvalues.
    pub assigns_upvalues: bool,
}

static OPCODES: OnceLock<Option<Opcodes>> = OnceLock::new();
static BUILTIN: OnceLock<Vec<Box<[u8]>>> = OnceLock::new();

/// Whether [`learn`] has been called.
pub fn is_ready() -> bool {
    OPCODES.get().is_some()
}

/// Tells what this process's LuaJIT is like: the dump of [`OPCODES_SOURCE`], and the globals that every VM has. The first
/// call counts.
pub fn learn(dump: &[u8], builtin: &[u8]) {
    BUILTIN.get_or_init(|| {
        let mut names: Vec<Box<[u8]>> = builtin.split(|byte| *byte == b'\n').map(Box::from).collect();
        names.sort_unstable();
        names
    });
    OPCODES.get_or_init(|| opcodes(dump));
}

fn opcodes(dump: &[u8]) -> Option<Opcodes> {
    let parsed = Dump::parse(dump)?;
    let child = parsed.protos.first()?;
    let mut codes = instructions(dump, child).map(|(opcode, _, _)| opcode);
    let mut next = || codes.next();
    Some(Opcodes {
        upvalue_set: [next()?, next()?, next()?, next()?],
        global_get: next()?,
        global_set: next()?,
    })
}

/// Opcode, A and D of each instruction.
fn instructions<'a>(dump: &'a [u8], proto: &Proto) -> impl Iterator<Item = (u8, u8, u16)> + use<'a> {
    let code = dump.get(proto.code_at..proto.upvalues_at).unwrap_or_default();
    code.chunks_exact(4).filter_map(|instruction| match *instruction {
        [opcode, a, low, high] => Some((opcode, a, u16::from_le_bytes([low, high]))),
        _ => None,
    })
}

impl Usage {
    /// Of a function dumped in `dump`.
    pub fn of(dump: &[u8]) -> Self {
        let found = OPCODES.get().copied().flatten().and_then(|opcodes| Self::find(dump, opcodes));
        found.unwrap_or_else(|| Self {
            assigns_globals: true,
            reaches_globals: true,
            assigns_upvalues: true,
            ..Self::default()
        })
    }

    fn find(dump: &[u8], opcodes: Opcodes) -> Option<Self> {
        let builtin = BUILTIN.get()?;
        let mut usage = Self::default();
        // As LuaJIT loads it: a finished prototype waits on a stack until its parent takes it. What waits is which of
        // its parent's upvalues it assigns.
        let mut waiting: Vec<Vec<u16>> = Vec::new();
        for proto in &Dump::parse(dump)?.protos {
            let mut assigned = Vec::new();
            let names = constants(dump, proto, &mut waiting, &mut assigned)?;
            for (opcode, a, d) in instructions(dump, proto) {
                if opcodes.upvalue_set.contains(&opcode) {
                    assigned.push(u16::from(a));
                } else if opcode == opcodes.global_get || opcode == opcodes.global_set {
                    usage.assigns_globals |= opcode == opcodes.global_set;
                    let place = names.len().checked_sub(1 + usize::from(d))?;
                    let name = (*names.get(place)?)?;
                    usage.reaches_globals |= REACHING.contains(&name);
                    let known = builtin.binary_search_by(|other| other.as_ref().cmp(name)).is_ok();
                    if !known && !usage.globals.iter().any(|other| other.as_ref() == name) {
                        usage.globals.push(name.into());
                    }
                }
            }
            usage.assigns_upvalues = !assigned.is_empty();
            waiting.push(outer(dump, proto, &assigned)?);
        }
        (waiting.len() == 1).then_some(usage)
    }
}

/// Of the upvalues that a prototype assigns, those that are its parent's too, by their places there.
fn outer(dump: &[u8], proto: &Proto, assigned: &[u16]) -> Option<Vec<u16>> {
    /// The upvalue is a local variable of the parent.
    const LOCAL: u16 = 0x8000;
    const PLACE: u16 = 0x3fff;
    let descriptions = dump.get(proto.upvalues_at..proto.upvalues_at + proto.upvalues_len)?;
    let mut places = Vec::new();
    for upvalue in assigned {
        let at = usize::from(*upvalue) * 2;
        let description = u16::from_le_bytes([*descriptions.get(at)?, *descriptions.get(at + 1)?]);
        if description & LOCAL == 0 {
            places.push(description & PLACE);
        }
    }
    Some(places)
}

/// The object constants of a prototype, `None` for those that are no strings. Its children are taken from `waiting`, and
/// what they assign of its upvalues is `assigned`.
fn constants<'a>(
    dump: &'a [u8],
    proto: &Proto,
    waiting: &mut Vec<Vec<u16>>,
    assigned: &mut Vec<u16>,
) -> Option<Vec<Option<&'a [u8]>>> {
    let mut at = Cursor { bytes: dump.get(..proto.end)?, pos: proto.upvalues_at + proto.upvalues_len };
    let mut names = Vec::new();
    for _ in 0..proto.constants {
        let mut name = None;
        match at.uleb()? {
            0 => assigned.append(&mut waiting.pop()?),
            1 => table_constant(&mut at)?,
            // 64-bit integers have two halves, complex numbers four.
            2 | 3 => (0..2).try_for_each(|_| at.uleb().map(drop))?,
            4 => (0..4).try_for_each(|_| at.uleb().map(drop))?,
            text => name = Some(at.take(usize::try_from(text - 5).ok()?)?),
        }
        names.push(name);
    }
    Some(names)
}

/// Passes a constant table: items, then pairs.
fn table_constant(at: &mut Cursor<'_>) -> Option<()> {
    let items = at.length()?;
    let pairs = at.length()?;
    for _ in 0..items.checked_add(pairs.checked_mul(2)?)? {
        match at.uleb()? {
            // nil, false, true
            0..=2 => {}
            3 => {
                at.uleb()?;
            }
            4 => {
                at.uleb()?;
                at.uleb()?;
            }
            text => {
                at.take(usize::try_from(text - 5).ok()?)?;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_may_do_anything() {
        let usage = Usage::of(b"no dump");
        assert!(usage.assigns_globals && usage.reaches_globals && usage.assigns_upvalues);
        assert!(usage.globals.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut dump = vec![0x1b, b'L', b'J', 2, 2];
            dump.extend(&bytes);
            let opcodes = Opcodes { upvalue_set: [1, 2, 3, 4], global_get: 5, global_set: 6 };
            let _ = Usage::find(&dump, opcodes);
        }
    }
}
