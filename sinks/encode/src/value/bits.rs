//! Bit strings.

use super::bad::{Bad, Done};
use super::text::write_base64_string;

/// Appends a bit string as Debezium does: `true`/`false` for one bit, else base64 of the bytes, least significant first,
/// without trailing zero bytes.
pub(crate) fn write_bits(text: &[u8], out: &mut Vec<u8>) -> Done {
    check_bits(text)?;
    let mut bytes = vec![0_u8; text.len().div_ceil(8)];
    for (index, _) in text
        .iter()
        .rev()
        .enumerate()
        .filter(|(_, bit)| **bit == b'1')
    {
        bytes[index / 8] |= 1 << (index % 8);
    }
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    write_base64_string(&bytes, out);
    Ok(())
}

/// Appends a bit string of at most one bit as a boolean.
pub(crate) fn write_bit(text: &[u8], out: &mut Vec<u8>) -> Done {
    check_bits(text)?;
    out.extend_from_slice(if text == b"1" { b"true" } else { b"false" });
    Ok(())
}

/// Fails unless `text` is zeros and ones.
pub(crate) fn check_bits(text: &[u8]) -> Done {
    if text.iter().all(|bit| matches!(bit, b'0' | b'1')) {
        Ok(())
    } else {
        Err(Bad::Malformed("a string of 0 and 1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_little_endian() {
        for (text, expected) in [
            ("10101", "\"FQ==\""),
            ("11111111111111111111", "\"//8P\""),
            ("00000", "\"\""),
            ("1010", "\"Cg==\""),
            ("", "\"\""),
        ] {
            let mut out = Vec::new();
            write_bits(text.as_bytes(), &mut out).expect("bits");
            assert_eq!(String::from_utf8_lossy(&out), expected, "{text}");
        }
        assert!(write_bits(b"12", &mut Vec::new()).is_err());
    }
}
