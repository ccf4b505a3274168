//! Which part of a node an input takes: `node`, `node:schema.table`, `node:source.schema.table`, with `*`.

use lockstep_core::schema::TableSchema;

/// A name with `*` for any run of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Matches everything.
    #[must_use]
    pub fn any() -> Self {
        Glob("*".to_owned())
    }

    /// Whether `text` is such a name.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut p, mut t) = (0, 0);
        // Where the last `*` was, and how much of the text it covers so far: the only point to go back to.
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(byte) if *byte == text[t] => {
                    p += 1;
                    t += 1;
                }
                _ => match &mut star {
                    Some((at, covered)) => {
                        *covered += 1;
                        p = *at + 1;
                        t = *covered;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which tables of a node pass. Names are those that records have when they leave the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// The source's name.
    pub source: Glob,
    /// The table's schema.
    pub schema: Glob,
    /// The table's name.
    pub table: Glob,
}

impl Selector {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Selector {
            source: Glob::any(),
            schema: Glob::any(),
            table: Glob::any(),
        }
    }

    /// Whether it is everything, known without looking.
    #[must_use]
    pub fn is_all(&self) -> bool {
        [&self.source, &self.schema, &self.table]
            .iter()
            .all(|glob| glob.0 == "*")
    }

    /// Whether tables of this shape pass.
    #[must_use]
    pub fn matches(&self, schema: &TableSchema) -> bool {
        self.source.matches(&schema.source)
            && self.schema.matches(&schema.id.schema)
            && self.table.matches(&schema.id.name)
    }
}

/// Splits an input into the node's name and the part of it that is taken.
///
/// # Errors
/// A sentence that shows how an input is written.
pub fn parse(text: &str) -> Result<(&str, Selector), String> {
    let wrong = || {
        format!(
            "`{text}` is not an input; write `node`, `node:schema.table` or `node:source.schema.table`, \
             with `*` for any name"
        )
    };
    let Some((node, rest)) = text.split_once(':') else {
        return if text.is_empty() {
            Err(wrong())
        } else {
            Ok((text, Selector::all()))
        };
    };
    let parts: Vec<&str> = rest.split('.').collect();
    if node.is_empty() || rest.contains(':') || parts.iter().any(|part| part.is_empty()) {
        return Err(wrong());
    }
    let glob = |part: &str| Glob(part.to_owned());
    let selector = match parts.as_slice() {
        [schema, table] => Selector {
            source: Glob::any(),
            schema: glob(schema),
            table: glob(table),
        },
        [source, schema, table] => Selector {
            source: glob(source),
            schema: glob(schema),
            table: glob(table),
        },
        _ => return Err(wrong()),
    };
    Ok((node, selector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "orders", true),
            ("orders", "orders", true),
            ("orders", "order", false),
            ("order_*", "order_items", true),
            ("*_items", "order_items", true),
            ("o*r*s", "orders", true),
            ("o*x*s", "orders", false),
            ("*a*ab", "aaab", true),
            ("a*", "ba", false),
            ("", "a", false),
        ] {
            assert_eq!(
                Glob(pattern.to_owned()).matches(text),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn inputs_parse() {
        let (node, selector) = parse("once:orders.public.*").expect("valid");
        assert_eq!(
            (node, selector.source.as_str(), selector.table.as_str()),
            ("once", "orders", "*")
        );
        let (_, selector) = parse("once:public.orders").expect("valid");
        assert_eq!(
            (selector.source.as_str(), selector.schema.as_str()),
            ("*", "public")
        );
        assert!(parse("once").expect("valid").1.is_all());
        assert!(parse("once:*.*.*").expect("valid").1.is_all());
        for bad in ["", ":", "a:", "a:b", "a:b.c.d.e", "a:b.", ":b.c", "a:b:c.d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
