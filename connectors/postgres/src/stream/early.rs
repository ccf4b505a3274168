//! Branches that are asked for before they commit: what they have changed is told as it was prepared, and again when they commit.

use std::sync::Arc;
use std::time::Instant;

use lockstep_core::batch::{Batch, Branch};
use lockstep_core::error::Result;
use lockstep_core::position::Lsn;
use lockstep_pg::error::protocol;

use super::{BLOCK, KEEP, Receiver, stopping};
use crate::assemble::Step;
use crate::streamed::{Committed, Piece, Pieces};

impl Receiver {
    /// Tells what is asked for of branches that are prepared. Between two transactions only.
    pub(super) async fn show_early(&mut self) -> Result<()> {
        if !self.assembler.between_transactions() {
            return Ok(());
        }
        for lsn in self.stream.wanted.early() {
            let Some(streams) = &mut self.streams else {
                return Ok(());
            };
            if let Some(branch) = streams.early(lsn)? {
                self.show(lsn, Box::new(branch)).await?;
            }
        }
        Ok(())
    }

    /// Its rows go on, and behind them word that these are all.
    async fn show(&mut self, lsn: Lsn, mut branch: Box<Committed>) -> Result<()> {
        // What has been assembled lies in the block of the stream.
        if let Some(batch) = self.cut() {
            self.hand_on(batch).await?;
        }
        self.settle(&mut branch).await?;
        let head = branch.head.clone();
        let prepared = head.prepared.clone();
        self.assembler.begin_streamed(head, false)?;
        let pieces = branch.pieces();
        let (mut block, mut at) = (Vec::new(), 0);
        let mut is_whole = true;
        while is_whole && !pieces.is_done() {
            self.pass_on(&mut block, &mut at).await?;
            self.assembler.received(Instant::now());
            let wanted = Pieces::needed(&block, at).saturating_sub(block.len());
            pieces.fill(&mut block, wanted.max(BLOCK))?;
            while let Some(piece) = pieces.next(&block, &mut at) {
                is_whole = self.take_early(&block, piece)?;
                if !is_whole {
                    break;
                }
            }
            if self.kept_at.elapsed() >= KEEP {
                self.look_up().await?;
            }
            if self.stream.shutdown.is_cancelled() {
                return Err(stopping());
            }
        }
        if is_whole && at != block.len() {
            return Err(protocol("the last message of a branch is not whole"));
        }
        self.assembler.end_early()?;
        self.pass_on(&mut block, &mut at).await?;
        if !is_whole {
            // What has gone on of it is known to be a part.
            if let Some(streams) = &mut self.streams {
                streams.hide(lsn);
            }
            return Ok(());
        }
        match prepared {
            Some(prepared) => {
                let source = Arc::clone(&self.stream.source);
                self.hand_on(Batch::of_branch(source, Branch::Early(prepared)))
                    .await
            }
            None => Ok(()),
        }
    }

    /// False: it has a table in a shape that can be looked up when it has committed, and not before.
    fn take_early(&mut self, block: &[u8], piece: Piece) -> Result<bool> {
        let step = self
            .assembler
            .take_piece(block, piece.start, piece.end, piece.lsn)?;
        match step {
            Step::Taken => Ok(true),
            Step::Define(described) if self.ours(&described).is_none() => {
                self.assembler.define(described, None);
                Ok(true)
            }
            Step::Define(_) | Step::DefineFirst(_) => Ok(false),
        }
    }
}
