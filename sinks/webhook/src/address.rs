//! Where a table's changes are posted to.

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::config::Secret;
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::template::{Part, Template};
use lockstep_core::{Error, Result};
use lockstep_encode::envelope::place;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Url;

use crate::config::wrong;

/// What the template may name.
const FIELDS: [&str; 3] = ["source", "schema", "table"];

/// What is encoded of a name: all that has a meaning anywhere in a URL.
const NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// An address.
#[derive(Debug)]
pub(crate) struct Target {
    /// Without a login.
    pub(crate) url: Url,
    /// For messages: without a query either.
    pub(crate) shown: String,
}

/// The addresses of all tables.
pub(crate) struct Addresses {
    template: Template,
    login: Option<(String, Option<Secret>)>,
    /// By address of the schema, which is held so that the address stays its own.
    known: HashMap<usize, (Arc<TableSchema>, Arc<Target>)>,
}

impl Addresses {
    /// # Errors
    /// Of kind `Config`, without a part of the URL that may be secret.
    pub(crate) fn new(url: &Secret) -> Result<Self> {
        let bad = |what: &str| {
            wrong(format!("`url` {what}")).remedy(
                "write it as https://host/path/{table}; there are {source}, {schema} and {table}",
            )
        };
        let text = url.reveal();
        // What the parser says would repeat the text.
        let template =
            Template::parse_any(text).map_err(|_| bad("has a brace without its partner"))?;
        for part in template.parts() {
            match part {
                Part::Field(name) if !FIELDS.contains(&name.as_str()) => {
                    return Err(bad(&format!(
                        "has the field `{{{name}}}`, which is not known"
                    )));
                }
                _ => {}
            }
        }
        let (_, behind) = text
            .split_once("://")
            .ok_or_else(|| bad("begins with neither http:// nor https://"))?;
        let end = behind.find(['/', '?', '#']).unwrap_or(behind.len());
        if behind[..end].contains('{') {
            return Err(bad("has a field before the end of its host"));
        }
        let sample = render(&template, "x", &TableId::new("x", "x"));
        let parsed = Url::parse(&sample).map_err(|error| bad("is no address").source(error))?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
            return Err(bad("begins with neither http:// nor https://"));
        }
        if parsed.fragment().is_some() {
            return Err(bad("has a part behind `#`, which no receiver gets to see"));
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let login = (!parsed.username().is_empty() || parsed.password().is_some()).then(|| {
            let password = parsed.password().map(|text| Secret::new(decoded(text)));
            (decoded(parsed.username()), password)
        });
        Ok(Addresses {
            template,
            login,
            known: HashMap::new(),
        })
    }

    /// User and password of the URL.
    pub(crate) fn login(&self) -> Option<(&str, Option<&Secret>)> {
        let login = self.login.as_ref();
        login.map(|(user, password)| (user.as_str(), password.as_ref()))
    }

    /// An address of a table that need not be, to look at the receiver.
    pub(crate) fn sample(&self) -> Result<Target> {
        self.target("source", &TableId::new("schema", "table"))
    }

    /// The address of a table.
    pub(crate) fn of(&mut self, schema: &Arc<TableSchema>) -> Result<Arc<Target>> {
        let address = Arc::as_ptr(schema) as usize;
        if let Some((_, target)) = self.known.get(&address) {
            return Ok(Arc::clone(target));
        }
        let target = Arc::new(self.target(&schema.source, &place(schema))?);
        // Schemas change rarely; but a source that alters a table all day must not fill memory.
        if self.known.len() >= 4096 {
            self.known.clear();
        }
        let known = (Arc::clone(schema), Arc::clone(&target));
        self.known.insert(address, known);
        Ok(target)
    }

    fn target(&self, source: &str, table: &TableId) -> Result<Target> {
        let unusable = |what: String| -> Error {
            wrong(what)
                .remedy("rename it with a `route` transform, or leave the field out of `url`")
        };
        for (field, name) in [
            ("source", source),
            ("schema", &*table.schema),
            ("table", &*table.name),
        ] {
            // A whole segment of dots would lead elsewhere, also when it is encoded.
            if matches!(name, "." | "..") && self.template.has(field) {
                return Err(unusable(format!("`{name}` cannot be a part of an address")));
            }
        }
        let text = render(&self.template, source, table);
        let mut url = Url::parse(&text)
            .map_err(|error| unusable("the address is none".to_owned()).source(error))?;
        // Neither fails on a URL with a host, which this one has.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let shown = Secret::new(url.as_str()).redacted_url();
        Ok(Target { url, shown })
    }
}

fn render(template: &Template, source: &str, table: &TableId) -> String {
    let mut text = String::new();
    for part in template.parts() {
        match part {
            Part::Literal(literal) => text.push_str(literal),
            Part::Field(name) => {
                let value = match name.as_str() {
                    "source" => source,
                    "schema" => &table.schema,
                    _ => &table.name,
                };
                text.extend(utf8_percent_encode(value, NAME));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str, table: &str) -> Result<Target> {
        Addresses::new(&Secret::new(url))?.target("shop", &TableId::new("public", table))
    }

    #[test]
    fn names_are_encoded_wherever_they_stand() {
        let target = shown(
            "https://h/in/{source}/{table}?of={schema}.{table}",
            "a/b ?ü",
        )
        .expect("an address");
        assert_eq!(
            target.url.as_str(),
            "https://h/in/shop/a%2Fb%20%3F%C3%BC?of=public.a%2Fb%20%3F%C3%BC"
        );
        assert_eq!(target.shown, "https://h/in/shop/a%2Fb%20%3F%C3%BC");
        for dots in [".", ".."] {
            assert!(shown("https://h/in/{table}", dots).is_err());
            assert!(shown("https://h/in/{schema}", dots).is_ok());
        }
    }

    #[test]
    fn a_login_is_no_part_of_the_address() {
        let addresses = Addresses::new(&Secret::new("https://us%40er:p%2Fw@h/x")).expect("valid");
        let (user, password) = addresses.login().expect("a login");
        assert_eq!((user, password.map(Secret::reveal)), ("us@er", Some("p/w")));
        let target = addresses.sample().expect("an address");
        assert_eq!(
            (target.url.as_str(), &*target.shown),
            ("https://h/x", "https://h/x")
        );
    }
}
