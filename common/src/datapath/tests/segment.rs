//! What a segment changes in a flow, as whole conversations.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::abi::{Flow, kind, seen as bits};
use crate::datapath::conntrack::FlowState;
use crate::datapath::segment::{TcpSegment, change};
use crate::wire::tcp::{ACK, FIN, RST, SYN};

const TCP: u8 = 6;
/// Sequence numbers of the SYNs.
const CLIENT: u32 = u32::MAX - 2;
const SERVER: u32 = 7_000_000;

/// A segment with `len` bytes of payload.
fn segment(flags: u8, seq: u32, ack: u32, len: u32) -> TcpSegment {
    let flagged = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    TcpSegment { flags, seq, end: seq.wrapping_add(len).wrapping_add(flagged), ack }
}

/// A flow, as the programs keep it.
#[derive(Clone, Copy, Debug)]
struct Kept {
    orig: Flow,
    reply: Flow,
}

impl Kept {
    /// The flow that this segment begins.
    fn begin(first: TcpSegment) -> Self {
        let orig = Flow {
            kind: kind::ORIG,
            seen: first.opening(),
            last_ack: first.ack,
            first_seq: first.first(),
            next_seq: first.end,
            packets: 1,
            ..Flow::default()
        };
        Self { orig, reply: Flow { seen: first.opposite(), ..Flow::default() } }
    }

    /// A segment passes, as in `refresh` and `follow` of the programs. Returns whether it keeps the
    /// flow alive.
    fn pass(&mut self, from_orig: bool, segment: TcpSegment) -> bool {
        let Self { orig, reply } = self;
        let (flow, other) = if from_orig { (orig, reply) } else { (reply, orig) };
        flow.packets += 1;
        if segment.is_plain(flow) {
            if segment.moves_ack(flow) {
                flow.last_ack = segment.ack;
            }
            if segment.moves_seq(flow) {
                flow.next_seq = segment.end;
            }
            return true;
        }
        let before = *flow;
        let followed = segment.follow(flow, other);
        let has = |bit| followed.changes & bit != 0;
        flow.seen = followed.seen;
        if has(change::ACK) {
            flow.last_ack = segment.ack;
        }
        if has(change::FIRST) {
            flow.first_seq = segment.first();
        }
        if has(change::AHEAD) {
            flow.first_seq = segment.ahead(&before);
        }
        if has(change::NEXT) {
            flow.next_seq = segment.end;
        }
        if has(change::RESET) {
            other.seen |= bits::RST;
        }
        if has(change::RESTART) {
            (other.first_seq, other.next_seq) = (segment.ack, segment.ack);
            other.seen = bits::PACKET | bits::SYN;
        }
        has(change::TIME)
    }

    fn out(&mut self, flags: u8, seq: u32, ack: u32, len: u32) -> bool {
        self.pass(true, segment(flags, seq, ack, len))
    }

    fn back(&mut self, flags: u8, seq: u32, ack: u32, len: u32) -> bool {
        self.pass(false, segment(flags, seq, ack, len))
    }

    fn state(&self) -> FlowState {
        FlowState::of(TCP, self.orig.seen, self.reply.seen)
    }
}

/// A SYN was sent.
fn opened() -> Kept {
    Kept::begin(segment(SYN, CLIENT, 0x5a5a_5a5a, 0))
}

/// Numbers of the first bytes of payload.
const C1: u32 = CLIENT.wrapping_add(1);
const S1: u32 = SERVER + 1;

/// A connection after its handshake.
fn connected() -> Kept {
    let mut kept = opened();
    assert_eq!(kept.state(), FlowState::TcpSynSent);
    assert!(kept.back(SYN | ACK, SERVER, C1, 0));
    assert_eq!(kept.state(), FlowState::TcpSynRecv);
    assert!(kept.out(ACK, C1, S1, 0));
    assert_eq!(kept.state(), FlowState::TcpEstablished);
    kept
}

#[test]
fn a_handshake_establishes_and_both_fins_end() {
    let mut kept = connected();
    assert!(kept.out(ACK, C1, S1, 100));
    assert!(kept.back(ACK, S1, C1.wrapping_add(100), 60_000));
    assert!(kept.out(FIN | ACK, C1.wrapping_add(100), S1 + 60_000, 7));
    assert_eq!(kept.state(), FlowState::TcpFinWait);
    assert_eq!(kept.orig.next_seq, C1.wrapping_add(108));
    assert!(kept.back(FIN | ACK, S1 + 60_000, C1.wrapping_add(108), 0));
    assert_eq!(kept.state(), FlowState::TcpTimeWait);
}

