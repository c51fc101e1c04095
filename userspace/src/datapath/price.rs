//! Measured costs of the programs on an uplink.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use aya::programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use culvert_common::{abi::programs, datapath::conntrack};

use super::{
    Options,
    error::DatapathError,
    links, load_object,
    test_run::{Runs, timed},
};

/// Both programs drop the frame and do not change it, so that all runs of a round do the same.
const RUNS: Runs = Runs { repeat: 16, rounds: 31 };
/// Capacity of the flow table, in flows. The measurement makes no flow.
const FLOWS: u32 = 16;

/// Time that a program takes for one VXLAN frame to this host with an unknown VNI. Both programs
/// drop it. `from_underlay_xdp` does nothing but drop or pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Time in `from_underlay`, in ns, without the allocation of the skb.
    pub tc_ns: u64,
    /// Time in `from_underlay_xdp`, in ns. A passed frame takes as long as a dropped one.
    pub xdp_ns: u64,
}

impl Price {
    /// Runs both programs. They are loaded with maps of their own, so that the counters of the
    /// attached programs do not count the runs. Takes about 1 s, most of it in the verifier.
    ///
    /// # Errors
    /// The kernel refuses the programs, or to run them.
    pub fn measure() -> Result<Self, DatapathError> {
        let vtep_ip = Ipv4Addr::new(192, 0, 2, 1);
        let options = Options {
            bpffs: PathBuf::new(),
            vtep_ip,
            vxlan_port: 4789,
            ageing: Duration::from_secs(300),
            max_flows: FLOWS,
            flow_share: 100,
            flow_timeouts: conntrack::default_timeouts(),
            nat_ports: (1024, 65_535),
            port_share: 100,
            services: Vec::new(),
            denied: Vec::new(),
            ports_closed: false,
            trace: false,
        };
        let mut ebpf = load_object(&options, None)?;
        let frame = frame(vtep_ip, options.vxlan_port);
        let tc: &mut SchedClassifier = links::program(&mut ebpf, programs::FROM_UNDERLAY)?;
        let tc_ns = median(programs::FROM_UNDERLAY, tc, &frame)?;
        let xdp: &mut Xdp = links::program(&mut ebpf, programs::FROM_UNDERLAY_XDP)?;
        let xdp_ns = median(programs::FROM_UNDERLAY_XDP, xdp, &frame)?;
        Ok(Self { tc_ns, xdp_ns })
    }
}

fn median<P>(name: &str, program: &P, frame: &[u8]) -> Result<u64, DatapathError>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let timed = timed(program, frame, None, RUNS).map_err(|error| DatapathError::Load {
        what: format!("run program {name}"),
        source: Box::new(error),
    })?;
    Ok(timed.ns)
}

/// A small VXLAN frame for `vtep`, from an address that is no VTEP.
fn frame(vtep: Ipv4Addr, port: u16) -> Vec<u8> {
    const INNER: usize = 60;
    let udp_len = 8 + 8 + INNER;
    let be = |len: usize| u16::try_from(len).unwrap_or_default().to_be_bytes();
    // A test run without a context is on the loopback device, whose MAC is zero. The program passes
    // frames to another MAC.
    let mut frame = vec![0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend([0x45, 0]);
    frame.extend(be(20 + udp_len));
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend([192, 0, 2, 2]);
    frame.extend(vtep.octets());
    frame.extend(50_000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(be(udp_len));
    frame.extend([0, 0]);
    // The largest VNI, which no network is expected to have.
    frame.extend([0x08, 0, 0, 0, 0xff, 0xff, 0xff, 0]);
    frame.resize(frame.len() + INNER, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn both_programs_are_measured() {
        let price = Price::measure().unwrap();
        for ns in [price.tc_ns, price.xdp_ns] {
            assert!((1..1_000_000).contains(&ns), "{price:?}");
        }
    }
}
