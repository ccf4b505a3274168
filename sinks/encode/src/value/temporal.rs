//! Dates and times. PostgreSQL prints them in ISO style (`2024-02-29 13:51:30.123456+00`, years beyond 9999 longer, years
//! before 1 with ` BC`); all calendar arithmetic is proleptic Gregorian, as PostgreSQL's own is.

use super::bad::{Bad, Done};

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

/// What Debezium writes for `timestamp 'infinity'`, in microseconds.
const PLUS_INFINITY_MICROS: i64 = 9_223_372_036_825_200_000;
/// What Debezium writes for `timestamp '-infinity'`, in microseconds.
const MINUS_INFINITY_MICROS: i64 = -9_223_372_036_832_400_000;

/// A date of the proleptic Gregorian calendar, astronomical year (1 BC is 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: i64,
    month: u8,
    day: u8,
}

impl Date {
    /// Days since 1970-01-01.
    fn days(self) -> i64 {
        // Years are counted from March, so that the leap day is the last; 400 years have 146,097 days.
        let month = i64::from(self.month);
        let year = self.year - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        era * 146_097 + day_of_era - 719_468
    }

    /// The date of a number of days since 1970-01-01.
    fn from_days(days: i64) -> Date {
        let days = days + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 {
            shifted + 3
        } else {
            shifted - 9
        };
        Date {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * shifted + 2) / 5 + 1) as u8,
        }
    }

    /// ISO 8601: years outside 0 to 9999 carry a sign.
    fn write(self, out: &mut Vec<u8>) {
        let year = self.year.unsigned_abs();
        if self.year < 0 {
            out.push(b'-');
        } else if year > 9999 {
            out.push(b'+');
        }
        let mut number = itoa::Buffer::new();
        let year = number.format(year);
        for _ in year.len()..4 {
            out.push(b'0');
        }
        out.extend_from_slice(year.as_bytes());
        out.push(b'-');
        write_two(self.month, out);
        out.push(b'-');
        write_two(self.day, out);
    }
}

fn write_two(value: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'0' + value / 10, b'0' + value % 10]);
}

/// Reads a text from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    #[inline]
    fn eat(&mut self, byte: u8) -> bool {
        match self.0 {
            [first, rest @ ..] if *first == byte => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    #[inline]
    fn two(&mut self) -> Option<u8> {
        let [tens, ones, rest @ ..] = self.0 else {
            return None;
        };
        if !tens.is_ascii_digit() || !ones.is_ascii_digit() {
            return None;
        }
        self.0 = rest;
        Some((tens - b'0') * 10 + (ones - b'0'))
    }

    #[inline]
    fn number(&mut self, most: usize) -> Option<i64> {
        let len = self
            .0
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if len == 0 || len > most {
            return None;
        }
        let (digits, rest) = self.0.split_at(len);
        self.0 = rest;
        Some(
            digits
                .iter()
                .fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')),
        )
    }

    /// `2024-02-29`; the year as it is printed.
    #[inline]
    fn date(&mut self) -> Option<Date> {
        let year = self.number(7)?;
        let month = self.eat(b'-').then(|| self.two())??;
        let day = self.eat(b'-').then(|| self.two())??;
        let valid = (1..=12).contains(&month) && (1..=31).contains(&day);
        valid.then_some(Date { year, month, day })
    }

    /// `13:51:30.123456`, in microseconds; up to 24:00:00.
    #[inline]
    fn time(&mut self) -> Option<i64> {
        let hour = self.two()?;
        let minute = self.eat(b':').then(|| self.two())??;
        let second = self.eat(b':').then(|| self.two())??;
        if hour > 24 || minute > 59 || second > 60 {
            return None;
        }
        let seconds = (i64::from(hour) * 60 + i64::from(minute)) * 60 + i64::from(second);
        let mut micros = seconds * 1_000_000;
        if self.eat(b'.') {
            let before = self.0.len();
            let fraction = self.number(6)?;
            let digits = before - self.0.len();
            micros += fraction * [100_000, 10_000, 1_000, 100, 10, 1][digits - 1];
        }
        (micros <= DAY).then_some(micros)
    }

    /// `+00`, `-03:30`, `+05:53:28`, in seconds east of Greenwich.
    #[inline]
    fn zone(&mut self) -> Option<i64> {
        let east = self.eat(b'+');
        if !east && !self.eat(b'-') {
            return None;
        }
        let mut seconds = i64::from(self.two()?) * 3600;
        if self.eat(b':') {
            seconds += i64::from(self.two()?) * 60;
            if self.eat(b':') {
                seconds += i64::from(self.two()?);
            }
        }
        Some(if east { seconds } else { -seconds })
    }

    /// Takes ` BC` and the end; says whether it was there.
    fn end(&mut self) -> Option<bool> {
        match self.0 {
            b"" => Some(false),
            b" BC" => Some(true),
            _ => None,
        }
    }
}

/// A moment as it is printed, or one of the two ends of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    At { date: Date, micros: i64, zone: i64 },
    Infinity,
    MinusInfinity,
}

