//! Numbers: how they compare across types, exact arithmetic on decimals, and how floats are written.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::value::Value;
use crate::filter::decimal::Decimal;

/// The order of two numbers, exactly; NaN is above all and the same as itself, as PostgreSQL has it. `None` where one is no number.
pub(super) fn order(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => Some(doubles(*a, *b)),
        (a, b) => {
            let (a, b) = (digits(a)?, digits(b)?);
            Some(Decimal::parse(a.as_bytes())?.order(&Decimal::parse(b.as_bytes())?))
        }
    }
}

fn doubles(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b)
        .unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

fn digits<'a>(value: &'a Value<'_>) -> Option<Cow<'a, str>> {
    match value {
        Value::Int(value) => Some(Cow::Owned(value.to_string())),
        Value::Double(value) => Some(Cow::Owned(value.to_string())),
        Value::Decimal(text) => Some(Cow::Borrowed(text)),
        _ => None,
    }
}

/// A decimal as a whole number of units of `10^-scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fixed {
    units: i128,
    scale: u32,
}

/// The most digits behind the point.
const MAX_SCALE: u32 = 38;

impl Fixed {
    /// Reads a number; `None` for NaN, infinity, and what has more digits than can be reckoned with (38).
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (mantissa, power) = match text.split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, power.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let negative = whole.starts_with('-');
        let whole = whole.strip_prefix(['-', '+']).unwrap_or(whole);
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let mut units: i128 = 0;
        for digit in whole.bytes().chain(fraction.bytes()) {
            let digit = digit.is_ascii_digit().then(|| i128::from(digit - b'0'))?;
            units = units.checked_mul(10)?.checked_add(digit)?;
        }
        let units = if negative { -units } else { units };
        let scale = i32::try_from(fraction.len()).ok()?.checked_sub(power)?;
        match u32::try_from(scale) {
            Ok(scale) if scale <= MAX_SCALE => Some(Fixed { units, scale }),
            Ok(_) => None,
            Err(_) => {
                let more = 10_i128.checked_pow(scale.unsigned_abs())?;
                Some(Fixed {
                    units: units.checked_mul(more)?,
                    scale: 0,
                })
            }
        }
    }

    fn at(self, scale: u32) -> Option<i128> {
        let more = 10_i128.checked_pow(scale - self.scale)?;
        self.units.checked_mul(more)
    }

    pub(super) fn add(self, other: Fixed) -> Option<Fixed> {
        let scale = self.scale.max(other.scale);
        let units = self.at(scale)?.checked_add(other.at(scale)?)?;
        Some(Fixed { units, scale })
    }

    pub(super) fn negated(self) -> Fixed {
        Fixed {
            units: -self.units,
            scale: self.scale,
        }
    }

    pub(super) fn times(self, other: Fixed) -> Option<Fixed> {
        let scale = self.scale + other.scale;
        let units = self.units.checked_mul(other.units)?;
        (scale <= MAX_SCALE).then_some(Fixed { units, scale })
    }

    /// What is before the point.
    pub(super) fn whole(self) -> Option<i64> {
        let unit = 10_i128.checked_pow(self.scale)?;
        i64::try_from(self.units / unit).ok()
    }

    pub(super) fn text(self) -> String {
        let sign = if self.units < 0 { "-" } else { "" };
        let digits = self.units.unsigned_abs().to_string();
        let scale = self.scale as usize;
        if scale == 0 {
            return format!("{sign}{digits}");
        }
        let digits = format!("{digits:0>width$}", width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        format!("{sign}{whole}.{fraction}")
    }
}

/// A float as PostgreSQL writes it: the shortest digits that read back as it, with an exponent where they would be long.
pub(super) fn double_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match power.parse::<i32>() {
        Ok(power @ (..-4 | 15..)) => {
            let sign = if power < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", power.unsigned_abs())
        }
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        let fixed = |text| Fixed::parse(text).expect(text);
        let sum = |a, b| fixed(a).add(fixed(b)).expect("a sum").text();
        assert_eq!(sum("0.1", "0.2"), "0.3");
        assert_eq!(sum("-1.50", "1"), "-0.50");
        assert_eq!(
            sum("12345678901234567890.01", "0.009"),
            "12345678901234567890.019"
        );
        let product = |a, b| fixed(a).times(fixed(b)).expect("a product").text();
        assert_eq!(product("19.99", "3"), "59.97");
        assert_eq!(product("-0.05", "0.5"), "-0.025");
        assert_eq!(fixed("1e3").text(), "1000");
        assert_eq!(fixed("-2.99").whole(), Some(-2));
        for none in ["NaN", "Infinity", "", "-", "1.2.3", &"9".repeat(40)] {
            assert!(Fixed::parse(none).is_none(), "{none}");
        }
        assert!(fixed(&"9".repeat(38)).times(fixed("10")).is_none());
    }

    #[test]
    fn floats_are_written_as_postgresql_writes_them() {
        for (value, text) in [
            (0.1, "0.1"),
            (1.0, "1"),
            (-2.5, "-2.5"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(double_text(value), text);
        }
    }

    #[test]
    fn numbers_of_several_types_have_one_order() {
        let decimal = |text: &'static str| Value::Decimal(Cow::Borrowed(text));
        let ascending = [
            Value::Double(f64::NEG_INFINITY),
            Value::Int(-1),
            Value::Double(-0.5),
            decimal("0.1"),
            Value::Int(9_007_199_254_740_992),
            Value::Int(9_007_199_254_740_993),
            decimal("9007199254740993.5"),
            Value::Double(f64::NAN),
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(order(a, b), Some(i.cmp(&j)), "{a:?} {b:?}");
            }
        }
        assert_eq!(
            order(&Value::Double(0.1), &decimal("0.10")),
            Some(Ordering::Equal)
        );
        assert_eq!(order(&Value::Null, &Value::Int(1)), None);
    }
}
