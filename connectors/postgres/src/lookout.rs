//! Looks at the catalog for what the stream never says: a table that left the publication or was created anew sends
//! nothing, and nothing is what an idle table sends too.

use std::collections::{BTreeMap, HashSet};

use lockstep_core::error::Result;
use lockstep_core::folder::Folder;
use lockstep_core::schema::{ReplicaIdentity, TableId, TableSchema};
use lockstep_core::source::Notice;
use lockstep_pg::sql::{self, quote_ident};
use tokio_postgres::Client;

use crate::catalog::{Published, facts, identity_of, require_identity};
use crate::publication::{self, Publication, Wanted, matches};

/// Partitions that came or went, of which the latest are told.
const MOVES: usize = 20;
/// For errors.
const DOING: &str = "look at the tables";

/// Compares the tables that a source carries with what the catalog says of them.
pub struct Lookout {
    publication: String,
    patterns: Vec<String>,
    /// Of the server, as `server_version_num`.
    version: u32,
    carried: Vec<Carried>,
    /// At the last look, which may have been an earlier run's.
    partitions: Partitions,
    record: Record,
    /// What has happened to partitions: told for as long as this lives.
    moves: Vec<Notice>,
    /// What the last look had to tell.
    told: Vec<Notice>,
}

/// By root: its partitions and itself, by oid, with their names.
type Partitions = BTreeMap<u32, BTreeMap<u32, String>>;

/// The partitions on disk: what comes and goes while nobody looks is told at the next start.
struct Record {
    folder: Folder,
    kept: Partitions,
    failed: bool,
}

/// The name of the document in the source's state directory.
const NAME: &str = "partitions.json";

impl Record {
    fn open(folder: &Folder) -> Self {
        let read = folder.read(NAME).and_then(|bytes| {
            let parsed = bytes
                .map(|bytes| serde_json::from_slice(&bytes))
                .transpose()?;
            Ok(parsed.unwrap_or_default())
        });
        let kept = read.unwrap_or_else(|error| {
            let path = folder.join(NAME);
            tracing::warn!(path = %path.display(), %error, "cannot be read; partitions that came or went while lockstep did not run are not told");
            Partitions::new()
        });
        Record {
            folder: folder.clone(),
            kept,
            failed: false,
        }
    }

    fn keep(&mut self, partitions: &Partitions) {
        if self.kept == *partitions {
            return;
        }
        let written = self.folder.replace(NAME, partitions);
        match &written {
            Ok(()) => self.kept.clone_from(partitions),
            Err(error) if !self.failed => {
                tracing::warn!(%error, "the partitions cannot be kept; it is tried again");
            }
            Err(_) => {}
        }
        self.failed = written.is_err();
    }
}

/// Keeps the partitions of tables of which nothing is on record yet: what is attached from now on is told. Before the slot
/// is made, or rows of a partition that comes while the first copy begins would be missed by all.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn remember_partitions<'a>(
    client: &Client,
    tables: impl Iterator<Item = &'a TableSchema>,
    folder: &Folder,
) -> Result<()> {
    let mut record = Record::open(folder);
    let relations: Vec<u32> = tables
        .map(|table| table.relation)
        .filter(|relation| !record.kept.contains_key(relation))
        .collect();
    let mut now = record.kept.clone();
    for partition in partitions(client, &relations).await? {
        let known = now.entry(partition.root).or_default();
        known.insert(partition.relation, partition.name);
    }
    record.keep(&now);
    Ok(())
}

/// What a look has found.
pub struct Sight {
    /// What there is to tell.
    pub notices: Vec<Notice>,
    /// A table that is to be followed, and is not: the publication has it, or can get it.
    pub grown: Option<TableId>,
}

/// A table as the source knows it.
struct Carried {
    relation: u32,
    id: TableId,
    /// Names of the key columns, in key order.
    key: Vec<String>,
}

/// A table as the catalog has it.
#[derive(Debug)]
struct Found {
    id: TableId,
    identity: ReplicaIdentity,
    /// Columns that identify its rows, in key order.
    key: Vec<String>,
}

