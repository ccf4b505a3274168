//! The time a record was made at.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Records that may share a reading of the clock.
const SHARE: u32 = 64;

/// The system's clock, read once per batch and every [`SHARE`] records, with the text of the reading.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    batch: Option<Instant>,
    left: u32,
    now: Now,
}

/// A moment.
#[derive(Debug, Default)]
pub(crate) struct Now {
    /// Milliseconds since the Unix epoch.
    pub(crate) millis: u64,
    /// Microseconds.
    pub(crate) micros: u64,
    /// Nanoseconds.
    pub(crate) nanos: u64,
    /// `"ts_ms":…,"ts_us":…,"ts_ns":…`
    pub(crate) fields: String,
}

impl Clock {
    /// The moment; `batch` is when the batch was received.
    pub(crate) fn now(&mut self, batch: Instant) -> &Now {
        if self.left == 0 || self.batch != Some(batch) {
            self.batch = Some(batch);
            self.left = SHARE;
            let nanos = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_nanos();
            let (millis, micros) = (nanos / 1_000_000, nanos / 1000);
            self.now.millis = millis as u64;
            self.now.micros = micros as u64;
            self.now.nanos = nanos as u64;
            self.now.fields = format!(r#""ts_ms":{millis},"ts_us":{micros},"ts_ns":{nanos}"#);
        }
        self.left -= 1;
        &self.now
    }
}
