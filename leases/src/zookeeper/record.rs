//! Records as ZooKeeper's Jute writes them: big-endian numbers, and texts behind their lengths.

use lockstep_core::{Error, ErrorKind, Result};

/// A record being written, behind four bytes for its length.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new() -> Self {
        Writer(vec![0; 4])
    }

    pub(super) fn bool(mut self, value: bool) -> Self {
        self.0.push(value.into());
        self
    }

    pub(super) fn int(mut self, value: i32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn long(mut self, value: i64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn bytes(mut self, value: &[u8]) -> Self {
        // Names and passwords: far below the 1 MiB that a server takes.
        self.0
            .extend_from_slice(&(value.len() as u32).to_be_bytes());
        self.0.extend_from_slice(value);
        self
    }

    pub(super) fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    /// With its length in front.
    pub(super) fn frame(mut self) -> Vec<u8> {
        let length = (self.0.len() - 4) as u32;
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// A record being read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn int(&mut self) -> Result<i32> {
        let bytes = self.take(4)?.try_into().map_err(|_| malformed())?;
        Ok(i32::from_be_bytes(bytes))
    }

    pub(super) fn long(&mut self) -> Result<i64> {
        let bytes = self.take(8)?.try_into().map_err(|_| malformed())?;
        Ok(i64::from_be_bytes(bytes))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        // −1 stands for none.
        let length = self.int()?.max(0);
        self.take(length.unsigned_abs() as usize)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let bytes = self.bytes()?.to_vec();
        String::from_utf8(bytes).map_err(|error| malformed().source(error))
    }

    pub(super) fn texts(&mut self) -> Result<Vec<String>> {
        let count = self.int()?.max(0);
        (0..count).map(|_| self.text()).collect()
    }
}

fn malformed() -> Error {
    Error::new(
        ErrorKind::Protocol,
        "the server answers in a form that ZooKeeper does not have",
    )
    .remedy("check that the address leads to a ZooKeeper's client port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_cut_off_is_an_error() {
        let frame = Writer::new()
            .int(-7)
            .long(1 << 40)
            .text("größer")
            .bool(true)
            .frame();
        assert_eq!(frame.len() - 4, frame[3] as usize);
        let mut reader = Reader(&frame[4..]);
        assert_eq!(reader.int().expect("there"), -7);
        assert_eq!(reader.long().expect("there"), 1 << 40);
        assert_eq!(reader.text().expect("there"), "größer");
        assert_eq!(reader.0, [1]);
        assert!(Reader(&[0, 0, 0, 9, 1]).bytes().is_err());
        assert!(Reader(&[0, 0, 0]).int().is_err());
        assert!(Reader(&[255; 4]).bytes().expect("none").is_empty());
    }
}
