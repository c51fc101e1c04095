//! Rate limits.

use culvert_common::{abi::RateKey, datapath::rate};

use crate::{kernel::time::now, maps::RATES};

/// Whether `limit` allows one more event, and counts the event if so. The limit is one event every
/// `interval_ns`, and `burst` events at once (GCRA, ITU-T I.371).
///
/// Events on two CPUs at the same instant may be counted as one: the limit is exceeded by at most
/// one event for each CPU.
#[inline(always)]
pub(crate) fn allow(limit: RateKey, interval_ns: u32, burst: u32) -> bool {
    take_rate(limit.kind, limit.id, interval_ns, burst) != 0
}

/// [`allow`] as a global BPF function: the verifier checks it once.
// SAFETY: no other symbol of the programs has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_rate(kind: u32, id: u32, interval_ns: u32, burst: u32) -> u32 {
    take(RateKey { kind, id }, interval_ns.into(), burst).into()
}

/// [`allow`] without the call of a BPF function, for callers that are BPF functions themselves.
#[inline(always)]
pub(crate) fn take(limit: RateKey, interval_ns: u64, burst: u32) -> bool {
    let now = now();
    match RATES.get_ptr_mut(limit) {
        Some(arrival) => {
            // The kernel may reuse the entry of an LRU map for another limit at any time. The value
            // is one aligned word: at worst another limit counts one event too many.
            // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
            let tat = unsafe { arrival.read_volatile() };
            let Some(next) = rate::gcra(tat, now, interval_ns, burst) else { return false };
            // SAFETY: as above.
            unsafe { arrival.write_volatile(next) };
            true
        }
        None => match rate::gcra(0, now, interval_ns, burst) {
            Some(next) => RATES.insert(limit, next, 0).is_ok(),
            None => false,
        },
    }
}

/// Gives one event back that [`allow`] has counted. If another CPU counts an event at the same
/// instant, the limit may be wrong by one event.
#[inline(always)]
pub(crate) fn give_back(limit: RateKey, interval_ns: u32) {
    let Some(arrival) = RATES.get_ptr_mut(limit) else { return };
    // SAFETY: as in `take`.
    let tat = unsafe { arrival.read_volatile() };
    // SAFETY: as in `take`.
    unsafe { arrival.write_volatile(rate::give_back(tat, interval_ns.into())) };
}
