//! Records into librdkafka, reports out of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{HEADER_BRANCHES, HEADER_GLOBAL, HEADER_ID, Record};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::sync::Semaphore;

use crate::error::Failure;
use crate::gather::Whole;
use crate::reports::{Reports, Ticket};

/// How long reports may come after the trouble that they report.
const LATE: Duration = Duration::from_secs(1);

/// What the sink and its thread both look at.
pub(crate) struct Shared {
    /// The sink is gone: nothing may be committed any more.
    dropped: AtomicBool,
    /// Why the thread ended.
    failure: Mutex<Option<Failure>>,
    /// Room in the inbox, in batches.
    pub(crate) room: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(room: usize) -> Self {
        Shared {
            dropped: AtomicBool::new(false),
            failure: Mutex::new(None),
            room: Arc::new(Semaphore::new(room)),
        }
    }

    pub(crate) fn drop_sink(&self) {
        self.dropped.store(true, Ordering::Release);
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    pub(crate) fn fail(&self, failure: &Failure) {
        let mut slot = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert_with(|| failure.clone());
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A wait that grows, between looks at a queue that cannot be waited on: `BaseProducer::poll` with a timeout sits it out
/// to the end even when reports have come.
pub(crate) struct Pause(Duration);

impl Pause {
    const FIRST: Duration = Duration::from_micros(50);
    const LAST: Duration = Duration::from_millis(1);

    pub(crate) fn new() -> Self {
        Pause(Self::FIRST)
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LAST);
        pause
    }
}

/// The producer with what is needed to wait for it.
pub(crate) struct Outlet {
    pub(crate) producer: BaseProducer<Reports>,
    pub(crate) shared: Arc<Shared>,
}

impl Outlet {
    pub(crate) fn reports(&self) -> &Arc<Reports> {
        self.producer.context()
    }

    /// Hands one record over. Waits while librdkafka's queue is full.
    pub(crate) fn send(
        &self,
        topic: &str,
        partition: Option<i32>,
        record: &Record<'_>,
        ticket: Ticket,
    ) -> Result<()> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in record.headers.iter() {
            headers = headers.insert(Header {
                key,
                value: Some(value),
            });
        }
        self.push(BaseRecord {
            topic,
            partition,
            payload: record.value,
            key: record.key,
            timestamp: None,
            headers: Some(headers),
            delivery_opaque: ticket,
        })
    }

    /// Hands a record of a transaction over, or of a part of it, and counts it.
    pub(crate) fn send_whole(&self, topic: &str, whole: &Whole, ticket: Ticket) -> Result<()> {
        let branches = whole.global.branches.to_string();
        let headers = [
            (HEADER_ID, &*whole.id),
            (HEADER_GLOBAL, whole.global.id.as_bytes()),
            (HEADER_BRANCHES, branches.as_bytes()),
        ];
        let mut owned = OwnedHeaders::new_with_capacity(headers.len());
        for (key, value) in headers {
            owned = owned.insert(Header {
                key,
                value: Some(value),
            });
        }
        self.push(BaseRecord {
            topic,
            partition: None,
            payload: Some(whole.value.as_slice()),
            key: Some(whole.key.as_slice()),
            timestamp: None,
            headers: Some(owned),
            delivery_opaque: ticket,
        })?;
        self.reports().produced(ticket, 1);
        Ok(())
    }

    /// As [`Outlet::send`], for a record that is not made from a change.
    pub(crate) fn push(&self, mut record: BaseRecord<'_, [u8], [u8], Ticket>) -> Result<()> {
        let mut pause = Pause::new();
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(Code::QueueFull), back)) => {
                    record = back;
                    self.wait(&mut pause)?;
                }
                Err((error, back)) => {
                    let bytes = back.payload.map_or(0, <[u8]>::len);
                    return Err(self.cause(
                        format!(
                            "a record of {bytes} bytes for topic `{}` cannot be sent",
                            back.topic
                        ),
                        &error,
                    ));
                }
            }
        }
    }

    /// Handles the reports that have come. Whether there were any.
    pub(crate) fn pump(&self) -> bool {
        let reports = self.reports();
        let before = reports.seen();
        let mut last = before;
        loop {
            // One event, which holds the reports of one request.
            self.producer.poll(Duration::ZERO);
            let now = reports.seen();
            if now == last {
                return now != before;
            }
            last = now;
        }
    }

    /// Handles reports; sleeps a little when there were none.
    ///
    /// # Errors
    /// When a record was not delivered, or the sink is gone.
    pub(crate) fn wait(&self, pause: &mut Pause) -> Result<()> {
        let progress = self.pump();
        self.healthy()?;
        if !progress {
            std::thread::sleep(pause.next());
        }
        Ok(())
    }

    /// # Errors
    /// When a record was not delivered, or the sink is gone.
    pub(crate) fn healthy(&self) -> Result<()> {
        if self.shared.is_dropped() {
            return Err(dropped());
        }
        if let Some(failure) = self.reports().failed() {
            return Err(self.fatal().unwrap_or(failure).error());
        }
        match self.reports().purged() {
            Some(purged) => Err(self.spoiled().unwrap_or(purged).error()),
            None => Ok(()),
        }
    }

    /// Waits until every record handed over is reported.
    pub(crate) fn drain(&self) -> Result<()> {
        let mut pause = Pause::new();
        loop {
            self.pump();
            self.healthy()?;
            if self.reports().complete() {
                return Ok(());
            }
            std::thread::sleep(pause.next());
        }
    }

    /// Why `what` failed: the fatal error of the producer if there is one, else the first record that was not
    /// delivered, else `error`; the later ones only follow from the earlier.
    pub(crate) fn cause(&self, what: impl std::fmt::Display, error: &KafkaError) -> Error {
        self.pump();
        self.known()
            .or_else(|| match error.rdkafka_error_code() {
                Some(Code::State) => self.spoiled(),
                _ => None,
            })
            .unwrap_or_else(|| Failure::of(what, error))
            .error()
    }

    fn known(&self) -> Option<Failure> {
        self.fatal().or_else(|| self.reports().failed())
    }

    /// What has spoilt the transaction: nothing more is taken then, and what waited is thrown away. The client does both before
    /// it hands over the report of the record that it was, if it was one.
    fn spoiled(&self) -> Option<Failure> {
        let end = Instant::now() + LATE;
        let mut pause = Pause::new();
        while Instant::now() < end {
            self.pump();
            if let Some(failure) = self.known() {
                return Some(failure);
            }
            std::thread::sleep(pause.next());
        }
        // Refused in such a state, with the reason for it.
        match self.producer.begin_transaction() {
            Err(error) if error.rdkafka_error_code() != Some(Code::NotConfigured) => {
                Some(Failure::of("the transaction cannot go on", &error))
            }
            _ => None,
        }
    }

    /// The error that ended the producer for good: it was fenced, or its sequence broke.
    pub(crate) fn fatal(&self) -> Option<Failure> {
        let (code, reason) = self.producer.client().fatal_error()?;
        Some(match code {
            Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Failure::of_code(
                "another producer took over the transactional id",
                code,
                &reason,
            ),
            _ => Failure::of_code("the producer cannot go on", code, &reason),
        })
    }
}

pub(crate) fn dropped() -> Error {
    Error::new(ErrorKind::Stopping, "the sink was dropped")
}
