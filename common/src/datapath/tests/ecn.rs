use proptest::prelude::*;

use crate::abi::DropReason;
use crate::datapath::ecn::{CE, ECT_0, ECT_1, EcnAction, NOT_ECT, decap_ecn, encap_tos};

/// RFC 6040 figure 4: the outgoing header for each inner (row) and outer
/// (column: Not-ECT, ECT(0), ECT(1), CE); `None` is a drop.
const FIGURE_4: [(u8, [Option<u8>; 4]); 4] = [
    (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
    (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
    (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
    (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
];

#[test]
fn decap_is_figure_4_for_every_dscp() {
    for (inner_ecn, row) in FIGURE_4 {
        for (outer_ecn, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
            for (outer_dscp, inner_dscp) in (0..64).flat_map(|o| (0..64).map(move |i| (o, i))) {
                let inner = (inner_dscp << 2) | inner_ecn;
                let outgoing = match decap_ecn((outer_dscp << 2) | outer_ecn, inner) {
                    Ok(EcnAction::Keep) => Some(inner),
                    Ok(EcnAction::Set(tos)) => {
                        assert_ne!(tos, inner, "a write that changes nothing");
                        Some(tos)
                    }
                    Err(reason) => {
                        assert_eq!(reason, DropReason::EcnInvalid);
                        None
                    }
                };
                assert_eq!(
                    outgoing,
                    expected.map(|ecn| (inner_dscp << 2) | ecn),
                    "inner {inner_ecn:02b} outer {outer_ecn:02b}"
                );
            }
        }
    }
}

#[test]
fn codepoints_are_rfc_3168() {
    assert_eq!([NOT_ECT, ECT_1, ECT_0, CE], [0, 1, 2, 3]);
}

proptest! {
    #[test]
    fn encap_copies_ecn_and_perhaps_dscp(tos: u8) {
        prop_assert_eq!(encap_tos(Some(tos), true), tos);
        prop_assert_eq!(encap_tos(Some(tos), false), tos & 3);
    }

    /// Without congestion on the path, a tunnel does not change the traffic class.
    #[test]
    fn encap_then_decap_keeps(tos: u8, copy: bool) {
        prop_assert_eq!(decap_ecn(encap_tos(Some(tos), copy), tos), Ok(EcnAction::Keep));
    }
}

#[test]
fn a_frame_without_ip_has_no_class() {
    assert_eq!(encap_tos(None, true), 0);
    assert_eq!(encap_tos(None, false), 0);
}
