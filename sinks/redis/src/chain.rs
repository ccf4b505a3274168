//! The order of steps on a single server: each says which one it follows, and the server carries it out only behind that one.
//!
//! Steps overlap: the next is on its way before the one before is answered. So what a step notes, how far a source has come, would
//! be wrong behind one that the server has refused; it is not carried out either. The same keeps out what a writer has left on its
//! way that is gone, and a second writer: whoever opens the sink takes the chain over ([`Chain::begin`]).

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use lockstep_core::refusal::reason;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_redis::Link;
use tokio::sync::oneshot;

use crate::fence::Fence;
use crate::keys;
use crate::scripts::{self, Script};
use crate::state::Names;

/// The steps of one writer.
pub(crate) struct Chain {
    key: Arc<str>,
    /// No other writer's steps have names with it.
    writer: u64,
    /// Of the last step that was made.
    number: u64,
    /// Resolves when that one has been carried out.
    last: Option<oneshot::Receiver<()>>,
}

impl Chain {
    /// Takes over: from here on a step of any earlier writer is refused, and what it has noted stays as it is.
    ///
    /// # Errors
    /// `Busy` when somebody has a newer token; the server's.
    pub(crate) async fn begin(link: &Link, names: &Names, fence: Option<&Fence>) -> Result<Self> {
        let chain = Chain {
            key: keys::step(&names.pipeline, &names.sink).into(),
            writer: RandomState::new().build_hasher().finish(),
            number: 0,
            last: None,
        };
        let name = chain.name();
        scripts::run_on_key(link, Script::Begin, fence, &chain.key, &[name.as_bytes()]).await?;
        Ok(chain)
    }

    /// The place of the next step.
    pub(crate) fn next(&mut self) -> Place {
        let follows = self.name();
        self.number += 1;
        let (done, last) = oneshot::channel();
        Place {
            key: Arc::clone(&self.key),
            follows,
            name: self.name(),
            before: self.last.replace(last),
            done,
        }
    }

    fn name(&self) -> String {
        format!("{:016x}:{}", self.writer, self.number)
    }
}

/// The place of a step in the chain.
pub(crate) struct Place {
    /// Where the last step is noted.
    pub(crate) key: Arc<str>,
    pub(crate) follows: String,
    pub(crate) name: String,
    before: Option<oneshot::Receiver<()>>,
    done: oneshot::Sender<()>,
}

impl Place {
    /// The step has been carried out.
    pub(crate) fn carried_out(self) {
        // The writer may have ended: then nobody follows.
        let _ = self.done.send(());
    }

    /// Waits until the step that this one follows has been carried out; whether there is one to wait for, and it was.
    ///
    /// Steps are sent in order and come in order, but for one whose script the server has lost: it is sent once more, and by then
    /// others may have come.
    pub(crate) async fn may_come_again(&mut self) -> bool {
        match self.before.take() {
            Some(before) => before.await.is_ok(),
            None => false,
        }
    }
}

/// The error for a step whose predecessor was not the last; `any`: whether the server knows of any step.
pub(crate) fn broken(any: bool) -> Error {
    match any {
        true => Error::new(
            ErrorKind::Busy,
            "another process has opened this sink since, and goes on from where it was",
        )
        .because(reason::FENCED)
        .remedy("let one process run this pipeline; give a second one another `name`"),
        false => Error::new(
            ErrorKind::Unavailable,
            "the server does not know any more how far this sink was: it was emptied, or has evicted keys",
        )
        .remedy("load the tables again; set the server's maxmemory-policy to noeviction"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Chain {
        Chain {
            key: "lockstep:step:shop:cache".into(),
            writer: 0xabc,
            number: 0,
            last: None,
        }
    }

    #[test]
    fn each_step_follows_the_one_before() {
        let mut chain = chain();
        let (first, second) = (chain.next(), chain.next());
        assert_eq!(first.follows, "0000000000000abc:0");
        assert_eq!(first.name, second.follows);
        assert_eq!(second.name, "0000000000000abc:2");
    }

    #[tokio::test]
    async fn a_step_comes_again_behind_one_that_was_done_and_only_once() {
        let mut chain = chain();
        let (mut first, mut second, mut third) = (chain.next(), chain.next(), chain.next());
        assert!(
            !first.may_come_again().await,
            "it follows none of this writer"
        );
        first.carried_out();
        assert!(second.may_come_again().await);
        assert!(!second.may_come_again().await);
        drop(second);
        assert!(!third.may_come_again().await, "the one before was not done");
    }
}
