//! Standard output and standard error. A closed pipe ends the output, not the process with a panic.

use std::io::{IsTerminal, Write};

use lockstep_core::Error;
use serde_json::{Value, json};

use crate::figures::Paint;

/// Prints to standard output.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// Prints a JSON document to standard output, for eyes as well.
pub fn print_json(value: &Value) {
    print(&format!("{value:#}\n"));
}

/// An error, for programs: its code, what happened where and why, and what helps.
pub fn error_json(error: &Error) -> Value {
    let code = error.kind().code();
    let text = error.to_string();
    let text = text.strip_prefix(code).unwrap_or(&text).trim_start();
    let remedy = error.remedy_text();
    let message = remedy
        .and_then(|remedy| text.strip_suffix(remedy)?.strip_suffix(". Remedy: "))
        .unwrap_or(text);
    json!({ "code": code, "message": message, "remedy": remedy })
}

/// Prints a line to standard error.
pub fn error(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Whether standard output is a terminal.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// How answers on standard output are painted.
pub fn paint() -> Paint {
    Paint {
        color: colours(is_terminal(), |name| std::env::var(name).ok()),
    }
}

/// As [`paint`], for standard error.
pub fn paint_errors() -> Paint {
    let is_terminal = std::io::stderr().is_terminal();
    Paint {
        color: colours(is_terminal, |name| std::env::var(name).ok()),
    }
}

/// Whether colours are welcome: on a terminal that is not `dumb`. `NO_COLOR` forbids them everywhere, `CLICOLOR_FORCE` asks for them where
/// there is no terminal (`lockstep check … | less -R`), as it does for `--help`.
fn colours(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> bool {
    let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    if is_set("NO_COLOR") {
        return false;
    }
    if variable("CLICOLOR_FORCE").is_some_and(|value| !matches!(&*value, "" | "0")) {
        return true;
    }
    is_terminal && variable("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_in_parts() {
        let error = Error::new(lockstep_core::ErrorKind::Unavailable, "cannot connect")
            .source(std::io::Error::other("refused"))
            .remedy("start it")
            .at("sinks.cache");
        let told = json!({ "code": "LS003", "message": "sinks.cache: cannot connect: refused", "remedy": "start it" });
        assert_eq!(error_json(&error), told);
        let bare = Error::new(lockstep_core::ErrorKind::Invalid, "no");
        assert_eq!(error_json(&bare)["message"], "no");
        assert!(error_json(&bare)["remedy"].is_null());
    }

    #[test]
    fn colours_are_for_terminals_unless_somebody_says_otherwise() {
        let with = |is_terminal: bool, set: &[(&str, &str)]| {
            colours(is_terminal, |name| {
                let found = set.iter().find(|(this, _)| *this == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(with(true, &[("TERM", "xterm")]));
        assert!(!with(false, &[("TERM", "xterm")]));
        assert!(!with(true, &[("TERM", "dumb")]));
        assert!(!with(true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]));
        assert!(with(true, &[("NO_COLOR", "")]));
        assert!(with(false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!with(false, &[("CLICOLOR_FORCE", "0")]));
    }
}
