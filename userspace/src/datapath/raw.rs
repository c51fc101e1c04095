//! aya's maps of a loaded object.

use std::{io, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use bytemuck::Pod;

use super::error::DatapathError;

/// Makes any [`bytemuck::Pod`] a key or value of aya's maps.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Bytes<T>(pub(super) T);

// SAFETY: `repr(transparent)` over a type without padding and without invalid
// bit patterns, which is what `bytemuck::Pod` asserts.
unsafe impl<T: Pod> aya::Pod for Bytes<T> {}

/// The error of an operation on the map of this name.
pub(super) fn failed(map: &'static str, source: MapError) -> DatapathError {
    DatapathError::Map { map, source: Box::new(source) }
}

/// The error if the loaded object has no map of this name, or one of another type.
pub(super) fn missing(map: &'static str) -> DatapathError {
    failed(map, MapError::InvalidName { name: map.to_owned() })
}

/// The result of the removal or replacement of an entry: it is no error if there is none.
pub(super) fn if_there(done: Result<(), MapError>) -> Result<(), MapError> {
    match done {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        done => done,
    }
}

/// Takes the map `name` out of the loaded object, as type `M`.
pub(super) fn take_map<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, DatapathError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| missing(name))?;
    M::try_from(map).map_err(|source| failed(name, source))
}

/// A second handle of the hash map `name` of the loaded object, before that is taken: aya's map type
/// does not lend its file descriptor.
pub(super) fn second_handle(ebpf: &Ebpf, name: &'static str) -> Result<MapData, DatapathError> {
    let failed = |source| failed(name, source);
    match ebpf.map(name) {
        Some(Map::HashMap(data) | Map::LruHashMap(data)) => {
            let fd = data.fd().as_fd().try_clone_to_owned();
            MapData::from_fd(fd.map_err(|error| failed(error.into()))?).map_err(failed)
        }
        _ => Err(missing(name)),
    }
}