/// A partition as the catalog has it.
struct Partition {
    root: u32,
    relation: u32,
    name: String,
    /// It was a table before it became a partition, and may have had rows.
    attached: bool,
}

impl Lookout {
    /// A lookout for the tables that `patterns` name in a publication, as the source carries them. What has to be known from
    /// one run to the next is kept in `folder`.
    pub fn new<'a>(
        publication: &str,
        patterns: &[String],
        version: u32,
        tables: impl Iterator<Item = &'a TableSchema>,
        folder: &Folder,
    ) -> Self {
        let record = Record::open(folder);
        let carried = tables.map(|schema| Carried {
            relation: schema.relation,
            id: schema.origin.clone(),
            key: schema
                .key_columns()
                .map(|column| column.name.to_string())
                .collect(),
        });
        Lookout {
            publication: publication.to_owned(),
            patterns: patterns.to_vec(),
            version,
            carried: carried.collect(),
            partitions: record.kept.clone(),
            record,
            moves: Vec::new(),
            told: Vec::new(),
        }
    }

    /// What there is to tell now. What was not told before is logged.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn look(&mut self, client: &Client) -> Result<Sight> {
        let published = publication::read(client, &self.publication, self.version).await?;
        let found = tables(client, &self.carried).await?;
        let relations: Vec<u32> = self.carried.iter().map(|table| table.relation).collect();
        let partitions = partitions(client, &relations).await?;
        let known = self.partitions.values().flat_map(BTreeMap::keys).copied();
        let gone: Vec<u32> = known
            .filter(|known| !partitions.iter().any(|now| now.relation == *known))
            .collect();
        let there = existing(client, &gone).await?;
        let mut notices = self.of_publication(published.as_ref());
        for table in &self.carried {
            notices.extend(self.of_table(table, &found, published.as_ref()));
        }
        self.note_partitions(partitions, &there);
        notices.extend(self.moves.iter().cloned());
        let grown = match &published {
            Some(published) => self.grown(client, published, &mut notices).await?,
            None => None,
        };
        for notice in notices.iter().filter(|notice| !self.told.contains(notice)) {
            tracing::warn!(remedy = notice.remedy, "{} {}", notice.subject, notice.what);
        }
        self.told.clone_from(&notices);
        self.record.keep(&self.partitions);
        Ok(Sight { notices, grown })
    }

    /// A table that is to be followed; those that cannot be yet are told.
    async fn grown(
        &self,
        client: &Client,
        publication: &Publication,
        notices: &mut Vec<Notice>,
    ) -> Result<Option<TableId>> {
        let is_new = |table: &&Published| {
            let mut patterns = self.patterns.iter();
            let is_carried = |known: &Carried| known.relation == table.relation;
            patterns.any(|pattern| matches(pattern, &table.id))
                && !self.carried.iter().any(is_carried)
        };
        for table in publication.tables.iter().filter(is_new) {
            let Some(facts) = facts(client, table.relation).await? else {
                continue;
            };
            match require_identity(&table.id, &facts) {
                Ok(()) => return Ok(Some(table.id.clone())),
                Err(error) => notices.push(Notice {
                    subject: format!("table {}", table.id),
                    what: format!(
                        "is in the publication, and is not followed: {}",
                        error.message()
                    ),
                    remedy: "give it a primary key: it is then loaded".to_owned(),
                    gap: false,
                }),
            }
        }
        let wanted = Wanted {
            name: &self.publication,
            patterns: &self.patterns,
        };
        let carried = self.carried.iter();
        let known = carried
            .map(|table| (table.id.to_string(), table.relation.into()))
            .collect();
        let more = wanted.addable(client, publication, &known).await?;
        Ok(more.into_iter().next().map(|table| table.id))
    }

    /// What concerns more than one table, and tables that nobody carries.
    fn of_publication(&self, published: Option<&Publication>) -> Vec<Notice> {
        let name = quote_ident(&self.publication);
        let subject = format!("publication {}", self.publication);
        let Some(published) = published else {
            return vec![Notice {
                subject,
                what: "is gone, and with it all changes since".to_owned(),
                remedy: format!(
                    "restart lockstep, which creates it (or CREATE PUBLICATION {name} FOR TABLE …), then load every table: lockstep snapshot FILE --table T"
                ),
                gap: true,
            }];
        };
        let mut notices = Vec::new();
        if !published.complete {
            notices.push(Notice {
                subject,
                what: "leaves out some operations".to_owned(),
                remedy: format!(
                    "ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate'), then load what was changed meanwhile: lockstep snapshot FILE --table T"
                ),
                gap: true,
            });
        }
        notices
    }

    fn of_table(
        &self,
        table: &Carried,
        found: &BTreeMap<u32, Found>,
        published: Option<&Publication>,
    ) -> Option<Notice> {
        let notice = |what: String, remedy: String, gap| {
            Some(Notice {
                subject: format!("table {}", table.id),
                what,
                remedy,
                gap,
            })
        };
        let (id, publication) = (&table.id, quote_ident(&self.publication));
        let add = format!(
            "ALTER PUBLICATION {publication} ADD TABLE {}.{}",
            quote_ident(&id.schema),
            quote_ident(&id.name)
        );
        let heir = published.and_then(|all| all.tables.iter().find(|other| other.id == *id));
        let load = format!("lockstep snapshot FILE --table {id}");
        let Some(now) = found.get(&table.relation) else {
            let others = found.values().any(|other| other.id == *id);
            return match (heir, others) {
                // In a moment it is emptied and loaded: see `grown`.
                (Some(_), _) => None,
                (None, true) => notice(
                    "was dropped and created anew, and the new one is not in the publication: its changes do not come".to_owned(),
                    format!("{add}; it is then emptied in the sinks, and loaded"),
                    true,
                ),
                (None, false) => notice(
                    "was dropped; sinks keep its rows".to_owned(),
                    "take it out of `tables` before the next start, and delete its keys, index or topic when nobody needs them".to_owned(),
                    false,
                ),
            };
        };
        if now.id != *id {
            return notice(
                format!(
                    "was renamed to {}: the pipeline stops when a row of it comes",
                    now.id
                ),
                format!(
                    "rename it back, or put {} in its place (in `tables`, transforms and inputs), restart lockstep, then load it under its new name: lockstep snapshot FILE --table {0}",
                    now.id
                ),
                true,
            );
        }
        // A publication that is gone is told once, not for each of its tables.
        if published.is_some() && heir.is_none() {
            return notice(
                format!(
                    "is not in the publication {} any more: its changes do not come",
                    self.publication
                ),
                format!("{add}, then {load}; or take it out of `tables`"),
                true,
            );
        }
        let is_mute = match now.identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index => now.key.is_empty(),
            ReplicaIdentity::Nothing => true,
            ReplicaIdentity::Full => false,
        };
        if is_mute {
            return notice(
                "has nothing to identify its rows by: the server refuses UPDATE and DELETE of it"
                    .to_owned(),
                "ALTER TABLE … ADD PRIMARY KEY, or REPLICA IDENTITY FULL (queues only)".to_owned(),
                false,
            );
        }
        if now.key != table.key {
            return notice(
                format!(
                    "is keyed by ({}) now and was by ({})",
                    now.key.join(", "),
                    table.key.join(", ")
                ),
                format!(
                    "where only names have changed, Kafka's keys have another name in them and nothing else is to be done; else sinks hold rows under their old keys: restart lockstep, then {load} --truncate"
                ),
                false,
            );
        }
        None
    }

    /// Compares partitions with those of the last look. `there` are those that are gone from among them and still tables.
    fn note_partitions(&mut self, now: Vec<Partition>, there: &HashSet<u32>) {
        let mut before = std::mem::take(&mut self.partitions);
        for partition in now {
            let known = before.get_mut(&partition.root);
            let is_first_look = known.is_none();
            let was_there = known.is_some_and(|known| known.remove(&partition.relation).is_some());
            let name = &partition.name;
            if !is_first_look && !was_there && partition.attached {
                self.moves.push(self.of_partition(
                    partition.root,
                    format!("got the partition {name}; rows that it had before are not in the stream"),
                    |root| format!("lockstep snapshot FILE --table {root} --where …, with the bounds of {name}"),
                ));
            }
            self.partitions
                .entry(partition.root)
                .or_default()
                .insert(partition.relation, partition.name);
        }
        for (root, gone) in before {
            // A root that is gone is told as such.
            if !self.partitions.contains_key(&root) {
                continue;
            }
            for (relation, name) in gone {
                let how = if there.contains(&relation) {
                    "detached"
                } else {
                    "dropped"
                };
                self.moves.push(self.of_partition(
                    root,
                    format!("lost the partition {name} ({how}); no DELETE comes for its rows, and state sinks keep them"),
                    |_| "delete them there if they are to go, or let them expire (`ttl`); DELETE before detaching or dropping to have it done".to_owned(),
                ));
            }
        }
        let surplus = self.moves.len().saturating_sub(MOVES);
        self.moves.drain(..surplus);
    }

    fn of_partition(&self, root: u32, what: String, remedy: impl Fn(&TableId) -> String) -> Notice {
        let unknown = TableId::new("", "");
        let table = self.carried.iter().find(|table| table.relation == root);
        let id = table.map_or(&unknown, |table| &table.id);
        Notice {
            subject: format!("table {id}"),
            what,
            remedy: remedy(id),
            gap: false,
        }
    }
}