impl Moment {
    fn parse(text: &[u8], time: bool, zone: bool) -> Option<Moment> {
        match text {
            b"infinity" => return Some(Moment::Infinity),
            b"-infinity" => return Some(Moment::MinusInfinity),
            _ => {}
        }
        let mut reader = Reader(text);
        let mut date = reader.date()?;
        let micros = if time {
            reader.eat(b' ').then(|| reader.time())??
        } else {
            0
        };
        let zone = if zone { reader.zone()? } else { 0 };
        if reader.end()? {
            date.year = 1 - date.year;
        }
        Some(Moment::At { date, micros, zone })
    }
}

/// The common form of a moment, `2024-02-29 13:51:30` and a fraction, at fixed places.
struct Common<'a> {
    text: &'a [u8; 19],
    /// Digits of the fraction, zeros behind them.
    fraction: [u8; 6],
    /// Behind the fraction.
    rest: &'a [u8],
}

impl<'a> Common<'a> {
    /// `None` for anything that is not just so; the long way then says whether it is right.
    #[inline]
    fn parse(text: &'a [u8]) -> Option<Self> {
        const DIGITS: [usize; 14] = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18];
        let (moment, mut rest) = text.split_first_chunk::<19>()?;
        let digits = DIGITS
            .iter()
            .fold(true, |all, &at| all & moment[at].is_ascii_digit());
        let separators = (moment[4] == b'-')
            & (moment[7] == b'-')
            & (moment[10] == b' ')
            & (moment[13] == b':')
            & (moment[16] == b':');
        let mut fraction = [b'0'; 6];
        if let [b'.', tail @ ..] = rest {
            let len = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
            fraction.get_mut(..len)?.copy_from_slice(&tail[..len]);
            if len == 0 {
                return None;
            }
            rest = &tail[len..];
        }
        let common = Common {
            text: moment,
            fraction,
            rest,
        };
        let in_range = matches!(common.two(5), 1..=12)
            & matches!(common.two(8), 1..=31)
            & (common.two(11) < 24)
            & (common.two(14) < 60)
            & (common.two(17) < 60);
        (digits & separators & in_range).then_some(common)
    }

    #[inline]
    fn two(&self, at: usize) -> u8 {
        (self.text[at].wrapping_sub(b'0'))
            .wrapping_mul(10)
            .wrapping_add(self.text[at + 1].wrapping_sub(b'0'))
    }

    /// Microseconds since the epoch, without regard to `rest`.
    #[inline]
    fn micros(&self) -> i64 {
        let date = Date {
            year: i64::from(self.two(0)) * 100 + i64::from(self.two(2)),
            month: self.two(5),
            day: self.two(8),
        };
        let hours = date.days() * 24 + i64::from(self.two(11));
        let seconds = (hours * 60 + i64::from(self.two(14))) * 60 + i64::from(self.two(17));
        let fraction = self
            .fraction
            .iter()
            .fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        seconds * 1_000_000 + fraction
    }

    /// Appends it as an ISO 8601 string that ends in `end`.
    #[inline]
    fn write(&self, fraction: Fraction, end: &[u8], out: &mut Vec<u8>) {
        let mut iso = *b"\"0000-00-00T00:00:00.000000Z\"";
        iso[1..20].copy_from_slice(self.text);
        iso[11] = b'T';
        iso[21..27].copy_from_slice(&self.fraction);
        let digits = match fraction {
            Fraction::Padded(precision) => usize::from(precision),
            Fraction::Needed => {
                6 - self
                    .fraction
                    .iter()
                    .rev()
                    .take_while(|digit| **digit == b'0')
                    .count()
            }
        };
        // The point goes with its last digit.
        let len = if digits == 0 { 20 } else { 21 + digits };
        iso[len..len + end.len()].copy_from_slice(end);
        out.extend_from_slice(&iso[..len + end.len()]);
    }
}

