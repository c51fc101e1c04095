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
use aya_obj::generated::{XDP_FLAGS_DRV_MODE, bpf_attach_type, bpf_link_type};
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
    /// `from_host` on a gateway device.
    Gateway,
    /// `from_loopback` on the loopback device.
    Loopback,
    /// `from_client` on a client link.
    Client,
}

impl Attachment {
    pub(super) const ALL: &'static [Self] = &[
        Self::Container,
        Self::Netkit,
        Self::Uplink,
        Self::UplinkXdp,
        Self::Gateway,
        Self::Loopback,
        Self::Client,
    ];

    const fn program(self) -> &'static str {
        match self {
            Self::Container | Self::Netkit => programs::FROM_CONTAINER,
            Self::Uplink => programs::FROM_UNDERLAY,
            Self::UplinkXdp => programs::FROM_UNDERLAY_XDP,
            Self::Gateway => programs::FROM_HOST,
            Self::Loopback => programs::FROM_LOOPBACK,
            Self::Client => programs::FROM_CLIENT,
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Container => "container-",
            Self::Netkit => "netkit-",
            Self::Uplink => "uplink-",
            Self::UplinkXdp => "uplink-xdp-",
            Self::Gateway => "gateway-",
            Self::Loopback => "loopback-",
            Self::Client => "client-",
        }
    }

    /// The hook of the interface, and the flags of the attachment.
    const fn hook(self) -> (bpf_attach_type, u32) {
        match self {
            Self::Container | Self::Uplink | Self::Loopback | Self::Client => {
                (bpf_attach_type::BPF_TCX_INGRESS, 0)
            }
            Self::Gateway => (bpf_attach_type::BPF_TCX_EGRESS, 0),
            Self::Netkit => (bpf_attach_type::BPF_NETKIT_PEER, 0),
            Self::UplinkXdp => (bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE),
        }
    }

    /// The kernel's type of the link.
    const fn kind(self) -> bpf_link_type {
        match self {
            Self::Container | Self::Uplink | Self::Gateway | Self::Loopback | Self::Client => {
                bpf_link_type::BPF_LINK_TYPE_TCX
            }
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
pub(super) type Held = BTreeMap<(Attachment, u32), OwnedFd>;

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

/// Replaces the program of a pinned link by the loaded one. The pin of a link whose program is
/// detached, or whose interface is gone, is removed. Returns the link; `None` if no live link is
/// pinned.
pub(super) fn replace(
    ebpf: &Ebpf,
    dir: &Path,
    attachment: Attachment,
    ifindex: u32,
) -> Result<Option<OwnedFd>, DatapathError> {
    let pin = attachment.pin(dir, ifindex);
    let link = match pins::open(&pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(ifindex, "open pinned link", "bpf_obj_get", error)),
    };
    let checked = pins::link_info(link.as_fd()).and_then(|info| {
        let right = info.type_ == attachment.kind() as u32;
        right.then_some(()).ok_or_else(|| io::Error::other("the link is of another kind"))
    });
    checked.map_err(|error| refused(ifindex, "open pinned link", "bpf_obj_get_info", error))?;
    match link::update(link.as_fd(), program_fd(ebpf, attachment)?) {
        Ok(()) => Ok(Some(link)),
        Err(error) if error.raw_os_error() == Some(Errno::ENOLINK as i32) => {
            bpffs::remove_file(&pin)?;
            Ok(None)
        }
        Err(error) => Err(refused(ifindex, "replace program", "bpf_link_update", error)),
    }
}

/// Attaches the program and pins the link, unless a live link is pinned already. Returns the link.
pub(super) fn attach(
    ebpf: &Ebpf,
    dir: &Path,
    attachment: Attachment,
    ifindex: u32,
) -> Result<OwnedFd, DatapathError> {
    if let Some(link) = replace(ebpf, dir, attachment, ifindex)? {
        return Ok(link);
    }
    if attachment == Attachment::UplinkXdp {
        // An interface has one XDP program: the program of another ABI version must be
        // detached first. No frame passes unchecked meanwhile: tcx checks again.
        release_other_versions(dir, ifindex)?;
    }
    let (hook, flags) = attachment.hook();
    let link = link::create(program_fd(ebpf, attachment)?, ifindex, hook, flags)
        .map_err(|error| refused(ifindex, "attach", "bpf_link_create", error))?;
    pin(link.as_fd(), dir, attachment, ifindex)?;
    Ok(link)
}

/// Pins a link.
pub(super) fn pin(
    link: BorrowedFd<'_>,
    dir: &Path,
    attachment: Attachment,
    ifindex: u32,
) -> Result<(), DatapathError> {
    let pinned = pins::pin(link, &attachment.pin(dir, ifindex));
    pinned.map_err(|error| refused(ifindex, "pin link", "bpf_obj_pin", error))
}

/// Whether a link still attaches its program to an interface.
pub(super) fn attaches(link: BorrowedFd<'_>, ifindex: u32) -> Result<bool, DatapathError> {
    let attaches = pins::attaches(link);
    attaches.map_err(|error| refused(ifindex, "look at link", "bpf_obj_get_info", error))
}

/// Detaches the program of a link.
pub(super) fn detach(link: BorrowedFd<'_>, ifindex: u32) -> Result<(), DatapathError> {
    link::detach(link).map_err(|error| refused(ifindex, "detach", "bpf_link_detach", error))
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
