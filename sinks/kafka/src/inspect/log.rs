//! What one topic says of the rows of its tables.

use std::borrow::Cow;
use std::time::Instant;

use lockstep_core::schema::TableSchema;
use lockstep_encode::envelope::Format;
use lockstep_encode::envelope::read::{Image, Place, Said, members};

use super::digest::{Digest, Digests};
use super::index::{At, Full, Index, Record, SHAPES, Says};

/// Tables that are told apart in one topic; further ones are one.
const OWNERS: usize = 1 << 12;

/// Whose rows they are: source, schema and table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner(Box<str>, Box<str>, Box<str>);

impl Owner {
    pub(super) fn of(schema: &TableSchema) -> Self {
        let origin = &schema.origin;
        Owner(
            (*schema.source).into(),
            (*origin.schema).into(),
            (*origin.name).into(),
        )
    }

    pub(super) fn is(&self, place: &Place<'_>) -> bool {
        *self.0 == *place.name && *self.1 == *place.schema && *self.2 == *place.table
    }
}

/// A record as it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    pub at: At,
    pub stamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// It names the change that it is of.
    pub has_id: bool,
}

/// Records of which no consumer can tell what row they are about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keyless {
    pub first: At,
    pub count: u64,
}

/// How a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// As it should be.
    Same,
    /// Not there.
    Missing,
    /// Not as it should be, as far as digests tell.
    Suspect(At),
}

/// See the module's page.
pub(super) struct Log {
    format: Format,
    digests: Digests,
    /// The tables whose rows are in it. Those of one are not told apart from anything else, as little as consumers and
    /// compaction do.
    owners: Vec<Owner>,
    pub(super) index: Index,
    /// Columns that rows lack, sorted; none first.
    shapes: Vec<Box<[Box<str>]>>,
    /// By partition: what comes next, and where it begins.
    pub(super) next: Vec<i64>,
    pub(super) starts: Vec<i64>,
    /// Records have gone by their age or by the size of the topic, so that one that is not there proves nothing.
    pub(super) expired: bool,
    /// Those that are no changes either, by partition.
    pub(super) strange: Vec<Keyless>,
    /// Changes of rows from before the table had a key.
    pub(super) unkeyed: u64,
    /// When it was last read to its end.
    pub(super) read: Option<Instant>,
    /// Which of the topics was asked for last.
    pub(super) used: u64,
}

impl Log {
    pub(super) fn new(format: Format, digests: Digests, owners: Vec<Owner>) -> Self {
        Log {
            format,
            digests,
            owners,
            index: Index::new(),
            shapes: vec![Box::default()],
            next: Vec::new(),
            starts: Vec::new(),
            expired: false,
            strange: Vec::new(),
            unkeyed: 0,
            read: None,
            used: 0,
        }
    }

    /// Whether it was read for these tables.
    pub(super) fn is_of(&self, owners: &[Owner]) -> bool {
        match owners {
            [_] => self.owners == owners,
            _ => self.is_shared() && owners.iter().all(|owner| self.owners.contains(owner)),
        }
    }

    /// Whether its tables are told apart.
    pub(super) fn is_shared(&self) -> bool {
        self.owners.len() > 1
    }

    /// The number of a table.
    pub(super) fn owner(&self, owner: &Owner) -> u16 {
        match self.is_shared() {
            true => self
                .owners
                .iter()
                .position(|known| known == owner)
                .unwrap_or(0) as u16,
            false => 0,
        }
    }

    /// The number of the table that a record is about, as far as tables are told apart.
    fn placed(&mut self, place: &Place<'_>) -> u16 {
        if !self.is_shared() {
            return 0;
        }
        let known = self.owners.iter().position(|owner| owner.is(place));
        let number = known.unwrap_or_else(|| {
            if self.owners.len() < OWNERS {
                let Place {
                    name,
                    schema,
                    table,
                } = place;
                let text = |text: &Cow<'_, str>| Box::from(&**text);
                self.owners
                    .push(Owner(text(name), text(schema), text(table)));
            }
            self.owners.len() - 1
        });
        number as u16
    }

    /// The hash of a key of a table.
    pub(super) fn key(&self, owner: u16, key: &[u8]) -> Digest {
        self.digests.key(owner, key)
    }

