//! What a program may do with a frame. The rules know the networks, but nothing of the programs'
//! own tables, except where a container has sent packets to: an answer may come from there.

use std::collections::BTreeSet;

use super::{
    frames::Source,
    scene::{NETS, Net, State},
};
use crate::{
    interfaces::Interface,
    run::{Program, REDIRECT, SHOT, UNSPEC, XDP_DROP, XDP_PASS},
    world::{OUR_VTEP, PEER, PEER2, TO_PEER, TO_PEER2, VXLAN_PORT},
};

/// Bytes of the outer headers.
const OUTER: usize = 50;

/// What the verdict says about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// Left to the kernel.
    Passed,
    /// Sent elsewhere as one frame.
    Redirected,
    /// Gone: dropped, or sent as copies.
    Gone,
}

/// Where copies of a frame may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// VNI of the containers.
    local: Option<u32>,
    /// VNI of VXLAN that leaves.
    remote: Option<u32>,
}

impl Reach {
    /// The reach of a frame that comes from `source`.
    pub(super) fn of(source: &Source, frame: &[u8]) -> Self {
        let vni = source.net.map(|net| net.vni);
        match source.program {
            Program::Container | Program::Host => Self { local: vni, remote: vni },
            // A frame from the tunnel is never sent back into the tunnel.
            Program::Underlay => Self { local: to_us(frame).map(|(_, vni)| vni), remote: None },
            Program::UnderlayXdp | Program::Loopback | Program::Client | Program::Out => {
                Self::default()
            }
        }
    }
}

/// The sender and the VNI of VXLAN for this host.
fn to_us(frame: &[u8]) -> Option<([u8; 4], u32)> {
    let (src, dst, port, vni) = vxlan(frame)?;
    (dst == OUR_VTEP && port == VXLAN_PORT).then_some((src, vni))
}

/// The receiver and the VNI of VXLAN that this host sends in a state of the maps.
fn of_us(state: &State, frame: &[u8]) -> Option<([u8; 4], u32)> {
    let (src, dst, port, vni) = vxlan(frame)?;
    let to_a_vtep = [(PEER, TO_PEER.port), (PEER2, state.far_port)].contains(&(dst, port));
    (src == OUR_VTEP && to_a_vtep).then_some((dst, vni))
}

/// Whether another host takes the frame for VXLAN of this host. The port of a VTEP without a path
/// is not known.
fn is_taken_for_ours(state: &State, frame: &[u8]) -> bool {
    of_us(state, frame).is_some_and(|(vtep, _)| vtep == PEER || state.far_port == TO_PEER2.port)
}

/// Source, destination, UDP port and VNI of a frame that can be VXLAN without IP options.
fn vxlan(frame: &[u8]) -> Option<([u8; 4], [u8; 4], u16, u32)> {
    let headers = frame.get(..OUTER)?;
    let is_ipv4_udp = headers[12..14] == [8, 0] && headers[14] & 15 == 5 && headers[23] == 17;
    let is_first = headers[20] & 0x1f == 0 && headers[21] == 0;
    if !is_ipv4_udp || !is_first {
        return None;
    }
    let port = u16::from_be_bytes([headers[36], headers[37]]);
    let vni = u32::from_be_bytes([0, headers[46], headers[47], headers[48]]);
    Some((address(headers, 26)?, address(headers, 30)?, port, vni))
}

fn address(frame: &[u8], at: usize) -> Option<[u8; 4]> {
    frame.get(at..at + 4)?.try_into().ok()
}

fn mac(frame: &[u8], at: usize) -> [u8; 6] {
    frame.get(at..at + 6).and_then(|mac| mac.try_into().ok()).unwrap_or_default()
}

/// Judges the frames of one state of the maps.
#[derive(Debug)]
pub(super) struct Judge {
    state: &'static State,
    /// MACs of containers, and the addresses that they have sent packets to.
    contacts: BTreeSet<([u8; 6], [u8; 4])>,
}

impl Judge {
    pub(super) fn new(state: &'static State) -> Self {
        Self { state, contacts: BTreeSet::new() }
    }

