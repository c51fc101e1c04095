//! Attachments, each a BPF link that is pinned and that the agent holds open.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{Program, ProgramError},
    sys::SyscallError,
};
use aya_obj::generated::{XDP_FLAGS_DRV_MODE, bpf_attach_type, bpf_link_info, bpf_link_type};
use culvert_common::abi::programs;
use nix::errno::Errno;

use super::{bpffs, error::DatapathError, link, pins};

/// Kind of a link: the program, the device and the name of the pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Attachment {
    /// `from_container` on the host side of a container's pair.
    Container,
    /// `from_container` on the container's side of a netkit pair (`BPF_NETKIT_PEER`).
    Netkit,
    /// `from_underlay` on an uplink.
    Uplink,
    /// `from_underlay_xdp` on an uplink.
    UplinkXdp,
    /// `to_underlay` on an uplink.
    UplinkOut,
    /// `from_host` on a gateway device.
    Gateway,
    /// `from_loopback` on the loopback device.
    Loopback,
    /// `from_client` on a client link.
    Client,
    /// `from_client_l3` on a client link without an Ethernet header.
    ClientL3,
}

impl Attachment {
    pub(super) const ALL: &'static [Self] = &[
        Self::Container,
        Self::Netkit,
        Self::Uplink,
        Self::UplinkXdp,
        Self::UplinkOut,
        Self::Gateway,
        Self::Loopback,
        Self::Client,
        Self::ClientL3,
    ];

    const fn program(self) -> &'static str {
        match self {
            Self::Container | Self::Netkit => programs::FROM_CONTAINER,
            Self::Uplink => programs::FROM_UNDERLAY,
            Self::UplinkXdp => programs::FROM_UNDERLAY_XDP,
            Self::UplinkOut => programs::TO_UNDERLAY,
            Self::Gateway => programs::FROM_HOST,
            Self::Loopback => programs::FROM_LOOPBACK,
            Self::Client => programs::FROM_CLIENT,
            Self::ClientL3 => programs::FROM_CLIENT_L3,
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Container => "container-",
            Self::Netkit => "netkit-",
            Self::Uplink => "uplink-",
            Self::UplinkXdp => "uplink-xdp-",
            Self::UplinkOut => "uplink-out-",
            Self::Gateway => "gateway-",
            Self::Loopback => "loopback-",
            Self::Client => "client-",
            Self::ClientL3 => "client-l3-",
        }
    }

    /// The hook of the interface, and the flags of the attachment.
    const fn hook(self) -> (bpf_attach_type, u32) {
        match self {
            Self::Container | Self::Uplink | Self::Loopback | Self::Client | Self::ClientL3 => {
                (bpf_attach_type::BPF_TCX_INGRESS, 0)
            }
            Self::Gateway | Self::UplinkOut => (bpf_attach_type::BPF_TCX_EGRESS, 0),
            Self::Netkit => (bpf_attach_type::BPF_NETKIT_PEER, 0),
            Self::UplinkXdp => (bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE),
        }
    }

    /// The kernel's type of the link.
    const fn kind(self) -> bpf_link_type {
        match self {
            Self::Container
            | Self::Uplink
            | Self::UplinkOut
            | Self::Gateway
            | Self::Loopback
            | Self::Client
            | Self::ClientL3 => bpf_link_type::BPF_LINK_TYPE_TCX,
            Self::Netkit => bpf_link_type::BPF_LINK_TYPE_NETKIT,
            Self::UplinkXdp => bpf_link_type::BPF_LINK_TYPE_XDP,
        }
    }

    /// Path of the pin.
    pub(super) fn pin(self, dir: &Path, ifindex: u32) -> PathBuf {
        dir.join(format!("{}{ifindex}", self.prefix()))
    }

    /// The program and the interface, in words.
    pub(super) fn describe(self, ifindex: u32) -> String {
        format!("{} on {}", self.program(), ifname(ifindex))
    }
}

/// The links that a process holds open, by kind and interface index.
pub(super) type HeldLinks = BTreeMap<(Attachment, u32), OwnedFd>;

