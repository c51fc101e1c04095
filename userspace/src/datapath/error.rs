//! Errors of the data plane.

use std::{io, path::PathBuf};

use crate::limits::name_limit;

/// An error of an operation on the data plane, on one line.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel refused to load the programs.
    #[error("data plane: {what}: {}", chain(.source.as_ref()))]
    Load {
        /// The program, map or object that was being loaded.
        what: String,
        /// The error of aya.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map operation failed.
    #[error("map {map}: {}", chain(.source.as_ref()))]
    Map {
        /// Name of the map.
        map: &'static str,
        /// The error of aya.
        source: Box<aya::maps::MapError>,
    },
    /// An attachment failed.
    #[error("interface {interface}: {what}: {}", chain(.source.as_ref()))]
    Attach {
        /// Name or index of the interface.
        interface: String,
        /// The operation that failed.
        what: &'static str,
        /// The error of aya.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file operation below the BPF file system failed.
    #[error("{}: {what}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operation that failed.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

/// An error and its causes on one line. In aya's errors the errno is in a cause.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // The errno inside an error of aya can be a limit of the system: its name is added.
        let errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        let inner = match errno {
            Some(errno) => name_limit(io::Error::from_raw_os_error(errno)).to_string(),
            None => error.to_string(),
        };
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    // The lines after the first are the verifier's log.
    text.lines().next().unwrap_or_default().to_owned()
}
