//! The reader of LuaJIT's dumps: a factory spliced from a dump, and what its code is found to do. Nothing is loaded:
//! LuaJIT does not check dumps, and gets those only that it has written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use msys::{
    bytecode::{Template, upvalue_count},
    usage::{self, Usage},
};

fuzz_target!(|data: &[u8]| {
    // Any dump may be a template, so a template may be anything; what is spliced can be read again.
    let (first, second) = data.split_at(data.len() / 2);
    for (template, dump) in [(data, data), (first, second), (second, first)] {
        if let Some(spliced) = Template::new(template).and_then(|template| template.splice(dump)) {
            assert!(spliced.len() <= template.len() + dump.len());
        }
        let _ = upvalue_count(dump);
        usage::learn(template, b"print\ntype");
        let _ = Usage::of(dump);
    }
});
