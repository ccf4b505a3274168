//! Commands and statements of a page are run, in their order, on servers of their own.

use lockstep_docs::page::{Block, Page};
use lockstep_docs::world::World;
use lockstep_docs::{pages, shell};
use lockstep_kit::Component::{Kafka, OpenSearch, Postgres, Prometheus, Redis};
use lockstep_kit::require_own;

use crate::exempt;

/// Pages at a time: most of a page's time is spent on waiting.
const AT_A_TIME: usize = 3;
/// Pages, or parts of their names, with commas between: only these are run.
const ONLY: &str = "LOCKSTEP_DOCS_ONLY";

fn is_run(block: &Block) -> bool {
    shell::is_run(block) && !exempt::is(block)
}

async fn run(page: &Page) -> Result<(), String> {
    let world = World::of(page, is_run).await;
    world.run(page, is_run).await
}

fn is_asked_for(page: &Page) -> bool {
    let only = std::env::var(ONLY).unwrap_or_default();
    only.is_empty() || only.split(',').any(|part| page.name.contains(part))
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_statements_do_what_the_pages_say() {
    require_own!(
        Postgres(15),
        Postgres(17),
        Redis,
        Kafka,
        OpenSearch,
        Prometheus
    );
    let pages = pages().into_iter();
    let mut left = pages.filter(|page| page.blocks.iter().any(is_run) && is_asked_for(page));
    let mut running = tokio::task::JoinSet::new();
    let mut mistakes = Vec::new();
    loop {
        while running.len() < AT_A_TIME
            && let Some(page) = left.next()
        {
            running.spawn(async move {
                let begun = std::time::Instant::now();
                let ended = run(&page).await;
                (page.name, begun.elapsed(), ended)
            });
        }
        let Some(ended) = running.join_next().await else {
            break;
        };
        let (name, time, ended) = ended.expect("no panic");
        eprintln!(
            "{name}: {} in {time:.1?}",
            if ended.is_ok() { "ok" } else { "failed" }
        );
        mistakes.extend(ended.err().map(|said| format!("== {name}\n{said}")));
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}
