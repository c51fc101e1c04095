//! Certificates for a test, made with the `openssl` tool in a directory of
//! their own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// A certificate and its private key (PEM files).
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    own: Pair,
}

impl Authority {
    /// Makes an authority in a directory, which must exist.
    pub fn new(dir: &Path, name: &str) -> io::Result<Self> {
        let own = pair(dir, name);
        openssl(&[
            &["req", "-x509", "-days", "30", "-subj", &format!("/CN={name}")],
            KEY,
            &["-keyout", text(&own.key)?, "-out", text(&own.cert)?],
        ])?;
        Ok(Self { dir: dir.to_owned(), own })
    }

    /// The authority's certificate.
    pub fn cert(&self) -> PathBuf {
        self.own.cert.clone()
    }

    /// Issues a certificate that is good for a server at 127.0.0.1 and
    /// `localhost` and for a client.
    pub fn issue(&self, name: &str) -> io::Result<Pair> {
        let issued = pair(&self.dir, name);
        let request = self.dir.join(format!("{name}.csr"));
        let extensions = self.dir.join(format!("{name}.ext"));
        fs::write(
            &extensions,
            "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n",
        )?;
        openssl(&[
            &["req", "-new", "-subj", &format!("/CN={name}")],
            KEY,
            &["-keyout", text(&issued.key)?, "-out", text(&request)?],
        ])?;
        openssl(&[
            &["x509", "-req", "-days", "30", "-CAcreateserial", "-in", text(&request)?],
            &["-CA", text(&self.own.cert)?, "-CAkey", text(&self.own.key)?],
            &["-extfile", text(&extensions)?, "-out", text(&issued.cert)?],
        ])?;
        Ok(issued)
    }
}

/// Arguments for an EC key: such a key is generated at once.
const KEY: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

fn pair(dir: &Path, name: &str) -> Pair {
    Pair { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) }
}

fn text(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::other("the temporary directory's name is not UTF-8"))
}

fn openssl(arguments: &[&[&str]]) -> io::Result<()> {
    let output = Command::new("openssl")
        .args(arguments.concat())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("openssl: {error}")))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}
