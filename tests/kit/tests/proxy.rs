//! The proxy's faults, against an echo server.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use lockstep_kit::proxy::{End, Proxy};
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

/// Answers with what it got once the client has said all, and counts who came.
async fn late_server() -> (String, tokio::sync::watch::Receiver<Vec<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (report, heard) = tokio::sync::watch::channel(Vec::new());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let report = report.clone();
            tokio::spawn(async move {
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await.unwrap_or_default();
                report.send_modify(|all| all.push(got.clone()));
                let _ = stream.write_all(&got).await;
            });
        }
    });
    (address, heard)
}

async fn got(stream: &mut TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    timeout(SOON, stream.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    got
}

#[tokio::test]
async fn a_half_close_of_the_client_leaves_the_answer_alone() {
    let (server, mut heard) = late_server().await;
    let proxy = Proxy::start(server).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    stream.write_all(b"question").await.unwrap();
    wait_for(SOON, "the connection", async || {
        proxy.connections().len() == 1
    })
    .await;
    // What was sent before may still be on its way.
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.half_close(End::Client);
    timeout(SOON, heard.wait_for(|all| all.len() == 1))
        .await
        .unwrap()
        .unwrap();
    let _ = stream.write_all(b"unheard").await;
    assert_eq!(got(&mut stream).await, b"question");
    assert_eq!(*heard.borrow(), [b"question".to_vec()]);
}

#[tokio::test]
async fn a_half_close_of_the_server_leaves_the_question_alone() {
    let (server, mut heard) = late_server().await;
    let proxy = Proxy::start(server).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    stream.write_all(b"ques").await.unwrap();
    wait_for(SOON, "the connection", async || {
        proxy.connections().len() == 1
    })
    .await;
    proxy.half_close(End::Server);
    assert_eq!(got(&mut stream).await, b"", "an end of file");
    stream.write_all(b"tion").await.unwrap();
    stream.shutdown().await.unwrap();
    let all = timeout(SOON, heard.wait_for(|all| all.len() == 1))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(*all, [b"question".to_vec()]);
}

#[tokio::test]
async fn a_black_hole_takes_everything_and_never_answers() {
    let (server, heard) = late_server().await;
    let proxy = Proxy::start(server).await;
    let mut old = TcpStream::connect(proxy.address()).await.unwrap();
    wait_for(SOON, "the connection", async || {
        proxy.connections().len() == 1
    })
    .await;
    proxy.black_hole(true);
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    for stream in [&mut old, &mut new] {
        stream.write_all(&vec![7; 4_000_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        let silent = timeout(Duration::from_millis(100), stream.read(&mut [0])).await;
        assert!(silent.is_err() || matches!(silent, Ok(Ok(0))), "{silent:?}");
    }
    assert!(heard.borrow().is_empty(), "not even an end is heard");
    proxy.black_hole(false);
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    stream.write_all(b"again").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(got(&mut stream).await, b"again");
    assert!(
        heard.borrow().iter().all(|one| one.len() < 10),
        "lost for good"
    );
}

#[tokio::test]
async fn a_connection_that_was_swallowed_stays_silent_until_a_cut() {
    let proxy = Proxy::start(echo_server().await).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    let mut idle = TcpStream::connect(proxy.address()).await.unwrap();
    echo(&mut stream).await.unwrap();
    echo(&mut idle).await.unwrap();
    proxy.black_hole(true);
    let soon = Duration::from_millis(100);
    assert!(timeout(soon, echo(&mut stream)).await.is_err());
    proxy.black_hole(false);
    assert!(timeout(soon, echo(&mut stream)).await.is_err());
    timeout(SOON, echo(&mut idle)).await.unwrap().unwrap();
    proxy.cut();
    assert!(timeout(SOON, stream.read(&mut [0])).await.unwrap().is_err());
}

#[tokio::test]
async fn bandwidth_is_limited() {
    let proxy = Proxy::start(echo_server().await).await;
    proxy.bandwidth(NonZeroU64::new(100_000));
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    let began = Instant::now();
    stream.write_all(&[7; 30_000]).await.unwrap();
    stream.read_exact(&mut [0; 30_000]).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    proxy.bandwidth(None);
    let sent = [7; 1_000_000];
    let (mut from, mut to) = stream.split();
    let mut back = vec![0; sent.len()];
    let both = async { tokio::join!(to.write_all(&sent), from.read_exact(&mut back)) };
    let (wrote, read) = timeout(SOON, both).await.unwrap();
    wrote.unwrap();
    read.unwrap();
}

#[tokio::test]
async fn one_connection_is_misused_alone() {
    let proxy = Proxy::start(echo_server().await).await;
    let mut first = TcpStream::connect(proxy.address()).await.unwrap();
    echo(&mut first).await.unwrap();
    let mut second = TcpStream::connect(proxy.address()).await.unwrap();
    echo(&mut second).await.unwrap();
    let lines = proxy.connections();
    assert_eq!(
        lines.iter().map(|line| line.number()).collect::<Vec<_>>(),
        [1, 2]
    );
    let soon = Duration::from_millis(100);
    lines[0].pause(true);
    assert!(timeout(soon, echo(&mut first)).await.is_err());
    echo(&mut second).await.unwrap();
    lines[0].pause(false);
    first.read_exact(&mut [0; 5]).await.unwrap();
    lines[0].latency(Duration::from_millis(50));
    lines[0].bandwidth(NonZeroU64::new(1_000_000));
    let began = Instant::now();
    echo(&mut second).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(100));
    echo(&mut first).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(100));
    lines[1].black_hole(true);
    assert!(timeout(soon, echo(&mut second)).await.is_err());
    lines[0].cut();
    assert!(timeout(SOON, first.read(&mut [0])).await.unwrap().is_err());
    assert!(timeout(soon, second.read(&mut [0])).await.is_err());
    wait_for(SOON, "one to be left", async || {
        proxy.connections().len() == 1
    })
    .await;
}
