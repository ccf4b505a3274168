//! What the fuzzer does with bytes. It is here, and run by the unit tests, so that it cannot fall behind the decoder.

use super::{Context, Message, Old, Tuple, decode};

/// Decodes any bytes; what decodes is walked to its end.
///
/// # Panics
/// When a message does not hold what it says: a bug in the decoder.
pub fn walk(payload: &[u8], context: Context) {
    let whole = |tuple: &Tuple<'_>| {
        assert_eq!(tuple.values().count(), usize::from(tuple.count()));
    };
    let Ok((message, xid)) = decode(payload, context) else {
        return;
    };
    assert!(context.in_stream || xid.is_none());
    match message {
        Message::Relation(relation) => {
            assert_eq!(relation.columns().count(), usize::from(relation.count));
        }
        Message::Insert { new, .. } => whole(&new),
        Message::Update { old, new, .. } => {
            if let Some(Old::Key(tuple) | Old::Row(tuple)) = &old {
                whole(tuple);
            }
            whole(&new);
        }
        Message::Delete {
            old: Old::Key(tuple) | Old::Row(tuple),
            ..
        } => whole(&tuple),
        Message::Truncate { relations, .. } => {
            assert!(relations.iter().count() * 4 < payload.len());
        }
        _ => {}
    }
}
