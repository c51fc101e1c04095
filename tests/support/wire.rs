//! A packet socket on a device: frames as the driver gets them, with the offloads that the kernel
//! leaves to the hardware.

#![expect(clippy::panic, reason = "a fixture that cannot be made fails the test with the error")]

use std::{
    io::Error,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use nix::{
    libc,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

use crate::sock::{set_int, within};

/// Longest frame: 64 KB of IP and the Ethernet header, in round numbers.
const LONGEST: usize = 66_000;
/// Receive buffer for a burst of frames, in bytes.
const BUFFER: usize = 256 << 20;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` of linux/virtio_net.h.
const NEEDS_CSUM: u8 = 1;
/// Length of `struct virtio_net_hdr`.
const OFFLOAD_LEN: usize = 10;

/// Kind of segments of a GSO frame (`VIRTIO_NET_HDR_GSO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// No segments: a frame as on the wire.
    None,
    /// Segments of TCP.
    Tcp,
    /// Datagrams of UDP.
    Udp,
    /// Any other kind.
    Other(u8),
}

/// A frame as the device sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The bytes from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Whether the device sends the frame.
    pub outgoing: bool,
    /// Where the hardware is to write a checksum: the offset of the bytes that the checksum covers,
    /// and the offset of the checksum in these bytes (`CHECKSUM_PARTIAL`; `PACKET_AUXDATA` names it
    /// `TP_STATUS_CSUMNOTREADY`).
    pub partial: Option<(usize, usize)>,
    /// Kind of segments that the frame is to be cut into.
    pub gso: Gso,
    /// Payload of each segment in bytes.
    pub gso_size: usize,
}

impl Frame {
    /// Fills in the checksum that is left to the hardware. The checksum covers the bytes from the
    /// first offset of `partial` to the end, and is written at the second.
    ///
    /// # Errors
    /// When an offset is not within the frame.
    pub fn fill_in(&mut self) -> Result<(), String> {
        let Some((start, offset)) = self.partial.take() else { return Ok(()) };
        let covered = self.bytes.get_mut(start..).ok_or("checksum behind the end")?;
        let sum = covered.chunks(2).fold(0_u64, |sum, pair| {
            let [high, low] = [0, 1].map(|at| pair.get(at).copied().unwrap_or(0));
            sum + u64::from(u16::from_be_bytes([high, low]))
        });
        let folded = (0..4).fold(sum, |sum, _| (sum >> 16) + (sum & 0xffff)) as u16;
        // A UDP checksum of 0 means no checksum; for other protocols both zeros are equal.
        let checksum = if folded == 0xffff { 0xffff } else { !folded };
        let place = covered.get_mut(offset..offset + 2).ok_or("checksum behind the end")?;
        place.copy_from_slice(&checksum.to_be_bytes());
        Ok(())
    }
}

/// Opens a packet socket on a device of a namespace.
///
/// # Panics
/// When the kernel refuses.
pub fn open(netns: &Path, ifname: &str) -> OwnedFd {
    let opened = within(netns, || {
        // SAFETY: the call has no pointers. Protocol 0: the socket receives nothing until `bind`.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the descriptor is a new socket that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let index = nix::net::if_::if_nametoindex(ifname)?;
        setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000))?;
        set_int(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        bind(&fd, index, libc::ETH_P_ALL as u16)?;
        Ok(fd)
    });
    match opened {
        Ok(fd) => fd,
        Err(error) => panic!("packet socket on {ifname}: {error}"),
    }
}

/// Binds a packet socket to a device of this thread's namespace, to receive `protocol` (`ETH_P_*`).
/// With 0 the socket only sends.
///
/// # Errors
/// Whatever the kernel says.
pub fn bind(fd: &OwnedFd, ifindex: u32, protocol: u16) -> std::io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = protocol.to_be();
    to.sll_ifindex = ifindex.cast_signed();
    // SAFETY: the address is a `sockaddr_ll` of the length given.
    let bound =
        unsafe { libc::bind(fd.as_raw_fd(), (&raw const to).cast(), size_of_val(&to) as u32) };
    if bound == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Receives the next frame. `None` if none arrives within the receive timeout of [`open`], 20 ms.
