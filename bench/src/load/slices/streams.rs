//! TCP streams that send only in slices.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    ends::{Connection, Threads, connections, report},
    meter::{Meter, Part, Window},
    slice::{LENGTH, LIMIT, Slice},
    watch::Watched,
};
use crate::load::{
    LOOK, Peers, Side, rate,
    tcp::{CHUNK, is_timeout},
};

/// Traffic after the measured part, so that a read ends after it.
const LEAD_OUT: Duration = Duration::from_millis(1);
/// Interval of the looks whether all that was sent has arrived. Nothing is measured meanwhile.
const DRAINED: Duration = Duration::from_micros(200);

/// Open streams, and a thread at each end of each.
pub(super) struct Streams {
    arrived: Arc<Arrived>,
    /// To each writer: when to stop. Empty when the writers have been released.
    orders: Vec<Sender<Duration>>,
    /// Bytes that a writer has sent in a slice.
    sent: Receiver<u64>,
    reports: Receiver<Arrival>,
    all_sent: u64,
    threads: Threads,
}

/// The count of all streams of a path.
struct Arrived {
    /// Zero of the path's clock.
    epoch: Instant,
    meter: Mutex<Meter>,
}

impl Arrived {
    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reader reports of a slice.
struct Arrival {
    part: Part,
    /// Involuntary context switches of all threads since they began.
    switches: u64,
}

impl Streams {
    /// Opens `count` streams.
    pub(super) fn open(peers: &Peers, count: u32) -> Result<Self> {
        let arrived =
            Arc::new(Arrived { epoch: Instant::now(), meter: Mutex::new(Meter::default()) });
        let (reporting, reports) = mpsc::channel();
        let (sending, sent) = mpsc::channel();
        let mut path = Self {
            arrived,
            orders: Vec::new(),
            sent,
            reports,
            all_sent: 0,
            threads: Threads::default(),
        };
        for connection in connections(peers, count)? {
            path.threads.keep(&connection)?;
            let Connection { client, server } = connection;
            let (arrived, watched) = (Arc::clone(&path.arrived), path.threads.watched.clone());
            let reporting = reporting.clone();
            path.threads
                .start(Side::Server, move || read_all(server, &arrived, &watched, &reporting))?;
            let (orders, ordered) = mpsc::channel();
            path.orders.push(orders);
            let (arrived, sending) = (Arc::clone(&path.arrived), sending.clone());
            path.threads
                .start(Side::Client, move || write_slices(client, &arrived, &ordered, &sending))?;
        }
        Ok(path)
    }

    /// Measures a slice after traffic for `lead_in`. Afterwards nothing of it is on its way.
    pub(super) fn slice(&mut self, lead_in: Duration) -> Result<Slice> {
        let before = self.threads.watched.switches()?;
        let begin = self.arrived.epoch.elapsed() + lead_in;
        let end = begin + LENGTH;
        self.arrived.meter().open(Window { begin, end });
        for orders in &self.orders {
            orders.send(end + LEAD_OUT).context("a sender has ended")?;
        }
        let Arrival { part, switches } = report(&self.reports)?;
        for _ in &self.orders {
            self.all_sent += report(&self.sent)?;
        }
        let start = Instant::now();
        while self.arrived.meter().total() < self.all_sent {
            ensure!(start.elapsed() < LIMIT, "what was sent has not arrived after {LIMIT:?}");
            thread::sleep(DRAINED);
        }
        let figure = rate(part.bytes * 8, part.time);
        let switches = switches.saturating_sub(before);
        Ok(Slice { figure, switches, ..Slice::default() })
    }

    /// Closes the streams.
    pub(super) fn end(&mut self) -> Result<()> {
        self.orders.clear();
        self.threads.end()
    }
}

/// Reads until the other end closes, and reports each slice.
fn read_all(
    mut stream: TcpStream,
    arrived: &Arrived,
    watched: &Watched,
    reports: &Sender<Arrival>,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // The writer closes first.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("stream: read"),
        };
        let part = arrived.meter().add(arrived.epoch.elapsed(), read);
        let Some(part) = part else { continue };
        if reports.send(Arrival { part, switches: watched.switches()? }).is_err() {
            return Ok(());
        }
    }
}

/// Sends from each order until the time that it names, and until the window is measured: a thread that
/// begins late would otherwise send nothing that arrives after the window.
fn write_slices(
    mut stream: TcpStream,
    arrived: &Arrived,
    orders: &Receiver<Duration>,
    sent: &Sender<u64>,
) -> Result<()> {
    // A writer whose path stands still ends nevertheless.
    stream.set_write_timeout(Some(LOOK))?;
    let chunk = vec![0x5a_u8; CHUNK];
    while let Ok(stop) = orders.recv() {
        let mut bytes = 0;
        while arrived.epoch.elapsed() < stop || arrived.meter().is_open() {
            match stream.write(&chunk) {
                Ok(written) => bytes += written as u64,
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error).context("stream: write"),
            }
        }
        if sent.send(bytes).is_err() {
            break;
        }
    }
    Ok(())
}