/// The tables that are carried, by oid, and those that have a name of theirs.
async fn tables(client: &Client, carried: &[Carried]) -> Result<BTreeMap<u32, Found>> {
    const LOOK: &str = "\
SELECT c.oid, n.nspname::text, c.relname::text, c.relreplident::text, \
       (SELECT array_agg(a.attname::text ORDER BY k.n) FROM pg_catalog.pg_index i \
        CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n) \
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
        WHERE i.indrelid = c.oid AND k.n <= i.indnkeyatts \
        AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END) \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind IN ('r', 'p') \
AND (c.oid = ANY ($1) OR (n.nspname::text, c.relname::text) IN (SELECT * FROM unnest($2::text[], $3::text[])))";
    let relations: Vec<u32> = carried.iter().map(|table| table.relation).collect();
    let schemas: Vec<&str> = carried.iter().map(|table| &*table.id.schema).collect();
    let names: Vec<&str> = carried.iter().map(|table| &*table.id.name).collect();
    let rows = sql::query(client, DOING, LOOK, &[&relations, &schemas, &names]).await?;
    let found = rows.iter().map(|row| {
        let identity: &str = row.get(3);
        let found = Found {
            id: TableId::new(row.get(1), row.get(2)),
            identity: identity_of(identity.bytes().next().unwrap_or(b'd')),
            key: row.get::<_, Option<_>>(4).unwrap_or_default(),
        };
        (row.get(0), found)
    });
    Ok(found.collect())
}

