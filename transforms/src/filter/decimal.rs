//! Exact comparison of numbers by their decimal text, without conversion to a float and without allocation.

use std::cmp::Ordering;

/// A number as written: `-12.340`, `1e-07`, `NaN`, `Infinity`. Value `0.d₁d₂d₃… × 10^exponent`, with `d₁ ≠ 0`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decimal<'a> {
    rank: Rank,
    /// Significant digits before the point, then those after it; no zeros at either end.
    head: &'a [u8],
    tail: &'a [u8],
    exponent: i64,
}

/// Ranges of numbers in ascending order; NaN is above all, as PostgreSQL has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    NegativeInfinity,
    Negative,
    Zero,
    Positive,
    Infinity,
    NaN,
}

impl<'a> Decimal<'a> {
    /// Parses a number; `None` when it is none.
    pub(crate) fn parse(text: &'a [u8]) -> Option<Self> {
        if let Some(rank) = special(text) {
            return Some(Decimal::bare(rank));
        }
        let (negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        let (mantissa, power) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => (&text[..at], power(&text[at + 1..])?),
            None => (text, 0),
        };
        let (whole, fraction) = match mantissa.iter().position(|&byte| byte == b'.') {
            Some(at) => (&mantissa[..at], &mantissa[at + 1..]),
            None => (mantissa, &[][..]),
        };
        let digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
        if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
            return None;
        }
        Some(Decimal::new(negative, whole, fraction, power))
    }

    fn new(negative: bool, whole: &'a [u8], fraction: &'a [u8], power: i64) -> Self {
        let mut head = trim_start(whole);
        let mut exponent = power.saturating_add(head.len() as i64);
        let mut tail = fraction;
        if head.is_empty() {
            tail = trim_start(fraction);
            exponent = exponent.saturating_sub((fraction.len() - tail.len()) as i64);
        }
        tail = trim_end(tail);
        if tail.is_empty() {
            head = trim_end(head);
        }
        if head.is_empty() && tail.is_empty() {
            return Decimal::bare(Rank::Zero);
        }
        Decimal {
            rank: if negative {
                Rank::Negative
            } else {
                Rank::Positive
            },
            head,
            tail,
            exponent,
        }
    }

    fn bare(rank: Rank) -> Self {
        Decimal {
            rank,
            head: &[],
            tail: &[],
            exponent: 0,
        }
    }

    /// The order of two numbers; NaN equals itself.
    pub(crate) fn order(&self, other: &Decimal<'_>) -> Ordering {
        let magnitude = || {
            self.exponent.cmp(&other.exponent).then_with(|| {
                let digits = self.head.iter().chain(self.tail);
                digits.cmp(other.head.iter().chain(other.tail))
            })
        };
        self.rank.cmp(&other.rank).then_with(|| match self.rank {
            Rank::Positive => magnitude(),
            Rank::Negative => magnitude().reverse(),
            Rank::NegativeInfinity | Rank::Zero | Rank::Infinity | Rank::NaN => Ordering::Equal,
        })
    }
}

fn special(text: &[u8]) -> Option<Rank> {
    if !text.last()?.is_ascii_alphabetic() {
        return None;
    }
    let is = |names: &[&str]| {
        let same = |name: &&str| text.eq_ignore_ascii_case(name.as_bytes());
        names.iter().any(same)
    };
    if is(&["nan"]) {
        Some(Rank::NaN)
    } else if is(&["infinity", "inf", "+infinity", "+inf"]) {
        Some(Rank::Infinity)
    } else if is(&["-infinity", "-inf"]) {
        Some(Rank::NegativeInfinity)
    } else {
        None
    }
}

fn power(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0_i64, |value, digit| {
        value
            .saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'))
    });
    // Far from the ends, so that adding digit counts cannot wrap.
    let value = value.min(i64::MAX / 4);
    Some(if negative { -value } else { value })
}

fn trim_start(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
    &digits[zeros..]
}

fn trim_end(digits: &[u8]) -> &[u8] {
    let zeros = digits
        .iter()
        .rev()
        .take_while(|&&digit| digit == b'0')
        .count();
    &digits[..digits.len() - zeros]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order() {
        // Ascending; numbers of one line are equal.
        let lines: &[&[&str]] = &[
            &["-Infinity", "-inf"],
            &["-1e300"],
            &["-12.35"],
            &["-12.3450", "-12.345", "-1.2345e1"],
            &["-0.1"],
            &["0", "-0", "0.000", "0e9", "+0"],
            &["1e-07", "0.0000001", "0.00000010"],
            &["0.1", ".1", "00.10"],
            &["9.99"],
            &["10", "1e1", "10.", "0010"],
            &["9007199254740992"],
            &["9007199254740993"],
            &["99999999999999999999999999999.1"],
            &["99999999999999999999999999999.10000000000000000000001"],
            &["1e400"],
            &["1e999999999999999999999999"],
            &["Infinity"],
            &["NaN", "nan"],
        ];
        for (i, left) in lines.iter().enumerate() {
            for (j, right) in lines.iter().enumerate() {
                for a in *left {
                    for b in *right {
                        let (x, y) = (Decimal::parse(a.as_bytes()), Decimal::parse(b.as_bytes()));
                        let (x, y) = (x.expect(a), y.expect(b));
                        assert_eq!(x.order(&y), i.cmp(&j), "{a} {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn refuses() {
        for bad in [
            "", "-", ".", "1.2.3", "1e", "1e+", "0x10", "1 ", "$1", "e1", "--1",
        ] {
            assert!(Decimal::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
