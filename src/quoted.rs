//! Texts of a pipeline file in TOML that the program writes.

use std::fmt::Write;

/// A text in which the pipeline file finds no `${NAME}`.
pub fn literal(text: &str) -> String {
    text.replace("${", "$${")
}

/// A basic string of TOML. `${NAME}` stays what it is.
pub fn string(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
