//! What the running pipeline has read of branches that are in doubt.

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pipelines::{Doubts, Pipeline};
use lockstep_transactions::resolve::{Doubt, Evidence, Heard};

use crate::client::{self, Client};

/// What was read of the sources' logs.
#[derive(Debug, Default)]
pub struct Logs {
    doubts: Doubts,
    /// Why there is not more, for people.
    pub note: Option<String>,
}

/// Asks the pipeline, where it can have read something. One that does not answer has told nothing, which decides nothing.
pub async fn ask(pipeline: &Pipeline, url: Option<&str>) -> Logs {
    if pipeline.stitch.is_none() {
        let note = "what has become of other branches is not known: the pipeline has no `stitch`, which puts them together";
        return Logs::without(note.to_owned());
    }
    match answer(pipeline, url).await {
        Ok(doubts) if doubts.complete => Logs { doubts, note: None },
        Ok(doubts) => Logs {
            doubts,
            note: Some(
                "not all that has become of other branches is known: the pipeline has not read every log to its end"
                    .to_owned(),
            ),
        },
        Err(error) => Logs::without(format!(
            "what has become of other branches is not known: {error}"
        )),
    }
}

async fn answer(pipeline: &Pipeline, url: Option<&str>) -> Result<Doubts> {
    let admin = pipeline.admin.as_ref();
    let url = url.map(str::to_owned).or_else(|| admin.map(client::url));
    let url = url.ok_or_else(|| {
        Error::new(
            ErrorKind::Config,
            "the pipeline has no admin endpoint to ask",
        )
        .remedy("give it an [admin] section, and start it again")
    })?;
    let client = Client {
        url: &url,
        token: admin
            .and_then(|admin| admin.token.as_ref())
            .map(|token| token.reveal()),
    };
    let told = client.get("/api/transactions").await?;
    serde_json::from_value(told).map_err(|error| {
        Error::new(
            ErrorKind::Unavailable,
            format!("{url} answers something else"),
        )
        .source(error)
        .remedy("is it this version of lockstep that listens there?")
    })
}

impl Logs {
    fn without(note: String) -> Self {
        Logs {
            doubts: Doubts::default(),
            note: Some(note),
        }
    }
}

impl Evidence for Logs {
    fn heard(&self, doubt: &Doubt) -> Heard {
        self.doubts.heard(doubt)
    }
}