    /// Judges the result of a test run: the verdict, and the frame that was left behind.
    pub(super) fn run(
        &mut self,
        source: &Source,
        frame: &[u8],
        verdict: i32,
        left: &[u8],
    ) -> Result<Fate, String> {
        let fate = match (source.program, verdict) {
            (Program::UnderlayXdp, XDP_PASS) => Fate::Passed,
            (Program::UnderlayXdp, XDP_DROP) => Fate::Gone,
            (Program::UnderlayXdp, _) => return Err(format!("verdict {verdict}")),
            (_, UNSPEC) => Fate::Passed,
            (_, REDIRECT) => Fate::Redirected,
            (_, SHOT) => Fate::Gone,
            _ => return Err(format!("verdict {verdict}")),
        };
        if let (Some((_, me)), Some(to)) = (source.container, address(frame, 30)) {
            self.contacts.insert((me.mac, to));
        }
        let is_xdp = source.program == Program::UnderlayXdp;
        if (is_xdp || fate == Fate::Passed) && left != frame {
            return Err("changed, although it was not forwarded".to_owned());
        }
        if fate == Fate::Redirected {
            self.redirected(source, frame, left)?;
        }
        let leaves = source.program == Program::Out && fate == Fate::Passed;
        if leaves && source.forwarded && is_taken_for_ours(self.state, frame) {
            return Err("left, although neither Culvert nor root has sent it".to_owned());
        }
        Ok(fate)
    }

    fn redirected(&self, source: &Source, frame: &[u8], left: &[u8]) -> Result<(), String> {
        match (source.program, source.net) {
            (Program::Container | Program::Host, Some(net)) => self.sent(source, net, frame, left),
            (Program::Underlay, _) => match to_us(frame) {
                Some((vtep, vni)) if left.len() < frame.len() => self.decapsulated(vtep, vni, left),
                _ => self.translated(left),
            },
            (Program::Loopback | Program::Client, _) => self.for_a_published_port(left),
            _ => Err("redirected".to_owned()),
        }
    }

    /// A frame that a container or the host sent into the network `net`.
    fn sent(&self, source: &Source, net: &Net, frame: &[u8], left: &[u8]) -> Result<(), String> {
        if left.len() == frame.len() + OUTER {
            return encapsulated(self.state, net, left);
        }
        let (dst, src) = (mac(left, 0), mac(left, 6));
        if (dst, src) == ([0; 6], [0; 6]) {
            // The kernel addresses the frame: to an uplink or client link, or to the host itself.
            return Ok(());
        }
        if !self.state.strict {
            return Ok(());
        }
        if let Some(other) = NETS.iter().find(|other| other.vni != net.vni && other.knows(dst)) {
            let is_published = self.is_published(dst)
                || source.container.is_some_and(|(_, me)| self.is_published(me.mac));
            let by_gateway = other.has_endpoint(dst) && src == other.gateway.mac;
            if source.container.is_some() && is_published && by_gateway {
                return Ok(());
            }
            return Err(format!("delivered in VNI {:#x} instead of {:#x}", other.vni, net.vni));
        }
        if !net.has_endpoint(dst) && dst != net.gateway.mac {
            return Err(format!("delivered to {dst:x?}, which no endpoint has"));
        }
        if NETS.iter().any(|other| other.vni != net.vni && other.knows(src)) {
            return Err(format!("delivered from {src:x?}, a MAC of another network"));
        }
        Ok(())
    }

    /// A frame that came through the tunnel from `vtep`.
    fn decapsulated(&self, vtep: [u8; 4], vni: u32, left: &[u8]) -> Result<(), String> {
        let net = Net::of_vni(vni).ok_or_else(|| format!("accepted from VNI {vni:#x}"))?;
        if !net.vteps.contains(&vtep) {
            return Err(format!("accepted from {vtep:?}, which is no VTEP of VNI {vni:#x}"));
        }
        let dst = mac(left, 0);
        if self.state.strict && !net.has_endpoint(dst) && dst != net.gateway.mac {
            return Err(format!("delivered to {dst:x?}, which is not in VNI {vni:#x}"));
        }
        Ok(())
    }

