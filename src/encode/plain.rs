//! Messages of values that are no objects, but for a job's own closure: most of all messages.
//!
//! They need nothing that may raise, nor any account of what was met: so no protected call, and a tenth of the
//! instructions. What else is met leaves all to the encoder.

use std::{ffi::c_int, sync::Arc};

use super::{Purpose, Request, Scratch};
use crate::{
    code::Code,
    functions::Functions,
    layout::{self, Closure, Value, View},
    luajit::{ffi, lua_State},
    wire::{self, HEADER, LEND, Message, put_number, put_text, put_varint, tag},
};

/// With more values than these it is hardly one, and looking at each twice costs more.
const MOST: c_int = 16;

/// Writes the values of stack index `first` to `last`, if they make such a message; what is in the message is not
/// specified where not.
///
/// # Safety
/// As [`super::encode`]; `state` may be a coroutine of the VM.
pub(crate) unsafe fn write(
    state: *mut lua_State,
    (first, last): (c_int, c_int),
    request: &Request<'_>,
    functions: &Functions,
    message: &mut Message,
    scratch: &mut Scratch,
) -> Option<()> {
    if last - first >= MOST {
        return None;
    }
    let out = &mut scratch.bytes;
    out.clear();
    out.extend_from_slice(&wire::HEAD);
    put_varint(out, (last + 1 - first) as u64);
    let mut code = None;
    // SAFETY: the state is of this thread.
    let mut view = unsafe { View::of(state, functions.direct) };
    for at in first..=last {
        // SAFETY: valid indices, and each arm calls what fits the type, none of which raises.
        unsafe {
            match view.kind(at) {
                ffi::LUA_TNIL => out.push(tag::NIL),
                ffi::LUA_TBOOLEAN => out.push(boolean(view.is_true(at))),
                ffi::LUA_TNUMBER => put_number(out, view.number(at)?),
                ffi::LUA_TSTRING => text(out, view.bytes(at))?,
                ffi::LUA_TFUNCTION if at == first => {
                    code = Some(closure(state, view.closure(at)?, request, functions, out)?);
                    view = View::of(state, functions.direct);
                }
                _ => return None,
            }
        }
    }
    if out.len() > request.limit {
        return None;
    }
    message.clear_values();
    message.take_bytes(out);
    if let Some(code) = code {
        message.place_of(code);
    }
    Some(())
}

fn boolean(yes: bool) -> u8 {
    if yes { tag::TRUE } else { tag::FALSE }
}

/// A string that is neither lent nor one that was.
fn text(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    (bytes.len() < LEND).then(|| put_text(out, bytes))
}

/// Writes the closure of a job, if its code was sent before, it needs nothing but its upvalues, and those are no objects
/// in cells of their own; gives its code.
///
/// # Safety
/// As [`write`], a function on the stack.
unsafe fn closure(
    state: *mut lua_State,
    function: &Closure,
    request: &Request<'_>,
    functions: &Functions,
    out: &mut Vec<u8>,
) -> Option<Arc<Code>> {
    let Purpose::Job { keep, capture, .. } = request.purpose else { return None };
    // SAFETY: a Lua function is on the stack, and nothing runs meanwhile.
    unsafe {
        // One in a module crosses by its name.
        if function.environment() != functions.globals || functions.name_of(std::ptr::from_ref(function).cast()).is_some() {
            return None;
        }
        let code = functions.known_code(state, function)?;
        let usage = code.usage();
        let is_alone = !usage.reaches_globals
            && !usage.assigns_globals
            && !(capture && !(usage.globals.is_empty() && usage.fields.is_empty()))
            && !(keep && (usage.assigns_upvalues || usage.shares_upvalues))
            && !function.has_equal_cells();
        if !is_alone || !functions.seen(&code, request.scanned) {
            return None;
        }
        let upvalues = function.upvalues();
        out.extend_from_slice(&[tag::FUNC, 0, upvalues.len() as u8]);
        for upvalue in upvalues {
            out.push(tag::CELL);
            match upvalue.value() {
                Value::Nil => out.push(tag::NIL),
                Value::Boolean(yes) => out.push(boolean(yes)),
                Value::Number(number) => put_number(out, number),
                Value::String(string) => text(out, layout::bytes(string))?,
                Value::Table(_) | Value::Other => return None,
            }
        }
        if let Some(head) = out.first_chunk_mut::<HEADER>() {
            *head = wire::HEAD_OF_ONE;
        }
        Some(code)
    }
}
