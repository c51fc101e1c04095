//! XDP support of a driver, from the generic netlink family `netdev`
//! (Documentation/netlink/specs/netdev.yaml). Attaching a program would show it too, but would stop
//! the device for a moment.
//! `netlink-packet-generic` 0.5 does not replace this file. It returns an error (`Unknown NLA
//! type`) if the controller's answer has an attribute that the crate does not know, so a later
//! kernel would seem to have no XDP. Without the crate's decoding of that answer, three `impl`s of
//! 35 lines would replace `request`, of 17. `genetlink` 0.3 depends on netlink-proto 0.13,
//! rtnetlink on 0.14.

use rtnetlink::{
    packet_core::NlasIterator,
    sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC},
};

use super::Netlink;
use crate::netns::run_in;

/// Lengths of `struct nlmsghdr` and `struct genlmsghdr`.
const NLMSG_LEN: usize = 16;
const GENL_LEN: usize = 4;
const NLM_F_REQUEST: u16 = 1;
/// The controller, which maps the names of families to numbers, and its request
/// (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Constants of linux/netdev.h.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;

impl Netlink {
    /// Whether an interface's driver runs XDP programs. `None` if the kernel does not report it
    /// (before Linux 6.3).
    pub fn native_xdp(&self, ifindex: u32) -> Option<bool> {
        run_in(self.netns(), || {
            let socket = Socket::new(NETLINK_GENERIC).ok()?;
            // The kernel has queued the answer when the call that sends the request returns.
            socket.set_non_blocking(true).ok()?;
            let id =
                ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0")?;
            let family = attribute(&id, CTRL_ATTR_FAMILY_ID)?;
            let family = u16::from_ne_bytes(family.try_into().ok()?);
            let index = ifindex.to_ne_bytes();
            let device = ask(&socket, family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index)?;
            let features = attribute(&device, NETDEV_A_DEV_XDP_FEATURES)?;
            Some(u64::from_ne_bytes(features.try_into().ok()?) & NETDEV_XDP_ACT_BASIC != 0)
        })
        .ok()
        .flatten()
    }
}

/// Sends a request with one attribute. Returns the answer.
fn ask(socket: &Socket, family: u16, command: u8, kind: u16, value: &[u8]) -> Option<Vec<u8>> {
    let request = request(family, command, kind, value)?;
    socket.send_to(&request, &SocketAddr::new(0, 0), 0).ok()?;
    let (answer, _) = socket.recv_from_full().ok()?;
    let answered = answer.get(4..6)?;
    // An error has the type NLMSG_ERROR.
    (answered == family.to_ne_bytes()).then_some(answer)
}

/// `struct nlmsghdr`, `struct genlmsghdr` and one attribute.
fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Option<Vec<u8>> {
    let attribute = u16::try_from(4 + value.len()).ok()?;
    let padded = value.len().next_multiple_of(4);
    let len = u32::try_from(NLMSG_LEN + GENL_LEN + 4 + padded).ok()?;
    let mut bytes = Vec::new();
    bytes.extend(len.to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(attribute.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len() + padded - value.len(), 0);
    Some(bytes)
}

/// The value of an attribute in an answer.
fn attribute(answer: &[u8], kind: u16) -> Option<Vec<u8>> {
    let attributes = answer.get(NLMSG_LEN + GENL_LEN..)?;
    let mut attributes = NlasIterator::new(attributes).flatten();
    attributes.find(|each| each.kind() == kind).map(|each| each.value().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes = request(0x1234, 1, 7, b"seven\0").unwrap();
        assert_eq!(bytes.len(), 16 + 4 + 4 + 8);
        assert_eq!(bytes[..4], 32_u32.to_ne_bytes());
        assert_eq!(attribute(&bytes, 7).as_deref(), Some(&b"seven\0"[..]));
        assert_eq!(attribute(&bytes, 8), None);
        for len in 0..40 {
            assert_eq!(attribute(&vec![0xff; len], 7), None);
        }
    }
}