    /// A frame of an external host: for a published port, or an answer.
    fn translated(&self, left: &[u8]) -> Result<(), String> {
        let (dst, src) = (mac(left, 0), mac(left, 6));
        if (dst, src) == ([0; 6], [0; 6]) {
            return Ok(());
        }
        let net = Net::of_endpoint(dst);
        let net = net.ok_or_else(|| format!("delivered to {dst:x?}, which no endpoint has"))?;
        if src != net.gateway.mac {
            return Err(format!("delivered from {src:x?} instead of the gateway"));
        }
        let from = address(left, 26).unwrap_or_default();
        let quoted = quoted_receiver(left).unwrap_or(from);
        if self.is_published(dst) || [from, quoted].iter().any(|to| self.has_asked(dst, *to)) {
            return Ok(());
        }
        Err(format!("delivered from {from:?} to {dst:x?}, which has sent it nothing"))
    }

    fn for_a_published_port(&self, left: &[u8]) -> Result<(), String> {
        let (dst, src) = (mac(left, 0), mac(left, 6));
        let is_published = self.is_published(dst) && src == NETS[0].gateway.mac;
        if (dst, src) == ([0; 6], [0; 6]) || is_published {
            return Ok(());
        }
        Err(format!("delivered to {dst:x?}, which publishes no port"))
    }

    /// Whether the container with this MAC has a published port.
    fn is_published(&self, mac: [u8; 6]) -> bool {
        self.state.published && mac == NETS[0].one.mac
    }

    fn has_asked(&self, mac: [u8; 6], to: [u8; 4]) -> bool {
        self.contacts.contains(&(mac, to))
    }

    /// Judges a copy that left through an interface while test runs went on.
    pub(super) fn copy(
        &self,
        reach: Reach,
        interface: Interface,
        copy: &[u8],
    ) -> Result<(), String> {
        match Net::of(interface) {
            Some(net) if reach.local == Some(net.vni) => Ok(()),
            Some(net) => Err(format!("copied to {interface:?} of VNI {:#x}", net.vni)),
            None => left_the_host(self.state, reach, copy),
        }
    }

    /// Judges a frame that came out of an interface while the programs were attached.
    pub(super) fn came_out(
        &self,
        source: &Source,
        reach: Reach,
        interface: Interface,
        frame: &[u8],
    ) -> Result<(), String> {
        let Some(net) = Net::of(interface) else { return left_the_host(self.state, reach, frame) };
        if reach.local == Some(net.vni) {
            return Ok(());
        }
        // Translated packets come from the gateway.
        let by_gateway = mac(frame, 6) == net.gateway.mac;
        let may_translate = match source.container {
            None => reach.local.is_none(),
            Some((sender, _)) => {
                self.state.published && [interface, sender].contains(&Interface::A1)
            }
        };
        if by_gateway && may_translate {
            return Ok(());
        }
        Err(format!("came out of {interface:?} of VNI {:#x}", net.vni))
    }
}

/// VXLAN leaves in the VNI of its sender, and to a VTEP of that VNI. Other frames leave by NAT, or
/// are the kernel's own.
fn left_the_host(state: &State, reach: Reach, frame: &[u8]) -> Result<(), String> {
    let Some((vtep, vni)) = of_us(state, frame) else { return Ok(()) };
    let is_member = Net::of_vni(vni).is_some_and(|net| net.vteps.contains(&vtep));
    if reach.remote == Some(vni) && is_member {
        return Ok(());
    }
    Err(format!("sent to {vtep:?} in VNI {vni:#x}"))
}

fn encapsulated(state: &State, net: &Net, left: &[u8]) -> Result<(), String> {
    let (vtep, vni) = of_us(state, left).ok_or("longer, but not VXLAN to a VTEP")?;
    if vni != net.vni || !net.vteps.contains(&vtep) {
        return Err(format!("sent to {vtep:?} in VNI {vni:#x} instead of {:#x}", net.vni));
    }
    Ok(())
}

/// The receiver of the packet that an ICMP error quotes.
fn quoted_receiver(frame: &[u8]) -> Option<[u8; 4]> {
    let l4 = 14 + usize::from(*frame.get(14)? & 15) * 4;
    if *frame.get(23)? != 1 {
        return None;
    }
    address(frame, l4 + 8 + 16)
}
