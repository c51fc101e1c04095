//! Device features (offloads), by the ioctls of linux/ethtool.h: `ETHTOOL_GSSET_INFO`,
//! `ETHTOOL_GSTRINGS`, `ETHTOOL_GFEATURES`, `ETHTOOL_SFEATURES`.
//!
//! The crate `ethtool` 0.3 speaks generic netlink. It has 9 kinds of settings and can set only the
//! channels, not the features. It depends on netlink-proto 0.13, rtnetlink 0.24 on 0.14. Generic
//! netlink has no message for the name of the driver.

use std::{
    ffi::c_void,
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::{errno::Errno, libc};

use super::{Netlink, NetlinkError, Result, check_ifname};

/// Features by which a device segments packets that are already encapsulated. They must be off: a
/// container with a tunnel of its own must segment in its own stack, because an skb carries the
/// state of one encapsulation, and VXLAN adds a second.
///
/// SCTP is here because the kernel refuses to make room in front of an SCTP frame that is to be
/// segmented (`bpf_skb_adjust_room`). UDP is here because that function leaves
/// `SKB_GSO_UDP_TUNNEL` set after a decapsulation: the kernel then looks for a tunnel behind the
/// UDP header of datagrams that it splits for a socket, and loses all of them.
pub const ENCAPSULATION_OFFLOADS: &[&str] = &[
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-gso-partial",
    "tx-tunnel-remcsum-segmentation",
    "tx-esp-segmentation",
    "tx-sctp-segmentation",
    "tx-udp-segmentation",
];

/// Receive merging of forwarded UDP datagrams. It also merges VXLAN datagrams of different VNIs.
pub const RX_UDP_GRO_FORWARDING: &str = "rx-udp-gro-forwarding";

/// The features that merge received UDP datagrams, also VXLAN datagrams of different VNIs. The
/// second makes a list of packets of them.
const MERGING: [&str; 2] = [RX_UDP_GRO_FORWARDING, "rx-gro-list"];

/// Merging of received packets in the kernel (generic receive offload).
pub const RX_GRO: &str = "rx-gro";

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`: the string set with the names of the features.
const ETH_SS_FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`.
const STRING_LEN: usize = 32;

/// Words of `struct ethtool_drvinfo`, and the bytes of its first string.
const DRVINFO: usize = 49;
const DRIVER_LEN: usize = 32;

/// Words of `struct ethtool_get_features_block`: available, requested, active, never changed.
const GET_BLOCK: usize = 4;

impl Netlink {
    /// Whether a feature is on; `None` if the kernel does not know it.
    ///
    /// # Errors
    /// The interface does not exist.
    pub fn feature(&self, name: &str, feature: &str) -> Result<Option<bool>> {
        let device = Device::new(self.control(), name)?;
        let Some(bit) = device.names()?.iter().position(|known| known == feature) else {
            return Ok(None);
        };
        let blocks = device.features(bit + 1)?;
        Ok(Some(is_on(&blocks, bit)))
    }

    /// The features of an interface that are on and merge received VXLAN datagrams of different
    /// VNIs, which the programs then drop.
    ///
    /// # Errors
    /// The interface does not exist.
    pub fn merging(&self, name: &str) -> Result<Vec<&'static str>> {
        let device = Device::new(self.control(), name)?;
        let names = device.names()?;
        let blocks = device.features(names.len())?;
        let has = |feature: &&'static str| {
            let bit = names.iter().position(|known| known == *feature);
            bit.is_some_and(|bit| is_on(&blocks, bit))
        };
        Ok(MERGING.into_iter().filter(has).collect())
    }

    /// Name of an interface's driver. `None` if it has no driver or the driver does not report its
    /// name.
    pub fn driver(&self, name: &str) -> Option<String> {
        let device = Device::new(self.control(), name).ok()?;
        let mut info = [0; DRVINFO];
        info[0] = ETHTOOL_GDRVINFO;
        device.ioctl(&mut info).ok()?;
        let bytes = bytemuck::cast_slice::<u32, u8>(&info[1..]).get(..DRIVER_LEN)?;
        let driver = bytes.split(|byte| *byte == 0).next()?;
        (!driver.is_empty()).then(|| String::from_utf8_lossy(driver).into_owned())
    }

    /// Turns features on or off. Skips names that the kernel or the device does not have, and
    /// features that the device cannot change. Returns whether a feature changed.
    ///
    /// # Errors
    /// The interface does not exist, or the kernel refuses.
    pub fn set_features(&self, name: &str, features: &[&str], on: bool) -> Result<bool> {
        let device = Device::new(self.control(), name)?;
        let names = device.names()?;
        let current = device.features(names.len())?;
        // For each block of 32 features: the mask of bits to change, and their new values.
        let mut wanted = vec![(0u32, 0u32); current.len()];
        for bit in features.iter().filter_map(|want| names.iter().position(|name| name == want)) {
            let mask = 1u32 << (bit % 32);
            let (Some(block), Some(want)) = (current.get(bit / 32), wanted.get_mut(bit / 32))
            else {
                continue;
            };
            let is_on = block.active & mask != 0;
            if is_on != on && block.available & mask != 0 && block.fixed & mask == 0 {
                want.0 |= mask;
                want.1 |= if on { mask } else { 0 };
            }
        }
        if wanted.iter().all(|(valid, _)| *valid == 0) {
            return Ok(false);
        }
        device.set(&wanted)?;
        Ok(true)
    }

    /// Turns features off, see [`Netlink::set_features`].
    ///
    /// # Errors
    /// As [`Netlink::set_features`].
    pub fn disable_features(&self, name: &str, features: &[&str]) -> Result<bool> {
        self.set_features(name, features, false)
    }
}

