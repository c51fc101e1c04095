//! Pairs of interfaces: what one sends, the other one receives.

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

/// What a pair is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PairKind {
    /// `veth`: two Ethernet devices and a queue between them.
    #[default]
    Veth,
    /// `netkit`: one that runs a BPF program when it transmits, since Linux 6.7.
    Netkit,
}

impl PairKind {
    /// The kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Netkit => "netkit",
        }
    }

    /// What `link` is one end of, if it is of a pair.
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

/// A pair to make.
#[derive(Clone, Copy, Debug)]
pub struct PairSpec<'a> {
    /// What it is made of.
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
    /// Makes a pair, the other end right where it belongs with its final name, MAC and MTU:
    /// one request, so that nothing half made is left. Both ends are down. Returns the index
    /// of the end in this namespace.
    ///
    /// Of a netkit pair this end is the primary one, to which programs are attached, and what
    /// the other end sends is dropped unless a program says otherwise.
    ///
    /// # Errors
    /// [`NetlinkError::NameTaken`] names the end whose name is taken; the kernel does not have
    /// the kind.
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
            // Which of the two names is taken, the kernel does not say.
            Err(NetlinkError::NameTaken(_)) if self.link(spec.name).await?.is_none() => {
                Err(NetlinkError::NameTaken(spec.peer_name.to_owned()))
            }
            other => other,
        }
    }
}

/// Makes a pair in a namespace that nobody else sees and that goes with it.
///
/// # Errors
/// The kernel does not have the kind, or makes no namespaces.
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
