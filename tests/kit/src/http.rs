//! Just enough HTTP to talk to a server on loopback.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends one request with a JSON body, which may be empty; status and body of the answer.
pub(crate) async fn request(
    address: &str,
    method: &str,
    path: &str,
    body: &str,
) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    // 1.0: the server closes the connection at the end, and does not answer in chunks.
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}

/// `GET`; the body of an answer with status 200, else the answer as an error.
pub(crate) async fn get(address: &str, path: &str) -> io::Result<String> {
    match request(address, "GET", path, "").await? {
        (200, body) => Ok(body),
        (status, body) => Err(io::Error::other(format!("{status}: {body}"))),
    }
}