/// Interface indices with a pinned link of this kind, in order.
pub(super) fn pinned(dir: &Path, attachment: Attachment) -> Result<Vec<u32>, DatapathError> {
    let mut indices: Vec<u32> = bpffs::list(dir)?
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.strip_prefix(attachment.prefix()))
        .filter_map(|index| index.parse().ok())
        .collect();
    indices.sort_unstable();
    Ok(indices)
}

/// What was found at the path of a pin.
pub(super) enum Pinned {
    /// The link of the attachment, which has the loaded program now.
    Link(OwnedFd),
    /// Nothing, or a link without a device, whose pin was removed.
    Nothing,
    /// Another object, whose pin was removed.
    Other,
}

/// Replaces the program of a pinned link by the loaded one. The pin of anything else is removed.
pub(super) fn replace(
    ebpf: &Ebpf,
    dir: &Path,
    attachment: Attachment,
    ifindex: u32,
) -> Result<Pinned, DatapathError> {
    let pin = attachment.pin(dir, ifindex);
    let link = match pins::open(&pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A symbolic link that leads nowhere.
            bpffs::remove_file(&pin)?;
            return Ok(Pinned::Nothing);
        }
        Err(error) => return Err(pins::cannot_open(&pin, error)),
    };
    let found = match target(&info(link.as_fd(), ifindex)?, attachment, ifindex) {
        Target::Device if update(ebpf, link.as_fd(), attachment, ifindex)? => {
            return Ok(Pinned::Link(link));
        }
        Target::Device | Target::Nothing => Pinned::Nothing,
        Target::Other => Pinned::Other,
    };
    bpffs::remove_file(&pin)?;
    Ok(found)
}

/// What a link, or what is in its place, leads to.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// The device and the hook of the attachment.
    Device,
    /// No device: the link was detached, or the device was removed.
    Nothing,
    /// Another device or hook; or the object is no such link.
    Other,
}

fn target(info: &bpf_link_info, attachment: Attachment, ifindex: u32) -> Target {
    if info.type_ != attachment.kind() as u32 {
        return Target::Other;
    }
    let (hook, _) = attachment.hook();
    match pins::ifindex_of(info) {
        Some(0) => Target::Nothing,
        Some(found)
            if found == ifindex && pins::hook_of(info).is_none_or(|of| of == hook as u32) =>
        {
            Target::Device
        }
        _ => Target::Other,
    }
}

/// Attaches the program and pins the link. Returns the link.
pub(super) fn attach(
    ebpf: &Ebpf,
    dir: &Path,
    attachment: Attachment,
    ifindex: u32,
) -> Result<OwnedFd, DatapathError> {
    if attachment == Attachment::UplinkXdp {
        // An interface has one XDP program: the program of another ABI version must be
        // detached first. No frame passes unchecked meanwhile: tcx checks again.
        release_other_versions(dir, ifindex)?;
    }
    let (hook, flags) = attachment.hook();
    let link = link::create(program_fd(ebpf, attachment)?, ifindex, hook, flags)
        .map_err(|error| refused(ifindex, "attach", "bpf_link_create", error))?;
    pins::pin(link.as_fd(), &attachment.pin(dir, ifindex))
        .map_err(|error| refused(ifindex, "pin link", "bpf_obj_pin", error))?;
    Ok(link)
}

/// The kernel's information about a link.
pub(super) fn info(link: BorrowedFd<'_>, ifindex: u32) -> Result<bpf_link_info, DatapathError> {
    let info = pins::link_info(link);
    info.map_err(|error| refused(ifindex, "look at link", "bpf_obj_get_info", error))
}

/// Replaces the program of a link by the loaded one. Returns whether the link attaches it to a
/// device.
pub(super) fn update(
    ebpf: &Ebpf,
    link: BorrowedFd<'_>,
    attachment: Attachment,
    ifindex: u32,
) -> Result<bool, DatapathError> {
    match link::update(link, program_fd(ebpf, attachment)?) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::ENOLINK as i32) => Ok(false),
        Err(error) => Err(refused(ifindex, "replace program", "bpf_link_update", error)),
    }
}

/// Detaches the program of a link.
pub(super) fn detach(link: BorrowedFd<'_>, ifindex: u32) -> Result<(), DatapathError> {
    link::detach(link).map_err(|error| refused(ifindex, "detach", "bpf_link_detach", error))
}

