//! How the values of a type compare.

use std::borrow::Cow;
use std::cmp::Ordering;

use lockstep_core::schema::{ColumnType, TypeKind};
use regex::bytes::{Regex, RegexBuilder};

use super::decimal::Decimal;
use super::moment::{self, Moment, Shape};
use super::parse::{Literal, LiteralKind};
use crate::text::oid;

/// The ways in which values compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Integers, `numeric` and floats: by value, from their decimal text, exactly.
    Number,
    Bool,
    /// By bytes, which is collation `C`.
    Text {
        /// `char(n)`: trailing blanks do not count.
        padded: bool,
        /// `citext`: case does not count.
        folded: bool,
    },
    /// Values of which only equality of the text is known: enums, addresses, bit strings.
    Exact,
    Uuid,
    /// Dates and timestamps: by time.
    Moment(Shape),
    /// `time`, by its text.
    Time,
}

/// A literal in the form that its column compares in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Constant {
    Bool(bool),
    /// Text, or the text of a number.
    Text(Vec<u8>),
    Moment(Moment),
}

/// Oids of types whose text form is canonical, so that equal values have equal texts.
const EXACT: &[u32] = &[
    // inet, cidr, macaddr, macaddr8, bit, varbit, pg_lsn, xid, tid
    869, 650, 829, 774, 1560, 1562, 3220, 28, 27,
];

impl Class {
    /// The class of a type; `None` when its values can only be tested for NULL.
    pub(crate) fn of(ty: &ColumnType) -> Option<Self> {
        let text = |padded, folded| Some(Class::Text { padded, folded });
        match ty.kind {
            TypeKind::Enum => Some(Class::Exact),
            TypeKind::Base => match ty.oid {
                oid::INT2
                | oid::INT4
                | oid::INT8
                | oid::OID
                | oid::NUMERIC
                | oid::FLOAT4
                | oid::FLOAT8 => Some(Class::Number),
                oid::BOOL => Some(Class::Bool),
                oid::TEXT | oid::VARCHAR | oid::NAME | oid::CHAR => text(false, false),
                oid::BPCHAR => text(true, false),
                oid::UUID => Some(Class::Uuid),
                oid::DATE => Some(Class::Moment(Shape::Date)),
                oid::TIMESTAMP => Some(Class::Moment(Shape::Timestamp)),
                oid::TIMESTAMPTZ => Some(Class::Moment(Shape::TimestampTz)),
                oid::TIME => Some(Class::Time),
                known if EXACT.contains(&known) => Some(Class::Exact),
                _ if &*ty.name == "citext" => text(false, true),
                _ if &*ty.name == "ltree" => Some(Class::Exact),
                _ => None,
            },
            TypeKind::Array(_) | TypeKind::Range | TypeKind::Multirange | TypeKind::Composite => {
                None
            }
        }
    }

    /// Whether `<` and `>` mean something.
    pub(crate) fn is_ordered(self) -> bool {
        !matches!(self, Class::Exact | Class::Bool)
    }

