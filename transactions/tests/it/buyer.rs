//! A process that buys once, and kills itself on the way: this test program, started again.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

use async_trait::async_trait;
use lockstep_transactions::coordinator::{Onlooker, Point};
use rustix::process::{Signal, getpid, kill_process};
use tokio::process::Command;

use crate::support::{Form, Shop, builder, buy};

/// The variable that makes [`child`] one: the URLs, the form, where to die, where to wait, whether to be fenced.
const VARIABLE: &str = "LOCKSTEP_TEST_BUYER";

/// A place by its point and database.
pub type Place = (Point, &'static str);

/// Runs a buyer to its end. It dies at `die`; before, what comes to `wait` waits for ever. `is_fenced`: its epoch is closed when all is
/// prepared.
pub async fn run(
    shop: &Shop,
    form: Form,
    die: Place,
    wait: Option<Place>,
    is_fenced: bool,
) -> ExitStatus {
    let place = |place: Option<Place>| {
        place.map_or_else(String::new, |(point, database)| {
            format!("{point:?}/{database}")
        })
    };
    let told = [
        shop.orders.url(),
        shop.inventory.url(),
        shop.decisions.url(),
        form.log(),
        &place(Some(die)),
        &place(wait),
        if is_fenced { "fenced" } else { "" },
    ];
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command
        .args(["--exact", "buyer::child", "--nocapture"])
        .env(VARIABLE, told.join("|"))
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command.status().await.expect("it starts")
}

/// As [`run`], of one that must die on its way.
pub async fn dies(shop: &Shop, form: Form, die: Place, wait: Option<Place>) {
    let status = run(shop, form, die, wait, false).await;
    assert_eq!(status.signal(), Some(9), "{form:?} {die:?}: {status:?}");
}

/// Not a test of its own: the body of the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(told) = std::env::var(VARIABLE) else {
        return;
    };
    let told: Vec<&str> = told.split('|').collect();
    let [orders, inventory, decisions, log, die, wait, fenced] = told[..] else {
        panic!("{told:?}");
    };
    let form = if log == "orders" {
        Form::Marked
    } else {
        Form::Full
    };
    let log = if log == "orders" { orders } else { decisions };
    let onlooker = Crash {
        die: die.to_owned(),
        wait: wait.to_owned(),
        fence: (!fenced.is_empty()).then(|| log.to_owned()),
    };
    let coordinator = builder([orders, inventory, decisions], form).onlooker(onlooker);
    let coordinator = coordinator.open().await.expect("opens");
    let bought = buy(&coordinator, 1).await;
    panic!("it lives on: {bought:?}");
}

struct Crash {
    die: String,
    wait: String,
    fence: Option<String>,
}

#[async_trait]
impl Onlooker for Crash {
    async fn reached(&self, point: Point, database: &str) {
        let here = format!("{point:?}/{database}");
        if let Some(log) = self.fence.as_ref().filter(|_| point == Point::AllPrepared) {
            let (client, connection) = tokio_postgres::connect(log, tokio_postgres::NoTls)
                .await
                .expect("connects");
            tokio::spawn(connection);
            let close = "UPDATE lockstep.gtx_epoch SET closed = now()";
            client.batch_execute(close).await.expect("closes");
        }
        if here == self.die {
            kill_process(getpid(), Signal::KILL).expect("dies");
        }
        if here == self.wait {
            std::future::pending::<()>().await;
        }
    }
}
