//! JSON strings: text, hex and base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::bad::{Bad, Done};

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Has the high bit of some byte set when a byte of `word` must be escaped in a JSON string (below 0x20, `"`, `\`).
/// The lowest set bit is exact; those above it may be false, which a caller that looks again from there does not mind.
/// Bytes of 0x80 and above are not reported.
#[inline]
fn escapes(word: u64) -> u64 {
    let equal = |byte: u8| {
        let x = word ^ (ONES * u64::from(byte));
        x.wrapping_sub(ONES) & !x
    };
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (control | equal(b'"') | equal(b'\\')) & HIGH
}

#[inline]
fn must_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Bytes that are looked at together: what the compiler makes one vector register of.
const LANES: usize = 16;

/// Whether `text` is ASCII without anything to escape.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    // Below 0x20 and, as they are negative, above 0x7F.
    let special = |byte: u8| (byte as i8) < 0x20 || byte == b'"' || byte == b'\\';
    let Some(last) = text.last_chunk::<LANES>() else {
        return !text.iter().any(|&byte| special(byte));
    };
    // No early end inside a chunk, so that its bytes are compared side by side.
    let any = |chunk: &[u8; LANES]| chunk.iter().fold(false, |any, &byte| any | special(byte));
    let (chunks, _) = text.as_chunks::<LANES>();
    // The last chunk overlaps the one before it and saves a loop over the rest.
    !chunks.iter().any(any) && !any(last)
}

/// The index of the first byte at or after `from` that must be escaped.
fn next_escape(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(word) = text.get(at..at + 8) {
        let word = u64::from_le_bytes(word.try_into().expect("the slice has eight bytes"));
        let found = escapes(word);
        if found != 0 {
            return Some(at + (found.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    text[at..]
        .iter()
        .position(|&byte| must_escape(byte))
        .map(|offset| at + offset)
}

/// Appends `text` as a JSON string with its quotes. Escapes as Jackson does: short forms where there are, else `\u00XX`
/// with upper-case digits; nothing above 0x1F but `"` and `\`.
#[inline]
pub(crate) fn write_string(text: &[u8], out: &mut Vec<u8>) -> Done {
    out.reserve(text.len() + 2);
    out.push(b'"');
    if is_plain(text) {
        out.extend_from_slice(text);
    } else {
        write_escaped(text, out)?;
    }
    out.push(b'"');
    Ok(())
}

#[inline(never)]
fn write_escaped(text: &[u8], out: &mut Vec<u8>) -> Done {
    check_utf8(text)?;
    let mut from = 0;
    while let Some(at) = next_escape(text, from) {
        out.extend_from_slice(&text[from..at]);
        match text[at] {
            b'"' => out.extend_from_slice(br#"\""#),
            b'\\' => out.extend_from_slice(br"\\"),
            b'\n' => out.extend_from_slice(br"\n"),
            b'\r' => out.extend_from_slice(br"\r"),
            b'\t' => out.extend_from_slice(br"\t"),
            0x08 => out.extend_from_slice(br"\b"),
            0x0c => out.extend_from_slice(br"\f"),
            control => {
                out.extend_from_slice(br"\u00");
                out.push(HEX_UPPER[usize::from(control >> 4)]);
                out.push(HEX_UPPER[usize::from(control & 15)]);
            }
        }
        from = at + 1;
    }
    out.extend_from_slice(&text[from..]);
    Ok(())
}

const HEX_UPPER: &[u8; 16] = b"0123456789ABCDEF";
const HEX_LOWER: &[u8; 16] = b"0123456789abcdef";

/// Fails unless `text` is UTF-8.
pub(crate) fn check_utf8(text: &[u8]) -> Done {
    match std::str::from_utf8(text) {
        Ok(_) => Ok(()),
        Err(_) => Err(Bad::NotUtf8),
    }
}

/// Appends base64 of `bytes`, standard alphabet, padded, without quotes.
pub(crate) fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    STANDARD
        .encode_slice(bytes, &mut out[start..])
        .expect("four bytes were made room for per three");
}

/// Appends base64 of `bytes` as a JSON string.
pub(crate) fn write_base64_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    write_base64(bytes, out);
    out.push(b'"');
}