#[test]
fn an_ack_that_acknowledges_nothing_sent_does_not_establish() {
    for ack in [0, SERVER, S1 + 1, S1.wrapping_sub(1 << 20), 0xdead_beef] {
        // After the SYN, and after the server's answer.
        let mut kept = opened();
        kept.out(ACK, C1, ack, 0);
        kept.out(ACK, C1, ack, 10);
        assert_eq!(kept.state(), FlowState::TcpSynSent, "{ack}");
        kept.back(SYN | ACK, SERVER, C1, 0);
        kept.out(ACK, C1, ack, 0);
        kept.out(FIN | ACK, C1, ack, 0);
        assert_eq!(kept.state(), FlowState::TcpSynRecv, "{ack}");
        kept.out(ACK, C1, S1, 0);
        assert_eq!(kept.state(), FlowState::TcpEstablished, "{ack}");
    }
}

#[test]
fn a_syn_ack_that_acknowledges_another_syn_changes_nothing() {
    for ack in [0, CLIENT, C1.wrapping_add(1), 12_345] {
        let mut kept = opened();
        kept.back(SYN | ACK, 99, ack, 0);
        kept.back(ACK, 100, ack, 0);
        kept.out(ACK, C1, 100, 0);
        assert_eq!((kept.state(), kept.reply.seen), (FlowState::TcpSynSent, 0), "{ack}");
        // The server's own answer comes later.
        kept.back(SYN | ACK, SERVER, C1, 0);
        kept.out(ACK, C1, S1, 0);
        assert_eq!(kept.state(), FlowState::TcpEstablished, "{ack}");
    }
}

#[test]
fn a_syn_of_the_other_side_without_ack_is_replaced_by_the_answer() {
    let mut kept = opened();
    kept.back(SYN, 99, 0, 0);
    kept.back(SYN, 4_000, 0, 0);
    kept.back(ACK, 100, 5, 0);
    kept.back(SYN | ACK, SERVER, C1, 0);
    assert_eq!((kept.reply.first_seq, kept.reply.next_seq), (S1, S1));
    kept.out(ACK, C1, S1, 0);
    assert_eq!(kept.state(), FlowState::TcpEstablished);
}

#[test]
fn both_sides_open_at_once() {
    let mut kept = opened();
    kept.back(SYN, SERVER, 0, 0);
    kept.out(SYN | ACK, CLIENT, S1, 0);
    kept.back(SYN | ACK, SERVER, C1, 0);
    assert_eq!(kept.state(), FlowState::TcpSynRecv);
    kept.out(ACK, C1, S1, 5);
    assert_eq!(kept.state(), FlowState::TcpEstablished);
}

#[test]
fn data_in_the_syn_and_before_the_first_ack() {
    // TCP Fast Open (RFC 7413): the server acknowledges the data or only the SYN, and sends before
    // it has an ACK.
    for taken in [0, 500] {
        let mut kept = Kept::begin(segment(SYN, CLIENT, 0, 500));
        kept.back(SYN | ACK, SERVER, C1.wrapping_add(taken), 0);
        kept.back(ACK, S1, C1.wrapping_add(taken), 9_000);
        kept.out(ACK, C1.wrapping_add(500), S1 + 3_000, 0);
        assert_eq!(kept.state(), FlowState::TcpEstablished);
    }
}

#[test]
fn mid_stream_needs_acknowledgements_of_both_sides() {
    let mut kept = Kept::begin(segment(ACK, 1_000, 5_000, 100));
    assert_eq!(kept.state(), FlowState::TcpLoose);
    // More of the same side, and an answer to nothing that was sent.
    kept.out(ACK, 1_100, 5_000, 64_000);
    kept.back(ACK, 5_000, 65_101, 10);
    kept.back(ACK, 5_000, 999, 10);
    assert_eq!((kept.state(), kept.reply.seen), (FlowState::TcpLoose, 0));
    kept.back(ACK, 5_000, 1_100, 10);
    kept.out(ACK, 65_100, 5_011, 0);
    assert_eq!(kept.state(), FlowState::TcpLoose);
    kept.out(ACK, 65_100, 5_010, 0);
    assert_eq!(kept.state(), FlowState::TcpEstablished);
}

