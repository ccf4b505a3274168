//! Values made of values: arrays, hstore, JSON documents.

use std::borrow::Cow;

use super::bad::{Bad, Done};
use super::text::write_string;

const ARRAY: Bad = Bad::Malformed("an array literal");
const HSTORE: Bad = Bad::Malformed("an hstore literal");

/// PostgreSQL's limit of dimensions (`MAXDIM`).
const DEPTH: usize = 6;

/// A part of an array literal, in the order it is printed.
pub(crate) enum Piece<'a> {
    /// A dimension begins.
    Open,
    /// It ends.
    Close,
    /// Between two values, or two dimensions.
    Next,
    /// NULL.
    Null,
    /// The text of a value.
    Value(&'a [u8]),
}

/// Appends an array as a JSON array, one level per dimension. `{a,"b c",NULL}`; an explicit lower bound in front
/// (`[2:3]={…}`) is dropped, since JSON has none. `element` writes one value.
pub(crate) fn write_array(
    text: &[u8],
    delimiter: u8,
    element: &mut dyn FnMut(&[u8], &mut Vec<u8>) -> Done,
    out: &mut Vec<u8>,
) -> Done {
    walk_array(text, delimiter, |piece| {
        match piece {
            Piece::Open => out.push(b'['),
            Piece::Close => out.push(b']'),
            Piece::Next => out.push(b','),
            Piece::Null => out.extend_from_slice(b"null"),
            Piece::Value(value) => return element(value, out),
        }
        Ok(())
    })
}

