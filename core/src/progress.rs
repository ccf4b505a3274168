//! How much of a source a sink holds.
//!
//! A source sends transactions in the order of their commits, and where they go on in that order one [`Position`] says it all.
//! Where transactions of several databases go on as wholes, one may go on while another that committed before it waits for
//! its other branches: then what has gone on *ahead* is named one by one, or as spans between those that wait. And a branch may go on *early*, before it has committed
//! itself, since another one has: then it is named by the place where it was prepared, until its commit has passed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::position::{Lsn, Position};

/// What is there of a source.
///
/// Written as `{"commit": "16/B374D848", "ordinal": 12}`, with `"ahead": [{…}]`, `"spans": [[{…}, {…}]]` and `"early": [{…}]` where there is
/// something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub struct Progress {
    upto: Position,
    ahead: Vec<Position>,
    /// Ascending, and apart from each other.
    spans: Vec<Span>,
    /// By the places where they were prepared.
    early: Vec<Position>,
}

/// Two places of a log, and everything between them, both included.
pub type Span = (Position, Position);

/// What a batch stands beside: which changes before its own have gone on, where those are not all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Everything at or below it has gone on; `None`: everything before each change of the batch.
    pub upto: Option<Position>,
    /// Changes behind that, in the order of their positions: the last one of each transaction that has gone on.
    pub ahead: Vec<Position>,
    /// Spans behind that of which everything has gone on, in their order.
    pub spans: Vec<Span>,
    /// Changes of branches that have gone on before they committed: the last one of each, at the place where it was prepared.
    pub early: Vec<Position>,
}

impl Progress {
    /// Everything at or below `upto`; and of transactions behind it, everything up to each of `ahead`.
    #[must_use]
    pub fn new(upto: Position, ahead: impl IntoIterator<Item = Position>) -> Self {
        let mut ahead: Vec<Position> = ahead.into_iter().filter(|held| *held > upto).collect();
        furthest(&mut ahead);
        Progress {
            upto,
            ahead,
            ..Progress::default()
        }
    }

    /// And everything in these spans, as far as they lie behind `upto`.
    #[must_use]
    pub fn and_spans(mut self, spans: impl IntoIterator<Item = Span>) -> Self {
        self.spans.extend(spans);
        self.spans.retain(|(_, to)| *to > self.upto);
        self.spans.sort_unstable();
        // Those that overlap are one.
        self.spans.dedup_by(|next, span| {
            let overlap = next.0 <= span.1;
            if overlap {
                span.1 = span.1.max(next.1);
            }
            overlap
        });
        let spans = &self.spans;
        self.ahead.retain(|held| !lies_in(spans, *held));
        self
    }

    /// And of branches that have not committed, or whose commit has not passed, everything up to each of `early`, which are at the
    /// places where they were prepared.
    #[must_use]
    pub fn and_early(mut self, early: impl IntoIterator<Item = Position>) -> Self {
        self.early.extend(early);
        furthest(&mut self.early);
        self
    }

    /// Everything at or below it is there.
    #[must_use]
    pub fn upto(&self) -> Position {
        self.upto
    }

    /// What else is there, in the order of positions: the last change of each transaction that is there, with all before it
    /// in the transaction.
    #[must_use]
    pub fn ahead(&self) -> &[Position] {
        &self.ahead
    }

    /// Of what else is there, spans of which everything is, in the order of positions.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// What has gone on before it committed: the last change of each branch, at the place where it was prepared.
    #[must_use]
    pub fn early(&self) -> &[Position] {
        &self.early
    }

    /// Whether a change is there that has committed.
    #[must_use]
    pub fn holds(&self, position: Position) -> bool {
        position <= self.upto || is_in(&self.ahead, position) || lies_in(&self.spans, position)
    }

    /// Whether a change is there of a branch that goes on before it commits, by its place in what was prepared.
    #[must_use]
    pub fn holds_early(&self, position: Position) -> bool {
        is_in(&self.early, position)
    }

