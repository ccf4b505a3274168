//! How the values of one column are written.

use lockstep_core::batch::CellRef;

use super::bad::{Bad, Done};
use super::decimal::{self, Money};
use super::temporal::{self, Fraction, Unit};
use super::{bits, interval, nested, number, shape, text};

/// How the text form of one type becomes JSON. Chosen once per column by [`super::types`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Not written at all: the format has no form for the type.
    Omit,
    /// The text as a string.
    String,
    /// `t` and `f`.
    Bool,
    /// The digits as they stand.
    Integer,
    /// The digits as they stand, three words as strings.
    Float,
    /// Java's `Float.toString`.
    JavaFloat,
    /// Java's `Double.toString`.
    JavaDouble,
    /// The digits as a string.
    DecimalNatural,
    /// The digits as a string, Debezium's words.
    DecimalText,
    /// A double.
    DecimalDouble,
    /// Base64 of the unscaled integer.
    DecimalPrecise(u16),
    /// The same with the scale beside it.
    DecimalVariable,
    /// `money`.
    Money(Money),
    /// Base64.
    Bytea,
    /// 0 and 1 as a string.
    BitText,
    /// A boolean.
    Bit,
    /// Base64 of little-endian bytes.
    Bits,
    /// Days since the epoch.
    Days,
    /// A number since midnight.
    Time(Unit),
    /// A number since the epoch.
    Epoch(Unit),
    /// ISO 8601 in UTC.
    Instant(Fraction),
    /// A time of day in UTC.
    TimeUtc,
    /// ISO 8601 date.
    DateIso,
    /// ISO 8601 date and time.
    TimestampIso,
    /// ISO 8601 time.
    TimeIso,
    /// ISO 8601 time with its offset.
    TimetzIso,
    /// Microseconds.
    IntervalMicros,
    /// ISO 8601 duration.
    IntervalIso,
    /// The document nested.
    Json,
    /// An object.
    Hstore,
    /// A string that holds an object.
    HstoreString,
    /// Coordinates and WKB.
    Point,
    /// An array of numbers; whether they are floats.
    Vector {
        /// Floats rather than doubles.
        single: bool,
    },
    /// Dimensions and pairs.
    SparseVector,
    /// WKB and SRID.
    Geometry,
    /// An array of what the inner plan writes.
    Array {
        /// Between elements: `;` for `box`, `,` for all others.
        delimiter: u8,
        /// Of one element.
        element: Box<Plan>,
    },
}

impl Plan {
    /// Appends the JSON of a text value.
    pub(crate) fn write(&self, value: &[u8], out: &mut Vec<u8>) -> Done {
        match self {
            Plan::String => text::write_string(value, out),
            Plan::Integer => number::write_integer(value, out),
            Plan::Bool => write_bool(value, out),
            Plan::Float => number::write_float(value, out),
            Plan::JavaFloat => number::write_java_float(value, true, out),
            Plan::JavaDouble => number::write_java_float(value, false, out),
            Plan::DecimalNatural => decimal::write_natural(value, out),
            Plan::DecimalText => decimal::write_text(value, out),
            Plan::DecimalDouble => decimal::write_double(value, out),
            Plan::DecimalPrecise(scale) => decimal::write_precise(value, usize::from(*scale), out),
            Plan::DecimalVariable => decimal::write_variable(value, out),
            Plan::Money(form) => decimal::write_money(value, *form, out),
            Plan::Bytea => text::write_bytea(value, out),
            Plan::BitText => {
                bits::check_bits(value)?;
                text::write_string(value, out)
            }
            Plan::Bit => bits::write_bit(value, out),
            Plan::Bits => bits::write_bits(value, out),
            Plan::Days => temporal::write_days(value, out),
            Plan::Time(unit) => temporal::write_time(value, *unit, out),
            Plan::Epoch(unit) => temporal::write_epoch(value, *unit, out),
            Plan::Instant(fraction) => temporal::write_instant(value, *fraction, out),
            Plan::TimeUtc => temporal::write_time_utc(value, out),
            Plan::DateIso => temporal::write_date_iso(value, out),
            Plan::TimestampIso => temporal::write_timestamp_iso(value, out),
            Plan::TimeIso => temporal::write_time_iso(value, out),
            Plan::TimetzIso => temporal::write_timetz_iso(value, out),
            Plan::IntervalMicros => interval::write_micros(value, out),
            Plan::IntervalIso => interval::write_iso(value, out),
            Plan::Json => nested::write_json(value, out),
            Plan::Hstore => nested::write_hstore(value, out),
            Plan::HstoreString => nested::write_hstore_string(value, out),
            Plan::Point => shape::write_point(value, out),
            Plan::Vector { single } => shape::write_vector(value, *single, out),
            Plan::SparseVector => shape::write_sparse_vector(value, out),
            Plan::Geometry => shape::write_geometry(value, out),
            Plan::Array { delimiter, element } => nested::write_array(
                value,
                *delimiter,
                &mut |value, out| element.write(value, out),
                out,
            ),
            Plan::Omit => Ok(()),
        }
    }

    /// Appends the JSON of a cell; `unchanged` stands for an unchanged value.
    #[inline]
    pub(crate) fn write_cell(
        &self,
        cell: CellRef<'_>,
        unchanged: &[u8],
        out: &mut Vec<u8>,
    ) -> Done {
        match cell {
            CellRef::Text(value) => self.write(value, out),
            CellRef::Null => {
                out.extend_from_slice(b"null");
                Ok(())
            }
            CellRef::Unchanged => {
                out.extend_from_slice(unchanged);
                Ok(())
            }
            CellRef::Binary(value) => self.write_binary(value, out),
        }
    }

    /// Text and bytes are the same in binary form; nothing else is read.
    #[cold]
    pub(crate) fn write_binary(&self, value: &[u8], out: &mut Vec<u8>) -> Done {
        match self {
            Plan::String => text::write_string(value, out),
            Plan::Bytea => {
                text::write_base64_string(value, out);
                Ok(())
            }
            _ => Err(Bad::Binary),
        }
    }

    /// Appends a text value as plain text: what [`Plan::write`] writes as a string without quotes and escapes, anything
    /// else as JSON.
    pub(crate) fn write_text(&self, value: &[u8], out: &mut Vec<u8>) -> Done {
        if *self == Plan::String {
            text::check_utf8(value)?;
            out.extend_from_slice(value);
            return Ok(());
        }
        let start = out.len();
        self.write(value, out)?;
        // All other strings are free of escapes, but those inside a document, whose quotes belong to it.
        if !matches!(self, Plan::Json | Plan::HstoreString) && out.get(start) == Some(&b'"') {
            out.pop();
            out.remove(start);
        }
        Ok(())
    }
}

fn write_bool(value: &[u8], out: &mut Vec<u8>) -> Done {
    out.extend_from_slice(match value {
        b"t" => b"true",
        b"f" => b"false",
        _ => return Err(Bad::Malformed("`t` or `f`")),
    });
    Ok(())
}
