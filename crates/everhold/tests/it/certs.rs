//! Certificates as a test needs them: of a cluster's authority with times of the test's choice, or
//! of an authority of its own.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

const DAY: u64 = 86_400;

fn day(from_now: i64) -> SystemTime {
    let days = Duration::from_secs(from_now.unsigned_abs() * DAY);
    if from_now < 0 { SystemTime::now() - days } else { SystemTime::now() + days }
}

fn params(name: &str, address: &str, begins: i64, ends: i64) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = day(begins).into();
    params.not_after = day(ends).into();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    // etcd asks clients with hosts to call from one of them.
    if !name.starts_with("gateway") && !name.starts_with("api") {
        let node = name.strip_prefix("etcd.").unwrap_or(name);
        params.subject_alt_names = vec![
            SanType::DnsName(node.try_into().expect("a name")),
            SanType::IpAddress(address.parse().expect("an address")),
        ];
    }
    params
}

/// Certifies the pair `name` in a cluster's directory of certificates anew: from and until so many
/// days from now.
pub fn replace(pki: &Path, name: &str, address: &str, begins: i64, ends: i64) {
    let read = |file: &str| fs::read_to_string(pki.join(file)).expect("read");
    let authority = KeyPair::from_pem(&read("ca.key")).expect("the authority's key");
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), authority).expect("the authority");
    let key = KeyPair::from_pem(&read(&format!("{name}.key"))).expect("the key");
    let cert = params(name, address, begins, ends).signed_by(&key, &issuer).expect("certified");
    // Whole at once, as a renewal is.
    let (new, path) = (pki.join("new"), pki.join(format!("{name}.pem")));
    fs::write(&new, cert.pem()).expect("written");
    fs::rename(&new, &path).expect("renamed");
}

/// An authority, and `pair.pem` and `pair.key` of it, in an empty directory.
pub fn make(dir: &Path, address: &str) {
    fs::create_dir(dir).expect("made");
    let key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(vec![]).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "the operator's authority");
    let cert = authority.self_signed(&key).expect("certified");
    fs::write(dir.join("ca.pem"), cert.pem()).expect("written");
    let issuer = Issuer::from_ca_cert_pem(&cert.pem(), key).expect("the authority");
    let key = KeyPair::generate().expect("a key");
    // Its clients come from everywhere.
    for (file, name) in [("server", "server"), ("client", "api.client")] {
        let cert = params(name, address, -1, 10).signed_by(&key, &issuer).expect("certified");
        fs::write(dir.join(format!("{file}.pem")), cert.pem()).expect("written");
    }
    fs::write(dir.join("key.pem"), key.serialize_pem()).expect("written");
}

/// The serial number of the first certificate in a file.
pub fn serial(cert: &Path) -> String {
    let output =
        Command::new("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(cert).output();
    String::from_utf8_lossy(&output.expect("openssl runs").stdout).trim().to_string()
}
