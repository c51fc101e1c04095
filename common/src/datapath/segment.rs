//! What conntrack believes of a TCP segment (RFC 9293, RFC 5961).
//!
//! Anybody can send a segment with the addresses and ports of a flow. So a segment changes the
//! state of the flow only if its numbers show that its sender has seen what the other side sent, or
//! knows what its own side has sent. A segment that changes nothing is forwarded all the same: its
//! receiver decides.

use crate::abi::{Flow, kind, seen};
use crate::wire::TcpStart;
use crate::wire::tcp::{ACK, FIN, RST, SYN};

/// Largest distance, in bytes, of a number from the last one that was believed: a gap of lost
/// segments, or of lost acknowledgements. A sender that guesses hits it once in 4096 times. Both
/// numbers of a segment must be that near: of one number alone it could try all in steps of this
/// size, and each would be believed after the first hit.
const WINDOW: u32 = 1 << 20;

/// Largest number of bytes that a sender may have under way: the window of TCP with its largest
/// scale (RFC 7323 §2.3).
const IN_FLIGHT: u32 = 1 << 30;

/// Number of low bits that a number of [`seen::AHEAD`] lacks.
const BLOCK_BITS: u32 = 16;

/// Mask of a number without these bits.
const BLOCK: u32 = u32::MAX >> BLOCK_BITS;

/// Largest distance, in bytes, of a FIN from the end of what its side has sent: segments that the
/// network has delivered after it. A sender that guesses hits it once in about 60,000 times.
const REORDERED: u32 = 1 << 16;

/// Number of packets of a flow to the host's stack after which few of its acknowledgements are
/// compared, see [`TcpSegment::is_plain`].
const COMPARED: u64 = 16;

/// What conntrack reads of a TCP segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSegment {
    /// Flags of the header; 0 if the packet has no TCP header.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Sequence number after the segment: SYN, payload and FIN have one number for each byte or
    /// flag.
    pub end: u32,
    /// Acknowledgement number.
    pub ack: u32,
}

/// Bits of [`Followed::changes`]: the fields of the flow that the segment sets.
pub mod change {
    /// [`Flow::last_seen_ns`](crate::abi::Flow::last_seen_ns): the segment keeps the flow alive.
    pub const TIME: u32 = 1;
    /// [`Flow::last_ack`](crate::abi::Flow::last_ack).
    pub const ACK: u32 = 1 << 1;
    /// [`Flow::first_seq`](crate::abi::Flow::first_seq).
    pub const FIRST: u32 = 1 << 2;
    /// [`Flow::next_seq`](crate::abi::Flow::next_seq).
    pub const NEXT: u32 = 1 << 3;
    /// The other direction is reset, too.
    pub const RESET: u32 = 1 << 4;
    /// The other direction begins anew: it has sent the SYN that this segment acknowledges.
    pub const RESTART: u32 = 1 << 5;
    /// [`Flow::first_seq`](crate::abi::Flow::first_seq) becomes
    /// [`TcpSegment::ahead`](super::TcpSegment::ahead).
    pub const AHEAD: u32 = 1 << 6;
}

/// The effect of a segment on a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// New [`Flow::seen`] of the segment's direction.
    pub seen: u32,
    /// Bits of [`change`].
    pub changes: u32,
}

/// Distance from `from` to `to` in bytes, negative if `to` is before `from` (RFC 9293 §3.4).
#[inline(always)]
const fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from) as i32
}

/// Whether `to` is ahead of `from`, by [`WINDOW`] at most.
#[inline(always)]
const fn moves(from: u32, to: u32) -> bool {
    let ahead = to.wrapping_sub(from);
    ahead != 0 && ahead <= WINDOW
}

/// Whether `to` is at most [`WINDOW`] ahead of `from` or behind it.
#[inline(always)]
const fn is_near(from: u32, to: u32) -> bool {
    to.wrapping_sub(from).wrapping_add(WINDOW) <= 2 * WINDOW
}

