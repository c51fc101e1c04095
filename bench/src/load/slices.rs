//! Traffic in slices of some milliseconds. The connections of all arms stay open, and one arm after
//! the other has traffic. The threads of the other arms sleep without a timeout.
//!
//! A pause must not change a connection: the namespaces of all arms have
//! `net.ipv4.tcp_slow_start_after_idle` off, and both ends have Nagle's algorithm off. The traffic
//! before the measured part takes longer than the immediate acknowledgements after a pause.

mod ends;
mod meter;
mod slice;
mod streams;
mod trips;
mod watch;

use std::time::Duration;

use anyhow::Result;

pub(crate) use slice::{BLOCK, LEAD_IN, LENGTH, Slice};

use super::{Peers, WARM_UP};
use streams::Streams;
use trips::Trips;

/// Kind of traffic that is measured in slices.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// This many TCP streams.
    Streams(u32),
    /// TCP round trips.
    RoundTrips,
}

impl Kind {
    /// Name for `--only`.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Streams(count) => format!("tcp{count}"),
            Self::RoundTrips => "rr".to_owned(),
        }
    }

    /// Time that a slice is reckoned at, to divide the time of a measurement into slices. For
    /// round trips this includes the traffic before the block, which takes longer than the block.
    fn reckoned(self) -> Duration {
        match self {
            Self::Streams(_) => LENGTH,
            Self::RoundTrips => Duration::from_millis(5),
        }
    }

    /// Number of pairs of slices that `time` is divided into, at least one.
    pub(crate) fn pairs(self, time: Duration) -> usize {
        (time.div_duration_f64(self.reckoned()) / 2.0).ceil().max(1.0) as usize
    }
}

/// The open connections of one arm.
pub(crate) struct Path(Open);

enum Open {
    Streams(Streams),
    Trips(Trips),
}

impl Path {
    /// Opens the connections and sends on them until their windows have grown.
    pub(crate) fn open(peers: &Peers, kind: Kind) -> Result<Self> {
        let mut path = Self(match kind {
            Kind::Streams(count) => Open::Streams(Streams::open(peers, count)?),
            Kind::RoundTrips => Open::Trips(Trips::open(peers)?),
        });
        path.after(WARM_UP)?;
        Ok(path)
    }

    /// Measures a slice. No other path may have traffic meanwhile.
    pub(crate) fn slice(&mut self) -> Result<Slice> {
        let before = watch::steal()?;
        let slice = self.after(LEAD_IN)?;
        Ok(Slice { steal: watch::steal()?.saturating_sub(before), ..slice })
    }

    /// Closes the connections.
    pub(crate) fn close(mut self) -> Result<()> {
        self.end()
    }

    /// Measures a slice after `lead_in`. If that fails, the connections are closed, and the error
    /// begins with that of a thread.
    fn after(&mut self, lead_in: Duration) -> Result<Slice> {
        let slice = match &mut self.0 {
            Open::Streams(streams) => streams.slice(lead_in),
            Open::Trips(trips) => trips.slice(lead_in),
        };
        slice.map_err(|error| match self.end() {
            Ok(()) => error,
            Err(cause) => error.context(format!("{cause:#}")),
        })
    }

    fn end(&mut self) -> Result<()> {
        match &mut self.0 {
            Open::Streams(streams) => streams.end(),
            Open::Trips(trips) => trips.end(),
        }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        // The error is ignored: the measurement has failed with an error of its own.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_divided_into_pairs_of_slices() {
        let pairs = |kind: Kind, ms| kind.pairs(Duration::from_millis(ms));
        assert_eq!(pairs(Kind::Streams(1), 350), 6);
        assert_eq!(pairs(Kind::Streams(1), 50), 1);
        assert_eq!(pairs(Kind::RoundTrips, 350), 35);
        assert_eq!(pairs(Kind::RoundTrips, 0), 1);
    }
}
