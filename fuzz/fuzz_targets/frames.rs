//! Frames come whole or not at all, and never reach beyond the buffer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_pg::wire::frame;

fuzz_target!(|bytes: &[u8]| {
    let mut at = 0;
    while let Ok(Some(found)) = frame::next(bytes, at) {
        assert!(found.start <= found.end && found.end <= bytes.len() && found.end > at);
        at = found.end;
    }
});
