//! The rows of a `COPY … TO STDOUT`, read in place.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, Op, Phase, Transaction};
use lockstep_core::error::Result;
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::{Column, TableSchema};
use lockstep_pg::error::protocol;
use lockstep_pg::wire::{Connection, frame};

/// What is being done, in errors.
const DOING: &str = "copy the table";
/// Room made before each read.
const ROOM: usize = 64 * 1024;
/// What a block usually grows to.
const BLOCK: usize = 256 * 1024;

/// A copy under way.
pub struct CopyOut {
    block: Vec<u8>,
    /// Up to here the block is rows.
    parsed: usize,
    rows: RowReader,
}

/// Rows, and the block they lie in.
pub struct Rows {
    block: Vec<u8>,
    cells: Vec<Cell>,
    starts: Vec<usize>,
    /// See [`CopyOut::with_writers`].
    writers: Vec<u32>,
}

impl CopyOut {
    /// Sends the statement.
    ///
    /// # Errors
    /// The server's, by SQLSTATE.
    pub async fn begin(
        connection: &mut Connection,
        statement: &str,
        schema: &TableSchema,
    ) -> Result<Self> {
        connection.begin_copy_out(DOING, statement).await?;
        let mut block = Vec::with_capacity(BLOCK + ROOM);
        block.extend_from_slice(&connection.take_buffered());
        Ok(CopyOut {
            block,
            parsed: 0,
            rows: RowReader::new(schema),
        })
    }

    /// Of a statement that has `xmin` behind the columns.
    pub fn with_writers(mut self) -> Self {
        self.rows.writers = Some(Vec::new());
        self
    }

    /// Takes in what has come and waits for more; false when the copy has ended.
    ///
    /// # Errors
    /// The server's, and of kind `Protocol` when the bytes break the rules.
    pub async fn read(&mut self, connection: &mut Connection) -> Result<bool> {
        while let Some(found) = frame::next(&self.block, self.parsed)? {
            self.parsed = found.end;
            match found.tag {
                b'd' => self.rows.take(&mut self.block, found.start, found.end)?,
                b'c' | b'C' | b'N' | b'S' => {}
                b'Z' => {
                    connection.give_back(&self.block[self.parsed..]);
                    self.block.truncate(self.parsed);
                    return Ok(false);
                }
                b'E' => {
                    let rest = self.block.split_off(found.start - frame::HEADER);
                    connection.give_back(&rest);
                    // The error, and then ready: `query` would report it; here it is read as the answer to the copy.
                    return Err(connection.copy_failed(DOING).await);
                }
                tag => {
                    return Err(protocol(format!(
                        "a message of type {:?} inside a copy",
                        char::from(tag)
                    )));
                }
            }
        }
        let missing = frame::needed(&self.block, self.parsed).map_or(0, |needed| {
            (self.parsed + needed).saturating_sub(self.block.len())
        });
        connection.fill(&mut self.block, missing.max(ROOM)).await?;
        Ok(true)
    }

    /// Bytes that have come since the last [`CopyOut::take`].
    pub fn len(&self) -> usize {
        self.block.len()
    }

    /// Rows that are whole since the last [`CopyOut::take`].
    pub fn rows(&self) -> usize {
        self.rows.starts.len()
    }

    /// The rows so far; the copy goes on in a new block.
    pub fn take(&mut self) -> Rows {
        let mut next = Vec::with_capacity(BLOCK + ROOM);
        next.extend_from_slice(&self.block[self.parsed..]);
        let mut block = std::mem::replace(&mut self.block, next);
        block.truncate(self.parsed);
        self.parsed = 0;
        Rows {
            block,
            cells: std::mem::take(&mut self.rows.cells),
            starts: std::mem::take(&mut self.rows.starts),
            writers: self
                .rows
                .writers
                .as_mut()
                .map_or_else(Vec::new, std::mem::take),
        }
    }
}

impl Rows {
    /// Rows made by hand.
    #[cfg(test)]
    pub fn of(block: Vec<u8>, cells: Vec<Cell>, starts: Vec<usize>) -> Self {
        Rows {
            block,
            cells,
            starts,
            writers: Vec::new(),
        }
    }

