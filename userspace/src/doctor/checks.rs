//! Checks: functions from facts to findings. They do not access the kernel.

use std::net::IpAddr;

use culvert_common::abi::VXLAN_OVERHEAD;

use super::{
    facts::{Bpffs, Facts, HostFacts, Probe, UplinkFacts},
    finding::{Finding, Level},
};

/// The first kernel with tcx, to which the programs are attached.
const LEAST_KERNEL: (u32, u32) = (6, 6);
/// Capabilities that the agent needs, by number (linux/capability.h).
const CAPABILITIES: [(u32, &str); 4] =
    [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
/// Greatest difference between the clocks of the store and of this host that gives no warning.
const CLOCK_TOLERANCE_MS: u64 = 1000;

/// Checks the facts. Also returns a finding for each check that is fine.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = host(&facts.host);
    findings.push(bpffs(facts));
    for uplink in &facts.uplinks {
        findings.extend(self::uplink(facts, uplink));
    }
    findings.push(port(facts));
    findings.push(clock(facts));
    findings.push(ok(
        "firewall",
        "tunnelled, masqueraded and published packets pass the host's netfilter rules by; those between containers and the host itself go through them, on interfaces cvg*"
            .to_owned(),
    ));
    findings
}

/// Checks the kernel and the process's privileges.
pub(super) fn host(facts: &HostFacts) -> Vec<Finding> {
    vec![kernel(facts), btf(facts), privileges(facts), bpf(facts), jit(facts)]
}

fn finding(check: &str, level: Level, detail: String, advice: &str) -> Finding {
    Finding { check: check.to_owned(), level, detail, advice: advice.to_owned() }
}

pub(super) fn ok(check: &str, detail: String) -> Finding {
    finding(check, Level::Ok, detail, "")
}

fn error(check: &str, detail: String, advice: &str) -> Finding {
    finding(check, Level::Error, detail, advice)
}

pub(super) fn warning(check: &str, detail: String, advice: &str) -> Finding {
    finding(check, Level::Warning, detail, advice)
}

/// Major and minor number of a release such as `6.6.12-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(facts: &HostFacts) -> Finding {
    let (major, minor) = LEAST_KERNEL;
    let release = &facts.release;
    match version(release) {
        Some(version) if version >= LEAST_KERNEL => ok("kernel", format!("kernel {release}")),
        Some(_) => error(
            "kernel",
            format!(
                "kernel {release} is too old: tcx, to which the programs are attached, needs {major}.{minor} or newer"
            ),
            "boot a newer kernel",
        ),
        None => warning(
            "kernel",
            format!("kernel release {release:?} is not understood"),
            &format!("make sure that it has tcx (Linux {major}.{minor} or newer)"),
        ),
    }
}

fn btf(facts: &HostFacts) -> Finding {
    if facts.btf {
        ok("btf", "the kernel describes its types (BTF)".to_owned())
    } else {
        error(
            "btf",
            "the kernel has no BTF: /sys/kernel/btf/vmlinux does not exist".to_owned(),
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF, and mount sysfs on /sys",
        )
    }
}

fn privileges(facts: &HostFacts) -> Finding {
    let Some(effective) = facts.capabilities else {
        return warning(
            "privileges",
            "our capabilities cannot be read".to_owned(),
            "mount procfs on /proc",
        );
    };
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return ok("privileges", "all needed capabilities are there".to_owned());
    }
    error("privileges", format!("missing privilege: {}", missing.join(", ")), "run as root")
}

fn bpf(facts: &HostFacts) -> Finding {
    match &facts.bpf {
        Probe::Works => ok("bpf", "BPF programs can be loaded".to_owned()),
        Probe::Unsupported => error(
            "bpf",
            "the kernel has no BPF programs of type sched_cls".to_owned(),
            "boot a kernel built with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS",
        ),
        Probe::Failed(why) => error(
            "bpf",
            format!("loading a BPF program failed: {why}"),
            "run as root in the first user namespace, and let no security policy forbid bpf(2)",
        ),
    }
}

