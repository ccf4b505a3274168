use std::io::Write;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::{Client, Config};

use super::{Postgres, client, execute, value};
use crate::scratch::unique;
use crate::wait::poll_until;

/// A database of a test's own; it goes, with its slots and prepared transactions, when this is dropped.
#[derive(Debug)]
pub struct Database {
    name: String,
    url: String,
    admin: Config,
    config: Config,
    /// Whether the server may be gone, as one of the test's own may.
    may_be_gone: bool,
}

impl Database {
    pub(super) async fn create(server: &Postgres, prefix: &str) -> Self {
        let name = unique(prefix);
        server.execute(&format!("CREATE DATABASE \"{name}\"")).await;
        let mut config = server.admin.clone();
        config.dbname(&name);
        Self {
            url: with_database(&server.url, &name),
            admin: server.admin.clone(),
            config,
            name,
            may_be_gone: server.own.is_some(),
        }
    }

    /// The database of the same name on another server: a standby, or where the test has made it.
    #[must_use]
    pub fn on(&self, server: &Postgres) -> Self {
        let mut config = server.admin.clone();
        config.dbname(&self.name);
        Self {
            url: with_database(&server.url, &self.name),
            admin: server.admin.clone(),
            config,
            name: self.name.clone(),
            may_be_gone: server.own.is_some(),
        }
    }

    /// Its name, which is unique on its server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For a superuser: `postgres://postgres@127.0.0.1:5432/orders_…`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A new connection.
    pub async fn client(&self) -> Client {
        client(&self.config)
            .await
            .unwrap_or_else(|error| panic!("connecting to {}: {error}", self.url))
    }

    /// Runs statements separated by `;` on a connection of its own.
    pub async fn execute(&self, sql: &str) {
        execute(&self.client().await, sql).await;
    }

    /// The first column of the first row, as text; `None` for NULL and for no row.
    pub async fn value(&self, sql: &str) -> Option<String> {
        value(&self.client().await, sql).await
    }

    async fn remove(&self) -> Result<(), tokio_postgres::Error> {
        let name = &self.name;
        let here = match client(&self.config).await {
            Err(_) if self.may_be_gone => return Ok(()),
            connected => connected?,
        };
        for row in here
            .query(
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()",
                &[],
            )
            .await?
        {
            let gid: &str = row.get(0);
            here.batch_execute(&format!("ROLLBACK PREPARED '{}'", gid.replace('\'', "''")))
                .await?;
        }
        drop(here);
        let admin = client(&self.admin).await?;
        let drop_slots = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active";
        let idle_slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                          WHERE database = $1 AND NOT active";
        let gone = poll_until(Duration::from_secs(10), async || {
            admin.execute(drop_slots, &[name]).await.ok()?;
            admin.execute(idle_slots, &[name]).await.ok()?;
            let left = admin
                .query(
                    "SELECT 1 FROM pg_replication_slots WHERE database = $1",
                    &[name],
                )
                .await
                .ok()?;
            left.is_empty().then_some(())
        });
        // With a slot left, the next statement says which.
        let _ = gone.await;
        admin
            .batch_execute(&format!("DROP DATABASE \"{name}\" WITH (FORCE)"))
            .await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // On a thread and a runtime of its own: this one may be shutting down.
        let removed = std::thread::scope(|scope| {
            let work = || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .ok()?;
                // A server that a test has suspended does not answer.
                runtime.block_on(async {
                    timeout(Duration::from_secs(20), self.remove())
                        .await
                        .ok()?
                        .err()
                })
            };
            scope.spawn(work).join().ok().flatten()
        });
        if let Some(error) = removed {
            // To the descriptor itself: this must be seen in a test that passes, too.
            let _ = writeln!(
                std::io::stderr(),
                "database {} was not dropped: {error}",
                self.name
            );
        }
    }
}

/// `url` with the database's part of its path replaced.
fn with_database(url: &str, name: &str) -> String {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let (before, query) = url
        .split_once('?')
        .map_or((url, None), |(before, query)| (before, Some(query)));
    let end = before[authority..]
        .find('/')
        .map_or(before.len(), |at| authority + at);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}/{name}{query}", &before[..end])
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn the_database_of_a_url_is_replaced() {
        assert_eq!(
            with_database("postgres://u:p@h:1/postgres", "t"),
            "postgres://u:p@h:1/t"
        );
        assert_eq!(with_database("postgres://u@h", "t"), "postgres://u@h/t");
        assert_eq!(
            with_database("postgres://u@h/a?sslmode=disable", "t"),
            "postgres://u@h/t?sslmode=disable"
        );
    }
}
