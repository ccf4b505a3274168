//! The web page, in a real browser, of a pipeline at work.

mod browser;

use std::net::SocketAddr;

use lockstep_e2e::child::{PATIENCE, Pipeline};
use lockstep_e2e::{Setup, http};
use lockstep_kit::Component::{
    Chromium as NeedsChromium, Postgres as NeedsPostgres, Redis as NeedsRedis,
};
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, Reply};
use lockstep_kit::{require, unique};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{cache, end_of_log, files, source};
use browser::Browser;

const TOKEN: &str = "open sesame, and a little longer";

/// Planted where it must not be seen.
const PASSWORD: &str = "planted-secret-4711";

struct Ground {
    database: Database,
    redis: &'static Redis,
    name: String,
    setup: Setup,
    pipeline: Pipeline,
}

impl Ground {
    async fn new(admin: &str) -> Self {
        let (database, redis) = tokio::join!(
            async { Postgres::shared(17).await.database("shop").await },
            Redis::shared(),
        );
        database
            .execute(
                "CREATE TABLE orders (id int PRIMARY KEY, customer text, total numeric(9, 2)); \
                 INSERT INTO orders SELECT n, 'customer ' || n, n * 1.5 FROM generate_series(1, 400) n",
            )
            .await;
        let name = unique("web");
        let setup = Setup::new(&name, |folder| {
            // Servers that trust everybody take any password.
            let url = database
                .url()
                .replacen("postgres@", &format!("postgres:{PASSWORD}@"), 1);
            assert!(url.contains(PASSWORD), "{url}");
            source(&url, &name, &["orders"])
                + "[transforms.once]\ntype = \"dedupe\"\ninputs = [\"shop\"]\nkey = [\"id\"]\n"
                + &cache(redis.url(), &name).replace("[\"shop\"]", "[\"once\"]")
                + &files(folder).replace("[\"shop\"]", "[\"once\"]")
                + "[reconcile]\nevery = \"1d\"\n\
                   [[reconcile.invariants]]\nname = \"totals-are-not-negative\"\nrule = \"non_negative\"\nkey = [\"id\"]\n\
                   [reconcile.invariants.queries]\nshop = \"SELECT id, total FROM orders\"\n"
                + admin
        });
        let pipeline = setup.start_ready().await;
        Ground {
            database,
            redis,
            name,
            setup,
            pipeline,
        }
    }

    async fn caught_up(&mut self) {
        let end = end_of_log(&self.database).await;
        self.pipeline.wait_visible("shop", &end, PATIENCE).await;
    }

    fn key(&self, id: u32) -> String {
        format!("{}:orders:{id}", self.name)
    }

    async fn ask(&self, words: &[&str]) -> Reply {
        self.redis.command(words).await.expect("an answer")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_view_shows_what_is_so_to_everybody_and_a_row_is_repaired_and_a_letter_replayed() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsChromium);
    let mut ground = Ground::new("").await;
    let page = Browser::open(&ground.pipeline.url().await).await;
    page.shows("Pipeline").await;
    page.shows("ready").await;
    ground.caught_up().await;

    // The graph has every node, with what flows.
    let update = "UPDATE orders SET total = total + 1";
    ground.database.execute(update).await;
    ground.caught_up().await;
    for node in [
        "source shop, postgres",
        "transform once, dedupe",
        "sink cache, redis",
        "sink files, file",
    ] {
        let found = format!(
            "return [...document.querySelectorAll('.graph a')].some((a) => a.getAttribute('aria-label').startsWith('{node}'))"
        );
        assert_eq!(page.script(&found).await, Value::Bool(true), "{node}");
    }
    page.picture("web-pipeline").await;

    // Is a place of the log visible?
    let end = end_of_log(&ground.database).await;
    page.fill("Place of the log", &end).await;
    page.press("Look").await;
    page.shows("is durable in every sink").await;

    // A row that somebody has changed in the cache is found, looked at, and mended.
    let key = ground.key(7);
    ground
        .ask(&[
            "SET",
            &key,
            "{\"id\":7,\"customer\":\"somebody else\",\"total\":\"0.00\"}",
        ])
        .await;
    page.press("Reconcile").await;
    page.press("Compare everything now").await;
    page.shows("1 differ").await;
    page.press("public.orders (7)").await;
    page.shows("somebody else").await;
    page.shows("What the source has").await;
    page.picture("web-drift").await;
    page.press("Repair this row").await;
    page.shows("1 mended").await;
    let Reply::Text(mended) = ground.ask(&["GET", &key]).await else {
        panic!("no text");
    };
    assert!(mended.contains("customer 7"), "{mended}");
    page.press("Look now").await;
    page.shows("holds").await;
    page.picture("web-reconcile").await;

