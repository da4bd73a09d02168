//! What a function's code reads and assigns outside of itself, found in its dump (format: `bytecode`).
//!
//! Called by `code` (which keeps what was found) for `encode`. Functions nested in it count as part of it. Knows bytes
//! only: the numbers of the instructions, which differ between versions of LuaJIT, are read from the dump of a known
//! function, and a dump that cannot be read counts as one that may do anything.

use std::sync::OnceLock;

use crate::bytecode::{Cursor, Dump, Proto};

/// Names of functions by which code can reach any global, run code that has not been seen, or change upvalues that it
/// does not name. Code in which one of them stands, wherever, counts as code that does.
const REACHING: [&[u8]; 11] = [
    b"_G",
    b"dofile",
    b"getfenv",
    b"getregistry",
    b"load",
    b"loadfile",
    b"loadstring",
    b"setfenv",
    b"setlocal",
    b"setupvalue",
    b"upvaluejoin",
];

/// Whether a library's function of this name is one of those.
pub fn is_reaching(name: &[u8]) -> bool {
    REACHING.binary_search(&name).is_ok()
}

/// Source of a function whose nested function has one instruction of each kind that is looked for, in the order of
/// [`Opcodes`].
pub const OPCODES_SOURCE: &str =
    "local u return function(a) u = a u = 's' u = 1 u = true g = g a = u return _G.f end";

/// The numbers of instructions.
#[derive(Clone, Copy, Debug)]
struct Opcodes {
    /// Assign an upvalue: from a slot, a string, a number, or nil, false or true.
    upvalue_set: [u8; 4],
    global_get: u8,
    global_set: u8,
    upvalue_get: u8,
    /// Read a table's field of a constant name.
    field_get: u8,
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
    /// Functions that it makes share upvalues with it.
    pub shares_upvalues: bool,
    /// Fields of its upvalues that it names: should the upvalue be the table of globals, these are names of globals.
    pub fields: Vec<(u8, Box<[u8]>)>,
}

static OPCODES: OnceLock<Option<Opcodes>> = OnceLock::new();
static BUILTIN: OnceLock<Vec<Box<[u8]>>> = OnceLock::new();

/// Whether [`learn`] has been called.
pub fn is_ready() -> bool {
    OPCODES.get().is_some()
}

/// Tells what this process's LuaJIT is like: the dump of [`OPCODES_SOURCE`], and the globals that every VM has. The
/// first call counts.
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
        upvalue_get: next()?,
        field_get: next().and_then(|_| next())?,
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
            shares_upvalues: true,
            ..Self::default()
        })
    }

    fn find(dump: &[u8], opcodes: Opcodes) -> Option<Self> {
        let mut usage = Self::default();
        // As LuaJIT loads it: a finished prototype waits on a stack until its parent takes it. What waits is what it
        // does with its parent's upvalues.
        let mut waiting: Vec<Upvalues<'_>> = Vec::new();
        for proto in &Dump::parse(dump)?.protos {
            let mut upvalues = Upvalues::default();
            let names = constants(dump, proto, &mut waiting, &mut upvalues)?;
            let constant = |place: usize| *names.get(names.len().checked_sub(1 + place)?)?;
            usage.reaches_globals |= names.iter().flatten().any(|name| is_reaching(name));
            let mut before = (0, 0, 0);
            for instruction in instructions(dump, proto) {
                let (opcode, a, d) = instruction;
                if opcodes.upvalue_set.contains(&opcode) {
                    upvalues.assigned.push(u16::from(a));
                } else if opcode == opcodes.global_get || opcode == opcodes.global_set {
                    usage.assigns_globals |= opcode == opcodes.global_set;
                    usage.name(constant(usize::from(d))?);
                } else if opcode == opcodes.field_get && before.1 == (d >> 8) as u8 {
                    // Of what the instruction before has put into the register.
                    let field = constant(usize::from(d & 0xff))?;
                    if before.0 == opcodes.upvalue_get {
                        upvalues.fields.push((before.2, field));
                    } else if before.0 == opcodes.global_get && constant(usize::from(before.2)) == Some(b"_G") {
                        usage.name(field);
                    }
                }
                before = instruction;
            }
            usage.assigns_upvalues = !upvalues.assigned.is_empty();
            usage.shares_upvalues = upvalues.shared;
            usage.fields = upvalues.fields.iter().map(|(upvalue, name)| (*upvalue as u8, (*name).into())).collect();
            waiting.push(outer(dump, proto, &upvalues)?);
        }
        usage.fields.sort_unstable();
        usage.fields.dedup();
        (waiting.len() == 1).then_some(usage)
    }

    /// Adds a global that is named.
    fn name(&mut self, name: &[u8]) {
        let builtin = BUILTIN.get().map_or(&[][..], Vec::as_slice);
        let known = builtin.binary_search_by(|other| other.as_ref().cmp(name)).is_ok();
        if !known && !self.globals.iter().any(|other| other.as_ref() == name) {
            self.globals.push(name.into());
        }
    }
}

