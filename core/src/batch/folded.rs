//! The bytes of a batch, for those who keep it on disk for a while. Only the process that wrote them reads them.

use std::sync::Arc;

use bytes::Bytes;

use super::{Batch, Cell, Change, OldImage, Op};
use crate::error::{Error, ErrorKind, Result};
use crate::position::Lsn;

const OPS: [Op; 7] = [
    Op::Read,
    Op::Insert,
    Op::Update,
    Op::Delete,
    Op::Truncate,
    Op::Message,
    Op::Event,
];
const IMAGES: [OldImage; 3] = [OldImage::None, OldImage::Key, OldImage::Full];
/// Four lengths.
const HEAD: usize = 32;
const CELL: usize = 8;
const CHANGE: usize = 40;

/// A batch without its rows, which it takes to read them back.
#[derive(Debug)]
pub struct Folded(Batch);

impl Batch {
    /// Appends the rows to `out`, and keeps the rest. The share of memory is given back.
    pub fn fold(&self, out: &mut Vec<u8>) -> Folded {
        let lengths = [
            self.block.len(),
            self.extra.len(),
            self.cells.len(),
            self.changes.len(),
        ];
        for length in lengths {
            out.extend_from_slice(&(length as u64).to_le_bytes());
        }
        out.extend_from_slice(&self.block);
        out.extend_from_slice(&self.extra);
        for cell in self.cells.iter() {
            out.extend_from_slice(&cell.offset.to_le_bytes());
            out.extend_from_slice(&cell.tagged.to_le_bytes());
        }
        for change in &self.changes {
            write(change, out);
        }
        let mut rest = self.share(self.schemas.clone(), Vec::new());
        (rest.block, rest.extra, rest.permit) = (Bytes::new(), Bytes::new(), None);
        rest.cells = Arc::default();
        Folded(rest)
    }
}

impl Folded {
    /// The batch, of the bytes that [`Batch::fold`] wrote.
    ///
    /// # Errors
    /// Of kind `Storage` when they are something else.
    pub fn unfold(&self, bytes: &Bytes) -> Result<Batch> {
        read(&self.0, bytes).ok_or_else(|| {
            Error::new(
                ErrorKind::Storage,
                "what was written to a file for a while has come back as something else",
            )
            .remedy("look at the disk; start again, and it is read from the source")
        })
    }
}

fn write(change: &Change, out: &mut Vec<u8>) {
    let op = OPS.iter().position(|op| *op == change.op).unwrap_or(0);
    let image = IMAGES.iter().position(|image| *image == change.old_image);
    let flags = [
        op as u8,
        image.unwrap_or(0) as u8,
        u8::from(change.duplicate),
        0,
        0,
        0,
    ];
    out.extend_from_slice(&flags);
    out.extend_from_slice(&change.schema.to_le_bytes());
    out.extend_from_slice(&change.transaction.to_le_bytes());
    out.extend_from_slice(&change.old.to_le_bytes());
    out.extend_from_slice(&change.ordinal.to_le_bytes());
    out.extend_from_slice(&change.lsn.0.to_le_bytes());
    out.extend_from_slice(&change.new.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
}

fn read(rest: &Batch, bytes: &Bytes) -> Option<Batch> {
    let length = |at: usize| usize::try_from(u64_at(bytes, at * 8)?).ok();
    let (block, extra) = (length(0)?, length(1)?);
    let (cells, changes) = (length(2)?, length(3)?);
    let cells_at = HEAD.checked_add(block)?.checked_add(extra)?;
    let changes_at = cells_at.checked_add(cells.checked_mul(CELL)?)?;
    if bytes.len() != changes_at.checked_add(changes.checked_mul(CHANGE)?)? {
        return None;
    }
    let cell = |bytes: &[u8]| {
        Some(Cell {
            offset: u32_at(bytes, 0)?,
            tagged: u32_at(bytes, 4)?,
        })
    };
    let all_cells: Option<Vec<Cell>> = bytes[cells_at..changes_at]
        .chunks_exact(CELL)
        .map(cell)
        .collect();
    let all_changes: Option<Vec<Change>> = bytes[changes_at..]
        .chunks_exact(CHANGE)
        .map(change)
        .collect();
    let mut batch = rest.share(rest.schemas.clone(), all_changes?);
    batch.cells = Arc::new(all_cells?);
    batch.block = bytes.slice(HEAD..HEAD + block);
    batch.extra = bytes.slice(HEAD + block..cells_at);
    Some(batch)
}

fn change(bytes: &[u8]) -> Option<Change> {
    Some(Change {
        op: *OPS.get(usize::from(bytes[0]))?,
        old_image: *IMAGES.get(usize::from(bytes[1]))?,
        duplicate: bytes[2] == 1,
        schema: u16::from_le_bytes(bytes.get(6..8)?.try_into().ok()?),
        transaction: u32_at(bytes, 8)?,
        old: u32_at(bytes, 12)?,
        ordinal: u64_at(bytes, 16)?,
        lsn: Lsn(u64_at(bytes, 24)?),
        new: u32_at(bytes, 32)?,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
