//! Globals that the agent sets when it loads the programs: constants for the verifier. Names
//! and units are in `culvert_common::abi::globals`.

use aya_ebpf::Global;
use culvert_common::{
    abi::DEFAULT_FLOWS,
    datapath::{
        conntrack::{TIMEOUTS_LEN, Timeouts},
        nat,
    },
};

/// Our VTEP address, four bytes in network order.
#[unsafe(no_mangle)]
pub(crate) static VTEP_IP: Global<u32> = Global::new(0);
/// UDP port on which we receive VXLAN, host order.
#[unsafe(no_mangle)]
pub(crate) static VXLAN_PORT: Global<u16> = Global::new(4789);
/// Age in ns after which a learned entry is no longer used.
#[unsafe(no_mangle)]
pub(crate) static AGEING_NS: Global<u64> = Global::new(300_000_000_000);
/// Least port that masquerading chooses.
#[unsafe(no_mangle)]
pub(crate) static NAT_PORT_MIN: Global<u16> = Global::new(1024);
/// Greatest port that masquerading chooses.
#[unsafe(no_mangle)]
pub(crate) static NAT_PORT_MAX: Global<u16> = Global::new(65535);
/// Share of the ports that one container may always take, see [`port_share`].
///
/// [`port_share`]: culvert_common::datapath::nat::port_share
#[unsafe(no_mangle)]
pub(crate) static NAT_PORT_SHARE: Global<u32> = Global::new(nat::WHOLE_SHARE);
/// Idle times in ns after which flows expire.
#[unsafe(no_mangle)]
static FLOW_TIMEOUTS: Global<Timeouts> = Global::new([u64::MAX; TIMEOUTS_LEN]);
/// Number of slots of `FLOW_SLOTS`.
#[unsafe(no_mangle)]
pub(crate) static FLOW_SLOTS_LEN: Global<u32> = Global::new(2 * DEFAULT_FLOWS);
/// Number of flows that one container may have.
#[unsafe(no_mangle)]
pub(crate) static FLOW_SHARE: Global<u32> = Global::new(DEFAULT_FLOWS);
/// Not 0 if `BLOCKED` may have ports of the store.
#[unsafe(no_mangle)]
pub(crate) static PORTS_CLOSED: Global<u32> = Global::new(1);
/// Interface index of the loopback device.
#[unsafe(no_mangle)]
pub(crate) static LOOPBACK: Global<u32> = Global::new(1);

/// The idle time in ns at the index `word` of [`Timeouts`].
#[inline(always)]
pub(crate) fn flow_timeout(word: usize) -> u64 {
    let words = (&raw const FLOW_TIMEOUTS).cast::<u64>();
    // SAFETY: `Global` is transparent. The mask keeps the index less than the length of the table,
    // which is a power of two.
    unsafe { words.add(word & (TIMEOUTS_LEN - 1)).read_volatile() }
}
