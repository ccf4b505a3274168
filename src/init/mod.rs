//! `lockstep init`: asks what a pipeline is to join, or reads it off a database, and writes a file that passes `lockstep check`.

mod address;
mod args;
mod ask;
mod file;
mod look;
mod sinks;
mod source;
mod tables;

use std::io::{BufReader, Stderr, Stdin, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pipelines::Registry;
use lockstep_pipelines::file::{
    DEFAULT_ADMIN_LISTEN, Variables, is_name, load_with, process_variables,
};
use serde_json::{Value, json};

use self::address::{Database, Password, called};
pub use self::args::Arguments;
use self::ask::Asker;
use self::file::{Plan, TOKEN_VARIABLE};
use self::sinks::Sink;
use self::source::Source;
use self::tables::{choose, listing, numbers, suggested};
use crate::check::Checked;
use crate::cli::Format;
use crate::{Outcome, output, terminal};

/// Ports that are tried for the admin endpoint, from the usual one on.
const PORTS: u16 = 100;

type Person = Asker<BufReader<Stdin>, Stderr>;

/// What the file will say.
struct Answers {
    name: String,
    sources: Vec<Source>,
    stitch: bool,
    sinks: Vec<Sink>,
}

/// Asks, looks, writes, checks, and says how to go on. Exit code 0 when the file is written, whatever the check says of the servers.
///
/// # Errors
/// When a database cannot be read, when nobody is there to be asked, when there is such a file already.
pub async fn init(arguments: &Arguments, registry: &Registry) -> Outcome {
    if let Some(file) = &arguments.file {
        may_write(file, arguments.force)?;
    }
    let mut person = person(arguments)?;
    let variables = process_variables();
    let answers = answers(arguments, person.as_mut(), registry, &variables).await?;
    let file = match &arguments.file {
        Some(file) => file.clone(),
        None => PathBuf::from(format!("{}.toml", answers.name)),
    };
    may_write(&file, arguments.force)?;
    let listen = listen(arguments.listen);
    let plan = Plan {
        name: &answers.name,
        listen: &listen,
        sources: &answers.sources,
        stitch: answers.stitch,
        sinks: &answers.sinks,
    };
    write(&file, &plan.text(&file), arguments.force)?;
    let checked = check(&file, &answers, registry, variables).await?;
    let missing = missing_variables(&answers, &listen);
    match arguments.format {
        Format::Json => output::print_json(&json(&file, &answers, &missing, &checked)),
        Format::Table => output::print(&told(&file, &missing, &checked)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Somebody to ask, when that is needed and possible.
fn person(arguments: &Arguments) -> Result<Option<Person>> {
    if terminal::can_ask() && !arguments.takes_suggestions() {
        let paint = output::paint_errors();
        let input = BufReader::new(std::io::stdin());
        return Ok(Some(Asker::new(input, std::io::stderr(), paint)));
    }
    let takes = arguments.takes_suggestions();
    let missing: Vec<&str> = [
        ("--url", arguments.databases().is_empty()),
        ("--tables", arguments.tables.is_empty() && !takes),
        ("--sink", arguments.sinks.is_empty() && !takes),
    ]
    .into_iter()
    .filter_map(|(flag, is_missing)| is_missing.then_some(flag))
    .collect();
    if missing.is_empty() {
        return Ok(None);
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!("there is no terminal to ask on; not given: {}", missing.join(", ")),
    )
    .remedy(
        "say it: --url postgres://user@host:5432/database --tables schema.table,… --sink kafka=HOST:PORT [--name NAME]; \
         or --from URL, which takes what the database suggests; --yes does the same for whatever is not given",
    ))
}

async fn answers(
    arguments: &Arguments,
    mut person: Option<&mut Person>,
    registry: &Registry,
    variables: &Variables,
) -> Result<Answers> {
    let mut sources = Vec::new();
    for given in arguments.databases() {
        let database = Database::parse(given, variables)?;
        let source = open(database, &sources, person.as_deref_mut(), variables).await?;
        sources.push(source);
    }
    let mut stitch = arguments.stitch;
    if let Some(person) = person.as_deref_mut()
        && sources.is_empty()
    {
        ask_databases(person, &mut sources, variables).await?;
        stitch |= sources.len() > 1 && person.is_so(
            "Are there transactions over both, committed in two phases, that are to arrive as a whole?",
        )?;
    }
    if stitch && sources.len() < 2 {
        return Err(Error::new(
            ErrorKind::Invalid,
            "there is one database only, and nothing to stitch",
        )
        .remedy("give a second --url, or leave --stitch out"));
    }
    choose_tables(arguments, person.as_deref_mut(), &mut sources)?;
    sources.retain(|source| !source.chosen.is_empty());
    if stitch && sources.len() < 2 {
        return Err(Error::new(
            ErrorKind::Invalid,
            "tables of one database only are taken, and there is nothing to stitch",
        )
        .remedy("name tables of both with --tables, or leave --stitch out"));
    }
    let sinks = choose_sinks(arguments, person.as_deref_mut(), registry)?;
    nothing_for(&sources, &sinks)?;
    let name = choose_name(arguments, person, &sources)?;
    Ok(Answers {
        name,
        sources,
        stitch,
        sinks,
    })
}

/// Looks into a database, under a name that no other source has.
async fn open(
    mut database: Database,
    others: &[Source],
    person: Option<&mut Person>,
    variables: &Variables,
) -> Result<Source> {
    let own = database.name.clone();
    let mut number = 2;
    while others.iter().any(|other| other.name() == database.name) {
        database.rename(format!("{own}_{number}"));
        number += 1;
    }
    let ask = |database: &Database| {
        let target = &database.target;
        let question = format!("Password of {} on {}?", target.user, target.label());
        person.map(|person| person.secret(&question)).transpose()
    };
    Source::open(database, variables, ask).await
}

async fn ask_databases(
    person: &mut Person,
    sources: &mut Vec<Source>,
    variables: &Variables,
) -> Result<()> {
    let first = "Which database? postgres://user@host:5432/database";
    let more = "Another database? (Enter for none)";
    loop {
        let (question, default) = match sources.len() {
            0 => (first, None),
            _ => (more, Some("")),
        };
        let given = person.ask(question, default, |answer| match answer {
            "" => Ok(None),
            url => {
                let database = Database::parse(url, variables);
                database.map(Some).map_err(|error| error.to_string())
            }
        })?;
        let Some(database) = given else {
            match sources.len() {
                0 => continue,
                _ => return Ok(()),
            }
        };
        match open(database, sources, Some(&mut *person), variables).await {
            Ok(source) => sources.push(source),
            Err(error) if error.kind() == ErrorKind::Stopping => return Err(error),
            Err(error) => person.say(&format!("  {error}\n")),
        }
        if sources.len() == 2 {
            return Ok(());
        }
    }
}

fn choose_tables(
    arguments: &Arguments,
    person: Option<&mut Person>,
    sources: &mut [Source],
) -> Result<()> {
    if !arguments.tables.is_empty() {
        return choose(sources, &arguments.tables);
    }
    let Some(person) = person else {
        return take_suggested(sources);
    };
    let mut before = 0;
    for source in &*sources {
        let text = listing(source, before, output::paint_errors());
        person.say(&format!("\n{text}"));
        before += source
            .found
            .tables
            .iter()
            .filter(|table| table.obstacle().is_none())
            .count();
    }
    person.say("\n");
    let question = "Which tables? Numbers or names with commas, `schema.*` for all of a schema";
    let default = "all with a key";
    person.ask(question, Some(default), |answer| {
        let chosen = match answer == default || answer == "all" {
            true => take_suggested(sources),
            false => {
                let wanted = numbers(sources, answer)?;
                choose(sources, &wanted)
            }
        };
        chosen.map_err(|error| {
            sources.iter_mut().for_each(|source| source.chosen.clear());
            error.to_string()
        })
    })
}

fn take_suggested(sources: &mut [Source]) -> Result<()> {
    for source in sources.iter_mut() {
        source.chosen = suggested(&source.found.tables);
    }
    if sources.iter().any(|source| !source.chosen.is_empty()) {
        return Ok(());
    }
    let places: Vec<String> = sources
        .iter()
        .map(|source| source.database.target.label())
        .collect();
    let what = format!(
        "{} has no table with a primary key that can be read",
        places.join(", ")
    );
    let aside = sources.iter().flat_map(|source| &source.found.tables);
    let aside = aside.filter_map(|table| Some((table, table.obstacle()?)));
    let remedies: Vec<String> = aside
        .take(5)
        .map(|(table, (why, remedy))| format!("{}: {why}: {remedy}", table.id))
        .collect();
    Err(
        Error::new(ErrorKind::Setup, what).remedy(match remedies.is_empty() {
            true => "create tables first, or name another database".to_owned(),
            false => remedies.join("; "),
        }),
    )
}

fn choose_sinks(
    arguments: &Arguments,
    person: Option<&mut Person>,
    registry: &Registry,
) -> Result<Vec<Sink>> {
    if !arguments.sinks.is_empty() {
        return sinks::parse(&arguments.sinks, registry);
    }
    let Some(person) = person else {
        return sinks::parse(&[sinks::SUGGESTED.to_owned()], registry);
    };
    let question = "Where to? kafka=HOST:PORT, redis=URL, rabbitmq=URL, opensearch=URL, webhook=URL, tantivy=FOLDER, file=FOLDER; several with commas";
    person.ask(question, Some(sinks::SUGGESTED), |answer| {
        let words = [answer.to_owned()];
        let sinks = sinks::parse(&words, registry).map_err(|error| error.to_string())?;
        match sinks.is_empty() {
            true => Err("name one at least".to_owned()),
            false => Ok(sinks),
        }
    })
}

/// A sink that no table can go to would not be in the file.
fn nothing_for(sources: &[Source], sinks: &[Sink]) -> Result<()> {
    let has_key = sources
        .iter()
        .flat_map(Source::taken)
        .any(|table| !table.key.is_empty());
    match sinks.iter().find(|sink| sink.needs_keys() && !has_key) {
        None => Ok(()),
        Some(sink) => {
            let what = format!(
                "no table has a primary key, and {} holds one record per key",
                sink.kind
            );
            let remedy = "ALTER TABLE … ADD PRIMARY KEY (…), or take a sink that has every change, such as kafka or file";
            Err(Error::new(ErrorKind::Invalid, what).remedy(remedy))
        }
    }
}

fn choose_name(
    arguments: &Arguments,
    person: Option<&mut Person>,
    sources: &[Source],
) -> Result<String> {
    let named = |name: &str| match is_name(name) {
        true => Ok(name.to_owned()),
        false => Err("a name is made of lower-case letters, digits, `_` and `-`".to_owned()),
    };
    if let Some(name) = &arguments.name {
        return named(name.as_str())
            .map_err(|why| Error::new(ErrorKind::Invalid, format!("--name {name}: {why}")));
    }
    let stem = arguments.file.as_deref().and_then(Path::file_stem);
    let suggested = match stem {
        Some(stem) => called(&stem.to_string_lossy()),
        None => {
            let names: Vec<&str> = sources.iter().map(Source::name).collect();
            names.join("-")
        }
    };
    match person {
        Some(person) => person.ask("What is the pipeline called?", Some(&suggested), named),
        None => Ok(suggested),
    }
}

/// Where the admin endpoint may listen.
fn listen(wanted: Option<SocketAddr>) -> String {
    if let Some(address) = wanted {
        return address.to_string();
    }
    let usual: Option<SocketAddr> = DEFAULT_ADMIN_LISTEN.parse().ok();
    let ports = usual.into_iter().flat_map(|usual| {
        let last = usual.port().saturating_add(PORTS);
        (usual.port()..last).map(move |port| SocketAddr::new(usual.ip(), port))
    });
    let mut free = ports.filter(|address| TcpListener::bind(address).is_ok());
    free.next().map_or_else(
        || DEFAULT_ADMIN_LISTEN.to_owned(),
        |address| address.to_string(),
    )
}

/// Before anybody is asked, and before it is written.
fn may_write(file: &Path, force: bool) -> Result<()> {
    if file.extension().is_none_or(|extension| extension != "toml") {
        let what = format!("{}: the file is written in TOML", file.display());
        return Err(Error::new(ErrorKind::Invalid, what).remedy("name it so that it ends in .toml"));
    }
    match file.exists() && !force {
        true => Err(exists(file)),
        false => Ok(()),
    }
}

fn exists(file: &Path) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("{} is there already", file.display()),
    )
    .remedy("name another file, or replace this one with --force")
}

fn write(file: &Path, text: &str, force: bool) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    match force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    let written = options
        .open(file)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(file),
        _ => Error::new(
            ErrorKind::of_storage(&error),
            format!("cannot write {}", file.display()),
        )
        .source(error)
        .remedy("name a file in a folder that can be written"),
    })
}

