use std::fmt;

/// Why a server is not there: one text for a person, naming the place, the cause and the remedy.
#[derive(Debug)]
pub struct Error {
    text: String,
    port_taken: bool,
}

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            port_taken: false,
        }
    }

    /// Another program took the port between its reservation and the server's bind: worth another try.
    pub(crate) fn port_taken(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            port_taken: true,
        }
    }

    pub(crate) fn is_port_taken(&self) -> bool {
        self.port_taken
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

/// Adds what was being done to an error of the system.
pub(crate) trait Context<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::new(format!("{}: {cause}", doing())))
    }
}
