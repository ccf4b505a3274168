//! Rows on the wire.

use super::reader::{Malformed, Reader};

/// A row: a number of columns, each NULL, unchanged, text or binary. Checked whole when decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuple<'a> {
    pub(super) count: u16,
    pub(super) bytes: &'a [u8],
}

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// `n`.
    Null,
    /// `u`: unchanged TOAST.
    Unchanged,
    /// `t`.
    Text(&'a [u8]),
    /// `b`.
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// Number of columns.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// The values in column order.
    #[must_use]
    pub fn values(&self) -> TupleCells<'a> {
        TupleCells {
            left: self.count,
            reader: Reader::new(self.bytes),
        }
    }

    /// Reads a tuple off `reader`, checking every column.
    #[inline]
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = reader.u16("a row's column count")?;
        let whole = reader.rest();
        for _ in 0..count {
            value(reader)?;
        }
        let length = whole.len() - reader.rest().len();
        Ok(Tuple {
            count,
            bytes: &whole[..length],
        })
    }
}

/// Iterator over the values of a row.
pub struct TupleCells<'a> {
    left: u16,
    reader: Reader<'a>,
}

impl<'a> Iterator for TupleCells<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        value(&mut self.reader).ok()
    }
}

#[inline]
fn value<'a>(reader: &mut Reader<'a>) -> Result<Value<'a>, Malformed> {
    match reader.u8("a value's kind")? {
        b'n' => Ok(Value::Null),
        b'u' => Ok(Value::Unchanged),
        b't' => sized(reader).map(Value::Text),
        b'b' => sized(reader).map(Value::Binary),
        _ => Err(Malformed {
            what: "a value's kind",
            left: reader.rest().len(),
        }),
    }
}

#[inline]
fn sized<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let length = reader.u32("a value's length")?;
    reader.take(length as usize, "a value")
}
