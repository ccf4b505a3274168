//! GET, one connection each.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The status code and the body. With a token, it goes along as `Authorization: Bearer`.
///
/// # Errors
/// When there is no answer in time, or one that is not HTTP.
pub async fn get(
    address: SocketAddr,
    path: &str,
    token: Option<&str>,
) -> io::Result<(u16, String)> {
    tokio::time::timeout(TIMEOUT, exchange(address, path, token)).await?
}

async fn exchange(
    address: SocketAddr,
    path: &str,
    token: Option<&str>,
) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let token = token
        .map(|token| format!("Authorization: Bearer {token}\r\n"))
        .unwrap_or_default();
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{token}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let wrong = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("not an answer of HTTP: {answer:?}"),
        )
    };
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(wrong)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(wrong)?;
    Ok((status, body.to_owned()))
}
