//! Any bytes decode to a message or to an error; what decodes can be walked to its end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_postgres::pgoutput::{Context, Message, Old, Tuple, decode};

fn walk(tuple: &Tuple<'_>) {
    assert_eq!(tuple.values().count(), usize::from(tuple.count()));
}

fuzz_target!(|input: (bool, bool, &[u8])| {
    let (in_stream, parallel, payload) = input;
    let Ok((message, _)) = decode(payload, Context { in_stream, parallel }) else { return };
    match message {
        Message::Relation(relation) => assert_eq!(relation.columns().count(), usize::from(relation.count)),
        Message::Insert { new, .. } => walk(&new),
        Message::Update { old, new, .. } => {
            if let Some(Old::Key(tuple) | Old::Row(tuple)) = &old {
                walk(tuple);
            }
            walk(&new);
        }
        Message::Delete { old: Old::Key(tuple) | Old::Row(tuple), .. } => walk(&tuple),
        Message::Truncate { relations, .. } => assert!(relations.iter().count() * 4 < payload.len()),
        _ => {}
    }
});
