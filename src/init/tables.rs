//! Which tables of which source are taken.

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pipelines::file::nearest;

use super::look::Table;
use super::source::Source;
use crate::figures::{Paint, Table as Grid, bytes, count, of};

/// What stands in `tables` of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This table.
    Table(String),
    /// All tables of this schema, those too that come later.
    Schema(String),
}

impl Choice {
    /// As the file has it.
    pub fn pattern(&self) -> String {
        match self {
            Choice::Table(name) => name.clone(),
            Choice::Schema(schema) => format!("{schema}.*"),
        }
    }
}

/// All that every kind of sink takes.
pub fn suggested(tables: &[Table]) -> Vec<Choice> {
    let tables = tables.iter().filter(|table| table.is_suggested());
    tables
        .map(|table| Choice::Table(table.id.to_string()))
        .collect()
}

/// Puts what was asked for to the sources that have it.
///
/// # Errors
/// Of kind `Invalid`: what no source has, or what cannot be taken, with what helps.
pub fn choose(sources: &mut [Source], wanted: &[String]) -> Result<()> {
    for word in wanted
        .iter()
        .map(|word| word.trim())
        .filter(|word| !word.is_empty())
    {
        let mut found = false;
        for source in sources.iter_mut() {
            let prefix = format!("{}.", source.name());
            let own = word.strip_prefix(&prefix).filter(|rest| rest.contains('.'));
            for choice in meant(own.unwrap_or(word), &source.found.tables)? {
                found = true;
                if !source.chosen.contains(&choice) {
                    source.chosen.push(choice);
                }
            }
        }
        if !found {
            return Err(unknown(sources, word));
        }
    }
    Ok(())
}

/// What a word means in one database: nothing when it has nothing of that name.
fn meant(word: &str, tables: &[Table]) -> Result<Vec<Choice>> {
    let named: Vec<&Table> = match word.split_once('.') {
        Some((schema, "*")) => tables
            .iter()
            .filter(|table| &*table.id.schema == schema)
            .collect(),
        Some(_) => tables
            .iter()
            .filter(|table| table.id.to_string() == word)
            .collect(),
        None => tables
            .iter()
            .filter(|table| &*table.id.name == word)
            .collect(),
    };
    for table in &named {
        if let Some((why, remedy)) = table.obstacle() {
            let what = format!("table {} cannot be taken: {why}", table.id);
            return Err(
                Error::new(ErrorKind::Invalid, what).remedy(format!("{remedy}; or leave it out"))
            );
        }
    }
    Ok(match word.strip_suffix(".*") {
        Some(schema) if !named.is_empty() => vec![Choice::Schema(schema.to_owned())],
        _ => named
            .iter()
            .map(|table| Choice::Table(table.id.to_string()))
            .collect(),
    })
}

fn unknown(sources: &[Source], word: &str) -> Error {
    let all = sources.iter().flat_map(|source| &source.found.tables);
    let all: Vec<String> = all.map(|table| table.id.to_string()).collect();
    let bare = word.rsplit('.').next().unwrap_or(word);
    let near = nearest(word, all.iter().map(String::as_str)).or_else(|| {
        let names = all.iter().filter_map(|name| name.split('.').next_back());
        nearest(bare, names)
    });
    let remedy = match (near, all.is_empty()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, true) => "no database has a table that this user can see".to_owned(),
        (None, false) => format!("there are {}", all[..all.len().min(20)].join(", ")),
    };
    Error::new(ErrorKind::Invalid, format!("there is no table {word}")).remedy(remedy)
}

/// For people: every table, and whether it is suggested. Those that can be named by a number have one, beginning behind `before`.
pub fn listing(source: &Source, before: usize, paint: Paint) -> String {
    let mut grid = Grid::new(3, &["", "table", "key", "rows", "size"]);
    let mut aside = String::new();
    let mut number = before;
    for table in &source.found.tables {
        let mark = match table.obstacle() {
            None => {
                number += 1;
                number.to_string()
            }
            Some((why, remedy)) => {
                aside += &format!("    {}: {why}\n      {remedy}\n", table.id);
                "-".to_owned()
            }
        };
        let key = match table.key.is_empty() {
            true => "none".to_owned(),
            false => table.key.join(", "),
        };
        grid.row(vec![
            mark,
            table.id.to_string(),
            key,
            table.rows.map_or_else(|| "?".to_owned(), count),
            bytes(table.bytes),
        ]);
    }
    let mut out = format!(
        "{} {}, PostgreSQL {}, {}\n",
        paint.bold(source.name()),
        source.database.target.label(),
        source.found.version,
        of(source.found.tables.len() as u64, "table", "tables"),
    );
    if !source.found.tables.is_empty() {
        out += &grid.render(paint);
    }
    if !aside.is_empty() {
        out += &format!("  {}\n{aside}", paint.dim("not as they are:"));
    }
    out
}

