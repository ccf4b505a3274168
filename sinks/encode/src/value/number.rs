//! Integers and floating-point numbers.

use super::bad::{Bad, Done};

const INTEGER: Bad = Bad::Malformed("an integer");

/// Appends an integer as it stands.
pub(crate) fn write_integer(text: &[u8], out: &mut Vec<u8>) -> Done {
    check_integer(text)?;
    out.extend_from_slice(text);
    Ok(())
}

/// The digits, once they are known to be an integer as JSON has it.
#[inline]
fn check_integer(text: &[u8]) -> Result<&[u8], Bad> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let valid = match digits {
        [] => false,
        [b'0'] => true,
        [b'0', ..] => false,
        digits => digits.iter().all(u8::is_ascii_digit),
    };
    if valid { Ok(digits) } else { Err(INTEGER) }
}

/// An integer of 64 bits.
#[inline]
pub(crate) fn integer(text: &[u8]) -> Result<i64, Bad> {
    let digits = check_integer(text)?;
    // The smallest number has no positive twin: summed below zero.
    let sum = digits.iter().try_fold(0_i64, |sum, digit| {
        sum.checked_mul(10)?.checked_sub(i64::from(digit - b'0'))
    });
    let sum = sum.ok_or(INTEGER)?;
    match digits.len() == text.len() {
        true => sum.checked_neg().ok_or(INTEGER),
        false => Ok(sum),
    }
}

/// A floating-point number, or one of the three words that are none.
pub(crate) fn float<T: std::str::FromStr>(text: &[u8]) -> Result<T, Bad> {
    let text = std::str::from_utf8(text).map_err(|_| Bad::NotUtf8)?;
    text.parse()
        .map_err(|_| Bad::Malformed("a floating-point number"))
}

/// Appends a `float4` or `float8` as PostgreSQL prints it (`1.5`, `1e+300`), which is a JSON number; what is not a
/// number is a string.
pub(crate) fn write_float(text: &[u8], out: &mut Vec<u8>) -> Done {
    match Float::parse(text)? {
        Float::Finite(_) => out.extend_from_slice(text),
        Float::Special(name) => write_special(name, out),
    }
    Ok(())
}

/// Appends a `float8` (or, when `single`, a `float4`) as Java's `toString` prints it: `1.0E300`, `100.0`.
pub(crate) fn write_java_float(text: &[u8], single: bool, out: &mut Vec<u8>) -> Done {
    match Float::parse(text)? {
        Float::Finite(number) => write_java(&number, single, out),
        Float::Special(name) => write_special(name, out),
    }
    Ok(())
}

/// Appends a decimal text, rounded to a double, as Java's `Double.toString` prints it.
pub(crate) fn write_java_double_of(text: &[u8], out: &mut Vec<u8>) -> Done {
    const EXPECTED: Bad = Bad::Malformed("a number");
    let text = std::str::from_utf8(text).map_err(|_| Bad::NotUtf8)?;
    let value: f64 = text.parse().map_err(|_| EXPECTED)?;
    if value.is_nan() {
        write_special("NaN", out);
    } else if value.is_infinite() {
        write_special(if value > 0.0 { "Infinity" } else { "-Infinity" }, out);
    } else {
        return write_java_float(format!("{value:e}").as_bytes(), false, out);
    }
    Ok(())
}

