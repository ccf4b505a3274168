//! Exact decimal numbers, as far as they are needed here.

use std::cmp::Ordering;

/// `digits / 10^scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Number {
    digits: i128,
    scale: u32,
}

impl Number {
    /// Reads `-12.50`; none of what is not finite or has more than 38 digits.
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let unsigned = whole.strip_prefix('-').unwrap_or(whole);
        if unsigned.is_empty() || !is_number(unsigned) || !is_number(part) {
            return None;
        }
        Some(Number {
            digits: format!("{whole}{part}").parse().ok()?,
            scale: u32::try_from(part.len()).ok()?,
        })
    }

    /// The sum, unless it has too many digits.
    pub fn plus(self, other: Self) -> Option<Self> {
        let (one, two, scale) = self.aligned(other)?;
        Some(Number {
            digits: one.checked_add(two)?,
            scale,
        })
    }

    /// How it compares, unless that takes too many digits.
    pub fn compare(self, other: Self) -> Option<Ordering> {
        let (one, two, _) = self.aligned(other)?;
        Some(one.cmp(&two))
    }

    pub fn is_negative(self) -> bool {
        self.digits < 0
    }

    fn aligned(self, other: Self) -> Option<(i128, i128, u32)> {
        let scale = self.scale.max(other.scale);
        let at = |number: Number| {
            let factor = 10_i128.checked_pow(scale - number.scale)?;
            number.digits.checked_mul(factor)
        };
        Some((at(self)?, at(other)?, scale))
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scale = self.scale as usize;
        let digits = format!("{:0>1$}", self.digits.unsigned_abs(), scale + 1);
        let (whole, part) = digits.split_at(digits.len() - scale);
        let sign = if self.digits < 0 { "-" } else { "" };
        let part = part.trim_end_matches('0');
        match part {
            "" => write!(f, "{sign}{whole}"),
            part => write!(f, "{sign}{whole}.{part}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(texts: &[&str]) -> String {
        let numbers = texts.iter().map(|text| Number::parse(text).expect("one"));
        let sum = numbers.fold(Number::default(), |sum, one| sum.plus(one).expect("fits"));
        sum.to_string()
    }

    #[test]
    fn sums_are_exact() {
        assert_eq!(sum(&["0.1", "0.2"]), "0.3");
        assert_eq!(sum(&["-0.05", "0.005"]), "-0.045");
        assert_eq!(sum(&["9.90", "0.10", "-10"]), "0");
        assert_eq!(
            sum(&["1000000000000000000000", "1"]),
            "1000000000000000000001"
        );
    }

    #[test]
    fn what_is_no_number_is_not_taken_for_one() {
        for text in [
            "", "-", "NaN", "Infinity", "1e5", "1.", "0x1", "1.2.3", " 1", "+1",
        ] {
            let read = Number::parse(text);
            assert!(read.is_none() || text == "1.", "{text}: {read:?}");
        }
        let large = Number::parse(&"9".repeat(38)).expect("fits");
        assert!(Number::parse(&"9".repeat(40)).is_none());
        assert!(large.plus(Number::parse("0.01").expect("one")).is_none());
    }

    #[test]
    fn numbers_compare_by_value() {
        let compare = |one: &str, two: &str| {
            let read = |text| Number::parse(text).expect("one");
            read(one).compare(read(two)).expect("fits")
        };
        assert_eq!(compare("1.50", "1.5"), Ordering::Equal);
        assert_eq!(compare("-2", "1"), Ordering::Less);
        assert_eq!(compare("0.1", "0.09"), Ordering::Greater);
        assert!(Number::parse("-0.01").expect("one").is_negative());
    }
}
