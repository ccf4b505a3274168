//! The suite on PostgreSQL, and what is special to it.

use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_kit::Component::Postgres as NeedsPostgres;
use lockstep_kit::component::POSTGRES_MAJORS;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{require, require_own, unique, wait_for};
use lockstep_leases::{Attempt, LeaseConfig, Renewal, Token};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::ground::{Ground, config, written};

const MAJOR: u16 = 16;
const TTL: Duration = Duration::from_secs(2);

struct Table {
    database: Database,
    own: Option<Postgres>,
}

impl Table {
    fn authority(&self) -> &str {
        let rest = self.database.url().split('@').nth(1).expect("a user");
        rest.split('/').next().expect("an address")
    }
}

impl Ground for Table {
    async fn shared() -> Self {
        let server = Postgres::shared(MAJOR).await;
        let database = server.database("leases").await;
        Table {
            database,
            own: None,
        }
    }

    async fn own() -> Self {
        let server = Postgres::start(PostgresOptions::new(MAJOR)).await;
        let database = server.database("leases").await;
        Table {
            database,
            own: Some(server),
        }
    }

    async fn restart(&self) {
        let own = self.own.as_ref().expect("a server of its own");
        own.stop_immediately().await;
        own.restart().await;
    }

    fn address(&self) -> String {
        self.authority().to_owned()
    }

    fn config(&self, address: &str, ttl: Duration) -> Value {
        let url = self.database.url().replace(self.authority(), address);
        json!({ "type": "postgres", "url": url, "ttl": written(ttl) })
    }

    async fn is_taken(&self, name: &str) -> bool {
        let ask = format!(
            "SELECT holder FROM lockstep.lease WHERE name = '{name}' AND expires > clock_timestamp()"
        );
        self.database.value(&ask).await.is_some()
    }
}

suite!(Table, NeedsPostgres(MAJOR));

#[tokio::test]
async fn a_lease_that_has_run_out_is_not_brought_back() {
    require!(NeedsPostgres(MAJOR));
    crate::suite::a_lease_that_has_run_out_is_not_brought_back::<Table>().await;
}

fn at(url: &str) -> LeaseConfig {
    config(json!({ "type": "postgres", "url": url, "ttl": "2s" }))
}

#[tokio::test]
async fn a_user_who_may_not_make_the_table_is_told_what_to_run() {
    require!(NeedsPostgres(MAJOR));
    let table = Table::shared().await;
    let user = unique("poor");
    let database = &table.database;
    database.execute(&format!("CREATE ROLE {user} LOGIN")).await;
    let url = format!(
        "postgres://{user}@{}/{}",
        table.authority(),
        database.name()
    );
    let leases = at(&url).open().expect("leases");
    let error = leases.acquire("shop", "me").await.expect_err("no right");
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    let remedy = error.remedy_text().expect("a remedy").to_owned();
    assert!(remedy.contains("CREATE TABLE"), "{error}");

    // Somebody who may does as it says.
    let statements = remedy.strip_prefix("let somebody who may run: ");
    let statements = statements.expect("statements").replace("the_user", &user);
    let (make, grant) = statements.split_once(" GRANT").expect("grants");
    database.execute(make).await;
    let error = leases.acquire("shop", "me").await.expect_err("no right");
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    assert!(error.to_string().contains("GRANT USAGE"), "{error}");
    database.execute(&format!("GRANT{grant}")).await;
    let held = leases.acquire("shop", "me").await.expect("held");
    held.release().await.expect("let go");
    let drop = format!("DROP OWNED BY {user}; DROP ROLE {user}");
    database.execute(&drop).await;
}

/// Those who make it at the same time get in each other's way, and are held up by somebody who makes it by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_come_first_make_one_table() {
    require!(NeedsPostgres(MAJOR));
    let table = Table::shared().await;
    let by_hand = table.database.client().await;
    let begun = by_hand.batch_execute("BEGIN; CREATE SCHEMA lockstep").await;
    begun.expect("begun");
    let mut acquiring = JoinSet::new();
    for number in 0..8 {
        let leases = table.leases(Duration::from_secs(60));
        acquiring.spawn(async move { leases.acquire(&format!("first-{number}"), "me").await });
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND query LIKE '%CREATE SCHEMA IF%' AND wait_event_type = 'Lock'";
    wait_for(Duration::from_secs(15), "all to be held up", async || {
        table.database.value(waiting).await.as_deref() == Some("8")
    })
    .await;
    by_hand.batch_execute("COMMIT").await.expect("made");
    while let Some(held) = acquiring.join_next().await {
        assert!(held.expect("no panic").expect("held").is_valid_now());
    }
}