/// Appends a number as PostgreSQL prints it, which is a JSON number; what is not a number is a string. `shortest` is what
/// `{:e}` makes of it.
pub(crate) fn write_as_printed(shortest: &str, single: bool, out: &mut Vec<u8>) -> Done {
    let number = match Float::parse(shortest.as_bytes())? {
        Float::Finite(number) => number,
        Float::Special(name) => {
            write_special(name, out);
            return Ok(());
        }
    };
    if number.negative {
        out.push(b'-');
    }
    let digits = &number.digits[..number.len];
    if digits.is_empty() {
        out.push(b'0');
        return Ok(());
    }
    let exponent = number.point - 1;
    if (-4..if single { 6 } else { 15 }).contains(&exponent) {
        let start = out.len();
        write_plain(digits, number.point, out);
        if out[start..].ends_with(b".0") {
            out.truncate(out.len() - 2);
        }
        return Ok(());
    }
    out.push(digits[0]);
    if digits.len() > 1 {
        out.push(b'.');
        out.extend_from_slice(&digits[1..]);
    }
    out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
    if exponent.unsigned_abs() < 10 {
        out.push(b'0');
    }
    out.extend_from_slice(
        itoa::Buffer::new()
            .format(exponent.unsigned_abs())
            .as_bytes(),
    );
    Ok(())
}

fn write_special(name: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.push(b'"');
}

/// The most significant digits a shortest double has, and room for zeros that PostgreSQL prints instead of an exponent.
const DIGITS: usize = 40;

/// `0.d₁d₂… × 10^point`, without leading or trailing zeros; zero has no digits.
struct Finite {
    negative: bool,
    digits: [u8; DIGITS],
    len: usize,
    point: i32,
}

enum Float {
    Finite(Finite),
    Special(&'static str),
}

impl Float {
    /// Reads `-12.5`, `1e+300`, `NaN`, `-Infinity`; exactly the forms that are JSON numbers, and those three words.
    fn parse(text: &[u8]) -> Result<Float, Bad> {
        const EXPECTED: Bad = Bad::Malformed("a floating-point number");
        match text {
            b"NaN" => return Ok(Float::Special("NaN")),
            b"Infinity" => return Ok(Float::Special("Infinity")),
            b"-Infinity" => return Ok(Float::Special("-Infinity")),
            _ => {}
        }
        let unsigned = text.strip_prefix(b"-").unwrap_or(text);
        let (mantissa, exponent) = match unsigned.iter().position(|&byte| byte | 0x20 == b'e') {
            Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
            None => (unsigned, None),
        };
        let (whole, fraction) = match mantissa.iter().position(|&byte| byte == b'.') {
            Some(at) => (&mantissa[..at], Some(&mantissa[at + 1..])),
            None => (mantissa, None),
        };
        let all_digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
        if !all_digits(whole)
            || (whole.len() > 1 && whole[0] == b'0')
            || !fraction.is_none_or(all_digits)
        {
            return Err(EXPECTED);
        }
        let exponent = exponent.map_or(Some(0), parse_exponent).ok_or(EXPECTED)?;
        let mut number = Finite {
            negative: unsigned.len() != text.len(),
            digits: [0; DIGITS],
            len: 0,
            point: whole.len() as i32 + exponent,
        };
        for &digit in whole.iter().chain(fraction.unwrap_or_default()) {
            if number.len == 0 && digit == b'0' {
                number.point -= 1;
                continue;
            }
            *number.digits.get_mut(number.len).ok_or(EXPECTED)? = digit;
            number.len += 1;
        }
        while number.len > 0 && number.digits[number.len - 1] == b'0' {
            number.len -= 1;
        }
        Ok(Float::Finite(number))
    }
}

fn parse_exponent(text: &[u8]) -> Option<i32> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 4 {
        return None;
    }
    let mut value = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i32::from(digit - b'0');
    }
    Some(if negative { -value } else { value })
}

