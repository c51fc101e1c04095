//! Rate limits (generic cell rate algorithm, ITU-T I.371 annex A).

/// Interval in ns between two frames at `per_second` frames per second; 0 (no limit) if
/// `per_second` is 0.
#[inline(always)]
pub const fn interval_ns(per_second: u32) -> u64 {
    match 1_000_000_000u64.checked_div(per_second as u64) {
        // More than 10^9 frames per second is still a limit.
        Some(0) => 1,
        Some(interval) => interval,
        None => 0,
    }
}

/// Whether a frame at `now`, in ns, conforms to one frame per `interval_ns` with bursts of up to
/// `burst` frames (at least one). `tat` is the stored theoretical arrival time in ns, 0 before the
/// first frame.
///
/// `Some` is the new theoretical arrival time to store. `None`: the frame exceeds the limit, and
/// the stored time does not change.
#[inline(always)]
pub const fn gcra(tat: u64, now: u64, interval_ns: u64, burst: u32) -> Option<u64> {
    let start = if tat > now { tat } else { now };
    let tolerance = interval_ns.saturating_mul((burst as u64).saturating_sub(1));
    if start - now > tolerance {
        return None;
    }
    Some(start.saturating_add(interval_ns))
}

/// The theoretical arrival time after one frame that [`gcra`] has admitted is given back. With this,
/// the limit is a number of frames that are held at the same time. Frames that are never given back
/// leave the count at the rate of the limit. A time in the past means the same as now.
#[inline(always)]
pub const fn give_back(tat: u64, interval_ns: u64) -> u64 {
    tat.saturating_sub(interval_ns)
}
