//! The section `[lease]`: who runs the pipeline where several processes are ready to, and what the next one finds.

use lockstep_leases::{LeaseConfig, RecordStore};

use super::path::KeyPath;
use super::report::Report;
use super::settings::State;

/// Who runs a pipeline.
#[derive(Clone, Debug)]
pub struct Leasing {
    /// Where the lease is kept. Its name is the pipeline's.
    pub config: LeaseConfig,
    /// What the next one finds of what this one knew.
    pub handed_on: HandedOn,
}

/// How whoever takes over knows what the former knew.
#[derive(Clone, Debug)]
pub enum HandedOn {
    /// The state directory is on a volume that all have.
    Volume,
    /// Each has a directory of its own; what sources remember is in a database, too.
    Records(Box<RecordStore>),
}

/// What keeps something in the state directory that nobody else can go on without, by where that is said.
pub(super) struct Local(pub Vec<KeyPath>);

/// What the section says. What is wrong with it is in the report.
pub(super) fn declared(
    pipeline: &str,
    lease: Option<LeaseConfig>,
    state: &State,
    local: &Local,
    report: &mut Report,
) -> Option<Leasing> {
    let path = KeyPath::keys(&["state"]);
    let Some(config) = lease else {
        let said = [
            ("shared", state.shared),
            ("url", state.url.is_some()),
            ("password", state.password.is_some()),
        ];
        for (key, _) in said.into_iter().filter(|(_, said)| *said) {
            let message = format!("`{key}` says something only where there is a `[lease]`");
            report.mistake(path.key(key), &message);
        }
        return None;
    };
    let section = KeyPath::keys(&["lease"]);
    if let Err(error) = config.validate() {
        let hint = error.remedy_text().map(str::to_owned);
        report.mistake(section.clone(), error.message()).hint = hint;
    }
    if let Err(error) = config.open().and_then(|leases| leases.suits(pipeline)) {
        let hint = error.remedy_text().map(str::to_owned);
        report
            .mistake(KeyPath::keys(&["name"]), error.message())
            .hint = hint;
    }
    if state.shared {
        if state.url.is_some() {
            let message = "a directory that all have needs no database beside it";
            report.mistake(path.key("url"), message).hint =
                Some("leave `url` or `shared` out".to_owned());
        }
        return Some(Leasing {
            config,
            handed_on: HandedOn::Volume,
        });
    }
    for place in &local.0 {
        let message =
            "this is kept in the state directory, where whoever takes over does not find it";
        let hint = "keep it on a server, or the directory on a volume that all have, and say `shared = true` in `[state]`";
        report.mistake(place.clone(), message).hint = Some(hint.to_owned());
    }
    let store = store(&config, state, report)?;
    Some(Leasing {
        config,
        handed_on: HandedOn::Records(Box::new(store)),
    })
}

fn store(config: &LeaseConfig, state: &State, report: &mut Report) -> Option<RecordStore> {
    let path = KeyPath::keys(&["state", "url"]);
    let (url, password) = match (&state.url, config) {
        (Some(url), _) => (url, state.password.as_ref()),
        (None, LeaseConfig::Postgres(lease)) => (&lease.url, lease.password.as_ref()),
        (None, _) => {
            let message = "with this lease the file has to say how whoever takes over knows what the former knew";
            let hint =
                "name a PostgreSQL database, or say `shared = true` where all have the directory";
            report.mistake(path, message).hint = Some(hint.to_owned());
            return None;
        }
    };
    match RecordStore::new(url, password) {
        Ok(store) => Some(store),
        Err(error) => {
            let hint = error.remedy_text().map(str::to_owned);
            report.mistake(path, error.message()).hint = hint;
            None
        }
    }
}