    /// Whether everything that `other` has is there.
    #[must_use]
    pub fn covers(&self, other: &Progress) -> bool {
        let has = |(from, to): &Span| {
            let mut spans = self.spans.iter();
            *to <= self.upto
                || spans.any(|span| span.1 >= *to && (span.0 <= *from || *from <= self.upto))
        };
        other.upto <= self.upto
            && other.ahead.iter().all(|held| self.holds(*held))
            && other.spans.iter().all(has)
    }

    /// The highest position that is there.
    #[must_use]
    pub fn last(&self) -> Position {
        let ahead = self.ahead.last().copied();
        let spans = self.spans.last().map(|(_, to)| *to);
        ahead.max(spans).unwrap_or(self.upto)
    }

    /// What either of the two has.
    #[must_use]
    pub fn with(&self, other: &Progress) -> Progress {
        let ahead = self.ahead.iter().chain(&other.ahead).copied();
        let early = self.early.iter().chain(&other.early).copied();
        let spans = self.spans.iter().chain(&other.spans).copied();
        Progress::new(self.upto.max(other.upto), ahead)
            .and_spans(spans)
            .and_early(early)
    }

    /// What both have, and perhaps not all of it: what one has by a span and the other one by one may be left out.
    #[must_use]
    pub fn common(&self, other: &Progress) -> Progress {
        let both = |position: &Position| self.holds(*position) && other.holds(*position);
        let ahead = self.ahead.iter().chain(&other.ahead).copied();
        let spans = |one: &Progress, other: &Progress| {
            let spans = one.spans.iter().copied();
            let is_there = |span: &Span| other.covers(&Progress::default().and_spans([*span]));
            spans.filter(is_there).collect::<Vec<Span>>()
        };
        Progress::new(self.upto.min(other.upto), ahead.filter(both))
            .and_spans(spans(self, other))
            .and_spans(spans(other, self))
    }
}

fn lies_in(spans: &[Span], position: Position) -> bool {
    let at = spans.partition_point(|(_, to)| *to < position);
    spans.get(at).is_some_and(|(from, _)| *from <= position)
}

/// Of one transaction the furthest counts. A message outside of transactions, at the place of a commit, is none of it.
fn furthest(places: &mut Vec<Position>) {
    places.sort_unstable();
    places.dedup_by(|later, held| {
        let same = held.commit == later.commit && held.ordinal > 0;
        if same {
            held.ordinal = later.ordinal;
        }
        same
    });
}

fn is_in(places: &[Position], position: Position) -> bool {
    // The first at or behind it is the one of its own transaction, if there is one.
    let at = places.partition_point(|held| *held < position);
    let held = places.get(at);
    held.is_some_and(|held| {
        held.commit == position.commit && (position.ordinal > 0 || held.ordinal == 0)
    })
}

impl From<Position> for Progress {
    fn from(upto: Position) -> Self {
        Progress {
            upto,
            ..Progress::default()
        }
    }
}

impl fmt::Display for Progress {
    /// `16/B374D848#12`, behind `+` what is ahead, in spans with two dots, and behind `~` what went on early.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.upto)?;
        self.ahead
            .iter()
            .try_for_each(|held| write!(f, "+{held}"))?;
        let mut spans = self.spans.iter();
        spans.try_for_each(|(from, to)| write!(f, "+{from}..{to}"))?;
        self.early.iter().try_for_each(|held| write!(f, "~{held}"))
    }
}

impl Standing {
    /// What is there once a change at `position` is, beside what the batch stands beside.
    #[must_use]
    pub fn with(&self, position: Position) -> Progress {
        let upto = self.upto.unwrap_or(position);
        Progress::new(upto, self.ahead.iter().copied().chain([position]))
            .and_spans(self.spans.iter().copied())
            .and_early(self.early.iter().copied())
    }

    /// The same for a change of a branch that has not committed, at its place in what was prepared. What has gone on before it is to be
    /// said: `upto` is there.
    #[must_use]
    pub fn with_early(&self, position: Position) -> Progress {
        let upto = self.upto.unwrap_or_default();
        Progress::new(upto, self.ahead.iter().copied())
            .and_spans(self.spans.iter().copied())
            .and_early(self.early.iter().copied().chain([position]))
    }

