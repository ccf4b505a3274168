//! A disk that can be full.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::error::{Context, Error};
use crate::scratch::Scratch;

/// What [`SmallDisk::fill`] writes.
const BALLAST: &str = "ballast";

/// A folder on a file system of its own (a tmpfs) that holds so many bytes and no more: a write beyond it fails with
/// `ENOSPC`, as on a full disk.
///
/// It is mounted in a mount namespace of its own, so nothing is left on the machine however the tests end. Root may make
/// one, and where the kernel lets users make user namespaces, everyone. Only processes that are started
/// [inside](SmallDisk::inside) see it under its path; this process sees it under [`SmallDisk::seen`]. What is on it
/// stays while this value lives, over the ends of the processes inside.
#[derive(Debug)]
pub struct SmallDisk {
    /// Holds the namespace; ends when its standard input does.
    holder: Child,
    _input: Option<ChildStdin>,
    folder: Scratch,
    as_user: bool,
}

impl SmallDisk {
    /// Mounts a disk of this size.
    ///
    /// # Errors
    /// When it is not possible here, with the kernel's reason.
    pub fn start(bytes: u64) -> Result<Self, Error> {
        let folder = Scratch::new("disk")?;
        let as_user = !rustix::process::geteuid().is_root();
        let kind = if as_user { "-Urm" } else { "-m" };
        let script = format!(
            "mount -t tmpfs -o size={bytes},mode=777 lockstep-kit \"$1\" && echo mounted && exec cat >/dev/null"
        );
        let mut holder = Command::new("unshare")
            .args([kind, "sh", "-c", &script, "lockstep-kit-disk"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(|| "starting unshare (util-linux)".into())?;
        let is_mounted = holder.stdout.take().is_some_and(says_mounted);
        let input = holder.stdin.take();
        if is_mounted {
            return Ok(Self {
                holder,
                _input: input,
                folder,
                as_user,
            });
        }
        let output = holder.wait_with_output();
        let said = output.map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
        Err(Error::new(format!(
            "no small disk can be mounted here: {}",
            said.unwrap_or_default()
        )))
    }

    /// The folder, as processes inside name it.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder, as this process sees it.
    pub fn seen(&self) -> PathBuf {
        let path = self
            .path()
            .strip_prefix("/")
            .unwrap_or_else(|_| self.path());
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(path)
    }

    /// A command that runs `program` where the disk is.
    pub fn inside(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.holder.id().to_string());
        if self.as_user {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--mount").arg("--").arg(program.as_ref());
        command
    }

    /// Leaves no byte free.
    ///
    /// # Errors
    /// When the ballast cannot be written for another reason than that the disk is full.
    pub fn fill(&self) -> io::Result<()> {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(self.seen().join(BALLAST))?;
        let mut piece = vec![0; 64 * 1024];
        // Ever smaller pieces, so that the last page is full too.
        while !piece.is_empty() {
            match file.write(&piece) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    piece.truncate(piece.len() / 2);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes the ballast away.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn free(&self) -> io::Result<()> {
        match fs::remove_file(self.seen().join(BALLAST)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn says_mounted(output: ChildStdout) -> bool {
    let mut line = String::new();
    // What cannot be read was not said.
    let read = BufReader::new(output).read_line(&mut line);
    read.is_ok() && line.trim() == "mounted"
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // They can only fail for a process that has ended.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A command that runs `program` with files of at most so many bytes each: a write beyond that fails with `EFBIG`.
///
/// Anyone may do this anywhere. It covers one growing file, not a disk that many files share, and not `fsync` or `rename` on
/// a full disk: for these see [`SmallDisk`].
pub fn with_small_files(program: impl AsRef<Path>, bytes: u64) -> Command {
    let mut command = Command::new("prlimit");
    // Else the signal would end the process before it sees the error.
    let script = "trap '' XFSZ; exec \"$@\"";
    command
        .arg(format!("--fsize={bytes}"))
        .args(["--", "sh", "-c", script, "lockstep-kit-limit"])
        .arg(program.as_ref());
    command
}