/// Whether `to` is more than [`WINDOW`] ahead of `from`. It may have any distance, except that what
/// is at most [`IN_FLIGHT`] behind is sent again, or came late.
#[inline(always)]
const fn is_far(from: u32, to: u32) -> bool {
    to.wrapping_sub(from).wrapping_add(IN_FLIGHT) > IN_FLIGHT + WINDOW
}

/// Number of blocks from `from` to `to`, which are numbers of blocks.
#[inline(always)]
const fn blocks(from: u32, to: u32) -> u32 {
    to.wrapping_sub(from) & BLOCK
}

/// Whether the acknowledgement `ack` of the other side confirms numbers that the direction `flow`
/// has sent, see [`TcpSegment::ahead`]: it has just passed the first of them, or it is at the last
/// one. A number that is guessed does so once in about 4000 times.
#[inline(always)]
const fn confirms(ack: u32, flow: &Flow) -> bool {
    let (first, last) = (flow.first_seq >> BLOCK_BITS, flow.first_seq & BLOCK);
    let (acked, sent) = (blocks(first, ack >> BLOCK_BITS), blocks(first, last));
    flow.seen & seen::AHEAD != 0
        && acked <= sent
        && (acked <= WINDOW >> BLOCK_BITS || acked == sent)
}

/// Whether what was believed since is among the numbers of [`seen::AHEAD`], or less than [`WINDOW`]
/// before the first one: what was missing before them has been sent again, perhaps with what was
/// missing among them. In order, each of them would have been believed.
#[inline(always)]
const fn leads_on(flow: &Flow) -> bool {
    let (first, last) = (flow.first_seq >> BLOCK_BITS, flow.first_seq & BLOCK);
    // The numbers of two blocks may be nearly one block further apart than the blocks.
    let before = (WINDOW >> BLOCK_BITS) - 1;
    let reached = blocks(first.wrapping_sub(before), flow.next_seq >> BLOCK_BITS);
    flow.seen & seen::AHEAD != 0 && reached <= blocks(first, last) + before
}

impl TcpSegment {
    /// The segment with this header in `upper_len` bytes of header and payload. Of a fragmented
    /// packet only the first fragment counts.
    #[inline(always)]
    pub const fn new(tcp: &TcpStart, upper_len: u32) -> Self {
        let (flags, seq) = (tcp.flags(), tcp.seq());
        let payload = upper_len.saturating_sub(tcp.header_len());
        let flagged = (flags & SYN != 0) as u32 + (flags & FIN != 0) as u32;
        let end = seq.wrapping_add(payload).wrapping_add(flagged);
        Self { flags, seq, end, ack: tcp.ack() }
    }

    /// The sequence number of the first byte of payload.
    #[inline(always)]
    pub const fn first(&self) -> u32 {
        self.seq.wrapping_add((self.flags & SYN != 0) as u32)
    }

    /// [`Flow::seen`] of a direction whose first segment this is.
    #[inline(always)]
    pub const fn opening(&self) -> u32 {
        let mut bits = seen::PACKET;
        if self.flags & RST != 0 {
            return bits | seen::RST;
        }
        if self.flags & SYN != 0 {
            bits |= seen::SYN;
        }
        bits
    }

    /// [`Flow::seen`] of the other direction when this segment begins a flow.
    #[inline(always)]
    pub const fn opposite(&self) -> u32 {
        if self.flags & RST != 0 { seen::RST } else { 0 }
    }

    /// Whether the segment of a direction `flow` can only move its numbers on: the other direction
    /// need not be read, and [`Self::moves_seq`] and [`Self::moves_ack`] tell the changes. This is
    /// true of nearly all segments of a connection.
    #[inline(always)]
    pub const fn is_plain(&self, flow: &Flow) -> bool {
        if self.flags & (SYN | FIN | RST | ACK) != ACK || flow.seen & seen::RST != 0 {
            return false;
        }
        if flow.seen & seen::ACK == 0 {
            // The host answers most of its flows without a program, so that nothing of the other
            // direction is known that could be acknowledged.
            let count = flow.packets;
            return flow.kind & kind::HOST != 0 && count > COMPARED && count & 0xff != 0;
        }
        is_near(flow.next_seq, self.end) && is_near(flow.last_ack, self.ack)
    }

