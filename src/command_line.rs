//! The generated part of `docs/command-line.md`: every subcommand with its arguments, from the definitions that read them.

use clap::{Arg, ArgAction, Command, CommandFactory};

use crate::cli::Cli;

const PAGE: &str = "docs/command-line.md";
const BEGIN: &str = "<!-- begin: generated from the command line's definitions -->\n";
const END: &str = "<!-- end -->\n";
/// Set it, and the test below writes the part instead of comparing it.
const WRITE: &str = "LOCKSTEP_WRITE_DOCS";

/// The sections of a command's subcommands, and of theirs.
fn sections(command: &Command, prefix: &str) -> String {
    let mut out = String::new();
    for command in command
        .get_subcommands()
        .filter(|one| one.get_name() != "help")
    {
        let name = format!("{prefix} {}", command.get_name());
        let below = sections(command, &name);
        match below.is_empty() {
            true => out += &section(command, &name),
            false => out += &below,
        }
    }
    out
}

fn section(command: &Command, name: &str) -> String {
    let about = command.get_long_about().or_else(|| command.get_about());
    let about = about.map_or_else(String::new, |about| one_line(&about.to_string()));
    let mut out = format!("### {name}\n\n{about}\n\n");
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|argument| !is_global(argument))
        .collect();
    if !arguments.is_empty() {
        out += "| argument | default | meaning |\n|---|---|---|\n";
        for argument in arguments {
            out += &row(argument);
        }
        out.push('\n');
    }
    out
}

/// Those that every subcommand has.
fn is_global(argument: &Arg) -> bool {
    argument.is_global_set() || matches!(argument.get_id().as_str(), "help" | "version")
}

fn row(argument: &Arg) -> String {
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let values: Vec<String> = argument
        .get_possible_values()
        .iter()
        .map(|value| value.get_name().to_owned())
        .collect();
    let placeholder = match argument.get_value_names() {
        Some(names) if !names.is_empty() => names.join(" "),
        _ => argument.get_id().to_string().to_uppercase(),
    };
    let value = match (takes_value, values.is_empty()) {
        (false, _) => String::new(),
        (true, true) => placeholder,
        (true, false) => values.join("\\|"),
    };
    let mut name = match argument.get_long() {
        Some(long) => format!("--{long} {value}").trim_end().to_owned(),
        None => value,
    };
    if let Some(short) = argument.get_short() {
        name = format!("-{short}, {name}");
    }
    if argument.is_positional()
        && argument
            .get_num_args()
            .is_some_and(|some| some.max_values() > 1)
    {
        name += " …";
    }
    let defaults = argument.get_default_values().iter();
    let defaults: Vec<String> = defaults
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let default = match (takes_value && !defaults.is_empty(), argument.get_env()) {
        (true, Some(variable)) => format!(
            "{}, or `{}`",
            defaults.join(", "),
            variable.to_string_lossy()
        ),
        (true, None) => defaults.join(", "),
        (false, Some(variable)) => format!("`{}`", variable.to_string_lossy()),
        (false, None) if argument.is_required_set() => "needed".to_owned(),
        (false, None) => String::new(),
    };
    let help = argument.get_long_help().or_else(|| argument.get_help());
    let help = help.map_or_else(String::new, |help| one_line(&help.to_string()));
    format!("| `{name}` | {default} | {help} |\n")
}

fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<&str>>().join(" ");
    text.replace('|', "\\|")
}

fn generated() -> String {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let global = command
        .get_arguments()
        .filter(|argument| argument.is_global_set());
    let global: String = global.map(row).collect();
    format!(
        "Every subcommand also takes:\n\n| argument | default | meaning |\n|---|---|---|\n{global}\n{}",
        sections(&command, "lockstep")
    )
}

#[test]
fn the_page_has_every_subcommand_and_argument_as_it_is() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&path).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("the page has a begin");
    let (part, after) = rest.split_once(END).expect("the page has an end");
    let expected = format!("\n{}", generated());
    if std::env::var_os(WRITE).is_some() {
        let page = format!("{before}{BEGIN}{expected}{END}{after}");
        std::fs::write(&path, page).expect("it can be written");
        return;
    }
    let first = part
        .lines()
        .zip(expected.lines())
        .find(|(is, should)| is != should);
    assert!(
        part == expected,
        "{PAGE} is not as the command line is; {WRITE}=1 writes it. First: {first:?}"
    );
}

#[test]
fn every_answer_for_programs_has_a_shape_on_the_page() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&path).expect("the page");
    let shapes = page.split_once("## Answers as JSON").expect("a section").1;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut open = vec![("lockstep".to_owned(), &command)];
    while let Some((name, command)) = open.pop() {
        let below = command.get_subcommands();
        open.extend(below.map(|one| (format!("{name} {}", one.get_name()), one)));
        if command
            .get_arguments()
            .any(|argument| argument.get_long() == Some("format"))
        {
            let short = name.trim_start_matches("lockstep ");
            assert!(
                shapes.contains(&format!("`{short}`")),
                "{short} has no shape on {PAGE}"
            );
        }
    }
}
