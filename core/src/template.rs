//! Names made from parts: `{source}.{schema}.{table}`.

use crate::schema::TableSchema;

/// A parsed template. Parts outside braces are literal; there is no escape, since no name here needs a brace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// As it stands.
    Literal(String),
    /// The name between the braces.
    Field(String),
}

impl Template {
    /// Parses `text`; the fields must be among `allowed`.
    ///
    /// # Errors
    /// A sentence that names the bad field or brace and lists the fields there are.
    pub fn parse(text: &str, allowed: &[&str]) -> Result<Self, String> {
        let template = Self::parse_any(text)?;
        for part in &template.parts {
            if let Part::Field(name) = part
                && !allowed.contains(&name.as_str())
            {
                return Err(format!(
                    "`{{{name}}}` in `{text}` is not known; there are {}",
                    allowed
                        .iter()
                        .map(|field| format!("{{{field}}}"))
                        .collect::<Vec<_>>()
                        .join(", ")
                ));
            }
        }
        Ok(template)
    }

    /// Parses `text` with any field names, for templates whose fields are columns.
    ///
    /// # Errors
    /// A sentence that names the brace without a partner.
    pub fn parse_any(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            if rest.as_bytes()[open] == b'}' {
                return Err(format!("`{text}` has a `}}` without a `{{` before it"));
            }
            if open > 0 {
                parts.push(Part::Literal(rest[..open].to_owned()));
            }
            let after = &rest[open + 1..];
            let close = after
                .find('}')
                .ok_or_else(|| format!("`{text}` has a `{{` without a `}}` after it"))?;
            parts.push(Part::Field(after[..close].trim().to_owned()));
            rest = &after[close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        Ok(Template {
            text: text.to_owned(),
            parts,
        })
    }

    /// The template as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The parts in order.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether `field` occurs.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, Part::Field(name) if name == field))
    }

    /// Fills in `{source}`, `{schema}` and `{table}`; `other` answers for any other field, or leaves it empty.
    #[must_use]
    pub fn render(&self, schema: &TableSchema, other: impl Fn(&str) -> Option<String>) -> String {
        let mut out = String::with_capacity(self.text.len() + 32);
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Field(name) => match name.as_str() {
                    "source" => out.push_str(&schema.source),
                    "schema" => out.push_str(&schema.id.schema),
                    "table" => out.push_str(&schema.id.name),
                    name => out.push_str(&other(name).unwrap_or_default()),
                },
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_refuses() {
        let template = Template::parse("{source}.x.{table}", &["source", "table"]).expect("valid");
        assert_eq!(template.parts().len(), 3);
        assert!(template.has("table") && !template.has("schema"));
        for bad in ["{", "}", "{tabel}", "a{source"] {
            assert!(Template::parse(bad, &["source", "table"]).is_err(), "{bad}");
        }
    }
}