/// The partitions of those that are partitioned, and these themselves.
async fn partitions(client: &Client, relations: &[u32]) -> Result<Vec<Partition>> {
    // A partition that was created as one got its row in pg_inherits from the transaction that made its columns; of the
    // system's own columns there is nothing that would be updated later.
    const LOOK: &str = "\
SELECT c.oid, t.relid::oid, t.relid::text, i.xmin <> a.xmin \
FROM pg_catalog.pg_class c CROSS JOIN LATERAL pg_catalog.pg_partition_tree(c.oid) t \
LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid = t.relid AND t.level > 0 \
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = t.relid AND a.attnum = -1 \
WHERE c.relkind = 'p' AND c.oid = ANY ($1)";
    let rows = sql::query(client, DOING, LOOK, &[&relations]).await?;
    let partitions = rows.iter().map(|row| Partition {
        root: row.get(0),
        relation: row.get(1),
        name: row.get(2),
        attached: row.get::<_, Option<bool>>(3).unwrap_or(false),
    });
    Ok(partitions.collect())
}

/// Those that are still tables.
async fn existing(client: &Client, relations: &[u32]) -> Result<HashSet<u32>> {
    if relations.is_empty() {
        return Ok(HashSet::new());
    }
    let look = "SELECT oid FROM pg_catalog.pg_class WHERE oid = ANY ($1)";
    let rows = sql::query(client, DOING, look, &[&relations]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