/// The value of a hex digit, 0xff for anything else.
const NIBBLE: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        table[HEX_LOWER[digit] as usize] = digit as u8;
        table[HEX_UPPER[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};

/// Decodes hex digits to bytes, handing them out in pieces whose length is a multiple of three (but the last).
fn decode_hex(hex: &[u8], expected: &'static str, mut piece: impl FnMut(&[u8])) -> Result<(), Bad> {
    const PIECE: usize = 384;
    if !hex.len().is_multiple_of(2) {
        return Err(Bad::Malformed(expected));
    }
    let mut bytes = [0; PIECE];
    for digits in hex.chunks(PIECE * 2) {
        let mut invalid = 0;
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) = (NIBBLE[usize::from(pair[0])], NIBBLE[usize::from(pair[1])]);
            invalid |= high | low;
            *byte = high << 4 | low & 15;
        }
        if invalid & 0xf0 != 0 {
            return Err(Bad::Malformed(expected));
        }
        piece(&bytes[..digits.len() / 2]);
    }
    Ok(())
}

/// What `bytea` prints.
pub(crate) const BYTEA: &str = r"`\x` and hexadecimal digits";

/// Appends `bytea` text (`\x…`) as a base64 JSON string.
pub(crate) fn write_bytea(text: &[u8], out: &mut Vec<u8>) -> Done {
    let hex = bytea_digits(text)?;
    out.reserve(hex.len() / 6 * 4 + 6);
    out.push(b'"');
    decode_hex(hex, BYTEA, |bytes| write_base64(bytes, out))?;
    out.push(b'"');
    Ok(())
}

/// The hex digits of `bytea` text (`\x…`).
pub(crate) fn bytea_digits(text: &[u8]) -> Result<&[u8], Bad> {
    text.strip_prefix(br"\x").ok_or(Bad::Malformed(BYTEA))
}

/// Appends the bytes that hex digits stand for.
pub(crate) fn write_hex_bytes(hex: &[u8], expected: &'static str, out: &mut Vec<u8>) -> Done {
    decode_hex(hex, expected, |bytes| out.extend_from_slice(bytes))
}

/// Decodes hex digits to a vector.
pub(crate) fn hex_bytes(hex: &[u8], expected: &'static str) -> Result<Vec<u8>, Bad> {
    let mut all = Vec::with_capacity(hex.len() / 2);
    decode_hex(hex, expected, |bytes| all.extend_from_slice(bytes))?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string(text: &[u8]) -> String {
        let mut out = Vec::new();
        write_string(text, &mut out).expect("UTF-8");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn escapes_as_jackson_does() {
        assert_eq!(string(b""), r#""""#);
        assert_eq!(
            string(b"plain ascii, longer than eight"),
            r#""plain ascii, longer than eight""#
        );
        assert_eq!(
            string(b"a\"b\\c\n\r\t\x08\x0c\x01\x1f\x7f"),
            "\"a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0001\\u001F\x7f\""
        );
        assert_eq!(string("żółw €😀".as_bytes()), "\"żółw €😀\"");
        assert_eq!(
            write_string(b"\xc3\x28", &mut Vec::new()),
            Err(Bad::NotUtf8)
        );
        assert_eq!(
            write_string(b"long enough for a word \xff", &mut Vec::new()),
            Err(Bad::NotUtf8)
        );
    }

    #[test]
    fn bytea_is_base64() {
        let mut out = Vec::new();
        write_bytea(br"\xdeadbeef00ff", &mut out).expect("hex");
        assert_eq!(out, br#""3q2+7wD/""#);
        out.clear();
        write_bytea(br"\x", &mut out).expect("hex");
        assert_eq!(out, br#""""#);
        for bad in [&br"\x1"[..], br"\xzz", b"abc", b""] {
            assert!(write_bytea(bad, &mut Vec::new()).is_err());
        }
    }

    proptest! {
        #[test]
        fn strings_read_back(text in any::<String>()) {
            prop_assert_eq!(serde_json::from_str::<String>(&string(text.as_bytes())).expect("JSON"), text);
        }

        #[test]
        fn long_bytea_reads_back(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut text = br"\x".to_vec();
            for byte in &bytes {
                text.extend_from_slice(format!("{byte:02x}").as_bytes());
            }
            let mut out = Vec::new();
            write_bytea(&text, &mut out).expect("hex");
            prop_assert_eq!(STANDARD.decode(&out[1..out.len() - 1]).expect("base64"), bytes);
        }
    }
}
