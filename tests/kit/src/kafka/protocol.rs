//! The two requests that tell whether a broker is up, in the form of <https://kafka.apache.org/protocol.html>.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const FIND_COORDINATOR: u16 = 10;

/// Asks for the coordinator of some group and of some transactional id. An error tells which one is not there.
pub(super) async fn coordinators_answer(address: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    for (kind, name) in [(0, "groups"), (1, "transactions")] {
        let code = find_coordinator(&mut stream, kind).await?;
        if code != 0 {
            return Err(io::Error::other(format!(
                "the coordinator of {name}: error code {code}"
            )));
        }
    }
    Ok(())
}

/// `FindCoordinator` version 1; the error code of the answer, 0 for none.
async fn find_coordinator(stream: &mut TcpStream, kind: u8) -> io::Result<i16> {
    let mut request = Vec::new();
    request.extend(FIND_COORDINATOR.to_be_bytes());
    request.extend(1_u16.to_be_bytes()); // version
    request.extend(0_u32.to_be_bytes()); // correlation id
    for text in ["lockstep-kit", "lockstep-kit"] {
        // client id, then key
        request.extend((text.len() as u16).to_be_bytes());
        request.extend(text.as_bytes());
    }
    request.push(kind);
    stream.write_u32(request.len() as u32).await?;
    stream.write_all(&request).await?;
    let mut answer = vec![0; stream.read_u32().await?.min(1 << 20) as usize];
    stream.read_exact(&mut answer).await?;
    // After the correlation id and the throttle time.
    let code = answer.get(8..10).ok_or(io::ErrorKind::InvalidData)?;
    Ok(i16::from_be_bytes([code[0], code[1]]))
}
