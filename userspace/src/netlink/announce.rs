//! Announcements of addresses to the containers of this host: gratuitous ARP (RFC 826, RFC 5227 §3)
//! and unsolicited neighbour advertisements (RFC 4861 §7.2.6).

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use culvert_common::datapath::{arp, nd};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{NetlinkError, Result};
use crate::{model::MacAddr, netns::run_in};

/// An address and its MAC, which are announced on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announcement {
    /// ifindex of the interface that sends the announcement.
    pub ifindex: u32,
    /// Address.
    pub ip: IpAddr,
    /// Its MAC.
    pub mac: MacAddr,
}

impl Announcement {
    /// The frame.
    fn frame(&self) -> Vec<u8> {
        let mac = self.mac.0;
        match self.ip {
            IpAddr::V4(ip) => {
                let ip = ip.octets();
                bytemuck::bytes_of(&arp::arp_request_frame(mac, ip, ip)).to_vec()
            }
            IpAddr::V6(ip) => bytemuck::bytes_of(&nd::nd_announcement(ip.octets(), mac)).to_vec(),
        }
    }
}

/// Sends announcements from a namespace. Announcements that the kernel refuses, because an
/// interface is gone or down, are logged.
///
/// # Errors
/// The kernel refuses a packet socket: nothing was sent.
pub fn announce(netns: BorrowedFd<'_>, announcements: &[Announcement]) -> Result<()> {
    let failed = |error| NetlinkError::kernel("announcing addresses", error);
    run_in(netns, || send_all(announcements))
        .map_err(|error| failed(io::Error::other(error)))?
        .map_err(failed)
}

fn send_all(announcements: &[Announcement]) -> io::Result<()> {
    // A packet socket with protocol 0 receives nothing (packet(7)).
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let mut unsent = 0;
    let mut last = None;
    for announcement in announcements {
        if let Err(error) = send(&socket, announcement) {
            unsent += 1;
            last = Some((announcement.ifindex, error));
        }
    }
    if let Some((ifindex, error)) = last {
        let all = announcements.len();
        tracing::warn!(
            "{unsent} of {all} announcements of addresses were not sent, the last to interface {ifindex}: {error}"
        );
    }
    Ok(())
}

fn send(socket: &OwnedFd, announcement: &Announcement) -> io::Result<()> {
    const LEN: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    let frame = announcement.frame();
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::sa_family_t,
        sll_protocol: 0,
        sll_ifindex: libc::c_int::try_from(announcement.ifindex).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: frame and address outlive the call, and are as long as stated.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            LEN,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
