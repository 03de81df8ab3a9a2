//! Passwords and tokens, in files only their owner reads.
//!
//! A cluster has one secret, which every machine of it holds. The passwords of its services follow
//! from it, so no password ever crosses a wire or stands in the store.

use crate::layout::Layout;
use crate::{agent, disk};
use everhold_core::spec::Spec;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// 192 bits: nobody guesses it, and it fits a URL.
const BYTES: usize = 24;

/// Makes the file with a fresh secret, unless it is there.
pub fn make_once(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    disk::write_whole(path, &fresh()?)
}

/// Makes what is missing of the cluster's secret, the passwords of all services, and the token of
/// this machine's API.
pub fn make_all(layout: &Layout, spec: &Spec) -> std::io::Result<()> {
    private_dir(&layout.secrets())?;
    make_once(&layout.cluster_secret())?;
    make_once(&layout.api_token())?;
    for (service, _) in spec.databases() {
        for (what, path) in [
            ("owner", agent::owner_password(layout, service)),
            ("replication", agent::replication_password(layout, service)),
        ] {
            if !path.exists() {
                let secret = read(&layout.cluster_secret())?;
                disk::write_whole(&path, &derived(&secret, &format!("{service}/{what}"))?)?;
            }
        }
    }
    Ok(())
}

/// What follows from the cluster's secret for one purpose (HMAC-SHA-256).
pub fn derived(secret: &str, purpose: &str) -> std::io::Result<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    mac.update(purpose.as_bytes());
    Ok(hex(&mac.finalize().into_bytes()[..BYTES]))
}

/// The secret in the file.
pub fn read(path: &Path) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_string())
}

/// A directory only its owner can look into.
pub fn private_dir(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A secret that nobody has seen.
pub fn fresh() -> std::io::Result<String> {
    let mut bytes = [0_u8; BYTES];
    let mut filled = 0;
    while filled < BYTES {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
    }
    Ok(hex(&bytes))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_with_one_secret_have_the_same_passwords() {
        let spec = Spec::default_for_one_machine();
        let machine = |secret: &str| {
            let dir = tempfile::tempdir().expect("a directory");
            let layout = Layout::new(dir.path()).expect("a layout");
            private_dir(&layout.secrets()).expect("a directory");
            disk::write_whole(&layout.cluster_secret(), secret).expect("written");
            make_all(&layout, &spec).expect("made");
            let of = |path: std::path::PathBuf| read(&path).expect("a password");
            let all = [
                of(agent::owner_password(&layout, "main")),
                of(agent::replication_password(&layout, "main")),
                of(layout.api_token()),
            ];
            make_all(&layout, &spec).expect("made again");
            assert_eq!(of(agent::owner_password(&layout, "main")), all[0], "kept");
            all
        };
        let (a, b, other) = (machine("s3cret"), machine("s3cret"), machine("another"));
        assert_eq!(a[..2], b[..2]);
        assert!(a[0] != a[1] && a[0] != other[0] && a[2] != b[2]);
        // RFC 4231, test case 2.
        let known = derived("Jefe", "what do ya want for nothing?").expect("derived");
        assert_eq!(known, "5bdcc146bf60754e6a042426089575c75a003f089d273983");
    }
}