    /// A literal for a column of this class; the error says what is expected.
    pub(crate) fn constant(self, literal: &Literal) -> Result<Constant, &'static str> {
        let quoted = literal.kind == LiteralKind::Text;
        let text = literal.text.as_str();
        match self {
            Class::Number
                if literal.kind != LiteralKind::Bool
                    && Decimal::parse(text.as_bytes()).is_some() =>
            {
                Ok(Constant::Text(text.as_bytes().to_vec()))
            }
            Class::Number => Err("a number, such as 10 or 12.50"),
            Class::Bool => match (literal.kind, text.to_ascii_lowercase().as_str()) {
                (LiteralKind::Bool | LiteralKind::Text, "true" | "t") => Ok(Constant::Bool(true)),
                (LiteralKind::Bool | LiteralKind::Text, "false" | "f") => Ok(Constant::Bool(false)),
                _ => Err("true or false"),
            },
            Class::Text { .. } if quoted => {
                Ok(Constant::Text(self.canonical(text.as_bytes()).into_owned()))
            }
            Class::Exact if quoted => Ok(Constant::Text(text.as_bytes().to_vec())),
            Class::Text { .. } | Class::Exact => Err("a text in single quotes, such as 'paid'"),
            Class::Uuid if quoted => uuid(text).ok_or("a uuid in single quotes"),
            Class::Uuid => Err("a uuid in single quotes"),
            Class::Moment(shape) => {
                let moment = quoted
                    .then(|| moment::parse(text.as_bytes(), shape))
                    .flatten();
                moment.map(Constant::Moment).ok_or(match shape {
                    Shape::Date => "a date in single quotes, such as '2026-11-23'",
                    Shape::Timestamp => "a timestamp without offset in single quotes, such as '2026-11-23 04:05:06'",
                    Shape::TimestampTz => {
                        "a timestamp in single quotes, such as '2026-11-23 04:05:06+02'; without an offset it is UTC"
                    }
                })
            }
            Class::Time if quoted && is_time(text.as_bytes()) => {
                Ok(Constant::Text(text.as_bytes().to_vec()))
            }
            Class::Time => Err("a time in single quotes, such as '04:05:06'"),
        }
    }

    /// The order of a column's text and a constant; `None` when the text is no value of the class.
    pub(crate) fn order(self, text: &[u8], constant: &Constant) -> Option<Ordering> {
        match (self, constant) {
            (Class::Number, Constant::Text(other)) => {
                Some(Decimal::parse(text)?.order(&Decimal::parse(other)?))
            }
            (Class::Bool, Constant::Bool(other)) => Some(boolean(text)?.cmp(other)),
            (Class::Moment(shape), Constant::Moment(other)) => {
                Some(moment::parse(text, shape)?.cmp(other))
            }
            (_, Constant::Text(other)) => Some(self.canonical(text).as_ref().cmp(other.as_slice())),
            (_, Constant::Bool(_) | Constant::Moment(_)) => None,
        }
    }

    /// The order of the texts of two columns of this class.
    pub(crate) fn order_texts(self, a: &[u8], b: &[u8]) -> Option<Ordering> {
        match self {
            Class::Number => Some(Decimal::parse(a)?.order(&Decimal::parse(b)?)),
            Class::Bool => Some(boolean(a)?.cmp(&boolean(b)?)),
            Class::Moment(shape) => Some(moment::parse(a, shape)?.cmp(&moment::parse(b, shape)?)),
            _ => Some(self.canonical(a).cmp(&self.canonical(b))),
        }
    }

    /// The bytes that texts of this class compare by.
    fn canonical(self, text: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Class::Text { padded: true, .. } => {
                let blanks = text.iter().rev().take_while(|&&byte| byte == b' ').count();
                Cow::Borrowed(&text[..text.len() - blanks])
            }
            Class::Text { folded: true, .. } => {
                Cow::Owned(String::from_utf8_lossy(text).to_lowercase().into_bytes())
            }
            _ => Cow::Borrowed(text),
        }
    }
}

fn boolean(text: &[u8]) -> Option<bool> {
    match text {
        b"t" | b"true" => Some(true),
        b"f" | b"false" => Some(false),
        _ => None,
    }
}

/// `HH:MM:SS[.ffffff]`, as PostgreSQL writes it: only then is the order of texts the order of times.
fn is_time(text: &[u8]) -> bool {
    let shape = text
        .iter()
        .map(|byte| if byte.is_ascii_digit() { b'0' } else { *byte });
    let shape: Vec<u8> = shape.collect();
    match shape.strip_prefix(b"00:00:00") {
        Some([]) => true,
        Some([b'.', digits @ ..]) => {
            !digits.is_empty()
                && digits.iter().all(|&digit| digit == b'0')
                && text.last() != Some(&b'0')
        }
        _ => false,
    }
}