    /// Whether a plain segment sends more than its direction has sent.
    #[inline(always)]
    pub const fn moves_seq(&self, flow: &Flow) -> bool {
        moves(flow.next_seq, self.end)
    }

    /// Whether a plain segment acknowledges more than its direction has acknowledged.
    #[inline(always)]
    pub const fn moves_ack(&self, flow: &Flow) -> bool {
        moves(flow.last_ack, self.ack)
    }

    /// Whether the segment acknowledges what the direction `other` has sent since it began, and no
    /// more, but nothing that is more than `farthest` bytes before the end. After a SYN this is a
    /// single number.
    #[inline(always)]
    const fn acknowledges(&self, other: &Flow, farthest: u32) -> bool {
        let sent = if other.seen & seen::PENDING == 0 {
            other.next_seq.wrapping_sub(other.first_seq)
        } else {
            0
        };
        // A keepalive probe has no payload, and the number before the next one (RFC 9293 §3.8.4).
        // A direction that was picked up at a probe has sent one byte more than is known.
        let probed = (sent == 0 && other.seen & (seen::SYN | seen::PENDING) == 0) as u32;
        let within = if sent < farthest { sent } else { farthest };
        self.flags & ACK != 0
            && other.seen & seen::PACKET != 0
            && other.next_seq.wrapping_add(probed).wrapping_sub(self.ack) <= within + probed
    }

    /// The effect of a segment of the direction `flow`, whose other direction is `other`.
    #[inline(always)]
    pub const fn follow(&self, flow: &Flow, other: &Flow) -> Followed {
        // A connection that was reset ends when its time is over, whatever else is sent. Only a SYN
        // begins another one, see `nat::begins_anew`.
        if (flow.seen | other.seen) & seen::RST != 0 {
            return Followed { seen: flow.seen, changes: 0 };
        }
        // Only a flow of an earlier agent can have no numbers of either direction: this segment is
        // taken as its first one.
        if (flow.seen | other.seen) & seen::PACKET == 0 && self.flags & (SYN | RST | ACK) != 0 {
            let changes = change::TIME | change::ACK | change::FIRST | change::NEXT;
            let reset = if self.flags & RST != 0 { change::RESET } else { 0 };
            return Followed { seen: self.opening(), changes: changes | reset };
        }
        if self.flags & RST != 0 {
            return self.reset(flow, other);
        }
        if self.flags & SYN != 0 {
            return self.open(flow, other);
        }
        self.go_on(flow, other)
    }

    /// An RST. Its sequence number is exactly what the other side expects (RFC 5961 §3.2), or what
    /// its own side sends next, or it acknowledges the SYN that it refuses (RFC 9293 §3.10.7.3).
    #[inline(always)]
    const fn reset(&self, flow: &Flow, other: &Flow) -> Followed {
        let unchanged = Followed { seen: flow.seen, changes: change::TIME };
        let begun = flow.seen & seen::PACKET != 0;
        let next = begun && self.seq == flow.next_seq;
        // A SYN that begins a flow acknowledges nothing: its field has any value.
        let has_ack =
            other.seen & seen::ACK != 0 || other.seen & (seen::PACKET | seen::SYN) == seen::PACKET;
        let expected = has_ack && self.seq == other.last_ack;
        let refuses = !begun && self.acknowledges(other, WINDOW);
        if next || expected || refuses {
            let seen = flow.seen | seen::PACKET | seen::RST;
            return Followed { seen, changes: change::TIME | change::RESET };
        }
        unchanged
    }