/// `Double.toString`: plain from 10⁻³ to below 10⁷, else one digit, a point, at least one digit, and `E`.
fn write_java(number: &Finite, single: bool, out: &mut Vec<u8>) {
    if number.negative {
        out.push(b'-');
    }
    let mut digits = &number.digits[..number.len];
    if digits.is_empty() {
        out.extend_from_slice(b"0.0");
        return;
    }
    let exponent = number.point - 1;
    let two;
    if let [digit] = *digits
        && exponent < if single { -40 } else { -310 }
    {
        // Java prints at least two digits. Among subnormals, whose one shortest digit is coarse, it takes the two that
        // are nearest: 4.9E-324, 1.4E-45.
        two = two_digits(digit, exponent, single);
        digits = &two;
    }
    let (first, rest) = digits.split_at(1);
    if (-3..7).contains(&exponent) {
        write_plain(digits, number.point, out);
        return;
    }
    out.extend_from_slice(first);
    out.push(b'.');
    out.extend_from_slice(if rest.is_empty() { b"0" } else { rest });
    out.push(b'E');
    out.extend_from_slice(itoa::Buffer::new().format(exponent).as_bytes());
}

fn write_plain(digits: &[u8], point: i32, out: &mut Vec<u8>) {
    const ZEROS: &[u8; 16] = b"0000000000000000";
    if point <= 0 {
        out.extend_from_slice(b"0.");
        out.extend_from_slice(&ZEROS[..point.unsigned_abs() as usize]);
        out.extend_from_slice(digits);
        return;
    }
    let point = point as usize;
    if point >= digits.len() {
        out.extend_from_slice(digits);
        out.extend_from_slice(&ZEROS[..point - digits.len()]);
        out.extend_from_slice(b".0");
    } else {
        out.extend_from_slice(&digits[..point]);
        out.push(b'.');
        out.extend_from_slice(&digits[point..]);
    }
}

fn two_digits(digit: u8, exponent: i32, single: bool) -> [u8; 2] {
    let shortest = format!("{}e{exponent}", char::from(digit));
    let two = if single {
        shortest.parse().map(|value: f32| format!("{value:.1e}"))
    } else {
        shortest.parse().map(|value: f64| format!("{value:.1e}"))
    };
    match two.as_deref().map(str::as_bytes) {
        Ok([first, b'.', second, ..]) => [*first, *second],
        _ => [digit, b'0'],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn java(text: &str, single: bool) -> String {
        let mut out = Vec::new();
        write_java_float(text.as_bytes(), single, &mut out).expect("a number");
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn doubles_as_java_prints_them() {
        for (text, expected) in [
            ("0", "0.0"),
            ("-0", "-0.0"),
            ("100", "100.0"),
            ("1e+300", "1.0E300"),
            ("1e-10", "1.0E-10"),
            ("10000000", "1.0E7"),
            ("9999999", "9999999.0"),
            ("12345678.9", "1.23456789E7"),
            ("0.001", "0.001"),
            ("0.00123", "0.00123"),
            ("0.0001", "1.0E-4"),
            ("-1.5", "-1.5"),
            ("123456789012345", "1.23456789012345E14"),
            ("1.7976931348623157e+308", "1.7976931348623157E308"),
            ("5e-324", "4.9E-324"),
            ("2.2250738585072014e-308", "2.2250738585072014E-308"),
            ("NaN", "\"NaN\""),
            ("-Infinity", "\"-Infinity\""),
        ] {
            assert_eq!(java(text, false), expected, "{text}");
        }
        assert_eq!(java("1e-45", true), "1.4E-45");
        assert_eq!(java("3.4028235e+38", true), "3.4028235E38");
        assert_eq!(java("0.1", true), "0.1");
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in [
            "", "-", ".", "1.", ".5", "01", "1e", "1e+", "0x1", "nan", "1,5", "--1", "1e99999",
        ] {
            assert!(
                write_float(bad.as_bytes(), &mut Vec::new()).is_err(),
                "{bad}"
            );
        }
        for bad in ["", "-", "01", "1.0", "+1", "1 "] {
            assert!(
                write_integer(bad.as_bytes(), &mut Vec::new()).is_err(),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn java_doubles_keep_their_value(value in any::<f64>().prop_filter("finite", |value| value.is_finite())) {
            let printed = java(&format!("{value:e}"), false);
            prop_assert_eq!(printed.parse::<f64>().expect("a number"), value);
        }
    }
}
