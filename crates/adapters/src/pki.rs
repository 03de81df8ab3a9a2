//! The cluster's own certificate authority: agents, gateways, store and API prove to each other
//! with its certificates that they belong to the same cluster.
//!
//! All of it is files in one directory that only its owner can enter. A file that is torn, foreign
//! or open to others is an error and stays as it is: a new authority in the place of a damaged one
//! would lock every other machine out.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::X509Certificate;

const CA_CERT: &str = "ca.pem";
const CA_KEY: &str = "ca.key";

/// Of a certificate. It is renewed when two thirds of this are over, which leaves a month to notice
/// that it was not.
const LASTS: Duration = Duration::from_secs(90 * 86_400);
/// How far a clock may be behind the one that certified.
const SKEW: Duration = Duration::from_secs(86_400);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot {what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} already holds an authority or something else; nothing was changed", dir.display())]
    Exists { dir: PathBuf },
    #[error(
        "{} is missing, but its counterpart is there; restore it from a copy, or remove the \
         directory to make a new authority", path.display()
    )]
    Missing { path: PathBuf },
    #[error(
        "{} is torn or not what it should be: {why}; restore it from a copy, or remove it and its \
         counterpart to have them made anew", path.display()
    )]
    Invalid { path: PathBuf, why: String },
    #[error(
        "{} can be read by others (mode {mode:o}); if nobody did, run `chmod 600` on it",
        path.display()
    )]
    TooOpen { path: PathBuf, mode: u32 },
    #[error("`{name}` cannot name a certificate: use letters, digits, `.`, `-` and `_`")]
    Name { name: String },
    #[error("cannot make a key or certificate for {name}")]
    Generate { name: String, source: rcgen::Error },
}

/// What a certificate is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Server,
    Client,
    /// Serves and calls: agents, and etcd, whose server calls itself with its own certificate.
    Both,
}

/// Where the holder of a certificate is found. etcd also refuses a client whose certificate has
/// hosts and lacks the address it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Ip(IpAddr),
    Dns(String),
}

/// The files of one certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertPair {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

pub struct Authority {
    dir: PathBuf,
    /// How long the certificates last that it gives out.
    lasts: Duration,
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority. The directory appears complete or not at all; a directory with
    /// anything in it is refused.
    pub fn create(dir: &Path) -> Result<Self, PkiError> {
        let (key, cert_pem) = new_authority()
            .map_err(|source| PkiError::Generate { name: "the authority".to_owned(), source })?;
        Authority::place(dir, &cert_pem, &key.serialize_pem())
    }

    /// Makes the directory of an authority that another machine has made. One that is there already
    /// must be the same.
    pub fn import(dir: &Path, cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        if !dir.join(CA_CERT).exists() && !dir.join(CA_KEY).exists() {
            return Authority::place(dir, cert_pem, key_pem);
        }
        let known = Authority::load(dir)?;
        if known.cert_pem == cert_pem {
            Ok(known)
        } else {
            Err(PkiError::Exists { dir: dir.to_owned() })
        }
    }

