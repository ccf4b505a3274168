//! A wall clock that can be set, for one process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error};

const SOURCE: &str = include_str!("clock.c");

/// The wall clock of the processes that get [`Clock::variables`]; the monotonic clocks and everybody else's are not
/// touched. For programs that are linked to the C library in the usual way.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl Clock {
    /// Puts what it needs into this folder. The clock is right at first.
    ///
    /// # Errors
    /// When there is no C compiler (`cc`), or the folder cannot be written.
    pub fn new(folder: &Path) -> Result<Self, Error> {
        let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
        std::fs::write(&source, SOURCE).context(|| format!("writing {}", source.display()))?;
        let output = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .context(|| "starting cc, the C compiler".into())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::new(format!(
                "cc cannot make {}: {said}",
                library.display()
            )));
        }
        let path = folder.join("clock");
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .context(|| format!("making {}", path.display()))?;
        let clock = Self {
            library,
            path,
            file,
        };
        clock.set(0)?;
        Ok(clock)
    }

    /// What a process needs in its environment.
    pub fn variables(&self) -> [(&'static str, &Path); 2] {
        [
            ("LD_PRELOAD", &self.library),
            ("LOCKSTEP_KIT_CLOCK", &self.path),
        ]
    }

    /// Sets the clock so many milliseconds before (negative) or after the right time.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, milliseconds: i64) -> Result<(), Error> {
        let nanoseconds = milliseconds.saturating_mul(1_000_000);
        self.file
            .write_all_at(&nanoseconds.to_ne_bytes(), 0)
            .context(|| format!("writing {}", self.path.display()))
    }
}
