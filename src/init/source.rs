//! A source as it is written: a database, its tables, and the names that are used on its server.

use lockstep_core::config::Secret;
use lockstep_core::error::{At as _, ErrorKind, Result};
use lockstep_pipelines::file::Variables;

use super::address::{Database, password_variable};
use super::look::{Found, Table, look};
use super::tables::Choice;

/// The publication where nothing speaks against it: the default of the file.
const PUBLICATION: &str = "lockstep";
/// The longest name that PostgreSQL keeps whole.
const LONGEST: usize = 63;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where it is.
    pub database: Database,
    /// What is there.
    pub found: Found,
    /// What is taken of it.
    pub chosen: Vec<Choice>,
}

impl Source {
    /// A source that takes nothing yet.
    pub fn new(database: Database, found: Found) -> Self {
        Source {
            database,
            found,
            chosen: Vec::new(),
        }
    }

    /// Looks into the database. A password that it asks for, and that was not given, comes from the variable that the file will
    /// name, or from `ask`, which gets what the server said.
    ///
    /// # Errors
    /// When the database cannot be reached, or not asked.
    pub async fn open(
        mut database: Database,
        variables: &Variables,
        ask: impl FnOnce(&Database) -> Result<Option<String>>,
    ) -> Result<Self> {
        let refused = match look(&database.target).await {
            Ok(found) => return Ok(Source::new(database, found)),
            Err(error) => error,
        };
        let place = format!("source {}", database.name);
        if refused.kind() != ErrorKind::Authentication || database.target.password.is_some() {
            return Err(refused.at(place));
        }
        let variable = password_variable(&database.name);
        let password = match variables.get(&variable) {
            Some(password) => Some(password.clone()),
            None => ask(&database)?,
        };
        let Some(password) = password else {
            let remedy = format!("put the password into the environment, as {variable}");
            return Err(refused.remedy(remedy).at(place));
        };
        database.unlock(Secret::new(password));
        let found = look(&database.target).await.at(place)?;
        Ok(Source::new(database, found))
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.database.name
    }

    /// The tables that are taken.
    pub fn taken(&self) -> impl Iterator<Item = &Table> {
        self.found.tables.iter().filter(|table| self.takes(table))
    }

    /// Whether a table is taken.
    pub fn takes(&self, table: &Table) -> bool {
        self.chosen.iter().any(|choice| match choice {
            Choice::Table(name) => *name == table.id.to_string(),
            Choice::Schema(schema) => **schema == *table.id.schema,
        })
    }

    /// A slot that nobody has: the one of the source, of the pipeline and the source, or with a number behind it.
    pub fn slot(&self, pipeline: &str) -> String {
        let own = slot_name(&format!("lockstep_{}", self.name()));
        let of_both = slot_name(&format!("lockstep_{pipeline}_{}", self.name()));
        free([own, of_both], |name| {
            !self.found.slots.iter().any(|slot| slot == name)
        })
    }

    /// A publication that has the tables that are taken, or that nobody has.
    pub fn publication(&self, pipeline: &str) -> String {
        let serves = |name: &str| {
            let there = self
                .found
                .publications
                .iter()
                .find(|(this, _)| this == name);
            there.is_none_or(|(_, tables)| {
                self.taken()
                    .all(|table| tables.contains(&table.id.to_string()))
            })
        };
        let own = slot_name(&format!("{PUBLICATION}_{pipeline}"));
        free([PUBLICATION.to_owned(), own], serves)
    }
}

/// The first name that is free, or the last with a number.
fn free(names: [String; 2], is_free: impl Fn(&str) -> bool) -> String {
    if let Some(name) = names.iter().find(|name| is_free(name)) {
        return name.clone();
    }
    let [_, last] = names;
    let last: String = last.chars().take(LONGEST - 4).collect();
    let mut number = 2;
    loop {
        let numbered = format!("{last}_{number}");
        if is_free(&numbered) {
            return numbered;
        }
        number += 1;
    }
}

fn slot_name(text: &str) -> String {
    let clean = text.chars().map(|c| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_lowercase(),
        false => '_',
    });
    clean.take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use lockstep_core::schema::{ReplicaIdentity, TableId};

    use super::*;

    fn source(publications: &[(&str, &[&str])], slots: &[&str]) -> Source {
        let table = |name: &str| Table {
            id: TableId::new("public", name),
            key: vec!["id".to_owned()],
            identity: ReplicaIdentity::Default,
            rows: None,
            bytes: 0,
            grant: None,
        };
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let publications = publications.iter();
        let found = Found {
            tables: vec![table("a"), table("b")],
            publications: publications
                .map(|(name, tables)| ((*name).to_owned(), owned(tables)))
                .collect(),
            slots: owned(slots),
            ..Found::default()
        };
        let database = Database::parse("my-db=postgres://a@h/x", &Variables::new());
        let mut source = Source::new(database.expect("a URL"), found);
        source.chosen = vec![Choice::Table("public.a".to_owned())];
        source
    }

    #[test]
    fn names_on_the_server_are_those_that_nobody_else_has() {
        let free = source(&[], &["other"]);
        assert_eq!(free.slot("shop"), "lockstep_my_db");
        assert_eq!(free.publication("shop"), "lockstep");
        let taken = source(
            &[("lockstep", &["public.b"])],
            &[
                "lockstep_my_db",
                "lockstep_shop_my_db",
                "lockstep_shop_my_db_2",
            ],
        );
        assert_eq!(taken.slot("shop"), "lockstep_shop_my_db_3");
        assert_eq!(taken.publication("shop"), "lockstep_shop");
        let fits = source(&[("lockstep", &["public.a", "public.b"])], &[]);
        assert_eq!(fits.publication("shop"), "lockstep");
        let long = "x".repeat(80);
        assert_eq!(source(&[], &["lockstep_my_db"]).slot(&long).len(), LONGEST);
    }
}
