//! Helm and kubectl as child processes.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::chart;

/// How a child process has ended.
#[derive(Debug)]
pub struct Ended {
    /// Whether with 0.
    pub well: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.stdout, self.stderr)
    }
}

impl Ended {
    /// Its standard output.
    ///
    /// # Panics
    /// When it has not ended well.
    #[must_use]
    pub fn output(self) -> String {
        assert!(self.well, "{self}");
        self.stdout
    }
}

/// Helm, with a home of its own, and perhaps a cluster.
#[derive(Debug)]
pub struct Helm {
    home: TempDir,
    kubeconfig: Option<PathBuf>,
}

impl Helm {
    /// Without a cluster.
    ///
    /// # Panics
    /// When there is no room for its home.
    #[must_use]
    pub fn alone() -> Self {
        Self {
            home: tempfile::tempdir().expect("a folder"),
            kubeconfig: None,
        }
    }

    /// On a cluster.
    #[must_use]
    pub fn on(kubeconfig: &Path) -> Self {
        Self {
            kubeconfig: Some(kubeconfig.to_owned()),
            ..Self::alone()
        }
    }

    /// Runs `helm` to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Ended {
        self.ended("helm", arguments)
    }

    /// Runs `kubectl` to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn kubectl<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Ended {
        self.ended("kubectl", arguments)
    }

    /// `helm template` of the chart in namespace `shop`, with these files of values and more arguments.
    ///
    /// # Panics
    /// When Helm cannot be started.
    pub fn template(&self, release: &str, values: &[&Path], more: &[&str]) -> Ended {
        self.template_of(&chart(), release, values, more)
    }

    /// As [`Helm::template`], of another chart.
    ///
    /// # Panics
    /// As [`Helm::template`].
    pub fn template_of(
        &self,
        chart: &Path,
        release: &str,
        values: &[&Path],
        more: &[&str],
    ) -> Ended {
        let mut arguments: Vec<&OsStr> =
            vec!["template".as_ref(), release.as_ref(), chart.as_ref()];
        for file in values {
            arguments.extend([OsStr::new("--values"), file.as_os_str()]);
        }
        let version = ["--kube-version", "1.35"];
        arguments.extend(version.iter().chain(more).map(OsStr::new));
        if !more.contains(&"--namespace") {
            arguments.extend(["--namespace", "shop"].map(OsStr::new));
        }
        self.run(&arguments)
    }

    /// A file of values, gone with this Helm.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn values(&self, values: &Value) -> PathBuf {
        self.file("values.json", &values.to_string())
    }

    /// Any file, gone with this Helm.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    fn ended<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> Ended {
        let path = lockstep_kit::component::dir()
            .join("helm/bin")
            .join(program);
        let mut command = Command::new(path);
        command.args(arguments).stdin(Stdio::null());
        for name in [
            "HELM_CACHE_HOME",
            "HELM_CONFIG_HOME",
            "HELM_DATA_HOME",
            "HOME",
        ] {
            command.env(name, self.home.path());
        }
        // Nothing of a person's clusters.
        let none = Path::new("/dev/null").to_owned();
        command.env("KUBECONFIG", self.kubeconfig.as_ref().unwrap_or(&none));
        let output = command.output().expect("installed by tests/kit/install");
        Ended {
            well: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
