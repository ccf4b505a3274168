//! One text per value, whether the wire had it as text or as binary, so that hashes and comparisons agree.

use std::borrow::Cow;

use lockstep_core::batch::CellRef;
use lockstep_core::schema::{ColumnType, TypeKind};

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// SQL NULL.
    Null,
    /// Unchanged TOAST.
    Unchanged,
    /// The type's text form.
    Text(Cow<'a, [u8]>),
    /// The binary form of a type that is not turned into text here.
    Opaque(&'a [u8]),
}

/// Type oids of `pg_type.dat`.
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
    pub(crate) const FLOAT4: u32 = 700;
    pub(crate) const FLOAT8: u32 = 701;
    pub(crate) const BPCHAR: u32 = 1042;
    pub(crate) const VARCHAR: u32 = 1043;
    pub(crate) const DATE: u32 = 1082;
    pub(crate) const TIME: u32 = 1083;
    pub(crate) const TIMESTAMP: u32 = 1114;
    pub(crate) const TIMESTAMPTZ: u32 = 1184;
    pub(crate) const NUMERIC: u32 = 1700;
    pub(crate) const UUID: u32 = 2950;
    pub(crate) const JSONB: u32 = 3802;
}

/// The value of a cell. Text is borrowed; only binary forms are written anew.
pub(crate) fn value<'a>(ty: &ColumnType, cell: CellRef<'a>) -> Value<'a> {
    match cell {
        CellRef::Null => Value::Null,
        CellRef::Unchanged => Value::Unchanged,
        CellRef::Text(text) => Value::Text(Cow::Borrowed(text)),
        CellRef::Binary(bytes) => binary(ty, bytes).map_or(Value::Opaque(bytes), Value::Text),
    }
}

/// The text form of a binary value, for the types whose text does not depend on settings.
fn binary<'a>(ty: &ColumnType, bytes: &'a [u8]) -> Option<Cow<'a, [u8]>> {
    let number = |number: i64| Some(Cow::Owned(number.to_string().into_bytes()));
    match (&ty.kind, ty.oid) {
        (TypeKind::Enum, _) => Some(Cow::Borrowed(bytes)),
        (TypeKind::Base, oid) => match oid {
            oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::CHAR | oid::JSON => {
                Some(Cow::Borrowed(bytes))
            }
            oid::JSONB => bytes.strip_prefix(&[1]).map(Cow::Borrowed),
            oid::BOOL => match bytes {
                [0] => Some(Cow::Borrowed(b"f")),
                [1] => Some(Cow::Borrowed(b"t")),
                _ => None,
            },
            oid::INT2 => number(i16::from_be_bytes(bytes.try_into().ok()?).into()),
            oid::INT4 => number(i32::from_be_bytes(bytes.try_into().ok()?).into()),
            oid::INT8 => number(i64::from_be_bytes(bytes.try_into().ok()?)),
            oid::OID => number(u32::from_be_bytes(bytes.try_into().ok()?).into()),
            oid::UUID => uuid(bytes.try_into().ok()?),
            oid::BYTEA => Some(Cow::Owned(bytea(bytes))),
            _ => None,
        },
        _ => None,
    }
}

fn uuid<'a>(bytes: [u8; 16]) -> Option<Cow<'a, [u8]>> {
    let mut out = Vec::with_capacity(36);
    for (index, byte) in bytes.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        push_hex(&mut out, byte);
    }
    Some(Cow::Owned(out))
}

fn bytea(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + 2 * bytes.len());
    out.extend_from_slice(b"\\x");
    for &byte in bytes {
        push_hex(&mut out, byte);
    }
    out
}

/// Appends two lower-case hexadecimal digits.
pub(crate) fn push_hex(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push(DIGITS[usize::from(byte >> 4)]);
    out.push(DIGITS[usize::from(byte & 15)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(oid: u32) -> ColumnType {
        ColumnType {
            oid,
            typmod: -1,
            name: "t".into(),
            kind: TypeKind::Base,
        }
    }

    #[test]
    fn binary_and_text_agree() {
        let uuid: Vec<u8> = (0..16).collect();
        for (oid, binary, text) in [
            (oid::BOOL, &[1][..], "t"),
            (oid::INT2, &[255, 254], "-2"),
            (oid::INT4, &[0, 0, 1, 0], "256"),
            (oid::INT8, &[0, 0, 0, 0, 0, 0, 0, 7], "7"),
            (oid::OID, &[255, 255, 255, 255], "4294967295"),
            (oid::BYTEA, &[0, 171], "\\x00ab"),
            (oid::JSONB, b"\x01{}", "{}"),
            (oid::UUID, &uuid, "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        ] {
            let made = value(&base(oid), CellRef::Binary(binary));
            assert_eq!(made, Value::Text(Cow::Borrowed(text.as_bytes())), "{oid}");
        }
        assert_eq!(
            value(&base(oid::NUMERIC), CellRef::Binary(&[1])),
            Value::Opaque(&[1])
        );
    }
}
