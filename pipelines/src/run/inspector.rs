//! What reads a sink back. It may have read much to be able to compare anything, so it stays open while comparisons keep
//! coming, and is shared by the lane, which compares at a place of the stream, and by those who ask for it.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use lockstep_core::Result;
use lockstep_core::sink::{Inspect, Keys, Listing, SinkContext};
use tokio::time::Instant;

use super::lock;
use crate::registry::SinkComponent;

/// How long it stays open when nobody asks for anything.
const IDLE: Duration = Duration::from_secs(60);

/// One that is open.
pub(super) type Inspector = Arc<tokio::sync::Mutex<Box<dyn Inspect>>>;

/// See the module's page.
#[derive(Default)]
pub(super) struct Inspectors {
    slot: Mutex<Slot>,
    /// One is opened at a time.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Slot {
    open: Option<Inspector>,
    used: Option<Instant>,
    /// Counts the openings of the sink: one that was opened before does not count any more.
    era: u64,
}

impl Inspectors {
    /// The one that is open, or a new one; `None` when the sink cannot be read.
    ///
    /// # Errors
    /// See [`SinkComponent::inspect`].
    pub async fn get(
        self: &Arc<Self>,
        component: &dyn SinkComponent,
        context: SinkContext,
    ) -> Result<Option<Inspector>> {
        let _opening = self.opening.lock().await;
        let era = {
            let mut slot = lock(&self.slot);
            slot.used = Some(Instant::now());
            if let Some(open) = &slot.open {
                return Ok(Some(Arc::clone(open)));
            }
            slot.era
        };
        let Some(opened) = component.inspect(context).await? else {
            return Ok(None);
        };
        let opened: Inspector = Arc::new(tokio::sync::Mutex::new(opened));
        let mut slot = lock(&self.slot);
        if slot.era == era {
            slot.open = Some(Arc::clone(&opened));
            tokio::spawn(close_idle(Arc::downgrade(self), Arc::downgrade(&opened)));
        }
        Ok(Some(opened))
    }

    /// Whoever asks next gets a new one.
    pub fn forget(&self) {
        let mut slot = lock(&self.slot);
        slot.open = None;
        slot.era += 1;
    }

    /// It is still in use.
    fn touch(&self) {
        lock(&self.slot).used = Some(Instant::now());
    }
}

/// Closes one that nobody has asked for anything for a while.
async fn close_idle(
    inspectors: Weak<Inspectors>,
    opened: Weak<tokio::sync::Mutex<Box<dyn Inspect>>>,
) {
    let mut due = Instant::now() + IDLE;
    loop {
        tokio::time::sleep_until(due).await;
        let Some(inspectors) = inspectors.upgrade() else {
            return;
        };
        let mut slot = lock(&inspectors.slot);
        let is_this = |open: &&Inspector| Weak::as_ptr(&opened) == Arc::as_ptr(open);
        let Some(open) = slot.open.as_ref().filter(is_this) else {
            return;
        };
        let now = Instant::now();
        due = slot.used.map_or(now, |used| used + IDLE);
        // At work for long.
        if Arc::strong_count(open) > 1 {
            due = due.max(now + IDLE);
        }
        if due <= now {
            slot.open = None;
            return;
        }
    }
}

/// A walk during which the sink is not closed.
pub(super) struct Walk {
    pub listing: Box<dyn Listing>,
    pub inspectors: Arc<Inspectors>,
}

#[async_trait::async_trait]
impl Listing for Walk {
    async fn next(&mut self) -> Result<Option<Keys>> {
        self.inspectors.touch();
        self.listing.next().await
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use lockstep_core::Error;
    use lockstep_core::ErrorKind;
    use lockstep_core::batch::Batch;
    use lockstep_core::check::Finding;
    use lockstep_core::schema::TableSchema;
    use lockstep_core::sink::{Held, Sink, Trouble};

    use super::*;

    /// Counts how often it was opened, and how many are open.
    #[derive(Default)]
    struct Counted {
        opened: AtomicUsize,
        alive: Arc<()>,
    }

    struct Nothing(#[expect(dead_code, reason = "is counted")] Arc<()>);

    #[async_trait]
    impl Inspect for Nothing {
        async fn compare(&mut self, _: &Batch) -> Result<Vec<Held>> {
            Ok(Vec::new())
        }

        async fn count(&mut self, _: &TableSchema) -> Result<u64> {
            Ok(0)
        }
    }

    #[async_trait]
    impl SinkComponent for Counted {
        async fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
            Err(Error::new(ErrorKind::Invalid, "not opened here"))
        }

        async fn preflight(&self, _: &str, _: &str) -> Vec<Finding> {
            Vec::new()
        }

        async fn inspect(&self, _: SinkContext) -> Result<Option<Box<dyn Inspect>>> {
            self.opened.fetch_add(1, Ordering::Relaxed);
            Ok(Some(Box::new(Nothing(Arc::clone(&self.alive)))))
        }

        fn suits(&self, _: &TableSchema) -> Vec<Finding> {
            Vec::new()
        }

        fn keeps_rows(&self) -> bool {
            true
        }

        fn resumes_exactly(&self) -> bool {
            true
        }

        fn is_exact(&self) -> bool {
            true
        }

        fn keeps_here(&self) -> bool {
            false
        }
    }

    fn context() -> SinkContext {
        SinkContext {
            pipeline: "p".into(),
            name: "s".into(),
            state: Path::new("/nowhere").to_path_buf(),
            sources: Vec::new(),
            tables: Vec::new(),
            trouble: Trouble::default(),
            token: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_stays_open_while_it_is_asked_and_no_longer() {
        let (inspectors, sink) = (Arc::new(Inspectors::default()), Counted::default());
        let alive = || Arc::strong_count(&sink.alive) - 1;
        let opened = || sink.opened.load(Ordering::Relaxed);
        let get = async || inspectors.get(&sink, context()).await.expect("opens");
        for _ in 0..10 {
            drop(get().await);
            tokio::time::sleep(IDLE * 3 / 4).await;
        }
        assert_eq!((opened(), alive()), (1, 1));
        // At work for as long as it likes.
        let held = get().await;
        tokio::time::sleep(IDLE * 10).await;
        drop(get().await);
        assert_eq!((opened(), alive()), (1, 1));
        drop(held);
        tokio::time::sleep(IDLE * 3).await;
        assert_eq!((opened(), alive()), (1, 0));
        drop(get().await);
        assert_eq!((opened(), alive()), (2, 1));
        // The sink is opened anew.
        inspectors.forget();
        assert_eq!(alive(), 0);
        drop(get().await);
        tokio::time::sleep(IDLE * 3 / 4).await;
        assert_eq!((opened(), alive()), (3, 1));
    }
}
