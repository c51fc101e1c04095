//! ARP requests of the host itself.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::{Direction, DropReason, NetworkInfo, Note, RateKey},
    datapath::arp::{self, ArpFrame},
    wire::{
        EthHdr,
        ethernet::{BROADCAST, ETH_P_ARP},
    },
};

use super::{flood, tunnel::Tunnel};
use crate::{
    count::note,
    facts::inner::Inner,
    kernel::skb::{ETH_LEN, push_head, resize, set_protocol, store},
    state::rates,
};

/// Rate limit of ARP requests in a network: `BURST` at once, and one more every `INTERVAL_NS`.
const BURST: u32 = 32;
const INTERVAL_NS: u32 = 100_000_000;

/// `LEN` is the length of a request with its padding, in bytes. `ROOM` is the number of bytes that
/// are added in front of the packet that the request replaces. The kernel may have left the
/// checksum of that packet to the device. The device then writes the checksum at its old place in
/// the packet, and `bpf_skb_change_tail` refuses to cut the packet before that place. With `ROOM`
/// bytes in front, the checksum of UDP and TCP without IP options is in the padding after the
/// request.
const LEN: usize = 98;
const ROOM: u32 = 46;
const PADDING: usize = LEN - ArpFrame::LEN;

/// Replaces the frame by the host's ARP request for `target`, and floods the request. A reply goes
/// to all hosts of the network, because all of them have the gateway's MAC. Nothing is sent if the
/// rate limit forbids it, or if the kernel refuses. Returns 1 if the request was sent, else 0. A
/// BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(crate) fn ask(ctx: &TcContext, vni: u32, net: &NetworkInfo, target: &[u8; 4]) -> u32 {
    let limit = RateKey { kind: RateKey::ASK, id: vni };
    if !rates::allow(limit, INTERVAL_NS, BURST) || write(ctx, net, target).is_err() {
        return 0;
    }
    note(Direction::FromHost, Note::NeighbourAsked, LEN as u32);
    let eth = EthHdr::new(BROADCAST, net.gateway_mac, ETH_P_ARP);
    let l3_len = (LEN - ETH_LEN) as u32;
    let inner = Inner { eth, tos: None, l3_len, segment_len: l3_len, hash: 0 };
    let tunnel = Tunnel { ctx, vni, flags: net.flags };
    const FROM: u8 = Direction::FromHost.code();
    flood::everywhere::<FROM>(&tunnel, net, 0, &inner).is_ok().into()
}

/// Replaces the packet by the request and a padding of zeroes. A BPF function of its own, for a
/// stack frame of its own.
#[inline(never)]
fn write(ctx: &TcContext, net: &NetworkInfo, target: &[u8; 4]) -> Result<(), DropReason> {
    push_head(ctx, ROOM)?;
    resize(ctx, LEN as u32)?;
    store(ctx, 0, &arp::arp_request_frame(net.gateway_mac, net.gateway_ip, *target))?;
    for word in 0..PADDING / 8 {
        store(ctx, ArpFrame::LEN + 8 * word, &0_u64)?;
    }
    // `skb->protocol` is still IPv4, and a netkit device does not set it from the EtherType.
    set_protocol(ctx)
}

const _: () = assert!(PADDING.is_multiple_of(8));
