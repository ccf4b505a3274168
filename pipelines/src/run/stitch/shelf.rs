//! What waits to go on: batches as they came, in memory up to a limit and behind that in a file.
//!
//! The file is read by the process that wrote it, and by nobody else: what waits has not been confirmed, and comes again at
//! the next start.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::batch::{Batch, Folded};
use lockstep_core::memory::Budget;
use lockstep_core::{Error, ErrorKind, Result};

/// See the module's page.
pub(super) struct Shelf {
    path: PathBuf,
    file: Option<File>,
    /// Where the file is written next; nothing behind it is needed.
    end: u64,
    /// Batches in the file.
    filed: usize,
    filed_bytes: u64,
    /// Bytes that may be kept in memory, and that are.
    limit: usize,
    held: usize,
    /// By numbers that count up.
    batches: BTreeMap<u64, Kept>,
    next: u64,
}

struct Kept {
    state: State,
    size: usize,
    changes: usize,
    /// How many parts of it have not been taken.
    left: usize,
}

enum State {
    Memory(Arc<Batch>),
    File {
        offset: u64,
        length: usize,
        folded: Box<Folded>,
    },
}

/// Changes of a batch that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub batch: u64,
    pub from: usize,
    pub to: usize,
    /// How many parts it counts for.
    pub parts: usize,
}

/// What a batch takes of the pipeline's budget, which counts in units: many small ones take more than their bytes.
fn taken(batch: &Batch) -> usize {
    batch.size().div_ceil(Budget::UNIT).max(1) * Budget::UNIT
}

impl Slice {
    /// The two as one, where the other follows.
    pub fn and(self, next: Slice) -> Option<Slice> {
        (self.batch == next.batch && self.to == next.from).then_some(Slice {
            to: next.to,
            parts: self.parts + next.parts,
            ..self
        })
    }
}

impl Shelf {
    /// With a file in `directory`, once one is needed.
    pub fn new(directory: &Path, limit: usize) -> Self {
        Shelf {
            path: directory.join("waiting"),
            file: None,
            end: 0,
            filed: 0,
            filed_bytes: 0,
            limit,
            held: 0,
            batches: BTreeMap::new(),
            next: 0,
        }
    }

    /// Keeps a batch that will be taken in so many parts. Gives its number.
    pub fn put(&mut self, batch: Arc<Batch>, parts: usize) -> u64 {
        self.next += 1;
        if parts > 0 {
            let size = taken(&batch);
            self.held += size;
            let kept = Kept {
                changes: batch.changes().len(),
                state: State::Memory(batch),
                size,
                left: parts,
            };
            self.batches.insert(self.next, kept);
        }
        self.next
    }

    /// Takes a part.
    ///
    /// # Errors
    /// Of kind `Storage` when it cannot be read back.
    pub fn take(&mut self, slice: Slice) -> Result<Batch> {
        let whole = self.whole(slice.batch)?;
        let all = slice.from == 0 && slice.to == whole.changes().len();
        self.let_go(slice);
        Ok(if all {
            super::super::batches::owned(whole)
        } else {
            whole.with_changes(whole.changes()[slice.from..slice.to].to_vec())
        })
    }

    /// Bytes of a part, about.
    pub fn share(&self, slice: Slice) -> usize {
        let Some(kept) = self.batches.get(&slice.batch) else {
            return 0;
        };
        kept.size * (slice.to - slice.from) / kept.changes.max(1)
    }

    /// A part will not be taken.
    pub fn let_go(&mut self, slice: Slice) {
        let Some(kept) = self.batches.get_mut(&slice.batch) else {
            return;
        };
        kept.left = kept.left.saturating_sub(slice.parts);
        if kept.left > 0 {
            return;
        }
        match kept.state {
            State::Memory(_) => self.held -= kept.size,
            State::File { length, .. } => self.unfiled(length),
        }
        self.batches.remove(&slice.batch);
    }

    /// Puts into the file what is too much for memory, the last that came first: it waits longest.
    ///
    /// # Errors
    /// Of kind `Storage` or `Full` when it cannot be written.
    pub fn settle(&mut self) -> Result<()> {
        let mut at = u64::MAX;
        while self.held > self.limit {
            let in_memory = self.batches.range(..at).rev();
            let mut in_memory =
                in_memory.filter(|(_, kept)| matches!(kept.state, State::Memory(_)));
            let Some((&number, _)) = in_memory.next() else {
                return Ok(());
            };
            self.put_away(number)?;
            at = number;
        }
        Ok(())
    }

    /// Bytes in the file.
    pub fn filed(&self) -> u64 {
        self.filed_bytes
    }

    fn put_away(&mut self, number: u64) -> Result<()> {
        let Some(Kept {
            state: State::Memory(batch),
            ..
        }) = self.batches.get(&number)
        else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        let folded = batch.fold(&mut bytes);
        let offset = self.end;
        self.file()?
            .write_all_at(&bytes, offset)
            .map_err(|error| self.failed("write", error))?;
        self.end += bytes.len() as u64;
        self.filed += 1;
        self.filed_bytes += bytes.len() as u64;
        if let Some(kept) = self.batches.get_mut(&number) {
            self.held -= kept.size;
            kept.state = State::File {
                offset,
                length: bytes.len(),
                folded: Box::new(folded),
            };
        }
        Ok(())
    }

