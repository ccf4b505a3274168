//! The XA triple: a format, the id of the transaction, and the qualifier of the branch, as pgjdbc and psycopg write it.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Branch, Dialect};

/// The longest `gtrid`, and the longest `bqual` (XA specification, `MAXGTRIDSIZE`, `MAXBQUALSIZE`).
const MOST_BYTES: usize = 64;

/// The shortest `gtrid` of an unknown format that is taken for one without padding: a UUID.
const LEAST_UNKNOWN: usize = 16;

/// An XA transaction branch identifier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Xid {
    /// Whose ids these are.
    pub format: i32,
    /// Of the transaction, at most 64 bytes.
    pub global: Vec<u8>,
    /// Of the branch, at most 64 bytes.
    pub branch: Vec<u8>,
}

/// Who coordinates, by the format of its ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Manager {
    /// Narayana: WildFly, Quarkus, JBoss EAP.
    Narayana,
    /// Atomikos.
    Atomikos,
    /// Bitronix.
    Bitronix,
    /// Seata in XA mode.
    Seata,
    /// Flink's JDBC sink, exactly once: each of its transactions has one branch.
    Flink,
    /// IBM WebSphere.
    WebSphere,
    /// Oracle WebLogic.
    WebLogic,
    /// Apache Geronimo.
    Geronimo,
    /// lockstep's own coordinator.
    Lockstep,
    /// Another format.
    Other,
}

impl Manager {
    /// The format of the ids of lockstep's coordinator: `LKST` in ASCII.
    pub const LOCKSTEP: i32 = 0x4c4b_5354;

    /// Whose format it is. Numbers from the managers' sources; those of WebSphere, WebLogic and Geronimo from their manuals.
    #[must_use]
    pub fn of(format: i32) -> Self {
        match format {
            // JTA, JTS, the XTS bridge, REST-AT.
            131_077 | 131_072 | 131_080 | 131_081 => Manager::Narayana,
            // "ATOM"
            1_096_044_365 => Manager::Atomikos,
            // "Btnx"
            1_114_926_712 => Manager::Bitronix,
            9752 => Manager::Seata,
            201 => Manager::Flink,
            1_463_898_948 => Manager::WebSphere,
            48_801 => Manager::WebLogic,
            1_197_822_575 => Manager::Geronimo,
            Manager::LOCKSTEP => Manager::Lockstep,
            _ => Manager::Other,
        }
    }

    /// Whether branches of one transaction have one global id.
    #[must_use]
    pub fn shares_global_ids(self) -> bool {
        self != Manager::Flink
    }

    /// The word for it in settings and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Manager::Narayana => "narayana",
            Manager::Atomikos => "atomikos",
            Manager::Bitronix => "bitronix",
            Manager::Seata => "seata",
            Manager::Flink => "flink",
            Manager::WebSphere => "websphere",
            Manager::WebLogic => "weblogic",
            Manager::Geronimo => "geronimo",
            Manager::Lockstep => "lockstep",
            Manager::Other => "xa",
        }
    }
}

impl Xid {
    /// Reads `formatId_base64(gtrid)_base64(bqual)`. Line breaks inside, which some encoders make, are passed over; what nobody
    /// would have written so, is none. Words such as `17_load_0001` can be read so, too: of a format that is not known, it takes
    /// padding, or an id of 16 bytes, to be taken for one.
    #[must_use]
    pub fn parse(gid: &str) -> Option<Self> {
        let gid: String = gid.split_ascii_whitespace().collect();
        let (format, rest) = gid.split_once('_')?;
        let (global, branch) = rest.split_once('_')?;
        let decode = |text: &str| {
            let bytes = STANDARD.decode(text).ok()?;
            (bytes.len() <= MOST_BYTES).then_some(bytes)
        };
        let xid = Xid {
            format: format.parse().ok()?,
            global: decode(global)?,
            branch: decode(branch)?,
        };
        let is_known = xid.manager() != Manager::Other;
        let is_one = is_known || rest.contains('=') || xid.global.len() >= LEAST_UNKNOWN;
        (is_one && !xid.global.is_empty() && xid.to_string() == gid).then_some(xid)
    }

    /// Its manager.
    #[must_use]
    pub fn manager(&self) -> Manager {
        Manager::of(self.format)
    }

    /// The node that recovers it, where its manager says so: Narayana ends the id of a transaction with its node's name.
    #[must_use]
    pub fn owner(&self) -> Option<String> {
        const UID: usize = 28;
        let name = self.global.get(UID..)?;
        (self.manager() == Manager::Narayana && !name.is_empty())
            .then(|| String::from_utf8_lossy(name).into_owned())
    }

    pub(super) fn branch(&self) -> Branch {
        Branch {
            dialect: Dialect::Xa(self.manager()),
            global: format!("{}_{}", self.format, STANDARD.encode(&self.global)),
            qualifier: STANDARD.encode(&self.branch),
        }
    }
}

impl fmt::Display for Xid {
    /// As pgjdbc writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (global, branch) = (STANDARD.encode(&self.global), STANDARD.encode(&self.branch));
        write!(f, "{}_{global}_{branch}", self.format)
    }
}
