//! Free loopback ports, reserved against other processes of this kit.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};

use crate::error::{Context, Error};

/// Below the kernel's ephemeral range (32768 and up), where an outgoing connection may take a port at any moment.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port that nobody listened on when it was reserved. Other processes of the kit leave it alone until the drop, so a
/// stopped server finds it again.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    pub(crate) fn reserve() -> Result<Self, Error> {
        let locks = std::env::temp_dir().join(format!(
            "lockstep-kit-ports.{}",
            rustix::process::getuid().as_raw()
        ));
        fs::create_dir_all(&locks).context(|| format!("making {}", locks.display()))?;
        let start = (RandomState::new().build_hasher().finish() % u64::from(COUNT)) as u16;
        for step in 0..COUNT {
            let number = FIRST + (start + step) % COUNT;
            let path = locks.join(number.to_string());
            let lock = File::create(&path).context(|| format!("opening {}", path.display()))?;
            if lock.try_lock().is_ok() && is_free(number) {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        Err(Error::new(format!(
            "no free loopback port in {FIRST}..{}",
            FIRST + COUNT
        )))
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

fn is_free(number: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok()
}
