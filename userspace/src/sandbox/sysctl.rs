//! Settings below `/proc/sys/net` of the calling thread's namespace.

use std::{fs, io, path::PathBuf};

use super::{Result, SandboxError};

/// The value that turns a switch of the host's own devices on, and by which [`put_back`] knows that
/// Culvert has turned it on. The kernel takes every number but 0 for on. As the mark is in the
/// setting itself, it ends with the setting, and neither a killed agent nor a lost state directory
/// loses it.
const OURS: &str = "67";
/// The value of a switch that is off.
const OFF: &str = "0";

/// Writes `value` unless the setting has it already. Returns whether it was written. `None`: the
/// kernel does not have the setting.
pub(super) fn set(family: &str, interface: &str, key: &str, value: &str) -> Result<Option<bool>> {
    change(family, interface, key, |current| current != value, value)
}

/// Turns a switch of a device of the host's own on. One that is on already stays as it is. Returns
/// whether it was off. `None`: the kernel does not have the switch.
pub(super) fn turn_on(family: &str, interface: &str, key: &str) -> Result<Option<bool>> {
    change(family, interface, key, |current| current == OFF, OURS)
}

/// Turns a switch off that [`turn_on`] has turned on. One that another program has turned on stays
/// on. Returns whether it was turned off. `None`: the kernel does not have the switch.
pub(super) fn put_back(family: &str, interface: &str, key: &str) -> Result<Option<bool>> {
    change(family, interface, key, |current| current == OURS, OFF)
}

/// Writes `value` if `is_due` is true of the value that the setting has.
fn change(
    family: &str,
    interface: &str,
    key: &str,
    is_due: impl Fn(&str) -> bool,
    value: &str,
) -> Result<Option<bool>> {
    let path = PathBuf::from(format!("/proc/sys/net/{family}/conf/{interface}/{key}"));
    let failed = |error| SandboxError::io(format!("setting {} to {value}", path.display()), error);
    match fs::read_to_string(&path) {
        Ok(current) if is_due(current.trim_end()) => {}
        Ok(_) => return Ok(Some(false)),
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