/// Takes an array literal apart.
pub(crate) fn walk_array(
    text: &[u8],
    delimiter: u8,
    mut each: impl FnMut(Piece<'_>) -> Done,
) -> Done {
    let mut rest = without_bounds(text)?;
    let mut depth = 0;
    // Whether a value or a closing brace was just read: a comma or a brace must follow.
    let mut after_value = false;
    loop {
        let (&first, tail) = rest.split_first().ok_or(ARRAY)?;
        if after_value {
            rest = tail;
            if first == delimiter {
                each(Piece::Next)?;
                after_value = false;
            } else if first == b'}' {
                each(Piece::Close)?;
                depth -= 1;
                if depth == 0 {
                    return if rest.is_empty() { Ok(()) } else { Err(ARRAY) };
                }
            } else {
                return Err(ARRAY);
            }
            continue;
        }
        if first == b'{' {
            each(Piece::Open)?;
            depth += 1;
            rest = tail;
            if depth > DEPTH {
                return Err(ARRAY);
            }
            if rest.first() == Some(&b'}') {
                after_value = true;
            }
            continue;
        }
        if depth == 0 {
            return Err(ARRAY);
        }
        if first == b'"' {
            let (value, tail) = quoted(tail).ok_or(ARRAY)?;
            each(Piece::Value(&value))?;
            rest = tail;
        } else {
            let len = rest
                .iter()
                .position(|&byte| byte == delimiter || byte == b'}')
                .ok_or(ARRAY)?;
            let (value, tail) = rest.split_at(len);
            if value.is_empty() || value.iter().any(|byte| matches!(byte, b'{' | b'"' | b'\\')) {
                return Err(ARRAY);
            }
            each(match value {
                b"NULL" => Piece::Null,
                value => Piece::Value(value),
            })?;
            rest = tail;
        }
        after_value = true;
    }
}

fn without_bounds(text: &[u8]) -> Result<&[u8], Bad> {
    if text.first() != Some(&b'[') {
        return Ok(text);
    }
    let at = text.iter().position(|&byte| byte == b'=').ok_or(ARRAY)?;
    Ok(&text[at + 1..])
}

/// Reads to the closing quote; `text` starts behind the opening one. Backslashes escape the byte behind them.
fn quoted(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let plain = memchr::memchr2(b'"', b'\\', text)?;
    if text[plain] == b'"' {
        return Some((Cow::Borrowed(&text[..plain]), &text[plain + 1..]));
    }
    let mut value = Vec::with_capacity(text.len().min(256));
    let mut rest = text;
    loop {
        let at = memchr::memchr2(b'"', b'\\', rest)?;
        value.extend_from_slice(&rest[..at]);
        if rest[at] == b'"' {
            return Some((Cow::Owned(value), &rest[at + 1..]));
        }
        value.push(*rest.get(at + 1)?);
        rest = &rest[at + 2..];
    }
}

/// Appends an `hstore` (`"a"=>"1", "b"=>NULL`) as a JSON object of strings and nulls, in the order it is printed.
pub(crate) fn write_hstore(text: &[u8], out: &mut Vec<u8>) -> Done {
    out.push(b'{');
    let start = out.len();
    walk_hstore(text, |key, value| {
        if out.len() > start {
            out.push(b',');
        }
        write_string(key, out)?;
        out.push(b':');
        match value {
            Some(value) => write_string(value, out)?,
            None => out.extend_from_slice(b"null"),
        }
        Ok(())
    })?;
    out.push(b'}');
    Ok(())
}

/// Takes an `hstore` apart: each key with its value, in the order it is printed.
pub(crate) fn walk_hstore(text: &[u8], mut each: impl FnMut(&[u8], Option<&[u8]>) -> Done) -> Done {
    let mut rest = text;
    let mut first = true;
    while !rest.is_empty() {
        if !first {
            rest = rest.strip_prefix(b", ").ok_or(HSTORE)?;
        }
        first = false;
        let (key, tail) = rest.strip_prefix(b"\"").and_then(quoted).ok_or(HSTORE)?;
        rest = tail.strip_prefix(b"=>").ok_or(HSTORE)?;
        if let Some(tail) = rest.strip_prefix(b"NULL") {
            each(&key, None)?;
            rest = tail;
        } else {
            let (value, tail) = rest.strip_prefix(b"\"").and_then(quoted).ok_or(HSTORE)?;
            each(&key, Some(&value))?;
            rest = tail;
        }
    }
    Ok(())
}

/// Appends an `hstore` as a JSON string that holds the object.
pub(crate) fn write_hstore_string(text: &[u8], out: &mut Vec<u8>) -> Done {
    let mut object = Vec::with_capacity(text.len());
    write_hstore(text, &mut object)?;
    write_string(&object, out)
}

/// Appends a `json` or `jsonb` document nested as it is, checked. Line breaks between tokens become spaces, so that a
/// record stays on one line.
pub(crate) fn write_json(text: &[u8], out: &mut Vec<u8>) -> Done {
    serde_json::from_slice::<&serde_json::value::RawValue>(text)
        .map_err(|_| Bad::Malformed("a JSON document"))?;
    let start = out.len();
    out.extend_from_slice(text);
    let mut at = start;
    // A raw control byte cannot stand inside a JSON string: what is found lies between tokens.
    while let Some(found) = memchr::memchr2(b'\n', b'\r', &out[at..]) {
        out[at + found] = b' ';
        at += found + 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(text: &str, delimiter: u8) -> Result<String, Bad> {
        let mut out = Vec::new();
        write_array(
            text.as_bytes(),
            delimiter,
            &mut |value, out| write_string(value, out),
            &mut out,
        )?;
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    #[test]
    fn arrays() {
        for (text, expected) in [
            ("{}", "[]"),
            ("{a}", r#"["a"]"#),
            ("{1,NULL,3}", r#"["1",null,"3"]"#),
            (
                r#"{"NULL","a,b","q\"q","back\\slash","",x}"#,
                r#"["NULL","a,b","q\"q","back\\slash","","x"]"#,
            ),
            ("{{1,2},{3,4}}", r#"[["1","2"],["3","4"]]"#),
            ("[2:3]={a,b}", r#"["a","b"]"#),
            ("[0:0][1:2]={{a,b}}", r#"[["a","b"]]"#),
        ] {
            assert_eq!(array(text, b',').expect("an array"), expected, "{text}");
        }
        assert_eq!(
            array("{(1,1),(0,0);(2,2),(1,1)}", b';').expect("boxes"),
            r#"["(1,1),(0,0)","(2,2),(1,1)"]"#
        );
        for bad in [
            "",
            "{",
            "}",
            "{a",
            "a",
            "{a}}",
            "{a}x",
            "{,}",
            "{a,}",
            "{\"a}",
            "{{a}",
            "{a{b}}",
            "{{{{{{{1}}}}}}}",
            "[1:2]",
            "{a\\,b}",
        ] {
            assert!(array(bad, b',').is_err(), "{bad}");
        }
    }

    #[test]
    fn hstores() {
        let mut out = Vec::new();
        write_hstore(br#""a"=>"1", "b c"=>NULL, "q\"q"=>"x\\y""#, &mut out).expect("an hstore");
        assert_eq!(
            String::from_utf8_lossy(&out),
            r#"{"a":"1","b c":null,"q\"q":"x\\y"}"#
        );
        out.clear();
        write_hstore(b"", &mut out).expect("an hstore");
        assert_eq!(out, b"{}");
        out.clear();
        write_hstore_string(br#""k1"=>"v1", "k2"=>NULL"#, &mut out).expect("an hstore");
        assert_eq!(
            String::from_utf8_lossy(&out),
            r#""{\"k1\":\"v1\",\"k2\":null}""#
        );
        for bad in [
            "a",
            "\"a\"",
            "\"a\"=>",
            "\"a\"=>x",
            "\"a\"=>\"b\" ",
            "\"a\"=>\"b\",\"c\"=>\"d\"",
        ] {
            assert!(
                write_hstore(bad.as_bytes(), &mut Vec::new()).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn documents_stay_on_one_line() {
        let mut out = Vec::new();
        write_json(b"{\n \"a\": [1,\r\n \"x\\ny\"]}", &mut out).expect("JSON");
        assert_eq!(String::from_utf8_lossy(&out), "{  \"a\": [1,   \"x\\ny\"]}");
        assert!(write_json(b"{", &mut Vec::new()).is_err());
        assert!(write_json(b"", &mut Vec::new()).is_err());
        let deep = [vec![b'['; 5000], vec![b']'; 5000]].concat();
        assert!(write_json(&deep, &mut Vec::new()).is_ok());
    }
}
