//! Settings below `/proc/sys/net` of the calling thread's namespace.

use std::{fs, io, path::PathBuf};

use super::{Result, SandboxError};

/// Writes `value` unless the setting has it already. Returns whether it was written. `None`: the
/// kernel does not have the setting.
pub(super) fn set(family: &str, interface: &str, key: &str, value: &str) -> Result<Option<bool>> {
    let path = PathBuf::from(format!("/proc/sys/net/{family}/conf/{interface}/{key}"));
    let failed = |error| SandboxError::io(format!("setting {} to {value}", path.display()), error);
    match fs::read_to_string(&path) {
        Ok(current) if current.trim_end() == value => return Ok(Some(false)),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    match fs::write(&path, value) {
        Ok(()) => Ok(Some(true)),
        // The interface was removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}