#[test]
fn mid_stream_download() {
    let mut kept = Kept::begin(segment(ACK, 1_000, 5_000_000, 0));
    for round in 0..20 {
        let at = 6_000_000 + round * 60_000;
        kept.back(ACK, at, 1_000, 60_000);
        // The client is 3 segments behind.
        kept.out(ACK, 1_000, at - 120_000, 0);
    }
    assert_eq!(kept.state(), FlowState::TcpEstablished);
}

#[test]
fn an_rst_is_believed_at_the_numbers_that_are_expected() {
    // The client has sent 100 bytes, of which the server has acknowledged 40.
    let sent = || {
        let mut kept = connected();
        kept.out(ACK, C1, S1, 100);
        kept.back(ACK, S1, C1.wrapping_add(40), 0);
        kept
    };
    for (offset, wanted) in [(39, false), (40, true), (41, false), (99, false), (100, true)] {
        let mut kept = sent();
        kept.out(RST, C1.wrapping_add(offset), 0, 0);
        assert_eq!(kept.state() == FlowState::TcpClose, wanted, "{offset}");
    }
    for seq in [0, S1 - 1, S1 + 1, S1 + (1 << 20), C1] {
        let mut kept = sent();
        kept.back(RST, seq, 0, 0);
        kept.back(RST | ACK, seq, C1, 0);
        assert_eq!(kept.state(), FlowState::TcpEstablished, "{seq}");
    }
}

#[test]
fn an_rst_refuses_the_syn_that_it_acknowledges() {
    for (flags, seq, ack, wanted) in [
        (RST | ACK, 0, C1, true),
        (RST | ACK, 0, C1.wrapping_add(1), false),
        (RST | ACK, 0, CLIENT, false),
        (RST, 0, C1, false),
        // The number in the field of a SYN without ACK.
        (RST, 0x5a5a_5a5a, 0, false),
    ] {
        let mut kept = opened();
        kept.back(flags, seq, ack, 0);
        let state = if wanted { FlowState::TcpClose } else { FlowState::TcpSynSent };
        assert_eq!(kept.state(), state, "{flags:#x} {seq} {ack}");
    }
    // A server that knows nothing of a connection takes its number from the segment.
    let mut kept = Kept::begin(segment(ACK, 1_000, 5_000, 100));
    kept.back(RST, 5_001, 0, 0);
    assert_eq!(kept.state(), FlowState::TcpLoose);
    kept.back(RST, 5_000, 0, 0);
    assert_eq!(kept.state(), FlowState::TcpClose);
}

#[test]
fn nothing_revives_what_was_reset() {
    let mut kept = connected();
    assert!(kept.back(RST, S1, 0, 0));
    let reset = kept;
    for flags in [ACK, ACK | FIN, RST, SYN, SYN | ACK, 0] {
        assert!(!kept.out(flags, C1, S1, 10), "{flags:#x}");
        assert!(!kept.back(flags, S1, C1, 10), "{flags:#x}");
    }
    assert_eq!((kept.orig.seen, kept.reply.seen), (reset.orig.seen, reset.reply.seen));
    assert_eq!(kept.state(), FlowState::TcpClose);
}

#[test]
fn a_fin_is_believed_at_the_end_of_what_was_sent() {
    for (distance, wanted) in [
        (0, true),
        (65_536, true),
        (65_537, false),
        (1_u32.wrapping_neg(), true),
        (2_u32.wrapping_neg(), false),
        (1 << 31, false),
    ] {
        let mut kept = connected();
        kept.out(FIN | ACK, C1.wrapping_add(distance), S1, 0);
        assert_eq!(kept.state() == FlowState::TcpFinWait, wanted, "{distance:#x}");
    }
}

