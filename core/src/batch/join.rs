//! One batch of the changes of several, where the ways that a batch took meet again.

use std::sync::Arc;

use bytes::Bytes;

use super::{Batch, Cell, Change, NONE, Transaction};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::TableSchema;

impl Batch {
    /// One batch of changes of several, in the order given. Each names the batch that it is of by index; all are of one
    /// source and one phase. Progress and the share of memory are those of the first; what else has gone on is that of the
    /// last.
    ///
    /// Change heads and cells are copied; bytes are not, but for those that the first does not have: of other blocks, and
    /// made by transforms.
    ///
    /// # Errors
    /// Kind `Protocol` when what is copied comes to 4 GiB.
    pub fn join(parts: &[Arc<Batch>], picked: &[(usize, Change)]) -> Result<Option<Batch>> {
        let Some(first) = parts.first() else {
            return Ok(None);
        };
        let mut join = Join {
            schemas: Vec::new(),
            transactions: Vec::new(),
            cells: Vec::new(),
            extra: Vec::new(),
            changes: Vec::with_capacity(picked.len()),
        };
        let mut frames = Vec::with_capacity(parts.len());
        for part in parts {
            frames.push(join.frame(first, part)?);
        }
        for &(part, change) in picked {
            join.push(&parts[part], &frames[part], change);
        }
        let mut joined = first.share(join.schemas, join.changes);
        joined.cells = Arc::new(join.cells);
        joined.transactions = Arc::new(join.transactions);
        joined.extra = join.extra.into();
        joined.standing = parts.last().and_then(|last| last.standing.clone());
        Ok(Some(joined))
    }
}

struct Join {
    schemas: Vec<Arc<TableSchema>>,
    transactions: Vec<Transaction>,
    cells: Vec<Cell>,
    extra: Vec<u8>,
    changes: Vec<Change>,
}

/// Where what a part refers to has gone.
struct Frame {
    /// By index of the part.
    schemas: Vec<u16>,
    /// To be added to an index of the part.
    transactions: u32,
    /// To be added to an offset in its block, which has become extra bytes; `None` when it is the block of all.
    block: Option<u32>,
    /// To be added to an offset in its extra bytes.
    extra: u32,
}

impl Join {
    fn frame(&mut self, first: &Batch, part: &Batch) -> Result<Frame> {
        let mut schemas = Vec::with_capacity(part.schemas.len());
        for schema in &part.schemas {
            let known = self
                .schemas
                .iter()
                .position(|known| Arc::ptr_eq(known, schema));
            schemas.push(known.unwrap_or(self.schemas.len()) as u16);
            if known.is_none() {
                self.schemas.push(Arc::clone(schema));
            }
        }
        let shared = Arc::ptr_eq(&first.transactions, &part.transactions);
        let transactions = match shared && !self.transactions.is_empty() {
            true => 0,
            false => {
                let at = self.transactions.len() as u32;
                self.transactions.extend(part.transactions.iter().cloned());
                at
            }
        };
        let same = std::ptr::eq(first.block.as_ptr(), part.block.as_ptr());
        let block = match same && first.block.len() == part.block.len() {
            true => None,
            false => Some(self.add(&part.block)?),
        };
        Ok(Frame {
            schemas,
            transactions,
            block,
            extra: self.add(&part.extra)?,
        })
    }

    /// Adds bytes, and says where they begin.
    fn add(&mut self, bytes: &Bytes) -> Result<u32> {
        let begin = self.extra.len();
        self.extra.extend_from_slice(bytes);
        match u32::try_from(self.extra.len()) {
            Ok(_) => Ok(begin as u32),
            Err(_) => Err(Error::new(
                ErrorKind::Protocol,
                "what is copied for one batch comes to 4 GiB",
            )),
        }
    }

    fn push(&mut self, part: &Batch, frame: &Frame, change: Change) {
        let width = usize::from(part.schema(&change).width);
        let old = self.row(part, frame, change.old, width);
        let new = match change.new == change.old {
            true => old,
            false => self.row(part, frame, change.new, width),
        };
        self.changes.push(Change {
            schema: frame.schemas[usize::from(change.schema)],
            transaction: change.transaction + frame.transactions,
            old,
            new,
            ..change
        });
    }

    fn row(&mut self, part: &Batch, frame: &Frame, start: u32, width: usize) -> u32 {
        if start == NONE {
            return NONE;
        }
        let at = self.cells.len() as u32;
        let row = &part.cells[start as usize..start as usize + width];
        self.cells
            .extend(row.iter().map(|cell| cell.moved(frame.block, frame.extra)));
        at
    }
}
