//! Frames: a type byte, a big-endian length that counts itself, the payload.

use lockstep_core::error::Result;

use crate::error::protocol;

/// Type byte and length.
pub const HEADER: usize = 5;

/// A frame that lies complete in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Type byte.
    pub tag: u8,
    /// Where the payload begins in the buffer.
    pub start: usize,
    /// Where it ends, which is where the next frame begins.
    pub end: usize,
}

/// The frame at `at`, if it is complete. Pure: the caller keeps partial frames in its own buffer, so a read that is
/// cancelled between frames or in the middle of one loses nothing.
///
/// # Errors
/// A length that no frame can have: the stream is out of step and must be given up.
pub fn next(buffer: &[u8], at: usize) -> Result<Option<Frame>> {
    let Some(header) = buffer.get(at..at + HEADER) else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    // PostgreSQL limits a message to 1 GiB (PQ_LARGE_MESSAGE_LIMIT).
    if !(4..1 << 30).contains(&length) {
        return Err(protocol(format!(
            "a frame of type {:?} claims {length} bytes",
            char::from(header[0])
        )));
    }
    let end = at + 1 + length;
    Ok((buffer.len() >= end).then_some(Frame {
        tag: header[0],
        start: at + HEADER,
        end,
    }))
}

/// How many bytes the frame at `at` needs in all, when its header is there.
#[must_use]
pub fn needed(buffer: &[u8], at: usize) -> Option<usize> {
    let header = buffer.get(at..at + HEADER)?;
    Some(1 + u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_whole_or_not_at_all() {
        let bytes = [b'd', 0, 0, 0, 6, 1, 2, b'Z', 0, 0, 0, 5, b'I'];
        for cut in 0..7 {
            assert_eq!(next(&bytes[..cut], 0).expect("valid"), None);
        }
        let first = next(&bytes, 0).expect("valid").expect("whole");
        assert_eq!(
            first,
            Frame {
                tag: b'd',
                start: 5,
                end: 7
            }
        );
        let second = next(&bytes, first.end).expect("valid").expect("whole");
        assert_eq!((second.tag, second.end), (b'Z', bytes.len()));
        assert!(next(&[b'd', 0, 0, 0, 3], 0).is_err());
        assert!(next(&[b'd', 0xff, 0, 0, 3], 0).is_err());
    }
}