#[test]
fn a_new_connection_replaces_one_whose_end_was_not_seen() {
    let mut kept = connected();
    kept.back(ACK, S1, C1, 0);
    let (client, server) = (1_000_000_000, 3_000_000_000);
    // A SYN alone changes no state, nor does an answer to another SYN.
    kept.out(SYN, client, 0, 0);
    kept.back(SYN | ACK, server, client, 0);
    assert_eq!(kept.state(), FlowState::TcpEstablished);
    kept.back(SYN | ACK, server, client + 1, 0);
    assert_eq!(kept.state(), FlowState::TcpSynRecv);
    kept.out(ACK, client + 1, server + 1, 0);
    assert_eq!(kept.state(), FlowState::TcpEstablished);
    kept.out(FIN | ACK, client + 1, server + 1, 0);
    kept.back(FIN | ACK, server + 1, client + 2, 0);
    assert_eq!(kept.state(), FlowState::TcpTimeWait);
}

#[test]
fn a_handshake_whose_last_ack_was_lost() {
    let mut kept = connected();
    kept.back(SYN | ACK, SERVER, C1, 0);
    kept.out(SYN, CLIENT, 0, 0);
    assert_eq!(kept.state(), FlowState::TcpEstablished);
}

#[test]
fn numbers_that_were_not_seen_are_taken_up_again() {
    let mut kept = connected();
    kept.back(ACK, S1, C1, 10);
    // Two MB each way pass unseen.
    let (client, server) = (C1.wrapping_add(2 << 20), S1 + (2 << 20));
    kept.out(ACK, client, S1 + 10, 100);
    assert_eq!(kept.orig.next_seq, C1, "nobody has acknowledged that");
    kept.back(ACK, S1 + 10, C1, 900_000);
    kept.back(ACK, S1 + 900_010, C1, 900_000);
    kept.back(ACK, S1 + 1_800_010, C1, (2 << 20) - 1_800_010);
    kept.out(ACK, client, server, 0);
    assert_eq!(kept.orig.last_ack, server, "the server has sent it");
    kept.back(ACK, server, client.wrapping_add(100), 0);
    assert_eq!(kept.reply.last_ack, client.wrapping_add(100), "both sides say so");
    kept.out(ACK, client.wrapping_add(100), server, 100);
    assert_eq!(kept.orig.next_seq, client.wrapping_add(200));
    kept.out(RST, client.wrapping_add(200), 0, 0);
    assert_eq!(kept.state(), FlowState::TcpClose);
}

/// A transfer with `window` bytes under way, which goes on after a gap of `gap` bytes that was not
/// seen. Returns the flow at its end, when all is acknowledged, and the number of segments before
/// both sides' numbers were known again.
fn transfer_after(gap: u32, window: u32, total: u32) -> (Kept, Option<u32>) {
    const STEP: u32 = 60_000;
    let mut kept = connected();
    kept.back(ACK, S1, C1, 10);
    kept.out(ACK, C1, S1 + 10, 10);
    let start = S1.wrapping_add(gap);
    let mut known = None;
    let (mut sent, mut acked) = (0, 0);
    for round in 0.. {
        if sent < total {
            kept.back(ACK, start.wrapping_add(sent), C1.wrapping_add(10), STEP);
            sent += STEP;
        }
        if sent - acked > window || sent >= total {
            acked += STEP;
            kept.out(ACK, C1.wrapping_add(10), start.wrapping_add(acked), 0);
        }
        let numbers = (kept.reply.next_seq, kept.orig.last_ack);
        if numbers == (start.wrapping_add(sent), start.wrapping_add(acked)) && known.is_none() {
            known = Some(round);
        }
        if sent >= total && acked >= sent {
            return (kept, known);
        }
    }
    unreachable!()
}

#[test]
fn a_transfer_whose_numbers_are_stale_is_followed_again() {
    for gap in [2 << 20, 50 << 20, 1 << 30, 3 << 29, (2 << 30) + (7 << 20), 0xb000_0000] {
        for window in [0, 200_000, 3 << 20, 60 << 20, 900 << 20] {
            if gap > 0xa000_0000 && window > 100 << 20 {
                // More than 3 GB ahead is as if it were sent again.
                continue;
            }
            let (kept, known) = transfer_after(gap, window, window + (40 << 20));
            let known = known.unwrap_or(u32::MAX);
            // A round trip, in which the window is sent.
            assert!(known <= window / 60_000 + 40, "{gap} {window}: {known}");
            let (end, flow) = (kept.reply.next_seq, &kept.reply);
            assert_eq!((kept.orig.last_ack, flow.seen & bits::AHEAD), (end, 0), "{gap} {window}");
            let mut closed = kept;
            closed.back(FIN | ACK, end, C1.wrapping_add(10), 0);
            assert_eq!(closed.state(), FlowState::TcpFinWait);
            closed.out(FIN | ACK, C1.wrapping_add(10), end + 1, 0);
            assert_eq!(closed.state(), FlowState::TcpTimeWait);
            let mut reset = kept;
            reset.back(RST, end, 0, 0);
            assert_eq!(reset.state(), FlowState::TcpClose);
        }
    }
}

