//! Bytes that no encoder wrote: decoding them gives values or an error, and takes no more memory than they could fill.
//! And memory that runs out at any moment: that is an error, and nothing is lost.
//!
//! `cargo test --no-default-features --test hostile`, with Debian's libluajit-5.1-dev. `MSYS_CASES=<number>` runs more
//! of it.
#![cfg(not(any(feature = "module", loom)))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod harness;

use harness::{Harness, MESSAGES, Random};
use msys::{encode::Refusal, luajit::ffi, origin::Origin, wire::Message};

fn cases(default: usize) -> usize {
    std::env::var("MSYS_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Changes some bytes, or cuts, doubles or moves some.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        let len = random.below(bytes.len() - at).min(40);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, 0x40, 0x60, 0xa0][random.below(8)],
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..at + len)),
            5 => {
                let piece = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            6 => {
                // A number of any size.
                for byte in bytes.iter_mut().skip(at).take(random.below(9)) {
                    *byte = 0xff;
                }
            }
            _ => {
                let other = random.below(bytes.len());
                bytes.swap(at, other);
            }
        }
    }
}

/// What a message's job does when it has come: calls the closure.
fn call(harness: &Harness) {
    // SAFETY: the values of a job are on the stack, the closure first.
    unsafe {
        let top = ffi::lua_gettop(harness.state);
        if top < 4 || ffi::lua_type(harness.state, 4) != ffi::LUA_TFUNCTION {
            return;
        }
        ffi::lua_pushvalue(harness.state, 4);
        if ffi::lua_pcall(harness.state, 0, 1, 0) != ffi::LUA_OK {
            ffi::lua_settop(harness.state, top);
        }
    }
}

/// A job's message and its outcome's, as they are.
fn written(harness: &Harness, code: &str) -> (Message, Message) {
    let mut job = Message::default();
    harness.clear();
    harness.run(code);
    assert_eq!(harness.encode_job(&mut job), Ok(()), "{code}");
    let mut sent = job.with_bytes(&job.bytes);
    let mut origin = Origin::default();
    harness.clear();
    harness.decode_job(&mut sent, &mut origin).unwrap_or_else(|_| panic!("{code}: {}", harness.text(-1)));
    call(harness);
    let mut outcome = Message::default();
    assert_eq!(harness.encode_outcome(&mut outcome, &origin), Ok(()), "{code}");
    harness.clear();
    harness.decode_outcome(&outcome).unwrap_or_else(|_| panic!("{code}: {}", harness.text(-1)));
    harness.end();
    (job, outcome)
}

#[test]
fn changed_bytes_of_a_job_are_values_or_an_error() {
    let mut harness = Harness::new();
    let mut decoded = 0;
    for (seed, code) in MESSAGES.iter().cycle().take(cases(20_000)).enumerate() {
        let mut random = Random::new(seed as u64);
        if seed % 997 == 0 {
            harness = Harness::new();
        }
        harness.clear();
        harness.run(code);
        let mut job = Message::default();
        harness.encode_job(&mut job).unwrap();
        let mut bytes = job.bytes.to_vec();
        mutate(&mut bytes, &mut random);
        let mut sent = job.with_bytes(&bytes);
        let mut origin = Origin::default();
        harness.clear();
        harness.collect();
        harness.watch.peak = harness.watch.used;
        let before = harness.watch.used;
        if harness.decode_job(&mut sent, &mut origin).is_ok() {
            decoded += 1;
            // What was read must be readable again, beside the objects.
            let mut outcome = Message::default();
            let _ = harness.encode_outcome(&mut outcome, &origin);
        }
        let taken = harness.watch.peak - before;
        assert!(taken < 400_000 + 200 * bytes.len(), "{taken} bytes taken for {} (seed {seed})", bytes.len());
        harness.end();
    }
    assert!(decoded > 100, "only {decoded} were messages still");
}

#[test]
fn changed_bytes_of_an_outcome_are_values_or_an_error() {
    let harness = Harness::new();
    let outcomes: Vec<Message> = MESSAGES.iter().map(|code| written(&harness, code).1).collect();
    let mut decoded = 0;
    for seed in 0..cases(20_000) {
        let mut random = Random::new(seed as u64);
        let place = seed % MESSAGES.len();
        harness.clear();
        harness.run(MESSAGES[place]);
        let mut job = Message::default();
        harness.encode_job(&mut job).unwrap();
        let mut bytes = outcomes[place].bytes.to_vec();
        mutate(&mut bytes, &mut random);
        let outcome = outcomes[place].with_bytes(&bytes);
        harness.clear();
        decoded += usize::from(harness.decode_outcome(&outcome).is_ok());
        harness.end();
    }
    assert!(decoded > 100, "only {decoded} were messages still");
}

