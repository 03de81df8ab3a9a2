//! The question a witness asks of another node's server.

use super::error::PgError;
use super::session::within;
use super::settings::{REPLICATION_ROLE, read_password};
use rustls::ClientConfig;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Config, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Whether the server at `host` and `port` answers a query within `bound`, asked over TCP as the
/// replication role, with TLS where the nodes are on machines of their own.
pub async fn probe(
    host: &str,
    port: u16,
    replication_password_file: &Path,
    tls: Option<Arc<ClientConfig>>,
    bound: Duration,
) -> Result<(), PgError> {
    let password = read_password(replication_password_file)?;
    let mut to = Config::new();
    to.host(host).port(port).user(REPLICATION_ROLE).password(password).dbname("postgres");
    to.application_name("everhold probe");
    within("ask for an answer", bound.as_millis() as u64, async {
        match tls {
            Some(tls) => {
                to.ssl_mode(SslMode::Require);
                ask(&to, MakeRustlsConnect::new(ClientConfig::clone(&tls))).await
            }
            None => ask(&to, NoTls).await,
        }
    })
    .await
}

async fn ask<T>(to: &Config, tls: T) -> Result<(), PgError>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, connection) = to.connect(tls).await.map_err(PgError::sql("connect"))?;
    let conversation = tokio::spawn(connection);
    let _closed = AbortOnDrop(conversation.abort_handle());
    client.simple_query("SELECT 1").await.map_err(PgError::sql("ask for an answer"))?;
    Ok(())
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