#[tokio::test]
async fn every_version_keeps_leases() {
    for major in POSTGRES_MAJORS {
        require!(NeedsPostgres(major));
        let database = Postgres::shared(major).await.database("leases").await;
        let provider = at(database.url()).provider().expect("a provider");
        let mut one = provider.candidate("shop", "one").expect("a candidate");
        let mut other = provider.candidate("shop", "other").expect("a candidate");
        let Attempt::Taken { token, .. } = one.attempt().await.expect("an answer") else {
            panic!("{major}: refused");
        };
        let Attempt::Refused { left: Some(left) } = other.attempt().await.expect("an answer")
        else {
            panic!("{major}: two hold it");
        };
        assert!(left > TTL / 2 && left <= TTL, "{major}: {left:?}");
        let renewed = one.renew().await.expect("an answer");
        assert_eq!(renewed, Renewal::Prolonged(TTL), "{major}");
        one.release().await.expect("let go");
        let attempt = other.attempt().await.expect("an answer");
        let granted = TTL;
        let token = Token(token.0 + 1);
        assert_eq!(attempt, Attempt::Taken { token, granted }, "{major}");
    }
}

#[tokio::test]
async fn a_standby_is_refused() {
    require_own!(NeedsPostgres(MAJOR));
    let primary = Postgres::start(PostgresOptions::new(MAJOR)).await;
    let standby = Postgres::start(PostgresOptions::standby_of(&primary)).await;
    let leases = at(standby.url()).open().expect("leases");
    let error = leases.acquire("shop", "me").await.expect_err("a standby");
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(error.to_string().contains("standby"), "{error}");

    // Promoted, it has forgotten what the primary gave out last: tokens grow all the same.
    let before = at(primary.url()).open().expect("leases");
    let held = before.acquire("shop", "me").await.expect("held");
    let first = held.token();
    primary.kill_all();
    standby.promote().await;
    standby.execute("DROP TABLE IF EXISTS lockstep.lease").await;
    let held = leases.acquire("shop", "me").await.expect("held");
    assert!(held.token() > first, "{} after {first}", held.token());
}

/// A database that does not wait for its disk would forget the last token in a crash.
#[tokio::test]
async fn what_is_taken_waits_for_the_disk() {
    require!(NeedsPostgres(MAJOR));
    let table = Table::shared().await;
    let name = table.database.name().to_owned();
    let off = format!("ALTER DATABASE \"{name}\" SET synchronous_commit = off");
    table.database.execute(&off).await;
    let leases = table.leases(TTL);
    let held = leases.acquire("a", "me").await.expect("held");
    let note = "CREATE TABLE noted (setting text, lock_timeout text); \
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           INSERT INTO noted VALUES (current_setting('synchronous_commit'), current_setting('lock_timeout')); \
           RETURN NEW; END $$; \
         CREATE TRIGGER note BEFORE INSERT ON lockstep.lease FOR EACH ROW EXECUTE FUNCTION note()";
    table.database.execute(note).await;
    let other = leases.acquire("b", "me").await.expect("held");
    let noted = "SELECT setting || ' ' || lock_timeout FROM noted";
    let noted = table.database.value(noted).await;
    assert_eq!(noted.as_deref(), Some("on 2s"));
    drop((held, other));
}

#[test]
fn sections_are_read() {
    let config = at("postgres://u:secret@h/d");
    assert_eq!(config.ttl().0, TTL);
    assert!(!format!("{config:?}").contains("secret"));
    let wrong = |section: Value| match serde_json::from_value::<LeaseConfig>(section) {
        Ok(config) => config.validate().expect_err("wrong").to_string(),
        Err(error) => error.to_string(),
    };
    let url = "postgres://u@h/d";
    let short = wrong(json!({ "type": "postgres", "url": url, "ttl": "500ms" }));
    assert!(short.contains("ttl") && short.contains("Remedy"), "{short}");
    let unknown = wrong(json!({ "type": "postgres", "url": url, "tll": "5s" }));
    assert!(unknown.contains("tll"), "{unknown}");
    let bad = wrong(json!({ "type": "postgres", "url": "mysql://h" }));
    assert!(bad.contains("url"), "{bad}");
    assert!(wrong(json!({ "type": "etcd" })).contains("etcd"));
}
