//! A value of a batch: where it lies.

/// A value as the wire had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellRef<'a> {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the UPDATE did not touch and the log does not carry.
    Unchanged,
    /// The type's text form, under `DateStyle ISO`, `IntervalStyle postgres`, `TimeZone UTC`, `bytea_output hex`,
    /// `extra_float_digits 3`. Server encoding is UTF-8.
    Text(&'a [u8]),
    /// The type's binary (`typsend`) form.
    Binary(&'a [u8]),
}

impl<'a> CellRef<'a> {
    /// The bytes of a text value.
    #[must_use]
    pub fn text(self) -> Option<&'a [u8]> {
        match self {
            CellRef::Text(bytes) => Some(bytes),
            CellRef::Null | CellRef::Unchanged | CellRef::Binary(_) => None,
        }
    }
}

/// An offset and a length into one of a batch's two blocks, with a tag. Eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub(super) offset: u32,
    /// Top two bits: kind. Next: which block. Rest: length.
    pub(super) tagged: u32,
}

pub(super) const KIND_SHIFT: u32 = 30;
pub(super) const KIND_NULL: u32 = 0;
pub(super) const KIND_UNCHANGED: u32 = 1;
pub(super) const KIND_TEXT: u32 = 2;
pub(super) const KIND_BINARY: u32 = 3;
pub(super) const EXTRA: u32 = 1 << 29;
pub(super) const LENGTH: u32 = EXTRA - 1;

impl Cell {
    /// The longest value a cell can hold, 512 MiB − 1. PostgreSQL's own limit for a value is 1 GiB, and a row that
    /// close to it cannot be decoded by the server either (the text form must fit 1 GiB with the rest of the row).
    pub const MAX_LENGTH: usize = LENGTH as usize;
    /// SQL NULL.
    pub const NULL: Cell = Cell {
        offset: 0,
        tagged: KIND_NULL << KIND_SHIFT,
    };
    /// Unchanged TOAST.
    pub const UNCHANGED: Cell = Cell {
        offset: 0,
        tagged: KIND_UNCHANGED << KIND_SHIFT,
    };

    /// A text value at `offset` of the main block. `length` is at most [`Cell::MAX_LENGTH`].
    #[must_use]
    pub fn text(offset: u32, length: u32) -> Self {
        debug_assert!(length <= LENGTH);
        Cell {
            offset,
            tagged: KIND_TEXT << KIND_SHIFT | (length & LENGTH),
        }
    }

    /// A binary value at `offset` of the main block. `length` is at most [`Cell::MAX_LENGTH`].
    #[must_use]
    pub fn binary(offset: u32, length: u32) -> Self {
        debug_assert!(length <= LENGTH);
        Cell {
            offset,
            tagged: KIND_BINARY << KIND_SHIFT | (length & LENGTH),
        }
    }

    /// A text value at `offset` of the extra block, where transforms put what they make.
    #[must_use]
    pub fn extra_text(offset: u32, length: u32) -> Self {
        debug_assert!(length <= LENGTH);
        Cell {
            offset,
            tagged: KIND_TEXT << KIND_SHIFT | EXTRA | (length & LENGTH),
        }
    }

    /// The bytes of a value of the main block, before the block has become a batch's; `None` when there is none.
    #[must_use]
    pub fn bytes(self, block: &[u8]) -> Option<&[u8]> {
        let has_value = self.tagged >> KIND_SHIFT >= KIND_TEXT && self.tagged & EXTRA == 0;
        let (start, length) = (self.offset as usize, (self.tagged & LENGTH) as usize);
        has_value
            .then(|| block.get(start..start + length))
            .flatten()
    }

    /// Whether this is [`Cell::UNCHANGED`].
    #[must_use]
    pub fn is_unchanged(self) -> bool {
        self.tagged >> KIND_SHIFT == KIND_UNCHANGED
    }

    /// The cell where extra bytes begin `extra` further on, and the main block, if it has become extra bytes, at `block`.
    pub(super) fn moved(self, block: Option<u32>, extra: u32) -> Self {
        if self.tagged >> KIND_SHIFT < KIND_TEXT {
            return self;
        }
        let by = match (self.tagged & EXTRA != 0, block) {
            (true, _) => extra,
            (false, Some(block)) => block,
            (false, None) => return self,
        };
        Cell {
            offset: self.offset + by,
            tagged: self.tagged | EXTRA,
        }
    }
}
