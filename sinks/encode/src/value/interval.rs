//! Intervals, as `IntervalStyle postgres` prints them: `1 year 2 mons 3 days 04:05:06.789`, `-1 days +02:03:00`.

use super::bad::{Bad, Done};

const EXPECTED: Bad = Bad::Malformed("an interval in postgres style");

/// A month of 30.4375 days, in microseconds: a twelfth of a year of 365.25 days.
const MONTH_MICROS: i128 = 2_629_800_000_000;
const DAY_MICROS: i128 = 86_400_000_000;

#[derive(Default)]
struct Interval {
    months: i64,
    days: i64,
    micros: i64,
}

enum Parsed {
    Finite(Interval),
    Infinity,
    MinusInfinity,
}

fn parse(text: &[u8]) -> Option<Parsed> {
    // Since PostgreSQL 17.
    match text {
        b"infinity" => return Some(Parsed::Infinity),
        b"-infinity" => return Some(Parsed::MinusInfinity),
        _ => {}
    }
    let mut interval = Interval::default();
    let mut words = text.split(|&byte| byte == b' ');
    while let Some(word) = words.next() {
        if word.contains(&b':') {
            interval.micros = clock(word)?;
            return words.next().is_none().then_some(Parsed::Finite(interval));
        }
        let count = integer(word)?;
        match words.next()? {
            b"year" | b"years" => {
                interval.months = interval.months.checked_add(count.checked_mul(12)?)?
            }
            b"mon" | b"mons" => interval.months = interval.months.checked_add(count)?,
            b"day" | b"days" => interval.days = count,
            _ => return None,
        }
    }
    Some(Parsed::Finite(interval))
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `04:05:06.789`, `-00:00:01`, `+2562047788:00:54.775807`.
fn clock(text: &[u8]) -> Option<i64> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let mut parts = text.split(|&byte| byte == b':');
    let unsigned = |part: Option<&[u8]>| {
        part.filter(|part| part.iter().all(u8::is_ascii_digit))
            .and_then(integer)
    };
    let hours = unsigned(parts.next())?;
    let minutes = unsigned(parts.next())?;
    let mut seconds = parts.next()?.split(|&byte| byte == b'.');
    let whole = unsigned(seconds.next())?;
    let fraction = match seconds.next() {
        None => 0,
        Some(digits) if (1..=6).contains(&digits.len()) => {
            unsigned(Some(digits))? * [100_000, 10_000, 1_000, 100, 10, 1][digits.len() - 1]
        }
        Some(_) => return None,
    };
    if parts.next().is_some() || seconds.next().is_some() {
        return None;
    }
    // Summed with the sign: the smallest number has no positive twin.
    let sign = if negative { -1 } else { 1 };
    let seconds = hours.checked_mul(3600)?.checked_add(minutes * 60 + whole)?;
    (sign * seconds)
        .checked_mul(1_000_000)?
        .checked_add(sign * fraction)
}

/// Appends an interval as a number of microseconds, a month counted as 30.4375 days. What does not fit a 64-bit integer,
/// the ends of time among it, is the nearest one that does.
pub(crate) fn write_micros(text: &[u8], out: &mut Vec<u8>) -> Done {
    let micros = match parse(text).ok_or(EXPECTED)? {
        Parsed::Finite(interval) => {
            i128::from(interval.months) * MONTH_MICROS
                + i128::from(interval.days) * DAY_MICROS
                + i128::from(interval.micros)
        }
        Parsed::Infinity => i128::from(i64::MAX),
        Parsed::MinusInfinity => i128::from(i64::MIN),
    };
    let micros = micros.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
    out.extend_from_slice(itoa::Buffer::new().format(micros).as_bytes());
    Ok(())
}

/// Appends an interval as an ISO 8601 duration string, `"P1Y2M3DT4H5M6.789S"`, `"PT0S"`; each part carries its own sign.
pub(crate) fn write_iso(text: &[u8], out: &mut Vec<u8>) -> Done {
    let interval = match parse(text).ok_or(EXPECTED)? {
        Parsed::Finite(interval) => interval,
        Parsed::Infinity => {
            out.extend_from_slice(br#""infinity""#);
            return Ok(());
        }
        Parsed::MinusInfinity => {
            out.extend_from_slice(br#""-infinity""#);
            return Ok(());
        }
    };
    out.extend_from_slice(b"\"P");
    let start = out.len();
    part(interval.months / 12, b'Y', out);
    part(interval.months % 12, b'M', out);
    part(interval.days, b'D', out);
    if interval.micros != 0 || out.len() == start {
        out.push(b'T');
        let clock = out.len();
        let seconds = interval.micros / 1_000_000;
        part(seconds / 3600, b'H', out);
        part(seconds / 60 % 60, b'M', out);
        let rest = interval.micros % 60_000_000;
        if rest != 0 || out.len() == clock {
            if rest < 0 {
                out.push(b'-');
            }
            let rest = rest.unsigned_abs();
            out.extend_from_slice(itoa::Buffer::new().format(rest / 1_000_000).as_bytes());
            if !rest.is_multiple_of(1_000_000) {
                let digits = format!(".{:06}", rest % 1_000_000);
                out.extend_from_slice(digits.trim_end_matches('0').as_bytes());
            }
            out.push(b'S');
        }
    }
    out.push(b'"');
    Ok(())
}

fn part(value: i64, unit: u8, out: &mut Vec<u8>) {
    if value != 0 {
        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        out.push(unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        for (text, micros, iso) in [
            (
                "1 year 2 mons 3 days 04:05:06.789",
                "37091106789000",
                "P1Y2M3DT4H5M6.789S",
            ),
            ("1 mon", "2629800000000", "P1M"),
            ("00:00:00", "0", "PT0S"),
            ("-00:00:00.000001", "-1", "PT-0.000001S"),
            (
                "-10 mons -3 days +04:05:06.7",
                "-26542493300000",
                "P-10M-3DT4H5M6.7S",
            ),
            (
                "-1 years -2 mons +3 days -04:00:00",
                "-36572400000000",
                "P-1Y-2M3DT-4H",
            ),
            ("178000000 years", "9223372036854775807", "P178000000Y"),
            (
                "-2562047788:00:54.775808",
                "-9223372036854775808",
                "PT-2562047788H-54.775808S",
            ),
            ("infinity", "9223372036854775807", "infinity"),
        ] {
            let mut out = Vec::new();
            write_micros(text.as_bytes(), &mut out).expect("an interval");
            assert_eq!(String::from_utf8_lossy(&out), micros, "{text}");
            out.clear();
            write_iso(text.as_bytes(), &mut out).expect("an interval");
            assert_eq!(
                String::from_utf8_lossy(&out),
                format!("\"{iso}\""),
                "{text}"
            );
        }
        for bad in [
            "",
            "1",
            "1 hour",
            "P1Y",
            "@ 1 year",
            "00:00",
            "00:00:00:00",
            "00:00:0x",
        ] {
            assert!(
                write_micros(bad.as_bytes(), &mut Vec::new()).is_err(),
                "{bad}"
            );
        }
    }
}
