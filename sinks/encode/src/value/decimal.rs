//! `numeric` and `money` in Debezium's three forms.

use super::bad::{Bad, Done};
use super::number::write_java_double_of;
use super::text::{check_utf8, write_base64, write_string};

const EXPECTED: Bad = Bad::Malformed("a decimal number");

/// A decimal text taken apart: `-123.4500`.
struct Decimal<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
}

/// The three values that have no digits.
#[derive(Clone, Copy)]
enum Special {
    NaN,
    Infinity,
    NegativeInfinity,
}

enum Parsed<'a> {
    Finite(Decimal<'a>),
    Special(Special),
}

fn parse(text: &[u8]) -> Result<Parsed<'_>, Bad> {
    match text {
        b"NaN" => return Ok(Parsed::Special(Special::NaN)),
        b"Infinity" => return Ok(Parsed::Special(Special::Infinity)),
        b"-Infinity" => return Ok(Parsed::Special(Special::NegativeInfinity)),
        _ => {}
    }
    let unsigned = text.strip_prefix(b"-").unwrap_or(text);
    let (whole, fraction) = match unsigned.iter().position(|&byte| byte == b'.') {
        Some(at) => (&unsigned[..at], &unsigned[at + 1..]),
        None => (unsigned, &[][..]),
    };
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return Err(EXPECTED);
    }
    Ok(Parsed::Finite(Decimal {
        negative: unsigned.len() != text.len(),
        whole,
        fraction,
    }))
}

/// Appends a `numeric` as a JSON string, digit for digit, in the natural mapping.
pub(crate) fn write_natural(text: &[u8], out: &mut Vec<u8>) -> Done {
    if !is_plain_number(text) {
        parse(text)?;
    }
    write_quoted(text, out);
    Ok(())
}

/// Appends a `numeric` as Debezium's `decimal.handling.mode=string` does.
pub(crate) fn write_text(text: &[u8], out: &mut Vec<u8>) -> Done {
    if is_plain_number(text) {
        write_quoted(text, out);
        return Ok(());
    }
    let text = match parse(text)? {
        Parsed::Finite(_) => text,
        Parsed::Special(Special::NaN) => b"NAN",
        Parsed::Special(Special::Infinity) => b"POSITIVE_INFINITY",
        Parsed::Special(Special::NegativeInfinity) => b"NEGATIVE_INFINITY",
    };
    write_quoted(text, out);
    Ok(())
}

/// Whether `text` is digits with at most one point, and begins with a digit.
#[inline]
fn is_plain_number(text: &[u8]) -> bool {
    let mut points = 0;
    let mut other = false;
    for &byte in text {
        points += u32::from(byte == b'.');
        other |= !byte.is_ascii_digit() & (byte != b'.');
    }
    !other && points <= 1 && text.first().is_some_and(u8::is_ascii_digit)
}

#[inline]
fn write_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

/// Appends a `numeric` as Debezium's `decimal.handling.mode=double` does.
pub(crate) fn write_double(text: &[u8], out: &mut Vec<u8>) -> Done {
    parse(text)?;
    write_java_double_of(text, out)
}

/// Appends a `numeric(p, scale)` as Debezium's `decimal.handling.mode=precise` does: base64 of the unscaled integer, big
/// endian, two's complement. What is not a number is a string that no base64 decoder takes (Debezium writes null).
pub(crate) fn write_precise(text: &[u8], scale: usize, out: &mut Vec<u8>) -> Done {
    match parse(text)? {
        Parsed::Finite(decimal) => write_unscaled(&decimal, scale, out),
        Parsed::Special(_) => write_string(text, out),
    }
}

