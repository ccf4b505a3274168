//! Temporary folders that disappear with the process.
//!
//! All folders of a process lie in one root. A shell that waits for the end of a pipe removes the root when this process
//! is gone, even after SIGKILL. Should that shell be killed as well, the next process finds the root's lock free and
//! removes it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Context, Error};
use crate::process::run_as;

const ROOT_PREFIX: &str = "lockstep-kit.";

/// `prefix` with an ending that no other call of this or another process gives: for databases, topics, keys, indexes.
/// Lower case letters, digits and `_` only, if `prefix` is so.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    format!(
        "{prefix}_{:x}_{:x}_{number}",
        seconds & 0xff_ffff,
        std::process::id()
    )
}

/// A folder owned by the user that servers run as; removed on drop.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn new(name: &str) -> Result<Self, Error> {
        let path = root()?.join(unique(name));
        let scratch = Self { path };
        scratch.make_dir("").map(|_| scratch)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The content of a file, as far as there is one.
    pub(crate) fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.join(name)).unwrap_or_default()).into_owned()
    }

    /// Makes a folder in it, for the server to write to.
    pub(crate) fn make_dir(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        fs::create_dir(&path).context(|| format!("making {}", path.display()))?;
        give_to_server(&path, 0o755)?;
        Ok(path)
    }

    /// Writes a file for the server to read.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        fs::write(&path, content).context(|| format!("writing {}", path.display()))?;
        give_to_server(&path, 0o600)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A process of the server that is just ending may still write: the root's removal has the last word.
        for _ in 0..3 {
            if !self.path.exists() || fs::remove_dir_all(&self.path).is_ok() {
                return;
            }
        }
    }
}

fn give_to_server(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .context(|| format!("chmod {}", path.display()))?;
    match run_as() {
        Some(user) => chown(path, Some(user.uid), Some(user.gid))
            .context(|| format!("giving {} to nobody", path.display())),
        None => Ok(()),
    }
}

struct Root {
    path: PathBuf,
    _lock: File,
    _remover: Option<ChildStdin>,
}

fn root() -> Result<&'static Path, Error> {
    static ROOT: OnceLock<Result<Root, String>> = OnceLock::new();
    match ROOT.get_or_init(|| make_root().map_err(|error| error.to_string())) {
        Ok(root) => Ok(&root.path),
        Err(text) => Err(Error::new(text.clone())),
    }
}

fn make_root() -> Result<Root, Error> {
    let parent = std::env::temp_dir();
    remove_stale_roots(&parent);
    // It gets its final name only once its lock is held: nobody takes it for a stale one.
    let name = unique("run");
    let unlocked = parent.join(format!(".{ROOT_PREFIX}{name}"));
    let path = parent.join(format!("{ROOT_PREFIX}{name}"));
    let make = || -> io::Result<File> {
        fs::DirBuilder::new().mode(0o755).create(&unlocked)?;
        fs::set_permissions(&unlocked, fs::Permissions::from_mode(0o755))?;
        let lock = File::create(unlocked.join("lock"))?;
        lock.lock()?;
        fs::rename(&unlocked, &path)?;
        Ok(lock)
    };
    let lock = make().context(|| format!("making the temporary folder {}", path.display()))?;
    let remover = start_remover(&path).context(|| "starting sh".into())?;
    Ok(Root {
        path,
        _lock: lock,
        _remover: remover,
    })
}

/// Starts the shell that removes `root` when the returned end of its standard input closes.
fn start_remover(root: &Path) -> io::Result<Option<ChildStdin>> {
    const SCRIPT: &str = r#"cat >/dev/null; for i in 1 2 3 4 5; do rm -rf -- "$1" 2>/dev/null && exit; sleep 1; done"#;
    let child = Command::new("sh")
        .args(["-c", SCRIPT, "lockstep-kit-remover"])
        .arg(root)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    Ok(child.stdin)
}

fn remove_stale_roots(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(ROOT_PREFIX) {
            let stale =
                File::open(entry.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
            if stale {
                // Another process may be removing it too, or it is another user's: either way not this one's trouble.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}
