//! What is known about one lane, shared between the pumps, the lane itself, the keeper and whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::progress::Progress;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{SinkContext, Trouble};
use tokio::sync::{Notify, SetOnce, mpsc};
use tokio::time::Instant;

use super::course::Request;
use super::flow::Compares;
use super::inbox::Inbox;
use super::inspector::Inspectors;
use super::lock;
use crate::status::SinkPhase;

/// Replays that may wait for a lane.
const REQUESTS: usize = 16;

/// See the module's page.
pub(super) struct LaneState {
    /// Name in the pipeline file.
    pub name: Arc<str>,
    /// What the pumps have sent.
    pub inbox: Inbox,
    /// The sources that reach it, by index.
    pub sources: Vec<usize>,
    /// What the sink waits for, when it says so.
    pub trouble: Trouble,
    view: Mutex<View>,
    announced: Mutex<BTreeMap<usize, Announced>>,
    changed: Notify,
    /// What the sink was opened with last.
    context: Mutex<Option<SinkContext>>,
    /// What it held of each source when it was opened first.
    held: SetOnce<BTreeMap<usize, Progress>>,
    /// What reads the sink back.
    pub inspectors: Arc<Inspectors>,
    /// To the lane, and until it takes them over its end of them.
    asking: mpsc::Sender<Request>,
    asked: Mutex<Option<mpsc::Receiver<Request>>>,
}

/// A source that reaches the lane, and its tables as they arrive.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    pub info: Arc<SourceInfo>,
    pub tables: Vec<Arc<TableSchema>>,
    /// How far they can be compared with their source.
    pub compares: Compares,
}

/// How the lane stands.
pub(super) struct View {
    pub phase: SinkPhase,
    pub problem: Option<String>,
    /// By source index: everything up to here is durable.
    pub through: BTreeMap<usize, Lsn>,
    /// By source index: everything before this mark is durable.
    pub marks: BTreeMap<usize, u64>,
    pub in_flight: usize,
    pub written: u64,
    pub stale: u64,
    pub incomplete: u64,
    pub errors: u64,
    /// When the oldest change in flight was committed, microseconds since the Unix epoch.
    pub oldest: Option<i64>,
    /// When something last became durable, or work came to an idle lane.
    pub moved: Instant,
}

impl LaneState {
    pub fn new(name: Arc<str>, sources: Vec<usize>) -> Self {
        let (asking, asked) = mpsc::channel(REQUESTS);
        LaneState {
            asking,
            asked: Mutex::new(Some(asked)),
            name,
            inbox: Inbox::default(),
            sources,
            trouble: Trouble::default(),
            view: Mutex::new(View {
                phase: SinkPhase::Opening,
                problem: None,
                through: BTreeMap::new(),
                marks: BTreeMap::new(),
                in_flight: 0,
                written: 0,
                stale: 0,
                incomplete: 0,
                errors: 0,
                oldest: None,
                moved: Instant::now(),
            }),
            announced: Mutex::default(),
            context: Mutex::default(),
            held: SetOnce::new(),
            inspectors: Arc::default(),
            changed: Notify::new(),
        }
    }

    /// What reaches the sink of one source, as far as that is known.
    pub fn reached_by(&self, source: usize) -> Option<Announced> {
        lock(&self.announced).get(&source).cloned()
    }

    /// What the sink was opened with last; `None` before it has been open.
    pub fn context(&self) -> Option<SinkContext> {
        lock(&self.context).clone()
    }

    /// The sink has been opened with this.
    pub fn opened(&self, context: SinkContext) {
        *lock(&self.context) = Some(context);
        self.inspectors.forget();
    }

    /// The sink is open, and holds this much of each source.
    pub fn holds(&self, held: &BTreeMap<usize, Progress>) {
        // What it has been given since is known to whoever gave it.
        let _ = self.held.set(held.clone());
    }

    /// What the sink held of a source when it was opened first; pends until then. `None` when it cannot tell. Cancel-safe.
    pub async fn held_first(&self, source: usize) -> Option<Progress> {
        self.held.wait().await.get(&source).cloned()
    }

    /// Asks the lane for a replay; pends while many are asked for.
    ///
    /// # Errors
    /// The request, when the lane has ended.
    pub async fn ask(&self, request: Request) -> Result<(), Request> {
        self.asking.send(request).await.map_err(|error| error.0)
    }

    /// The lane's end of what it is asked. For the lane, once.
    pub fn requests(&self) -> mpsc::Receiver<Request> {
        lock(&self.asked)
            .take()
            .unwrap_or_else(|| mpsc::channel(1).1)
    }

    pub fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }

    /// How far everything of a source is durable here.
    pub fn through(&self, source: usize) -> Option<Lsn> {
        self.view().through.get(&source).copied()
    }

    /// The last mark of a source before which everything is durable here; zero before the first.
    pub fn mark(&self, source: usize) -> u64 {
        self.view().marks.get(&source).copied().unwrap_or_default()
    }

    /// A source has been opened.
    pub fn announce(&self, source: usize, announced: Announced) {
        lock(&self.announced).insert(source, announced);
        self.changed.notify_one();
    }

    /// The sources that reach the lane, by index, once all of them have been open. For one waiter. Cancel-safe.
    pub async fn announced(&self) -> BTreeMap<usize, Announced> {
        loop {
            let changed = self.changed.notified();
            {
                let announced = lock(&self.announced);
                if self
                    .sources
                    .iter()
                    .all(|source| announced.contains_key(source))
                {
                    return announced.clone();
                }
            }
            changed.await;
        }
    }
}