const DATE: Bad = Bad::Malformed("a date in ISO style");
const TIME: Bad = Bad::Malformed("a time in ISO style");
const TIMESTAMP: Bad = Bad::Malformed("a timestamp in ISO style");

#[inline]
fn write_number(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn write_infinity(moment: Moment, out: &mut Vec<u8>) {
    out.extend_from_slice(match moment {
        Moment::MinusInfinity => br#""-infinity""#,
        Moment::Infinity | Moment::At { .. } => br#""infinity""#,
    });
}

/// Appends a `date` as days since the epoch. The ends of time are the ends of a 32-bit integer.
pub(crate) fn write_days(text: &[u8], out: &mut Vec<u8>) -> Done {
    let days = match Moment::parse(text, false, false).ok_or(DATE)? {
        Moment::At { date, .. } => date.days(),
        Moment::Infinity => i64::from(i32::MAX),
        Moment::MinusInfinity => i64::from(i32::MIN),
    };
    write_number(days, out);
    Ok(())
}

/// The unit of a number that stands for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Columns declared with a precision of 3 or less.
    Millis,
    /// All others.
    Micros,
}

impl Unit {
    fn of(self, micros: i64) -> i64 {
        match self {
            Unit::Millis => micros.div_euclid(1000),
            Unit::Micros => micros,
        }
    }

    fn micros(self, value: i64) -> Option<i64> {
        match self {
            Unit::Millis => value.checked_mul(1000),
            Unit::Micros => Some(value),
        }
    }
}

/// Appends a `time` as a number since midnight.
pub(crate) fn write_time(text: &[u8], unit: Unit, out: &mut Vec<u8>) -> Done {
    let mut reader = Reader(text);
    let micros = reader.time().filter(|_| reader.0.is_empty()).ok_or(TIME)?;
    write_number(unit.of(micros), out);
    Ok(())
}

/// Appends a `timestamp`, taken as UTC, as a number since the epoch.
pub(crate) fn write_epoch(text: &[u8], unit: Unit, out: &mut Vec<u8>) -> Done {
    let value = epoch(text, unit)?;
    match i64::try_from(value) {
        Ok(value) => write_number(value, out),
        // The last decades that PostgreSQL knows lie beyond 64 bits of microseconds since 1970; JSON does not mind.
        Err(_) => out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
    }
    Ok(())
}

/// A `timestamp`, taken as UTC, as a number since the epoch.
#[inline]
pub(crate) fn epoch(text: &[u8], unit: Unit) -> Result<i128, Bad> {
    if let Some(common) = Common::parse(text)
        && common.rest.is_empty()
    {
        return Ok(i128::from(unit.of(common.micros())));
    }
    let micros = match Moment::parse(text, true, false).ok_or(TIMESTAMP)? {
        Moment::At { date, micros, .. } => {
            let days = date.days();
            match days
                .checked_mul(DAY)
                .and_then(|day| day.checked_add(micros))
            {
                Some(all) => all,
                None => {
                    let micros = i128::from(days) * i128::from(DAY) + i128::from(micros);
                    return Ok(match unit {
                        Unit::Millis => micros.div_euclid(1000),
                        Unit::Micros => micros,
                    });
                }
            }
        }
        Moment::Infinity => PLUS_INFINITY_MICROS,
        Moment::MinusInfinity => MINUS_INFINITY_MICROS,
    };
    Ok(i128::from(unit.of(micros)))
}

/// How many digits the fraction of a second gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fraction {
    /// This many, zeros and all.
    Padded(u8),
    /// As many as it needs, none for zero.
    Needed,
}

