//! Device pairs: a frame that one end transmits is received by the other.

use std::{
    fmt,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoNetkit, InfoVeth, LinkAttribute, LinkInfo, NetkitMode, NetkitPolicy,
};

use super::{
    Link, Netlink, NetlinkError, Result, check_ifname,
    link::{check_mtu, named},
};
use crate::{model::MacAddr, netns::unnamed_netns};

/// Kind of a device pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PairKind {
    /// `veth`: two Ethernet devices and a queue between them.
    #[default]
    Veth,
    /// `netkit`: a pair that runs a BPF program on transmit, since Linux 6.7.
    Netkit,
}

impl PairKind {
    /// The kernel's name of the kind.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Netkit => "netkit",
        }
    }

    /// The kind of the pair of which `link` is one end. `None` if it is of no pair.
    pub fn of(link: &Link) -> Option<Self> {
        let is = |kind: &Self| link.kind.as_deref() == Some(kind.name());
        [Self::Veth, Self::Netkit].into_iter().find(is)
    }
}

impl fmt::Display for PairKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Parameters of a new pair.
#[derive(Clone, Copy, Debug)]
pub struct PairSpec<'a> {
    /// Kind of the pair.
    pub kind: PairKind,
    /// Name of the end in the handle's namespace.
    pub name: &'a str,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// MAC of the other end.
    pub peer_mac: MacAddr,
    /// MTU of both ends.
    pub mtu: u32,
    /// Namespace of the other end.
    pub peer_netns: BorrowedFd<'a>,
}

impl Netlink {
    /// Makes a pair. The other end is created in its namespace with its final name, MAC and MTU in
    /// the same request, so that a failure leaves nothing behind. Both ends are down. Returns the
    /// index of the end in this namespace.
    ///
    /// Of a netkit pair this end is the primary one, to which programs are attached. A packet from
    /// the other end is dropped unless a program passes it.
    ///
    /// # Errors
    /// [`NetlinkError::NameTaken`] names the end whose name is taken; the kernel does not have the
    /// kind.
    pub async fn create_pair(&self, spec: &PairSpec<'_>) -> Result<u32> {
        check_ifname(spec.name)?;
        check_ifname(spec.peer_name)?;
        check_mtu(spec.name, spec.mtu)?;
        let mut peer = named(spec.peer_name);
        peer.attributes.extend([
            LinkAttribute::Address(spec.peer_mac.0.to_vec()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::NetNsFd(spec.peer_netns.as_raw_fd()),
        ]);
        let (kind, data) = match spec.kind {
            PairKind::Veth => (InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(peer))),
            PairKind::Netkit => (
                InfoKind::Netkit,
                InfoData::Netkit(vec![
                    InfoNetkit::Mode(NetkitMode::L2),
                    InfoNetkit::Policy(NetkitPolicy::Pass),
                    InfoNetkit::PeerPolicy(NetkitPolicy::Drop),
                    InfoNetkit::Peer(peer),
                ]),
            ),
        };
        let mut message = named(spec.name);
        message.attributes.extend([
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
        ]);
        match self.create(spec.name, message).await {
            // The kernel does not report which of the two names is taken.
            Err(NetlinkError::NameTaken(_)) if self.link(spec.name).await?.is_none() => {
                Err(NetlinkError::NameTaken(spec.peer_name.to_owned()))
            }
            other => other,
        }
    }
}

/// Tests whether the kernel can make a pair of this kind. It makes one in a new namespace without a
/// name, and the pair ends with that namespace.
///
/// # Errors
/// The kernel does not have the kind, or cannot make a namespace.
pub async fn try_pair(kind: PairKind) -> Result<()> {
    let netns = unnamed_netns()
        .map_err(|source| NetlinkError::kernel("making a network namespace", source))?;
    let netlink = Netlink::in_netns(netns.as_fd())?;
    let spec = PairSpec {
        kind,
        name: "cvtry0",
        peer_name: "cvtry1",
        peer_mac: MacAddr([0x02, 0x43, 0x56, 0, 0, 1]),
        mtu: 1500,
        peer_netns: netns.as_fd(),
    };
    netlink.create_pair(&spec).await.map(drop)
}