    // A row that the cache refuses is looked at, and replayed when the cause is gone.
    let (key, aside) = (ground.key(5), format!("{}-aside", ground.name));
    ground.ask(&["RENAME", &key, &aside]).await;
    ground.ask(&["RPUSH", &key, "not ours"]).await;
    ground
        .database
        .execute("UPDATE orders SET customer = 'a new one' WHERE id = 5")
        .await;
    ground.caught_up().await;
    page.press("Dead letters").await;
    page.shows("wrong_type").await;
    page.press("The change").await;
    page.shows("a new one").await;
    page.picture("web-letters").await;
    ground.ask(&["DEL", &key]).await;
    page.press("Replay").await;
    page.shows("Nothing lies aside").await;
    let Reply::Text(written) = ground.ask(&["GET", &key]).await else {
        panic!("no text");
    };
    assert!(written.contains("a new one"), "{written}");

    every_view_is_for_everybody(&page).await;
    let shown = page
        .script("return fetch('api/file').then((answer) => answer.text())")
        .await;
    assert!(!shown.to_string().contains(PASSWORD), "{shown}");
    assert!(shown.to_string().contains("\\\"tables\\\":"), "{shown}");

    // By the keyboard alone.
    page.script("location.hash = '#/'; document.activeElement.blur()")
        .await;
    page.script("document.querySelector('nav a[href=\"#/sinks\"]').focus()")
        .await;
    page.keys("\u{e007}").await;
    page.shows("Held the same or newer").await;

    let others = "return performance.getEntriesByType('resource').map((one) => one.name).filter((name) => !name.startsWith(location.origin))";
    assert_eq!(page.script(others).await, Value::Array(vec![]));
    assert_eq!(page.console().await, Vec::<String>::new());
    drop(page);
    assert!(ground.pipeline.terminate(PATIENCE).await.success());
    drop(ground.setup);
}

/// Whoever has a phone, prefers the dark, or hears the page.
async fn every_view_is_for_everybody(page: &Browser) {
    for scheme in ["light", "dark"] {
        page.prefer(scheme).await;
        for (view, heading) in [
            ("", "Pipeline"),
            ("sources", "Sources"),
            ("sinks", "Sinks"),
            ("reconcile", "Reconcile"),
            ("letters", "Dead letters"),
            ("transactions", "Transactions in doubt"),
            ("file", "Pipeline file"),
        ] {
            page.script(&format!("location.hash = '#/{view}'")).await;
            page.shows(heading).await;
            assert_eq!(
                page.barriers().await,
                Vec::<String>::new(),
                "{view} {scheme}"
            );
            page.resize(390, 844).await;
            let wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
            assert_eq!(page.script(wide).await, Value::from(0), "{view} on a phone");
            if scheme == "dark" {
                page.picture(&format!("web-phone-{heading}").replace(' ', "-"))
                    .await;
            }
            page.resize(1280, 900).await;
            page.picture(&format!("web-{scheme}-{heading}").replace(' ', "-"))
                .await;
            let text = page.text().await;
            assert!(!text.contains(PASSWORD), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_asks_for_the_token_and_forgets_a_wrong_one() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsChromium);
    let admin = format!("[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\n");
    let mut ground = Ground::new(&admin).await;
    let address = ground.pipeline.address().await;
    let page = Browser::open(&format!("http://{address}/#/sinks")).await;
    page.shows("asks for its token").await;
    assert!(!page.text().await.contains("cache"));
    page.fill("Token", "wrong").await;
    page.press("Log in").await;
    page.shows("That is not the token").await;
    page.fill("Token", TOKEN).await;
    page.press("Log in").await;
    page.shows("Held the same or newer").await;
    assert_eq!(page.barriers().await, Vec::<String>::new());
    // It is this tab's, until it is closed.
    let kept = page
        .script("return [document.cookie, Object.keys(localStorage).length]")
        .await;
    assert_eq!(kept, serde_json::json!(["", 0]));
    drop(page);
    assert!(!ground.pipeline.log().contains(TOKEN));
    assert!(ground.pipeline.terminate(PATIENCE).await.success());
}

/// Sends a request as it is; the status of the answer.
async fn send(address: SocketAddr, head: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!(
        "{head}\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test]
async fn no_other_page_can_use_it() {
    require!(NeedsPostgres(17), NeedsRedis);
    let mut ground = Ground::new("").await;
    let address = ground.pipeline.address().await;
    let post = async |host: &str, more: &str| {
        let head = format!("POST /api/reconcile HTTP/1.1\r\nHost: {host}{more}");
        send(address, &head).await
    };
    let own = address.to_string();
    assert_eq!(post(&own, "").await, 200, "a program");
    assert_eq!(post(&own, &format!("\r\nOrigin: http://{own}")).await, 200);
    for more in [
        "Origin: http://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
    ] {
        assert_eq!(post(&own, &format!("\r\n{more}")).await, 403, "{more}");
    }
    // A name that somebody has made lead here, and a page of that name.
    let evil = "evil.example:80";
    assert_eq!(post(evil, &format!("\r\nOrigin: http://{evil}")).await, 403);
    let read = format!("GET /api/status HTTP/1.1\r\nHost: {evil}");
    assert_eq!(send(address, &read).await, 403);
    // Programs that ask for text get it.
    let (code, index) = http::get(address, "/", None).await.expect("an answer");
    assert!(code == 200 && index.contains("/api/status"), "{index}");
    assert!(ground.pipeline.terminate(PATIENCE).await.success());
}