    /// A SYN, alone or with ACK.
    #[inline(always)]
    const fn open(&self, flow: &Flow, other: &Flow) -> Followed {
        let unchanged = Followed { seen: flow.seen, changes: change::TIME };
        let numbers = change::TIME | change::FIRST | change::NEXT;
        let connected = (flow.seen | other.seen) & seen::ACK != 0;
        let again =
            flow.seen & (seen::SYN | seen::AHEAD) == seen::SYN && self.first() == flow.first_seq;
        if self.flags & ACK != 0 {
            let newest = other.seen & seen::PENDING != 0 && self.ack == other.first_seq;
            let acknowledges = !connected && self.acknowledges(other, WINDOW);
            if !acknowledges && (!newest || again) {
                return unchanged;
            }
            let before = if connected { 0 } else { flow.seen };
            let restart = if acknowledges { 0 } else { change::RESTART };
            return Followed {
                seen: before | seen::PACKET | seen::SYN,
                changes: numbers | change::ACK | restart,
            };
        }
        // The client may begin another connection on the same ports, after an end that was not
        // seen. The number is kept: the answer of the server shows whether it has begun. Either
        // side may be the client if the flow was picked up in mid-stream.
        let pending = if flow.kind & kind::ORIG != 0 {
            connected || other.seen & seen::SYN != 0
        } else {
            flow.seen & other.seen & seen::ACK != 0
        };
        if pending && !again {
            let seen = (flow.seen & !(seen::AHEAD | seen::AHEAD_FIN)) | seen::PENDING;
            return Followed { seen, changes: change::TIME | change::FIRST };
        }
        // Without an acknowledgement a SYN of the other side proves nothing. It replaces no number.
        let known = connected || flow.seen & seen::PACKET != 0;
        if pending || (flow.kind & kind::ORIG == 0 && known) {
            return unchanged;
        }
        Followed { seen: flow.seen | seen::PACKET | seen::SYN, changes: numbers }
    }

    /// A segment without SYN and RST.
    #[inline(always)]
    const fn go_on(&self, flow: &Flow, other: &Flow) -> Followed {
        let unchanged = Followed { seen: flow.seen, changes: change::TIME };
        if self.flags & ACK == 0 {
            return unchanged;
        }
        let begun = flow.seen & seen::PACKET != 0;
        let follows = begun && self.follows_ack(flow, other);
        let mut changes = change::TIME;
        let mut bits = flow.seen;
        // Whether the acknowledgement is one that this side may send. The number after what this
        // side has sent is as good: it is a single one.
        let mut knows = true;
        if flow.seen & seen::ACK == 0 {
            if !self.acknowledges(other, IN_FLIGHT) {
                // The side that began the flow may send more before it has an answer. The other one
                // has sent a SYN that acknowledges, and sends nothing more before that is answered.
                let is_first = flow.kind & kind::ORIG != 0 || flow.seen & seen::SYN == 0;
                if begun && is_first && self.moves_seq(flow) {
                    changes |= change::NEXT;
                }
                return Followed { seen: bits, changes };
            }
            bits |= seen::PACKET | seen::ACK;
            changes |= change::ACK;
        } else if self.follows_seq(flow, other)
            || (self.moves_ack(flow) && (follows || is_near(flow.next_seq, self.end)))
        {
            changes |= change::ACK;
        } else {
            knows = self.seq == flow.next_seq || is_near(flow.last_ack, self.ack);
        }
        if !begun {
            changes |= change::FIRST | change::NEXT;
        } else if knows && (follows || self.moves_seq(flow)) {
            changes |= change::NEXT;
            if self.confirms_fin(flow) {
                bits |= seen::FIN;
            }
            bits &= !(seen::AHEAD | seen::AHEAD_FIN);
        } else if is_far(flow.next_seq, self.end) && flow.seen & other.seen & seen::ACK != 0 {
            changes |= change::AHEAD;
            bits = (bits & !seen::PENDING) | seen::AHEAD;
            let ahead = self.ahead(flow);
            if self.flags & FIN != 0 && self.end >> BLOCK_BITS == ahead & BLOCK {
                bits |= seen::AHEAD_FIN;
            } else if ahead != flow.first_seq || flow.seen & seen::AHEAD == 0 {
                // Programs that do not know the bit leave it when they clear `AHEAD`.
                bits &= !seen::AHEAD_FIN;
            }
        }
        if self.flags & FIN != 0 && (!begun || (knows && self.ends(flow))) {
            bits |= seen::FIN;
        }
        Followed { seen: bits, changes }
    }

