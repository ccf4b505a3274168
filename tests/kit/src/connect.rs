//! Kafka Connect as its users run it, with Debezium's connector for PostgreSQL: to compare with.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::component::{Component, dir};
use crate::error::{Context, Error};
use crate::java;
use crate::port::Port;

/// A standalone worker: the broker's distribution of Connect, Debezium as a plugin. All settings that are not given are the
/// defaults of the two.
#[derive(Debug)]
pub struct Connect {
    folder: PathBuf,
    port: Port,
}

impl Connect {
    /// Writes the two property files into a folder, which also gets the worker's file of offsets. Nothing is started.
    ///
    /// # Errors
    /// When Kafka or Debezium is not installed, or the folder cannot be written.
    pub fn new(
        folder: &Path,
        worker: &[(&str, String)],
        connector: &[(&str, String)],
    ) -> Result<Self, Error> {
        for component in [Component::Kafka, Component::Debezium] {
            if !component.is_installed() {
                return Err(component.missing());
            }
        }
        let port = Port::reserve()?;
        let own = [
            // A folder per plugin: `libs` is Debezium's.
            ("plugin.path", dir().join("debezium").display().to_string()),
            ("plugin.discovery", "service_load".into()),
            ("listeners", format!("http://127.0.0.1:{}", port.number())),
            (
                "offset.storage.file.filename",
                folder.join("offsets").display().to_string(),
            ),
        ];
        let connect = Self {
            folder: folder.into(),
            port,
        };
        connect.write("worker.properties", own.iter().chain(worker))?;
        connect.write("connector.properties", connector.iter())?;
        Ok(connect)
    }

    fn write<'a>(
        &self,
        name: &str,
        properties: impl Iterator<Item = &'a (&'a str, String)>,
    ) -> Result<(), Error> {
        let mut text = String::new();
        for (name, value) in properties {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}={value}");
        }
        let path = self.folder.join(name);
        fs::write(&path, text).context(|| format!("writing {}", path.display()))
    }

    /// Runs the worker in the foreground; what it logs goes to standard output.
    pub fn command(&self) -> Command {
        let kafka = dir().join("kafka");
        let option = |name: &str, path: &Path| format!("{name}{}", path.display());
        let mut command = Command::new(java::program().unwrap_or_else(|| "java".into()));
        command
            .args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:-UsePerfData"])
            .arg(option("-Djava.io.tmpdir=", &self.folder))
            .arg(option(
                "-Dlog4j2.configurationFile=",
                &kafka.join("log4j2.properties"),
            ))
            .arg("-cp")
            .arg(kafka.join("libs/*"))
            .arg("org.apache.kafka.connect.cli.ConnectStandalone")
            .args(["worker.properties", "connector.properties"])
            .current_dir(&self.folder);
        command
    }

    /// Of the worker's REST interface, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The file in which the worker keeps the connector's position.
    pub fn offsets(&self) -> PathBuf {
        self.folder.join("offsets")
    }
}

/// The version of Debezium that is installed, from the name of its jar.
pub fn installed_version() -> Option<String> {
    let jars = fs::read_dir(dir().join("debezium/libs")).ok()?;
    jars.flatten().find_map(|jar| {
        let name = jar.file_name();
        let version = name
            .to_str()?
            .strip_prefix("debezium-connector-postgres-")?
            .strip_suffix(".jar")?;
        Some(version.to_owned())
    })
}