#[test]
fn a_huge_number_takes_no_memory() {
    let mut harness = Harness::new();
    // A count of values; the size of a table's parts; a string's length; a shape's number and length.
    let head = [4, 0, 0, 0, 0, 0, 0];
    let tails: [&[u8]; 7] = [
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[1, 0x40, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f],
        &[1, 0x48, 0xff, 0xff, 0xff, 0xff, 0x0f, 0],
        &[1, 0x48, 0, 0xff, 0xff, 0x0f, 32],
        &[1, 6, 0xff, 0xff, 0xff, 0x7f],
        &[1, 0x80, 0xff, 0xff, 0xff, 0x7f],
        &[1, 12, 0xff, 0xff, 0xff, 0x7f],
    ];
    for tail in tails {
        for flags in [0, 1, 3, 7] {
            let mut bytes = head.to_vec();
            bytes[1] = flags;
            bytes[3..7].copy_from_slice(&u32::MAX.to_le_bytes());
            bytes.extend(tail);
            let mut message = Message::default().with_bytes(&bytes);
            harness.collect();
            let before = harness.watch.used;
            harness.watch.peak = before;
            assert!(harness.decode_job(&mut message, &mut Origin::default()).is_err(), "{tail:?}");
            assert!(harness.watch.peak - before < 64 << 10, "{tail:?} took {}", harness.watch.peak - before);
            harness.end();
        }
    }
}

/// The ways of a message, each with memory that runs out at the n-th request, for every n until it does not.
#[test]
fn memory_that_runs_out_is_an_error_and_loses_nothing() {
    let mut harness = Harness::new();
    for code in MESSAGES {
        written(&harness, code);
        harness.end();
        let baseline = harness.collect();
        for n in 0.. {
            harness.clear();
            harness.run(code);
            let mut job = Message::default();
            harness.watch.failed = false;
            harness.watch.countdown = Some(n);
            let encoded = harness.encode_job(&mut job);
            let failed = std::mem::take(&mut harness.watch.failed);
            assert!(
                encoded.is_ok() || failed && encoded == Err(Refusal::Raised),
                "{code}, at {n}: {encoded:?}"
            );
            let mut origin = Origin::default();
            let mut outcome = Message::default();
            if encoded.is_ok() {
                harness.clear();
                let mut sent = job.with_bytes(&job.bytes);
                let decoded = harness.decode_job(&mut sent, &mut origin);
                assert!(decoded.is_ok() || harness.watch.failed, "{code}, at {n}: {}", harness.text(-1));
                if decoded.is_ok() {
                    let encoded = harness.encode_outcome(&mut outcome, &origin);
                    assert!(encoded.is_ok() || harness.watch.failed, "{code}, at {n}: {encoded:?}");
                    harness.clear();
                    if encoded.is_ok() {
                        let decoded = harness.decode_outcome(&outcome);
                        assert!(
                            decoded.is_ok() || harness.watch.failed,
                            "{code}, at {n}: {}",
                            harness.text(-1)
                        );
                    }
                }
            }
            let ended = harness.watch.countdown.take().is_some() && !harness.watch.failed && !failed;
            harness.end();
            let used = harness.collect();
            assert!(used < baseline + 20_000, "{code}, at {n}: {} bytes are lost", used - baseline);
            if ended {
                break;
            }
        }
        // All is as before.
        written(&harness, code);
        harness.end();
    }
}

/// Writes what the fuzzer of the decoder begins with, where `MSYS_CORPUS` says.
#[test]
fn a_corpus_is_written_where_it_is_wanted() {
    let Some(directory) = std::env::var_os("MSYS_CORPUS") else { return };
    let harness = Harness::new();
    for (number, code) in MESSAGES.iter().enumerate() {
        let (job, outcome) = written(&harness, code);
        for (kind, message) in [(0, &job), (1, &outcome)] {
            let mut bytes = vec![number as u8, kind];
            bytes.extend(&message.bytes);
            let path = std::path::Path::new(&directory).join(format!("{number}-{kind}"));
            std::fs::write(path, bytes).unwrap();
        }
    }
}
