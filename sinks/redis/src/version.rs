//! The version of a row, as a text that the server's Lua compares.
//!
//! Lua's numbers are doubles: 9007199254740993 and 9007199254740992 are equal there. Texts of one length in lower-case hex
//! compare as the numbers do.

use std::cmp::Ordering;

use lockstep_core::batch::Phase;
use lockstep_core::position::{Lsn, Position};
use lockstep_core::sink::HeldVersion;

/// Characters of a version. A companion key may hold more after them; scripts compare these alone.
pub(crate) const LENGTH: usize = 28;

/// Epoch of the source's identity (4 digits), commit LSN (16), ordinal in the transaction (8).
///
/// LSNs of different identities are not comparable: a restored or promoted server issues them again. The epoch puts every
/// write of a later identity above all writes of earlier ones, see [`crate::state`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version([u8; LENGTH]);

impl Version {
    /// The version of a write at `position`.
    ///
    /// Rows of an initial copy all get ordinal 0: another attempt at the copy counts them differently and must not be
    /// refused, and any transaction that commits at the copy's LSN is newer than the copy.
    pub(crate) fn new(epoch: u16, phase: Phase, position: Position) -> Self {
        let ordinal = match phase {
            Phase::Snapshot | Phase::Check => 0,
            // A transaction of more than four thousand million changes: the last ones share a version and are then
            // accepted in the order they come.
            Phase::Stream | Phase::Replay => u32::try_from(position.ordinal).unwrap_or(u32::MAX),
        };
        let mut text = [0; LENGTH];
        hex(&mut text[..4], u64::from(epoch));
        hex(&mut text[4..20], position.commit.0);
        hex(&mut text[20..], u64::from(ordinal));
        Version(text)
    }

    /// The version that `text` begins with.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let head = text.get(..LENGTH)?;
        let is_hex = head
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_hex.then(|| Version(head.try_into().expect("LENGTH bytes were taken")))
    }

    /// What it tells of a row, where the source's log of now has this epoch.
    pub(crate) fn held(&self, epoch: u16) -> HeldVersion {
        // `parse` and `new` let nothing else in.
        let number = |digits: &[u8]| {
            let text = std::str::from_utf8(digits).ok()?;
            u64::from_str_radix(text, 16).ok()
        };
        let (Some(own), Some(commit)) = (number(&self.0[..4]), number(&self.0[4..20])) else {
            return HeldVersion::Unknown;
        };
        match own.cmp(&u64::from(epoch)) {
            Ordering::Less => HeldVersion::EarlierLog,
            Ordering::Equal => HeldVersion::At(Lsn(commit)),
            Ordering::Greater => HeldVersion::Unknown,
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn hex(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(epoch: u16, commit: u64, ordinal: u64) -> Version {
        let position = Position {
            commit: Lsn(commit),
            ordinal,
        };
        Version::new(epoch, Phase::Stream, position)
    }

    #[test]
    fn order_of_texts_is_order_of_numbers() {
        let ascending = [
            version(0, 0, 0),
            version(0, 9, 10),
            version(0, 10, 9),
            version(0, 9_007_199_254_740_992, 1),
            version(0, 9_007_199_254_740_993, 1),
            version(0, u64::MAX, u64::MAX),
            version(1, 0, 0),
        ];
        assert!(ascending.is_sorted_by(|a, b| a < b && a.as_bytes() < b.as_bytes()));
        assert_eq!(
            version(1, 0xabc, 2).as_bytes(),
            b"00010000000000000abc00000002"
        );
    }

    #[test]
    fn rows_of_a_copy_are_below_any_transaction_at_its_lsn() {
        let at = |ordinal| Position {
            commit: Lsn(7),
            ordinal,
        };
        let copied = Version::new(0, Phase::Snapshot, at(99));
        assert!(copied == Version::new(0, Phase::Snapshot, at(3)));
        assert!(copied < Version::new(0, Phase::Stream, at(1)));
    }

    #[test]
    fn a_version_tells_of_which_log_it_is_and_of_which_place() {
        let one = version(3, 0x16_b374_d848, 7);
        assert_eq!(one.held(3), HeldVersion::At(Lsn(0x16_b374_d848)));
        assert_eq!(one.held(4), HeldVersion::EarlierLog);
        assert_eq!(one.held(2), HeldVersion::Unknown);
        let copied = Version::parse(version(3, 1, 0).as_bytes()).expect("a version");
        assert_eq!(copied.held(3), HeldVersion::At(Lsn(1)));
    }

    #[test]
    fn parse_takes_the_head_and_refuses_what_is_none() {
        let one = version(3, 4, 5);
        let longer = [one.as_bytes(), b":000007"].concat();
        assert!(Version::parse(&longer) == Some(one));
        assert!(Version::parse(b"").is_none() && Version::parse(&[b'G'; LENGTH]).is_none());
    }
}