    /// Whether the acknowledgement is far ahead, but not of what the other side has sent, or has
    /// sent without being believed: the programs have not seen the acknowledgements in between.
    #[inline(always)]
    const fn follows_seq(&self, flow: &Flow, other: &Flow) -> bool {
        let (ahead, sent) =
            (self.ack.wrapping_sub(flow.last_ack), other.next_seq.wrapping_sub(flow.last_ack));
        let was_sent = other.seen & seen::PACKET != 0
            && ahead <= sent
            && other.next_seq.wrapping_sub(self.ack) <= IN_FLIGHT;
        is_far(flow.last_ack, self.ack) && (was_sent || confirms(self.ack, other))
    }

    /// Whether the segment is far ahead of its direction, but not of what the other side has
    /// acknowledged: the programs have not seen what was sent in between. More than [`WINDOW`] may
    /// be under way. Then the numbers that led to this one must have been acknowledged, or must lead
    /// on from what is believed: segments that were lost before this host come later than those
    /// after them.
    #[inline(always)]
    const fn follows_ack(&self, flow: &Flow, other: &Flow) -> bool {
        let last = flow.first_seq & BLOCK;
        let goes_on = blocks(last, self.end >> BLOCK_BITS) <= WINDOW >> BLOCK_BITS;
        is_far(flow.next_seq, self.end)
            && other.seen & seen::ACK != 0
            && (self.end.wrapping_sub(other.last_ack) <= WINDOW
                || (goes_on && (leads_on(flow) || confirms(other.last_ack, flow))))
    }

    /// The new [`Flow::first_seq`] of a direction with [`seen::AHEAD`], after a segment whose
    /// number is not believed: in the upper half the first one of such numbers, in the lower half
    /// the last one, each divided by 64 KB. Each is at most `WINDOW` ahead of the one before. The
    /// other side acknowledges the first one a round trip later; the last one is then where the
    /// sender is, however much it has under way.
    #[inline(always)]
    pub const fn ahead(&self, flow: &Flow) -> u32 {
        let (first, last) = (flow.first_seq >> BLOCK_BITS, flow.first_seq & BLOCK);
        let at = self.end >> BLOCK_BITS;
        let (sent, reached) = (blocks(first, last), blocks(first, at));
        let has_some = flow.seen & seen::AHEAD != 0;
        // What was sent before may come late.
        let is_late = reached <= sent || blocks(at, first) <= WINDOW >> BLOCK_BITS;
        if has_some && is_late {
            return flow.first_seq;
        }
        let goes_on = has_some
            && blocks(last, at) <= WINDOW >> BLOCK_BITS
            && reached <= IN_FLIGHT >> BLOCK_BITS;
        ((if goes_on { first } else { at }) << BLOCK_BITS) | at
    }

    /// Whether the segment, whose number is believed, shows that its side has sent a FIN whose number
    /// was not believed: it is that FIN again, or it has nothing to send and is where the FIN was. A
    /// number that is guessed is there once in about 60,000 times.
    #[inline(always)]
    const fn confirms_fin(&self, flow: &Flow) -> bool {
        flow.seen & seen::AHEAD_FIN != 0
            && (self.seq == self.end || self.flags & FIN != 0)
            && self.end >> BLOCK_BITS == flow.first_seq & BLOCK
    }

    /// Whether a segment with FIN is at the end of what its side has sent.
    #[inline(always)]
    const fn ends(&self, flow: &Flow) -> bool {
        distance(flow.next_seq, self.seq) <= REORDERED as i32
            && distance(flow.next_seq, self.end) >= 0
    }
}