///
/// # Errors
/// Whatever the kernel says. `EINVAL` means a GSO frame that `virtio_net_hdr` cannot describe.
pub fn receive(fd: &OwnedFd, buffer: &mut Vec<u8>) -> std::io::Result<Option<Frame>> {
    buffer.resize(OFFLOAD_LEN + LONGEST, 0);
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut from_len = size_of_val(&from) as u32;
    // SAFETY: buffer and address are writable and as long as stated.
    let len = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut from_len,
        )
    };
    let Ok(len) = usize::try_from(len) else {
        let error = Error::last_os_error();
        let waited = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR));
        return if waited { Ok(None) } else { Err(error) };
    };
    let Some((&[flags, gso, _, _, s0, s1, c0, c1, o0, o1], bytes)) =
        buffer.get(..len).and_then(<[u8]>::split_first_chunk::<OFFLOAD_LEN>)
    else {
        return Err(Error::other("a frame without its header"));
    };
    let number = |bytes| usize::from(u16::from_ne_bytes(bytes));
    Ok(Some(Frame {
        bytes: bytes.to_vec(),
        outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
        partial: (flags & NEEDS_CSUM != 0).then(|| (number([c0, c1]), number([o0, o1]))),
        // Bit 0x80 is `VIRTIO_NET_HDR_GSO_ECN`.
        gso: match gso & 0x7f {
            0 => Gso::None,
            1 | 4 => Gso::Tcp,
            5 => Gso::Udp,
            other => Gso::Other(other),
        },
        gso_size: number([s0, s1]),
    }))
}

/// Sends a frame that is complete.
///
/// # Errors
/// Whatever the kernel says.
pub fn send(fd: &OwnedFd, frame: &[u8]) -> std::io::Result<()> {
    let whole = [&[0; OFFLOAD_LEN], frame].concat();
    nix::unistd::write(fd, &whole)?;
    Ok(())
}

/// Number of frames that were dropped because the receive buffer was full.
fn lost(fd: &OwnedFd) -> u32 {
    // SAFETY: all-zero bytes are valid `tpacket_stats`.
    let mut stats: libc::tpacket_stats = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&stats) as u32;
    // SAFETY: the option is a `tpacket_stats`, whose address and length are given.
    let got = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    };
    if got == 0 { stats.tp_drops } else { u32::MAX }
}

/// Calls a function with every frame of a device, until [`Tap::finish`].
#[derive(Debug)]
pub struct Tap<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Tap<T> {
    /// Starts the capture: `look` gets `state` and each frame.
    ///
    /// # Panics
    /// When the kernel refuses. The thread panics when it has lost a frame, so that [`Tap::finish`]
    /// panics.
    pub fn new(
        netns: &Path,
        ifname: &str,
        mut state: T,
        mut look: impl FnMut(&mut T, Frame) + Send + 'static,
    ) -> Self {
        let (fd, name) = (open(netns, ifname), ifname.to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            loop {
                // The flag is read before the socket, so no frame that came before the flag is
                // missed.
                let last = stopped.load(Ordering::Relaxed);
                match receive(&fd, &mut buffer) {
                    Ok(Some(frame)) => look(&mut state, frame),
                    Ok(None) if last => break,
                    Ok(None) => {}
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            assert_eq!(lost(&fd), 0, "{name}: the receive buffer dropped frames");
            state
        });
        Self { stop, thread: Some(thread) }
    }

    /// Passes on the frames that have come, ends the capture and returns the state.
    ///
    /// # Panics
    /// When frames were lost.
    pub fn finish(mut self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(state)) => state,
            _ => panic!("the capture failed: its message is above"),
        }
    }
}

impl<T> Drop for Tap<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
