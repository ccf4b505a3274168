//! The index of a table: its name, its creation, its new columns.

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::error::At;
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::plans::Plans;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::client::{Body, Client};
use super::config::{Config, Mapping};
use super::mapping::properties;
use super::visible::FIELD;
use crate::document::{Documents, json_text};

/// Longest index name, in bytes.
const NAME_LIMIT: usize = 255;

/// Where the rows of one schema version go.
pub(super) struct Target {
    pub(super) index: Arc<str>,
    pub(super) documents: Documents,
    /// The action lines of a bulk up to the id.
    pub(super) index_action: String,
    pub(super) delete_action: String,
}

/// The indexes of a sink.
pub(super) struct Indexes {
    client: Arc<Client>,
    config: Arc<Config>,
    template: Template,
    known: Plans<Arc<Target>>,
    owners: HashMap<Arc<str>, Owner>,
}

struct Owner {
    source: Arc<str>,
    table: TableId,
    /// Tables of the database whose rows come here; a route can lead several to one.
    origins: Vec<TableId>,
}

impl Indexes {
    pub(super) fn new(client: Arc<Client>, config: Arc<Config>) -> Result<Self> {
        Ok(Indexes {
            client,
            template: config.index_template()?,
            config,
            known: Plans::new(),
            owners: HashMap::new(),
        })
    }

