//! A pipeline that runs in this process for as long as it is asked something.

use std::time::Duration;

use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::file::Admin;
use lockstep_pipelines::{Handle, Pipeline, Running, Standby};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::Outcome;
use crate::admin::{self, Seat};
use crate::cli::Format;
use crate::client::Client;
use crate::reconcile::{self, Wanted};
use crate::run::{holder, stop_on_signals};

/// Between two looks whether everything is open.
const LOOK: Duration = Duration::from_millis(100);

/// See the module's page.
pub struct Here {
    running: Running,
    shutdown: CancellationToken,
    admin: Admin,
    server: JoinHandle<()>,
}

impl Here {
    /// Starts it. Where its file has no `[admin]` section, it is asked at a port of this machine that is free.
    ///
    /// # Errors
    /// The pipeline's; `Busy` when another process runs it.
    pub async fn start(mut pipeline: Pipeline) -> Result<Self, Error> {
        let shutdown = CancellationToken::new();
        stop_on_signals(shutdown.clone())?;
        if let Some(section) = &mut pipeline.reconcile {
            section.when_asked = true;
        }
        let mut admin = pipeline.admin.take().unwrap_or_else(|| Admin {
            listen: "127.0.0.1:0".to_owned(),
            token: None,
            open: false,
        });
        let running = match Standby::new(&pipeline, &holder())? {
            None => lockstep_pipelines::start(&pipeline, shutdown.clone()).await?,
            Some(standby) => {
                let held = standby.turn_at_once().await?;
                lockstep_pipelines::start_holding(&pipeline, held, shutdown.clone()).await?
            }
        };
        let listener = admin::bind(&admin).await?;
        if let Some(address) = listener.address() {
            admin.listen = address.to_string();
        }
        let server = tokio::spawn(listener.serve(Seat::running(running.handle())));
        Ok(Here {
            running,
            shutdown,
            admin,
            server,
        })
    }

    /// Compares as soon as everything is open, then drains the pipeline.
    ///
    /// # Errors
    /// As [`reconcile::reconcile`]; the pipeline's, when it ends before.
    pub async fn ask(self, wanted: Wanted, format: Format) -> Outcome {
        let url = format!("http://{}", self.admin.listen);
        let client = Client {
            url: &url,
            token: self.admin.token.as_ref().map(|token| token.reveal()),
        };
        let handle = self.running.handle();
        let asked = async {
            open(&handle).await;
            reconcile::reconcile(&client, &wanted, format).await
        };
        let mut ended = std::pin::pin!(self.running.wait());
        let told = tokio::select! {
            told = asked => told,
            ended = &mut ended => {
                ended?;
                let message = "the pipeline ended before all was compared";
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        };
        self.shutdown.cancel();
        let drained = ended.await;
        self.server.abort();
        drained?;
        told
    }
}

/// Pends until sources and sinks are open.
async fn open(handle: &Handle) {
    while handle.ready().is_err() {
        tokio::time::sleep(LOOK).await;
    }
}
