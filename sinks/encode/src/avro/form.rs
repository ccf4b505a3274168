//! One value: from PostgreSQL's text to bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::wire::{Blocks, NULL, PRESENT, string_of_quoted, write_bytes, write_long};
use crate::value::bits::check_bits;
use crate::value::decimal::{precise, variable};
use crate::value::nested::{Piece, walk_array, walk_hstore, write_hstore, write_json};
use crate::value::number::{float, integer};
use crate::value::shape::{braced, geometry, point, sparse, sparse_pair};
use crate::value::temporal::{self, Unit};
use crate::value::text::{BYTEA, bytea_digits, check_utf8, write_hex_bytes};
use crate::value::toast::{PLACEHOLDER, PLACEHOLDER_UUID};
use crate::value::{Bad, Done, Plan};

/// How values of one type are written. Chosen once per column by [`super::types`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The text.
    Text,
    /// A text of type `uuid`.
    Uuid,
    /// The string that the plan makes for JSON, which has nothing to escape.
    Quoted(Plan),
    /// `t` and `f`.
    Bool,
    /// One bit.
    Bit,
    /// An `int`.
    Int,
    /// A `long`.
    Long,
    /// The integer that the plan makes for JSON, as an `int`.
    CountedInt(Plan),
    /// The same as a `long`.
    Counted(Plan),
    /// A `timestamp` since the epoch.
    Epoch(Unit),
    /// A `float`.
    Single,
    /// A `double`.
    Double,
    /// The number that the plan makes for JSON, as a `double`.
    Reckoned(Plan),
    /// `bytea`.
    Bytes,
    /// The bytes whose base64 the plan makes for JSON.
    Coded(Plan),
    /// The unscaled integer of a decimal of this scale.
    Precise(u16),
    /// The scale, and the unscaled integer.
    Variable,
    /// A JSON document, on one line.
    Document,
    /// A map of strings and nulls.
    Hstore,
    /// An object as text.
    HstoreText,
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
    /// An array of one dimension.
    Array {
        /// Between elements.
        delimiter: u8,
        /// Of one element.
        element: Box<Form>,
    },
}

