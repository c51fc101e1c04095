//! Certificates of the connection to etcd, and until when they are valid.
//!
//! The agent reads the files at each connection. An expired certificate therefore stops nothing
//! until the next connection. This check warns before.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_cert::{
    Certificate as X509,
    der::{DateTime, Decode as _},
};

use super::finding::{Finding, Level};
use crate::config::StoreAccess;

/// Name of the check.
const CHECK: &str = "certificate";
/// Time before the end of a certificate from which there is a warning.
const SOON: Duration = days(30);
/// Time before the end of a certificate from which the warning says what the end will stop.
const VERY_SOON: Duration = days(7);

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 24 * 60 * 60)
}

/// Whose certificates a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// `--store-ca`: authorities, of which one has signed the store's certificate.
    Authority,
    /// `--store-cert`: the agent's certificate, then those between it and its authority.
    Client,
}

impl Role {
    /// The option of the agent that names the file.
    pub const fn option(self) -> &'static str {
        match self {
            Self::Authority => "--store-ca",
            Self::Client => "--store-cert",
        }
    }

    /// The role of the file that an option names.
    pub fn of_option(option: &str) -> Option<Self> {
        [Self::Authority, Self::Client].into_iter().find(|role| role.option() == option)
    }
}

/// The files of an agent's certificates, each with its role.
pub fn files(access: &StoreAccess) -> Vec<(Role, PathBuf)> {
    let authority = access.ca.iter().map(|file| (Role::Authority, file.clone()));
    let client = access.cert.iter().map(|file| (Role::Client, file.clone()));
    authority.chain(client).collect()
}

/// A file of certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFile {
    /// Whose certificates it has.
    pub role: Role,
    /// Path.
    pub path: PathBuf,
    /// The certificates in the order of the file, at least one. The error is why they cannot be
    /// read.
    pub certificates: Result<Vec<Certificate>, String>,
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Subject, as in RFC 4514: `CN=host1`.
    pub subject: String,
    /// Begin of its validity, since 1970.
    pub not_before: Duration,
    /// End of its validity, since 1970.
    pub not_after: Duration,
}

impl CertificateFile {
    /// Reads a file of PEM certificates.
    pub fn read(role: Role, path: &Path) -> Self {
        let certificates = fs::read(path)
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|pem| parse(&pem));
        Self { role, path: path.to_owned(), certificates }
    }

    /// The certificate that decides until when the connection works. Among authorities, this is the
    /// one that is valid for longest, because one authority is enough. In the agent's own chain,
    /// this is the one that is valid for shortest, because each certificate is needed.
    fn decisive(certificates: &[Certificate], role: Role, now: Duration) -> Option<&Certificate> {
        let begun = |certificate: &&Certificate| certificate.not_before <= now;
        let end = |certificate: &&Certificate| certificate.not_after;
        match role {
            Role::Authority => {
                let usable = certificates.iter().filter(begun).max_by_key(end);
                usable.or_else(|| certificates.iter().min_by_key(|other| other.not_before))
            }
            Role::Client => {
                let later = certificates.iter().find(|certificate| !begun(certificate));
                later.or_else(|| certificates.iter().min_by_key(end))
            }
        }
    }
}

/// Checks a file. `now` is the time since 1970. The text of the finding changes only with its
/// severity, so that the agent logs it once.
pub fn examine_certificate(file: &CertificateFile, now: Duration) -> Finding {
    let place = format!("{} {}", file.role.option(), file.path.display());
    let finding = |level, detail: String, advice: &str| Finding {
        check: CHECK.to_owned(),
        level,
        detail,
        advice: advice.to_owned(),
    };
    let certificates = match &file.certificates {
        Ok(certificates) => certificates,
        Err(why) => {
            let detail = format!("{place} {why}");
            return finding(Level::Error, detail, "put a PEM certificate there");
        }
    };
    let Some(decisive) = CertificateFile::decisive(certificates, file.role, now) else {
        let detail = format!("{place} has no certificate");
        return finding(Level::Error, detail, "put a PEM certificate there");
    };
    let Certificate { subject, not_before, not_after } = decisive;
    let (whose, refusal) = match file.role {
        Role::Authority => ("the authority", "the agent accepts no etcd server"),
        Role::Client => ("the certificate", "etcd refuses this host"),
    };
    let what = format!("{place}: {whose} {subject}");
    let renew = "put a renewed one into the file: the agent reads it at its next connection";
    if *not_before > now {
        return finding(
            Level::Error,
            format!("{what} is not valid before {}: {refusal} until then", time(*not_before)),
            "check the clock of this host, or put a certificate there that is valid now",
        );
    }
    match not_after.checked_sub(now) {
        None | Some(Duration::ZERO) => finding(
            Level::Error,
            format!("{what} has expired at {}: {refusal}", time(*not_after)),
            renew,
        ),
        Some(left) if left < VERY_SOON => finding(
            Level::Warning,
            format!(
                "{what} expires at {}, in less than 7 days: {refusal} from then on, and nothing can be created",
                time(*not_after)
            ),
            &format!("now {renew}"),
        ),
        Some(left) if left < SOON => finding(
            Level::Warning,
            format!("{what} expires at {}, in less than 30 days", time(*not_after)),
            renew,
        ),
        Some(_) => finding(Level::Ok, format!("{what} is valid until {}", time(*not_after)), ""),
    }
}