fn jit(facts: &HostFacts) -> Finding {
    match facts.jit {
        Some(0) => warning(
            "jit",
            "BPF programs are interpreted: the JIT compiler is off".to_owned(),
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => ok("jit", "BPF programs are compiled".to_owned()),
        None => ok(
            "jit",
            "the state of the BPF compiler cannot be seen from this network namespace".to_owned(),
        ),
    }
}

fn bpffs(facts: &Facts) -> Finding {
    let place = facts.subject.bpffs.display();
    match facts.bpffs {
        Bpffs::Mounted => ok("bpffs", format!("bpffs is mounted at {place}")),
        Bpffs::Mountable => ok("bpffs", format!("the agent mounts bpffs at {place}")),
        Bpffs::Missing => error(
            "bpffs",
            "the kernel has no BPF file system to pin programs and maps in".to_owned(),
            "boot a kernel built with CONFIG_BPF_SYSCALL",
        ),
    }
}

fn uplink(facts: &Facts, uplink: &UplinkFacts) -> Vec<Finding> {
    let name = &uplink.name;
    let Some(link) = &uplink.link else {
        return vec![error(
            "uplink",
            format!("uplink {name} does not exist"),
            "name an interface of 'ip link' with --uplink",
        )];
    };
    let mut findings = Vec::new();
    let ipv4 = link.addresses.iter().find(|address| address.is_ipv4());
    findings.push(match ipv4 {
        _ if !link.up => {
            error("uplink", format!("uplink {name} is down"), &format!("ip link set {name} up"))
        }
        None => error(
            "uplink",
            format!("uplink {name} has no IPv4 address for the VTEP"),
            &format!("ip addr add ADDRESS/PREFIX dev {name}"),
        ),
        Some(_) if !link.running => warning(
            "uplink",
            format!("uplink {name} has no carrier"),
            "plug in the cable, or bring up what it is connected to",
        ),
        Some(address) => ok("uplink", format!("uplink {name} is up with {address}")),
    });
    findings.extend(mtu(facts, name, link.mtu));
    findings.push(if uplink.merging.is_empty() {
        ok("offload", format!("uplink {name} does not merge VXLAN datagrams"))
    } else {
        let features = uplink.merging.join(" and ");
        let off: String = uplink.merging.iter().map(|feature| format!(" {feature} off")).collect();
        error(
            "offload",
            format!("uplink {name} has {features} on: it can merge VXLAN datagrams of different networks, which are then dropped"),
            &format!("ethtool -K {name}{off}"),
        )
    });
    findings.extend(tcx(uplink));
    findings
}

fn mtu(facts: &Facts, name: &str, mtu: u32) -> Vec<Finding> {
    let overhead = u32::from(VXLAN_OVERHEAD);
    let largest = mtu.saturating_sub(overhead);
    let tight: Vec<Finding> = facts
        .subject
        .networks
        .iter()
        .filter(|(_, wanted)| u32::from(*wanted) > largest)
        .map(|(network, wanted)| {
            let needed = u32::from(*wanted) + overhead;
            warning(
                "mtu",
                format!("network {network} has MTU {wanted}, but uplink {name} carries {largest}: larger packets are refused with an ICMP error"),
                &format!("raise the MTU of {name} to {needed}, or create the network with --mtu {largest}"),
            )
        })
        .collect();
    if tight.is_empty() {
        vec![ok("mtu", format!("uplink {name} carries inner packets of {largest} bytes"))]
    } else {
        tight
    }
}

fn tcx(uplink: &UplinkFacts) -> Option<Finding> {
    let name = &uplink.name;
    let programs = uplink.tcx.as_ref()?;
    let is_ours = |program: &str| program.starts_with("from_underlay");
    let others: Vec<String> = programs
        .iter()
        .filter(|program| !is_ours(&program.name))
        .map(|program| format!("{} ({})", program.name, program.id))
        .collect();
    Some(if others.is_empty() {
        ok("tcx", format!("no other program is attached to uplink {name}"))
    } else {
        warning(
            "tcx",
            format!("other programs see what uplink {name} receives: {}", others.join(", ")),
            "make sure that they let VXLAN pass: 'bpftool net' shows the order",
        )
    })
}

fn port(facts: &Facts) -> Finding {
    let port = facts.subject.vxlan_port;
    if let Some(device) = facts.vxlan_devices.first() {
        return error(
            "port",
            format!(
                "kernel vxlan device {device} uses UDP port {port} as well: one of the two gets the frames of the other"
            ),
            "remove it, or choose another port with --vxlan-port on all hosts",
        );
    }
    let addresses: Vec<IpAddr> = facts
        .uplinks
        .iter()
        .filter_map(|uplink| uplink.link.as_ref())
        .flat_map(|link| link.addresses.iter().map(|address| address.ip()))
        .collect();
    let clash = facts
        .sockets
        .iter()
        .find(|socket| socket.address.is_unspecified() || addresses.contains(&socket.address));
    match clash {
        // The agent itself holds the port, so that no other program takes it.
        Some(_) if facts.subject.agent_running => {
            ok("port", format!("UDP port {port} is held while the agent runs"))
        }
        Some(socket) => error(
            "port",
            format!(
                "a program has a socket on {}, UDP port {port}: it would miss its datagrams",
                socket.address
            ),
            &format!(
                "stop it ('ss -ulpn sport = {port}' names it), or choose another port with --vxlan-port on all hosts"
            ),
        ),
        None => ok("port", format!("UDP port {port} is free")),
    }
}

fn clock(facts: &Facts) -> Finding {
    match facts.subject.clock_offset_ms {
        Some(offset) if offset.unsigned_abs() > CLOCK_TOLERANCE_MS => {
            let apart = offset.unsigned_abs();
            let direction = if offset > 0 { "ahead of" } else { "behind" };
            warning(
                "clock",
                format!(
                    "the store's clock is {apart} ms {direction} this host's: times in logs do not match"
                ),
                "let an NTP client set both clocks",
            )
        }
        Some(offset) => ok("clock", format!("the store's clock differs by {offset} ms")),
        None => ok("clock", "the store has no clock of its own, or does not tell".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::{Subject, TcxProgram},
        netlink::{Link, sockets::LocalSocket},
    };

    fn healthy() -> Facts {
        Facts {
            subject: Subject {
                uplinks: vec!["up0".to_owned()],
                vxlan_port: 4789,
                bpffs: "/sys/fs/bpf".into(),
                networks: vec![("net1".to_owned(), 1450)],
                clock_offset_ms: Some(3),
                agent_running: false,
            },
            host: HostFacts {
                release: "6.6.0-13-amd64".to_owned(),
                btf: true,
                bpf: Probe::Works,
                jit: Some(1),
                capabilities: Some(u64::MAX),
            },
            bpffs: Bpffs::Mountable,
            uplinks: vec![UplinkFacts {
                name: "up0".to_owned(),
                link: Some(Link {
                    name: "up0".to_owned(),
                    mtu: 1500,
                    up: true,
                    running: true,
                    addresses: vec!["192.0.2.1/24".parse().unwrap()],
                    ..Link::default()
                }),
                merging: Vec::new(),
                tcx: Some(vec![TcxProgram { name: "from_underlay".to_owned(), id: 1 }]),
            }],
            sockets: Vec::new(),
            vxlan_devices: Vec::new(),
        }
    }

    fn link(facts: &mut Facts) -> &mut Link {
        facts.uplinks[0].link.as_mut().unwrap()
    }

    fn socket(address: &str) -> LocalSocket {
        LocalSocket { address: address.parse().unwrap(), port: 4789, inode: 5 }
    }

    /// Asserts that exactly one finding is not ok: with that check, that level and those words.
    fn assert_found(break_it: impl FnOnce(&mut Facts), check: &str, level: Level, words: &[&str]) {
        let mut facts = healthy();
        break_it(&mut facts);
        let bad: Vec<Finding> =
            examine(&facts).into_iter().filter(|finding| finding.level != Level::Ok).collect();
        let [found] = bad.as_slice() else { panic!("{check}: {bad:?}") };
        assert_eq!((found.check.as_str(), found.level), (check, level), "{found:?}");
        let line = format!("{}: {}", found.detail, found.advice);
        for word in words {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(!found.advice.is_empty(), "{found:?}");
    }

    #[test]
    fn a_healthy_host_needs_nothing() {
        for finding in examine(&healthy()) {
            assert_eq!(finding.level, Level::Ok, "{finding:?}");
            assert!(finding.advice.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn kernel_features_are_named() {
        let release = |release: &str| {
            let release = release.to_owned();
            move |facts: &mut Facts| facts.host.release = release
        };
        for old in ["5.15.0-91-generic", "6.5.13", "2.6.66-culvert", "4.19"] {
            assert_found(release(old), "kernel", Level::Error, &[old, "too old", "tcx", "6.6"]);
        }
        assert_found(release("next"), "kernel", Level::Warning, &["tcx"]);
        for new in ["6.6", "6.10.3", "7.2.0-rc1", "10.0+"] {
            let mut facts = healthy();
            facts.host.release = new.to_owned();
            assert_eq!(examine(&facts)[0].level, Level::Ok, "{new}");
        }
        assert_found(
            |facts| facts.host.btf = false,
            "btf",
            Level::Error,
            &["BTF", "CONFIG_DEBUG_INFO_BTF"],
        );
        assert_found(
            |facts| facts.host.bpf = Probe::Unsupported,
            "bpf",
            Level::Error,
            &["CONFIG_BPF_SYSCALL"],
        );
        assert_found(
            |facts| facts.host.bpf = Probe::Failed("Operation not permitted".to_owned()),
            "bpf",
            Level::Error,
            &["Operation not permitted"],
        );
        assert_found(
            |facts| facts.host.jit = Some(0),
            "jit",
            Level::Warning,
            &["bpf_jit_enable=1"],
        );
        assert_found(|facts| facts.bpffs = Bpffs::Missing, "bpffs", Level::Error, &["pin"]);
    }

    #[test]
    fn missing_privileges_are_named() {
        assert_found(
            |facts| facts.host.capabilities = Some(u64::MAX ^ (1 << 39) ^ (1 << 12)),
            "privileges",
            Level::Error,
            &["CAP_NET_ADMIN, CAP_BPF", "root"],
        );
    }

    #[test]
    fn uplinks_are_looked_at() {
        let up0 = "up0";
        assert_found(|facts| facts.uplinks[0].link = None, "uplink", Level::Error, &[up0, "exist"]);
        assert_found(|facts| link(facts).up = false, "uplink", Level::Error, &[up0, "down"]);
        assert_found(|facts| link(facts).running = false, "uplink", Level::Warning, &["carrier"]);
        assert_found(
            |facts| link(facts).addresses = vec!["2001:db8::1/64".parse().unwrap()],
            "uplink",
            Level::Error,
            &["no IPv4"],
        );
        assert_found(
            |facts| facts.uplinks[0].merging = vec!["rx-udp-gro-forwarding".to_owned()],
            "offload",
            Level::Error,
            &["ethtool -K up0 rx-udp-gro-forwarding off"],
        );
        assert_found(
            |facts| {
                let other = TcxProgram { name: "cil_from_netdev".to_owned(), id: 42 };
                facts.uplinks[0].tcx.as_mut().unwrap().push(other);
            },
            "tcx",
            Level::Warning,
            &["cil_from_netdev (42)"],
        );
    }

    #[test]
    fn the_mtu_must_leave_room() {
        assert_found(
            |facts| link(facts).mtu = 1499,
            "mtu",
            Level::Warning,
            &["net1", "1449", "to 1500"],
        );
        assert_found(
            |facts| facts.subject.networks.push(("jumbo".to_owned(), 9000)),
            "mtu",
            Level::Warning,
            &["jumbo", "9050", "--mtu 1450"],
        );
    }

    #[test]
    fn the_port_must_be_ours() {
        assert_found(
            |facts| facts.vxlan_devices = vec!["vx1".to_owned()],
            "port",
            Level::Error,
            &["vx1", "4789", "--vxlan-port"],
        );
        for address in ["0.0.0.0", "::", "192.0.2.1"] {
            assert_found(
                |facts| facts.sockets = vec![socket(address)],
                "port",
                Level::Error,
                &["socket", address],
            );
        }
        // A socket on another address does not conflict, and neither does the agent's own.
        let mut facts = healthy();
        facts.sockets = vec![socket("127.0.0.1")];
        assert!(examine(&facts).iter().all(|finding| finding.level == Level::Ok));
        facts.sockets = vec![socket("0.0.0.0")];
        facts.subject.agent_running = true;
        assert!(examine(&facts).iter().all(|finding| finding.level == Level::Ok));
    }

    #[test]
    fn clocks_may_differ_a_little() {
        for offset in [5000, -5000] {
            assert_found(
                |facts| facts.subject.clock_offset_ms = Some(offset),
                "clock",
                Level::Warning,
                &["5000 ms", "NTP"],
            );
        }
    }
}