    /// The transaction that wrote each row last; none unless they were asked for.
    pub fn writers(&self) -> &[u32] {
        &self.writers
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// The text of a column in the last row; `None` when it is NULL, or there is no row.
    pub fn last(&self, column: &Column) -> Option<&str> {
        let start = self.starts.last()?;
        let cell = self.cells.get(start + usize::from(column.slot))?;
        std::str::from_utf8(cell.bytes(&self.block)?).ok()
    }

    /// Bytes they keep alive, about.
    pub fn size(&self) -> usize {
        self.block.len() + self.cells.len() * size_of::<Cell>()
    }

    /// The rows as a batch of a copy at `transaction`, counted from `first`.
    pub fn into_batch(
        mut self,
        source: &Arc<SourceInfo>,
        schema: &Arc<TableSchema>,
        transaction: Transaction,
        first: u64,
    ) -> Batch {
        let lsn = transaction.commit;
        let mut builder = BatchBuilder::new();
        builder.received(Instant::now());
        builder.begin(transaction);
        let index = builder.schema(schema);
        std::mem::swap(builder.cells(), &mut self.cells);
        for (at, start) in self.starts.into_iter().enumerate() {
            builder.push(Op::Read, index, first + at as u64, lsn, None, Some(start));
        }
        let block = Bytes::from(self.block);
        builder.finish(Arc::clone(source), Phase::Snapshot, None, block)
    }
}

/// Reads rows of COPY's text format (PostgreSQL documentation, COPY, *Text Format*), undoing its escapes in place: an
/// escape is longer than what it stands for.
struct RowReader {
    width: usize,
    cells: Vec<Cell>,
    /// Where each row's cells begin.
    starts: Vec<usize>,
    /// What stands behind the columns, where something does.
    writers: Option<Vec<u32>>,
}

impl RowReader {
    fn new(schema: &TableSchema) -> Self {
        RowReader {
            width: usize::from(schema.width),
            cells: Vec::new(),
            starts: Vec::new(),
            writers: None,
        }
    }

    /// Takes in the row `block[start..end]`, which ends in a newline.
    fn take(&mut self, block: &mut [u8], start: usize, end: usize) -> Result<()> {
        let first = self.cells.len();
        let row = &mut block[start..end];
        let Some((b'\n', _)) = row.split_last().map(|(last, rest)| (*last, rest)) else {
            return Err(protocol("a row of a copy does not end in a newline"));
        };
        let length = row.len() - 1;
        let mut at = 0;
        let width = self.width + usize::from(self.writers.is_some());
        // A table without columns has rows of nothing.
        let mut more = width > 0;
        while more {
            let (cell, next) = field(&mut row[..length], at, start)?;
            self.cells.push(cell);
            more = next.is_some();
            at = next.unwrap_or(at);
        }
        let found = self.cells.len() - first;
        if found != width {
            return Err(protocol(format!(
                "a row of a copy has {found} columns, not {width}"
            )));
        }
        if let Some(writers) = &mut self.writers {
            let xmin = self.cells.pop().and_then(|cell| number(cell, block));
            writers.push(xmin.ok_or_else(|| protocol("an `xmin` is no number"))?);
        }
        self.starts.push(first);
        Ok(())
    }
}

fn number(cell: Cell, block: &[u8]) -> Option<u32> {
    std::str::from_utf8(cell.bytes(block)?).ok()?.parse().ok()
}

/// The field at `at` of a row that lies at `offset` of its block, and where the next one begins.
fn field(row: &mut [u8], at: usize, offset: usize) -> Result<(Cell, Option<usize>)> {
    let text = |from: usize, to: usize| {
        if to - from > Cell::MAX_LENGTH {
            return Err(protocol(format!(
                "a value of {} bytes is larger than lockstep can carry",
                to - from
            )));
        }
        Ok(Cell::text((offset + from) as u32, (to - from) as u32))
    };
    match memchr::memchr2(b'\t', b'\\', &row[at..]) {
        None => return Ok((text(at, row.len())?, None)),
        Some(tab) if row[at + tab] == b'\t' => {
            return Ok((text(at, at + tab)?, Some(at + tab + 1)));
        }
        Some(_) => {}
    }
    if row[at..].starts_with(b"\\N") && matches!(row.get(at + 2), None | Some(b'\t')) {
        return Ok((Cell::NULL, (at + 2 < row.len()).then_some(at + 3)));
    }
    let (mut from, mut to) = (at, at);
    while from < row.len() && row[from] != b'\t' {
        let mut byte = row[from];
        if byte == b'\\' {
            from += 1;
            byte = match row.get(from) {
                Some(b'b') => 8,
                Some(b'f') => 12,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'v') => 11,
                Some(other) => *other,
                None => return Err(protocol("a row of a copy ends inside an escape")),
            };
        }
        row[to] = byte;
        from += 1;
        to += 1;
    }
    Ok((text(at, to)?, (from < row.len()).then_some(from + 1)))
}

