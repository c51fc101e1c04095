//! The interfaces of the lab, and packet sockets on their far ends.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use culvert_tests::{packet, sock::set_int, wire::bind};
use nix::{
    libc,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

/// An interface of the host. The containers' are veths into another namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Interface {
    /// First endpoint of network A.
    A1,
    /// Second endpoint of network A.
    A2,
    /// First endpoint of network B.
    B1,
    /// Second endpoint of network B.
    B2,
    /// The uplink.
    Uplink,
}

impl Interface {
    pub(crate) const ALL: [Self; 5] = [Self::A1, Self::A2, Self::B1, Self::B2, Self::Uplink];

    /// Interface index on the host's side.
    pub(crate) const fn ifindex(self) -> u32 {
        match self {
            Self::A1 => 11,
            Self::A2 => 12,
            Self::B1 => 13,
            Self::B2 => 14,
            Self::Uplink => 20,
        }
    }

    /// Interface index on the far side.
    pub(crate) const fn far_ifindex(self) -> u32 {
        self.ifindex() + 100
    }

    /// Interface name on the host's side.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::A1 => "a1",
            Self::A2 => "a2",
            Self::B1 => "b1",
            Self::B2 => "b2",
            Self::Uplink => "uplink",
        }
    }
}

/// Interface index of network A's gateway device.
pub(crate) const GATEWAY_A: u32 = 30;
/// Interface index of network B's gateway device.
pub(crate) const GATEWAY_B: u32 = 31;
/// Interface index of the client link.
pub(crate) const CLIENT_LINK: u32 = 32;
/// Interface index of the loopback device.
pub(crate) const LOOPBACK: u32 = 1;

/// An interface index that no interface has.
pub(crate) const NO_SUCH_INTERFACE: u32 = 4242;

/// EtherType of the marker frames (IEEE 802, local experimental 2).
const MARKER: u16 = 0x88b6;

/// How long a frame may take from one end of a veth to the other.
const PATIENCE: Duration = Duration::from_secs(10);

/// Length of `struct virtio_net_hdr`.
pub(crate) const VNET_HDR: usize = 10;

/// A raw packet socket on one interface. Opened in the interface's namespace,
/// used from any.
pub(crate) struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a socket that receives what arrives at `ifindex`.
    pub(crate) fn receiving(ifindex: u32) -> Self {
        Self::open(ifindex, u16::try_from(libc::ETH_P_ALL).unwrap())
    }

    /// Opens a socket that only sends through `ifindex`.
    pub(crate) fn sending(ifindex: u32) -> Self {
        Self::open(ifindex, 0)
    }

    fn open(ifindex: u32, protocol: u16) -> Self {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        // Without a protocol the socket receives no frames of other interfaces before `bind`.
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None::<SockProtocol>).unwrap();
        let socket = Self(fd);
        socket.set_option(libc::PACKET_IGNORE_OUTGOING, 1);
        bind(&socket.0, ifindex, protocol)
            .unwrap_or_else(|error| panic!("bind to #{ifindex}: {error}"));
        socket
    }

    fn set_option(&self, option: i32, value: i32) {
        set_int(&self.0, libc::SOL_PACKET, option, value)
            .unwrap_or_else(|error| panic!("packet socket option {option}: {error}"));
    }

    /// Lets frames of `bytes` in all wait to be received, whatever the system's limit is.
    pub(crate) fn receives_up_to(&self, bytes: i32) {
        set_int(&self.0, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
            .unwrap_or_else(|error| panic!("receive buffer of {bytes} bytes: {error}"));
    }

    /// Turns on or off a `virtio_net_hdr` before every frame. The header says how the frame is to
    /// be cut into segments.
    pub(crate) fn segmentation_headers(&self, on: bool) {
        self.set_option(libc::PACKET_VNET_HDR, on.into());
    }

    /// From now on the socket receives only frames with a VLAN tag in their metadata, and one byte
    /// of each.
    pub(crate) fn tagged_only(&self) {
        // `BPF_LD | BPF_W | BPF_ABS` and `BPF_RET | BPF_A` of linux/bpf_common.h: the number of
        // bytes is whether there is a tag, 0 or 1.
        let at = (libc::SKF_AD_OFF + libc::SKF_AD_VLAN_TAG_PRESENT).cast_unsigned();
        let mut code = [
            libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: at },
            libc::sock_filter { code: 0x16, jt: 0, jf: 0, k: 0 },
        ];
        let filter = libc::sock_fprog { len: 2, filter: code.as_mut_ptr() };
        // SAFETY: the option is a `sock_fprog`, whose address and length are given. It names the two
        // instructions in `code`, which outlives the call.
        let set = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const filter).cast(),
                size_of_val(&filter) as u32,
            )
        };
        assert_eq!(set, 0, "filter: {}", std::io::Error::last_os_error());
    }

    /// Sends one frame.
    pub(crate) fn send(&self, frame: &[u8]) {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// Receives one frame, if there is one.
    pub(crate) fn try_receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) => {
                buffer.truncate(len);
                Some(buffer)
            }
            Err(nix::errno::Errno::EAGAIN) => None,
            Err(error) => panic!("receive: {error}"),
        }
    }

    /// Waits for one frame.
    pub(crate) fn receive(&self) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(frame) = self.try_receive() {
                return frame;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no frame arrived in {PATIENCE:?}");
            let mut fd = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let timeout = i32::try_from(left.as_millis()).unwrap();
            // SAFETY: `fd` is one `pollfd` on this stack, and the length given is 1.
            unsafe { libc::poll(&raw mut fd, 1, timeout) };
        }
    }
}

/// Both ends of one port.
pub(crate) struct Wire {
    /// The socket on the far side. It receives the frames that the host sends.
    pub(crate) far: PacketSocket,
    /// The socket on the host's side. It sends markers to the far side.
    pub(crate) near: PacketSocket,
}

impl Wire {
    /// Frames that the host has sent since the last call. A marker frame follows on the same path,
    /// so that there is no waiting for frames that do not come.
    pub(crate) fn drain(&self, serial: u64) -> Vec<Vec<u8>> {
        let mut content = serial.to_be_bytes().to_vec();
        content.resize(46, 0);
        let marker = packet::ethernet(packet::BROADCAST, [2, 0, 0, 0, 0, 0xee], MARKER, &content);
        self.near.send(&marker);
        let mut frames = Vec::new();
        loop {
            let frame = self.far.receive();
            if frame == marker {
                return frames;
            }
            frames.push(frame);
        }
    }
}
