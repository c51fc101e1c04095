//! Attachments, each a pinned BPF link.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::TcAttachOptions,
    },
};
use culvert_common::abi::programs;

use super::{bpffs, error::DatapathError, netkit, pins};

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

    fn pin(self, dir: &Path, ifindex: u32) -> PathBuf {
        dir.join(format!("{}{ifindex}", self.prefix()))
    }
}

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

/// Replaces the program of an existing link by the loaded one. The pin of a link whose
/// interface is gone is removed. Returns whether there is a live link.
pub(super) fn replace(
    ebpf: &mut Ebpf,
    dir: &Path,
    attachment: Attachment,
    ifindex: u32,
) -> Result<bool, DatapathError> {
    let pin = attachment.pin(dir, ifindex);
    if !pin.exists() {
        return Ok(false);
    }
    let updated = if attachment == Attachment::Netkit {
        update_netkit(ebpf, &pin)
    } else {
        let refused = refused(ifindex, "open pinned link");
        let link = FdLink::from(PinnedLink::from_pin(&pin).map_err(|e| refused(Box::new(e)))?);
        update(ebpf, attachment, link)
    };
    match updated {
        Ok(()) => Ok(true),
        // ENOLINK: the interface was removed, and the attachment with it.
        Err(UpdateError::Gone) => {
            bpffs::remove_file(&pin)?;
            Ok(false)
        }
        Err(UpdateError::Datapath(error)) => Err(error),
        Err(UpdateError::Program(error)) => {
            Err(refused(ifindex, "replace program")(Box::new(error)))
        }
    }
}

/// Why a program is no longer attached, as text. `None`: the program is attached, or the interface
/// is gone.
pub(super) fn lost(dir: &Path, attachment: Attachment, ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?;
    let what = match pins::is_attached(&attachment.pin(dir, ifindex)) {
        Ok(true) => return None,
        Ok(false) => "was detached".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "had lost its pin".to_owned(),
        Err(error) => format!("had a pin that cannot be used ({error})"),
    };
    Some(format!("{} on {} {what}", attachment.program(), name.to_string_lossy()))
}

/// Attaches the program and pins the link, unless a live link is pinned already.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    dir: &Path,
    attachment: Attachment,
    ifindex: u32,
) -> Result<(), DatapathError> {
    if replace(ebpf, dir, attachment, ifindex)? {
        return Ok(());
    }
    if attachment == Attachment::UplinkXdp {
        // An interface has one XDP program: the program of another ABI version must be
        // detached first. No frame passes unchecked meanwhile: tcx checks again.
        release_other_versions(dir, ifindex)?;
    }
    let refused = refused(ifindex, "attach");
    let name = nix::net::if_::if_indextoname(ifindex)
        .map_err(|errno| refused(Box::new(errno)))?
        .to_string_lossy()
        .into_owned();
    let pin = attachment.pin(dir, ifindex);
    let link: FdLink = match attachment {
        Attachment::Netkit => {
            let program: &mut SchedClassifier = program(ebpf, attachment.program())?;
            let fd = program.fd().map_err(|error| refused(Box::new(error)))?;
            return netkit::attach(fd.as_fd(), ifindex, &pin)
                .map_err(|error| refused(Box::new(error)));
        }
        Attachment::Container
        | Attachment::Uplink
        | Attachment::Gateway
        | Attachment::Loopback
        | Attachment::Client => {
            let program: &mut SchedClassifier = program(ebpf, attachment.program())?;
            let way = match attachment {
                Attachment::Gateway => TcAttachType::Egress,
                _ => TcAttachType::Ingress,
            };
            let link = program
                .attach_with_options(&name, way, TcAttachOptions::TcxOrder(LinkOrder::default()))
                .and_then(|id| program.take_link(id))
                .map_err(|error| refused(Box::new(error)))?;
            FdLink::try_from(link).map_err(|error| refused(Box::new(error)))?
        }
        Attachment::UplinkXdp => {
            let program: &mut Xdp = program(ebpf, attachment.program())?;
            let link = program
                .attach(&name, XdpMode::Driver)
                .and_then(|id| program.take_link(id))
                .map_err(|error| refused(Box::new(error)))?;
            FdLink::try_from(link).map_err(|error| refused(Box::new(error)))?
        }
    };
    link.pin(pin).map_err(|error| refused(Box::new(error)))?;
    Ok(())
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

/// Removes the pin of a link, which detaches the program. It is no error if there is none.
pub(super) fn detach(
    dir: &Path,
    attachment: Attachment,
    ifindex: u32,
) -> Result<(), DatapathError> {
    bpffs::remove_file(&attachment.pin(dir, ifindex))
}

/// The program `name` of the object, as type `P`.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, DatapathError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| DatapathError::Load {
        what: format!("program {name}"),
        source,
    };
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| failed("it is not in the object: build again".into()))?;
    program.try_into().map_err(|error: ProgramError| failed(Box::new(error)))
}

enum UpdateError {
    Gone,
    Program(ProgramError),
    Datapath(DatapathError),
}

impl From<ProgramError> for UpdateError {
    fn from(error: ProgramError) -> Self {
        match &error {
            ProgramError::SyscallError(syscall)
                if syscall.io_error.raw_os_error() == Some(nix::errno::Errno::ENOLINK as i32) =>
            {
                Self::Gone
            }
            _ => Self::Program(error),
        }
    }
}

fn update_netkit(ebpf: &mut Ebpf, pin: &Path) -> Result<(), UpdateError> {
    let program: &mut SchedClassifier =
        program(ebpf, Attachment::Netkit.program()).map_err(UpdateError::Datapath)?;
    netkit::update(program.fd()?.as_fd(), pin).map_err(|io_error: io::Error| {
        let call = "bpf_link_update";
        ProgramError::SyscallError(aya::sys::SyscallError { call, io_error }).into()
    })
}

fn update(ebpf: &mut Ebpf, attachment: Attachment, link: FdLink) -> Result<(), UpdateError> {
    // The pin of this name is of another program.
    let wrong_kind = |_: LinkError| UpdateError::Program(ProgramError::UnexpectedProgramType);
    match attachment {
        Attachment::Container
        | Attachment::Uplink
        | Attachment::Gateway
        | Attachment::Loopback
        | Attachment::Client => {
            let program: &mut SchedClassifier =
                program(ebpf, attachment.program()).map_err(UpdateError::Datapath)?;
            let id = program.attach_to_link(link.try_into().map_err(wrong_kind)?)?;
            // Closes this process's descriptor; the pin keeps the link.
            program.take_link(id)?;
        }
        // aya has no type for netkit links.
        Attachment::Netkit => return Err(wrong_kind(LinkError::InvalidLink)),
        Attachment::UplinkXdp => {
            let program: &mut Xdp =
                program(ebpf, attachment.program()).map_err(UpdateError::Datapath)?;
            let id = program.attach_to_link(link.try_into().map_err(wrong_kind)?)?;
            program.take_link(id)?;
        }
    }
    Ok(())
}

fn refused(
    ifindex: u32,
    what: &'static str,
) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> DatapathError {
    move |source| DatapathError::Attach {
        interface: nix::net::if_::if_indextoname(ifindex)
            .map_or_else(|_| format!("#{ifindex}"), |name| name.to_string_lossy().into_owned()),
        what,
        source,
    }
}
