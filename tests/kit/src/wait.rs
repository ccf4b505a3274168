use std::fmt::{Debug, Display};
use std::panic::Location;
use std::time::Duration;

use tokio::time::Instant;

/// The answer of one look at a condition.
pub trait Outcome {
    /// What [`wait_for`] returns once the condition holds.
    type Value;

    /// `Err` holds what was seen instead.
    fn outcome(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();

    fn outcome(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.ok_or_else(|| "None".into())
    }
}

/// `Err` means "not yet"; the last one is shown if the time runs out.
impl<T, E: Debug> Outcome for Result<T, E> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.map_err(|seen| format!("{seen:?}"))
    }
}

/// What the future's outcome holds.
pub(crate) type Value<F> = <<F as Future>::Output as Outcome>::Value;

/// Looks again and again (after 1 ms at first, 50 ms at most) until `check` answers `true`, `Some` or `Ok`, and returns
/// the value. A look that itself hangs is cut off at the deadline.
///
/// # Panics
/// When `deadline` has passed, naming `what`, the caller and what the last look saw.
#[track_caller]
pub fn wait_for<F: Future<Output: Outcome>>(
    deadline: Duration,
    what: impl Display,
    check: impl FnMut() -> F,
) -> impl Future<Output = Value<F>> {
    let caller = Location::caller();
    async move {
        match poll_until(deadline, check).await {
            Ok(value) => value,
            Err(seen) => panic!(
                "waited {deadline:?} in vain for {what} (at {caller}); the last look saw {seen}"
            ),
        }
    }
}

/// As [`wait_for`], returning what the last look saw when the time has run out.
pub(crate) async fn poll_until<F: Future<Output: Outcome>>(
    deadline: Duration,
    mut check: impl FnMut() -> F,
) -> Result<Value<F>, String> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(1);
    let mut seen = None;
    loop {
        match tokio::time::timeout_at(end, check())
            .await
            .map(Outcome::outcome)
        {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(now)) => seen = Some(now),
            Err(_) => return Err(seen.unwrap_or_else(|| "nothing: it did not return".into())),
        }
        if Instant::now() + pause >= end {
            return Err(seen.unwrap_or_default());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