/// The current time since 1970, by this host's clock.
pub fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The certificates of a PEM file. The reader is the one of the TLS connection.
fn parse(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut certificates = Vec::new();
    for item in CertificateDer::pem_slice_iter(pem) {
        let der = item.map_err(|error| format!("is no PEM file: {error}"))?;
        let malformed = |error| format!("has a malformed certificate: {error}");
        let certificate = X509::from_der(&der).map_err(malformed)?;
        let tbs = certificate.tbs_certificate();
        certificates.push(Certificate {
            subject: printable(&tbs.subject().to_string()),
            not_before: tbs.validity().not_before.to_unix_duration(),
            not_after: tbs.validity().not_after.to_unix_duration(),
        });
    }
    if certificates.is_empty() {
        return Err("has no PEM certificate".to_owned());
    }
    Ok(certificates)
}

/// A text of a certificate on one line.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// A time since 1970 as RFC 3339 writes it.
fn time(since_1970: Duration) -> String {
    DateTime::from_unix_duration(since_1970)
        .map_or_else(|_| format!("{} s", since_1970.as_secs()), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Valid in 2020, for CN=host1.
    const CLIENT: &str = include_str!("testdata/client.pem");
    /// Valid from June 2020 to June 2060, for CN=authority.
    const AUTHORITY: &str = include_str!("testdata/authority.pem");

    fn file(role: Role, pem: &str) -> CertificateFile {
        let certificates = parse(pem.as_bytes());
        CertificateFile { role, path: "/etc/x.pem".into(), certificates }
    }

    /// Seconds since 1970 of midnight, UTC.
    fn at(year: u16, month: u8, day: u8) -> Duration {
        DateTime::new(year, month, day, 0, 0, 0).unwrap().unix_duration()
    }

    fn examined(role: Role, pem: &str, now: Duration) -> (Level, String) {
        let found = examine_certificate(&file(role, pem), now);
        assert_eq!(found.advice.is_empty(), found.level == Level::Ok, "{found:?}");
        let line = format!("{} {}", found.detail, found.advice);
        assert_eq!(line.lines().count(), 1, "{line}");
        (found.level, line)
    }

    #[test]
    fn a_certificate_is_told_before_it_ends() {
        for (now, level, words) in [
            (at(2019, 12, 31), Level::Error, "is not valid before 2020-01-01T00:00:00Z"),
            (at(2020, 1, 1), Level::Ok, "CN=host1 is valid until 2021-01-01T00:00:00Z"),
            (at(2020, 12, 2), Level::Ok, "is valid until"),
            (at(2020, 12, 2) + Duration::from_secs(1), Level::Warning, "in less than 30 days"),
            (at(2020, 12, 25), Level::Warning, "in less than 30 days"),
            (at(2020, 12, 26), Level::Warning, "etcd refuses this host from then on"),
            (at(2020, 12, 31), Level::Warning, "in less than 7 days"),
            (at(2021, 1, 1), Level::Error, "has expired at 2021-01-01T00:00:00Z"),
            (at(2026, 1, 1), Level::Error, "etcd refuses this host"),
        ] {
            let (found, line) = examined(Role::Client, CLIENT, now);
            assert_eq!(found, level, "{now:?} {line}");
            assert!(line.contains(words), "{line}");
            assert!(
                line.starts_with("--store-cert /etc/x.pem: the certificate CN=host1"),
                "{line}"
            );
        }
    }

    #[test]
    fn one_authority_that_is_valid_is_enough() {
        let both = format!("{CLIENT}\nauthorities after a text of their own\n{AUTHORITY}");
        let (level, line) = examined(Role::Authority, &both, at(2026, 1, 1));
        assert_eq!(level, Level::Ok, "{line}");
        assert!(line.contains("the authority CN=authority is valid until 2060-06-01"), "{line}");
        // The new authority is there before it is valid.
        let (level, line) = examined(Role::Authority, &both, at(2020, 5, 1));
        assert_eq!(level, Level::Ok, "{line}");
        let (level, line) = examined(Role::Authority, AUTHORITY, at(2020, 5, 1));
        assert_eq!(level, Level::Error, "{line}");
        assert!(line.contains("the agent accepts no etcd server"), "{line}");
    }

    #[test]
    fn each_certificate_of_the_agents_chain_is_needed() {
        for pem in [format!("{CLIENT}{AUTHORITY}"), format!("{AUTHORITY}{CLIENT}")] {
            let (level, line) = examined(Role::Client, &pem, at(2026, 1, 1));
            assert_eq!(level, Level::Error, "{line}");
            assert!(line.contains("CN=host1 has expired"), "{line}");
            let (level, line) = examined(Role::Client, &pem, at(2020, 5, 1));
            assert_eq!(level, Level::Error, "{line}");
            assert!(line.contains("CN=authority is not valid before 2020-06-01"), "{line}");
        }
    }

    #[test]
    fn files_that_are_no_certificates_are_named() {
        let broken = CLIENT.replacen("MIIB", "MIIC", 1);
        let cut = CLIENT.split("-----END").next().unwrap();
        for (pem, words) in [
            ("", "has no PEM certificate"),
            ("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", "no PEM certificate"),
            (broken.as_str(), "malformed certificate"),
            (cut, "no PEM file"),
        ] {
            let (level, line) = examined(Role::Client, pem, at(2020, 6, 1));
            assert_eq!(level, Level::Error, "{line}");
            assert!(line.contains(words), "{line}");
        }
        let none = CertificateFile::read(Role::Authority, Path::new("/nowhere/ca.pem"));
        let found = examine_certificate(&none, at(2020, 6, 1));
        assert!(found.detail.starts_with("--store-ca /nowhere/ca.pem cannot be read"), "{found:?}");
    }
}
