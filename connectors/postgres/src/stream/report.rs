//! What is said back: positions to the server and on record, and the end of it all.

use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::position::Lsn;
use lockstep_pg::wire::frame;

use super::Receiver;
use crate::assemble::now_micros;
use crate::ledger::Seen;
use crate::pgoutput::EPOCH_MICROS;
use crate::standing::lost;

/// How soon a newly confirmed position is reported.
pub(super) const REPORT_AFTER: Duration = Duration::from_secs(1);
/// How many status intervals a server may take for the answer that we ask for at each of them. By default that makes the
/// minute after which PostgreSQL's own subscriptions give up, too.
const UNANSWERED: u32 = 6;
/// How long the server may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

impl Receiver {
    /// A connection can be dead without a sign of it: behind a proxy or a lost peer that nothing has told about. Here
    /// nothing waits to be read, so an answer that is missing has not come.
    pub(super) fn is_answered(&self) -> Result<()> {
        let patience = self.stream.status_interval * UNANSWERED;
        match self.asked_at.map(|asked| asked.elapsed()) {
            Some(silence) if silence >= patience => Err(Error::new(
                ErrorKind::Unavailable,
                format!("no answer from the server for {} s", silence.as_secs()),
            )
            .remedy("look at the server and at what is between; the connection is made anew")),
            _ => Ok(()),
        }
    }

    pub(super) async fn report_if_due(&mut self) -> Result<()> {
        self.keep().await?;
        let since = self.reported_at.elapsed();
        let news = self.confirmed() > self.reported;
        if since >= self.stream.status_interval || (news && since >= REPORT_AFTER) {
            self.report().await?;
        }
        Ok(())
    }

    /// What may be confirmed to the server.
    pub(super) fn confirmed(&mut self) -> Lsn {
        let most = self.tellable();
        self.stream.ledger.tellable(most)
    }

    /// What may be confirmed once it is on record: what every sink has, as far as this connection has come; an earlier one
    /// knew of transactions that are prepared, and come again. Never less than before, which servers before PostgreSQL 18 would take
    /// for what it says.
    fn tellable(&mut self) -> Lsn {
        let durable = self.stream.feedback.confirmed();
        let most = durable.min(self.assembler.ended().max(self.stands));
        let hold = self
            .streams
            .as_mut()
            .and_then(|streams| streams.hold(durable));
        match hold {
            Some(hold) => most.min(hold.max(self.stands).max(self.reported)),
            None => most,
        }
    }

    /// Puts on record how far the stream has come, now and then.
    pub(super) async fn keep(&mut self) -> Result<()> {
        let tellable = self.tellable();
        let Receiver {
            stream,
            assembler,
            received,
            ..
        } = self;
        let seen = Seen {
            confirmed: stream.feedback.confirmed(),
            tellable,
            received: assembler.through().max(*received),
            last: assembler.last(),
            publication: &stream.publication,
        };
        let before = stream.ledger.trouble().is_some();
        stream.ledger.keep(&seen).await?;
        let trouble = stream.ledger.trouble();
        if before != trouble.is_some() {
            let source = &*stream.source.name;
            match trouble {
                Some(error) => tracing::warn!(source, %error, "nothing is confirmed for now"),
                None => tracing::info!(source, "positions are on record again"),
            }
            let problem = trouble.map(Error::to_string);
            stream.status.update(|state| state.problem = problem);
        }
        Ok(())
    }

    /// Puts on record how far the stream came, or that it cannot be continued, and says goodbye where that is possible.
    pub(super) async fn end(&mut self, ended: Result<()>) -> Result<()> {
        match ended {
            Err(error) if error.kind() == ErrorKind::Lost => {
                let cause = error.to_string();
                let cause = cause.trim_start_matches("LS011 ");
                self.stream.ledger.lose(cause).await?;
                Err(lost(cause))
            }
            ended => {
                self.close_ledger().await?;
                match ended {
                    Err(error) if error.kind() == ErrorKind::Stopping => self.say_goodbye().await,
                    ended => ended,
                }
            }
        }
    }

    /// Puts on record how far the stream came.
    pub(super) async fn close_ledger(&mut self) -> Result<()> {
        let tellable = self.tellable();
        let Receiver {
            stream,
            assembler,
            received,
            ..
        } = self;
        let seen = Seen {
            confirmed: stream.feedback.confirmed(),
            tellable,
            received: assembler.through().max(*received),
            last: assembler.last(),
            publication: &stream.publication,
        };
        stream.ledger.close(&seen).await
    }

    /// Sends a standby status update: written, flushed, applied, the time, and whether an answer is wanted. It is when
    /// the server has been silent for long: a dead one must not look like an idle one.
    pub(super) async fn report(&mut self) -> Result<()> {
        self.send_status(false).await
    }

    /// As [`Receiver::report`], and asks the server how far it has decoded.
    pub(super) async fn ask(&mut self) -> Result<()> {
        self.send_status(true).await
    }

    async fn send_status(&mut self, asks: bool) -> Result<()> {
        let confirmed = self.confirmed();
        let silent = self.read_at.elapsed() >= self.stream.status_interval;
        let mut out = BytesMut::with_capacity(39);
        out.put_u8(b'd');
        out.put_u32(4 + 34);
        out.put_u8(b'r');
        out.put_u64(self.received.0.max(confirmed.0));
        out.put_u64(confirmed.0);
        out.put_u64(confirmed.0);
        out.put_i64(now_micros() - EPOCH_MICROS);
        out.put_u8(u8::from(silent || asks));
        self.connection.send(&out).await?;
        if silent {
            self.asked_at.get_or_insert_with(Instant::now);
        }
        self.reported = confirmed;
        self.reported_at = Instant::now();
        let received = self.received;
        self.stream.status.update(|state| {
            state.received = received.0;
            state.confirmed = confirmed.0;
        });
        Ok(())
    }

    /// Reports the last confirmed position, ends the stream, and waits until the server has heard it.
    pub(super) async fn say_goodbye(&mut self) -> Result<()> {
        self.report().await?;
        self.connection.send(&[b'c', 0, 0, 0, 4]).await?;
        let heard = async {
            loop {
                while let Some(found) = frame::next(&self.block, self.parsed)? {
                    self.parsed = found.end;
                    if found.tag == b'Z' || found.tag == b'C' {
                        return Ok(());
                    }
                }
                self.block.drain(..self.parsed);
                self.parsed = 0;
                let room = self.room();
                self.connection.fill(&mut self.block, room).await?;
            }
        };
        // A server that does not answer has the position or will get it at the next start: nothing is lost.
        let _: Result<Result<()>, _> = tokio::time::timeout(GOODBYE, heard).await;
        Ok(())
    }
}
