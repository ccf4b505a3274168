//! The server at the other end, and whether its log is the one that was read before.

use lockstep_core::error::Result;
use lockstep_core::position::{Lsn, SourceIdentity};
use lockstep_pg::error::protocol;
use lockstep_pg::wire::Connection;

use crate::state::Reached;

/// Who the server is, and how far its log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// As it says itself: the timeline is the one it writes, or replays, now.
    pub identity: SourceIdentity,
    /// The end of its log.
    pub end: Lsn,
    /// Whether it is a standby, or not done with recovery.
    pub in_recovery: bool,
    /// Where earlier timelines ended, for a timeline that was asked about.
    ended: Vec<(u32, Lsn)>,
}

impl Server {
    /// Looks at the server. Where earlier timelines ended is asked only when `read` was on another one.
    ///
    /// # Errors
    /// The server's, by SQLSTATE.
    pub async fn look(connection: &mut Connection, read: Option<&Reached>) -> Result<Self> {
        let identity = identify(connection).await?;
        let sql = "SELECT r, CASE WHEN r THEN coalesce(pg_catalog.pg_last_wal_replay_lsn(), '0/0') \
                   ELSE pg_catalog.pg_current_wal_insert_lsn() END FROM pg_catalog.pg_is_in_recovery() r";
        let rows = connection.query("look at the end of the log", sql).await?;
        let [row] = rows.as_slice() else {
            return Err(protocol("the end of the log has no row"));
        };
        let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
        let ended = match read {
            // A lower timeline knows nothing of the ones after it.
            Some(read) if read.timeline < identity.timeline => {
                history(connection, identity.timeline).await?
            }
            _ => Vec::new(),
        };
        Ok(Server {
            in_recovery: text(0) == "t",
            end: text(1).parse()?,
            identity,
            ended,
        })
    }

    /// Up to where this server's log is the log of `timeline`; `None` when it does not descend from it.
    pub fn shared_with(&self, timeline: u32) -> Option<Lsn> {
        if timeline == self.identity.timeline {
            return Some(self.end);
        }
        let ended = self.ended.iter().find(|(ended, _)| *ended == timeline);
        ended.map(|(_, at)| *at)
    }
}

/// Asks the server who it is.
///
/// # Errors
/// The server's, by SQLSTATE.
pub async fn identify(connection: &mut Connection) -> Result<SourceIdentity> {
    let rows = connection
        .query("identify the server", "IDENTIFY_SYSTEM")
        .await?;
    // systemid, timeline, xlogpos, dbname
    let identity = rows.first().and_then(|row| {
        let text = |at: usize| row.get(at).and_then(Option::as_deref);
        Some(SourceIdentity {
            system: text(0)?.parse().ok()?,
            timeline: text(1)?.parse().ok()?,
            incarnation: 0,
            database: text(3)?.into(),
        })
    });
    identity.ok_or_else(|| protocol("IDENTIFY_SYSTEM answered in an unknown form"))
}

/// Where the timelines before `timeline` ended.
async fn history(connection: &mut Connection, timeline: u32) -> Result<Vec<(u32, Lsn)>> {
    let command = format!("TIMELINE_HISTORY {timeline}");
    let rows = connection
        .query("read the history of the timelines", &command)
        .await?;
    // filename, content
    let content = rows.first().and_then(|row| row.get(1)).cloned().flatten();
    Ok(parse_history(&content.unwrap_or_default()))
}

/// Reads a history file: a timeline, where it ended, and why, one to a line.
fn parse_history(content: &str) -> Vec<(u32, Lsn)> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let timeline = fields.next()?.parse().ok()?;
        Some((timeline, fields.next()?.parse().ok()?))
    };
    content.lines().filter_map(line).collect()
}

#[cfg(test)]
pub mod testing {
    use super::*;

    /// A primary of system 7.
    pub fn server(timeline: u32, end: u64, ended: &[(u32, u64)]) -> Server {
        Server {
            identity: SourceIdentity {
                system: 7,
                timeline,
                incarnation: 0,
                database: "shop".into(),
            },
            end: Lsn(end),
            in_recovery: false,
            ended: ended.iter().map(|&(of, at)| (of, Lsn(at))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_file_is_read() {
        let content = "1\t0/5000000\tno recovery target specified\n\n# by hand\n\
                       2\t1/A0\tbefore 2026-01-01 00:00:00+00\n";
        let expected = [(1, Lsn(0x500_0000)), (2, Lsn(0x1_0000_00A0))];
        assert_eq!(parse_history(content), expected);
    }
}
