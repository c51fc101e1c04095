//! Mutations of frames, and repairs of what a mutation would otherwise break for certain.

use std::ops::Range;

use culvert_tests::chaos::Random;
use etherparse::checksum::Sum16BitWords;

use super::scene::{NETS, PUBLISHED};
use crate::world::{
    A, B, CLIENT, FARTHER, IN_B, NOBODY, OUR_VTEP, PEER, PEER2, SERVER, SERVICE, STRANGER,
    UPLINK_MAC, US_TO_CLIENTS,
};

/// Length in bytes of the longest frame.
const LONGEST: usize = 3000;
/// Length in bytes of the part of a frame that has headers. Most changes are there.
const HEADERS: usize = 120;

const ETH_LEN: usize = 14;
/// Offset of the inner frame in VXLAN without IP options.
const INNER: usize = ETH_LEN + 20 + 8 + 8;

/// Changes frames.
#[derive(Debug)]
pub(super) struct Mutator {
    /// MACs, IPv4 addresses, EtherTypes, ports and VNIs that mean something.
    words: Vec<Vec<u8>>,
}

impl Mutator {
    pub(super) fn new() -> Self {
        let mut words = Vec::new();
        for net in &NETS {
            for host in [net.one, net.two, net.far, net.gateway] {
                words.extend([host.mac.to_vec(), host.v4.to_vec()]);
            }
        }
        for mac in [UPLINK_MAC, US_TO_CLIENTS.mac, NOBODY.mac, FARTHER.mac, [0; 6], [0xff; 6]] {
            words.push(mac.to_vec());
        }
        let addresses =
            [OUR_VTEP, PEER, PEER2, STRANGER, SERVER.v4, SERVICE.v4, CLIENT.v4, IN_B.v4, NOBODY.v4];
        for address in addresses.into_iter().chain([[127, 0, 0, 1], [224, 0, 0, 1], [0; 4]]) {
            words.push(address.to_vec());
        }
        for word in [0x0800_u16, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x9100, 0x88b5, 60]
            .into_iter()
            .chain([4789, 8472, PUBLISHED, 53, 80, 1000, 5000, 0, 0xffff, 0x2000, 0x4000])
        {
            words.push(word.to_be_bytes().to_vec());
        }
        for vni in [A, B, 0, 0xff_ffff] {
            words.push(vni.to_be_bytes()[1..].to_vec());
        }
        for byte in [0x45, 0x46, 0x4f, 0x60, 1, 2, 6, 17, 44, 58, 64, 0xff] {
            words.push(vec![byte]);
        }
        Self { words }
    }

    /// Changes `frame`, or leaves it as it is.
    pub(super) fn mutate(&self, random: &mut Random, frame: &mut Vec<u8>) {
        for _ in 0..random.below(5) {
            self.change(random, frame);
        }
        frame.truncate(LONGEST);
        if frame.len() < ETH_LEN {
            frame.resize(ETH_LEN, 0);
        }
        if random.below(2) == 0 {
            repair(frame, 0, random.below(2) == 0);
        }
    }

    fn change(&self, random: &mut Random, frame: &mut Vec<u8>) {
        let range = |random: &mut Random, frame: &[u8]| -> Range<usize> {
            let start = place(random, frame);
            let len = 1 + random.index(40);
            start..(start + len).min(frame.len())
        };
        match random.below(12) {
            0 | 1 => {
                let at = place(random, frame);
                frame[at] = byte(random);
            }
            2 | 3 => {
                let at = place(random, frame);
                frame[at] ^= 1 << random.below(8);
            }
            4..=7 => {
                let word = random.pick(&self.words);
                let at = self.field(random, frame, word.len());
                for (byte, value) in frame.iter_mut().skip(at).zip(word) {
                    *byte = *value;
                }
            }
            8 => {
                let len = 1 + random.index(frame.len());
                frame.truncate(len);
            }
            9 => {
                let more = 1 + random.index(64);
                frame.extend((0..more).map(|_| byte(random)));
            }
            10 => {
                // Headers twice.
                let copied = range(random, frame);
                let at = copied.end;
                let copy = frame[copied].to_vec();
                frame.splice(at..at, copy);
            }
            _ => {
                let removed = range(random, frame);
                if removed.len() < frame.len() {
                    frame.drain(removed);
                }
            }
        }
    }

