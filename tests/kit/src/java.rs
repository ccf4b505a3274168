//! Servers on the Java virtual machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::component::{Component, dir};
use crate::error::Error;
use crate::process::{End, Launch};
use crate::scratch::Scratch;

/// `$JAVA_HOME/bin/java`, else the one on the path.
pub(crate) fn program() -> Option<PathBuf> {
    let home = std::env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("java"));
    home.into_iter()
        .chain(on_path)
        .find(|program| program.is_file())
}

/// How to start `main` of an installed component with a heap of at most 512 MiB.
pub(crate) fn launch(
    component: Component,
    scratch: &Scratch,
    jvm: &[&str],
    main: &str,
    args: &[OsString],
) -> Result<Launch, Error> {
    let program = program()
        .filter(|_| component.is_installed())
        .ok_or_else(|| component.missing())?;
    let home = dir().join(component.install_name());
    let mut all: Vec<OsString> = vec!["-Xmx512m".into(), "-XX:+UseSerialGC".into()];
    // Nothing in /tmp/hsperfdata_nobody.
    all.push("-XX:-UsePerfData".into());
    // Made at the installation of servers; another Java than then ignores it. Where there is none, Java's own is better than its name.
    let archive = home.join("classes.jsa");
    if archive.exists() {
        all.push(option("-XX:SharedArchiveFile=", &archive));
    }
    all.push(option("-Djava.io.tmpdir=", scratch.path()));
    all.push(option(
        "-Dlog4j2.configurationFile=",
        &home.join("log4j2.properties"),
    ));
    all.extend(jvm.iter().map(Into::into));
    all.extend(["-cp".into(), home.join("libs/*").into(), main.into()]);
    all.extend(args.iter().cloned());
    Ok(Launch {
        name: component.to_string(),
        program,
        args: all,
        dir: scratch.path().into(),
        end: End::Kill,
    })
}

fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}
