//! How clients reach a service: libpq URLs, and the password files that these name.

use crate::disk;
use crate::layout::Layout;
use crate::{agent, secrets};
use anyhow::Context;
use everhold_core::spec::{PostgresSpec, Role, Spec};
use std::path::PathBuf;

/// The libpq password file of a service's owner.
pub fn passfile(layout: &Layout, service: &str) -> PathBuf {
    layout.secrets().join(format!("{service}.pgpass"))
}

/// Writes the password file of each service, with an entry for each of its addresses.
pub fn write_passfiles(layout: &Layout, spec: &Spec) -> anyhow::Result<()> {
    for (name, service) in spec.databases() {
        let secret = agent::owner_password(layout, name);
        let password =
            secrets::read(&secret).with_context(|| format!("read {}", secret.display()))?;
        let text: String = [Role::Primary, Role::Standby]
            .into_iter()
            .flat_map(|role| addresses(spec, name, role))
            .map(|(host, port)| pgpass_line(&host, port, &service.owner, &password))
            .collect();
        let path = passfile(layout, name);
        disk::write_whole(&path, &text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Where clients of a role connect: each gateway's listeners, in the order of the nodes.
pub fn addresses(spec: &Spec, service: &str, role: Role) -> Vec<(String, u16)> {
    let mut found: Vec<(String, u16)> = Vec::new();
    let listeners = spec.postgres_listeners();
    for (_, bind, _) in listeners.filter(|(_, _, l)| l.service == service && l.role == role) {
        let hosts: Vec<String> = match bind.ip().is_unspecified() {
            // Bound everywhere: reached at the address of each gateway's node.
            true => {
                let nodes = spec.gateway.nodes.iter().filter_map(|node| spec.nodes.get(node));
                nodes.map(|node| node.address.to_string()).collect()
            }
            false => vec![bind.ip().to_string()],
        };
        for host in hosts {
            let address = (host, bind.port());
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    found
}

/// The URL of a service; `None` if no listener leads there. `passfile`: what holds the password;
/// without one it is put in later. `ca`: the cluster's authority, for nodes
/// on machines of their own, where nothing is spoken but TLS.
pub fn url(
    spec: &Spec,
    name: &str,
    service: &PostgresSpec,
    role: Role,
    passfile: Option<&str>,
    ca: &str,
) -> Option<String> {
    let addresses = addresses(spec, name, role);
    if addresses.is_empty() {
        return None;
    }
    let hosts: Vec<String> = addresses
        .iter()
        .map(|(host, port)| match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        })
        .collect();
    let (user, database) = (encode(&service.owner), encode(&service.database));
    let hosts = hosts.join(",");
    // Any: the gateway knows better than libpq which server is meant, and a check costs a query.
    let passfile = passfile.map(|it| format!("passfile={}&", encode(it))).unwrap_or_default();
    let mut url =
        format!("postgresql://{user}@{hosts}/{database}?{passfile}target_session_attrs=any");
    if spec.is_spread() {
        // The server is known by its authority: behind the gateways it is another one each time. A
        // gateway whose machine is gone is left within seconds.
        url += &format!("&sslmode=verify-ca&sslrootcert={}", encode(ca));
        url += "&connect_timeout=2&tcp_user_timeout=4000&keepalives_idle=2&keepalives_interval=1";
    }
    Some(url)
}

/// Such a URL with the password in it, in place of the file that holds it.
pub fn with_password(url: &str, password: &str) -> String {
    let (head, tail) = url.split_once('@').unwrap_or((url, ""));
    let (address, query) = tail.split_once('?').unwrap_or((tail, ""));
    let rest: Vec<&str> = query.split('&').filter(|it| !it.starts_with("passfile=")).collect();
    format!("{head}:{}@{address}?{}", encode(password).replace('/', "%2F"), rest.join("&"))
}

/// A line of a password file. Any database: the owner may connect to others too.
fn pgpass_line(host: &str, port: u16, user: &str, password: &str) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    format!("{}:{port}:*:{}:{}\n", escape(host), escape(user), escape(password))
}

/// Percent-encodes all that could mean something else in a URL.
fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_every_gateway_once_and_survive_odd_paths() {
        let mut spec = Spec::default_for_one_machine();
        let url = |spec: &Spec, role, passfile: &str| {
            url(
                spec,
                "main",
                spec.postgres("main").expect("there"),
                role,
                Some(passfile),
                "/ca.pem",
            )
        };
        assert_eq!(
            url(&spec, Role::Primary, "/srv/a b&c/main.pgpass").as_deref(),
            Some(
                "postgresql://app@127.0.0.1:6432/app?passfile=/srv/a%20b%26c/main.pgpass\
                 &target_session_attrs=any"
            )
        );
        assert!(url(&spec, Role::Standby, "/x").is_some_and(|url| url.contains(":6433/")));
        let write = spec.listeners.get_mut("write").expect("there");
        write.bind = "0.0.0.0:6432".parse().expect("an address");
        for (node, host) in [("a", "10.0.0.1"), ("b", "fd00::2"), ("c", "10.0.0.1")] {
            let address = everhold_core::spec::Address::Ip(host.parse().expect("an address"));
            spec.nodes.get_mut(node).expect("there").address = address;
        }
        let hosts = "@10.0.0.1:6432,[fd00::2]:6432/";
        let tls = "&sslmode=verify-ca&sslrootcert=/ca.pem&connect_timeout=2";
        assert!(url(&spec, Role::Primary, "/x").is_some_and(|url| url.contains(tls)));
        assert!(url(&spec, Role::Primary, "/x").is_some_and(|url| url.contains(hosts)));
        spec.listeners.clear();
        assert_eq!(url(&spec, Role::Primary, "/x"), None);
    }

    #[test]
    fn password_files_escape_what_libpq_reads() {
        assert_eq!(pgpass_line("::1", 6432, "app", "a:b\\c"), "\\:\\:1:6432:*:app:a\\:b\\\\c\n");
    }
}
