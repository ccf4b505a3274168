//! The names of leases, and of those who hold them.

use lockstep_core::{Error, ErrorKind, Result};
use ring::rand::{SystemRandom, generate};

const LONGEST_NAME: usize = 63;
const LONGEST_HOLDER: usize = 200;

/// # Errors
/// Of kind `Invalid`, when either cannot be one.
pub(crate) fn check(name: &str, holder: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let dots = name.chars().all(|c| c == '.');
    if name.len() > LONGEST_NAME || dots || !name.chars().all(plain) {
        return Err(
            Error::new(ErrorKind::Invalid, format!("`{name}` cannot name a lease")).remedy(
                format!("use 1 to {LONGEST_NAME} letters, digits, `_`, `-` and `.`"),
            ),
        );
    }
    if holder.is_empty() || holder.len() > LONGEST_HOLDER || holder.chars().any(char::is_control) {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("`{}` cannot name a holder", holder.escape_debug()),
        )
        .remedy(format!("use 1 to {LONGEST_HOLDER} printable characters")));
    }
    Ok(())
}

/// What a provider keeps as the holder: for people the name, and behind it what nobody else has, not even a later candidate of
/// the same name. An attempt whose answer was lost is known by it.
///
/// # Errors
/// When the system has no random numbers.
pub(crate) fn unique(holder: &str) -> Result<String> {
    Ok(format!("{holder} {}", nonce()?))
}

/// 24 hexadecimal digits that nobody else has.
///
/// # Errors
/// When the system has no random numbers.
pub(crate) fn nonce() -> Result<String> {
    let random = generate::<[u8; 12]>(&SystemRandom::new())
        .map_err(|_| Error::new(ErrorKind::Storage, "the system gives no random numbers"))?;
    Ok(random
        .expose()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["shop", "Shop_1.eu-west", &"a".repeat(63)] {
            assert!(check(good, "host 1/pid 7").is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "é", "{a}", &"a".repeat(64)] {
            let error = check(bad, "me").expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
        for bad in ["", "a\nb", &"a".repeat(201)] {
            assert!(check("shop", bad).is_err());
        }
    }

    #[test]
    fn no_two_are_the_same() {
        let (one, other) = (unique("me").expect("random"), unique("me").expect("random"));
        assert!(one.starts_with("me ") && one.len() == 27, "{one}");
        assert_ne!(one, other);
    }
}