#[cfg(test)]
mod tests {
    use lockstep_core::batch::CellRef;
    use lockstep_core::position::{Lsn, SourceIdentity};

    use super::*;

    fn read(rows: &[&str]) -> Result<Vec<Vec<Option<String>>>> {
        let width = rows[0].split('\t').count();
        let mut reader = RowReader {
            width,
            cells: Vec::new(),
            starts: Vec::new(),
            writers: None,
        };
        let mut block = Vec::new();
        for row in rows {
            let start = block.len();
            block.extend_from_slice(row.as_bytes());
            block.push(b'\n');
            let end = block.len();
            reader.take(&mut block, start, end)?;
        }
        let cells = reader.cells.clone();
        let rows = Rows {
            block,
            cells: reader.cells,
            starts: reader.starts,
            writers: Vec::new(),
        };
        let source = Arc::new(SourceInfo {
            name: "s".into(),
            identity: SourceIdentity {
                system: 1,
                timeline: 1,
                incarnation: 0,
                database: "d".into(),
            },
        });
        let transaction = Transaction {
            commit: Lsn(1),
            commit_micros: 0,
            xid: 0,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        };
        let schema = Arc::new(TableSchema::message("s".into()));
        let batch = rows.into_batch(&source, &schema, transaction, 1);
        let text = |cell: &Cell| match batch.resolve(*cell) {
            CellRef::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        };
        let row = |row: &[Cell]| row.iter().map(text).collect();
        Ok(cells.chunks(width).map(row).collect())
    }

    #[test]
    fn rows_with_nulls_and_escapes() {
        let rows = read(&[
            "1\t\\N\ta\\tb\\\\c",
            "\\N\t\t\\N",
            "x\\nn\t\\\\N\t\\b\\f\\v\\r",
        ])
        .expect("valid");
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(rows[0], [some("1"), None, some("a\tb\\c")]);
        assert_eq!(rows[1], [None, some(""), None]);
        assert_eq!(
            rows[2],
            [some("x\nn"), some("\\N"), some("\u{8}\u{c}\u{b}\r")]
        );
    }

    #[test]
    fn who_wrote_a_row_stands_behind_its_columns() {
        let reader = || RowReader {
            width: 2,
            cells: Vec::new(),
            starts: Vec::new(),
            writers: Some(Vec::new()),
        };
        let mut rows = reader();
        let mut block = b"1\ta\t750\n2\t\\N\t4294967295\n".to_vec();
        rows.take(&mut block, 0, 8).expect("a row");
        rows.take(&mut block, 8, 24).expect("a row");
        assert_eq!(rows.writers, Some(vec![750, u32::MAX]));
        assert_eq!((rows.cells.len(), rows.starts), (4, vec![0, 2]));
        for bad in ["1\t2\n", "1\t2\t\\N\n", "1\t2\tx\n", "1\t2\t3\t4\n"] {
            let mut block = bad.as_bytes().to_vec();
            assert!(reader().take(&mut block, 0, bad.len()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_row_of_another_width_is_an_error() {
        assert!(read(&["1\t2", "1"]).is_err());
        assert!(read(&["1\t2", "1\t2\t3"]).is_err());
        assert!(read(&["a\\"]).is_err());
    }
}
