//! The decoder, and what reads a job's message again at its end: bytes, beside the codes and strings of a true message.
//!
//! The first byte says which of the harness's messages that is; the second whether the bytes are a job's or an
//! outcome's.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use msys::{origin::Origin, wire::Message};

#[path = "../../tests/harness/mod.rs"]
mod harness;

use harness::{Harness, MESSAGES};

thread_local! {
    static HARNESS: RefCell<(Harness, usize)> = RefCell::new((Harness::new(), 0));
}

fuzz_target!(|data: &[u8]| {
    let [message, kind, bytes @ ..] = data else { return };
    let code = MESSAGES[usize::from(*message) % MESSAGES.len()];
    HARNESS.with_borrow_mut(|(harness, turns)| {
        *turns += 1;
        if turns.is_multiple_of(10_000) {
            *harness = Harness::new();
        }
        harness.clear();
        harness.run(code);
        let mut job = Message::default();
        assert_eq!(harness.encode_job(&mut job), Ok(()));
        harness.clear();
        let mut sent = job.with_bytes(bytes);
        if *kind % 2 == 0 {
            let mut origin = Origin::default();
            if harness.decode_job(&mut sent, &mut origin).is_ok() {
                let _ = harness.encode_outcome(&mut Message::default(), &origin);
            }
        } else {
            let _ = harness.decode_outcome(&sent);
        }
        harness.end();
        if turns.is_multiple_of(100) {
            harness.collect();
        }
        assert!(harness.watch.used < 64 << 20, "{} bytes are used", harness.watch.used);
    });
});
