use proptest::prelude::*;

use crate::datapath::rate::{gcra, give_back, interval_ns};

#[test]
fn intervals() {
    assert_eq!(interval_ns(0), 0);
    assert_eq!(interval_ns(1), 1_000_000_000);
    assert_eq!(interval_ns(1000), 1_000_000);
    assert_eq!(interval_ns(u32::MAX), 1);
}

#[test]
fn a_burst_then_one_per_interval() {
    let mut tat = 0;
    let mut allowed = |now| {
        let next = gcra(tat, now, 100, 3);
        tat = next.unwrap_or(tat);
        next.is_some()
    };
    let now = 1_000_000;
    assert_eq!([allowed(now), allowed(now), allowed(now), allowed(now)], [true, true, true, false]);
    assert!(!allowed(now + 99));
    assert!(allowed(now + 100));
    assert!(!allowed(now + 100));
    // After any idle time no more than one burst conforms.
    let late = now + 1_000_000;
    assert_eq!(
        [allowed(late), allowed(late), allowed(late), allowed(late)],
        [true, true, true, false]
    );
}

#[test]
fn no_limit_is_no_limit() {
    let mut tat = 0;
    for _ in 0..10_000 {
        tat = gcra(tat, 7, interval_ns(0), 1).unwrap();
    }
}

#[test]
fn extremes_do_not_overflow() {
    for tat in [0, 1, u64::MAX] {
        for now in [0, 1, u64::MAX] {
            for interval in [0, 1, u64::MAX] {
                for burst in [0, 1, u32::MAX] {
                    let _ = gcra(tat, now, interval, burst);
                }
            }
        }
    }
}

proptest! {
    /// In any window no more frames conform than the burst plus the rate times the window.
    #[test]
    fn never_more_than_rate_and_burst(
        gaps in prop::collection::vec(0u64..400, 1..300),
        interval in 1u64..200,
        burst in 0u32..20,
    ) {
        let mut now = 1_000;
        let mut tat = 0;
        let mut passed = Vec::new();
        for gap in gaps {
            now += gap;
            if let Some(next) = gcra(tat, now, interval, burst) {
                tat = next;
                passed.push(now);
            }
        }
        for (first, start) in passed.iter().enumerate() {
            for (last, end) in passed.iter().enumerate().skip(first) {
                let most = u64::from(burst.max(1)) + (end - start) / interval;
                prop_assert!((last - first + 1) as u64 <= most);
            }
        }
    }

    /// A sender that keeps to the rate is never refused.
    #[test]
    fn the_rate_itself_passes(
        jitter in prop::collection::vec(0u64..50, 1..300), interval in 1u64..1000, burst in 0u32..5,
    ) {
        let mut now = 5;
        let mut tat = 0;
        for gap in jitter {
            now += interval + gap;
            let next = gcra(tat, now, interval, burst);
            prop_assert!(next.is_some());
            tat = next.unwrap();
        }
    }
}

/// With what is given back, the limit is one of things that are there at the same time.
#[test]
fn what_is_given_back_makes_room() {
    let mut tat = 0;
    for _ in 0..3 {
        tat = gcra(tat, 1000, 100, 3).unwrap();
    }
    assert_eq!(gcra(tat, 1000, 100, 3), None, "full");
    tat = give_back(tat, 100);
    tat = gcra(tat, 1000, 100, 3).unwrap();
    assert_eq!(gcra(tat, 1000, 100, 3), None, "full again");
    assert_eq!(gcra(tat, 1100, 100, 3), Some(tat + 100), "what expires makes room, too");
    assert_eq!(give_back(40, 100), 0);
    // Giving back more than was taken gains nothing: the limit begins anew.
    let mut tat = give_back(give_back(1050, 100), 100);
    for _ in 0..3 {
        tat = gcra(tat, 1000, 100, 3).unwrap();
    }
    assert_eq!(gcra(tat, 1000, 100, 3), None);
}