    /// The target of a schema version. At its first sight the index is created, or gets the columns it lacks.
    ///
    /// # Errors
    /// When two tables share an index, a name is illegal, or the server refuses.
    pub(super) async fn target(&mut self, schema: &Arc<TableSchema>) -> Result<Arc<Target>> {
        if let Ok(known) = self.known.get_or_try(schema, |_| Err(())) {
            return Ok(Arc::clone(known));
        }
        let index = self.claim(schema)?;
        if self.config.gtx_epoch && schema.columns.iter().any(|column| &*column.name == FIELD) {
            let what = format!("`{}` has a column `{FIELD}` of its own", schema.id);
            return Err(Error::new(ErrorKind::Setup, what).remedy(format!(
                "rename the column on its way with a `project` transform, or leave out `{FIELD} = true`"
            )));
        }
        if self.config.mapping == Mapping::Derived || !self.exists(&index).await? {
            self.ensure(&index, schema)
                .await
                .at(format!("index {index}"))?;
        }
        let quoted = json_text(&index);
        let target = Arc::new(Target {
            documents: Documents::new(schema),
            index_action: format!(r#"{{"index":{{"_index":{quoted},"_id":"#),
            delete_action: format!(r#"{{"delete":{{"_index":{quoted},"_id":"#),
            index,
        });
        Ok(Arc::clone(self.known.get(schema, |_| Arc::clone(&target))))
    }

    /// The indexes that are known, with the source of each.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.owners
            .iter()
            .map(|(index, owner)| (index, &owner.source))
    }

    /// Whether rows of several tables of the database come to the index of `schema`.
    pub(super) fn is_shared(&self, index: &str) -> bool {
        self.owners
            .get(index)
            .is_some_and(|owner| owner.origins.len() > 1)
    }

    /// The index name of a table, which is its alone from now on.
    fn claim(&mut self, schema: &TableSchema) -> Result<Arc<str>> {
        let name = index_name(&self.template, schema)?;
        let owner = self
            .owners
            .entry(Arc::clone(&name))
            .or_insert_with(|| Owner {
                source: Arc::clone(&schema.source),
                table: schema.id.clone(),
                origins: Vec::new(),
            });
        if owner.source != schema.source || owner.table != schema.id {
            return Err(Error::new(
                ErrorKind::Setup,
                format!(
                    "`{}` of {} and `{}` of {} would share the index {name}",
                    owner.table, owner.source, schema.id, schema.source
                ),
            )
            .remedy("make the names differ: index = \"{source}-{schema}-{table}\""));
        }
        if !owner.origins.contains(&schema.origin) {
            owner.origins.push(schema.origin.clone());
        }
        Ok(name)
    }

    async fn exists(&self, index: &str) -> Result<bool> {
        let reply = self
            .client
            .call(Method::HEAD, &[index], &[], Body::None)
            .await?;
        match reply.status {
            404 => Ok(false),
            _ => reply
                .success(&format!("looking for the index {index}"))
                .map(|_| true),
        }
    }

    async fn ensure(&self, index: &str, schema: &TableSchema) -> Result<()> {
        let mut wanted = match self.config.mapping {
            Mapping::Derived => properties(schema, &self.config.fields)?,
            Mapping::None => Map::new(),
        };
        if self.config.gtx_epoch && self.config.mapping == Mapping::Derived {
            wanted.insert(FIELD.to_owned(), json!({"type": "long"}));
        }
        let reply = self
            .client
            .call(Method::GET, &[index, "_mapping"], &[], Body::None)
            .await?;
        if reply.status == 404 {
            return self.create(index, wanted).await;
        }
        let reply = reply.success("reading the mapping")?;
        let held: HashMap<String, Value> = reply.json("a request for the mapping")?;
        let mut held = held.into_iter();
        let (Some((_, held)), None) = (held.next(), held.next()) else {
            return Err(
                Error::new(ErrorKind::Setup, "this is an alias of several indexes")
                    .remedy("let the alias name one index, or choose another `index`"),
            );
        };
        let held = &held["mappings"]["properties"];
        for (column, have, effect) in conflicts(&wanted, held) {
            tracing::warn!(
                index,
                column,
                remedy = format!(
                    "stop lockstep, delete the index, start lockstep, which creates it for the columns as they are, \
                     then lockstep snapshot FILE --table {}",
                    schema.origin
                ),
                "the column is of another type than its field, which is {have}: values that do not fit are {effect}"
            );
        }
        let missing = missing(wanted, held);
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = missing.keys().cloned().collect();
        let reply = self
            .client
            .call(
                Method::PUT,
                &[index, "_mapping"],
                &[],
                Body::json(&json!({"properties": missing})),
            )
            .await?;
        if reply.status == 400 {
            let what = format!(
                "the server refuses to add {} to the mapping",
                names.join(", ")
            );
            return Err(Error::new(ErrorKind::Setup, what)
                .source(reply.cause().text())
                .remedy("mend `fields`, raise index.mapping.total_fields.limit of the index, or leave the column out with `project`"));
        }
        reply.success("adding columns to the mapping")?;
        tracing::info!(
            index,
            columns = names.join(", "),
            "added columns to the mapping"
        );
        Ok(())
    }

    async fn create(&self, index: &str, fields: Map<String, Value>) -> Result<()> {
        let mut body = json!({"settings": settings(&self.config, fields.len())});
        if self.config.mapping == Mapping::Derived {
            // What is not in the mapping is kept and not indexed; guessing types would let the first row decide.
            body["mappings"] = json!({"dynamic": false, "properties": fields});
        }
        let reply = self
            .client
            .call(Method::PUT, &[index], &[], Body::json(&body))
            .await?;
        if reply.status == 400 && reply.cause().kind == "resource_already_exists_exception" {
            return Ok(());
        }
        if reply.status == 400 {
            return Err(
                Error::new(ErrorKind::Setup, "the server refuses to create the index")
                    .source(reply.cause().text())
                    .remedy("mend `settings`, `fields` or `index`"),
            );
        }
        reply.success("creating the index")?;
        tracing::info!(index, "created the index");
        Ok(())
    }
}

/// The name of the index of a table.
///
/// # Errors
/// When nothing legal is left of it.
pub(super) fn index_name(template: &Template, schema: &TableSchema) -> Result<Arc<str>> {
    let rendered = template.render(schema, |_| None);
    let name = sanitize(&rendered);
    if name.is_empty() || name.len() > NAME_LIMIT {
        return Err(Error::new(
            ErrorKind::Setup,
            format!("`{rendered}`, the index of {}, is no index name", schema.id),
        )
        .remedy(
            "choose another `index`: 1 to 255 bytes of lower-case letters, digits, `-` and `_`",
        ));
    }
    Ok(name.into())
}

/// Lower case; what an index name cannot hold becomes `_`; what it cannot begin with is cut off.
pub(super) fn sanitize(name: &str) -> String {
    match sanitize_part(name).trim_start_matches(['-', '_', '+']) {
        "." | ".." => String::new(),
        name => name.to_owned(),
    }
}

/// [`sanitize`] for a piece out of the middle of a name.
pub(super) fn sanitize_part(name: &str) -> String {
    let legal = |c: char| match c {
        '\\' | '/' | '*' | '?' | '"' | '<' | '>' | '|' | ' ' | ',' | '#' | ':' => '_',
        c if c.is_control() || c.is_whitespace() => '_',
        c => c,
    };
    name.to_lowercase().chars().map(legal).collect()
}

/// The settings of an index with `fields` fields: ours, with the user's in their place.
fn settings(config: &Config, fields: usize) -> Map<String, Value> {
    let mut settings = Map::new();
    settings.insert(
        "index.gc_deletes".to_owned(),
        config.gc_deletes.to_string().into(),
    );
    if config.gtx_epoch {
        // What becomes searchable between two of our own refreshes is missing from readers' views until the second.
        settings.insert("index.refresh_interval".to_owned(), "-1".into());
    }
    // The server's limit of 1000 counts sub-fields too; a table may have 1600 columns.
    if fields * 2 > 900 {
        let limit = fields * 2 + 400;
        settings.insert("index.mapping.total_fields.limit".to_owned(), limit.into());
    }
    flatten("", &config.settings, &mut settings);
    settings
}

/// `{index: {a: {b: 1}}}`, `{a: {b: 1}}` and `{"a.b": 1}` are all `index.a.b`.
fn flatten(prefix: &str, from: &Map<String, Value>, into: &mut Map<String, Value>) {
    for (name, value) in from {
        let name = format!("{prefix}{name}");
        match value {
            Value::Object(inner) => flatten(&format!("{name}."), inner, into),
            value => {
                let name = match name.strip_prefix("index.") {
                    Some(_) => name,
                    None => format!("index.{name}"),
                };
                into.insert(name, value.clone());
            }
        }
    }
}

/// The fields that an index does not have. Those it has stay as they are: they may be the user's own. A column named
/// `a.b` is the field `b` inside `a`.
fn missing(wanted: Map<String, Value>, held: &Value) -> Map<String, Value> {
    let has = |name: &str| {
        let mut fields = Some(held);
        let mut parts = name.split('.').peekable();
        while let Some(part) = parts.next() {
            let field = fields.and_then(|fields| fields.get(part));
            if parts.peek().is_none() {
                return field.is_some();
            }
            fields = field.and_then(|field| field.get("properties"));
        }
        false
    };
    wanted.into_iter().filter(|(name, _)| !has(name)).collect()
}

/// Columns whose field takes not all values of their type, the type of the field, and what becomes of the others.
fn conflicts<'a>(
    wanted: &'a Map<String, Value>,
    held: &'a Value,
) -> Vec<(&'a str, &'a str, &'static str)> {
    let is_word = |kind: &str| matches!(kind, "text" | "keyword");
    let conflict = |(name, wanted): (&'a String, &'a Value)| {
        let held = held.get(name)?;
        let (want, have) = (
            wanted["type"].as_str()?,
            held["type"].as_str().unwrap_or("object"),
        );
        let takes_all = want == have
            || have == "object" && held["enabled"] == false
            || is_word(have) && want != "object"
            || (want, have) == ("long", "double");
        let effect = match held["ignore_malformed"] == true && want != "object" {
            true => "kept and not found by searches",
            false => "refused, and put aside as dead letters",
        };
        (!takes_all).then_some((name.as_str(), have, effect))
    };
    wanted.iter().filter_map(conflict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_do_not_take_a_type_are_told() {
        let held = json!({
            "same": {"type": "long"}, "word": {"type": "text"}, "any": {"type": "object", "enabled": false},
            "n": {"type": "long", "ignore_malformed": true}, "doc": {"type": "text"}, "parts": {"properties": {}},
        });
        let wanted = [
            ("same", "long"),
            ("word", "date"),
            ("any", "text"),
            ("n", "text"),
            ("doc", "object"),
            ("parts", "keyword"),
            ("new", "text"),
        ];
        let wanted =
            Map::from_iter(wanted.map(|(name, ty)| (name.to_owned(), json!({"type": ty}))));
        let (kept, refused) = (
            "kept and not found by searches",
            "refused, and put aside as dead letters",
        );
        assert_eq!(
            conflicts(&wanted, &held),
            [
                ("n", "long", kept),
                ("doc", "text", refused),
                ("parts", "object", refused)
            ]
        );
    }

    #[test]
    fn names_are_made_legal() {
        assert_eq!(sanitize("Orders-Order Items"), "orders-order_items");
        assert_eq!(sanitize("_-x"), "x");
        assert_eq!(sanitize(".."), "");
        assert_eq!(sanitize("größe"), "größe");
    }

    #[test]
    fn the_users_settings_win_in_any_form() {
        let config = |settings: Value| -> Config {
            serde_json::from_value(json!({"url": "http://h:9200", "settings": settings}))
                .expect("valid")
        };
        for form in [
            json!({"gc_deletes": "5m"}),
            json!({"index": {"gc_deletes": "5m"}}),
            json!({"index.gc_deletes": "5m"}),
        ] {
            assert_eq!(settings(&config(form), 3)["index.gc_deletes"], "5m");
        }
        let ours = settings(&config(json!({"mapping": {"x": 1}})), 1000);
        assert_eq!(ours["index.gc_deletes"], "1h");
        assert_eq!(ours["index.mapping.x"], 1);
        assert_eq!(ours["index.mapping.total_fields.limit"], 2400);
    }

    #[test]
    fn only_missing_fields_are_added() {
        let wanted = Map::from_iter(["a", "b.c", "d"].map(|name| (name.to_owned(), json!({}))));
        let held = json!({"a": {"type": "text"}, "b": {"properties": {"c": {"type": "long"}}}});
        let missing = missing(wanted, &held);
        assert_eq!(missing.keys().collect::<Vec<_>>(), ["d"]);
    }
}
