//! Tunnelling of explicit congestion notification (RFC 6040).

use crate::abi::DropReason;

/// The ECN bits of a traffic class (RFC 3168 §5).
pub const ECN_MASK: u8 = 0b11;
/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, codepoint 1.
pub const ECT_1: u8 = 0b01;
/// ECN-capable, codepoint 0.
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// Effect of decapsulation on the inner traffic class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EcnAction {
    /// Nothing.
    Keep,
    /// Writes this traffic class: the inner DSCP with another ECN field.
    Set(u8),
}

/// Traffic class of the outer header in normal mode (RFC 6040 §4.1). The ECN field is the inner
/// one; the DSCP is the inner one if the network copies it (RFC 2983, uniform model), else 0. It
/// is 0 for a frame that is not IP.
#[inline(always)]
pub const fn encap_tos(inner_tos: Option<u8>, copy_dscp: bool) -> u8 {
    match inner_tos {
        None => 0,
        Some(tos) if copy_dscp => tos,
        Some(tos) => tos & ECN_MASK,
    }
}

/// The effect of the outer ECN field on the inner one (RFC 6040 §4.2, figure 4).
///
/// Fails with [`DropReason::EcnInvalid`] for outer CE over inner Not-ECT: only the loss of the
/// packet can tell the sender of the congestion.
#[inline(always)]
pub const fn decap_ecn(outer_tos: u8, inner_tos: u8) -> Result<EcnAction, DropReason> {
    match (inner_tos & ECN_MASK, outer_tos & ECN_MASK) {
        (NOT_ECT, CE) => Err(DropReason::EcnInvalid),
        (ECT_0 | ECT_1, CE) => Ok(EcnAction::Set(inner_tos | CE)),
        (ECT_0, ECT_1) => Ok(EcnAction::Set((inner_tos & !ECN_MASK) | ECT_1)),
        _ => Ok(EcnAction::Keep),
    }
}