impl Form {
    /// Appends a text value.
    pub(crate) fn write(&self, text: &[u8], out: &mut Vec<u8>) -> Done {
        match self {
            Form::Text | Form::Uuid => {
                check_utf8(text)?;
                write_bytes(text, out);
            }
            Form::Quoted(plan) => {
                let start = out.len();
                plan.write(text, out)?;
                string_of_quoted(start, out);
            }
            Form::Bool => out.push(match text {
                b"t" => 1,
                b"f" => 0,
                _ => return Err(Bad::Malformed("`t` or `f`")),
            }),
            Form::Bit => {
                check_bits(text)?;
                out.push(u8::from(text == b"1"));
            }
            Form::Int => write_long(i64::from(int(text)?), out),
            Form::Long => write_long(integer(text)?, out),
            Form::CountedInt(plan) => {
                let value = counted(plan, text, out)?;
                if i32::try_from(value).is_err() {
                    return Err(Bad::Formless("a date beyond 32 bits of days"));
                }
                write_long(value, out);
            }
            Form::Counted(plan) => write_long(counted(plan, text, out)?, out),
            Form::Epoch(unit) => {
                let value = i64::try_from(temporal::epoch(text, *unit)?);
                let value =
                    value.map_err(|_| Bad::Formless("a moment beyond 64 bits of microseconds"))?;
                write_long(value, out);
            }
            Form::Single => out.extend_from_slice(&float::<f32>(text)?.to_le_bytes()),
            Form::Double => write_double(text, out)?,
            Form::Reckoned(plan) => {
                let start = out.len();
                plan.write(text, out)?;
                let value = float::<f64>(&out[start..]);
                out.truncate(start);
                out.extend_from_slice(&value?.to_le_bytes());
            }
            Form::Bytes => {
                let hex = bytea_digits(text)?;
                write_long((hex.len() / 2) as i64, out);
                write_hex_bytes(hex, BYTEA, out)?;
            }
            Form::Coded(plan) => {
                let start = out.len();
                plan.write(text, out)?;
                let coded = STANDARD.decode(&out[start + 1..out.len() - 1]);
                out.truncate(start);
                let coded = coded.map_err(|_| Bad::Formless("a value that is no number"))?;
                write_bytes(&coded, out);
            }
            Form::Precise(scale) => {
                precise(text, usize::from(*scale), |bytes| write_bytes(bytes, out))?;
            }
            Form::Variable => variable(text, |scale, bytes| {
                write_long(scale as i64, out);
                write_bytes(bytes, out);
            })?,
            Form::Document => {
                // As long as it is: what is between tokens only becomes another character.
                write_long(text.len() as i64, out);
                write_json(text, out)?;
            }
            Form::Hstore => write_map(text, out)?,
            Form::HstoreText => {
                let mut object = Vec::with_capacity(text.len());
                write_hstore(text, &mut object)?;
                write_bytes(&object, out);
            }
            Form::Point => {
                let (x, y, wkb) = point(text)?;
                out.extend_from_slice(&x.to_le_bytes());
                out.extend_from_slice(&y.to_le_bytes());
                out.push(PRESENT);
                write_bytes(&wkb, out);
                out.push(NULL);
            }
            Form::Vector { single } => {
                let element = match single {
                    true => Form::Single,
                    false => Form::Double,
                };
                write_items(&braced(text)?, b',', out, |value, out| match value {
                    Some(value) => element.write(value, out),
                    None => Err(Bad::Formless("NULL in a vector")),
                })?;
            }
            Form::SparseVector => {
                let (dimensions, vector) = sparse(text)?;
                write_long(i64::from(int(dimensions)?), out);
                write_items(vector, b',', out, |pair, out| {
                    let pair = pair.ok_or(Bad::Formless("NULL in a vector"))?;
                    let (place, value) = sparse_pair(pair)?;
                    write_long(i64::from(int(place)?), out);
                    write_double(value, out)
                })?;
            }
            Form::Geometry => {
                let (wkb, srid) = geometry(text)?;
                write_bytes(&wkb, out);
                match srid {
                    Some(srid) => {
                        let srid = i32::try_from(srid);
                        let srid = srid
                            .map_err(|_| Bad::Formless("a system of coordinates without an int"))?;
                        out.push(PRESENT);
                        write_long(i64::from(srid), out);
                    }
                    None => out.push(NULL),
                }
            }
            Form::Array { delimiter, element } => {
                write_items(text, *delimiter, out, |value, out| match value {
                    Some(value) => {
                        out.push(PRESENT);
                        element.write(value, out)
                    }
                    None => {
                        out.push(NULL);
                        Ok(())
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Text and bytes are the same in binary form; nothing else is read.
    #[cold]
    pub(crate) fn write_binary(&self, value: &[u8], out: &mut Vec<u8>) -> Done {
        match self {
            Form::Text => self.write(value, out),
            Form::Bytes => {
                write_bytes(value, out);
                Ok(())
            }
            _ => Err(Bad::Binary),
        }
    }

    /// Whether Avro has a string there.
    fn is_text(&self) -> bool {
        matches!(
            self,
            Form::Text | Form::Uuid | Form::Quoted(_) | Form::Document | Form::HstoreText
        )
    }

    /// What stands for a value that the log does not carry, in the `debezium` envelope; `None` where nothing can.
    pub(crate) fn unavailable(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let word = PLACEHOLDER.as_bytes();
        match self {
            Form::HstoreText => {
                let object = format!(r#"{{"{PLACEHOLDER}":"{PLACEHOLDER}"}}"#);
                write_bytes(object.as_bytes(), &mut out);
            }
            form if form.is_text() => write_bytes(word, &mut out),
            Form::Bytes | Form::Coded(_) | Form::Precise(_) => write_bytes(word, &mut out),
            Form::Variable => {
                write_long(0, &mut out);
                write_bytes(word, &mut out);
            }
            Form::Geometry => {
                write_bytes(word, &mut out);
                out.push(NULL);
            }
            Form::Vector { single } => {
                let number = match single {
                    true => Form::Single,
                    false => Form::Double,
                };
                list(
                    word.iter().map(|byte| number.written(*byte)),
                    false,
                    &mut out,
                );
            }
            Form::Array { element, .. } => match &**element {
                Form::Uuid => {
                    let mut uuid = Vec::new();
                    write_bytes(PLACEHOLDER_UUID.as_bytes(), &mut uuid);
                    list([Some(uuid)], true, &mut out);
                }
                number @ (Form::Int
                | Form::Long
                | Form::CountedInt(_)
                | Form::Counted(_)
                | Form::Epoch(_)
                | Form::Single
                | Form::Double) => {
                    list(
                        word.iter().map(|byte| number.written(*byte)),
                        true,
                        &mut out,
                    );
                }
                other => list([Some(other.unavailable()?)], true, &mut out),
            },
            _ => return None,
        }
        Some(out)
    }

    /// A small number.
    fn written(&self, number: u8) -> Option<Vec<u8>> {
        Some(match self {
            Form::Single => f32::from(number).to_le_bytes().to_vec(),
            Form::Double => f64::from(number).to_le_bytes().to_vec(),
            _ => {
                let mut out = Vec::new();
                write_long(i64::from(number), &mut out);
                out
            }
        })
    }
}

fn list(items: impl IntoIterator<Item = Option<Vec<u8>>>, is_nullable: bool, out: &mut Vec<u8>) {
    let mut blocks = Blocks::default();
    for item in items.into_iter().flatten() {
        blocks.item(out);
        if is_nullable {
            out.push(PRESENT);
        }
        out.extend_from_slice(&item);
    }
    blocks.end(out);
}

fn int(text: &[u8]) -> Result<i32, Bad> {
    i32::try_from(integer(text)?).map_err(|_| Bad::Malformed("an integer"))
}

/// The integer that a plan makes for JSON; `out` is used and left as it was.
fn counted(plan: &Plan, text: &[u8], out: &mut Vec<u8>) -> Result<i64, Bad> {
    let start = out.len();
    plan.write(text, out)?;
    let value = integer(&out[start..]);
    out.truncate(start);
    value
}

fn write_double(text: &[u8], out: &mut Vec<u8>) -> Done {
    out.extend_from_slice(&float::<f64>(text)?.to_le_bytes());
    Ok(())
}

/// Appends an array literal of one dimension; `None` is NULL.
fn write_items(
    text: &[u8],
    delimiter: u8,
    out: &mut Vec<u8>,
    mut item: impl FnMut(Option<&[u8]>, &mut Vec<u8>) -> Done,
) -> Done {
    let mut blocks = Blocks::default();
    let mut depth = 0;
    walk_array(text, delimiter, |piece| match piece {
        Piece::Open if depth > 0 => Err(Bad::Formless("an array of more than one dimension")),
        Piece::Open => {
            depth += 1;
            Ok(())
        }
        Piece::Close | Piece::Next => Ok(()),
        Piece::Null => {
            blocks.item(out);
            item(None, out)
        }
        Piece::Value(value) => {
            blocks.item(out);
            item(Some(value), out)
        }
    })?;
    blocks.end(out);
    Ok(())
}

fn write_map(text: &[u8], out: &mut Vec<u8>) -> Done {
    let mut blocks = Blocks::default();
    walk_hstore(text, |key, value| {
        check_utf8(key)?;
        blocks.item(out);
        write_bytes(key, out);
        match value {
            Some(value) => {
                check_utf8(value)?;
                out.push(PRESENT);
                write_bytes(value, out);
            }
            None => out.push(NULL),
        }
        Ok(())
    })?;
    blocks.end(out);
    Ok(())
}
