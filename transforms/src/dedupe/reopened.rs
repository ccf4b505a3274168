//! The embedded store, opened anew after a full disk: a database that has found no room takes nothing more, and what it
//! took before is in its journal.

use std::path::{Path, PathBuf};

use lockstep_core::transform::StateSize;
use lockstep_core::{ErrorKind, Result};

use super::embedded::Embedded;
use super::judge::Window;

/// See the module's page.
pub(crate) struct Reopened {
    path: PathBuf,
    window: Window,
    /// `None` after it has found no room.
    open: Option<Embedded>,
}

impl Reopened {
    /// As [`Embedded::open`].
    ///
    /// # Errors
    /// Of kind `Storage`, or `Full` when the disk is.
    pub(crate) fn open(path: &Path, window: Window) -> Result<Self> {
        Ok(Reopened {
            path: path.to_owned(),
            window,
            open: Some(Embedded::open(path, window)?),
        })
    }

    /// Does something with the store.
    ///
    /// # Errors
    /// Those of `work`. After one of kind `Full` nothing that it did counts, and it may be tried again.
    pub(crate) fn with<T>(&mut self, work: impl FnOnce(&mut Embedded) -> Result<T>) -> Result<T> {
        let store = match &mut self.open {
            Some(store) => store,
            none => none.insert(Embedded::open(&self.path, self.window)?),
        };
        let done = work(store);
        if matches!(&done, Err(error) if error.kind() == ErrorKind::Full) {
            self.open = None;
        }
        done
    }

    /// How much there is; `None` while it is not open.
    pub(crate) fn size(&self) -> Option<StateSize> {
        self.open.as_ref().map(Embedded::size)
    }
}