    fn place(dir: &Path, cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        // What a crash left of an earlier attempt was never in use, since it was never renamed.
        let unfinished = dir.with_extension("unfinished");
        match fs::remove_dir_all(&unfinished) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &unfinished)(e));
            }
            Ok(()) | Err(_) => {}
        }
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&unfinished)
            .map_err(io_error("create", &unfinished))?;
        write_new(&unfinished.join(CA_KEY), key_pem)?;
        write_new(&unfinished.join(CA_CERT), cert_pem)?;
        fs::rename(&unfinished, dir).map_err(|e| match e.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => {
                PkiError::Exists { dir: dir.to_owned() }
            }
            _ => io_error("put in place", dir)(e),
        })?;
        sync_dir(dir.parent().unwrap_or(dir))?;
        Authority::load(dir)
    }

    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
        let cert_pem = read(&cert_path)?;
        let key = read_key(&key_path)?;
        with_cert(&cert_path, &cert_pem, |cert| {
            if !cert.is_ca() {
                return Err("it is not the certificate of an authority");
            }
            belongs(cert, &key, cert)
        })?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key)
            .map_err(|e| PkiError::Invalid { path: cert_path, why: e.to_string() })?;
        Ok(Authority { dir: dir.to_owned(), lasts: LASTS, cert_pem, issuer })
    }

    /// Loads the authority, or makes it if neither of its files is there.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        if dir.join(CA_CERT).exists() || dir.join(CA_KEY).exists() {
            return Authority::load(dir);
        }
        Authority::create(dir)
    }

    pub fn cert_path(&self) -> PathBuf {
        self.dir.join(CA_CERT)
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// For [`Authority::import`] on another machine, and for nothing else.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Where the certificate of `name` and its key are, sound or not.
    pub fn pair(&self, name: &str) -> CertPair {
        let file = |ending: &str| self.dir.join(format!("{name}.{ending}"));
        CertPair { ca: self.cert_path(), cert: file("pem"), key: file("key") }
    }

    /// Gives out `name.pem` and `name.key`. A pair that is there already is checked and kept; it is
    /// certified anew, with the same key, only if it lacks one of the hosts or uses, or a third of
    /// its time or less is left. After a crash between the two files the key that was never
    /// certified is.
    pub fn issue(&self, name: &str, hosts: &[Host], usage: Usage) -> Result<CertPair, PkiError> {
        let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name == "ca" || name.starts_with('.') || !name.chars().all(of_name) {
            return Err(PkiError::Name { name: name.to_owned() });
        }
        let pair = self.pair(name);
        let failed = |source| PkiError::Generate { name: name.to_owned(), source };

        if pair.cert.exists() {
            let key = read_key(&pair.key)?;
            if !self.serves(&pair, &key, hosts, usage)? {
                let cert = self.certify(name, hosts, usage, &key).map_err(failed)?;
                write_over(&pair.cert, &cert)?;
            }
            return Ok(pair);
        }
        let key = if pair.key.exists() {
            read_key(&pair.key)?
        } else {
            let key = KeyPair::generate().map_err(failed)?;
            write_new(&pair.key, &key.serialize_pem())?;
            key
        };
        let cert = self.certify(name, hosts, usage, &key).map_err(failed)?;
        write_new(&pair.cert, &cert)?;
        Ok(pair)
    }

    fn certify(
        &self,
        name: &str,
        hosts: &[Host],
        usage: Usage,
        key: &KeyPair,
    ) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::new(vec![])?;
        params.distinguished_name.push(DnType::CommonName, name);
        let now = SystemTime::now();
        // Otherwise it would follow from the key, which a renewed certificate shares with the old one.
        let nanos = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        params.serial_number = Some(u64::try_from(nanos).unwrap_or(u64::MAX).into());
        params.not_before = (now - SKEW).into();
        params.not_after = (now + self.lasts).into();
        for host in hosts {
            params.subject_alt_names.push(match host {
                Host::Ip(ip) => SanType::IpAddress(*ip),
                Host::Dns(dns) => SanType::DnsName(dns.as_str().try_into()?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = match usage {
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Both => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// Whether the pair on disk is sound and good for all of `hosts` and `usage`.
    fn serves(
        &self,
        pair: &CertPair,
        key: &KeyPair,
        hosts: &[Host],
        usage: Usage,
    ) -> Result<bool, PkiError> {
        let cert_pem = read(&pair.cert)?;
        with_cert(&self.cert_path(), &self.cert_pem, |authority| {
            Ok(with_cert(&pair.cert, &cert_pem, |cert| {
                belongs(cert, key, authority)?;
                Ok(hosts.iter().all(|host| names(cert, host)) && allows(cert, usage) && fresh(cert))
            }))
        })?
    }
}

/// When the certificate in this file ends.
pub fn ends(cert: &Path) -> Result<SystemTime, PkiError> {
    let pem = read(cert)?;
    with_cert(cert, &pem, |it| {
        let secs = u64::try_from(it.validity().not_after.timestamp()).unwrap_or(0);
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(secs))
    })
}

/// The authority's key and certificate. rcgen's default lifetime ends in the year 4096: an authority
/// that expires would stop the cluster some day, and nothing is gained by it.
fn new_authority() -> Result<(KeyPair, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Everhold cluster authority");
    let cert = params.self_signed(&key)?;
    Ok((key, cert.pem()))
}

/// More than a third of the certificate's time is left.
fn fresh(cert: &X509Certificate<'_>) -> bool {
    let (begins, ends) = (cert.validity().not_before, cert.validity().not_after);
    let lasts = ends.timestamp() - begins.timestamp();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    ends.timestamp() - i64::try_from(now.as_secs()).unwrap_or(i64::MAX) > lasts / 3
}

fn belongs(
    cert: &X509Certificate<'_>,
    key: &KeyPair,
    authority: &X509Certificate<'_>,
) -> Result<(), &'static str> {
    if *cert.public_key().subject_public_key.data != *key.public_key_raw() {
        return Err("it belongs to another key");
    }
    cert.verify_signature(Some(authority.public_key()))
        .map_err(|_| "it was not signed by this cluster's authority")
}

fn names(cert: &X509Certificate<'_>, host: &Host) -> bool {
    let Ok(Some(san)) = cert.subject_alternative_name() else { return false };
    san.value.general_names.iter().any(|name| match (name, host) {
        (GeneralName::DNSName(dns), Host::Dns(host)) => dns == host,
        (GeneralName::IPAddress(ip), Host::Ip(IpAddr::V4(host))) => **ip == host.octets(),
        (GeneralName::IPAddress(ip), Host::Ip(IpAddr::V6(host))) => **ip == host.octets(),
        _ => false,
    })
}

fn allows(cert: &X509Certificate<'_>, usage: Usage) -> bool {
    let Ok(Some(allowed)) = cert.extended_key_usage() else { return false };
    match usage {
        Usage::Server => allowed.value.server_auth,
        Usage::Client => allowed.value.client_auth,
        Usage::Both => allowed.value.server_auth && allowed.value.client_auth,
    }
}

fn with_cert<T>(
    path: &Path,
    pem: &str,
    judge: impl FnOnce(&X509Certificate<'_>) -> Result<T, &'static str>,
) -> Result<T, PkiError> {
    let invalid = |why: String| PkiError::Invalid { path: path.to_owned(), why };
    let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|e| invalid(e.to_string()))?;
    let cert = block.parse_x509().map_err(|e| invalid(e.to_string()))?;
    judge(&cert).map_err(|why| invalid(why.to_owned()))
}

fn read_key(path: &Path) -> Result<KeyPair, PkiError> {
    let pem = read(path)?;
    let mode = fs::metadata(path).map_err(io_error("look at", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PkiError::TooOpen { path: path.to_owned(), mode });
    }
    KeyPair::from_pem(&pem)
        .map_err(|e| PkiError::Invalid { path: path.to_owned(), why: e.to_string() })
}

fn read(path: &Path) -> Result<String, PkiError> {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes)
            .map_err(|_| PkiError::Invalid { path: path.to_owned(), why: "not text".to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(PkiError::Missing { path: path.to_owned() })
        }
        Err(e) => Err(io_error("read", path)(e)),
    }
}

/// Writes a file that must not exist yet. It appears complete or not at all.
fn write_new(path: &Path, text: &str) -> Result<(), PkiError> {
    let unfinished = write_beside(path, text)?;
    // A link, unlike a rename, never replaces what is there.
    let linked = fs::hard_link(&unfinished, path).map_err(io_error("put in place", path));
    fs::remove_file(&unfinished).map_err(io_error("remove", &unfinished))?;
    linked?;
    sync_dir(path.parent().unwrap_or(path))
}

fn write_over(path: &Path, text: &str) -> Result<(), PkiError> {
    let unfinished = write_beside(path, text)?;
    fs::rename(&unfinished, path).map_err(io_error("put in place", path))?;
    sync_dir(path.parent().unwrap_or(path))
}

fn write_beside(path: &Path, text: &str) -> Result<PathBuf, PkiError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".unfinished-{}", std::process::id()));
    let unfinished = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(io_error("write", &unfinished))?;
    Ok(unfinished)
}

