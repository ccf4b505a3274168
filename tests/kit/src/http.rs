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
    // The server closes the connection at the end.
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let (head, body) = split(&answer, b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(head).to_lowercase();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    let body = match head.contains("\r\ntransfer-encoding: chunked") {
        true => joined(body).ok_or(io::ErrorKind::UnexpectedEof)?,
        false => body.to_vec(),
    };
    let body = String::from_utf8(body).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((status, body))
}

/// What a body in chunks says; `None` when its end is missing.
fn joined(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (size, after) = split(rest, b"\r\n")?;
        let size = usize::from_str_radix(str::from_utf8(size).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let (chunk, after) = after.split_at_checked(size)?;
        body.extend_from_slice(chunk);
        rest = after.strip_prefix(b"\r\n")?;
    }
}

fn split<'a>(bytes: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let place = bytes.windows(at.len()).position(|window| window == at)?;
    Some((&bytes[..place], &bytes[place + at.len()..]))
}

/// `GET`; the body of an answer with status 200, else the answer as an error.
pub(crate) async fn get(address: &str, path: &str) -> io::Result<String> {
    match request(address, "GET", path, "").await? {
        (200, body) => Ok(body),
        (status, body) => Err(io::Error::other(format!("{status}: {body}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::joined;

    #[test]
    fn chunks_are_joined_and_must_end() {
        // The second begins inside of a character.
        let body = b"6\r\n{\"a\":\xc3\r\n1\r\n\xa4\r\n0\r\n\r\n";
        assert_eq!(joined(body).as_deref(), Some("{\"a\":ä".as_bytes()));
        assert_eq!(joined(&body[..body.len() - 6]), None);
    }
}