    /// Takes in what a record says. With `room`, the most bytes that its index may take.
    pub(super) fn take(&mut self, raw: &Raw<'_>, room: usize) -> Result<(), Full> {
        let format = self.format;
        let reading = raw.value.map(|value| format.read(value));
        let record = |owner, says| Record {
            at: raw.at,
            stamp: raw.stamp,
            owner,
            says,
        };
        match (raw.key, reading) {
            (Some(key), Some(Some(reading))) => {
                let owner = self.placed(&reading.place);
                let says = match &reading.said {
                    Said::Row(image) => self.row(image),
                    Said::Gone => Says::Gone,
                    Said::Truncated | Said::Nothing => return Ok(()),
                };
                let key = self.key(owner, key);
                self.index.put(key, record(owner, says), room)
            }
            // The delete before it has said whose row it was. Without one the key is nobody's any more.
            (Some(_), None) if self.is_shared() && raw.has_id => Ok(()),
            (Some(key), None) => (0..self.owners.len() as u16).try_for_each(|owner| {
                let key = self.key(owner, key);
                self.index.put(key, record(owner, Says::Gone), room)
            }),
            // Whoever reads the key finds this.
            (Some(key), Some(None)) => (0..self.owners.len() as u16).try_for_each(|owner| {
                let key = self.key(owner, key);
                match self.is_shared() && self.index.get(key).is_none() {
                    true => Ok(()),
                    false => self.index.put(key, record(owner, Says::Broken), room),
                }
            }),
            (None, Some(Some(reading))) => {
                match reading.said {
                    Said::Truncated => {
                        let owner = self.placed(&reading.place);
                        self.index.truncate(owner, raw.at.partition);
                    }
                    Said::Nothing => {}
                    Said::Row(_) | Said::Gone => self.unkeyed += 1,
                }
                Ok(())
            }
            (None, None | Some(None)) => {
                let partition = raw.at.partition;
                let same = |known: &&mut Keyless| known.first.partition == partition;
                match self.strange.iter_mut().find(same) {
                    Some(known) => known.count += 1,
                    None => self.strange.push(Keyless {
                        first: raw.at,
                        count: 1,
                    }),
                }
                Ok(())
            }
        }
    }

    /// A row, with the columns that it has.
    fn row(&mut self, image: &Image<'_>) -> Says {
        let same = |shape: &[Box<str>]| {
            let mut pairs = shape.iter().zip(&image.unchanged);
            shape.len() == image.unchanged.len() && pairs.all(|(one, other)| **one == **other)
        };
        let known = self.shapes.iter().position(|shape| same(shape));
        let shape = known.unwrap_or_else(|| {
            let names = image.unchanged.iter().map(|name| Box::from(&**name));
            if self.shapes.len() < usize::from(SHAPES) {
                self.shapes.push(names.collect());
                self.shapes.len() - 1
            } else {
                usize::from(SHAPES)
            }
        });
        match u16::try_from(shape) {
            Ok(shape) if shape < SHAPES => Says::Row(self.digests.row(image, &[]), shape),
            // The record itself has to be looked at.
            _ => Says::Broken,
        }
    }

    /// Where the latest record of a key is, when it says that there is a row and has not expired.
    pub(super) fn latest(&self, key: Digest) -> Option<Record> {
        let record = self.index.get(key)?;
        let start = usize::try_from(record.at.partition)
            .ok()
            .and_then(|partition| self.starts.get(partition));
        start
            .is_none_or(|start| record.at.offset >= *start)
            .then_some(record)
    }

    /// How a key stands that should have this row, or none.
    pub(super) fn standing(&self, owner: u16, key: &[u8], row: Option<&str>) -> Standing {
        let Some(record) = self.latest(self.key(owner, key)) else {
            return match row {
                Some(_) if !self.expired => Standing::Missing,
                _ => Standing::Same,
            };
        };
        let Some(row) = row else {
            return Standing::Suspect(record.at);
        };
        let expected = members(row.as_bytes()).map(|members| Image {
            text: row,
            unchanged: Vec::new(),
            members,
        });
        match (record.says, expected) {
            (Says::Row(digest, shape), Some(expected)) => {
                let without = self.shapes.get(usize::from(shape));
                let without = without.map_or(&[][..], |names| names);
                match self.digests.row(&expected, without) == digest {
                    true => Standing::Same,
                    false => Standing::Suspect(record.at),
                }
            }
            _ => Standing::Suspect(record.at),
        }
    }
}

#[cfg(test)]
mod tests;