fn sync_dir(dir: &Path) -> Result<(), PkiError> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Io { what, path, source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    const LOOPBACK: Host = Host::Ip(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_authority_is_made_once_and_found_again() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("deep/pki");
        fs::create_dir_all(dir.with_extension("unfinished")).unwrap();
        let made = Authority::open(&dir).unwrap();
        let again = Authority::open(&dir).unwrap();
        assert_eq!(made.cert_pem(), again.cert_pem());
        assert_eq!((mode(&dir), mode(&dir.join(CA_KEY))), (0o700, 0o600));
        assert!(matches!(Authority::create(&dir), Err(PkiError::Exists { .. })));
        assert_eq!(Authority::load(&dir).unwrap().cert_pem(), made.cert_pem());
    }

    #[test]
    fn a_pair_is_kept_until_it_lacks_something() {
        let temp = tempfile::tempdir().unwrap();
        let mut ca = Authority::create(&temp.path().join("pki")).unwrap();
        let pair = ca.issue("a", &[LOOPBACK], Usage::Client).unwrap();
        let files = || (read(&pair.cert).unwrap(), read(&pair.key).unwrap());
        let first = files();
        assert_eq!((mode(&pair.cert), mode(&pair.key)), (0o600, 0o600));
        assert_eq!(ca.issue("a", &[LOOPBACK], Usage::Client).unwrap(), pair);
        assert_eq!(files(), first);

        ca.issue("a", &[LOOPBACK], Usage::Both).unwrap();
        let both = files();
        assert!(both.0 != first.0 && both.1 == first.1);
        ca.issue("a", &[LOOPBACK, Host::Dns("a.example".into())], Usage::Both).unwrap();
        assert_ne!(files().0, both.0);

        fs::remove_file(&pair.cert).unwrap();
        ca.issue("a", &[LOOPBACK], Usage::Both).unwrap();
        assert_eq!(files().1, first.1, "the key without a certificate is used");

        // One that has been used for two thirds of its time is renewed, before that it is not.
        for (lasts, renewed) in [(SKEW / 2 + SKEW / 10, false), (SKEW / 2 - SKEW / 10, true)] {
            ca.lasts = lasts;
            fs::remove_file(&pair.cert).unwrap();
            ca.issue("a", &[LOOPBACK], Usage::Both).unwrap();
            let old = files();
            ca.lasts = LASTS;
            ca.issue("a", &[LOOPBACK], Usage::Both).unwrap();
            assert_eq!(files().0 != old.0, renewed, "{lasts:?}");
            assert_eq!(files().1, old.1);
        }
    }

    #[test]
    fn damage_is_named_and_left_alone() {
        let torn = |text: String| text[..text.len() / 2].to_owned();
        let empty = |_| String::new();
        let open = |path: &Path| fs::set_permissions(path, PermissionsExt::from_mode(0o644));
        type Damage<'a> = &'a dyn Fn(&Path);
        let tear: Damage<'_> = &|path| fs::write(path, torn(read(path).unwrap())).unwrap();
        let clear: Damage<'_> = &|path| fs::write(path, empty(())).unwrap();
        let remove: Damage<'_> = &|path| fs::remove_file(path).unwrap();
        let expose: Damage<'_> = &|path| open(path).unwrap();
        let swap: Damage<'_> = &|path| {
            let other = tempfile::tempdir().unwrap();
            let ca = Authority::create(&other.path().join("pki")).unwrap();
            ca.issue("a", &[LOOPBACK], Usage::Both).unwrap();
            fs::copy(ca.dir.join(path.file_name().unwrap()), path).unwrap();
        };
        #[rustfmt::skip]
        let cases: [(&str, Damage<'_>, &str); 14] = [
            ("ca.pem", tear, "invalid"), ("ca.pem", clear, "invalid"), ("ca.pem", swap, "invalid"),
            ("ca.pem", remove, "missing"),
            ("ca.key", tear, "invalid"), ("ca.key", clear, "invalid"), ("ca.key", swap, "invalid"),
            ("ca.key", remove, "missing"), ("ca.key", expose, "open"),
            ("a.pem", tear, "invalid"), ("a.pem", swap, "invalid"),
            ("a.key", tear, "invalid"), ("a.key", remove, "missing"), ("a.key", expose, "open"),
        ];
        for (file, damage, expected) in cases {
            let temp = tempfile::tempdir().unwrap();
            let dir = temp.path().join("pki");
            Authority::create(&dir).unwrap().issue("a", &[LOOPBACK], Usage::Both).unwrap();
            damage(&dir.join(file));
            let left = fs::read(dir.join(file)).ok();
            let verdict = Authority::open(&dir)
                .and_then(|ca| ca.issue("a", &[LOOPBACK, Host::Dns("b".into())], Usage::Both));
            let said = match verdict {
                Err(PkiError::Invalid { .. }) => "invalid",
                Err(PkiError::Missing { .. }) => "missing",
                Err(PkiError::TooOpen { .. }) => "open",
                other => panic!("{file}: {other:?}"),
            };
            assert_eq!(said, expected, "{file}");
            assert_eq!(fs::read(dir.join(file)).ok(), left, "{file} was changed");
        }
    }

    #[test]
    fn a_pair_of_another_authority_is_not_ours() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ours = Authority::create(&ours.path().join("pki")).map(|ca| (ca, ours)).unwrap();
        let theirs = Authority::create(&theirs.path().join("pki")).map(|ca| (ca, theirs)).unwrap();
        let pair = ours.0.issue("a", &[LOOPBACK], Usage::Both).unwrap();
        let foreign = theirs.0.issue("a", &[LOOPBACK], Usage::Both).unwrap();
        fs::copy(foreign.cert, &pair.cert).unwrap();
        fs::copy(foreign.key, &pair.key).unwrap();
        let verdict = ours.0.issue("a", &[LOOPBACK], Usage::Both);
        assert!(matches!(verdict, Err(PkiError::Invalid { path, .. }) if path == pair.cert));
    }

    #[test]
    fn a_name_stays_in_the_directory() {
        let temp = tempfile::tempdir().unwrap();
        let ca = Authority::create(&temp.path().join("pki")).unwrap();
        for name in ["", "ca", "../a", ".a", "a/b", "a b"] {
            let verdict = ca.issue(name, &[], Usage::Client);
            assert!(matches!(verdict, Err(PkiError::Name { .. })), "{name}");
        }
    }
}
