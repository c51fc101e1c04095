//! Programs of Culvert, of all versions, as the kernel lists them.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    maps::MapInfo,
    programs::{ProgramInfo, loaded_programs},
};
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_link_type};
use culvert_common::abi::{names, programs};

use crate::{
    datapath::{
        PINNED_MAPS, pins,
        syscall::{attributes, bpf},
    },
    netlink::Link,
};

/// Names of the programs of all versions.
const PROGRAMS: [&str; 8] = [
    programs::FROM_CONTAINER,
    programs::FROM_UNDERLAY,
    programs::FROM_HOST,
    programs::FROM_LOOPBACK,
    programs::FROM_CLIENT,
    programs::FROM_CLIENT_L3,
    programs::TO_UNDERLAY,
    programs::FROM_UNDERLAY_XDP,
];
/// The greatest number of programs at a hook (`bpf_mprog_max`).
const MOST: usize = 64;
/// Bytes of a program's name that the kernel keeps.
const NAME_LEN: usize = 15;

/// The names of all loaded programs of Culvert, of all versions and in all network namespaces, by
/// identifier.
pub(super) fn our_programs() -> BTreeMap<u32, &'static str> {
    // The iterator has an error for a program that was unloaded meanwhile.
    let programs = loaded_programs().filter_map(Result::ok);
    programs.filter_map(|info| Some((info.id(), our_name(&info)?))).collect()
}

/// The name of a program of Culvert. `None`: the program is not Culvert's.
fn our_name(info: &ProgramInfo) -> Option<&'static str> {
    let name = PROGRAMS.iter().find(|name| {
        let kept = name.as_bytes().get(..NAME_LEN).unwrap_or(name.as_bytes());
        kept == info.name()
    })?;
    // A program is Culvert's if it has the map of the counters and two more maps of Culvert.
    // Programs of others may have one map with such a name.
    let maps = maps_of(info);
    let counted = maps.iter().any(|map| is_named(map, names::STATS));
    let ours = PINNED_MAPS.iter().filter(|name| maps.iter().any(|map| is_named(map, name)));
    (counted && ours.count() >= 3).then_some(*name)
}

pub(super) fn is_named(map: &MapInfo, name: &str) -> bool {
    map.name() == name.as_bytes()
}

/// The maps of a program that can be read.
pub(super) fn maps_of(program: &ProgramInfo) -> Vec<MapInfo> {
    let ids = program.map_ids().ok().flatten().unwrap_or_default();
    ids.into_iter().filter_map(|id| MapInfo::from_id(id).ok()).collect()
}

/// The identifiers of programs and links at an interface: at tcx, at the far side of a netkit pair,
/// and the XDP program if it is one of `ours`.
pub(super) fn attached(
    interface: &Link,
    ours: &BTreeMap<u32, &'static str>,
) -> io::Result<Vec<(u32, u32)>> {
    let ifindex = interface.index;
    let mut found = Vec::new();
    for hook in [bpf_attach_type::BPF_TCX_INGRESS, bpf_attach_type::BPF_TCX_EGRESS] {
        match query(ifindex, hook) {
            Ok(programs) => found.extend(programs),
            // The interface is gone.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    // For an interface that is not a netkit device the kernel returns an error.
    found.extend(query(ifindex, bpf_attach_type::BPF_NETKIT_PEER).unwrap_or_default());
    if let Some(program) = interface.xdp_program.filter(|id| ours.contains_key(id)) {
        found.extend(xdp_link(program, ifindex)?.map(|link| (program, link)));
    }
    // A program without a link was attached by another tool.
    found.retain(|(_, link)| *link != 0);
    Ok(found)
}

/// The identifiers of the programs at a hook of an interface, and of their links, in the order of
/// execution (`BPF_PROG_QUERY`).
fn query(ifindex: u32, hook: bpf_attach_type) -> io::Result<Vec<(u32, u32)>> {
    let (mut programs, mut links) = ([0_u32; MOST], [0_u32; MOST]);
    let mut attr = attributes();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = hook as u32;
    attr.query.prog_ids = (&raw mut programs) as u64;
    attr.query.link_ids = (&raw mut links) as u64;
    attr.query.__bindgen_anon_2.count = MOST as u32;
    // SAFETY: the command writes at most `count` numbers to each of the arrays, which have as many
    // and outlive the call.
    unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) }?;
    // SAFETY: both members of the union are integers of the same size.
    let count = unsafe { attr.query.__bindgen_anon_2.count };
    Ok(programs.into_iter().zip(links).take(count as usize).collect())
}

/// The link of an XDP program to an interface. Links of other network namespaces can have the same
/// interface index, but not the same program: each agent loads its own.
fn xdp_link(program: u32, ifindex: u32) -> io::Result<Option<u32>> {
    const XDP: u32 = bpf_link_type::BPF_LINK_TYPE_XDP as u32;
    let mut id = 0;
    loop {
        let mut attr = attributes();
        attr.__bindgen_anon_6.__bindgen_anon_1.start_id = id;
        // SAFETY: `attr` leads to no memory.
        match unsafe { bpf(bpf_cmd::BPF_LINK_GET_NEXT_ID, &mut attr) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            answer => answer?,
        };
        // SAFETY: the member is an integer, for which all bytes are a value.
        id = unsafe { attr.__bindgen_anon_6.next_id };
        // For a link that was removed meanwhile the kernel returns an error.
        let Ok(info) = open_link(id).and_then(|link| pins::link_info(link.as_fd())) else {
            continue;
        };
        if info.type_ == XDP && info.prog_id == program && pins::ifindex_of(&info) == Some(ifindex)
        {
            return Ok(Some(id));
        }
    }
}

/// Opens a link by its identifier.
pub(super) fn open_link(id: u32) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    attr.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    // SAFETY: `attr` leads to no memory.
    pins::owned(unsafe { bpf(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut attr) }?)
}