/// A uuid in any of the forms that PostgreSQL reads, as it writes it.
fn uuid(text: &str) -> Option<Constant> {
    let inner = text
        .strip_prefix('{')
        .map_or(Some(text), |rest| rest.strip_suffix('}'))?;
    let digits: String = inner.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let digits = digits.to_ascii_lowercase();
    let parts = [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ];
    Some(Constant::Text(parts.join("-").into_bytes()))
}

/// Why a pattern of `like` cannot be used.
pub(crate) enum LikeError {
    /// A backslash at the end.
    Escape,
    /// The pattern makes too large a program.
    TooLarge(regex::Error),
}

/// A pattern of SQL's `LIKE` as a regular expression: `%` any run of characters, `_` one, `\` takes the next as it is.
pub(crate) fn like(pattern: &str, class: Class) -> Result<Regex, LikeError> {
    let mut out = String::from("^");
    let mut chars = pattern.chars();
    let mut buffer = [0; 4];
    let mut literal = |c: char, out: &mut String| {
        let folded = matches!(class, Class::Text { folded: true, .. });
        if folded && c.to_lowercase().ne(c.to_uppercase()) {
            // Without Unicode case tables in the regex engine, both cases are spelled out.
            let cases = [
                c.to_lowercase().collect::<String>(),
                c.to_uppercase().collect(),
            ];
            out.push_str(&format!(
                "(?:{}|{})",
                regex::escape(&cases[0]),
                regex::escape(&cases[1])
            ));
        } else {
            out.push_str(&regex::escape(c.encode_utf8(&mut buffer)));
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '%' => out.push_str(".*"),
            '_' => out.push('.'),
            '\\' => literal(chars.next().ok_or(LikeError::Escape)?, &mut out),
            c => literal(c, &mut out),
        }
    }
    out.push('$');
    RegexBuilder::new(&out)
        .dot_matches_new_line(true)
        .build()
        .map_err(LikeError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Class = Class::Text {
        padded: false,
        folded: false,
    };

    #[test]
    fn like_is_sql_like() {
        for (pattern, text, expected) in [
            ("a%", "abc", true),
            ("a%", "ba", false),
            ("%b%", "abc", true),
            ("a_c", "aéc", true),
            ("a_c", "ac", false),
            ("100\\%", "100%", true),
            ("100\\%", "1000", false),
            ("a.c", "abc", false),
            ("%", "", true),
            ("", "a", false),
            ("a%z", "a\n\nz", true),
        ] {
            let regex = like(pattern, PLAIN).ok().expect("a pattern");
            assert_eq!(
                regex.is_match(text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
        assert!(like("a\\", PLAIN).is_err());
        let folded = Class::Text {
            padded: false,
            folded: true,
        };
        let regex = like("É%x", folded).ok().expect("a pattern");
        assert!(regex.is_match("éAX".as_bytes()));
    }

    #[test]
    fn padding_and_case() {
        let padded = Class::Text {
            padded: true,
            folded: false,
        };
        let constant = Constant::Text(b"ab".to_vec());
        assert_eq!(padded.order(b"ab   ", &constant), Some(Ordering::Equal));
        assert_eq!(PLAIN.order(b"ab   ", &constant), Some(Ordering::Greater));
        let folded = Class::Text {
            padded: false,
            folded: true,
        };
        assert_eq!(folded.order(b"AB", &constant), Some(Ordering::Equal));
    }

    #[test]
    fn uuids_and_times() {
        let written = "{A0EEBC99-9c0b4ef8-bb6d6bb9bd380a11}";
        let stored = Constant::Text(b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11".to_vec());
        assert_eq!(uuid(written), Some(stored));
        assert_eq!(uuid("a0eebc99"), None);
        for (time, valid) in [
            ("04:05:06", true),
            ("04:05:06.7", true),
            ("04:05:06.70", false),
            ("4:05", false),
        ] {
            assert_eq!(is_time(time.as_bytes()), valid, "{time}");
        }
    }
}