    /// The batch, in memory again.
    fn whole(&mut self, number: u64) -> Result<Arc<Batch>> {
        let Some(kept) = self.batches.get(&number) else {
            return Err(Error::new(
                ErrorKind::Protocol,
                "a batch that waits is gone",
            ));
        };
        let (offset, length) = match &kept.state {
            State::Memory(batch) => return Ok(Arc::clone(batch)),
            State::File { offset, length, .. } => (*offset, *length),
        };
        let mut bytes = vec![0; length];
        self.file()?
            .read_exact_at(&mut bytes, offset)
            .map_err(|error| self.failed("read", error))?;
        let Some(kept) = self.batches.get_mut(&number) else {
            return Err(Error::new(
                ErrorKind::Protocol,
                "a batch that waits is gone",
            ));
        };
        let State::File { folded, .. } = &kept.state else {
            return Err(Error::new(ErrorKind::Protocol, "a batch is in two places"));
        };
        let batch = Arc::new(folded.unfold(&bytes.into())?);
        kept.state = State::Memory(Arc::clone(&batch));
        self.held += kept.size;
        self.unfiled(length);
        Ok(batch)
    }

    /// So much of the file is not needed any more; without anything in it, it begins anew.
    fn unfiled(&mut self, length: usize) {
        self.filed -= 1;
        self.filed_bytes -= length as u64;
        if self.filed == 0 {
            self.end = 0;
            if let Some(file) = &self.file {
                // What is left of it is overwritten.
                let _ = file.set_len(0);
            }
        }
    }

    fn file(&mut self) -> Result<&File> {
        if self.file.is_none() {
            let opened = File::options()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .open(&self.path);
            self.file = Some(opened.map_err(|error| self.failed("open", error))?);
        }
        self.file
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Storage, "there is no file"))
    }

    fn failed(&self, doing: &str, error: std::io::Error) -> Error {
        Error::new(
            ErrorKind::of_storage(&error),
            format!("cannot {doing} {}", self.path.display()),
        )
        .source(error)
        .remedy("transactions that wait for their other branches are kept there; make room, or raise `memory` of the `stitch`")
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::batch::{BatchBuilder, Cell, Op, Phase, Transaction};
    use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
    use lockstep_core::schema::TableSchema;

    use super::*;

    /// Four changes, each a message with a letter of `text`.
    fn batch(text: &'static str) -> Arc<Batch> {
        let mut builder = BatchBuilder::new();
        builder.begin(Transaction {
            commit: Lsn(10),
            commit_micros: 0,
            xid: 1,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        });
        let schema = builder.schema(&Arc::new(TableSchema::message("a".into())));
        for at in 0..4 {
            let start = builder.cells().len();
            let letter = Cell::text(at, 1);
            builder.cells().extend([letter, letter]);
            let ordinal = u64::from(at) + 1;
            builder.push(Op::Message, schema, ordinal, Lsn(9), None, Some(start));
        }
        let source = SourceInfo {
            name: "a".into(),
            identity: SourceIdentity {
                system: 1,
                timeline: 1,
                incarnation: 0,
                database: "a".into(),
            },
        };
        Arc::new(builder.finish(
            Arc::new(source),
            Phase::Stream,
            None,
            text.as_bytes().into(),
        ))
    }

    fn text(batch: &Batch) -> String {
        let letters = batch.changes().iter().map(|change| {
            let row = batch.new_row(change).expect("a row");
            let column = &batch.schema(change).columns[1];
            row.get(column).text().expect("a text").to_vec()
        });
        String::from_utf8(letters.collect::<Vec<_>>().concat()).expect("letters")
    }

    fn slice(batch: u64, from: usize, to: usize) -> Slice {
        Slice {
            batch,
            from,
            to,
            parts: 1,
        }
    }

    #[test]
    fn what_is_too_much_comes_back_from_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let one = batch("abcd");
        let mut shelf = Shelf::new(folder.path(), taken(&one) * 2);
        let numbers: Vec<u64> = ["abcd", "efgh", "ijkl", "mnop"]
            .into_iter()
            .map(|text| shelf.put(batch(text), 2))
            .collect();
        shelf.settle().expect("written");
        assert!(shelf.held <= shelf.limit && shelf.filed == 2);
        for (number, (first, second)) in
            numbers
                .iter()
                .zip([("a", "bcd"), ("e", "fgh"), ("i", "jkl"), ("m", "nop")])
        {
            let part = shelf.take(slice(*number, 0, 1)).expect("there");
            assert_eq!(text(&part), first);
            let part = shelf.take(slice(*number, 1, 4)).expect("there");
            assert_eq!(text(&part), second);
            assert!(shelf.take(slice(*number, 1, 4)).is_err(), "it is gone");
        }
        assert_eq!((shelf.held, shelf.filed, shelf.filed_bytes), (0, 0, 0));
        assert_eq!(shelf.end, 0, "the file begins anew");
    }

    #[test]
    fn what_is_let_go_takes_no_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut shelf = Shelf::new(folder.path(), 0);
        let number = shelf.put(batch("abcd"), 2);
        shelf.settle().expect("written");
        shelf.let_go(slice(number, 0, 1));
        assert_eq!(shelf.filed, 1);
        shelf.let_go(slice(number, 1, 4));
        assert_eq!((shelf.held, shelf.filed), (0, 0));
    }

    #[test]
    fn slices_that_follow_are_one() {
        let one = slice(1, 0, 2);
        let expected = Slice {
            to: 4,
            parts: 2,
            ..one
        };
        assert_eq!(one.and(slice(1, 2, 4)), Some(expected));
        assert_eq!(one.and(slice(1, 3, 4)), None);
        assert_eq!(one.and(slice(2, 2, 4)), None);
    }
}
