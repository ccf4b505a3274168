//! What is known of the terminal, and what is asked of it: its width, its letters, keys one by one, a line that is not shown.

use std::io::IsTerminal;

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// Columns and rows of the terminal that standard output is; `None` where it is none, or does not say.
#[must_use]
pub fn size() -> Option<(usize, usize)> {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let size = tcgetwinsize(&out).ok()?;
    (size.ws_col > 0 && size.ws_row > 0)
        .then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// Whether somebody sits there who can be asked: questions go to standard error, answers come by standard input.
#[must_use]
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Whether letters beyond ASCII are understood, by `LC_ALL`, `LC_CTYPE` or `LANG`, the first that is set. Where none is, as in
/// most containers, they are.
#[must_use]
pub fn is_unicode() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| {
        let value = std::env::var(name).ok()?;
        (!value.is_empty()).then_some(value)
    });
    locale.is_none_or(|locale| speaks_unicode(&locale))
}

fn speaks_unicode(locale: &str) -> bool {
    let locale = locale.to_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// Standard input, set to something else for as long as this lives.
#[derive(Debug)]
pub struct Changed(Termios);

impl Changed {
    /// Lines are read, and not shown: for passwords. `None` where there is no terminal.
    #[must_use]
    pub fn hidden() -> Option<Self> {
        Self::to(|modes| modes.local_modes.remove(LocalModes::ECHO))
    }

    /// Keys come one by one and are not shown. Ctrl-C is a signal as ever; Ctrl-Z is nothing, as the screen could not be put in order
    /// before it. `None` where there is no terminal.
    #[must_use]
    pub fn keys() -> Option<Self> {
        Self::to(|modes| {
            let off = LocalModes::ICANON | LocalModes::ECHO;
            modes.local_modes.remove(off);
            modes.special_codes[SpecialCodeIndex::VSUSP] = 0;
            modes.special_codes[SpecialCodeIndex::VMIN] = 1;
            modes.special_codes[SpecialCodeIndex::VTIME] = 0;
        })
    }

    fn to(change: impl FnOnce(&mut Termios)) -> Option<Self> {
        let input = std::io::stdin();
        let before = tcgetattr(&input).ok()?;
        let mut after = before.clone();
        change(&mut after);
        tcsetattr(&input, OptionalActions::Now, &after).ok()?;
        Some(Changed(before))
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        // A terminal that is gone needs no order.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locale_says_whether_letters_beyond_ascii_are_understood() {
        for locale in ["C.UTF-8", "en_US.utf8", "de_DE.UTF-8@euro"] {
            assert!(speaks_unicode(locale), "{locale}");
        }
        for locale in ["C", "POSIX", "en_US.ISO-8859-1"] {
            assert!(!speaks_unicode(locale), "{locale}");
        }
    }
}
