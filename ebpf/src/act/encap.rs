//! The outer header: made from the template of a VTEP, and put in front of a frame.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    bpf_f_adj_room_encap_l2,
    macros::map,
    maps::PerCpuArray,
    programs::TcContext,
};
use culvert_common::{
    abi::{DropReason, ENCAPSULATED_MARK, NetworkInfo, UnderlayPath, VXLAN_OVERHEAD},
    datapath::{ecn, encap::EncapHeaders},
    wire::EthHdr,
};

use crate::kernel::{
    memory::own,
    redirect::{self, NextHop},
    skb::{ETH_LEN, gso_size, is_ipv4, push_head, set_mark, store_head},
};

/// The next hop, and all headers in front of the frames from one endpoint to another endpoint
/// behind a VTEP. The fields that differ by frame are set for each frame.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Encap {
    headers: EncapHeaders,
    next_hop: NextHop,
    /// Interface index of the uplink.
    ifindex: u32,
    /// The network's flags.
    flags: u32,
}

/// Headers for a frame that the flow cache does not have. They are not on the BPF stack, which has
/// only 512 bytes.
#[map]
static ENCAP: PerCpuArray<Encap> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's memory for the headers of one frame.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Encap> {
    own(&ENCAP, 0)
}

/// Makes room for the outer header.
#[inline(always)]
pub(crate) fn make_room(ctx: &TcContext, is_ip: bool) -> Result<(), DropReason> {
    if is_ip {
        // GSO frames stay whole: the kernel gives each segment the outer header.
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO)
            | u64::from(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)
            | u64::from(BPF_F_ADJ_ROOM_ENCAP_L4_UDP)
            | u64::from(BPF_F_ADJ_ROOM_ENCAP_L2_ETH)
            | bpf_f_adj_room_encap_l2(ETH_LEN as u64);
        if ctx.adjust_room(i32::from(VXLAN_OVERHEAD), BPF_ADJ_ROOM_MAC, flags).is_ok() {
            return Ok(());
        }
        if gso_size(ctx) != 0 {
            return Err(DropReason::EncapFailed);
        }
    }
    // `bpf_skb_adjust_room` refuses a frame that is not IP, and a frame that is encapsulated
    // already: by a tunnel in the container, or by the sender of a frame that the container
    // forwards.
    push_head(ctx, VXLAN_OVERHEAD.into())
}

impl Encap {
    /// Sets the headers for frames with the Ethernet header `eth` of a network, given by its
    /// VNI and flags.
    #[inline(always)]
    pub(crate) fn set(&mut self, (vni, flags): (u32, u32), eth: &EthHdr, path: &UnderlayPath) {
        self.headers = EncapHeaders::new(&path.template, vni, eth);
        let next_hop: [[u8; 4]; 4] = bytemuck::cast(path.next_hop);
        self.next_hop = redirect::next_hop(path.family.into(), next_hop.map(u32::from_ne_bytes));
        self.ifindex = path.ifindex;
        self.flags = flags;
    }

    /// Whether the agent knows the MAC of the next hop.
    #[inline(always)]
    pub(crate) fn is_resolved(&self) -> bool {
        self.headers.outer_eth.dst != [0; 6]
    }

    /// The uplink's interface index.
    #[inline(always)]
    pub(crate) fn uplink(&self) -> u32 {
        self.ifindex
    }

    /// Writes the headers into the room that [`make_room`] has made. `l3_len` is the length of the
    /// frame's L3 packet in bytes. `inner_tos` is its TOS or traffic class, `None` if it is not IP.
    /// `src_port` is the outer UDP source port.
    #[inline(always)]
    pub(crate) fn write(
        &mut self,
        ctx: &TcContext,
        inner_tos: Option<u8>,
        l3_len: u32,
        src_port: u16,
    ) -> Result<(), DropReason> {
        self.fit(inner_tos, l3_len, src_port)?;
        self.store(ctx)
    }

    #[inline(always)]
    fn fit(&mut self, inner_tos: Option<u8>, l3_len: u32, src_port: u16) -> Result<(), DropReason> {
        let tos = ecn::encap_tos(inner_tos, self.flags & NetworkInfo::COPY_DSCP != 0);
        self.headers.outer.fit(src_port, tos, l3_len + ETH_LEN as u32)
    }

    #[inline(always)]
    fn store(&self, ctx: &TcContext) -> Result<(), DropReason> {
        set_mark(ctx, ENCAPSULATED_MARK);
        store_head::<_, { EncapHeaders::OFFSET }, { EncapHeaders::LEN }>(ctx, &self.headers)
    }

    /// Encapsulates a frame and sends it to the VTEP. The arguments are those of
    /// [`Self::write`].
    #[inline(always)]
    pub(crate) fn send(
        &mut self,
        ctx: &TcContext,
        inner_tos: Option<u8>,
        l3_len: u32,
        src_port: u16,
    ) -> Result<(), DropReason> {
        // The length is checked before there is room, so that a frame that is too long does not
        // change.
        self.fit(inner_tos, l3_len, src_port)?;
        if inner_tos.is_none() && !self.is_resolved() {
            return Err(DropReason::NoUnderlayNeighbour);
        }
        make_room(ctx, inner_tos.is_some())?;
        // `bpf_skb_adjust_room` inserts the room after the MAC header, so the inner MAC header has
        // to be written again.
        self.store(ctx)?;
        if is_ipv4(ctx) {
            redirect::neighbour(self.ifindex, &mut self.next_hop);
        } else if self.is_resolved() {
            // `bpf_redirect_neigh` refuses a frame whose `skb->protocol` is not IP.
            redirect::out(self.ifindex);
        } else {
            return Err(DropReason::NoUnderlayNeighbour);
        }
        Ok(())
    }
}
