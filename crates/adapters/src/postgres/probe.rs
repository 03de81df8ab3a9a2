//! The question a witness asks of another node's server.

use super::error::PgError;
use super::session::within;
use super::settings::{REPLICATION_ROLE, read_password};
use std::path::Path;
use std::time::Duration;
use tokio_postgres::NoTls;

/// Whether the server at `host` and `port` answers a query within `bound`, asked over TCP as the
/// replication role.
pub async fn probe(
    host: &str,
    port: u16,
    replication_password_file: &Path,
    bound: Duration,
) -> Result<(), PgError> {
    let password = read_password(replication_password_file)?;
    let mut to = tokio_postgres::Config::new();
    to.host(host).port(port).user(REPLICATION_ROLE).password(password).dbname("postgres");
    to.application_name("everhold probe");
    within("ask for an answer", bound.as_millis() as u64, async {
        let (client, connection) = to.connect(NoTls).await.map_err(PgError::sql("connect"))?;
        let conversation = tokio::spawn(connection);
        let _closed = AbortOnDrop(conversation.abort_handle());
        client.simple_query("SELECT 1").await.map_err(PgError::sql("ask for an answer"))?;
        Ok(())
    })
    .await
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
