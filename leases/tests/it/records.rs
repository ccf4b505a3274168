//! Records of a pipeline, and whoever would still write them.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_conformance::checkpoint::{self, CheckpointsUnderTest};
use lockstep_core::ErrorKind;
use lockstep_core::config::Secret;
use lockstep_core::folder::Folder;
use lockstep_core::token::Token;
use lockstep_kit::Component::Postgres as NeedsPostgres;
use lockstep_kit::component::{POSTGRES_MAJORS, available_or_say_so};
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{require, require_own, wait_for};
use lockstep_leases::{Documents, RecordStore};
use tempfile::TempDir;

const MAJOR: u16 = 16;
const PLACE: &str = "sources/orders";

fn store(database: &Database) -> RecordStore {
    let url = Secret::new(database.url());
    RecordStore::new(&url, None).expect("a URL")
}

/// The documents of the place, as texts.
async fn kept(store: &RecordStore) -> Vec<(String, String)> {
    let mut places = store.look("shop").await.expect("readable");
    let documents = places.remove(PLACE).unwrap_or_else(Documents::new);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let documents = documents.into_iter();
    documents
        .map(|(name, content)| (name, text(content)))
        .collect()
}

fn document(name: &str, content: &str) -> (String, String) {
    (name.to_owned(), content.to_owned())
}

/// A record in a database, and a directory for whoever opens it.
struct Recorded {
    store: RecordStore,
    /// It is gone with this.
    _database: Database,
    directories: Mutex<Vec<TempDir>>,
}

#[async_trait]
impl CheckpointsUnderTest for Recorded {
    async fn open(&self, token: Token) -> Folder {
        let (records, mut places) = self.store.adopt("shop", token).await.expect("taken");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        let documents = places.remove(PLACE).unwrap_or_default();
        let documents = documents.iter();
        checkpoint::lay_out(
            &path,
            documents.map(|(name, content)| (&**name, &**content)),
        );
        let mut directories = self.directories.lock().expect("no holder panics");
        directories.push(directory);
        Folder::with_copies(path, records.of(PLACE))
    }

    fn fences(&self) -> bool {
        true
    }
}

mod checkpoints {
    use super::*;

    async fn make() -> Option<Recorded> {
        if !available_or_say_so(NeedsPostgres(MAJOR)) {
            return None;
        }
        let database = Postgres::shared(MAJOR).await.database("records").await;
        Some(Recorded {
            store: store(&database),
            _database: database,
            directories: Mutex::default(),
        })
    }

    lockstep_conformance::checkpoint_suite!(make);
}

#[tokio::test]
async fn who_takes_over_finds_all_and_the_former_writes_nothing_more() {
    for major in POSTGRES_MAJORS {
        require!(NeedsPostgres(major));
        let database = Postgres::shared(major).await.database("records").await;
        let store = store(&database);
        assert_eq!(kept(&store).await, [], "nothing has been made");
        let (former, found) = store.adopt("shop", Token(5)).await.expect("taken");
        assert!(found.is_empty());
        let former = former.of(PLACE);
        former.put("a.json", b"1").expect("kept");
        former.put("a.json", b"2").expect("kept");
        former.put("b.json", b"x").expect("kept");
        former.remove("b.json").expect("removed");
        former.remove("b.json").expect("gone already");
        assert_eq!(kept(&store).await, [document("a.json", "2")]);

        let (newer, found) = store.adopt("shop", Token(7)).await.expect("taken");
        assert_eq!(found[PLACE]["a.json"], b"2");
        let newer = newer.of(PLACE);
        for refused in [
            former.put("a.json", b"3"),
            former.put("new.json", b"3"),
            former.remove("a.json"),
        ] {
            assert_eq!(refused.expect_err("superseded").kind(), ErrorKind::Busy);
        }
        let error = store.adopt("shop", Token(6)).await.expect_err("superseded");
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert_eq!(kept(&store).await, [document("a.json", "2")]);
        newer.put("a.json", b"4").expect("kept");
        assert_eq!(kept(&store).await, [document("a.json", "4")]);
        // Another pipeline's are its own.
        store.adopt("other", Token(1)).await.expect("taken");
        newer.put("a.json", b"5").expect("kept");
    }
}

/// Everybody takes over, again and again, and writes at once: what is read at a takeover is what is kept until the next write of
/// who has taken over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_writes_behind_a_takeover() {
    require!(NeedsPostgres(MAJOR));
    let database = Postgres::shared(MAJOR).await.database("records").await;
    let store = store(&database);
    let (mut current, _) = store.adopt("shop", Token(1)).await.expect("taken");
    for round in 2..40 {
        let writer = current.of(PLACE);
        let writing = tokio::task::spawn_blocking(move || {
            (0..1000)
                .take_while(|n: &u32| writer.put("a.json", n.to_string().as_bytes()).is_ok())
                .count()
        });
        wait_for(Duration::from_secs(20), "the first write", || async {
            !kept(&store).await.is_empty()
        })
        .await;
        let (next, found) = store.adopt("shop", Token(round)).await.expect("taken");
        let read = found[PLACE]["a.json"].clone();
        writing.await.expect("no panic");
        let now = store.look("shop").await.expect("readable");
        assert_eq!(now[PLACE]["a.json"], read, "round {round}");
        current = next;
    }
}

#[tokio::test]
async fn a_server_that_comes_back_is_used_again() {
    require_own!(NeedsPostgres(MAJOR));
    let server = Postgres::start(PostgresOptions::new(MAJOR)).await;
    let database = server.database("records").await;
    let store = store(&database);
    let (records, _) = store.adopt("shop", Token(1)).await.expect("taken");
    let records = records.of(PLACE);
    records.put("a.json", b"1").expect("kept");
    server.stop_immediately().await;
    let refused = records.put("a.json", b"2").expect_err("nobody is there");
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    server.restart().await;
    records.put("a.json", b"3").expect("kept");
    assert_eq!(kept(&store).await, [document("a.json", "3")]);
}