#[test]
fn a_stale_transfer_that_ends_at_once_is_followed_again() {
    // All that was not believed is less than what is under way.
    let (mut kept, _) = transfer_after(50 << 20, 900 << 20, 30 << 20);
    let end = S1 + (50 << 20) + (30_u32 << 20).next_multiple_of(60_000);
    kept.back(ACK, end, C1.wrapping_add(10), 5);
    assert_eq!((kept.orig.last_ack, kept.reply.next_seq), (end, end + 5));
}

#[test]
fn a_close_that_comes_first_after_a_gap_ends_the_flow() {
    // Only the FINs of both sides and the last acknowledgement are seen.
    let mut kept = connected();
    kept.back(ACK, S1, C1, 10);
    kept.out(ACK, C1, S1 + 10, 10);
    let stale = kept;
    let (client, server) = (C1.wrapping_add(50 << 20), S1 + (70 << 20));
    kept.out(FIN | ACK, client, server, 0);
    kept.back(FIN | ACK, server, client.wrapping_add(1), 0);
    assert_eq!(kept.state(), FlowState::TcpEstablished);
    kept.out(ACK, client.wrapping_add(1), server + 1, 0);
    assert_eq!(kept.state(), FlowState::TcpFinWait);
    // A FIN elsewhere closes nothing, whether the numbers of the transfer come after it or before.
    for forged in [C1.wrapping_add(90 << 20), client.wrapping_sub(90_000), client] {
        for first in [true, false] {
            let mut kept = stale;
            if first {
                kept.out(FIN | ACK, forged, S1 + 10, 0);
            }
            kept.out(ACK, client, S1 + 10, 200_000);
            if !first && forged != client {
                kept.out(FIN | ACK, forged, S1 + 10, 0);
            }
            let sent = client.wrapping_add(200_000);
            kept.out(ACK, sent, S1 + 10, 100);
            kept.back(ACK, S1 + 10, sent.wrapping_add(100), 0);
            kept.out(ACK, sent.wrapping_add(100), S1 + 10, 0);
            assert_eq!(kept.orig.next_seq, sent.wrapping_add(100));
            assert_eq!(kept.state(), FlowState::TcpEstablished, "{forged:#x} {first}");
            assert_eq!(kept.orig.seen & (bits::AHEAD | bits::AHEAD_FIN), 0);
        }
    }
}

/// A transfer of which segments are lost before this host. Each of `holes` has a number of segments
/// that pass, and of others after them that are lost. `more` segments pass after these, then the
/// lost ones again, and `delay` segments before all of that is acknowledged. Returns the number of
/// rounds from there until both sides' numbers are known.
fn transfer_after_losses(holes: &[(u32, u32)], more: u32, delay: u32) -> Option<u32> {
    const STEP: u32 = 60_000;
    let mut kept = connected();
    kept.back(ACK, S1, C1, 10);
    kept.out(ACK, C1, S1 + 10, 10);
    let at = |segment: u32| S1 + 10 + segment * STEP;
    let client = C1.wrapping_add(10);
    let send = |kept: &mut Kept, segment: u32| kept.back(ACK, at(segment), client, STEP);
    let acknowledge = |kept: &mut Kept, segments: u32| kept.out(ACK, client, at(segments), 0);
    let (mut missing, mut window) = (BTreeSet::new(), 0);
    for (passed, lost) in holes {
        window += passed;
        missing.extend(window..window + lost);
        window += lost;
    }
    window += more;
    for segment in (0..window).filter(|segment| !missing.contains(segment)) {
        send(&mut kept, segment);
        let known = missing.first().copied().unwrap_or(window);
        acknowledge(&mut kept, known.min(segment + 1));
    }
    while let Some(segment) = missing.pop_first() {
        send(&mut kept, segment);
        if let Some(next) = missing.first() {
            acknowledge(&mut kept, *next);
        }
    }
    for segment in window..window + delay {
        send(&mut kept, segment);
    }
    (0..100_u32).find(|round| {
        acknowledge(&mut kept, window + round);
        send(&mut kept, window + delay + round);
        let known = (kept.reply.next_seq, kept.orig.last_ack);
        known == (at(window + delay + round + 1), at(window + round))
    })
}

