//! Keeps out whoever has lost the lease: each script that changes something compares its token with the greatest seen, in the same
//! atomic step.
//!
//! A cluster runs a script on one slot, so it has a fence for each, all raised when the sink is opened.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use lockstep_core::Result;
use lockstep_core::token::Token;
use lockstep_redis::{Command, Link, Node};
use redis::Cmd;
use redis::cluster_routing::Slot;

use crate::keys;
use crate::scripts::{self, Script};
use crate::state::Names;

/// Slots of a cluster.
const SLOTS: usize = 16384;

/// The token of a sink, and where the greatest seen is kept.
#[derive(Clone, Debug)]
pub(crate) struct Fence {
    name: Arc<str>,
    /// 16 hexadecimal digits, which compare as the numbers do.
    token: Arc<str>,
}

impl Fence {
    pub(crate) fn new(names: &Names, token: Token) -> Self {
        Fence {
            name: keys::fence(&names.pipeline, &names.sink).into(),
            token: format!("{:016x}", token.0).into(),
        }
    }

    /// The key of the fence, in this slot of a cluster.
    pub(crate) fn key(&self, slot: Option<Slot>) -> String {
        match slot.and_then(|slot| TAGS.get(&slot)) {
            Some(tag) => format!("{}:{{{tag}}}", self.name),
            None => self.name.to_string(),
        }
    }

    /// Adds the fence as the last of the keys.
    pub(crate) fn add_key(fence: Option<&Self>, cmd: &mut Cmd, slot: Option<Slot>) {
        if let Some(fence) = fence {
            cmd.arg(fence.key(slot));
        }
    }

    /// Adds the token as the last of the arguments.
    pub(crate) fn add_token(fence: Option<&Self>, cmd: &mut Cmd) {
        if let Some(fence) = fence {
            cmd.arg(&*fence.token);
        }
    }

    /// Raises the fence everywhere: from here on whoever has an older token writes nothing.
    ///
    /// # Errors
    /// `Busy` when somebody has a newer one; the server's.
    pub(crate) async fn raise(&self, link: &Link) -> Result<()> {
        let slots: Vec<Option<Slot>> = match link.is_cluster() {
            true => TAGS.keys().copied().map(Some).collect(),
            false => vec![None],
        };
        scripts::run(link, slots.len(), |index, how| {
            let slot = slots[index];
            let mut cmd = Script::Raise.call(how, true, 1, 2, 128);
            Fence::add_key(Some(self), &mut cmd, slot);
            Fence::add_token(Some(self), &mut cmd);
            Command {
                cmd,
                node: slot.map_or(Node::Any, Node::Serving),
            }
        })
        .await
        .map(|_| ())
    }
}

/// For each slot a number that hashes to it.
static TAGS: LazyLock<HashMap<Slot, u32>> = LazyLock::new(|| {
    let mut tags = HashMap::with_capacity(SLOTS);
    for number in 0.. {
        tags.entry(Slot::for_key(number.to_string().as_bytes()))
            .or_insert(number);
        if tags.len() == SLOTS {
            break;
        }
    }
    tags
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_a_fence_of_its_own() {
        let names = Names {
            pipeline: "shop".into(),
            sink: "cache".into(),
        };
        let fence = Fence::new(&names, Token(7));
        assert_eq!(fence.key(None), "lockstep:fence:shop:cache");
        for slot in TAGS.keys() {
            let key = fence.key(Some(*slot));
            assert_eq!(Slot::for_key(key.as_bytes()), *slot, "{key}");
            assert!(keys::is_beside(key.as_bytes()));
        }
        assert_eq!(TAGS.len(), SLOTS);
    }
}