    /// The same, where `held` is there as well.
    #[must_use]
    pub fn beside(&self, held: &Progress) -> Standing {
        Standing {
            upto: self.upto.map(|upto| upto.max(held.upto)),
            ahead: self.ahead.iter().chain(&held.ahead).copied().collect(),
            spans: self.spans.iter().chain(&held.spans).copied().collect(),
            early: self.early.clone(),
        }
    }

    /// The same, where these have gone on early as well.
    #[must_use]
    pub fn and_early(mut self, early: impl IntoIterator<Item = Position>) -> Standing {
        self.early.extend(early);
        self
    }
}

/// As it is written: LSNs as text, whose numbers do not fit a double.
#[derive(Serialize, Deserialize)]
struct Written {
    commit: String,
    ordinal: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ahead: Vec<Place>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    spans: Vec<[Place; 2]>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    early: Vec<Place>,
}

#[derive(Serialize, Deserialize)]
struct Place {
    commit: String,
    ordinal: u64,
}

impl From<Progress> for Written {
    fn from(progress: Progress) -> Self {
        let place = |held: &Position| Place {
            commit: held.commit.to_string(),
            ordinal: held.ordinal,
        };
        Written {
            commit: progress.upto.commit.to_string(),
            ordinal: progress.upto.ordinal,
            ahead: progress.ahead.iter().map(place).collect(),
            spans: progress
                .spans
                .iter()
                .map(|(from, to)| [place(from), place(to)])
                .collect(),
            early: progress.early.iter().map(place).collect(),
        }
    }
}

impl TryFrom<Written> for Progress {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        let position = |commit: &str, ordinal| -> Result<Position> {
            Ok(Position {
                commit: commit.parse()?,
                ordinal,
            })
        };
        let all = |places: &[Place]| -> Result<Vec<Position>> {
            let places = places.iter();
            let places = places.map(|place| position(&place.commit, place.ordinal));
            places.collect()
        };
        let upto = position(&written.commit, written.ordinal)?;
        let mut spans = Vec::with_capacity(written.spans.len());
        for [from, to] in &written.spans {
            let from = position(&from.commit, from.ordinal)?;
            spans.push((from, position(&to.commit, to.ordinal)?));
        }
        Ok(Progress::new(upto, all(&written.ahead)?)
            .and_spans(spans)
            .and_early(all(&written.early)?))
    }
}

impl Progress {
    /// Sixteen hex digits, a slash and the ordinal: `00000016b374d848/12`; what is ahead in the same form, behind `+` each, spans with two dots
    /// between their ends, and what went on early, behind `~` each.
    #[must_use]
    pub fn to_hex(&self) -> String {
        let mut text = hex(self.upto);
        for held in &self.ahead {
            text.push('+');
            text.push_str(&hex(*held));
        }
        for (from, to) in &self.spans {
            text.push('+');
            text.push_str(&hex(*from));
            text.push_str("..");
            text.push_str(&hex(*to));
        }
        for held in &self.early {
            text.push('~');
            text.push_str(&hex(*held));
        }
        text
    }

    /// Reads what [`Progress::to_hex`] wrote.
    ///
    /// # Errors
    /// Of kind `Invalid` when it is something else.
    pub fn parse_hex(text: &str) -> Result<Self> {
        let position = |text: &str| {
            let (commit, ordinal) = text.split_once('/')?;
            Some(Position {
                commit: Lsn(u64::from_str_radix(commit, 16).ok()?),
                ordinal: ordinal.parse().ok()?,
            })
        };
        let read = || {
            let mut parts = text.split('~');
            let (mut ahead, mut spans) = (Vec::new(), Vec::new());
            let mut held = parts.next()?.split('+');
            let upto = position(held.next()?)?;
            for held in held {
                match held.split_once("..") {
                    Some((from, to)) => spans.push((position(from)?, position(to)?)),
                    None => ahead.push(position(held)?),
                }
            }
            let early: Option<Vec<Position>> = parts.map(position).collect();
            Some(
                Progress::new(upto, ahead)
                    .and_spans(spans)
                    .and_early(early?),
            )
        };
        match read() {
            Some(progress) => Ok(progress),
            None => Err(Error::new(
                ErrorKind::Invalid,
                format!("`{text}` does not say how far a source has come"),
            )),
        }
    }
}

