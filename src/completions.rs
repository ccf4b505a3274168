//! `lockstep completions SHELL`.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::{Outcome, output};

/// Prints the script.
pub fn completions(shell: Shell) -> Outcome {
    output::print(&script(shell));
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use clap::ValueEnum;

    use super::*;

    /// What the shell says to a script, if the shell is there.
    fn understood(shell: &str, arguments: &[&str], script: &str) -> Option<bool> {
        let child = Command::new(shell)
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn();
        let mut child = child.ok()?;
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(script.as_bytes()).expect("it reads");
        drop(input);
        Some(child.wait().expect("it ends").success())
    }

    #[test]
    fn every_shell_gets_every_subcommand() {
        for &shell in Shell::value_variants() {
            let script = script(shell);
            for subcommand in Cli::command().get_subcommands() {
                let name = subcommand.get_name();
                assert!(script.contains(name), "{shell}: {name}");
            }
        }
    }

    #[test]
    fn shells_understand_their_scripts() {
        let bash = understood("bash", &["-n"], &script(Shell::Bash));
        assert_eq!(bash, Some(true));
        assert_eq!(understood("bash", &["-n"], "if then"), Some(false));
        for (name, arguments, shell) in [("zsh", ["-n"], Shell::Zsh), ("fish", ["-n"], Shell::Fish)]
        {
            let understood = understood(name, &arguments, &script(shell));
            assert_ne!(understood, Some(false), "{name}");
        }
    }

    #[test]
    fn bash_completes_subcommands_and_options() {
        let ask = "\nCOMP_WORDS=(lockstep dead-letters re); COMP_CWORD=2; _lockstep lockstep re dead-letters; echo \"${COMPREPLY[@]}\"\
                   \nCOMP_WORDS=(lockstep check --off); COMP_CWORD=2; _lockstep lockstep --off check; echo \"${COMPREPLY[@]}\"\n";
        let said = Command::new("bash")
            .args(["-c", &format!("{}{ask}", script(Shell::Bash))])
            .output()
            .expect("bash is there");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert_eq!(said.lines().collect::<Vec<&str>>(), ["replay", "--offline"]);
    }
}
