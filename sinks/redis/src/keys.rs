//! The names of keys: of rows, of what is kept beside them, and the patterns that find a table's rows.

use lockstep_core::position::SourceInfo;
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::template::{Part, Template};
use lockstep_core::{Error, ErrorKind, Result};

/// Begins the names of everything that is kept beside the rows.
pub(crate) const VERSION_PREFIX: &[u8] = b"lockstep:v:{";
/// Hash: identity of a source → epoch.
pub(crate) const IDENTITIES: &str = "lockstep:identities";
/// Begins the keys that hold how far a sink has come.
const PROGRESS: &str = "lockstep:progress:";
/// Begins the keys that hold up to where everything is there.
const VISIBLE: &str = "lockstep:visible:";
/// Begins the keys that hold the versions of truncations.
const FLOORS: &str = "lockstep:floor:";
/// Begins the keys that hold the last step.
const STEPS: &str = "lockstep:step:";
/// Begins the keys that hold the greatest token seen.
const FENCES: &str = "lockstep:fence:";

const FIELDS: [&str; 4] = ["source", "schema", "table", "key"];

/// Where the progress of a sink with one source is kept. Two sources may read one log, through two slots.
pub(crate) fn progress(pipeline: &str, sink: &str, source: &SourceInfo) -> String {
    format!(
        "{PROGRESS}{pipeline}:{sink}:{}:{}",
        source.name, source.identity
    )
}

/// Where readers of a cluster find up to where everything is there, of all sources of a sink.
pub(crate) fn visible(pipeline: &str, sink: &str) -> String {
    format!("{VISIBLE}{pipeline}:{sink}")
}

/// Where the versions of a source's truncations are kept.
pub(crate) fn floors(pipeline: &str, sink: &str, source: &str) -> String {
    format!("{FLOORS}{pipeline}:{sink}:{source}")
}

/// Where the last step of a sink is noted.
pub(crate) fn step(pipeline: &str, sink: &str) -> String {
    format!("{STEPS}{pipeline}:{sink}")
}

/// Where the greatest token of a sink is kept. In a cluster something is added to it for each slot.
pub(crate) fn fence(pipeline: &str, sink: &str) -> String {
    format!("{FENCES}{pipeline}:{sink}")
}

/// Appends the key that holds the version of the row at `data`. The braces make both hash to one slot; a row's own key
/// never has any, see [`Space::render`].
pub(crate) fn companion(data: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(VERSION_PREFIX);
    out.extend_from_slice(data);
    out.push(b'}');
}

/// Whether `key` is one of those kept beside the rows.
pub(crate) fn is_beside(key: &[u8]) -> bool {
    let texts = [PROGRESS, VISIBLE, FLOORS, STEPS, FENCES].map(str::as_bytes);
    texts
        .iter()
        .chain(&[VERSION_PREFIX])
        .any(|prefix| key.starts_with(prefix))
        || key == IDENTITIES.as_bytes()
}

/// Parses the `key` of the pipeline file.
///
/// # Errors
/// Of kind `Config`.
pub(crate) fn parse_template(text: &str) -> Result<Template> {
    let wrong = |message: String| Error::new(ErrorKind::Config, format!("`key`: {message}"));
    let template = Template::parse(text, &FIELDS)
        .map_err(|message| wrong(message).remedy("write it like {source}:{table}:{key}"))?;
    let keys = template
        .parts()
        .iter()
        .filter(|part| matches!(part, Part::Field(name) if name == "key"))
        .count();
    if keys != 1 {
        return Err(
            wrong(format!("`{text}` has {{key}} {keys} times")).remedy("write {key} exactly once")
        );
    }
    if !template.has("table") {
        // TRUNCATE finds the rows of a table by the pattern of their keys.
        return Err(wrong(format!(
            "`{text}` lacks {{table}}, so a TRUNCATE could not find the table's rows"
        ))
        .remedy("add {table}, as in {source}:{table}:{key}"));
    }
    Ok(template)
}

/// The keys that the rows of one table can have: everything between a prefix and a suffix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    source: Box<str>,
    id: TableId,
    prefix: String,
    suffix: String,
}

