//! `lockstep man`: pages of the manual, of the command and of each subcommand.

use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pipelines::file::nearest;

use crate::cli::Cli;
use crate::{Outcome, output};

/// Prints the page of a subcommand, or of the command itself; with a folder, writes every page into it.
///
/// # Errors
/// Kind `Invalid` for a subcommand that there is not; what writing meets.
pub fn man(subcommand: &[String], folder: Option<&Path>) -> Outcome {
    let command = command();
    match folder {
        None => output::print(&page(find(&command, subcommand)?).1),
        Some(folder) => {
            std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, error))?;
            for command in all(&command) {
                let (name, text) = page(command);
                let path = folder.join(name);
                std::fs::write(&path, text).map_err(|error| unwritable(&path, error))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn unwritable(path: &Path, error: std::io::Error) -> Error {
    let kind = ErrorKind::of_storage(&error);
    Error::new(kind, format!("cannot write {}", path.display()))
        .source(error)
        .remedy("name a folder that can be written")
}

/// The command, with the whole names of its subcommands.
fn command() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

fn find<'a>(command: &'a Command, path: &[String]) -> Result<&'a Command> {
    path.iter().try_fold(command, |command, name| {
        command.find_subcommand(name).ok_or_else(|| {
            let there_are: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
            let near = nearest(name, there_are.iter().copied());
            let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            let what = format!(
                "there is no subcommand `{name}` of `{}`",
                command.get_name()
            );
            Error::new(ErrorKind::Invalid, what)
                .remedy(format!("there are {}{near}", there_are.join(", ")))
        })
    })
}

/// A command, and all below it.
fn all(command: &Command) -> Vec<&Command> {
    let below = command
        .get_subcommands()
        .filter(|one| one.get_name() != "help");
    let below = below.flat_map(all);
    std::iter::once(command).chain(below).collect()
}

/// The name of its file, and the page.
fn page(command: &Command) -> (String, String) {
    let man = Man::new(command.clone());
    let mut text = Vec::new();
    // Writing to memory cannot fail.
    let _ = man.render(&mut text);
    (
        man.get_filename(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn there_is_a_page_for_every_subcommand_and_the_first_names_them_all() {
        let folder = tempfile::tempdir().expect("a folder");
        man(&[], Some(folder.path())).expect("it can be written");
        let text = |name: &str| {
            let path = folder.path().join(name);
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let first = text("lockstep.1");
        for subcommand in Cli::command().get_subcommands() {
            let name = subcommand.get_name();
            // Hyphens are escaped in roff.
            assert!(
                first.contains(&name.replace('-', "\\-")),
                "{name} in {first}"
            );
            let page = text(&format!("lockstep-{name}.1"));
            for section in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"] {
                assert!(page.contains(section), "{section} in {page}");
            }
        }
        assert!(text("lockstep-dead-letters-replay.1").contains(".SH OPTIONS"));
        assert!(first.contains("LOCKSTEP_LOG_FORMAT") && first.contains("Exit codes"));
    }

    /// `groff` has a word for everything that it does not understand.
    #[test]
    fn groff_understands_every_page() {
        let command = command();
        for command in all(&command) {
            let (name, text) = page(command);
            let groff = std::process::Command::new("groff")
                .args(["-man", "-Tutf8", "-ww", "-z"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            // Where there is none, the sections that the other test looks for have to do.
            let Ok(mut groff) = groff else { return };
            let mut input = groff.stdin.take().expect("a pipe");
            input.write_all(text.as_bytes()).expect("it reads");
            drop(input);
            let ended = groff.wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(ended.status.success() && said.is_empty(), "{name}: {said}");
        }
    }

    #[test]
    fn a_subcommand_that_there_is_not_is_told_with_the_nearest() {
        let command = command();
        let path =
            |words: &[&str]| -> Vec<String> { words.iter().map(|&word| word.to_owned()).collect() };
        let found = find(&command, &path(&["dead-letters", "list"])).expect("it is there");
        assert_eq!(page(found).0, "lockstep-dead-letters-list.1");
        let error = find(&command, &path(&["dead-letters", "lst"])).expect_err("it is not");
        assert!(
            error.to_string().contains("did you mean `list`?"),
            "{error}"
        );
    }
}
