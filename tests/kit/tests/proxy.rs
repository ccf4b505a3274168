//! The proxy's faults, against an echo server.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use lockstep_kit::proxy::Proxy;
use lockstep_kit::wait_for;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

async fn echo_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    address
}

async fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"hello").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"hello");
    Ok(())
}

#[tokio::test]
async fn bytes_and_ends_pass_through() {
    let proxy = Proxy::start(echo_server().await).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    let sent = vec![7; 1_000_000];
    let (mut from, mut to) = stream.split();
    let write = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let ((), read) = tokio::join!(write, from.read_to_end(&mut got));
    read.unwrap();
    assert_eq!(got.len(), sent.len());
}

#[tokio::test]
async fn a_cut_resets_connections_and_takes_new_ones() {
    let proxy = Proxy::start(echo_server().await).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    echo(&mut stream).await.unwrap();
    proxy.cut();
    let error = timeout(SOON, stream.read(&mut [0]))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    echo(&mut stream).await.unwrap();
}

#[tokio::test]
async fn refusing_leaves_existing_connections_alone_and_down_does_not() {
    let proxy = Proxy::start(echo_server().await).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    echo(&mut stream).await.unwrap();
    proxy.refuse(true).await;
    let error = TcpStream::connect(proxy.address()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    echo(&mut stream).await.unwrap();
    proxy.refuse(false).await;
    echo(&mut TcpStream::connect(proxy.address()).await.unwrap())
        .await
        .unwrap();
    proxy.down().await;
    assert!(timeout(SOON, stream.read(&mut [0])).await.unwrap().is_err());
    assert!(TcpStream::connect(proxy.address()).await.is_err());
}

#[tokio::test]
async fn a_pause_holds_bytes_back() {
    let proxy = Proxy::start(echo_server().await).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    echo(&mut stream).await.unwrap();
    proxy.pause(true);
    assert!(
        timeout(Duration::from_millis(100), echo(&mut stream))
            .await
            .is_err()
    );
    proxy.pause(false);
    let mut answer = [0; 5];
    timeout(SOON, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"hello");
}

#[tokio::test]
async fn latency_delays_both_ways() {
    let proxy = Proxy::start(echo_server().await).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    echo(&mut stream).await.unwrap();
    proxy.latency(Duration::from_millis(50));
    let began = Instant::now();
    echo(&mut stream).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_missing_server_hangs_up_until_another_is_named() {
    let proxy = Proxy::start("127.0.0.1:1").await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(matches!(
        timeout(SOON, stream.read(&mut [0])).await.unwrap(),
        Ok(0) | Err(_)
    ));
    proxy.forward_to(echo_server().await);
    wait_for(SOON, "the other server", async || {
        echo(&mut TcpStream::connect(proxy.address()).await?).await
    })
    .await;
}