fn hex(position: Position) -> String {
    format!("{:016x}/{}", position.commit.0, position.ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(commit: u64, ordinal: u64) -> Position {
        Position {
            commit: Lsn(commit),
            ordinal,
        }
    }

    #[test]
    fn what_is_ahead_is_there_and_what_is_between_is_not() {
        let progress = Progress::new(at(10, 3), [at(30, 2), at(20, 5), at(5, 1)]);
        assert_eq!(progress.ahead(), [at(20, 5), at(30, 2)]);
        for (position, held) in [
            (at(10, 3), true),
            (at(10, 4), false),
            (at(15, 1), false),
            (at(20, 5), true),
            (at(20, 1), true),
            (at(20, 6), false),
            (at(25, 1), false),
            (at(30, 2), true),
            (at(30, 3), false),
        ] {
            assert_eq!(progress.holds(position), held, "{position}");
        }
        assert_eq!(progress.last(), at(30, 2));
    }

    #[test]
    fn a_message_outside_of_transactions_is_no_part_of_the_one_that_commits_at_its_place() {
        let progress = Progress::new(at(10, 1), [at(20, 4)]);
        assert!(!progress.holds(at(20, 0)));
        let both = Progress::new(at(10, 1), [at(20, 4), at(20, 0)]);
        assert_eq!(both.ahead(), [at(20, 0), at(20, 4)]);
        assert!(both.holds(at(20, 0)) && both.holds(at(20, 2)));
        let message = Progress::new(at(10, 1), [at(20, 0)]);
        assert!(message.holds(at(20, 0)) && !message.holds(at(20, 1)));
    }

    #[test]
    fn the_furthest_of_a_transaction_counts() {
        let progress = Progress::new(at(10, 1), [at(20, 2), at(20, 7), at(20, 4)]);
        assert_eq!(progress.ahead(), [at(20, 7)]);
    }

    #[test]
    fn one_covers_another_that_has_nothing_else() {
        let ahead = Progress::new(at(10, 3), [at(20, 5)]);
        assert!(ahead.covers(&at(10, 3).into()));
        assert!(!ahead.covers(&at(20, 5).into()), "not what is between");
        assert!(Progress::from(at(20, 5)).covers(&ahead));
        let both = ahead.with(&Progress::new(at(12, 1), [at(30, 1)]));
        assert_eq!(both, Progress::new(at(12, 1), [at(20, 5), at(30, 1)]));
        assert!(both.covers(&ahead));
    }

    #[test]
    fn a_batch_adds_to_what_it_stands_beside() {
        let gapless = Standing {
            ahead: vec![at(15, 9), at(40, 2)],
            ..Standing::default()
        };
        assert_eq!(
            gapless.with(at(20, 1)),
            Progress::new(at(20, 1), [at(40, 2)])
        );
        let behind_a_gap = Standing {
            upto: Some(at(10, 9)),
            ahead: vec![at(15, 9)],
            ..Standing::default()
        };
        let expected = Progress::new(at(10, 9), [at(15, 9), at(20, 1)]);
        assert_eq!(behind_a_gap.with(at(20, 1)), expected);
        let held = Progress::new(at(12, 1), [at(50, 1)]);
        let expected = Progress::new(at(12, 1), [at(15, 9), at(20, 1), at(50, 1)]);
        assert_eq!(behind_a_gap.beside(&held).with(at(20, 1)), expected);
    }

    #[test]
    fn spans_hold_what_lies_between_their_ends_and_grow_together() {
        let span = |from: u64, to: u64| (at(from, u64::MAX), at(to, u64::MAX));
        let progress = Progress::new(at(10, 3), [at(15, 2), at(35, 4), at(70, 1)]).and_spans([
            span(50, 60),
            span(20, 30),
            span(28, 40),
            span(2, 5),
        ]);
        assert_eq!(progress.spans(), [span(20, 40), span(50, 60)]);
        assert_eq!(progress.ahead(), [at(15, 2), at(70, 1)]);
        for (position, held) in [
            (at(20, 1), false),
            (at(20, u64::MAX), true),
            (at(33, 7), true),
            (at(40, 7), true),
            (at(41, 0), false),
            (at(55, 1), true),
            (at(60, 9), true),
            (at(61, 1), false),
        ] {
            assert_eq!(progress.holds(position), held, "{position}");
        }
        assert_eq!(progress.last(), at(70, 1));
        assert_eq!(
            Progress::from(at(1, 1)).and_spans([span(5, 9)]).last(),
            at(9, u64::MAX)
        );
        // What is passed needs no mention; a part that is not is kept.
        let later = Progress::from(at(55, 1)).and_spans(progress.spans().iter().copied());
        assert_eq!(later.spans(), [span(50, 60)]);
        assert!(later.with(&progress).covers(&progress));
        assert!(!later.covers(&progress), "without what is ahead");
        assert!(later.covers(&Progress::from(at(10, 3)).and_spans([span(20, 40), span(52, 60)])));
        assert!(!later.covers(&Progress::from(at(10, 3)).and_spans([span(52, 61)])));
        let standing = Standing {
            upto: Some(at(10, 3)),
            spans: vec![span(20, 30)],
            ..Standing::default()
        };
        assert_eq!(standing.with(at(40, 1)).spans(), [span(20, 30)]);
        assert_eq!(standing.with_early(at(40, 1)).spans(), [span(20, 30)]);
    }

    #[test]
    fn what_went_on_early_is_there_by_where_it_was_prepared() {
        let standing = Standing {
            upto: Some(at(30, 9)),
            ahead: vec![at(45, 2)],
            early: vec![at(20, 3)],
            ..Standing::default()
        };
        // The place of its PREPARE lies behind what is there, and before it.
        for prepared in [at(25, 4), at(40, 4)] {
            let progress = standing.with_early(prepared);
            assert_eq!(progress.upto(), at(30, 9));
            assert_eq!(progress.ahead(), [at(45, 2)]);
            assert_eq!(progress.early(), [at(20, 3), prepared]);
            assert!(progress.holds_early(at(prepared.commit.0, 2)));
            assert!(!progress.holds_early(at(prepared.commit.0, 5)));
            assert!(!progress.holds_early(at(30, 1)), "has committed");
            assert!(
                !progress.holds(at(41, 1)),
                "is early, and no place before it"
            );
        }
        // It stays there when what goes on passes its place.
        let later = standing.with(at(90, 1));
        assert_eq!(later.early(), [at(20, 3)]);
        assert_eq!(standing.with_early(at(20, 7)).early(), [at(20, 7)]);
        let other = Progress::from(at(95, 1));
        assert!(other.covers(&later), "its commit may have passed");
        assert_eq!(other.with(&later).early(), [at(20, 3)]);
    }

    #[test]
    fn both_forms_are_read_back_and_the_ones_of_before() {
        let progress = Progress::new(at(0x16_B374_D848, 12), [at(0x16_B374_D900, u64::MAX)])
            .and_spans([(at(0x16_B374_DA00, 0), at(0x16_B374_DB00, u64::MAX))])
            .and_early([at(0x16_B374_D800, 4), at(0x16_B374_D8F0, u64::MAX)]);
        let text = serde_json::to_string(&progress).expect("writable");
        assert_eq!(
            serde_json::from_str::<Progress>(&text).expect(&text),
            progress
        );
        assert_eq!(
            Progress::parse_hex(&progress.to_hex()).expect("readable"),
            progress
        );
        let before: Progress =
            serde_json::from_str(r#"{"commit": "0/A", "ordinal": 3}"#).expect("readable");
        assert_eq!(before, at(10, 3).into());
        assert_eq!(
            Progress::parse_hex("000000000000000a/3").expect("readable"),
            at(10, 3).into()
        );
        for wrong in [
            "",
            "x/1",
            "1",
            "1/2+",
            "1/2+x",
            "1/2~",
            "1/2~3/4+5/6",
            "1/2+3/4..",
            "1/2..3/4",
        ] {
            assert!(Progress::parse_hex(wrong).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Progress>(r#"{"commit": "x", "ordinal": 3}"#).is_err());
    }
}