/// What was answered, with numbers of [`listing`] replaced by the tables they stand for.
///
/// # Errors
/// A number that there is not.
pub fn numbers(sources: &[Source], answer: &str) -> Result<Vec<String>, String> {
    let named = sources.iter().flat_map(|source| {
        let tables = source
            .found
            .tables
            .iter()
            .filter(|table| table.obstacle().is_none());
        tables.map(|table| format!("{}.{}", source.name(), table.id))
    });
    let named: Vec<String> = named.collect();
    let words = answer
        .split([',', ' '])
        .map(str::trim)
        .filter(|word| !word.is_empty());
    words
        .map(|word| match word.parse::<usize>() {
            Ok(number) => {
                let place = number.checked_sub(1).and_then(|at| named.get(at));
                place
                    .cloned()
                    .ok_or_else(|| format!("there is no number {number}"))
            }
            Err(_) => Ok(word.to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use lockstep_core::schema::{ReplicaIdentity, TableId};

    use super::super::address::Database;
    use super::super::look::Found;
    use super::*;

    fn table(name: &str, key: &[&str], identity: ReplicaIdentity) -> Table {
        let (schema, name) = name.split_once('.').expect("a schema");
        Table {
            id: TableId::new(schema, name),
            key: key.iter().map(|&column| column.to_owned()).collect(),
            identity,
            rows: Some(20_000),
            bytes: 4_200_000,
            grant: None,
        }
    }

    fn source(name: &str, tables: Vec<Table>) -> Source {
        let url = format!("{name}=postgres://a@h/{name}");
        let database = Database::parse(&url, &Default::default()).expect("a URL");
        let found = Found {
            version: "17".to_owned(),
            tables,
            ..Found::default()
        };
        Source::new(database, found)
    }

    fn shop() -> Vec<Source> {
        use ReplicaIdentity::{Default, Full, Nothing};
        vec![
            source(
                "orders",
                vec![
                    table("app.log", &[], Full),
                    table("public.audit", &[], Default),
                    table("public.mute", &["id"], Nothing),
                    table("public.orders", &["id"], Default),
                    table("public.shared", &["id"], Default),
                ],
            ),
            source(
                "inventory",
                vec![
                    table("public.shared", &["id"], Default),
                    table("public.stock", &["sku", "warehouse"], Default),
                ],
            ),
        ]
    }

    fn chosen(words: &[&str]) -> Result<[Vec<String>; 2]> {
        let mut sources = shop();
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        choose(&mut sources, &words)?;
        let of = |at: usize| sources[at].chosen.iter().map(Choice::pattern).collect();
        Ok([of(0), of(1)])
    }

    #[test]
    fn words_mean_tables_wherever_they_are() {
        let taken = |words| chosen(words).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            taken(&["orders", "stock"]),
            [vec!["public.orders"], vec!["public.stock"]]
        );
        assert_eq!(
            taken(&["public.shared"]),
            [vec!["public.shared"], vec!["public.shared"]]
        );
        assert_eq!(
            taken(&["inventory.public.shared"]),
            [vec![], vec!["public.shared"]]
        );
        assert_eq!(taken(&["inventory.public.*"]), [vec![], vec!["public.*"]]);
        assert_eq!(taken(&["orders", "public.orders"])[0], ["public.orders"]);
        assert_eq!(taken(&["app.log"])[0], ["app.log"], "queues take it");
    }

    #[test]
    fn what_is_not_there_or_cannot_be_taken_is_told_with_what_helps() {
        for (word, tells) in [
            ("ordres", "did you mean `orders`?"),
            ("public.stok", "did you mean `public.stock`?"),
            ("audit", "ALTER TABLE \"public\".\"audit\" ADD PRIMARY KEY"),
            ("mute", "REPLICA IDENTITY DEFAULT"),
            ("orders.public.*", "public.audit"),
        ] {
            let error = chosen(&[word]).expect_err(word);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(tells), "{word}: {error}");
        }
    }

    #[test]
    fn what_every_sink_takes_is_suggested() {
        let sources = shop();
        let all: Vec<Vec<Choice>> = sources
            .iter()
            .map(|one| suggested(&one.found.tables))
            .collect();
        let names = |at: usize| -> Vec<String> { all[at].iter().map(Choice::pattern).collect() };
        assert_eq!(names(0), ["public.orders", "public.shared"]);
        assert_eq!(names(1), ["public.shared", "public.stock"]);
    }

    #[test]
    fn the_list_has_numbers_and_says_what_keeps_others_away() {
        let sources = shop();
        let text = listing(&sources[0], 0, Paint::default());
        assert!(
            text.starts_with("orders h:5432/orders, PostgreSQL 17, 5 tables\n"),
            "{text}"
        );
        assert!(
            text.contains("  1  app.log        none  20,000  4.2 MB\n"),
            "{text}"
        );
        assert!(text.contains("  -  public.audit   none"), "{text}");
        assert!(
            text.contains("public.audit: it has no primary key\n"),
            "{text}"
        );
        assert_eq!(
            numbers(&sources, "2, 5 app.log").expect("all there"),
            ["orders.public.orders", "inventory.public.stock", "app.log"]
        );
        assert!(numbers(&sources, "6").is_err() && numbers(&sources, "0").is_err());
    }
}
