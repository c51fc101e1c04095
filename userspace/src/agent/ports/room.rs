//! Limits of published ports: some ports are left for the host's own connections, and some open
//! files for the agent. Each published port takes one port and one open file.

use crate::{
    agent::platform::Ports,
    api::types::{ApiError, ErrorKind},
    model::{Name, PortRequest, Protocol, PublishedPort},
};

/// Ports of `net.ipv4.ip_local_port_range` that must stay free for the host's own connections of a
/// protocol. Of a range with fewer than twice as many ports, half must stay free.
const FREE_FOR_HOST: usize = 1024;

/// Least number of ports in a request for which the open files are counted first.
pub(super) const MANY: usize = 1024;

/// Refuses ports that would leave the host too few ports, or the agent too few open files. `taken`:
/// the ports that containers publish or are about to publish. `fixed`: the ports that are asked for
/// by number. `free`: the requests whose ports the agent will choose.
///
/// # Errors
///
/// The host would have too few ports left, or the agent too few open files.
pub(super) fn check(
    platform: &dyn Ports,
    container: &Name,
    taken: &[(PublishedPort, Name)],
    fixed: &[PublishedPort],
    free: &[&PortRequest],
) -> Result<(), ApiError> {
    let asked = free.len() + fixed.iter().map(|port| usize::from(port.count)).sum::<usize>();
    if asked >= MANY {
        let files = platform.files();
        if files.spare < asked {
            let (spare, limit) = (files.spare, files.limit);
            return Err(ApiError::new(
                ErrorKind::Unavailable,
                format!(
                    "container '{container}': {asked} ports take as many open files, and {spare} are left for them: {limit}"
                ),
            ));
        }
    }
    let Some((first, last)) = platform.own_ports() else { return Ok(()) };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        // A bound socket keeps its port from connections whatever its address.
        let within = |port: &PublishedPort| {
            let (from, to) = port.host_ports().filter(|_| port.protocol == protocol)?;
            let (from, to) = (from.max(first), to.min(last));
            (from <= to).then_some((from, to))
        };
        let chosen = free.iter().filter(|request| request.protocol == protocol).count();
        let named: Vec<_> = fixed.iter().filter_map(within).collect();
        if chosen == 0 && named.is_empty() {
            continue;
        }
        let all = usize::from(last - first) + 1;
        let most = all - FREE_FOR_HOST.min(all / 2);
        let ranges = taken.iter().filter_map(|(port, _)| within(port)).chain(named);
        let published = chosen + covered(ranges.collect());
        if published > most {
            return Err(ApiError::new(
                ErrorKind::Conflict,
                format!(
                    "container '{container}': with its {protocol} ports, containers publish {published} of the {all} ports that this host uses for its own connections (net.ipv4.ip_local_port_range, {first} to {last}): {most} at most are valid; choose others, or give the host another range"
                ),
            ));
        }
    }
    Ok(())
}

/// Number of ports in these ranges, first and last. A port in several ranges counts once.
fn covered(mut ranges: Vec<(u16, u16)>) -> usize {
    ranges.sort_unstable();
    let (mut count, mut next) = (0, 0_u32);
    for (first, last) in ranges {
        let (first, end) = (u32::from(first).max(next), u32::from(last) + 1);
        if end > first {
            count += (end - first) as usize;
            next = end;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_several_ranges_counts_once() {
        for (ranges, expected) in [
            (vec![], 0),
            (vec![(1, 1)], 1),
            (vec![(1, u16::MAX)], 65_535),
            (vec![(10, 19), (10, 19)], 10),
            (vec![(30, 39), (10, 19)], 20),
            (vec![(10, 29), (15, 19), (20, 39)], 30),
            (vec![(0, u16::MAX), (u16::MAX, u16::MAX)], 65_536),
        ] {
            assert_eq!(covered(ranges.clone()), expected, "{ranges:?}");
        }
    }
}
