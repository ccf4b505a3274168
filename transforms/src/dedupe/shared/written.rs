//! The notes of a batch over Redis: filled from an answer, asked by the judge, and gathered for a write.

use lockstep_core::{Error, ErrorKind, Result};
use redis::Value;

use super::super::digest::Digest;
use super::super::history::{Claim, Fact, History, Moment, Standing};
use super::super::judge::{Memory, Stood};
use super::super::notes::{Entry, Logs, Notes, Table};

/// Puts histories where they belong, which come in the table's own order. `None` when they are none.
pub(super) fn fill<F: Fact>(
    table: &mut Table<F>,
    values: Option<Value>,
    logs: &Logs,
) -> Option<()> {
    let Some(Value::Array(values)) = values else {
        return None;
    };
    if values.len() != table.len() {
        return None;
    }
    for (entry, value) in table.values_mut().zip(values) {
        match value {
            Value::Nil => {}
            Value::BulkString(stored) => {
                entry.history = History::read(&stored)?;
                entry.history.forget(|log| logs.counts(log));
                entry.stored = stored;
            }
            _ => return None,
        }
    }
    Some(())
}

/// A history that is to be written.
pub(super) struct Changed {
    pub(super) is_key: bool,
    pub(super) digest: Digest,
    pub(super) was: Vec<u8>,
    pub(super) is: Vec<u8>,
    /// What it ages from.
    pub(super) since: i64,
}

/// Adds what the batch has changed.
pub(super) fn collect<F: Fact>(table: &Table<F>, is_key: bool, out: &mut Vec<Changed>) {
    let changed = table.iter().filter(|(_, entry)| entry.changed);
    out.extend(changed.map(|(digest, entry)| {
        let mut is = Vec::new();
        entry.history.write(&mut is);
        Changed {
            is_key,
            digest: *digest,
            was: entry.stored.clone(),
            is,
            since: entry.history.latest().map_or(0, Fact::since),
        }
    }));
}

impl Notes {
    fn claims_of(&mut self, key: Digest) -> Result<&mut Entry<Claim>> {
        self.claims.get_mut(&key).ok_or_else(unfetched)
    }

    fn row(&mut self, row: Digest) -> Result<&mut Entry<Standing>> {
        self.rows.get_mut(&row).ok_or_else(unfetched)
    }
}

fn unfetched() -> Error {
    let message = "the judge asks about something that was not looked up";
    Error::new(ErrorKind::Protocol, message).remedy("this is a defect of lockstep; report it")
}

impl Memory for Notes {
    fn claim(&mut self, key: Digest, now: &Moment) -> Result<Option<Claim>> {
        Ok(self.claims_of(key)?.history.known(now).copied())
    }

    fn add_claim(&mut self, key: Digest, claim: Claim) -> Result<()> {
        let entry = self.claims_of(key)?;
        entry.history.add(claim);
        entry.changed = true;
        Ok(())
    }

    fn standing(&mut self, row: Digest, now: &Moment) -> Result<Stood> {
        Ok(Stood::of(&self.row(row)?.history, now))
    }

    fn add_standing(&mut self, row: Digest, standing: Standing) -> Result<()> {
        let entry = self.row(row)?;
        entry.history.add(standing);
        entry.changed = true;
        Ok(())
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn sequence(&self) -> u64 {
        self.sequence
    }
}