/// The identifier of the loaded program of each kind of link.
pub(super) fn program_ids(ebpf: &Ebpf) -> Result<BTreeMap<Attachment, u32>, DatapathError> {
    let id = |attachment: Attachment| -> Result<_, DatapathError> {
        let name = attachment.program();
        let program = ebpf.program(name).ok_or_else(|| missing(name))?;
        let info = program.info().map_err(|error| unusable(name, error))?;
        Ok((attachment, info.id()))
    };
    Attachment::ALL.iter().copied().map(id).collect()
}

/// Removes the XDP links to an interface that other ABI versions have pinned.
fn release_other_versions(dir: &Path, ifindex: u32) -> Result<(), DatapathError> {
    let Some((version, bpffs)) = dir.parent().and_then(|own| Some((own, own.parent()?))) else {
        return Ok(());
    };
    // A BPF file system also has files that the kernel makes.
    let others = bpffs::list(bpffs)?;
    for other in others.iter().filter(|dir| *dir != version && bpffs::version_of(dir).is_some()) {
        bpffs::remove_file(&Attachment::UplinkXdp.pin(&other.join("links"), ifindex))?;
    }
    Ok(())
}

/// The program `name` of the object, as type `P`.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, DatapathError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    program.try_into().map_err(|error: ProgramError| unusable(name, error))
}

/// The file descriptor of the loaded program.
fn program_fd(ebpf: &Ebpf, attachment: Attachment) -> Result<BorrowedFd<'_>, DatapathError> {
    let name = attachment.program();
    let program = ebpf.program(name).ok_or_else(|| missing(name))?;
    let fd = program.fd().map_err(|error| unusable(name, error))?;
    Ok(fd.as_fd())
}

/// The error of a program that the object does not have.
fn missing(program: &str) -> DatapathError {
    DatapathError::Load {
        what: format!("program {program}"),
        source: "it is not in the object: build again".into(),
    }
}

/// The error of a program that is not loaded, or of another type.
fn unusable(program: &str, error: ProgramError) -> DatapathError {
    DatapathError::Load { what: format!("program {program}"), source: Box::new(error) }
}

/// The error of a system call about an attachment.
fn refused(
    ifindex: u32,
    what: &'static str,
    call: &'static str,
    io_error: io::Error,
) -> DatapathError {
    DatapathError::Attach {
        interface: ifname(ifindex),
        what,
        source: Box::new(SyscallError { call, io_error }),
    }
}

/// The name of an interface of the calling thread's namespace.
fn ifname(ifindex: u32) -> String {
    nix::net::if_::if_indextoname(ifindex)
        .map_or_else(|_| format!("#{ifindex}"), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any object can be pinned at the path of a link, such as the link of another interface.
    #[test]
    fn only_the_link_of_the_attachment_is_taken_for_it() {
        const TCX: u32 = bpf_link_type::BPF_LINK_TYPE_TCX as u32;
        const XDP: u32 = bpf_link_type::BPF_LINK_TYPE_XDP as u32;
        const INGRESS: u32 = bpf_attach_type::BPF_TCX_INGRESS as u32;
        const EGRESS: u32 = bpf_attach_type::BPF_TCX_EGRESS as u32;
        let info = |kind, ifindex, hook| {
            // SAFETY: a structure of integers, for which all bytes 0 is a value.
            let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
            info.type_ = kind;
            info.__bindgen_anon_1.tcx.ifindex = ifindex;
            info.__bindgen_anon_1.tcx.attach_type = hook;
            info
        };
        for (kind, ifindex, hook, wanted) in [
            (TCX, 7, INGRESS, Target::Device),
            (TCX, 0, INGRESS, Target::Nothing),
            (TCX, 8, INGRESS, Target::Other),
            (TCX, 7, EGRESS, Target::Other),
            (XDP, 7, 0, Target::Other),
            (0, 7, INGRESS, Target::Other),
        ] {
            let found = target(&info(kind, ifindex, hook), Attachment::Uplink, 7);
            assert_eq!(found, wanted, "{kind} {ifindex} {hook}");
        }
        assert_eq!(target(&info(XDP, 7, 0), Attachment::UplinkXdp, 7), Target::Device);
        assert_eq!(target(&info(TCX, 7, EGRESS), Attachment::Gateway, 7), Target::Device);
    }
}
