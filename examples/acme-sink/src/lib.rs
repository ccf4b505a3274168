//! A sink for AcmeMQ, which takes lines over TCP, subject, id, key and value with tabs between. After an empty line it answers: `OK` once what came before
//! is on its disk, or the number of a line that it refuses, and why.
//!
//! At least once: what was not answered before a crash comes again, under the same id.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Phase};
use lockstep_core::check::Finding;
use lockstep_core::durable::{Delivered, Durable};
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::refusal::Refusals;
use lockstep_core::sidecar::{Positions, Sidecar};
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{Encoder, Format};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

/// The section of the pipeline file, `type = "acme"`.
#[derive(Clone, Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcmeConfig {
    /// `host:port` of the broker.
    pub broker: String,
}

/// Makes these sinks.
pub struct Acme;

struct AcmeSink {
    broker: BufStream<TcpStream>,
    encoder: Encoder,
    sidecar: Sidecar,
    positions: Positions,
}

fn away(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the broker is away").source(error)
}

#[async_trait]
impl SinkFactory for Acme {
    const KIND: &'static str = "acme";
    type Config = AcmeConfig;

    async fn open(config: &AcmeConfig, context: SinkContext) -> Result<Box<dyn Sink>> {
        let (sidecar, positions) = Sidecar::open(&context.state, &|| false)?;
        let broker = TcpStream::connect(&config.broker).await.map_err(away)?;
        let (broker, encoder) = (BufStream::new(broker), Encoder::new(Format::Flat));
        Ok(Box::new(AcmeSink {
            broker,
            encoder,
            sidecar,
            positions,
        }))
    }

    async fn preflight(config: &AcmeConfig, _pipeline: &str, _name: &str) -> Vec<Finding> {
        vec![match TcpStream::connect(&config.broker).await {
            Ok(_) => Finding::pass("broker", "it takes connections"),
            Err(error) => Finding::fail("broker", error.to_string(), "start it, or mend `broker`"),
        }]
    }

    fn is_exact(_config: &AcmeConfig) -> bool {
        false
    }

    fn keeps_here() -> bool {
        true
    }
}

#[async_trait]
impl Sink for AcmeSink {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Progress>> {
        Ok(self.positions.of(source).cloned())
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let (mut lines, mut of_line) = (Vec::new(), Vec::new());
        let mut refusals = Refusals::default();
        for change in batch.changes() {
            let id = batch.source.change_id(batch.position(change));
            refusals.take(self.encoder.encode(&batch, change, &mut |record| {
                // A tombstone says nothing that the record before has not said.
                let Some(value) = record.json_value() else {
                    return Ok(());
                };
                let key = record.json_key().unwrap_or_default();
                lines.extend_from_slice(format!("{}\t{id}\t", record.schema.id).as_bytes());
                // A newline in JSON stands between tokens.
                let json = key.iter().chain(b"\t").chain(&*value);
                lines.extend(json.map(|&byte| if byte == b'\n' { b' ' } else { byte }));
                lines.push(b'\n');
                of_line.push(change);
                Ok(())
            }))?;
        }
        refusals.finish()?;
        lines.push(b'\n');
        self.broker.write_all(&lines).await.map_err(away)?;
        self.broker.flush().await.map_err(away)?;
        let mut answer = String::new();
        self.broker.read_line(&mut answer).await.map_err(away)?;
        if answer != "OK\n" {
            let (line, why) = answer.trim_end().split_once(' ').unwrap_or_default();
            let of_line = line.parse().ok().and_then(|line: usize| of_line.get(line));
            let change = of_line.ok_or_else(|| away(std::io::ErrorKind::InvalidData.into()))?;
            let (table, position) = (&batch.schema(change).id, batch.position(change));
            let refused = Error::new(ErrorKind::Refused, why);
            return Err(refused.about(&batch.source, table, position));
        }
        // Rows of a copy come from several readers: their positions say nothing of each other.
        if let (Phase::Stream, Some(last)) = (batch.phase, batch.changes().last()) {
            self.positions.note(&batch.source, batch.progress_at(last));
            self.sidecar.save(&self.positions)?;
        }
        let (written, bytes) = (of_line.len() as u64, lines.len() as u64);
        Ok(Durable::now(Delivered {
            written,
            bytes,
            ..Delivered::default()
        }))
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
