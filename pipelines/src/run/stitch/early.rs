//! Asks for the rows of branches that have not committed, of transactions that have committed elsewhere.
//!
//! They come as the source has them since the PREPARE, and with them the transaction goes on, whole. A branch that ends meanwhile goes
//! on as ever. What is asked for and does not come is asked for again: the source may have been opened anew.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::Result;
use lockstep_core::batch::Prepared;
use lockstep_core::position::Lsn;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::source_state::SourceShare;
use super::shelf::Slice;

/// How long a source may take to say whether a branch is still prepared.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long rows may take to come before they are asked for again, and until a source that could not be asked is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// A branch: its source, and where it was prepared.
pub(super) type Place = (usize, Lsn);

/// See the module's page.
pub(super) struct Early {
    /// How long a transaction waits for its last branch before it is asked for; `None`: for ever.
    after: Option<Duration>,
    /// Units that wait, and from when on they do so for too long. In that order.
    due: VecDeque<(Instant, u64)>,
    /// Rows that have come of branches that were asked for; `None` once all have.
    rows: HashMap<Place, Option<Vec<Slice>>>,
    asking: JoinSet<()>,
}

/// Something is due.
pub(super) struct Due(pub u64);

impl Early {
    pub fn new(after: Option<Duration>) -> Self {
        Early {
            after,
            due: VecDeque::new(),
            rows: HashMap::new(),
            asking: JoinSet::new(),
        }
    }

    /// Whether anything goes on before it has committed.
    pub fn is_asked_for(&self) -> bool {
        self.after.is_some()
    }

    /// A unit has been found to wait for nothing but a branch.
    pub fn waits(&mut self, unit: u64) {
        if let Some(after) = self.after {
            self.put(after, unit);
        }
    }

    fn put(&mut self, after: Duration, unit: u64) {
        let at = Instant::now() + after;
        let behind = self.due.partition_point(|(due, _)| *due <= at);
        self.due.insert(behind, (at, unit));
    }

    /// The next unit that has waited for too long; pends while there is none. Cancel-safe.
    pub async fn due(&mut self) -> Due {
        loop {
            // Those who have asked have nothing to say.
            while self.asking.try_join_next().is_some() {}
            match self.due.front() {
                Some((at, _)) => sleep_until(*at).await,
                None => std::future::pending().await,
            }
            if let Some((_, unit)) = self.due.pop_front() {
                return Due(unit);
            }
        }
    }

    /// Asks for a branch that a unit waits for, and looks at the unit again later.
    pub fn ask(
        &mut self,
        unit: u64,
        place: Place,
        prepared: &Arc<Prepared>,
        share: &Arc<SourceShare>,
    ) {
        self.rows.entry(place).or_insert_with(|| Some(Vec::new()));
        let is_due = self.due.iter().any(|(_, due)| *due == unit);
        if !is_due {
            self.put(AGAIN, unit);
        }
        let (prepared, share) = (Arc::clone(prepared), Arc::clone(share));
        self.asking.spawn(async move {
            if let Err(error) = asked(&share, &prepared).await {
                tracing::debug!(source = %share.name, gid = %prepared.gid, %error, "the rows of a branch could not be asked for");
            }
        });
    }

    /// Rows have come. Gives them back when nobody waits for them.
    pub fn take(&mut self, place: Place, slice: Slice) -> Option<Slice> {
        match self.rows.get_mut(&place) {
            Some(Some(rows)) => {
                rows.push(slice);
                None
            }
            _ => Some(slice),
        }
    }

    /// All rows have come; `None` when nobody waits for them.
    pub fn whole(&mut self, place: Place) -> Option<Vec<Slice>> {
        self.rows.get_mut(&place)?.take()
    }

    /// The branch has ended. Gives what had come of it.
    pub fn ended(&mut self, place: Place) -> Vec<Slice> {
        self.rows.remove(&place).flatten().unwrap_or_default()
    }

    /// The source is read by another connection: what has come in part comes as a whole. Gives what had come.
    pub fn again(&mut self, source: usize) -> Vec<Slice> {
        let mut left = Vec::new();
        for (_, rows) in self.rows.iter_mut().filter(|((of, _), _)| *of == source) {
            left.extend(rows.iter_mut().flat_map(|rows| rows.drain(..)));
        }
        left
    }

    /// The source reads another log. Gives what had come.
    pub fn forget(&mut self, source: usize) -> Vec<Slice> {
        let left = self.again(source);
        self.rows.retain(|(of, _), _| *of != source);
        left
    }
}

async fn asked(share: &SourceShare, prepared: &Arc<Prepared>) -> Result<()> {
    let Some(fences) = share.fences() else {
        return Ok(());
    };
    match timeout(PATIENCE, fences.early(prepared)).await {
        Ok(asked) => asked.map(drop),
        // It is asked again.
        Err(_) => Ok(()),
    }
}
