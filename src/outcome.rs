//! Outcomes that no VM wrote: a failure as a message, without Lua.
//!
//! Called by `pool`. The shape is that of every failure: `false, error, info`.

use crate::wire::{self, Message, tag};

/// Makes `message` the outcome `false, text, {kind=, pool=, job=, traceback=}`, without the job if it is of none.
pub fn failure(message: &mut Message, text: &str, traceback: &str, kind: &str, job: Option<(&str, u64)>) {
    message.clear();
    let out = &mut Vec::new();
    out.extend(wire::HEAD);
    wire::put_varint(out, 3);
    out.push(tag::FALSE);
    string(out, text);
    out.push(tag::TABLE);
    out.extend(0u32.to_le_bytes());
    out.extend(if job.is_some() { 4u32 } else { 2 }.to_le_bytes());
    string(out, "traceback");
    string(out, traceback);
    string(out, "kind");
    string(out, kind);
    if let Some((pool, id)) = job {
        string(out, "pool");
        string(out, pool);
        string(out, "job");
        out.push(tag::NUMBER);
        out.extend((id as f64).to_le_bytes());
    }
    message.take_bytes(out);
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.push(tag::STR32);
    out.extend((text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
