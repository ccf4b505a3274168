//! Timestamps and durations: taken apart, read and written. The calendar is the proleptic Gregorian one, the zone UTC.

use crate::filter::moment::{Moment, Shape, days_from_civil, parse};

const SECOND: i128 = 1_000_000;
const DAY: i128 = 86_400 * SECOND;

/// A moment taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub year: i64,
    /// From 1.
    pub month: i64,
    /// From 1.
    pub day: i64,
    /// Days since 1970-01-01.
    pub days: i64,
    /// Microseconds since midnight.
    pub micros: i64,
}

/// `None` for `infinity` and `-infinity`.
pub(super) fn parts(moment: Moment) -> Option<Parts> {
    if matches!(moment, Moment::MAX | Moment::MIN) {
        return None;
    }
    let days = i64::try_from(moment.div_euclid(DAY)).ok()?;
    let micros = i64::try_from(moment.rem_euclid(DAY)).ok()?;
    // By eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    Some(Parts {
        year: era * 400 + year_of_era + i64::from(month <= 2),
        month,
        day: day_of_year - (153 * from_march + 2) / 5 + 1,
        days,
        micros,
    })
}

impl Parts {
    /// From 0.
    pub(super) fn day_of_year(&self) -> i64 {
        self.days - days_from_civil(self.year, 1, 1)
    }

    /// From 0, a Sunday.
    pub(super) fn day_of_week(&self) -> i64 {
        (self.days + 4).rem_euclid(7)
    }
}

/// Reads a timestamp as RFC 3339 or PostgreSQL writes it; without an offset it is UTC, without a time midnight.
pub(super) fn moment(text: &str) -> Option<Moment> {
    parse(text.as_bytes(), Shape::TimestampTz)
}

/// A timestamp as PostgreSQL writes a `timestamptz` in UTC.
pub(super) fn moment_text(moment: Moment) -> String {
    let Some(parts) = parts(moment) else {
        return if moment == Moment::MAX {
            "infinity".to_owned()
        } else {
            "-infinity".to_owned()
        };
    };
    let seconds = parts.micros / 1_000_000;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let (year, era) = match parts.year {
        year @ 1.. => (year, ""),
        year => (1 - year, " BC"),
    };
    let fraction = fraction(parts.micros % 1_000_000);
    format!(
        "{year:04}-{:02}-{:02} {hours:02}:{minutes:02}:{seconds:02}{fraction}+00{era}",
        parts.month, parts.day
    )
}

/// `.5` for half a second, nothing for none.
fn fraction(micros: i64) -> String {
    match micros {
        0 => String::new(),
        micros => format!(".{micros:06}").trim_end_matches('0').to_owned(),
    }
}

const UNITS: [(&str, f64); 6] = [
    ("ns", 0.001),
    ("us", 1.0),
    ("ms", 1_000.0),
    ("h", 3_600_000_000.0),
    ("m", 60_000_000.0),
    ("s", 1_000_000.0),
];

/// Reads a duration as CEL writes it: `1h30m`, `90s`, `-1.5h`, `250ms`. In microseconds.
pub(super) fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return None;
    }
    let mut micros = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, behind) = rest.split_at(end);
        let number: f64 = digits.parse().ok()?;
        let (unit, factor) = UNITS.iter().find(|(unit, _)| behind.starts_with(unit))?;
        micros += number * factor;
        rest = &behind[unit.len()..];
    }
    let fits = micros < 9.2e18;
    let micros = micros.round() as i64;
    fits.then_some(if negative { -micros } else { micros })
}

/// A duration as CEL writes it: `5400s`.
pub(super) fn duration_text(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    let fraction = fraction((micros % 1_000_000) as i64);
    format!("{sign}{}{fraction}s", micros / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_they_are_read() {
        for text in [
            "1970-01-01 00:00:00+00",
            "2000-02-29 23:59:59.5+00",
            "2026-11-23 04:05:06.000001+00",
            "0001-01-01 00:00:00+00",
            "0044-03-15 10:00:00+00 BC",
            "12026-01-01 00:00:00+00",
            "infinity",
            "-infinity",
        ] {
            assert_eq!(moment_text(moment(text).expect(text)), text);
        }
        let offset = moment("2026-11-23T04:05:06+02:00").expect("RFC 3339");
        assert_eq!(moment_text(offset), "2026-11-23 02:05:06+00");
    }

    #[test]
    fn parts_of_days() {
        let parts = parts(moment("2026-11-23 00:00:01").expect("a moment")).expect("parts");
        assert_eq!((parts.year, parts.month, parts.day), (2026, 11, 23));
        assert_eq!(parts.day_of_week(), 1);
        assert_eq!(parts.day_of_year(), 326);
    }

    #[test]
    fn durations() {
        for (text, micros) in [
            ("1h30m", 5_400_000_000),
            ("90s", 90_000_000),
            ("-1.5h", -5_400_000_000),
            ("250ms", 250_000),
            ("1us", 1),
        ] {
            assert_eq!(duration(text), Some(micros), "{text}");
        }
        for bad in ["", "-", "5", "h", "5d", "1h30"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
        assert_eq!(duration_text(5_400_500_000), "5400.5s");
    }
}
