//! Checks of the frames on the wire against the offloads of the device that sent them.

use std::collections::BTreeMap;

use culvert_tests::{
    netns::Netns,
    verify::{Facts, Verifier},
    wire::{Frame, Gso, Tap},
};

/// MTU of the underlay.
const MTU: usize = 1500;
/// Protocol number of TCP.
const TCP: u8 = 6;
/// Maximum number of reported faults.
const ENOUGH: usize = 8;

/// Offloads that are enabled on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// The device fills in checksums.
    pub(crate) checksum: bool,
    /// The device cuts TCP frames into segments.
    pub(crate) tcp: bool,
    /// The device cuts UDP frames into datagrams.
    pub(crate) udp: bool,
    /// The device also cuts frames in a tunnel.
    pub(crate) tunnel: bool,
}

impl Features {
    /// The enabled offloads of a device. They may differ from the requested ones, because some
    /// offloads need others.
    pub(crate) fn of(netns: &Netns, ifname: &str) -> Self {
        let list = netns.run(&format!("ethtool -k {ifname}"));
        let on = |name: &str| {
            let line = list.lines().find_map(|line| line.trim().strip_prefix(name));
            line.unwrap().trim_start_matches(':').trim().starts_with("on")
        };
        Self {
            checksum: on("tx-checksum-ip-generic:"),
            tcp: on("tx-tcp-segmentation:"),
            udp: on("tx-udp-segmentation:"),
            tunnel: on("tx-udp_tnl-segmentation:"),
        }
    }
}

/// Frames seen in one direction.
#[derive(Debug)]
pub(crate) struct Direction {
    features: Features,
    verifier: Verifier,
    /// Number of frames whose checksum the kernel left to the hardware.
    pub(crate) partial: usize,
    /// Number of frames that the kernel left to the hardware to be cut.
    pub(crate) gso: usize,
    /// Number of frames of each VNI.
    pub(crate) vnis: BTreeMap<u32, u64>,
    /// Length in bytes of the longest L3 packet of TCP in a tunnel.
    longest: usize,
    /// Length in bytes of the longest of these packets that is cut out of a frame; 0 if none is.
    longest_cut: usize,
    complaints: Vec<String>,
}

impl Direction {
    fn new(features: Features) -> Self {
        Self {
            features,
            verifier: Verifier::default(),
            partial: 0,
            gso: 0,
            vnis: BTreeMap::new(),
            longest: 0,
            longest_cut: 0,
            complaints: Vec::new(),
        }
    }

    fn look(&mut self, mut frame: Frame) {
        if let Err(complaint) = self.examine(&mut frame)
            && self.complaints.len() < ENOUGH
        {
            let head: String =
                frame.bytes.iter().take(112).map(|byte| format!("{byte:02x}")).collect();
            self.complaints.push(format!("{complaint}: {} bytes {head}", frame.bytes.len()));
        }
    }

    fn examine(&mut self, frame: &mut Frame) -> Result<(), String> {
        let partial = frame.partial;
        if partial.is_some() {
            self.partial += 1;
            if !self.features.checksum {
                return Err("checksum missing, although the device fills in none".to_owned());
            }
        }
        frame.fill_in()?;
        let facts = if frame.gso != Gso::None && partial.is_none() {
            self.verifier.list(&frame.bytes)?
        } else {
            self.verifier.frame(&frame.bytes)?
        };
        if let Some((start, _)) = partial
            && start != facts.l4
        {
            return Err(format!("the checksum starts at {start}, not {}", facts.l4));
        }
        if let Some(vni) = facts.vni {
            *self.vnis.entry(vni).or_default() += 1;
        }
        let len = self.segment(frame, facts)?;
        if len > MTU {
            return Err(format!("L3 packet of {len} bytes"));
        }
        if facts.vni.is_some() && facts.protocol == TCP {
            self.longest = self.longest.max(len);
            if frame.gso != Gso::None {
                self.longest_cut = self.longest_cut.max(len);
            }
        }
        Ok(())
    }

    /// Length in bytes of the longest L3 packet that the hardware of the device makes of a frame.
    fn segment(&mut self, frame: &Frame, facts: Facts) -> Result<usize, String> {
        let Features { tcp, udp, tunnel, .. } = self.features;
        let able = match frame.gso {
            Gso::None => return Ok(facts.l3_len),
            Gso::Tcp => tcp && facts.protocol == TCP,
            Gso::Udp => udp && facts.protocol != TCP,
            Gso::Other(_) => false,
        };
        self.gso += 1;
        if !able || (facts.vni.is_some() && !tunnel) {
            return Err(format!("not cut ({:?}), but the device cannot cut it", frame.gso));
        }
        Ok(facts.l3_len.min(facts.headers_len + frame.gso_size))
    }
}

/// Both directions of a device of the switch.
pub(crate) struct Seen {
    /// Frames from the host at the other end of the device.
    pub(crate) from_host: Direction,
    /// Frames to the host at the other end of the device.
    pub(crate) to_host: Direction,
}

/// Watches the switch's device `port`, to which a host with the uplink `uplink` is connected.
pub(crate) fn watch(switch: &Netns, port: &str, uplink: Features) -> Tap<Seen> {
    let seen = Seen {
        from_host: Direction::new(uplink),
        to_host: Direction::new(Features::of(switch, port)),
    };
    Tap::new(switch.path(), port, seen, |seen, frame| {
        if frame.outgoing { seen.to_host.look(frame) } else { seen.from_host.look(frame) }
    })
}

impl Seen {
    /// The faults of the frames seen. Both tenants must have sent TCP segments of a full MTU.
    pub(crate) fn complaints(&self, vnis: &[u32]) -> Vec<String> {
        let mut complaints = Vec::new();
        for (name, seen) in [("from the host", &self.from_host), ("to the host", &self.to_host)] {
            let mut complain = |what: String| complaints.push(format!("wire, {name}: {what}"));
            seen.complaints.iter().for_each(|complaint| complain(complaint.clone()));
            let told: Vec<_> = seen.vnis.keys().copied().collect();
            if told != vnis {
                complain(format!("VNIs {told:?}"));
            }
            if seen.longest != MTU {
                complain(format!("longest TCP segment {}, not {MTU}", seen.longest));
            }
            if ![0, MTU].contains(&seen.longest_cut) {
                complain(format!("TCP to be cut to {}, not {MTU}", seen.longest_cut));
            }
            if seen.verifier.incomplete() != 0 {
                complain(format!("{} datagrams incomplete", seen.verifier.incomplete()));
            }
        }
        complaints
    }
}
