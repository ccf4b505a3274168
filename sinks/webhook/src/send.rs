//! A request on its way, until the receiver has taken it or will not.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::Error;
use lockstep_core::sink::Trouble;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::answer::Verdict;
use crate::client::Client;
use crate::request::Request;

/// The first pause: short enough that a restarted receiver is not waited for.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause: long enough to leave a receiver in trouble alone, short enough that its return is noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How a request ended.
pub(crate) enum End {
    Taken,
    Failed(Error),
    /// Not taken yet when the sink was about to end.
    GivenUp,
}

/// What all requests share.
pub(crate) struct Sender {
    client: Client,
    troubles: Troubles,
    /// The receiver has asked for patience until then.
    hold: Mutex<Instant>,
}

impl Sender {
    pub(crate) fn new(client: Client, trouble: Trouble) -> Self {
        Sender {
            client,
            troubles: Troubles(Arc::new((trouble, Mutex::default()))),
            hold: Mutex::new(Instant::now()),
        }
    }

    /// Tries for ever, with growing pauses; only once, when `ending` says so.
    pub(crate) async fn send(
        &self,
        number: u64,
        request: &Request,
        mut ending: watch::Receiver<bool>,
    ) -> End {
        let mut pause = FIRST_PAUSE;
        let mut trouble = None;
        loop {
            // It may be put off again meanwhile.
            loop {
                let until = *lock(&self.hold);
                if until <= Instant::now() {
                    break;
                }
                if !waited(until, &mut ending).await {
                    return End::GivenUp;
                }
            }
            let (error, told) = match self.client.post(request).await {
                Verdict::Taken => return End::Taken,
                Verdict::Failed(error) => return End::Failed(request.of(error)),
                Verdict::Again(error, told) => (error, told),
            };
            if let Some(told) = told {
                let mut hold = lock(&self.hold);
                *hold = (*hold).max(Instant::now() + told);
            }
            let wait = spread(pause).max(told.unwrap_or_default());
            pause = (pause * 2).min(LONGEST_PAUSE);
            tracing::debug!(%error, ?wait, id = request.id, "a request is tried again");
            let trouble = trouble.get_or_insert_with(|| self.troubles.enter(number));
            trouble.tell(error.to_string());
            if !waited(Instant::now() + wait, &mut ending).await {
                return End::GivenUp;
            }
        }
    }
}

/// Waits; `false` when the sink ends before that.
async fn waited(until: Instant, ending: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        biased;
        // An error: nobody is left who could say anything else.
        _ = ending.wait_for(|ends| *ends) => false,
        () = sleep_until(until) => true,
    }
}

/// Between half of a pause and the whole, so that many requests do not come back at the same moment.
fn spread(pause: Duration) -> Duration {
    // The standard library's only source of randomness; quality does not matter here.
    let random = RandomState::new().build_hasher().finish();
    pause.mul_f64(0.5 + 0.5 * (random as f64 / u64::MAX as f64))
}

/// Requests that wait to be tried again. The oldest one speaks for all.
#[derive(Clone)]
struct Troubles(Arc<(Trouble, Mutex<BTreeMap<u64, String>>)>);

impl Troubles {
    fn enter(&self, number: u64) -> InTrouble {
        InTrouble {
            troubles: self.clone(),
            number,
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<u64, String>)) {
        let (trouble, waiting) = &*self.0;
        let mut waiting = lock(waiting);
        change(&mut waiting);
        match waiting.values().next() {
            Some(text) => trouble.report(text),
            None => trouble.clear(),
        }
    }
}

/// A request in trouble, until it is dropped.
struct InTrouble {
    troubles: Troubles,
    number: u64,
}

impl InTrouble {
    fn tell(&self, text: String) {
        self.troubles
            .change(|waiting| drop(waiting.insert(self.number, text)));
    }
}

impl Drop for InTrouble {
    fn drop(&mut self) {
        self.troubles
            .change(|waiting| drop(waiting.remove(&self.number)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_in_trouble_speaks_until_none_is_left() {
        let trouble = Trouble::default();
        let troubles = Troubles(Arc::new((trouble.clone(), Mutex::default())));
        let later = troubles.enter(2);
        later.tell("two".into());
        let first = troubles.enter(1);
        first.tell("one".into());
        assert_eq!(trouble.get().as_deref(), Some("one"));
        drop(first);
        assert_eq!(trouble.get().as_deref(), Some("two"));
        drop(later);
        assert_eq!(trouble.get(), None);
    }
}