fn write_clock(micros: i64, fraction: Fraction, out: &mut Vec<u8>) {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let two = |value: i64| [b'0' + (value / 10) as u8, b'0' + (value % 10) as u8];
    out.extend_from_slice(&two(seconds / 3600));
    out.push(b':');
    out.extend_from_slice(&two(seconds / 60 % 60));
    out.push(b':');
    out.extend_from_slice(&two(seconds % 60));
    let mut digits = *b".000000";
    let mut rest = micros;
    for digit in digits[1..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let len = match fraction {
        Fraction::Padded(0) => 0,
        Fraction::Padded(precision) => usize::from(precision) + 1,
        Fraction::Needed if micros == 0 => 0,
        Fraction::Needed => {
            digits.len()
                - digits
                    .iter()
                    .rev()
                    .take_while(|digit| **digit == b'0')
                    .count()
        }
    };
    out.extend_from_slice(&digits[..len]);
}

/// Appends a `timestamptz` as an ISO 8601 string in UTC, `"2024-02-29T11:51:30.123456Z"`; an end of time as PostgreSQL's
/// word.
pub(crate) fn write_instant(text: &[u8], fraction: Fraction, out: &mut Vec<u8>) -> Done {
    if let Some(common) = Common::parse(text)
        && common.rest == b"+00"
    {
        common.write(fraction, b"Z\"", out);
        return Ok(());
    }
    let moment = Moment::parse(text, true, true).ok_or(TIMESTAMP)?;
    let Moment::At {
        mut date,
        mut micros,
        zone,
    } = moment
    else {
        write_infinity(moment, out);
        return Ok(());
    };
    if zone != 0 || micros == DAY {
        let utc = micros - zone * 1_000_000;
        date = Date::from_days(date.days() + utc.div_euclid(DAY));
        micros = utc.rem_euclid(DAY);
    }
    out.push(b'"');
    date.write(out);
    out.push(b'T');
    write_clock(micros, fraction, out);
    out.extend_from_slice(b"Z\"");
    Ok(())
}

/// Appends a `timetz` as a UTC time of day, `"11:51:30.123456Z"`.
pub(crate) fn write_time_utc(text: &[u8], out: &mut Vec<u8>) -> Done {
    let mut reader = Reader(text);
    let micros = reader.time().ok_or(TIME)?;
    let zone = reader.zone().filter(|_| reader.0.is_empty()).ok_or(TIME)?;
    out.push(b'"');
    write_clock(
        (micros - zone * 1_000_000).rem_euclid(DAY),
        Fraction::Needed,
        out,
    );
    out.extend_from_slice(b"Z\"");
    Ok(())
}

/// Appends a `date` in ISO 8601.
pub(crate) fn write_date_iso(text: &[u8], out: &mut Vec<u8>) -> Done {
    let moment = Moment::parse(text, false, false).ok_or(DATE)?;
    let Moment::At { date, .. } = moment else {
        write_infinity(moment, out);
        return Ok(());
    };
    out.push(b'"');
    date.write(out);
    out.push(b'"');
    Ok(())
}

/// Appends a `timestamp` in ISO 8601, without a zone, `"2024-02-29T13:51:30.5"`.
pub(crate) fn write_timestamp_iso(text: &[u8], out: &mut Vec<u8>) -> Done {
    if let Some(common) = Common::parse(text)
        && common.rest.is_empty()
    {
        common.write(Fraction::Needed, b"\"", out);
        return Ok(());
    }
    let moment = Moment::parse(text, true, false).ok_or(TIMESTAMP)?;
    let Moment::At { date, micros, .. } = moment else {
        write_infinity(moment, out);
        return Ok(());
    };
    out.push(b'"');
    date.write(out);
    out.push(b'T');
    write_clock(micros, Fraction::Needed, out);
    out.push(b'"');
    Ok(())
}

/// Appends a `time` as it stands, `"13:51:30.123"`.
pub(crate) fn write_time_iso(text: &[u8], out: &mut Vec<u8>) -> Done {
    let mut reader = Reader(text);
    let micros = reader.time().filter(|_| reader.0.is_empty()).ok_or(TIME)?;
    out.push(b'"');
    write_clock(micros, Fraction::Needed, out);
    out.push(b'"');
    Ok(())
}

/// Appends a `timetz` with its own offset, `"13:51:30.123+02:00"`; the offset of Greenwich is `Z`.
pub(crate) fn write_timetz_iso(text: &[u8], out: &mut Vec<u8>) -> Done {
    let mut reader = Reader(text);
    let micros = reader.time().ok_or(TIME)?;
    let zone = reader.zone().filter(|_| reader.0.is_empty()).ok_or(TIME)?;
    out.push(b'"');
    write_clock(micros, Fraction::Needed, out);
    if zone == 0 {
        out.push(b'Z');
    } else {
        let seconds = zone.unsigned_abs();
        out.push(if zone < 0 { b'-' } else { b'+' });
        write_two((seconds / 3600) as u8, out);
        out.push(b':');
        write_two((seconds / 60 % 60) as u8, out);
        if seconds % 60 != 0 {
            out.push(b':');
            write_two((seconds % 60) as u8, out);
        }
    }
    out.push(b'"');
    Ok(())
}

/// Appends a moment given in microseconds since the epoch as an ISO 8601 string in UTC with six digits.
pub(crate) fn write_micros_iso(micros: i64, out: &mut Vec<u8>) {
    out.push(b'"');
    Date::from_days(micros.div_euclid(DAY)).write(out);
    out.push(b'T');
    write_clock(micros.rem_euclid(DAY), Fraction::Padded(6), out);
    out.extend_from_slice(b"Z\"");
}

/// The text of a `date` that [`write_days`] writes as `days`.
pub(crate) fn days_back(days: i64) -> Option<String> {
    match days {
        _ if days == i64::from(i32::MAX) => Some("infinity".to_owned()),
        _ if days == i64::from(i32::MIN) => Some("-infinity".to_owned()),
        _ if days.abs() > i64::from(i32::MAX) => None,
        _ => date_back(days, ""),
    }
}

/// The text of a `time` that [`write_time`] writes as `value`.
pub(crate) fn time_back(value: i64, unit: Unit) -> Option<String> {
    let micros = unit.micros(value)?;
    (0..=DAY).contains(&micros).then(|| clock_back(micros))
}

/// The text of a `timestamp` that [`write_epoch`] writes as `value`.
pub(crate) fn epoch_back(value: i64, unit: Unit) -> Option<String> {
    if value == unit.of(PLUS_INFINITY_MICROS) {
        return Some("infinity".to_owned());
    }
    if value == unit.of(MINUS_INFINITY_MICROS) {
        return Some("-infinity".to_owned());
    }
    let micros = unit.micros(value)?;
    let clock = clock_back(micros.rem_euclid(DAY));
    date_back(micros.div_euclid(DAY), &format!(" {clock}"))
}

/// The text of a moment that is written as this in ISO 8601; with `zone` it is one in UTC.
pub(crate) fn iso_back(iso: &str, zone: bool) -> Option<String> {
    if iso == "infinity" || iso == "-infinity" {
        return Some(iso.to_owned());
    }
    let iso = match zone {
        true => iso.strip_suffix('Z')?,
        false => iso,
    };
    let (date, clock) = match iso.split_once('T') {
        Some((date, clock)) => (date, Some(clock)),
        None => (iso, None),
    };
    let rest = date.trim_start_matches(['-', '+']);
    let mut reader = Reader(rest.as_bytes());
    let mut parsed = reader.date().filter(|_| reader.0.is_empty())?;
    if date.starts_with('-') {
        parsed.year = -parsed.year;
    }
    let mut behind = String::new();
    if let Some(clock) = clock {
        // PostgreSQL prints no zeros at the end of a fraction.
        let clock = match clock.contains('.') {
            true => clock.trim_end_matches('0').trim_end_matches('.'),
            false => clock,
        };
        behind = format!(" {clock}");
    }
    if zone {
        behind.push_str("+00");
    }
    date_back(parsed.days(), &behind)
}

fn date_back(days: i64, behind: &str) -> Option<String> {
    let mut date = Date::from_days(days);
    let before_christ = date.year <= 0;
    if before_christ {
        date.year = 1 - date.year;
    }
    let mut out = Vec::new();
    date.write(&mut out);
    let text = String::from_utf8(out).ok()?;
    let text = text.trim_start_matches('+');
    let end = if before_christ { " BC" } else { "" };
    Some(format!("{text}{behind}{end}"))
}

fn clock_back(micros: i64) -> String {
    let mut out = Vec::new();
    write_clock(micros, Fraction::Needed, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests;
