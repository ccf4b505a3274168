//! Work that is exported as a trace, where the process exports any.
//!
//! A span of it has [`TARGET`], the level INFO, and the name of its pipeline among its fields: it is made per batch, table or action, never
//! per change. Where nobody exports traces, nobody is interested in the target, and a span costs two loads of atomics: its fields are not
//! looked at. The log never shows them.
//!
//! Spans are held, not entered: they end when they are dropped, whatever thread that happens on. They name no values of rows, and of errors only
//! the code: where traces go is not always where rows may go.

use tracing::Span;

use crate::Error;

/// The target of spans that are exported, and of nothing else.
pub const TARGET: &str = "lockstep::trace";

/// A span that tells how its work ended, once: what is dropped before was interrupted.
///
/// The span has the fields `outcome`, `error` and `otel.status_code`, all of them empty.
#[derive(Debug)]
pub struct Traced {
    span: Span,
    told: bool,
}

impl Traced {
    /// Work that begins.
    #[must_use]
    pub fn new(span: Span) -> Self {
        Traced { span, told: false }
    }

    /// Its span, to record what is known of it by now, or to be the parent of others.
    #[must_use]
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// It has ended as it should, in one word.
    pub fn ended(mut self, outcome: &str) {
        self.tell(outcome);
    }

    /// It has failed.
    pub fn failed(mut self, error: &Error) {
        if !self.span.is_disabled() {
            self.span.record("error", error.kind().code());
            self.span.record("otel.status_code", "ERROR");
        }
        self.tell("failed");
    }

    fn tell(&mut self, outcome: &str) {
        self.told = true;
        if !self.span.is_disabled() {
            self.span.record("outcome", outcome);
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if !self.told {
            self.tell("interrupted");
        }
    }
}

/// A count as a field of a span: what exports them has signed numbers.
#[must_use]
pub fn count(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Empty, Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber, info_span};

    use super::*;
    use crate::ErrorKind;

    /// What was recorded of spans, in order.
    #[derive(Clone, Default)]
    struct Recorded(Arc<Mutex<Vec<String>>>);

    impl Visit for Recorded {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            let mut recorded = self.0.lock().expect("nobody panics");
            recorded.push(format!("{field}={value:?}"));
        }
    }

    impl Subscriber for Recorded {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, attributes: &Attributes<'_>) -> Id {
            attributes.record(&mut self.clone());
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, values: &Record<'_>) {
            values.record(&mut self.clone());
        }
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    fn recorded(work: impl FnOnce(Traced)) -> Vec<String> {
        let recorded = Recorded::default();
        tracing::subscriber::with_default(recorded.clone(), || {
            work(Traced::new(info_span!(
                target: TARGET, "work", outcome = Empty, error = Empty, otel.status_code = Empty,
            )));
        });
        let recorded = recorded.0.lock().expect("nobody panics");
        recorded.clone()
    }

    #[test]
    fn each_end_is_told_once() {
        assert_eq!(recorded(|work| work.ended("done")), [r#"outcome="done""#]);
        assert_eq!(recorded(drop), [r#"outcome="interrupted""#]);
        let error = Error::new(ErrorKind::Unavailable, "a row: 4711");
        let failed = recorded(|work| work.failed(&error));
        let code = [r#"error="LS003""#, r#"otel.status_code="ERROR""#];
        assert_eq!(failed[..2], code);
        assert_eq!(failed[2..], [r#"outcome="failed""#]);
    }

    #[test]
    fn a_count_that_is_too_large_is_the_largest() {
        assert_eq!(count(7_usize), 7);
        assert_eq!(count(u64::MAX), i64::MAX);
    }
}
