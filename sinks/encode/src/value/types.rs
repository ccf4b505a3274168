//! Which plan a type gets, in each mapping.

use std::borrow::Cow;

use lockstep_core::schema::{ColumnType, TypeKind};

use super::decimal::Money;
use super::plan::Plan;
use super::temporal::{Fraction, Unit};
use crate::envelope::Decimals;

/// Type oids fixed by PostgreSQL (`pg_type.dat`).
pub(crate) mod oid {
    pub(crate) const BOOL: u32 = 16;
    pub(crate) const BYTEA: u32 = 17;
    pub(crate) const CHAR: u32 = 18;
    pub(crate) const NAME: u32 = 19;
    pub(crate) const INT8: u32 = 20;
    pub(crate) const INT2: u32 = 21;
    pub(crate) const INT4: u32 = 23;
    pub(crate) const TEXT: u32 = 25;
    pub(crate) const OID: u32 = 26;
    pub(crate) const JSON: u32 = 114;
    pub(crate) const XML: u32 = 142;
    pub(crate) const POINT: u32 = 600;
    pub(crate) const BOX: u32 = 603;
    pub(crate) const CIDR: u32 = 650;
    pub(crate) const FLOAT4: u32 = 700;
    pub(crate) const FLOAT8: u32 = 701;
    pub(crate) const MACADDR8: u32 = 774;
    pub(crate) const MONEY: u32 = 790;
    pub(crate) const MACADDR: u32 = 829;
    pub(crate) const INET: u32 = 869;
    pub(crate) const BPCHAR: u32 = 1042;
    pub(crate) const VARCHAR: u32 = 1043;
    pub(crate) const DATE: u32 = 1082;
    pub(crate) const TIME: u32 = 1083;
    pub(crate) const TIMESTAMP: u32 = 1114;
    pub(crate) const TIMESTAMPTZ: u32 = 1184;
    pub(crate) const INTERVAL: u32 = 1186;
    pub(crate) const TIMETZ: u32 = 1266;
    pub(crate) const BIT: u32 = 1560;
    pub(crate) const VARBIT: u32 = 1562;
    pub(crate) const NUMERIC: u32 = 1700;
    pub(crate) const UUID: u32 = 2950;
    pub(crate) const TSVECTOR: u32 = 3614;
    pub(crate) const JSONB: u32 = 3802;
    pub(crate) const INT4RANGE: u32 = 3904;
    pub(crate) const NUMRANGE: u32 = 3906;
    pub(crate) const TSRANGE: u32 = 3908;
    pub(crate) const TSTZRANGE: u32 = 3910;
    pub(crate) const DATERANGE: u32 = 3912;
    pub(crate) const INT8RANGE: u32 = 3926;
}

/// Which JSON a type becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// For people and for state sinks: dates in ISO 8601, documents nested, every type present.
    Natural,
    /// Debezium's.
    Debezium(Decimals),
}

impl Mapping {
    /// The plan of a type.
    pub(crate) fn plan(self, ty: &ColumnType) -> Plan {
        match &ty.kind {
            TypeKind::Array(element) => self.array(ty, element),
            TypeKind::Enum => Plan::String,
            TypeKind::Base | TypeKind::Range => match self {
                Mapping::Natural => natural(ty),
                Mapping::Debezium(decimals) => debezium(ty, decimals),
            },
            TypeKind::Multirange | TypeKind::Composite => match self {
                Mapping::Natural => Plan::String,
                Mapping::Debezium(_) => Plan::Omit,
            },
        }
    }

    fn array(self, ty: &ColumnType, element: &ColumnType) -> Plan {
        let element = element_of(ty, element);
        match self.plan(&element) {
            Plan::Omit => Plan::Omit,
            plan => Plan::Array {
                delimiter: if element.oid == oid::BOX { b';' } else { b',' },
                element: Box::new(plan),
            },
        }
    }
}

/// The type of an array's values: the modifier of `numeric(10,2)[]` is the array's.
pub(crate) fn element_of<'a>(array: &ColumnType, element: &'a ColumnType) -> Cow<'a, ColumnType> {
    match element.typmod < 0 {
        true => Cow::Owned(ColumnType {
            typmod: array.typmod,
            ..element.clone()
        }),
        false => Cow::Borrowed(element),
    }
}

