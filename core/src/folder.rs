//! A directory that survives restarts, and the documents in it that whoever takes over must find, too.

use std::fmt;
use std::io::Write;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

/// Where documents of a [`Folder`] are kept beside the directory, for other machines to go on with.
///
/// Calls block, for as long as a server takes to answer; what they say is safe there when they return.
pub trait Copies: fmt::Debug + Send + Sync {
    /// Keeps a document under a name, whole or not at all.
    ///
    /// # Errors
    /// `Unavailable` when the server cannot be reached, and may be asked again; `Busy` when somebody with a greater
    /// [`Token`](crate::token::Token) has written there.
    fn put(&self, name: &str, content: &[u8]) -> Result<()>;

    /// Removes a document; one that is not there is no error.
    ///
    /// # Errors
    /// As for [`Copies::put`].
    fn remove(&self, name: &str) -> Result<()>;
}

/// A directory of a component's own. Used as a path it is the directory; [`Folder::replace`] is for what another machine must
/// know that takes over. Clones are the same.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    copies: Option<Arc<dyn Copies>>,
}

impl From<PathBuf> for Folder {
    /// A directory, and nothing beside it.
    fn from(path: PathBuf) -> Self {
        Folder { path, copies: None }
    }
}

impl From<&Path> for Folder {
    fn from(path: &Path) -> Self {
        path.to_owned().into()
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Folder {
    /// A directory whose documents are kept elsewhere, too.
    #[must_use]
    pub fn with_copies(path: PathBuf, copies: Arc<dyn Copies>) -> Self {
        Folder {
            path,
            copies: Some(copies),
        }
    }

    /// Reads a document; `None` when there is none.
    ///
    /// # Errors
    /// What reading files says.
    pub fn read(&self, name: &str) -> std::io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a document as JSON, whole or not at all, and safe against power loss; first where copies are kept. Blocks.
    ///
    /// # Errors
    /// Of kind `Storage`, or `Full` when the disk is, naming the file; those of [`Copies::put`].
    pub fn replace(&self, name: &str, content: &impl Serialize) -> Result<()> {
        let path = self.path.join(name);
        let failed = |error: std::io::Error| {
            let kind = ErrorKind::of_storage(&error);
            Error::new(kind, format!("{} cannot be written", path.display()))
                .source(error)
                .remedy("check the directory of `[state]`: space, rights")
        };
        let bytes = serde_json::to_vec_pretty(content).map_err(|error| failed(error.into()))?;
        if let Some(copies) = &self.copies {
            copies.put(name, &bytes)?;
        }
        put(&path, &bytes).map_err(failed)
    }

    /// Removes a document; one that is not there is no error.
    ///
    /// # Errors
    /// As for [`Folder::replace`].
    pub fn remove(&self, name: &str) -> Result<()> {
        if let Some(copies) = &self.copies {
            copies.remove(name)?;
        }
        let path = self.path.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::new(
                ErrorKind::of_storage(&error),
                format!("{} cannot be removed", path.display()),
            )
            .source(error)),
            _ => Ok(()),
        }
    }
}

/// Writes a file, whole or not at all, and safe against power loss.
///
/// # Errors
/// What the disk says.
pub fn put(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(directory)?;
    let fresh = path.with_extension("json.new");
    let mut file = std::fs::File::create(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Takes down what it is told, until it is closed.
    #[derive(Debug, Default)]
    struct Elsewhere(Mutex<Option<Vec<String>>>);

    impl Elsewhere {
        fn note(&self, what: String) -> Result<()> {
            let mut told = self.0.lock().expect("no holder panics");
            let closed = || Error::new(ErrorKind::Unavailable, "closed");
            told.as_mut().ok_or_else(closed)?.push(what);
            Ok(())
        }
    }

    impl Copies for Elsewhere {
        fn put(&self, name: &str, content: &[u8]) -> Result<()> {
            self.note(format!("{name} {}", String::from_utf8_lossy(content)))
        }

        fn remove(&self, name: &str) -> Result<()> {
            self.note(format!("{name} is gone"))
        }
    }

    #[test]
    fn what_is_written_is_kept_elsewhere_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let elsewhere = Arc::new(Elsewhere(Mutex::new(Some(Vec::new()))));
        let folder = Folder::with_copies(directory.path().to_owned(), elsewhere.clone());
        folder.replace("a.json", &1).expect("written");
        assert_eq!(
            folder.read("a.json").expect("readable"),
            Some(b"1".to_vec())
        );
        let told = elsewhere.0.lock().expect("no holder panics").take();
        assert_eq!(told, Some(vec!["a.json 1".to_owned()]));
        // Closed: what is not kept there is not here, either.
        let refused = folder.replace("a.json", &2).expect_err("closed");
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        assert!(folder.remove("a.json").is_err());
        assert_eq!(
            folder.read("a.json").expect("readable"),
            Some(b"1".to_vec())
        );
        assert_eq!(folder.read("b.json").expect("readable"), None);
    }

    #[test]
    fn a_directory_alone_is_enough() {
        let directory = tempfile::tempdir().expect("a directory");
        let folder = Folder::from(directory.path().join("made"));
        folder.remove("a.json").expect("nothing to remove");
        folder.replace("a.json", &"x").expect("written");
        folder.remove("a.json").expect("removed");
        assert_eq!(folder.read("a.json").expect("readable"), None);
        std::fs::remove_dir_all(&*folder).expect("removed");
        std::fs::write(&*folder, "").expect("in its place");
        let refused = folder
            .replace("a.json", &1)
            .expect_err("a file, no directory");
        assert_eq!(refused.kind(), ErrorKind::Storage);
    }
}
