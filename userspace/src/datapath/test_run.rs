//! Timed runs of a program on a frame in memory (`BPF_PROG_TEST_RUN`).

use aya::programs::{ProgramError, TestRun, TestRunOptions, TestRunResult};

/// Bytes of `struct __sk_buff` of linux/bpf.h, and offsets of the members that may be set.
/// aya-obj's bindings have no `__sk_buff`.
const SK_BUFF_LEN: usize = 192;
const SK_BUFF_INGRESS_IFINDEX: usize = 36;
const SK_BUFF_IFINDEX: usize = 40;
const SK_BUFF_GSO_SEGS: usize = 164;
const SK_BUFF_GSO_SIZE: usize = 176;

/// Bytes of the longest frame that a program may return.
const LONGEST: usize = 2 * 4096;

/// Direction of a frame at the hook of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The frame has come in on the interface.
    Ingress,
    /// The frame is sent, and has come in on no interface.
    Egress,
}

/// The context of a frame of `frame_len` bytes on the interface `ifindex` of the calling
/// thread's namespace. `gso_size` is the payload of a segment in bytes, 0 if the frame is not a
/// GSO frame.
pub fn sk_buff(hook: Hook, ifindex: u32, gso_size: u32, frame_len: usize) -> [u8; SK_BUFF_LEN] {
    let mut context = [0; SK_BUFF_LEN];
    let mut set = |at: usize, value: u32| {
        if let Some(member) = context.get_mut(at..at + 4) {
            member.copy_from_slice(&value.to_ne_bytes());
        }
    };
    let len = u32::try_from(frame_len).unwrap_or(u32::MAX);
    set(SK_BUFF_IFINDEX, ifindex);
    match hook {
        // Only a received frame has an ingress interface.
        Hook::Ingress => set(SK_BUFF_INGRESS_IFINDEX, ifindex),
        Hook::Egress => {}
    }
    set(SK_BUFF_GSO_SIZE, gso_size);
    set(SK_BUFF_GSO_SEGS, len.checked_div(gso_size).unwrap_or_default());
    context
}

/// Numbers of runs of a program.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// Runs in a round, each on the frame that the last run returned. More than one run makes sense
    /// if the program does not change the frame, or if the frame does not matter.
    pub repeat: u32,
    /// Number of rounds, each with a new frame. The result is the median over the rounds, on which
    /// an interrupted round has no effect.
    pub rounds: usize,
}

/// The outcome of the runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    /// Time of one run in ns: the time of a round, divided by its runs.
    pub ns: u64,
    /// Return value of the program in the last run.
    pub verdict: u32,
    /// The frame after the last run.
    pub frame: Vec<u8>,
}

/// Runs `program` on `frame`. A program of the kind that takes an skb may have a
/// [context](sk_buff).
///
/// # Errors
/// The kernel refuses, or there are no rounds.
pub fn timed<P>(
    program: &P,
    frame: &[u8],
    context: Option<&[u8]>,
    runs: Runs,
) -> Result<Timed, ProgramError>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut left = vec![0; LONGEST];
    let (mut times, mut last) = (Vec::with_capacity(runs.rounds), None);
    for _ in 0..runs.rounds {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut left);
        options.ctx_in = context;
        options.repeat = runs.repeat;
        let run = program.test_run(options)?;
        times.push(u64::try_from(run.duration.as_nanos()).unwrap_or(u64::MAX));
        last = Some(run);
    }
    times.sort_unstable();
    let (Some(last), Some(&ns)) = (last, times.get(times.len() / 2)) else {
        return Err(ProgramError::IOError(std::io::ErrorKind::InvalidInput.into()));
    };
    left.truncate(last.data_size_out as usize);
    Ok(Timed { ns, verdict: last.return_value, frame: left })
}