    /// An offset for a value of `len` bytes: mostly one at which a header has a field of this
    /// length, of the frame or of the inner frame.
    fn field(&self, random: &mut Random, frame: &[u8], len: usize) -> usize {
        let fields: &[usize] = match len {
            6 => &[0, 6, 22, 32],
            4 => &[26, 30, 28, 38],
            // EtherType, lengths, fragment, ports.
            2 => &[12, 16, 18, 20, 34, 36, 38],
            // The VNI.
            3 => &[46],
            // Version and length, TOS, TTL, protocol, TCP flags.
            _ => &[14, 15, 20, 22, 23, 34, 47],
        };
        if random.below(4) == 0 {
            return place(random, frame);
        }
        let at = *random.pick(fields);
        let is_inner = len != 3 && random.below(2) == 0 && is_vxlan(frame);
        if is_inner { INNER + at } else { at }
    }
}

/// An offset in the frame, mostly in its headers. The frame is not empty.
fn place(random: &mut Random, frame: &[u8]) -> usize {
    let headers = if random.below(8) == 0 { frame.len() } else { frame.len().min(HEADERS) };
    random.index(headers)
}

fn byte(random: &mut Random) -> u8 {
    random.below(256) as u8
}

fn number(frame: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]))
}

/// Whether the frame looks like VXLAN.
fn is_vxlan(frame: &[u8]) -> bool {
    frame.len() > INNER + ETH_LEN && frame[12..15] == [8, 0, 0x45] && frame[36..38] == [0x12, 0xb5]
}

/// Writes the checksums of the IPv4 packet in the frame at offset `eth`, so that a program that
/// checks them reads on. Also writes the lengths if `lengths`.
fn repair(frame: &mut [u8], eth: usize, lengths: bool) {
    let l3 = eth + ETH_LEN;
    if frame.len() < l3 + 20 || frame[l3 - 2..l3] != [8, 0] {
        return;
    }
    let header_len = usize::from(frame[l3] & 15) * 4;
    let l4 = l3 + header_len;
    if header_len < 20 || frame.len() < l4 {
        return;
    }
    if lengths {
        let len = (frame.len() - l3) as u16;
        frame[l3 + 2..l3 + 4].copy_from_slice(&len.to_be_bytes());
    }
    let end = (l3 + number(frame, l3 + 2)).min(frame.len());
    frame[l3 + 10..l3 + 12].fill(0);
    let sum = checksum(&[&frame[l3..l4]]);
    frame[l3 + 10..l3 + 12].copy_from_slice(&sum);
    let is_fragment = number(frame, l3 + 6) & 0x3fff != 0;
    if end < l4 + 8 || is_fragment {
        return;
    }
    let protocol = frame[l3 + 9];
    let at = match protocol {
        1 => l4 + 2,
        6 if end >= l4 + 20 => l4 + 16,
        17 => l4 + 6,
        _ => return,
    };
    if protocol == 17 {
        if lengths {
            let len = (end - l4) as u16;
            frame[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes());
        }
        if eth == 0 && is_vxlan(frame) {
            repair(frame, INNER, lengths);
        }
        if frame[at..at + 2] == [0, 0] {
            return;
        }
    }
    frame[at..at + 2].fill(0);
    let len = ((end - l4) as u16).to_be_bytes();
    let pseudo = [0, protocol, len[0], len[1]];
    let addresses = &frame[l3 + 12..l3 + 20];
    let segment = &frame[l4..end];
    let sum = match protocol {
        1 => checksum(&[segment]),
        _ => checksum(&[addresses, &pseudo, segment]),
    };
    let sum = if protocol == 17 && sum == [0, 0] { [0xff; 2] } else { sum };
    frame[at..at + 2].copy_from_slice(&sum);
}

/// The checksum of RFC 1071 over parts, of which only the last may have an odd length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let sum = parts.iter().fold(Sum16BitWords::new(), |sum, part| sum.add_slice(part));
    sum.ones_complement().to_ne_bytes()
}

#[test]
fn repaired_checksums_are_right() {
    use crate::world::from_peer;
    use culvert_tests::{
        packet::{Tunnel, V4, payload},
        verify::Verifier,
    };
    let net = &NETS[0];
    let inner = V4::tcp(&net.far, &net.one, (1, 2), &payload(61)).frame();
    for packet in [
        V4::udp(&net.one, &net.far, (1, 2), &payload(60)).frame(),
        V4::icmp(&net.one, &net.far, 8, 0, [0, 7, 0, 1], &payload(31)).frame(),
        Tunnel { checksum: true, ..from_peer() }.wrap(&inner),
    ] {
        let mut frame = packet.clone();
        for at in [24, 25, frame.len() - 1] {
            frame[at] ^= 0x55;
        }
        assert!(Verifier::default().frame(&frame).is_err());
        repair(&mut frame, 0, true);
        Verifier::default().frame(&frame).unwrap();
    }
}
