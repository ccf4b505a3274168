//! Rows and keys as sixteen bytes.

use lockstep_encode::envelope::read::Image;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// Sixteen bytes that stand for a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest(pub [u64; 2]);

impl std::hash::Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // It is one already.
        state.write_u64(self.0[0]);
    }
}

impl From<u128> for Digest {
    fn from(hash: u128) -> Self {
        Digest([hash as u64, (hash >> 64) as u64])
    }
}

/// Makes digests. Each process makes others, so that nobody can make two rows that have the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Digests(u64);

impl Digests {
    pub(super) fn new() -> Self {
        use std::hash::BuildHasher;
        Digests(std::hash::RandomState::new().hash_one(0))
    }

    /// Of a key of one of the tables whose rows are in a topic.
    pub(super) fn key(self, owner: u16, key: &[u8]) -> Digest {
        xxh3_128_with_seed(key, self.0.wrapping_add(u64::from(owner))).into()
    }

    /// Of the columns of a row but `without`, whatever their order.
    pub(super) fn row(self, image: &Image<'_>, without: &[Box<str>]) -> Digest {
        let mut sum = 0_u128;
        for (name, value) in &image.members {
            if without.iter().any(|other| **other == **name) {
                continue;
            }
            let seed = xxh3_64_with_seed(name.as_bytes(), self.0);
            sum = sum.wrapping_add(xxh3_128_with_seed(value.as_bytes(), seed));
        }
        sum.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_encode::envelope::read::members;

    fn digest(digests: Digests, text: &str, without: &[Box<str>]) -> Digest {
        let image = Image {
            text,
            unchanged: Vec::new(),
            members: members(text.as_bytes()).expect("an object"),
        };
        digests.row(&image, without)
    }

    #[test]
    fn the_order_of_columns_does_not_matter_and_all_else_does() {
        let digests = Digests::new();
        let of = |text| digest(digests, text, &[]);
        let row = of(r#"{"a":1,"b":"x"}"#);
        assert_eq!(row, of(r#"{"b":"x","a":1}"#));
        for other in [
            r#"{"a":"x","b":1}"#,
            r#"{"a":1,"b":"y"}"#,
            r#"{"a":1}"#,
            r#"{"a":1,"b":"x","c":null}"#,
        ] {
            assert_ne!(row, of(other), "{other}");
        }
        assert_ne!(row, digest(Digests::new(), r#"{"a":1,"b":"x"}"#, &[]));
        assert_ne!(digests.key(0, b"1"), digests.key(1, b"1"));
    }

    #[test]
    fn columns_that_are_not_there_are_left_out() {
        let digests = Digests::new();
        let left = digest(digests, r#"{"a":1,"b":"x"}"#, &["b".into()]);
        assert_eq!(left, digest(digests, r#"{"a":1}"#, &[]));
    }
}
