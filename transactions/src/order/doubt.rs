//! What was read of the other branches of one that is in doubt.

use std::sync::Arc;

use lockstep_core::position::Lsn;

use super::{Order, Waiting};

/// A branch that is prepared, and has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InDoubt {
    /// Which source, by number.
    pub source: usize,
    /// Where it was prepared.
    pub prepared: Lsn,
    /// Where others of its transaction have ended.
    pub siblings: Ended,
    /// Where others of its name have ended lately, in other sources. They are of its transaction where names are not given twice, and were
    /// not prepared any more when this one was read.
    pub namesakes: Ended,
}

/// Sources in which branches have ended, each once, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// By a commit.
    pub committed: Vec<usize>,
    /// By a rollback.
    pub rolled_back: Vec<usize>,
}

impl Order {
    /// All branches that are prepared, as far as is read.
    #[must_use]
    pub fn in_doubt(&self) -> Vec<InDoubt> {
        let mut all = self.prepared_of(self.named.iter());
        all.extend(self.gone_early(|_| true));
        all
    }

    /// Those of them that have this name.
    #[must_use]
    pub fn in_doubt_as(&self, global: &Arc<str>) -> Vec<InDoubt> {
        let units = self.by_name.get(global);
        let mut all = self.prepared_of(units.into_iter().flatten());
        all.extend(self.gone_early(|of| of == global));
        all
    }

    /// Of those that have gone on before they ended.
    fn gone_early(&self, is_asked: impl Fn(&Arc<str>) -> bool) -> impl Iterator<Item = InDoubt> {
        let gone = self
            .early
            .iter()
            .filter(move |(_, gone)| is_asked(&gone.global));
        gone.map(|((source, prepared), gone)| InDoubt {
            source: *source,
            prepared: *prepared,
            siblings: gone.siblings.clone(),
            namesakes: self.namesakes(&gone.global, *source),
        })
    }

    fn prepared_of<'a>(&self, units: impl Iterator<Item = &'a u64>) -> Vec<InDoubt> {
        let mut all = Vec::new();
        for waiting in units.filter_map(|id| self.units.get(id)) {
            let Some(global) = &waiting.unit.global else {
                continue;
            };
            for &(source, prepared) in &waiting.prepared {
                all.push(InDoubt {
                    source,
                    prepared,
                    siblings: waiting.ended(),
                    namesakes: self.namesakes(global, source),
                });
            }
        }
        all
    }

    /// How far a source is read.
    #[must_use]
    pub fn read_up_to(&self, source: usize) -> Lsn {
        self.sources[source].read_up_to()
    }

    /// Whether each source is read up to its place.
    #[must_use]
    pub fn is_read_to(&self, ends: &[Lsn]) -> bool {
        let mut sources = self.sources.iter().zip(ends);
        sources.all(|(source, end)| source.is_read_to(*end))
    }

    fn namesakes(&self, global: &Arc<str>, source: usize) -> Ended {
        let mut ended = Ended::default();
        let units = self.by_name.get(global).into_iter().flatten();
        for waiting in units.filter_map(|id| self.units.get(id)) {
            ended.add(waiting.ended());
        }
        ended.add(Ended {
            committed: self.gone.places(global).to_vec(),
            rolled_back: self.rolled_back.places(global).to_vec(),
        });
        ended.committed.extend(self.left_out.places(global));
        for places in [&mut ended.committed, &mut ended.rolled_back] {
            places.retain(|place| *place != source);
            tidy(places);
        }
        ended
    }
}

impl Waiting {
    pub(super) fn ended(&self) -> Ended {
        let members = self.unit.members.iter().map(|member| member.source);
        let mut ended = Ended {
            committed: members.chain(self.left_out.iter().copied()).collect(),
            rolled_back: self.rolled_back.clone(),
        };
        tidy(&mut ended.committed);
        tidy(&mut ended.rolled_back);
        ended
    }
}

impl Ended {
    fn add(&mut self, other: Ended) {
        self.committed.extend(other.committed);
        self.rolled_back.extend(other.rolled_back);
    }
}

fn tidy(places: &mut Vec<usize>) {
    places.sort_unstable();
    places.dedup();
}
