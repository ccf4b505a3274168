//! Deletion by a term. The engine's own keeps a kilobyte for each until the commit, for scores that nobody asks for: more than
//! most documents take.

use ::tantivy::query::{
    ConstScorer, EmptyScorer, EnableScoring, Explanation, Query, Scorer, Weight,
};
use ::tantivy::schema::IndexRecordOption;
use ::tantivy::{DocId, Score, SegmentReader, TantivyError, Term};

/// All documents with a term, which is what each of them is kept as until the commit.
#[derive(Clone, Debug)]
pub(super) struct Erase(pub(super) Term);

impl Query for Erase {
    fn weight(&self, _scoring: EnableScoring<'_>) -> ::tantivy::Result<Box<dyn Weight>> {
        Ok(Box::new(self.clone()))
    }
}

impl Weight for Erase {
    fn scorer(&self, reader: &SegmentReader, boost: Score) -> ::tantivy::Result<Box<dyn Scorer>> {
        let index = reader.inverted_index(self.0.field())?;
        Ok(
            match index.read_postings(&self.0, IndexRecordOption::Basic)? {
                Some(postings) => Box::new(ConstScorer::new(postings, boost)),
                None => Box::new(EmptyScorer),
            },
        )
    }

    fn explain(&self, _reader: &SegmentReader, doc: DocId) -> ::tantivy::Result<Explanation> {
        Err(TantivyError::InvalidArgument(format!(
            "a deletion has no score for document {doc}"
        )))
    }
}
