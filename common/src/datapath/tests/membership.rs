use crate::datapath::membership::{ASKED_NS, Membership, wants_reports};

/// The numbers of the standards: IGMP by RFC 1112, 2236 and 3376, MLD by RFC 2710 and 3810.
#[test]
fn queries_and_reports_are_known_by_their_types() {
    for kind in 0..=u8::MAX {
        let igmp = match kind {
            0x11 => Membership::Asks,
            0x12 | 0x16 | 0x17 | 0x22 => Membership::Report,
            _ => Membership::Other,
        };
        assert_eq!(Membership::of_igmp(kind), igmp, "{kind:#x}");
        let mld = match kind {
            130 => Membership::Asks,
            131 | 132 | 143 => Membership::Report,
            _ => Membership::Other,
        };
        assert_eq!(Membership::of_icmpv6(kind), mld, "{kind}");
    }
}

#[test]
fn who_has_asked_wants_reports_for_an_interval() {
    let asked = 7_000_000_000;
    for (later, wants) in [(0, true), (125_000_000_000, true), (ASKED_NS - 1, true)] {
        assert_eq!(wants_reports(asked, asked + later), wants, "{later}");
    }
    assert!(!wants_reports(asked, asked + ASKED_NS));
    assert!(!wants_reports(0, u64::MAX));
    // Two CPUs may read the clock in another order than they write.
    assert!(wants_reports(asked, asked - 1));
}
