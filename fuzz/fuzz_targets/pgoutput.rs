//! Any bytes decode to a message or to an error; what decodes can be walked to its end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_postgres::pgoutput::{Context, walk};

fuzz_target!(|input: (bool, bool, &[u8])| {
    let (in_stream, parallel, payload) = input;
    walk(payload, Context { in_stream, parallel });
});
