//! Round trips of one byte over an open TCP connection, in blocks.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::mpsc::{self, Receiver, Sender},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    ends::{Connection, Threads, connections, report},
    slice::{BLOCK, Slice},
    watch::Watched,
};
use crate::{
    load::{Peers, Side},
    stats::percentile,
};

/// Least number of round trips before the measured ones. After a pause of more than 0.2 s, the
/// kernel acknowledges up to 16 segments at once (`TCP_MAX_QUICKACKS`).
const LEAST_BEFORE: usize = 17;

/// An open connection and a thread at each end.
pub(super) struct Trips {
    // None when the threads have been released.
    orders: Option<Sender<Duration>>,
    reports: Receiver<Block>,
    threads: Threads,
}

/// What the client reports of a slice.
struct Block {
    trips: Vec<u32>,
    /// Involuntary context switches of both threads since they began.
    switches: u64,
}

impl Trips {
    /// Opens the connection.
    pub(super) fn open(peers: &Peers) -> Result<Self> {
        let (orders, ordered) = mpsc::channel();
        let (reporting, reports) = mpsc::channel();
        let mut path = Self { orders: Some(orders), reports, threads: Threads::default() };
        let connection = connections(peers, 1)?.pop().context("no connection")?;
        path.threads.keep(&connection)?;
        let Connection { client, server } = connection;
        path.threads.start(Side::Server, move || echo(server))?;
        let watched = path.threads.watched.clone();
        path.threads.start(Side::Client, move || serve(client, &ordered, &watched, &reporting))?;
        Ok(path)
    }

    /// Measures a block after round trips for `lead_in`.
    pub(super) fn slice(&mut self, lead_in: Duration) -> Result<Slice> {
        let before = self.threads.watched.switches()?;
        let orders = self.orders.as_ref().context("the connection is closed")?;
        orders.send(lead_in).context("the client has ended")?;
        let Block { trips, switches } = report(&self.reports)?;
        let mut sorted = trips.clone();
        sorted.sort_unstable();
        let figure = f64::from(percentile(&sorted, 0.5));
        let switches = switches.saturating_sub(before);
        Ok(Slice { figure, trips, switches, ..Slice::default() })
    }

    /// Closes the connection.
    pub(super) fn end(&mut self) -> Result<()> {
        self.orders = None;
        self.threads.end()
    }
}

/// Sends back each byte until the other end closes.
fn echo(mut stream: TcpStream) -> Result<()> {
    let mut byte = [0];
    // An end in the middle of a round trip has its cause at the client.
    while stream.read(&mut byte).is_ok_and(|read| read > 0) && stream.write_all(&byte).is_ok() {}
    Ok(())
}

/// Makes a block of round trips for each order.
fn serve(
    mut stream: TcpStream,
    orders: &Receiver<Duration>,
    watched: &Watched,
    reports: &Sender<Block>,
) -> Result<()> {
    let mut byte = [1_u8];
    let mut trip = || -> Result<()> {
        stream.write_all(&byte).context("round trip: write")?;
        stream.read_exact(&mut byte).context("round trip: read")
    };
    while let Ok(lead_in) = orders.recv() {
        let begin = Instant::now();
        let mut before = 0;
        while before < LEAST_BEFORE || begin.elapsed() < lead_in {
            trip()?;
            before += 1;
        }
        let mut trips = Vec::with_capacity(BLOCK);
        for _ in 0..BLOCK {
            let start = Instant::now();
            trip()?;
            trips.push(u32::try_from(start.elapsed().as_nanos())?);
        }
        if reports.send(Block { trips, switches: watched.switches()? }).is_err() {
            break;
        }
    }
    Ok(())
}