/// Appends a `numeric` without declared scale as Debezium does in precise mode: `{"scale":2,"value":"MDk="}`, trailing
/// zeros of the fraction dropped.
pub(crate) fn write_variable(text: &[u8], out: &mut Vec<u8>) -> Done {
    let decimal = match parse(text)? {
        Parsed::Finite(decimal) => without_zeros(decimal),
        Parsed::Special(_) => return write_string(text, out),
    };
    out.extend_from_slice(br#"{"scale":"#);
    let mut number = itoa::Buffer::new();
    out.extend_from_slice(number.format(decimal.fraction.len()).as_bytes());
    out.extend_from_slice(br#","value":"#);
    write_unscaled(&decimal, decimal.fraction.len(), out)?;
    out.push(b'}');
    Ok(())
}

/// Appends the integer `decimal × 10^scale` as base64 in quotes.
fn write_unscaled(decimal: &Decimal<'_>, scale: usize, out: &mut Vec<u8>) -> Done {
    with_unscaled(decimal, scale, |bytes| {
        out.push(b'"');
        write_base64(bytes, out);
        out.push(b'"');
    })
}

/// Hands out the integer `decimal × 10^scale`, big endian, two's complement. A fraction longer than `scale` is refused unless what
/// is cut off is zeros.
fn with_unscaled(decimal: &Decimal<'_>, scale: usize, take: impl FnOnce(&[u8])) -> Done {
    let kept = decimal.fraction.len().min(scale);
    let (fraction, cut) = decimal.fraction.split_at(kept);
    if cut.iter().any(|&digit| digit != b'0') {
        return Err(Bad::Malformed("a decimal number of its column's scale"));
    }
    let zeros = scale - kept;
    let digits = || {
        let padding = std::iter::repeat_n(b'0', zeros);
        decimal.whole.iter().chain(fraction).copied().chain(padding)
    };
    // 38 digits always fit 127 bits.
    if decimal.whole.len() + scale <= 38 {
        let magnitude = digits().fold(0_i128, |sum, digit| sum * 10 + i128::from(digit - b'0'));
        let value = if decimal.negative {
            -magnitude
        } else {
            magnitude
        };
        take(minimal(&value.to_be_bytes()));
    } else {
        let mut bytes = big_endian(digits());
        if decimal.negative {
            negate(&mut bytes);
        }
        take(minimal(&bytes));
    }
    Ok(())
}

/// Hands out the unscaled integer of a `numeric(p, scale)`.
pub(crate) fn precise(text: &[u8], scale: usize, take: impl FnOnce(&[u8])) -> Done {
    with_unscaled(&finite(text)?, scale, take)
}

/// Hands out the scale and the unscaled integer of a `numeric` without declared scale, trailing zeros of the fraction dropped.
pub(crate) fn variable(text: &[u8], take: impl FnOnce(usize, &[u8])) -> Done {
    let decimal = without_zeros(finite(text)?);
    let scale = decimal.fraction.len();
    with_unscaled(&decimal, scale, |bytes| take(scale, bytes))
}

/// Bytes hold digits and nothing else.
fn finite(text: &[u8]) -> Result<Decimal<'_>, Bad> {
    match parse(text)? {
        Parsed::Finite(decimal) => Ok(decimal),
        Parsed::Special(_) => Err(Bad::Formless("a decimal that is no number")),
    }
}

fn without_zeros(mut decimal: Decimal<'_>) -> Decimal<'_> {
    while let Some(shorter) = decimal.fraction.strip_suffix(b"0") {
        decimal.fraction = shorter;
    }
    decimal
}

/// Without leading bytes that only repeat the sign.
fn minimal(mut bytes: &[u8]) -> &[u8] {
    while let [first @ (0x00 | 0xff), second, ..] = bytes
        && first >> 7 == second >> 7
    {
        bytes = &bytes[1..];
    }
    bytes
}

/// Decimal digits to a big-endian integer with a zero byte in front.
fn big_endian(digits: impl Iterator<Item = u8>) -> Vec<u8> {
    // Little-endian limbs; nine digits are taken in at a time.
    let mut limbs: Vec<u32> = Vec::new();
    let mut take_in = |factor: u64, chunk: u64| {
        let mut carry = chunk;
        for limb in &mut limbs {
            carry += u64::from(*limb) * factor;
            *limb = carry as u32;
            carry >>= 32;
        }
        if carry != 0 {
            limbs.push(carry as u32);
        }
    };
    let (mut factor, mut chunk) = (1, 0);
    for digit in digits {
        chunk = chunk * 10 + u64::from(digit - b'0');
        factor *= 10;
        if factor == 1_000_000_000 {
            take_in(factor, chunk);
            (factor, chunk) = (1, 0);
        }
    }
    take_in(factor, chunk);
    let mut bytes = vec![0];
    bytes.extend(limbs.iter().rev().flat_map(|limb| limb.to_be_bytes()));
    bytes
}

/// Two's complement.
fn negate(bytes: &mut [u8]) {
    let mut carry = true;
    for byte in bytes.iter_mut().rev() {
        (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
    }
}

/// How `money` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Money {
    /// `"1234.56"`.
    Text,
    /// Base64 of the unscaled integer, scale 2.
    Precise,
    /// `1234.56`.
    Double,
}

/// Appends `money`. Its text depends on the server's `lc_monetary`: currency sign, grouping and minus are dropped or read,
/// and the last separator is the decimal one when two digits follow it.
pub(crate) fn write_money(text: &[u8], form: Money, out: &mut Vec<u8>) -> Done {
    const EXPECTED: Bad = Bad::Malformed("an amount of money with two decimals");
    check_utf8(text)?;
    let negative = text.contains(&b'-') || text.contains(&b'(');
    let last_digit = text.iter().rposition(u8::is_ascii_digit).ok_or(EXPECTED)?;
    let before = &text[..=last_digit];
    let tail = before
        .iter()
        .rev()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let has_point = tail < before.len() && matches!(before[before.len() - 1 - tail], b'.' | b',');
    let decimals = if has_point && tail == 2 { 2 } else { 0 };
    let (whole, fraction) = before.split_at(before.len() - decimals);
    // 92 233 720 368 547 758.07 is the largest amount: 17 digits.
    let mut plain = [0; 24];
    let mut len = 0;
    let mut push = |byte: u8| -> Done {
        *plain.get_mut(len).ok_or(EXPECTED)? = byte;
        len += 1;
        Ok(())
    };
    if negative {
        push(b'-')?;
    }
    let mut significant = false;
    for &digit in whole.iter().filter(|byte| byte.is_ascii_digit()) {
        significant |= digit != b'0';
        if significant {
            push(digit)?;
        }
    }
    if !significant {
        push(b'0')?;
    }
    push(b'.')?;
    for &digit in if fraction.is_empty() { b"00" } else { fraction } {
        push(digit)?;
    }
    let plain = &plain[..len];
    match form {
        Money::Text => write_string(plain, out),
        Money::Precise => write_precise(plain, 2, out),
        Money::Double => write_java_double_of(plain, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>) -> Done) -> String {
        let mut out = Vec::new();
        write(&mut out).expect("valid");
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn unscaled_integers_are_minimal_twos_complement() {
        for (text, scale, expected) in [
            ("123.45", 2, "\"MDk=\""),
            ("-0.01", 2, "\"/w==\""),
            ("0.00", 2, "\"AA==\""),
            ("1.28", 2, "\"AIA=\""),
            ("-1.28", 2, "\"gA==\""),
            ("-1.29", 2, "\"/38=\""),
            ("7", 2, "\"Arw=\""),
        ] {
            assert_eq!(
                written(|out| write_precise(text.as_bytes(), scale, out)),
                expected,
                "{text}"
            );
        }
        assert!(write_precise(b"1.234", 2, &mut Vec::new()).is_err());
    }

    #[test]
    fn long_numbers_agree_with_short_ones() {
        // Leading zeros push the same value past the short path.
        for value in [
            0_i128,
            1,
            -1,
            127,
            128,
            -128,
            -129,
            i128::from(i64::MAX),
            i128::from(i64::MIN),
            10_i128.pow(37),
        ] {
            let digits = value.unsigned_abs().to_string();
            let sign = if value < 0 { "-" } else { "" };
            let short = format!("{sign}{digits}");
            let long = format!("{sign}{digits:0>60}");
            assert_eq!(
                written(|out| write_precise(long.as_bytes(), 0, out)),
                written(|out| write_precise(short.as_bytes(), 0, out)),
                "{value}"
            );
        }
        // 2^160
        assert_eq!(
            written(|out| write_precise(
                b"1461501637330902918203684832716283019655932542976",
                0,
                out
            )),
            "\"AQAAAAAAAAAAAAAAAAAAAAAAAAAA\""
        );
    }

    #[test]
    fn variable_scale_drops_zeros_of_the_fraction() {
        assert_eq!(
            written(|out| write_variable(b"123.4500", out)),
            r#"{"scale":2,"value":"MDk="}"#
        );
        assert_eq!(
            written(|out| write_variable(b"100000000000000000000", out)),
            r#"{"scale":0,"value":"BWvHXi1jEAAA"}"#
        );
        assert_eq!(
            written(|out| write_variable(b"0.000", out)),
            r#"{"scale":0,"value":"AA=="}"#
        );
    }

    #[test]
    fn money_of_several_places() {
        for (text, expected) in [
            ("$1,234.56", "\"1234.56\""),
            ("-$1,234.56", "\"-1234.56\""),
            ("($0.05)", "\"-0.05\""),
            ("1.234,56 €", "\"1234.56\""),
            ("¥1,234", "\"1234.00\""),
            ("-$92,233,720,368,547,758.08", "\"-92233720368547758.08\""),
        ] {
            assert_eq!(
                written(|out| write_money(text.as_bytes(), Money::Text, out)),
                expected,
                "{text}"
            );
        }
        assert_eq!(
            written(|out| write_money(b"$1,234.56", Money::Precise, out)),
            "\"AeJA\""
        );
        assert_eq!(
            written(|out| write_money(b"$1,234.56", Money::Double, out)),
            "1234.56"
        );
        assert!(write_money(b"$", Money::Text, &mut Vec::new()).is_err());
    }
}
