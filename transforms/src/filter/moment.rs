//! Dates and timestamps as numbers, from PostgreSQL's ISO text: years before Christ and beyond 9999 compare rightly,
//! which their texts would not.

/// Microseconds since 1970-01-01 00:00 UTC in the proleptic Gregorian calendar. `i128`, because dates reach the year
/// 5 874 897.
pub(crate) type Moment = i128;

/// What a text may hold besides the date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `2026-11-23`
    Date,
    /// `2026-11-23 04:05:06.789`
    Timestamp,
    /// `2026-11-23 04:05:06.789+00`; without an offset it is UTC.
    TimestampTz,
}

const DAY: i128 = 86_400_000_000;

/// Parses `YYYY-MM-DD[( |T)HH:MM[:SS[.ffffff]][Z|±HH[:MM[:SS]]]][ BC]`, `infinity` and `-infinity`; `None` when it is
/// none of these, or of another shape.
pub(crate) fn parse(text: &[u8], shape: Shape) -> Option<Moment> {
    match text {
        b"infinity" => return Some(Moment::MAX),
        b"-infinity" => return Some(Moment::MIN),
        _ => {}
    }
    let mut reader = Reader(text);
    let before_christ = match text.strip_suffix(b" BC") {
        Some(rest) => {
            reader = Reader(rest);
            true
        }
        None => false,
    };
    let date = date(&mut reader, before_christ)?;
    let mut moment = i128::from(date) * DAY;
    if shape != Shape::Date && !reader.0.is_empty() {
        if !(reader.eat(b' ') || reader.eat(b'T')) {
            return None;
        }
        moment += time(&mut reader)?;
        if shape == Shape::TimestampTz {
            moment -= offset(&mut reader)?;
        }
    }
    reader.0.is_empty().then_some(moment)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.0.first() == Some(&byte);
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    /// A number of `least` to `most` digits.
    fn number(&mut self, least: usize, most: usize) -> Option<i64> {
        let length = self
            .0
            .iter()
            .take(most)
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if length < least {
            return None;
        }
        let (digits, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(
            digits
                .iter()
                .fold(0, |value, digit| value * 10 + i64::from(digit - b'0')),
        )
    }

    fn number_up_to(&mut self, limit: i64) -> Option<i64> {
        self.number(2, 2).filter(|value| *value <= limit)
    }
}

/// Days since 1970-01-01.
fn date(reader: &mut Reader<'_>, before_christ: bool) -> Option<i64> {
    let year = reader.number(4, 7)?;
    // There is no year 0: 1 BC is the astronomical year 0.
    let year = if before_christ { 1 - year } else { year };
    let dash = reader.eat(b'-');
    let month = reader.number_up_to(12)?;
    let second_dash = reader.eat(b'-');
    let day = reader.number_up_to(31)?;
    let valid = dash && second_dash && month >= 1 && day >= 1 && day <= days_in(year, month);
    valid.then(|| days_from_civil(year, month, day))
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days between 1970-01-01 and a day of the proleptic Gregorian calendar, by eras of 400 years that begin in March.
pub(crate) fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn time(reader: &mut Reader<'_>) -> Option<i128> {
    let hours = reader.number_up_to(24)?;
    if !reader.eat(b':') {
        return None;
    }
    let minutes = reader.number_up_to(59)?;
    let seconds = if reader.eat(b':') {
        reader.number_up_to(60)?
    } else {
        0
    };
    let mut micros = 0;
    if reader.eat(b'.') {
        let before = reader.0.len();
        let digits = reader.number(1, 6)?;
        let length = before - reader.0.len();
        micros = (length..6).fold(digits, |value, _| value * 10);
    }
    Some(i128::from(
        ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros,
    ))
}

fn offset(reader: &mut Reader<'_>) -> Option<i128> {
    let sign = match reader.0.first() {
        None => return Some(0),
        Some(b'Z') => {
            reader.eat(b'Z');
            return Some(0);
        }
        Some(b'+') => 1,
        Some(b'-') => -1,
        Some(_) => return None,
    };
    reader.0 = &reader.0[1..];
    let mut seconds = reader.number(2, 2)? * 3600;
    if reader.eat(b':') {
        seconds += reader.number_up_to(59)? * 60;
    }
    if reader.eat(b':') {
        seconds += reader.number_up_to(59)?;
    }
    Some(i128::from(sign * seconds * 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (text, shape, expected) in [
            ("1970-01-01", Shape::Date, 0),
            ("2000-03-01", Shape::Date, 11_017 * DAY),
            ("0001-01-01", Shape::Date, -719_162 * DAY),
            ("0001-12-31 BC", Shape::Date, -719_163 * DAY),
            ("4714-11-24 BC", Shape::Date, -2_440_588 * DAY),
            ("5874897-12-31", Shape::Date, 2_145_042_905 * DAY),
            ("1970-01-01 00:00:01.5", Shape::Timestamp, 1_500_000),
            ("1970-01-01T00:01", Shape::Timestamp, 60_000_000),
            ("1970-01-01 02:00:00+02", Shape::TimestampTz, 0),
            (
                "1970-01-01 00:00:00-00:30",
                Shape::TimestampTz,
                1_800_000_000,
            ),
            ("1970-01-01 00:00:00Z", Shape::TimestampTz, 0),
            ("1969-12-31 23:59:59.999999+00", Shape::TimestampTz, -1),
        ] {
            assert_eq!(parse(text.as_bytes(), shape), Some(expected), "{text}");
        }
    }

    #[test]
    fn order_where_texts_mislead() {
        let ascending = [
            "-infinity",
            "0044-03-15 10:00:00 BC",
            "0044-03-15 11:00:00 BC",
            "0033-04-03 00:00:00",
            "2026-11-23 04:05:06",
            "9999-12-31 23:59:59.999999",
            "10000-01-01 00:00:00",
            "infinity",
        ];
        let moments: Vec<_> = ascending
            .iter()
            .map(|text| parse(text.as_bytes(), Shape::Timestamp).expect(text))
            .collect();
        assert!(
            moments.windows(2).all(|pair| pair[0] < pair[1]),
            "{moments:?}"
        );
    }

    #[test]
    fn refuses() {
        for bad in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-30",
            "2026-1-1",
            "2026-01-01x",
            "2026-01-01 25:00",
            "now",
        ] {
            assert_eq!(parse(bad.as_bytes(), Shape::Timestamp), None, "{bad}");
        }
        assert_eq!(parse(b"2026-01-01 10:00", Shape::Date), None);
        assert_eq!(parse(b"2026-01-01 10:00+02", Shape::Timestamp), None);
    }
}
