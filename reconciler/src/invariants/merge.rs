//! Goes over the rows of several results at once, key by key, in bounded memory.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use lockstep_core::query::{QuerySession, Row};
use lockstep_core::{Error, ErrorKind, Result};

use super::Key;

/// Rows that one key may have, all sides together: they are held until they have been looked at.
const ROWS: usize = 10_000;
/// Bytes that they may have.
const BYTES: usize = 8 << 20;

/// One side.
struct Reader {
    source: Arc<str>,
    session: Box<dyn QuerySession>,
    ready: VecDeque<Row>,
    ended: bool,
    last: Option<Key>,
    rows: u64,
}

/// The rows of one key.
#[derive(Debug)]
pub(super) struct Group {
    pub key: Key,
    /// By side.
    pub sides: Vec<Vec<Row>>,
}

/// See the module's page.
pub(super) struct Merge {
    sides: Vec<Reader>,
    /// Columns of the key.
    keys: usize,
}

impl Merge {
    /// Of sessions that have begun to read, with the names of their sources.
    pub fn new(sides: Vec<(Arc<str>, Box<dyn QuerySession>)>, keys: usize) -> Self {
        let sides = sides.into_iter().map(|(source, session)| Reader {
            source,
            session,
            ready: VecDeque::new(),
            ended: false,
            last: None,
            rows: 0,
        });
        Merge {
            sides: sides.collect(),
            keys,
        }
    }

    /// The next key and its rows.
    ///
    /// # Errors
    /// The servers'; of kind `Invalid` when a key is NULL or has too many rows; `Protocol` when rows are out of order.
    pub async fn next(&mut self) -> Result<Option<Group>> {
        let keys = self.keys;
        let mut least: Option<Key> = None;
        for side in &mut self.sides {
            if let Some(key) = side.peek(keys).await?
                && least.as_ref().is_none_or(|least| key < *least)
            {
                least = Some(key);
            }
        }
        let Some(key) = least else {
            return Ok(None);
        };
        let (mut rows, mut bytes) = (0, 0);
        let mut sides = Vec::with_capacity(self.sides.len());
        for side in &mut self.sides {
            let mut of_side = Vec::new();
            while side.peek(keys).await?.as_ref() == Some(&key) {
                let Some(row) = side.ready.pop_front() else {
                    break;
                };
                rows += 1;
                bytes += row.iter().flatten().map(String::len).sum::<usize>();
                if rows > ROWS || bytes > BYTES {
                    let message = format!("more than {ROWS} rows, or 8 MiB, have the key {key:?}");
                    return Err(Error::new(ErrorKind::Invalid, message)
                        .remedy("choose a finer key, or let the query add them up")
                        .at(side.source.to_string()));
                }
                of_side.push(row);
            }
            sides.push(of_side);
        }
        Ok(Some(Group { key, sides }))
    }

    /// Rows that have been read, by side.
    pub fn rows(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.sides.iter().map(|side| (&side.source, side.rows))
    }
}

impl Reader {
    /// The key of the next row.
    async fn peek(&mut self, keys: usize) -> Result<Option<Key>> {
        if self.ready.is_empty() && !self.ended {
            let read = self.session.next().await?;
            self.ended = read.is_empty();
            self.rows += read.len() as u64;
            self.ready = read.into();
        }
        let Some(row) = self.ready.front() else {
            return Ok(None);
        };
        let key: Option<Key> = row[..keys].iter().cloned().collect();
        let key = key.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "a row has NULL in its key")
                .remedy("leave such rows out of the query, or COALESCE the column")
                .at(self.source.to_string())
        })?;
        // A merge of rows that are out of order would find differences that there are not.
        if let Some(last) = &self.last
            && key.cmp(last) == Ordering::Less
        {
            return Err(Error::new(ErrorKind::Protocol, "rows came out of order")
                .at(self.source.to_string()));
        }
        if self.last.as_ref() != Some(&key) {
            self.last = Some(key.clone());
        }
        Ok(Some(key))
    }
}
