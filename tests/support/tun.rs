//! A tunnel between two namespaces. Its devices have no Ethernet header, as those of WireGuard and
//! OpenVPN.

#![expect(clippy::panic, reason = "a fixture that cannot be made fails the test with the error")]

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::libc;

use crate::{netns::Netns, sock::within};

/// `IFF_TUN | IFF_NO_PI`: packets without an Ethernet header and without a header of the device.
const FLAGS: u16 = 0x1001;
/// Length of `struct ifreq`: the name of the interface in 16 bytes, then a union.
const REQUEST_LEN: usize = 40;

/// A tunnel; its devices disappear when it is dropped.
#[derive(Debug)]
pub struct Tunnel {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes a device `ifname` in each namespace, with the given addresses. Both devices are up.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn between(ifname: &str, ends: [(&Netns, &str); 2]) -> Self {
        let files = ends.map(|(netns, address)| {
            let file = match within(netns.path(), || open(ifname)) {
                Ok(file) => file,
                Err(error) => panic!("{}: {ifname}: {error}", netns.name()),
            };
            netns.run(&format!(
                "ip addr add {address} dev {ifname} && ip link set {ifname} mtu 1420 up"
            ));
            file
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let [one, other] = files;
            while !stopped.load(Ordering::Relaxed) {
                if pass_on(&one, &other) + pass_on(&other, &one) == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes a device in the calling thread's namespace. The device lives as long as the file.
fn open(ifname: &str) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open("/dev/net/tun")?;
    let mut request = [0_u8; REQUEST_LEN];
    let (name, flags) = request.split_at_mut(libc::IFNAMSIZ);
    // The last byte of the name stays 0.
    for (byte, letter) in name.iter_mut().zip(ifname.bytes().take(libc::IFNAMSIZ - 1)) {
        *byte = letter;
    }
    for (byte, flag) in flags.iter_mut().zip(FLAGS.to_ne_bytes()) {
        *byte = flag;
    }
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which `request` has room for.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    if set == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}

/// Passes on what has been sent into a device. Returns the number of packets.
fn pass_on(mut from: &File, mut to: &File) -> usize {
    let mut buffer = [0; 2048];
    let mut count = 0;
    while let Ok(len) = from.read(&mut buffer) {
        // A device that is down takes no packets.
        let _ = to.write_all(buffer.get(..len).unwrap_or_default());
        count += 1;
    }
    count
}
