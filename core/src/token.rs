//! The number of the right to write.

use std::fmt;

/// The number of an acquisition of a lease. Of two acquisitions of one name the later has the greater token. It goes along with what
/// is written in the lease's name, and whoever takes the writes refuses a token less than the greatest seen: the holder may have been
/// frozen between its look at the clock and the arrival of its write.
///
/// Nothing else can be read from it: tokens need not be consecutive, and those of different names, or of different providers, have
/// nothing to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
