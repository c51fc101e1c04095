//! What an administrator does to BPF maps and links by hand.

#![expect(clippy::panic, reason = "an object that cannot be changed ends the test with the error")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::Path,
};

use aya::{
    maps::{MapData, MapInfo},
    programs::ProgramInfo,
};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use nix::libc;

/// A map, with keys and values as bytes.
#[derive(Debug)]
pub struct RawMap {
    map: MapData,
    key_size: usize,
    value_size: usize,
}

impl RawMap {
    /// The map that is pinned at a path.
    ///
    /// # Panics
    /// When there is none.
    pub fn pinned(path: &Path) -> Self {
        match MapData::from_pin(path) {
            Ok(map) => Self::of(map),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    /// The map `name` of the program that is pinned at a path.
    ///
    /// # Panics
    /// When the program has no such map.
    pub fn of_program(path: &Path, name: &str) -> Self {
        let program = ProgramInfo::from_pin(path);
        let ids = program.ok().and_then(|program| program.map_ids().ok()?).unwrap_or_default();
        let is_it =
            |id: &u32| MapInfo::from_id(*id).is_ok_and(|info| info.name_as_str() == Some(name));
        match ids.into_iter().find(is_it).map(MapData::from_id) {
            Some(Ok(map)) => Self::of(map),
            other => panic!("{}: no map {name}: {other:?}", path.display()),
        }
    }

    fn of(map: MapData) -> Self {
        match map.info() {
            Ok(info) => Self {
                key_size: info.key_size() as usize,
                value_size: info.value_size() as usize,
                map,
            },
            Err(error) => panic!("map: {error}"),
        }
    }

    /// The keys of the entries.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0_u8; self.key_size];
            let mut attr = attributes();
            attr.__bindgen_anon_2.map_fd = number(self.map.fd().as_fd());
            // The kernel takes a null pointer as the beginning of the map.
            attr.__bindgen_anon_2.key = keys.last().map_or(0, |key| key.as_ptr() as u64);
            attr.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
            // SAFETY: both addresses lead to as many bytes as a key has, which outlive the call.
            match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
                Ok(_) => keys.push(next),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return keys,
                Err(error) => panic!("{self:?}: next key: {error}"),
            }
        }
    }

    /// The value of a key.
    pub fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut value = vec![0_u8; self.value_size];
        match self.element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, key, Some(&mut value)) {
            Ok(()) => Some(value),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => panic!("{self:?}: look up: {error}"),
        }
    }

    /// Writes an entry.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn set(&self, key: &[u8], value: &[u8]) {
        let mut value = value.to_vec();
        if let Err(error) = self.element(bpf_cmd::BPF_MAP_UPDATE_ELEM, key, Some(&mut value)) {
            panic!("{self:?}: update: {error}");
        }
    }

    /// Removes an entry.
    ///
    /// # Panics
    /// When there is none.
    pub fn remove(&self, key: &[u8]) {
        if let Err(error) = self.element(bpf_cmd::BPF_MAP_DELETE_ELEM, key, None) {
            panic!("{self:?}: delete: {error}");
        }
    }

    fn element(&self, command: bpf_cmd, key: &[u8], value: Option<&mut Vec<u8>>) -> io::Result<()> {
        assert_eq!(key.len(), self.key_size);
        let mut attr = attributes();
        attr.__bindgen_anon_2.map_fd = number(self.map.fd().as_fd());
        attr.__bindgen_anon_2.key = key.as_ptr() as u64;
        if let Some(value) = value {
            assert_eq!(value.len(), self.value_size);
            attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
        }
        // SAFETY: the addresses lead to as many bytes as a key and a value have, which outlive the
        // call. No map of the tests is per CPU.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }
}

/// Detaches the program of the link that is pinned at a path. The pin stays.
///
/// # Panics
/// When there is no link, or the kernel refuses.
pub fn detach_link(path: &Path) {
    let detached = open(path).and_then(|link| {
        let mut attr = attributes();
        attr.link_detach.link_fd = number(link.as_fd());
        // SAFETY: `attr` leads to no memory.
        unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }
    });
    if let Err(error) = detached {
        panic!("{}: detach: {error}", path.display());
    }
}

/// Opens the object that is pinned at a path.
fn open(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt as _;
    let pathname = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut attr = attributes();
    attr.__bindgen_anon_4.pathname = pathname.as_ptr() as u64;
    // SAFETY: the address leads to a string that ends with a NUL byte and outlives the call.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made the descriptor, and no other value owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attributes() -> bpf_attr {
    // SAFETY: a union of structures of integers, for which all bytes 0 is a value.
    unsafe { std::mem::zeroed() }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is not negative.
    fd.as_raw_fd().unsigned_abs()
}

/// Makes the system call bpf(2).
///
/// # Safety
/// Every address in `attr` leads to memory that is valid for what `command` reads or writes there.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    let command = command as libc::c_long;
    // SAFETY: `attr` has the stated length and is initialised. The caller guarantees that the
    // addresses in it are valid.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
