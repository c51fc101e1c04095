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
    kernel::skb::{ETH_LEN, push_head, read_protocol, resize, store},
    state::rates,
};

/// Requests in a network: this many at once, and one more every interval.
const BURST: u32 = 32;
const INTERVAL_NS: u64 = 100_000_000;

/// Bytes of a request with its padding, and how many of them are made in front of the packet that
/// it replaces. The kernel may have left a checksum to the device, which writes it where the
/// packet had it, or refuses to cut the packet before it (`bpf_skb_change_tail`). With so many
/// bytes in front, the checksum of UDP and TCP without IP options lies behind the request.
const LEN: usize = 98;
const ROOM: u32 = 46;
const PADDING: usize = LEN - ArpFrame::LEN;

/// Makes the frame the host's ARP request for `target`, and floods it. A reply goes to all hosts
/// of the network, because the gateway's MAC is on all of them. Nothing is sent if the limit of
/// requests is used up, or the kernel refuses. A BPF function of its own, for its stack.
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

/// Replaces the packet by the request and zeros. A BPF function of its own, for its stack.
#[inline(never)]
fn write(ctx: &TcContext, net: &NetworkInfo, target: &[u8; 4]) -> Result<(), DropReason> {
    push_head(ctx, ROOM)?;
    resize(ctx, LEN as u32)?;
    store(ctx, 0, &arp::arp_request_frame(net.gateway_mac, net.gateway_ip, *target))?;
    for word in 0..PADDING / 8 {
        store(ctx, ArpFrame::LEN + 8 * word, &0_u64)?;
    }
    // skb->protocol still says IPv4, and a netkit device does not read it again.
    read_protocol(ctx)
}

const _: () = assert!(PADDING.is_multiple_of(8));
