//! Delivery reports, counted: every record that was handed over is answered for.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::Message;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Headers};
use rdkafka::producer::ProducerContext;

use crate::error::{Failure, explains};
use lockstep_core::ErrorKind;
use lockstep_core::position::SourceInfo;
use lockstep_core::refusal::{Refusal, reason};
use lockstep_core::sink::Trouble;
use lockstep_encode::envelope::HEADER_ID;

/// Names the batch that a record belongs to, on its way through librdkafka.
pub(crate) type Ticket = usize;

/// The producer's context. Everything in it happens on the thread that polls.
#[derive(Default)]
pub(crate) struct Reports {
    counts: Mutex<State>,
    /// Where others are told what stands in the way.
    told: Trouble,
}

#[derive(Default)]
struct State {
    /// The ticket of the first entry of `counts`.
    first: Ticket,
    counts: VecDeque<Count>,
    /// All reports so far.
    seen: u64,
    /// The first record that was not delivered.
    failed: Option<Failure>,
    /// The first record that was thrown away: for what became of others, whose reports may come later.
    purged: Option<Failure>,
    /// The changes whose records the broker refuses.
    refused: Vec<Refusal>,
    /// The last thing a broker or the network complained about that matters.
    trouble: Option<Failure>,
    /// It says why there is silence.
    is_explained: bool,
}

#[derive(Default)]
struct Count {
    produced: u64,
    reported: u64,
}

impl Reports {
    fn state(&self) -> MutexGuard<'_, State> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports that tell what stands in the way.
    pub(crate) fn telling(told: Trouble) -> Self {
        Reports {
            counts: Mutex::default(),
            told,
        }
    }

    /// A new ticket.
    pub(crate) fn open(&self) -> Ticket {
        let mut state = self.state();
        state.counts.push_back(Count::default());
        state.first + state.counts.len() - 1
    }

    /// So many records more were handed over under `ticket`.
    pub(crate) fn produced(&self, ticket: Ticket, records: u64) {
        let mut state = self.state();
        let index = ticket - state.first;
        if let Some(count) = state.counts.get_mut(index) {
            count.produced += records;
        }
    }

    /// Whether all records under the oldest ticket are reported; if so, it is closed.
    pub(crate) fn close_first(&self) -> bool {
        let mut state = self.state();
        let complete = state
            .counts
            .front()
            .is_some_and(|count| count.reported >= count.produced);
        if complete {
            state.counts.pop_front();
            state.first += 1;
        }
        complete
    }

    /// Whether every record is reported.
    pub(crate) fn complete(&self) -> bool {
        self.state()
            .counts
            .iter()
            .all(|count| count.reported >= count.produced)
    }

    /// Closes all tickets.
    pub(crate) fn close_all(&self) {
        let mut state = self.state();
        state.first += state.counts.len();
        state.counts.clear();
    }

    /// Reports so far, to notice progress.
    pub(crate) fn seen(&self) -> u64 {
        self.state().seen
    }

    /// Why the first record that was not delivered was not. Records share a request and are refused together, so those
    /// refused are suspects, unless there is but one and nothing else under way.
    pub(crate) fn failed(&self) -> Option<Failure> {
        let state = self.state();
        let mut failure = state.failed.clone()?;
        if failure.kind == ErrorKind::Refused {
            let complete = |count: &Count| count.reported >= count.produced;
            failure.refusals.clone_from(&state.refused);
            failure.suspects = state.refused.len() > 1 || !state.counts.iter().all(complete);
        }
        Some(failure)
    }

    /// A broker has answered.
    pub(crate) fn answered(&self) {
        self.state().trouble = None;
        self.told.clear();
    }

    /// What was thrown away, for a cause that is told elsewhere.
    pub(crate) fn purged(&self) -> Option<Failure> {
        self.state().purged.clone()
    }

    /// What stands in the way at the moment, as far as is known: refused credentials, an unreachable broker.
    pub(crate) fn trouble(&self) -> Option<Failure> {
        self.state().trouble.clone()
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Ticket;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Ticket) {
        let mut state = self.state();
        state.seen += 1;
        // A report for a closed ticket comes after an abort, when nobody counts any more.
        let index = ticket.wrapping_sub(state.first);
        if let Some(count) = state.counts.get_mut(index) {
            count.reported += 1;
        }
        if result.is_ok() && state.trouble.take().is_some() {
            self.told.clear();
        }
        if let Err((error, message)) = result {
            let id = change_id(message);
            let failure = not_delivered(error, message, id.as_deref());
            state
                .refused
                .extend(id.and_then(|id| refusal(&failure, &id)));
            let follows = matches!(
                error.rdkafka_error_code(),
                Some(Code::PurgeQueue | Code::PurgeInflight)
            );
            let place = match follows {
                true => &mut state.purged,
                false => &mut state.failed,
            };
            place.get_or_insert(failure);
        }
    }
}

fn change_id(message: &BorrowedMessage<'_>) -> Option<String> {
    let headers = message.headers()?;
    let id = headers.iter().find(|header| header.key == HEADER_ID)?;
    Some(String::from_utf8_lossy(id.value?).into_owned())
}

fn not_delivered(error: &KafkaError, message: &BorrowedMessage<'_>, id: Option<&str>) -> Failure {
    let what = format!(
        "change {} ({} bytes) was not delivered to topic `{}`",
        id.unwrap_or("without id"),
        message.payload_len(),
        message.topic()
    );
    match error.rdkafka_error_code() {
        // The broker says this of a record without a key in a compacted topic, and of one whose time is out of range, and
        // the library passes on only that. Of one with a key it can be but the time, which is that of our clock.
        Some(Code::InvalidRecord) if message.key().is_some() => Failure::of_code(
            what,
            Code::InvalidTimestamp,
            "Broker: Failed to validate record",
        ),
        _ => Failure::of(what, error),
    }
}

fn refusal(failure: &Failure, id: &str) -> Option<Refusal> {
    if failure.kind != ErrorKind::Refused {
        return None;
    }
    let (source, position) = SourceInfo::parse_change_id(id)?;
    Some(Refusal {
        source,
        table: None,
        position,
        reason: failure.reason.unwrap_or(reason::REFUSED),
        message: failure.error().to_string(),
    })
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        tracing::warn!(%code, reason, "kafka");
        let failure = Failure::of_code("the Kafka client reports", code, reason);
        let mut state = self.state();
        // A refusal explains the silence that follows it; a transport error only says that there is silence.
        let is_explained = explains(code);
        if is_explained || state.trouble.is_none() || !state.is_explained {
            self.told
                .report(format!("{} {}", failure.kind.code(), failure.message));
            state.trouble = Some(failure);
            state.is_explained = is_explained;
        }
    }
}

/// The context of the clients that read.
pub(crate) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl rdkafka::consumer::ConsumerContext for Quiet {}

fn log(level: RDKafkaLogLevel, fac: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning => tracing::warn!(fac, "librdkafka: {message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::info!(fac, "librdkafka: {message}")
        }
        RDKafkaLogLevel::Debug => tracing::debug!(fac, "librdkafka: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_closes_only_when_everything_is_reported() {
        let reports = Reports::default();
        let (first, second) = (reports.open(), reports.open());
        reports.produced(first, 2);
        reports.produced(second, 0);
        assert!(!reports.close_first() && !reports.complete());
        for _ in 0..2 {
            let mut state = reports.state();
            let index = first - state.first;
            state.counts[index].reported += 1;
        }
        assert!(reports.complete());
        assert!(reports.close_first() && reports.close_first() && !reports.close_first());
        assert_eq!(reports.open(), second + 1);
    }
}
