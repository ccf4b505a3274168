//! The schema registry as the kit gives it to tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::time::Instant;

use lockstep_kit::Component::Registry as NeedsRegistry;
use lockstep_kit::registry::{Registry, installed_version};
use lockstep_kit::{require, unique};

const SCHEMA: &str = r#"{"schema":"\"string\""}"#;

#[tokio::test]
async fn the_shared_server_takes_schemas() {
    require!(NeedsRegistry);
    let began = Instant::now();
    let registry = Registry::shared().await;
    println!("{:?} after {:?}", installed_version(), began.elapsed());
    let subject = unique("kit");
    let path = format!("/subjects/{subject}/versions");
    let (status, body) = registry.ask("POST", &path, SCHEMA).await;
    assert_eq!(status, 200, "{body}");
    let (status, body) = registry.ask("GET", &path, "").await;
    assert_eq!((status, body.trim()), (200, "[1]"));
}
