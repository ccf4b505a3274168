//! Dockerfiles and compose files, as Docker's own parsers read them; `go/containers` is around those.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::component;
use crate::error::{Context, Error};

/// A compose file as `docker compose config` resolves it: checked by its schema, variables and paths filled in.
///
/// # Errors
/// With what it is refused for.
pub fn compose(file: &Path) -> Result<Value, Error> {
    read(&["compose".as_ref(), file])
}

/// Of a Dockerfile: `warnings` as `docker build --check` gives them, and `image`, the configuration of the image it makes. Base images
/// are not looked up.
///
/// # Errors
/// With what it is refused for.
pub fn image(file: &Path) -> Result<Value, Error> {
    read(&["image".as_ref(), file])
}

/// The files of a folder that a build with this Dockerfile is given: those that its `.dockerignore` leaves.
///
/// # Errors
/// When one of both cannot be read.
pub fn context(file: &Path, folder: &Path) -> Result<Vec<String>, Error> {
    let files = read(&["context".as_ref(), file, folder])?;
    serde_json::from_value(files).context(|| "the list of files".into())
}

fn read(words: &[&Path]) -> Result<Value, Error> {
    let program = component::dir().join("containers/bin/containers");
    let mut command = Command::new(&program);
    let output = command.args(words).output();
    let output = output.context(|| program.display().to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(format!("{words:?}: {said}")));
    }
    serde_json::from_slice(&output.stdout).context(|| format!("{words:?}"))
}