#[test]
fn numbers_lead_on_once_what_was_missing_before_them_was_sent() {
    let mut kept = connected();
    let send = |kept: &mut Kept, offset: u32, len: u32| {
        kept.out(ACK, C1.wrapping_add(offset), S1 + 100, len);
        kept.orig.next_seq.wrapping_sub(C1)
    };
    kept.out(ACK, C1, S1, 100);
    kept.back(ACK, S1, C1.wrapping_add(100), 100);
    assert_eq!(send(&mut kept, 2 << 20, 0), 100);
    assert_eq!(send(&mut kept, 100, 900_000), 900_100);
    // More than a MB is still missing.
    assert_eq!(send(&mut kept, (2 << 20) + 60_000, 0), 900_100);
    assert_eq!(send(&mut kept, 900_100, 300_000), 1_200_100);
    assert_eq!(send(&mut kept, 2_400_000, 0), 2_400_000);
    assert_eq!(kept.orig.seen & bits::AHEAD, 0);
}

#[test]
fn a_flow_picked_up_in_a_fast_transfer_is_established() {
    let window = 64 << 20;
    let mut kept = Kept::begin(segment(ACK, 1_000, 5_000, 0));
    for sent in 0..2048_u32 {
        kept.back(ACK, S1 + sent * 65_536, 1_000, 65_536);
        kept.out(ACK, 1_000, (S1 + (sent + 1) * 65_536).wrapping_sub(window), 0);
    }
    assert_eq!(kept.state(), FlowState::TcpEstablished);
}

#[test]
fn the_numbers_of_one_side_alone_are_not_taken_up() {
    // Whatever is sent in the name of the client, and whatever is acknowledged in the name of the
    // server, the other side's own segments do not confirm it.
    let mut kept = connected();
    kept.out(ACK, C1, S1, 100);
    kept.back(ACK, S1, C1.wrapping_add(100), 100);
    let before = kept;
    for far in 3_u32..4092 {
        let seq = C1.wrapping_add(far << 20);
        for len in [0, 1_000_000, 2_000_000] {
            kept.out(ACK, seq, S1 + 100, len);
        }
        kept.out(FIN | ACK, seq.wrapping_add(2_000_000), S1 + 100, 0);
    }
    for far in 17_u32..4096 {
        let mut forged = before;
        forged.back(ACK, S1 + 100, C1.wrapping_add(far << 20), 0);
        assert_eq!(forged.reply.last_ack, before.reply.last_ack, "{far}");
    }
    assert_eq!(kept.state(), FlowState::TcpEstablished);
    assert_eq!(kept.orig.next_seq, before.orig.next_seq);
}

/// Numbers that are tried one after the other, in steps of which each is believed after the one
/// before: with another acknowledgement, and after such acknowledgements.
#[test]
fn numbers_that_are_tried_in_steps_change_nothing() {
    let numbers = |kept: &Kept| {
        let Kept { orig, reply } = kept;
        [orig.next_seq, orig.last_ack, reply.next_seq, reply.last_ack]
    };
    for (has_data, from_orig) in [(false, false), (false, true), (true, false), (true, true)] {
        for (seq, ack) in [(0x1234_5678_u32, 0x9abc_def0_u32), (0x8000_0000, 0x4000_0000)] {
            let mut kept = connected();
            if has_data {
                kept.out(ACK, C1, S1, 100);
                kept.back(ACK, S1, C1.wrapping_add(100), 100);
                kept.out(ACK, C1.wrapping_add(100), S1 + 100, 0);
            }
            let before = numbers(&kept);
            let steps = (0..4200_u32).map(|step| step << 20);
            let mut last = ack;
            for step in steps.clone() {
                last = ack.wrapping_add(step);
                kept.pass(from_orig, segment(ACK, seq, last, 0));
            }
            for at in steps.map(|step| seq.wrapping_add(step)) {
                for ack in [ack, last] {
                    kept.pass(from_orig, segment(ACK, at, ack, 0));
                    for _ in 0..2 {
                        kept.pass(from_orig, segment(FIN | ACK, at.wrapping_sub(1), ack, 0));
                    }
                    kept.pass(from_orig, segment(RST, at, ack, 0));
                }
            }
            let tried = format!("{has_data} {from_orig} {seq:#x} {ack:#x}");
            assert_eq!(kept.state(), FlowState::TcpEstablished, "{tried}");
            assert_eq!(numbers(&kept), before, "{tried}");
        }
    }
}

