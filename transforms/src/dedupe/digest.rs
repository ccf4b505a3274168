//! 128-bit names of rows and of idempotency keys.
//!
//! SHA-256, cut to 16 bytes: keys come from clients, and a client must not be able to make two keys meet. Every part
//! is preceded by its length, so `("a", "bc")` and `("ab", "c")` differ.

use std::hash::Hash;

use sha2::{Digest as _, Sha256};

use crate::text::Value;

/// A name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(pub(crate) [u8; 16]);

impl Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // Any part of it is as good as the whole.
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// Gathers the parts of a name.
pub(crate) struct Hasher {
    state: Sha256,
}

/// Precedes a value in binary form, whose bytes are no text.
const OPAQUE: &[u8] = &[0xff; 9];

impl Hasher {
    /// A name inside the name space `space`.
    pub(crate) fn new(space: &Digest) -> Self {
        Hasher {
            state: Sha256::new_with_prefix(space.0),
        }
    }

    /// A name of the outermost name space `what`.
    pub(crate) fn root(what: &str) -> Self {
        let mut hasher = Hasher {
            state: Sha256::new(),
        };
        hasher.part(what.as_bytes());
        hasher
    }

    pub(crate) fn part(&mut self, bytes: &[u8]) {
        // One byte of length for short parts keeps a uuid with its name space inside one block of SHA-256.
        let length = bytes.len() as u64;
        match u8::try_from(length) {
            Ok(short) if short < 0xff => self.state.update([short]),
            _ => {
                self.state.update([0xff]);
                self.state.update(length.to_be_bytes());
            }
        }
        self.state.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        let digest = self.state.finalize();
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        Digest(short)
    }

    /// Adds a value that is there; says whether it was.
    pub(crate) fn value(&mut self, value: &Value<'_>) -> bool {
        match value {
            Value::Text(text) => self.part(text),
            Value::Opaque(bytes) => {
                self.state.update(OPAQUE);
                self.part(bytes);
            }
            Value::Null | Value::Unchanged => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(parts: &[&str]) -> Digest {
        let mut hasher = Hasher::root("test");
        for part in parts {
            hasher.part(part.as_bytes());
        }
        hasher.finish()
    }

    #[test]
    fn parts_do_not_run_together() {
        let long = "x".repeat(300);
        let names = [
            name(&["a", "bc"]),
            name(&["ab", "c"]),
            name(&["abc"]),
            name(&["abc", ""]),
            name(&[&long]),
            name(&[&long[..255], &long[255..]]),
        ];
        for (i, a) in names.iter().enumerate() {
            for b in &names[i + 1..] {
                assert_ne!(a, b);
            }
        }
    }
}