fn natural(ty: &ColumnType) -> Plan {
    match ty.oid {
        oid::BOOL => Plan::Bool,
        oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => Plan::Integer,
        oid::FLOAT4 | oid::FLOAT8 => Plan::Float,
        oid::NUMERIC => Plan::DecimalNatural,
        oid::MONEY => Plan::Money(Money::Text),
        oid::BYTEA => Plan::Bytea,
        oid::BIT | oid::VARBIT => Plan::BitText,
        oid::JSON | oid::JSONB => Plan::Json,
        oid::DATE => Plan::DateIso,
        oid::TIME => Plan::TimeIso,
        oid::TIMETZ => Plan::TimetzIso,
        oid::TIMESTAMP => Plan::TimestampIso,
        oid::TIMESTAMPTZ => Plan::Instant(Fraction::Needed),
        oid::INTERVAL => Plan::IntervalIso,
        _ => match &*ty.name {
            "hstore" => Plan::Hstore,
            _ => Plan::String,
        },
    }
}

fn debezium(ty: &ColumnType, decimals: Decimals) -> Plan {
    match ty.oid {
        oid::BOOL => Plan::Bool,
        oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => Plan::Integer,
        oid::FLOAT4 => Plan::JavaFloat,
        oid::FLOAT8 => Plan::JavaDouble,
        oid::NUMERIC => match (decimals, numeric_scale(ty.typmod)) {
            (Decimals::String, _) => Plan::DecimalText,
            (Decimals::Double, _) => Plan::DecimalDouble,
            (Decimals::Precise, Some(scale)) => Plan::DecimalPrecise(scale),
            (Decimals::Precise, None) => Plan::DecimalVariable,
        },
        oid::MONEY => Plan::Money(match decimals {
            Decimals::String => Money::Text,
            Decimals::Precise => Money::Precise,
            Decimals::Double => Money::Double,
        }),
        oid::BYTEA => Plan::Bytea,
        oid::BIT | oid::VARBIT if ty.typmod == 1 => Plan::Bit,
        oid::BIT | oid::VARBIT => Plan::Bits,
        oid::DATE => Plan::Days,
        oid::TIME => Plan::Time(unit(ty.typmod)),
        oid::TIMETZ => Plan::TimeUtc,
        oid::TIMESTAMP => Plan::Epoch(unit(ty.typmod)),
        oid::TIMESTAMPTZ => Plan::Instant(Fraction::Padded(precision(ty.typmod))),
        oid::INTERVAL => Plan::IntervalMicros,
        oid::POINT => Plan::Point,
        oid::CHAR
        | oid::NAME
        | oid::TEXT
        | oid::JSON
        | oid::XML
        | oid::CIDR
        | oid::MACADDR8
        | oid::MACADDR
        | oid::INET
        | oid::BPCHAR
        | oid::VARCHAR
        | oid::UUID
        | oid::TSVECTOR
        | oid::JSONB
        | oid::INT4RANGE
        | oid::NUMRANGE
        | oid::TSRANGE
        | oid::TSTZRANGE
        | oid::DATERANGE
        | oid::INT8RANGE => Plan::String,
        _ => match &*ty.name {
            "citext" | "ltree" | "isbn" => Plan::String,
            "hstore" => Plan::HstoreString,
            "vector" => Plan::Vector { single: false },
            "halfvec" => Plan::Vector { single: true },
            "sparsevec" => Plan::SparseVector,
            "geometry" | "geography" => Plan::Geometry,
            _ => Plan::Omit,
        },
    }
}

/// The declared scale of a `numeric`, `None` without one. A negative scale (since PostgreSQL 15) counts as 0.
fn numeric_scale(typmod: i32) -> Option<u16> {
    if typmod < 4 {
        return None;
    }
    // Eleven bits, signed.
    let scale = (typmod - 4) & 0x7ff;
    Some(if scale < 0x400 { scale as u16 } else { 0 })
}

/// The digits that a `numeric` may have, `None` without a declaration. A negative scale means zeros behind them.
pub(crate) fn numeric_precision(typmod: i32) -> Option<u32> {
    let declared = u32::try_from(typmod).ok()?.checked_sub(4)?;
    let scale = declared & 0x7ff;
    let zeros = if scale < 0x400 { 0 } else { 0x800 - scale };
    Some((declared >> 16) + zeros)
}

/// The declared precision of a time, 6 without one.
fn precision(typmod: i32) -> u8 {
    u8::try_from(typmod).map_or(6, |precision| precision.min(6))
}

fn unit(typmod: i32) -> Unit {
    if precision(typmod) <= 3 {
        Unit::Millis
    } else {
        Unit::Micros
    }
}
