//! Points, vectors (pgvector) and geometries (PostGIS) as Debezium writes them.

use super::bad::{Bad, Done};
use super::nested::write_array;
use super::number::{write_integer, write_java_float};
use super::text::{hex_bytes, write_base64_string};

const POINT: Bad = Bad::Malformed("a point");
const SPARSE: Bad = Bad::Malformed("a sparse vector");
const GEOMETRY: &str = "a geometry in hexadecimal EWKB";

/// Appends a `point` (`(1.5,-2)`) as `{"x":1.5,"y":-2.0,"wkb":"…","srid":null}`.
pub(crate) fn write_point(text: &[u8], out: &mut Vec<u8>) -> Done {
    let (x, y) = coordinates(text)?;
    out.extend_from_slice(br#"{"x":"#);
    write_java_float(x, false, out)?;
    out.extend_from_slice(br#","y":"#);
    write_java_float(y, false, out)?;
    out.extend_from_slice(br#","wkb":"#);
    write_base64_string(&wkb(double(x)?, double(y)?), out);
    out.extend_from_slice(br#","srid":null}"#);
    Ok(())
}

fn coordinates(text: &[u8]) -> Result<(&[u8], &[u8]), Bad> {
    let inner = text
        .strip_prefix(b"(")
        .and_then(|text| text.strip_suffix(b")"))
        .ok_or(POINT)?;
    let comma = memchr::memchr(b',', inner).ok_or(POINT)?;
    Ok((&inner[..comma], &inner[comma + 1..]))
}

/// Well-known binary: little endian, type 1 (point), two doubles.
fn wkb(x: f64, y: f64) -> [u8; 21] {
    let mut wkb = [0; 21];
    wkb[0] = 1;
    wkb[1] = 1;
    wkb[5..13].copy_from_slice(&x.to_le_bytes());
    wkb[13..].copy_from_slice(&y.to_le_bytes());
    wkb
}

/// The coordinates of a `point`, and its well-known binary.
pub(crate) fn point(text: &[u8]) -> Result<(f64, f64, [u8; 21]), Bad> {
    let (x, y) = coordinates(text)?;
    let (x, y) = (double(x)?, double(y)?);
    Ok((x, y, wkb(x, y)))
}

fn double(text: &[u8]) -> Result<f64, Bad> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(POINT)
}

/// Appends a `vector` (`[1,2.5]`) as an array of doubles, a `halfvec` (`single`) as an array of floats.
pub(crate) fn write_vector(text: &[u8], single: bool, out: &mut Vec<u8>) -> Done {
    write_array(
        &braced(text)?,
        b',',
        &mut |value, out| write_java_float(value, single, out),
        out,
    )
}

/// A `vector` as an array literal.
pub(crate) fn braced(text: &[u8]) -> Result<Vec<u8>, Bad> {
    let inner = text
        .strip_prefix(b"[")
        .and_then(|text| text.strip_suffix(b"]"))
        .ok_or(Bad::Malformed("a vector"))?;
    Ok([b"{", inner, b"}"].concat())
}

/// Appends a `sparsevec` (`{1:1.5,3:2}/5`) as `{"dimensions":5,"vector":[[1,1.5],[3,2.0]]}`: Connect's JSON has no map
/// with numbers for keys and writes pairs.
pub(crate) fn write_sparse_vector(text: &[u8], out: &mut Vec<u8>) -> Done {
    let (dimensions, vector) = sparse(text)?;
    out.extend_from_slice(br#"{"dimensions":"#);
    write_integer(dimensions, out)?;
    out.extend_from_slice(br#","vector":"#);
    let pair = &mut |value: &[u8], out: &mut Vec<u8>| {
        let (place, value) = sparse_pair(value)?;
        out.push(b'[');
        write_integer(place, out)?;
        out.push(b',');
        write_java_float(value, false, out)?;
        out.push(b']');
        Ok(())
    };
    write_array(vector, b',', pair, out)?;
    out.push(b'}');
    Ok(())
}

/// The dimensions of a `sparsevec`, and its pairs as an array literal.
pub(crate) fn sparse(text: &[u8]) -> Result<(&[u8], &[u8]), Bad> {
    let slash = memchr::memrchr(b'/', text).ok_or(SPARSE)?;
    Ok((&text[slash + 1..], &text[..slash]))
}

/// The place of a value in a `sparsevec`, and the value.
pub(crate) fn sparse_pair(text: &[u8]) -> Result<(&[u8], &[u8]), Bad> {
    let colon = memchr::memchr(b':', text).ok_or(SPARSE)?;
    Ok((&text[..colon], &text[colon + 1..]))
}

/// Appends a PostGIS `geometry` or `geography` (hexadecimal EWKB) as `{"wkb":base64,"srid":n}`.
pub(crate) fn write_geometry(text: &[u8], out: &mut Vec<u8>) -> Done {
    let (bytes, srid) = geometry(text)?;
    out.extend_from_slice(br#"{"wkb":"#);
    write_base64_string(&bytes, out);
    out.extend_from_slice(br#","srid":"#);
    match srid {
        Some(srid) => out.extend_from_slice(itoa::Buffer::new().format(srid).as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Ok(())
}

/// The EWKB of a geometry, and the system of its coordinates.
pub(crate) fn geometry(text: &[u8]) -> Result<(Vec<u8>, Option<u32>), Bad> {
    const HAS_SRID: u32 = 0x2000_0000;
    let bytes = hex_bytes(text, GEOMETRY)?;
    let word = |at: usize| -> Result<u32, Bad> {
        let four = bytes
            .get(at..at + 4)
            .and_then(|four| <[u8; 4]>::try_from(four).ok())
            .ok_or(Bad::Malformed(GEOMETRY))?;
        Ok(if bytes[0] == 1 {
            u32::from_le_bytes(four)
        } else {
            u32::from_be_bytes(four)
        })
    };
    let srid = match word(1)? & HAS_SRID {
        0 => None,
        _ => Some(word(5)?),
    };
    Ok((bytes, srid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>) -> Done) -> String {
        let mut out = Vec::new();
        write(&mut out).expect("valid");
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn shapes() {
        assert_eq!(
            written(|out| write_point(b"(1.5,-2)", out)),
            r#"{"x":1.5,"y":-2.0,"wkb":"AQEAAAAAAAAAAAD4PwAAAAAAAADA","srid":null}"#
        );
        assert_eq!(
            written(|out| write_vector(b"[1,2.5,-3e-05]", true, out)),
            "[1.0,2.5,-3.0E-5]"
        );
        assert_eq!(
            written(|out| write_sparse_vector(b"{1:1.5,3:2}/5", out)),
            r#"{"dimensions":5,"vector":[[1,1.5],[3,2.0]]}"#
        );
        assert_eq!(
            written(|out| write_geometry(
                b"0101000020E6100000000000000000F03F0000000000000040",
                out
            )),
            r#"{"wkb":"AQEAACDmEAAAAAAAAAAA8D8AAAAAAAAAQA==","srid":4326}"#
        );
        assert!(write_point(b"1,2", &mut Vec::new()).is_err());
        assert!(write_vector(b"1,2", false, &mut Vec::new()).is_err());
        assert!(write_geometry(b"01", &mut Vec::new()).is_err());
    }
}
