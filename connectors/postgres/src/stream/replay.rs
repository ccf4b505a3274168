//! Transactions in progress: kept, and taken in when they commit.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use lockstep_core::batch::{Batch, Branch};
use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::position::Lsn;
use lockstep_pg::error::protocol;

use super::{BLOCK, KEEP, Receiver, Scanned, Stream, stopping};
use crate::assemble::Step;
use crate::streamed::{Committed, Piece, Pieces, Taken};

/// The first version that says nothing of a transaction without changes.
const SKIPS_EMPTY: u32 = 150_000;

impl Receiver {
    /// Keeps a payload that belongs to a transaction in progress; `None`: it is none such.
    pub(super) fn keep_piece(
        &mut self,
        start: usize,
        end: usize,
        lsn: Lsn,
    ) -> Result<Option<Scanned>> {
        let Some(streams) = &mut self.streams else {
            return Ok(None);
        };
        let number = self.assembler.number();
        match streams.take(&self.block[start..end], lsn, number) {
            Ok(Taken::Plain) => Ok(None),
            Ok(Taken::Kept) => Ok(Some(Scanned::All)),
            Ok(Taken::Told(branch)) => Ok(Some(Scanned::Told(branch))),
            Ok(Taken::Described) => {
                self.assembler.note(&self.block[start..end], number)?;
                Ok(Some(Scanned::All))
            }
            Ok(Taken::Committed(committed)) => Ok(Some(Scanned::Committed(committed))),
            Ok(Taken::Doubt(error)) => {
                self.gives_up_streaming = true;
                Err(error)
            }
            Err(error) => {
                self.gives_up_streaming = self.stream.streaming
                    && matches!(error.kind(), ErrorKind::Storage | ErrorKind::Full);
                Err(error)
            }
        }
    }

    /// Tells how much is kept of transactions in progress, and which are not decided.
    pub(super) fn tell_in_progress(&self) {
        if let Some(streams) = &self.streams {
            let kept = (streams.len() as u64, streams.kept());
            let in_doubt = streams.in_doubt();
            let two_phase = self.stream.two_phase;
            self.stream.status.update(|state| {
                (state.in_progress, state.in_progress_bytes) = kept;
                state.in_doubt = two_phase.then_some(in_doubt.count);
                let since = |(micros, _): (i64, Lsn)| u64::try_from(micros / 1000).unwrap_or(0);
                state.in_doubt_since_ms = in_doubt.first.map(since);
                state.in_doubt_from = in_doubt.first.map(|(_, lsn)| lsn.0);
            });
        }
    }

    /// Takes in a transaction that has committed, in batches like any other.
    ///
    /// What the server sends meanwhile is read as far as there is room, and taken in later.
    pub(super) async fn replay(&mut self, mut committed: Box<Committed>) -> Result<()> {
        // What has been assembled lies in the block of the stream.
        if let Some(batch) = self.cut() {
            self.hand_on(batch).await?;
        }
        self.settle(&mut committed).await?;
        self.stream.ledger.see(&committed.head)?;
        let empty_too = self.connection.server_version() < SKIPS_EMPTY;
        self.assembler
            .begin_streamed(committed.head.clone(), empty_too)?;
        let end = committed.end;
        let pieces = committed.pieces();
        let (mut block, mut at) = (Vec::new(), 0);
        while !pieces.is_done() {
            self.pass_on(&mut block, &mut at).await?;
            let begun = Instant::now();
            let wanted = Pieces::needed(&block, at).saturating_sub(block.len());
            pieces
                .fill(&mut block, wanted.max(BLOCK))
                .inspect_err(|_| self.gives_up_streaming = self.stream.streaming)?;
            self.assembler.received(begun);
            while let Some(piece) = pieces.next(&block, &mut at) {
                self.take_piece(&block, piece).await?;
            }
            if self.kept_at.elapsed() >= KEEP {
                self.look_up().await?;
            }
            if self.stream.shutdown.is_cancelled() {
                return Err(stopping());
            }
        }
        if at != block.len() {
            return Err(protocol("the last message of a transaction is not whole"));
        }
        self.assembler.end_streamed(end)?;
        self.pass_on(&mut block, &mut at).await?;
        match &committed.head.prepared {
            Some(first) if !self.assembler.has_come(committed.head.commit) => {
                let branch = Branch::Empty(Arc::clone(first));
                let source = Arc::clone(&self.stream.source);
                self.hand_on(Batch::of_branch(source, branch)).await
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn take_piece(&mut self, block: &[u8], piece: Piece) -> Result<()> {
        loop {
            let step = self
                .assembler
                .take_piece(block, piece.start, piece.end, piece.lsn)?;
            match step {
                Step::Taken => return Ok(()),
                Step::Define(described) => return self.define(described).await,
                Step::DefineFirst(described) => self.define(described).await?,
            }
        }
    }

    /// Looks at the connection in the middle of a replay, as sinks may be fast enough never to be waited for: reads what
    /// there is and room for, answers, reports.
    pub(super) async fn look_up(&mut self) -> Result<()> {
        self.kept_at = Instant::now();
        // Lets the runtime look at the socket.
        tokio::task::yield_now().await;
        // When there is no room, words of the server wait, so it lives.
        let mut heard = self.block.len() >= BLOCK;
        if !heard {
            let room = self.room();
            if let Some(read) = self.connection.fill(&mut self.block, room).now_or_never() {
                read?;
                heard = true;
                self.read_at = Instant::now();
                self.begun_at.get_or_insert(self.read_at);
                let mut at = self.parsed;
                if self.is_asked(&mut at)? {
                    self.report().await?;
                }
            }
        }
        if heard {
            self.stream.status.heard();
        }
        self.report_if_due().await
    }

    /// Hands on what was assembled from a block; it goes on with what lies behind `at`.
    pub(super) async fn pass_on(&mut self, block: &mut Vec<u8>, at: &mut usize) -> Result<()> {
        if self.assembler.has_changes() {
            let rest = block.split_off(*at);
            let full = std::mem::replace(block, rest);
            let batch = self.assembler.flush(Bytes::from(full));
            self.hand_on(batch).await?;
        } else {
            block.drain(..*at);
        }
        *at = 0;
        Ok(())
    }

    /// Gives the connection up, to go on from what is confirmed without streaming: the server sends everything behind it
    /// again, and transactions in progress once they commit. What went on already is known by its position.
    ///
    /// # Errors
    /// Of kind `Storage`, when it cannot be put on record how far the stream came.
    pub(super) async fn without_streaming(mut self, ended: Result<()>) -> Result<Stream> {
        let cause = ended
            .err()
            .map_or_else(String::new, |error: Error| error.to_string());
        tracing::warn!(
            source = &*self.stream.source.name,
            cause,
            "going on without streaming of transactions in progress, until the source is opened anew"
        );
        // Their files go first: the disk may be full.
        self.streams = None;
        self.close_ledger().await?;
        // What was said of earlier batches stays true.
        self.stream.from = self.assembler.said();
        self.stream.streaming = false;
        Ok(self.stream)
    }
}