/// What a prototype does with its upvalues.
#[derive(Default)]
struct Upvalues<'a> {
    assigned: Vec<u16>,
    fields: Vec<(u16, &'a [u8])>,
    /// A function inside has one of them too.
    shared: bool,
}

/// Of what a prototype does with its upvalues, that which concerns its parent's, by their places there.
fn outer<'a>(dump: &[u8], proto: &Proto, upvalues: &Upvalues<'a>) -> Option<Upvalues<'a>> {
    /// The upvalue is a local variable of the parent.
    const LOCAL: u16 = 0x8000;
    const PLACE: u16 = 0x3fff;
    let descriptions = dump.get(proto.upvalues_at..proto.upvalues_at + proto.upvalues_len)?;
    let place = |upvalue: u16| -> Option<Option<u16>> {
        let at = usize::from(upvalue) * 2;
        let description = u16::from_le_bytes([*descriptions.get(at)?, *descriptions.get(at + 1)?]);
        Some((description & LOCAL == 0).then_some(description & PLACE))
    };
    let mut theirs = Upvalues::default();
    for at in 0..descriptions.len() / 2 {
        theirs.shared |= place(at as u16)?.is_some();
    }
    for upvalue in &upvalues.assigned {
        theirs.assigned.extend(place(*upvalue)?);
    }
    for (upvalue, name) in &upvalues.fields {
        theirs.fields.extend(place(*upvalue)?.map(|place| (place, *name)));
    }
    Some(theirs)
}

/// The object constants of a prototype, `None` for those that are no strings. Its children are taken from `waiting`,
/// and what they do with its upvalues is added to `upvalues`.
fn constants<'a>(
    dump: &'a [u8],
    proto: &Proto,
    waiting: &mut Vec<Upvalues<'a>>,
    upvalues: &mut Upvalues<'a>,
) -> Option<Vec<Option<&'a [u8]>>> {
    let mut at = Cursor { bytes: dump.get(..proto.end)?, pos: proto.upvalues_at + proto.upvalues_len };
    let mut names = Vec::new();
    for _ in 0..proto.constants {
        let mut name = None;
        match at.uleb()? {
            0 => {
                let mut child = waiting.pop()?;
                upvalues.shared |= child.shared;
                upvalues.assigned.append(&mut child.assigned);
                upvalues.fields.append(&mut child.fields);
            }
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
        assert!(usage.assigns_globals && usage.reaches_globals && usage.assigns_upvalues && usage.shares_upvalues);
        assert!(usage.globals.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut dump = vec![0x1b, b'L', b'J', 2, 2];
            dump.extend(&bytes);
            let opcodes =
                Opcodes { upvalue_set: [1, 2, 3, 4], global_get: 5, global_set: 6, upvalue_get: 7, field_get: 8 };
            let _ = Usage::find(&dump, opcodes);
        }
    }
}
