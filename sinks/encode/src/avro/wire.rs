//! Avro's binary encoding, and what the wire format has before it.

/// Bytes before a value: a zero and the id of its schema.
pub(crate) const HEADER: usize = 5;
/// The branch of a union that is null; null comes first.
pub(crate) const NULL: u8 = 0;
/// The other branch.
pub(crate) const PRESENT: u8 = 2;

/// What comes before a value of the schema with this id.
pub(crate) fn header(id: u32) -> [u8; HEADER] {
    let [a, b, c, d] = id.to_be_bytes();
    [0, a, b, c, d]
}

/// The id of the schema of a value, and what is written in it; `None` when the bytes are not in the wire format.
#[must_use]
pub(crate) fn split(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let ([0, id @ ..], rest) = bytes.split_first_chunk::<HEADER>()? else {
        return None;
    };
    Some((u32::from_be_bytes(*id), rest))
}

/// Appends an `int` or a `long`.
#[inline]
pub(crate) fn write_long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    if rest < 0x80 {
        out.push(rest as u8);
        return;
    }
    let mut bytes = [0; 10];
    let mut len = 0;
    while rest >= 0x80 {
        bytes[len] = rest as u8 | 0x80;
        len += 1;
        rest >>= 7;
    }
    bytes[len] = rest as u8;
    out.extend_from_slice(&bytes[..=len]);
}

/// Appends `bytes`, or a `string`.
#[inline]
pub(crate) fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_long(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

/// Appends a union of null and `long`.
#[inline]
pub(crate) fn write_some_long(value: i64, out: &mut Vec<u8>) {
    out.push(PRESENT);
    write_long(value, out);
}

/// Makes a `string` of the JSON string without escapes that `out` has from `start` on. Those of up to 63 bytes stay where they
/// are: their length takes the place of the first quote.
#[inline]
pub(crate) fn string_of_quoted(start: usize, out: &mut Vec<u8>) {
    out.pop();
    let len = out.len() - start - 1;
    if len < 64 {
        out[start] = (len as u8) << 1;
        return;
    }
    let text = out.split_off(start);
    write_bytes(&text[1..], out);
}

/// Items of an array or a map. How many there are is known at the end only, and comes before them: so they are put into blocks of
/// no more than a count of one byte can tell.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// Where the count of the open block is.
    at: Option<usize>,
    count: u8,
}

impl Blocks {
    const MOST: u8 = 63;

    /// Another item follows.
    pub(crate) fn item(&mut self, out: &mut Vec<u8>) {
        if self.at.is_none() || self.count == Self::MOST {
            self.close(out);
            self.at = Some(out.len());
            self.count = 0;
            out.push(0);
        }
        self.count += 1;
    }

    fn close(&mut self, out: &mut [u8]) {
        if let Some(at) = self.at.take() {
            out[at] = self.count << 1;
        }
    }

    /// There are no more.
    pub(crate) fn end(mut self, out: &mut Vec<u8>) {
        self.close(out);
        out.push(0);
    }
}

/// Reads what was written, from the front.
#[derive(Debug)]
pub(crate) struct Source<'a>(pub(crate) &'a [u8]);

impl<'a> Source<'a> {
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn long(&mut self) -> Option<i64> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        None
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.long()?).ok()?;
        self.take(len)
    }

    /// How many items the next block has; 0 at the end.
    pub(crate) fn block(&mut self) -> Option<u64> {
        let count = self.long()?;
        if count < 0 {
            // Its size in bytes follows.
            self.long()?;
        }
        Some(count.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn longs_are_those_of_the_specification() {
        for (value, bytes) in [
            (0, &[0][..]),
            (-1, &[1]),
            (1, &[2]),
            (-64, &[0x7f]),
            (64, &[0x80, 1]),
            (i64::MIN, &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        ] {
            let mut out = Vec::new();
            write_long(value, &mut out);
            assert_eq!(out, bytes, "{value}");
        }
    }

    #[test]
    fn quotes_become_a_length() {
        for len in [0, 1, 63, 64, 300] {
            let text = "x".repeat(len);
            let mut out = b"before".to_vec();
            out.extend_from_slice(format!("\"{text}\"").as_bytes());
            string_of_quoted(6, &mut out);
            let mut source = Source(&out[6..]);
            assert_eq!(source.bytes(), Some(text.as_bytes()), "{len}");
            assert!(source.0.is_empty());
        }
    }

    #[test]
    fn what_is_cut_off_is_not_read() {
        assert_eq!(split(&[0, 0, 0, 1, 2, 7]), Some((258, &[7][..])));
        assert_eq!(split(&[1, 0, 0, 0, 1]), None);
        assert_eq!(split(&[0, 0, 0, 1]), None);
        assert_eq!(Source(&[0x80]).long(), None);
        assert_eq!(Source(&[255; 11]).long(), None);
        assert_eq!(Source(&[4, 1]).bytes(), None);
        assert_eq!(Source(&[1]).bytes(), None);
    }

    proptest! {
        #[test]
        fn longs_read_back(value in any::<i64>()) {
            let mut out = Vec::new();
            write_long(value, &mut out);
            let mut source = Source(&out);
            prop_assert_eq!(source.long(), Some(value));
            prop_assert!(source.0.is_empty());
        }

        #[test]
        fn blocks_hold_any_number_of_items(count in 0_usize..200) {
            let mut out = Vec::new();
            let mut blocks = Blocks::default();
            for item in 0..count {
                blocks.item(&mut out);
                write_long(item as i64, &mut out);
            }
            blocks.end(&mut out);
            let mut source = Source(&out);
            let mut read = Vec::new();
            while let Some(items @ 1..) = source.block() {
                for _ in 0..items {
                    read.push(source.long().expect("an item"));
                }
            }
            prop_assert_eq!(read, (0..count as i64).collect::<Vec<_>>());
            prop_assert!(source.0.is_empty());
        }
    }
}
