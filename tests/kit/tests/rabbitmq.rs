//! RabbitMQ as the kit gives it to tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::time::{Duration, Instant};

use lockstep_kit::Component::Rabbitmq as NeedsRabbitmq;
use lockstep_kit::rabbitmq::{Rabbitmq, RabbitmqOptions};
use lockstep_kit::{require, require_own, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The first bytes of what a broker says to whoever speaks AMQP.
async fn greeting(url: &str) -> std::io::Result<[u8; 3]> {
    let address = url.rsplit('@').next().unwrap();
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    let mut frame = [0; 3];
    stream.read_exact(&mut frame).await.map(|_| frame)
}

#[tokio::test]
async fn the_shared_server_answers() {
    require!(NeedsRabbitmq);
    let began = Instant::now();
    let server = Rabbitmq::shared().await;
    println!("RabbitMQ after {:?}", began.elapsed());
    assert_eq!(greeting(server.url()).await.unwrap(), [1, 0, 0]);
}

#[tokio::test]
async fn a_server_of_ones_own_dies_and_comes_back_on_its_port_and_leaves_nothing_behind() {
    require_own!(NeedsRabbitmq);
    let server = Rabbitmq::start(RabbitmqOptions::default()).await;
    println!("RabbitMQ {}", server.version());
    assert!(server.version().contains('.'), "{}", server.log());
    server.ctl(&["add_vhost", "stays"]).await;
    server.kill();
    assert!(greeting(server.url()).await.is_err());
    server.restart().await;
    assert_eq!(greeting(server.url()).await.unwrap(), [1, 0, 0]);
    // It is there already.
    server
        .ctl(&["set_permissions", "-p", "stays", "guest", ".*", ".*", ".*"])
        .await;
    server.freeze(true);
    let silent = tokio::time::timeout(Duration::from_millis(300), greeting(server.url())).await;
    assert!(silent.is_err());
    server.freeze(false);
    wait_for(Duration::from_secs(10), "an answer", async || {
        greeting(server.url()).await
    })
    .await;
    let port = server.names_port();
    assert!(
        processes_of(port).len() >= 2,
        "the node and its name server"
    );
    drop(server);
    wait_for(
        Duration::from_secs(10),
        "all of it to be gone",
        async || {
            let left = processes_of(port);
            left.is_empty().then_some(()).ok_or(left)
        },
    )
    .await;
}

/// Those with this port of the name server in their environment or their command: the node, its helpers, and the name server.
fn processes_of(port: u16) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let has = |path: &std::path::Path, file: &str, word: &str| {
        let text = std::fs::read(path.join(file)).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .split('\0')
            .any(|entry| entry == word)
    };
    let (environment, argument) = (format!("ERL_EPMD_PORT={port}"), port.to_string());
    entries
        .map(|entry| entry.path())
        .filter(|path| has(path, "environ", &environment) || has(path, "cmdline", &argument))
        .map(|path| path.display().to_string())
        .collect()
}
