//! How a new flow finds a free slot: the search of the programs against a clock hand, see
//! docs/adr/0016-room-at-the-rate-of-insertion.md. The searches are simulated in a small table,
//! whose time is the number of flows that have begun.

/// Flows that the table has room for.
const FLOWS: u64 = 4096;
/// Slots of the table.
const SLOTS: u64 = 2 * FLOWS;
/// Largest number of slots that are examined for a new flow, as in the programs.
const TRIES: u32 = 16;
/// New flows that are counted.
const NEW: u64 = 40_000;

/// The order in which slots are examined.
#[derive(Clone, Copy)]
enum Order {
    /// Random slots, as in the programs.
    Random,
    /// Each slot after the one before it. Each CPU has a hand and an equal part of the slots, and
    /// all flows begin on one CPU.
    Hand { cpus: u64 },
}

/// Simulates `established` flows that begin together and stay, and then [`NEW`] flows that each
/// expire when `live` further flows have begun. Returns how many of the new flows have found no
/// slot, and how many slots were examined for each on average.
fn simulate(search: Order, established: u64, live: u64) -> (u64, f64) {
    let mut expires = vec![0; SLOTS as usize];
    let (mut random, mut hand, mut examined) = (1_u64, 0, 0_u64);
    let mut find = |expires: &[u64], now: u64| {
        (0..TRIES).find_map(|_| {
            let slot = match search {
                Order::Random => {
                    // The generator of Knuth's MMIX.
                    random = random.wrapping_mul(6_364_136_223_846_793_005);
                    random = random.wrapping_add(1_442_695_040_888_963_407);
                    ((random >> 32) * SLOTS) >> 32
                }
                Order::Hand { cpus } => {
                    hand += 1;
                    (hand - 1) % (SLOTS / cpus)
                }
            } as usize;
            examined += u64::from(now >= established);
            (expires[slot] <= now).then_some(slot)
        })
    };
    let mut without = 0;
    for now in 0..established + NEW {
        let is_new = now >= established;
        match find(&expires, now) {
            Some(slot) => expires[slot] = if is_new { now + live } else { u64::MAX },
            None => without += u64::from(is_new),
        }
    }
    (without, examined as f64 / NEW as f64)
}

/// 1,600 connections that began in a row, and short flows that fill the rest of the table.
fn connections_in_a_row(search: Order) -> (u64, f64) {
    simulate(search, 1600, FLOWS - 1600)
}

/// A flood on one CPU that keeps the table full.
fn flood_on_one_cpu(search: Order) -> (u64, f64) {
    simulate(search, 0, FLOWS)
}

#[test]
fn random_slots_leave_nearly_no_flow_without_a_slot() {
    for (without, examined) in
        [connections_in_a_row(Order::Random), flood_on_one_cpu(Order::Random)]
    {
        // Half of the slots are free: one flow of 65,536 finds none.
        assert!(without <= 3 && examined < 2.1, "{without} without a slot, {examined} examined");
    }
}

#[test]
fn a_clock_hand_passes_connections_in_a_row() {
    let hand = Order::Hand { cpus: 1 };
    let (without, examined) = connections_in_a_row(hand);
    // At each turn of the hand 100 flows, of which each has examined 16 of the 1,600 slots.
    assert_eq!(without, 500);
    assert!(examined < 1.2, "{examined}");
    assert_eq!(flood_on_one_cpu(hand), (0, 1.0));
}

#[test]
fn a_hand_for_each_cpu_has_too_few_slots_in_a_flood() {
    let (without, examined) = flood_on_one_cpu(Order::Hand { cpus: 4 });
    assert!(without > NEW * 2 / 5 && examined > 8.0, "{without}, {examined}");
}