impl Space {
    /// The keys of the rows of `schema`.
    ///
    /// # Errors
    /// Kind `Config` when they would look like keys that are kept beside the rows.
    pub(crate) fn new(template: &Template, schema: &TableSchema) -> Result<Self> {
        let (mut prefix, mut suffix) = (String::new(), String::new());
        let mut out = &mut prefix;
        for part in template.parts() {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Field(name) => match name.as_str() {
                    "source" => push_without_braces(&schema.source, out),
                    "schema" => push_without_braces(&schema.id.schema, out),
                    "table" => push_without_braces(&schema.id.name, out),
                    _ => out = &mut suffix,
                },
            }
        }
        if is_beside(prefix.as_bytes()) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("`key`: rows of {} would get keys that begin with `{prefix}`, which the sink keeps for itself", schema.id),
            )
            .remedy("put a word of your own in front of the key template"));
        }
        Ok(Space {
            source: (*schema.source).into(),
            id: schema.id.clone(),
            prefix,
            suffix,
        })
    }

    /// Appends the key of the row whose key values are `key` (the text of [`lockstep_encode::key::key_text`]). Braces
    /// are percent-encoded: the server would take what stands between them for the part that decides the hash slot.
    pub(crate) fn render(&self, key: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix.as_bytes());
        if key.contains(['{', '}']) {
            let mut text = String::with_capacity(key.len() + 8);
            push_without_braces(key, &mut text);
            out.extend_from_slice(text.as_bytes());
        } else {
            out.extend_from_slice(key.as_bytes());
        }
        out.extend_from_slice(self.suffix.as_bytes());
    }

    /// What [`Space::render`] has made `key` of.
    pub(crate) fn key_text<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        let key = key.strip_prefix(self.prefix.as_bytes())?;
        let key = key.strip_suffix(self.suffix.as_bytes())?;
        let text = std::str::from_utf8(key).ok()?;
        (!text.contains(['{', '}'])).then_some(text)
    }

    /// A `SCAN … MATCH` pattern for all keys of the space, and for no other.
    pub(crate) fn pattern(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.prefix.len() + self.suffix.len() + 8);
        escape_glob(&self.prefix, &mut out);
        out.push(b'*');
        escape_glob(&self.suffix, &mut out);
        out
    }

    /// Whether some key could belong to rows of both. Two schema versions of one table share their space.
    pub(crate) fn clashes(&self, other: &Space) -> bool {
        let same_table = self.source == other.source && self.id == other.id;
        let (a, b) = (self.prefix.as_str(), other.prefix.as_str());
        let (c, d) = (self.suffix.as_str(), other.suffix.as_str());
        !same_table && (a.starts_with(b) || b.starts_with(a)) && (c.ends_with(d) || d.ends_with(c))
    }

    /// The error for two spaces that clash.
    pub(crate) fn clash(&self, other: &Space, template: &Template) -> Error {
        Error::new(
            ErrorKind::Config,
            format!(
                "`key`: with `{}`, rows of {}:{} and of {}:{} could get the same key",
                template.as_str(),
                self.source,
                self.id,
                other.source,
                other.id
            ),
        )
        .remedy("name what tells them apart ({source}, {schema}, {table}) and put `:` between the fields")
    }
}

fn push_without_braces(text: &str, out: &mut String) {
    for char in text.chars() {
        match char {
            '{' => out.push_str("%7B"),
            '}' => out.push_str("%7D"),
            char => out.push(char),
        }
    }
}

fn escape_glob(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::cluster_routing::Slot;

    fn space(template: &str, source: &str, table: &str) -> Space {
        let mut schema = TableSchema::message(source.into());
        schema.id = TableId::new("public", table);
        Space::new(&parse_template(template).expect(template), &schema).expect(template)
    }

    fn key(space: &Space, key: &str) -> String {
        let mut out = Vec::new();
        space.render(key, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn keys_follow_the_template() {
        assert_eq!(
            key(&space("{source}:{table}:{key}", "shop", "cart"), "1:2"),
            "shop:cart:1:2"
        );
        assert_eq!(
            key(&space("{key}@{schema}.{table}", "shop", "cart"), "1"),
            "1@public.cart"
        );
        assert_eq!(
            key(&space("{table}:{key}", "shop", "cart"), "a{b}c"),
            "cart:a%7Bb%7Dc"
        );
    }

    #[test]
    fn companions_share_the_slot() {
        for text in ["1", "a{b}c", "}{", "{}", "x}y{z}"] {
            let data = key(&space("{table}:{key}", "shop", "cart"), text);
            let mut version = Vec::new();
            companion(data.as_bytes(), &mut version);
            assert_eq!(Slot::for_key(&data), Slot::for_key(&version), "{data}");
            assert!(is_beside(&version));
        }
    }

    #[test]
    fn patterns_escape_what_is_special() {
        assert_eq!(
            space("{table}:{key}", "s", "a*b[c]?\\").pattern(),
            br"a\*b\[c\]\?\\:*"
        );
        assert_eq!(space("{key}.{table}", "s", "cart").pattern(), b"*.cart");
    }

    #[test]
    fn tables_whose_keys_could_meet_are_found() {
        let clash = |template, a: (&str, &str), b: (&str, &str)| {
            space(template, a.0, a.1).clashes(&space(template, b.0, b.1))
        };
        assert!(clash("{table}_{key}", ("s", "order"), ("s", "order_items")));
        assert!(!clash(
            "{table}:{key}",
            ("s", "order"),
            ("s", "order_items")
        ));
        assert!(clash(
            "{table}:{key}",
            ("orders", "audit"),
            ("inventory", "audit")
        ));
        assert!(!clash(
            "{source}:{table}:{key}",
            ("orders", "audit"),
            ("inventory", "audit")
        ));
        assert!(!clash(
            "{key}:{table}",
            ("s", "order"),
            ("s", "order_items")
        ));
        assert!(clash("{key}{table}", ("s", "items"), ("s", "order_items")));
        assert!(!clash("{table}:{key}", ("s", "order"), ("s", "order")));
    }

    #[test]
    fn a_source_cannot_take_the_names_kept_beside() {
        let mut schema = TableSchema::message("lockstep".into());
        schema.id = TableId::new("public", "progress");
        let template = parse_template("{source}:{table}:{key}").expect("valid");
        assert_eq!(
            Space::new(&template, &schema).expect_err("ours").kind(),
            ErrorKind::Config
        );
    }
}