/// Whether the feature with the number `bit` is on.
fn is_on(blocks: &[Block], bit: usize) -> bool {
    blocks.get(bit / 32).is_some_and(|block| block.active >> (bit % 32) & 1 == 1)
}

/// 32 features of a device, a bit each.
struct Block {
    /// The device supports the feature.
    available: u32,
    /// The feature is on.
    active: u32,
    /// The feature cannot be changed.
    fixed: u32,
}

/// A device and a socket in its namespace.
struct Device<'a> {
    socket: BorrowedFd<'a>,
    name: &'a str,
}

impl<'a> Device<'a> {
    fn new(socket: BorrowedFd<'a>, name: &'a str) -> Result<Self> {
        check_ifname(name)?;
        Ok(Self { socket, name })
    }

    /// Names of all features that the kernel knows, in bit order.
    fn names(&self) -> Result<Vec<String>> {
        // struct ethtool_sset_info: cmd, reserved, u64 mask, data[].
        let [mask_a, mask_b]: [u32; 2] = bytemuck::cast(1u64 << ETH_SS_FEATURES);
        let mut info = [ETHTOOL_GSSET_INFO, 0, mask_a, mask_b, 0];
        self.ioctl(&mut info)?;
        let count = info[4];
        // struct ethtool_gstrings: cmd, string_set, len, data[len * 32]. The kernel checks that len
        // is the count that it returned before.
        let mut strings = vec![ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count];
        strings.resize(3 + count as usize * STRING_LEN / 4, 0);
        self.ioctl(&mut strings)?;
        Ok(bytemuck::cast_slice::<u32, u8>(strings.get(3..).unwrap_or_default())
            .chunks_exact(STRING_LEN)
            .map(|name| {
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                String::from_utf8_lossy(name.get(..end).unwrap_or(name)).into_owned()
            })
            .collect())
    }

    /// State of at least the first `count` features.
    fn features(&self, count: usize) -> Result<Vec<Block>> {
        let blocks = count.div_ceil(32);
        // struct ethtool_gfeatures: cmd, size in blocks, blocks.
        let mut data = vec![ETHTOOL_GFEATURES, u32::try_from(blocks).unwrap_or(0)];
        data.resize(2 + blocks * GET_BLOCK, 0);
        self.ioctl(&mut data)?;
        Ok(data
            .get(2..)
            .unwrap_or_default()
            .chunks_exact(GET_BLOCK)
            .filter_map(|block| match *block {
                [available, _, active, fixed] => Some(Block { available, active, fixed }),
                _ => None,
            })
            .collect())
    }

    fn set(&self, wanted: &[(u32, u32)]) -> Result<()> {
        // struct ethtool_sfeatures: cmd, size in blocks, (valid, requested)[].
        let mut data = vec![ETHTOOL_SFEATURES, u32::try_from(wanted.len()).unwrap_or(0)];
        data.extend(wanted.iter().flat_map(|(valid, requested)| [*valid, *requested]));
        self.ioctl(&mut data)
    }

    /// `SIOCETHTOOL` with `data`. The first word is the command; the length is the one that the
    /// command requires.
    fn ioctl(&self, data: &mut [u32]) -> Result<()> {
        // SAFETY: ifreq is plain old data, for which all zeroes is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = data.as_mut_ptr().cast::<c_void>().cast();
        // SAFETY: the descriptor is open (borrowed), the request is a valid
        // ifreq with a terminated name (check_ifname: at most 15 of 16 bytes),
        // and its data points to a buffer that is as long as the counts in it
        // say (see the callers) and lives until the call returns.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        Err(match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENODEV) => NetlinkError::NoSuchInterface(self.name.to_owned()),
            _ => NetlinkError::kernel(format!("features of interface {}", self.name), error),
        })
    }
}