#[test]
fn a_fin_is_believed_with_an_acknowledgement_or_at_the_next_number() {
    for (offset, ahead, wanted) in [
        (0, 1 << 20, true),
        (9, 1 << 20, true),
        (0, 50 << 20, true),
        (1, 50 << 20, false),
        (1_u32.wrapping_neg(), 50 << 20, false),
    ] {
        let mut kept = connected();
        kept.back(ACK, S1, C1, 10);
        kept.out(FIN | ACK, C1.wrapping_add(offset), S1 + ahead, 0);
        assert_eq!(kept.state() == FlowState::TcpFinWait, wanted, "{offset:#x} {ahead}");
    }
}

#[test]
fn a_fin_that_earlier_programs_have_left_does_not_count() {
    let mut kept = connected();
    kept.back(ACK, S1, C1, 10);
    // They have cleared `AHEAD` alone.
    let client = C1.wrapping_add(2 << 20);
    kept.orig.first_seq = ((client >> 16) << 16) | (client >> 16);
    kept.orig.seen |= bits::AHEAD_FIN;
    kept.out(ACK, client, S1 + 10, 0);
    assert_eq!(kept.orig.seen & (bits::AHEAD | bits::AHEAD_FIN), bits::AHEAD);
}

#[test]
fn a_keepalive_probe_and_its_answer_are_acknowledged() {
    // The probe has the number before the next one.
    let mut kept = Kept::begin(segment(ACK, 999, 5_000, 0));
    kept.back(ACK, 5_000, 1_001, 0);
    assert_eq!(kept.reply.seen, 0, "that was not sent");
    kept.back(ACK, 5_000, 1_000, 0);
    kept.out(ACK, 999, 5_000, 0);
    assert_eq!(kept.state(), FlowState::TcpEstablished);
    // Of a direction with a SYN all is known.
    let mut kept = opened();
    kept.back(ACK, S1, C1.wrapping_add(1), 0);
    assert_eq!(kept.reply.seen, 0);
}

#[test]
fn a_new_connection_replaces_one_that_was_picked_up() {
    for from_orig in [true, false] {
        let mut kept = Kept::begin(segment(ACK, 1_000, 5_000, 100));
        kept.back(ACK, 5_000, 1_100, 10);
        kept.out(ACK, 1_100, 5_010, 0);
        assert_eq!(kept.state(), FlowState::TcpEstablished);
        let (client, server) = (1_000_000_000, 3_000_000_000);
        kept.pass(from_orig, segment(SYN, client, 0, 0));
        kept.pass(!from_orig, segment(SYN | ACK, server, client, 0));
        assert_eq!(kept.state(), FlowState::TcpEstablished);
        kept.pass(!from_orig, segment(SYN | ACK, server, client + 1, 0));
        assert_eq!(kept.state(), FlowState::TcpSynRecv);
        kept.pass(from_orig, segment(ACK, client + 1, server + 1, 0));
        kept.pass(!from_orig, segment(ACK, server + 1, client + 1, 10));
        assert_eq!(kept.state(), FlowState::TcpEstablished);
        kept.pass(from_orig, segment(FIN | ACK, client + 1, server + 11, 0));
        kept.pass(!from_orig, segment(FIN | ACK, server + 11, client + 2, 0));
        assert_eq!(kept.state(), FlowState::TcpTimeWait);
    }
}