/// As `lockstep check` of the file, with the passwords that were given.
async fn check(
    file: &Path,
    answers: &Answers,
    registry: &Registry,
    mut variables: Variables,
) -> Result<Checked> {
    for password in passwords(answers) {
        let value = password.value.reveal().to_owned();
        variables.insert(password.variable.clone(), value);
    }
    // What it will be is no part of what is checked.
    variables
        .entry(TOKEN_VARIABLE.to_owned())
        .or_insert_with(|| "to be set".to_owned());
    let pipeline = load_with(file, registry, &variables).map_err(Error::from)?;
    Ok(Checked::all(file, &pipeline).await)
}

fn passwords(answers: &Answers) -> impl Iterator<Item = &Password> {
    let of_sources = answers
        .sources
        .iter()
        .filter_map(|source| source.database.password.as_ref());
    of_sources.chain(answers.sinks.iter().filter_map(Sink::password))
}

/// Variables that the file names, and that the environment does not have as they were given.
fn missing_variables(answers: &Answers, listen: &str) -> Vec<String> {
    let missing = passwords(answers).filter(|password| {
        let there = std::env::var(&password.variable);
        !there.is_ok_and(|there| there == password.value.reveal())
    });
    let token = (file::needs_token(listen) && std::env::var_os(TOKEN_VARIABLE).is_none())
        .then(|| TOKEN_VARIABLE.to_owned());
    missing
        .map(|password| password.variable.clone())
        .chain(token)
        .collect()
}

