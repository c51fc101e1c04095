//! Addresses of stores.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use super::{EtcdOptions, EtcdStore, FileStore, Kind, Layout, StateStore, StoreError, host_of};

/// The error for a text that is not a [`StoreUrl`]: one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedUrl(pub String);

/// `etcd://H:P[,H:P]...` or `file:DIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// Endpoints of an etcd cluster, each `HOST:PORT`, by name or address.
    Etcd(Vec<String>),
    /// Directory of an embedded store.
    File(PathBuf),
}

impl StoreUrl {
    /// The backend of this address.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Etcd(_) => Kind::Etcd,
            Self::File(_) => Kind::File,
        }
    }

    /// The addresses of the servers, as far as the text has addresses and not names.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let Self::Etcd(endpoints) = self else { return Vec::new() };
        endpoints.iter().filter_map(|endpoint| host_of(endpoint).parse().ok()).collect()
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd(endpoints) => write!(f, "etcd://{}", endpoints.join(",")),
            Self::File(dir) => write!(f, "file:{}", dir.display()),
        }
    }
}

impl FromStr for StoreUrl {
    type Err = MalformedUrl;

    fn from_str(text: &str) -> Result<Self, MalformedUrl> {
        if let Some(endpoints) = text.strip_prefix("etcd://") {
            let endpoints = endpoints.strip_suffix('/').unwrap_or(endpoints);
            let endpoints: Result<_, _> = endpoints.split(',').map(endpoint).collect();
            Ok(Self::Etcd(endpoints.map_err(|MalformedUrl(why)| {
                MalformedUrl(format!(
                    "store {text:?}: {why}: etcd://HOST:PORT[,HOST:PORT] is valid"
                ))
            })?))
        } else if let Some(dir) = text.strip_prefix("file:") {
            // file:///DIR is the usual spelling of a file URL.
            let dir = dir.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(dir);
            if dir.is_empty() {
                return Err(MalformedUrl(format!(
                    "store {text:?} names no directory: file:/var/lib/culvert/store is valid"
                )));
            }
            Ok(Self::File(PathBuf::from(dir)))
        } else {
            Err(MalformedUrl(format!(
                "store {text:?} is of no known kind: etcd://HOST:PORT[,HOST:PORT] or file:DIR is valid"
            )))
        }
    }
}

/// Checks one `HOST:PORT`.
fn endpoint(text: &str) -> Result<String, MalformedUrl> {
    let no = |why: &str| Err(MalformedUrl(format!("endpoint {text:?} {why}")));
    let Some((host, port)) = text.rsplit_once(':') else {
        return no(if text.is_empty() { "is empty" } else { "has no port" });
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) || !port.parse::<u16>().is_ok_and(|p| p > 0)
    {
        return no("has a malformed port, 1 to 65535 is one");
    }
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let valid = match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None if host.parse::<Ipv6Addr>().is_ok() => {
            return no("has an IPv6 address without brackets");
        }
        None => is_host(host),
    };
    if valid { Ok(text.to_owned()) } else { no("has a malformed host") }
}

/// An IPv4 address or a name (RFC 1123 §2.1; '_' is common in practice).
fn is_host(host: &str) -> bool {
    let looks_numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if looks_numeric {
        return host.parse::<IpAddr>().is_ok();
    }
    host.len() <= 253
        && host.trim_end_matches('.').split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        })
}

/// Options for opening a store.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// `--store-ca`: PEM file of the authority that signed the server's certificate. `None`:
    /// no TLS.
    pub ca: Option<PathBuf>,
    /// `--store-cert`: the client's certificate (PEM).
    pub cert: Option<PathBuf>,
    /// `--store-key`: its private key (PEM).
    pub key: Option<PathBuf>,
    /// `--store-user`.
    pub user: Option<String>,
    /// `--store-password-file`: file with the user's password on its first line.
    pub password_file: Option<PathBuf>,
    /// `--insecure-store`: plaintext beyond the loopback device is permitted.
    pub insecure: bool,
    /// Timeout of a call; 5 s by default.
    pub timeout: Option<Duration>,
    /// Layout of the keys. `None`: each prefix is read in one request.
    pub layout: Option<Layout>,
}

/// Opens a store. For etcd this only checks the options and sends nothing: the store need not be
/// reachable yet.
///
/// # Errors
///
/// [`StoreError::Refused`]: the options or the directory cannot be used, and trying again
/// does not help; one line. [`StoreError::Unavailable`]: the directory is in use.
pub async fn open(
    url: &StoreUrl,
    options: &StoreOptions,
) -> Result<Arc<dyn StateStore>, StoreError> {
    match url {
        StoreUrl::Etcd(endpoints) => {
            let options = EtcdOptions {
                endpoints: endpoints.clone(),
                ca: options.ca.clone(),
                cert: options.cert.clone(),
                key: options.key.clone(),
                user: options.user.clone(),
                password_file: options.password_file.clone(),
                insecure: options.insecure,
                timeout: options.timeout.unwrap_or(EtcdOptions::TIMEOUT),
                layout: options.layout,
            };
            Ok(Arc::new(EtcdStore::connect(&options).await?))
        }
        StoreUrl::File(dir) => Ok(Arc::new(FileStore::open(dir).await?)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_are_parsed_and_spelled_back() {
        for text in [
            "etcd://127.0.0.1:2379",
            "etcd://etcd1:2379,etcd2.example.org:2380,192.0.2.1:2379,[2001:db8::1]:2379",
            "file:/var/lib/culvert/store",
            "file:store",
        ] {
            assert_eq!(text.parse::<StoreUrl>().expect(text).to_string(), text);
        }
        assert_eq!(
            "file:///a/b".parse::<StoreUrl>().expect("three slashes"),
            StoreUrl::File("/a/b".into())
        );
        assert_eq!(
            "etcd://a:1/".parse::<StoreUrl>().expect("trailing slash"),
            StoreUrl::Etcd(vec!["a:1".to_owned()])
        );
    }

    #[test]
    fn addresses_are_those_that_the_text_has() {
        let addresses = |text: &str| text.parse::<StoreUrl>().expect(text).addresses();
        let both: [IpAddr; 2] = [[10, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into()];
        assert_eq!(addresses("etcd://10.0.0.1:2379,etcd.example:2379,[::1]:2379"), both);
        assert!(addresses("file:/10.0.0.1:1").is_empty());
    }

    #[test]
    fn malformed_urls_are_refused_in_one_line_that_names_what_is_wrong() {
        for (text, part) in [
            ("", "no known kind"),
            ("consul://a:1", "no known kind"),
            ("127.0.0.1:2379", "no known kind"),
            ("http://127.0.0.1:2379", "no known kind"),
            ("file:", "no directory"),
            ("etcd://", "is empty"),
            ("etcd://a:1,", "is empty"),
            ("etcd://a", "\"a\" has no port"),
            ("etcd://a:0", "malformed port"),
            ("etcd://a:65536", "malformed port"),
            ("etcd://a:+1", "malformed port"),
            ("etcd://:2379", "malformed host"),
            ("etcd://a b:1", "malformed host"),
            ("etcd://1.2.3:1", "malformed host"),
            ("etcd://1.2.3.4.5:1", "malformed host"),
            ("etcd://user@a:1", "malformed host"),
            ("etcd://a:1/path", "malformed port"),
            ("etcd://::1:2379", "without brackets"),
            ("etcd://[::1:2379", "malformed host"),
        ] {
            let error = text.parse::<StoreUrl>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(etcd://|file:)?\\PC{0,40}") {
            let _ = text.parse::<StoreUrl>();
        }
    }
}