#[test]
fn a_syn_that_was_not_answered_makes_no_other_acknowledgement_count() {
    let mut kept = opened();
    kept.back(SYN | ACK, SERVER, C1, 0);
    // A SYN with another number, of a sender that does not see the connection.
    kept.out(SYN, C1.wrapping_sub(1 << 19), 0, 0);
    kept.back(ACK, S1, C1.wrapping_sub(1000), 0);
    assert_eq!(kept.reply.seen & bits::ACK, 0);
    kept.back(ACK, S1, C1, 0);
    assert_ne!(kept.reply.seen & bits::ACK, 0);
}

#[test]
fn lost_acknowledgements_of_a_fast_connection() {
    let mut kept = connected();
    // 8 MB are under way, and the first ACK that arrives is for 4 MB of them.
    for sent in 0..128 {
        kept.back(ACK, S1 + sent * 65_536, C1, 65_536);
    }
    kept.out(ACK, C1, S1 + (4 << 20), 0);
    assert_eq!(kept.orig.last_ack, S1 + (4 << 20));
    // Nobody can acknowledge what was not sent.
    kept.out(ACK, C1, S1 + (9 << 20), 0);
    assert_eq!(kept.orig.last_ack, S1 + (4 << 20));
}

#[test]
fn a_flow_without_numbers_takes_those_of_its_next_segment() {
    let orig = Flow { kind: kind::ORIG, ..Flow::default() };
    let mut kept = Kept { orig, reply: Flow::default() };
    assert_eq!(kept.state(), FlowState::TcpLoose);
    kept.back(ACK, S1, C1, 100);
    kept.out(ACK, C1, S1 + 100, 100);
    kept.back(ACK, S1, C1.wrapping_add(100), 100);
    assert_eq!(kept.state(), FlowState::TcpEstablished);
}

#[test]
fn few_packets_to_the_hosts_stack_read_the_other_direction() {
    let mut flow = Flow { kind: kind::ORIG | kind::HOST, ..opened().orig };
    let data = segment(ACK, C1, S1, 10);
    let plain = (0..1024_u64).filter(|count| {
        flow.packets = *count;
        data.is_plain(&flow)
    });
    assert_eq!(plain.count(), 1024 - 17 - 3);
}

proptest! {
    /// Segments of one side alone, with any numbers, establish no connection and end none.
    #[test]
    fn one_side_alone_changes_no_state(
        from_orig: bool,
        is_connected: bool,
        segments in prop::collection::vec((0_u8..64, any::<u32>(), any::<u32>(), 0_u32..3000), 1..20),
    ) {
        // Numbers that are right by chance are not what is tested.
        let near = |number: u32, at: u32| number.wrapping_sub(at).wrapping_add(1 << 22) < 1 << 23;
        let mut kept = if is_connected { connected() } else { opened() };
        let before = kept.state();
        for (flags, seq, ack, len) in segments {
            prop_assume!(![C1, S1].iter().any(|at| near(seq, *at) || near(ack, *at)));
            prop_assume!(!near(seq, 0x5a5a_5a5a));
            // A SYN of the client begins again what is not yet answered.
            let flags = if from_orig { flags & !SYN & !RST } else { flags & !SYN };
            kept.pass(from_orig, segment(flags, seq, ack, len));
            prop_assert_eq!(kept.state(), before);
        }
    }

    /// More than 1 MB is lost before this host, then up to four times less than 1 MB, and more than
    /// 1 MB is under way after it.
    #[test]
    fn a_transfer_is_followed_again_after_losses(
        lost in 18_u32..120,
        others in prop::collection::vec((1_u32..30, 1_u32..=16), 0..5),
        more in 20_u32..600,
        delay in 1_u32..60,
    ) {
        let holes = [vec![(0, lost)], others].concat();
        let rounds = transfer_after_losses(&holes, more, delay);
        prop_assert!(matches!(rounds, Some(0 | 1)), "{:?}", rounds);
    }

    /// Segments of any content do not panic, and a reset flow stays reset.
    #[test]
    fn any_segments(
        segments in prop::collection::vec((any::<bool>(), any::<(u8, u32, u32, u32)>()), 1..50),
    ) {
        let mut kept = opened();
        for (from_orig, (flags, seq, end, ack)) in segments {
            let was_reset = kept.state() == FlowState::TcpClose;
            let alive = kept.pass(from_orig, TcpSegment { flags, seq, end, ack });
            prop_assert!(!was_reset || kept.state() == FlowState::TcpClose);
            prop_assert!(!was_reset || !alive);
        }
    }
}