fn told(file: &Path, missing: &[String], checked: &Checked) -> String {
    let paint = output::paint();
    let mut out = format!("{} is written\n\n", paint.bold(&file.display().to_string()));
    out += &checked.attention(paint);
    out += "\n";
    for variable in missing {
        out += &format!(
            "  export {variable}=…  {}\n",
            paint.dim("# the password that was given; it is not in the file")
        );
    }
    for command in commands(file) {
        out += &format!("  {command}\n");
    }
    out
}

fn commands(file: &Path) -> [String; 2] {
    let file = file.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    let file = match file.chars().all(is_plain) {
        true => file,
        false => format!("'{}'", file.replace('\'', r"'\''")),
    };
    ["check", "run"].map(|word| format!("lockstep {word} {file}"))
}

fn json(file: &Path, answers: &Answers, missing: &[String], checked: &Checked) -> Value {
    let sources = answers.sources.iter().map(|source| {
        let tables = source.found.tables.iter().map(|table| {
            let obstacle = table.obstacle();
            json!({
                "table": table.id.to_string(),
                "key": table.key,
                "rows": table.rows,
                "bytes": table.bytes,
                "taken": source.takes(table),
                "problem": obstacle.as_ref().map(|(why, _)| why),
                "remedy": obstacle.as_ref().map(|(_, remedy)| remedy),
            })
        });
        json!({
            "name": source.name(),
            "database": source.database.target.label(),
            "version": source.found.version,
            "tables": tables.collect::<Vec<_>>(),
        })
    });
    let sinks = answers
        .sinks
        .iter()
        .map(|sink| json!({ "name": sink.name, "type": sink.kind }));
    json!({
        "file": file.display().to_string(),
        "name": answers.name,
        "sources": sources.collect::<Vec<_>>(),
        "sinks": sinks.collect::<Vec<_>>(),
        "stitch": answers.stitch,
        "environment": missing,
        "check": checked.json(),
        "next": commands(file),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("shop.toml");
        write(&file, "first", false).expect("it is new");
        for refused in [may_write(&file, false), write(&file, "second", false)] {
            let error = refused.expect_err("it is there");
            assert!(error.to_string().contains("--force"), "{error}");
        }
        assert_eq!(
            std::fs::read_to_string(&file).expect("it is there"),
            "first"
        );
        may_write(&file, true).expect("one may replace it");
        write(&file, "2nd", true).expect("one may replace it");
        assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "2nd");
        assert!(may_write(&folder.path().join("shop.yaml"), true).is_err());
    }

    #[test]
    fn the_next_commands_can_be_pasted() {
        assert_eq!(
            commands(Path::new("shop.toml")),
            ["lockstep check shop.toml", "lockstep run shop.toml"]
        );
        let quoted = commands(Path::new("my shop.toml"));
        assert_eq!(quoted[1], "lockstep run 'my shop.toml'");
    }

    #[test]
    fn a_port_in_use_is_not_suggested() {
        let free = listen(None);
        let taken = TcpListener::bind(&*free).expect("it was free");
        let other = listen(None);
        assert_ne!(free, other);
        drop(taken);
        let wanted = ([0, 0, 0, 0], 80).into();
        assert_eq!(listen(Some(wanted)), "0.0.0.0:80");
    }
}
