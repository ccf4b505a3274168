//! What the tests of the Helm chart share: Helm as a child process, the values' schema and table, and YAML.
//!
//! Everything here panics when it fails, with the cause: it is for tests alone.

pub mod helm;
pub mod schema;
pub mod values;
pub mod yaml;

use std::path::{Path, PathBuf};

/// Set to `1`: files that are made are written anew instead of compared.
pub const REWRITE_VARIABLE: &str = "LOCKSTEP_CHART_REWRITE";

/// Names another `lockstep` to test than the one of the same build.
pub const PROGRAM_VARIABLE: &str = "LOCKSTEP_TEST_PROGRAM";

/// The folder of the whole project.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The chart.
#[must_use]
pub fn chart() -> PathBuf {
    root().join("deploy/helm/lockstep")
}

/// The command: [`PROGRAM_VARIABLE`], or next to the folder of the test program.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE) {
        return program.into();
    }
    let test = std::env::current_exe().expect("the test program has a path");
    let folder = test.parent().and_then(Path::parent);
    let program = folder.expect("target/<profile>/deps").join("lockstep");
    assert!(
        program.is_file(),
        "{} is missing: cargo build -p lockstep",
        program.display()
    );
    program
}

/// Compares a file that is made with what it should be; with [`REWRITE_VARIABLE`], writes it.
///
/// # Panics
/// When it is something else.
pub fn keeps(path: &Path, expected: &str) {
    if std::env::var_os(REWRITE_VARIABLE).is_some() {
        std::fs::write(path, expected)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return;
    }
    let there = std::fs::read_to_string(path).unwrap_or_default();
    if there == expected {
        return;
    }
    let differs = there
        .lines()
        .zip(expected.lines())
        .position(|(a, b)| a != b);
    let line = differs.unwrap_or_else(|| there.lines().count().min(expected.lines().count()));
    let of = |text: &str| text.lines().nth(line).unwrap_or("(its end)").to_owned();
    panic!(
        "{}:{}: is   {}\nbut should be {}\n{REWRITE_VARIABLE}=1 writes it anew; look at the difference then",
        path.display(),
        line + 1,
        of(&there),
        of(expected),
    );
}
