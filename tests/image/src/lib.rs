//! What the tests of the container image and of the compose stack share: both as Docker's own parsers read them.
//!
//! Everything here panics when it fails, with the cause: it is for tests alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use lockstep_chart::{root, yaml};
use lockstep_kit::containers;
use serde_json::Value;

/// The Dockerfile.
#[must_use]
pub fn dockerfile() -> PathBuf {
    root().join("deploy/image/Dockerfile")
}

/// The configuration of the image that it makes.
///
/// # Panics
/// When it is refused.
#[must_use]
pub fn image() -> Value {
    let read = containers::image(&dockerfile());
    read.unwrap_or_else(|error| panic!("{error}"))["image"]["config"].take()
}

/// The folder of the stack.
#[must_use]
pub fn folder() -> PathBuf {
    root().join("deploy/compose")
}

/// The text of a file of the stack.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn text(name: &str) -> String {
    let path = folder().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The stack, resolved.
#[derive(Debug)]
pub struct Stack(pub Value);

impl Stack {
    /// As it is shipped.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    pub fn shipped() -> Self {
        let read = containers::compose(&folder().join("compose.yaml"));
        Self(read.unwrap_or_else(|error| panic!("{error}")))
    }

    /// Its services, by name.
    ///
    /// # Panics
    /// When there are none.
    #[must_use]
    pub fn services(&self) -> BTreeMap<&str, Service<'_>> {
        let services = self.0["services"].as_object().expect("services");
        let named = services.iter();
        named
            .map(|(name, service)| (name.as_str(), Service(service)))
            .collect()
    }

    /// One of them.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn service(&self, name: &str) -> Service<'_> {
        let service = &self.0["services"][name];
        assert!(service.is_object(), "no service {name}");
        Service(service)
    }
}

/// A service of it.
#[derive(Clone, Copy, Debug)]
pub struct Service<'a>(pub &'a Value);

/// What a service has mounted.
#[derive(Debug)]
pub struct Mount<'a> {
    /// `bind` or `volume`.
    pub kind: &'a str,
    /// A path of this machine, or a volume's name.
    pub source: &'a Path,
    /// Where the service sees it.
    pub target: &'a Path,
    /// Whether it only reads it.
    pub read_only: bool,
}

impl<'a> Service<'a> {
    /// The words of its command.
    #[must_use]
    pub fn command(self) -> Vec<&'a str> {
        let words = self.0["command"].as_array().into_iter().flatten();
        words.filter_map(Value::as_str).collect()
    }

    /// Its environment.
    #[must_use]
    pub fn environment(self) -> BTreeMap<&'a str, &'a str> {
        let pairs = self.0["environment"].as_object().into_iter().flatten();
        pairs
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default()))
            .collect()
    }

    /// What it has mounted.
    #[must_use]
    pub fn mounts(self) -> Vec<Mount<'a>> {
        let mounts = self.0["volumes"].as_array().into_iter().flatten();
        let path = |mount: &'a Value, key| Path::new(mount[key].as_str().unwrap_or_default());
        mounts
            .map(|mount| Mount {
                kind: mount["type"].as_str().unwrap_or_default(),
                source: path(mount, "source"),
                target: path(mount, "target"),
                read_only: mount["read_only"] == true,
            })
            .collect()
    }

    /// The file or folder of this machine that it sees at a path.
    #[must_use]
    pub fn sees(self, path: &Path) -> Option<PathBuf> {
        self.mounts().into_iter().find_map(|mount| {
            let below = path.strip_prefix(mount.target).ok()?;
            let is_whole = below.as_os_str().is_empty();
            (mount.kind == "bind").then(|| match is_whole {
                true => mount.source.to_owned(),
                false => mount.source.join(below),
            })
        })
    }

    /// Ports that it listens on and publishes.
    #[must_use]
    pub fn ports(self) -> Vec<u64> {
        let ports = self.0["ports"].as_array().into_iter().flatten();
        ports.filter_map(|port| port["target"].as_u64()).collect()
    }
}
