//! Checks: functions from facts to findings. They do not access the kernel.

use std::net::IpAddr;

use culvert_common::abi::VXLAN_OVERHEAD;

use super::{
    certificate::examine_certificate,
    facts::{Bpffs, Facts, HostFacts, HostSides, NeighbourTable, Probe, UplinkFacts},
    finding::{Finding, error, ok, warning},
    translations::{services, translated},
};
use crate::{
    datapath::{Leftover, Owner},
    sandbox::RESOLVER_ADVICE,
};

/// The first kernel with tcx, to which the programs are attached.
const LEAST_KERNEL: (u32, u32) = (6, 6);
/// Capabilities that the agent needs, by number (linux/capability.h).
const CAPABILITIES: [(u32, &str); 4] =
    [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
/// Capability without which the kernel sends no events of the namespaces of containers.
const BROADCAST: (u32, &str) = (11, "CAP_NET_BROADCAST");
/// Greatest difference between the clocks of the store and of this host that gives no warning.
const CLOCK_TOLERANCE_MS: u64 = 1000;

/// Checks the facts. Also returns a finding for each check that is fine.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = host(&facts.host);
    findings.push(bpffs(facts));
    for uplink in &facts.uplinks {
        findings.extend(self::uplink(facts, uplink));
    }
    findings.extend(default_route(facts));
    findings.extend(facts.leftovers.iter().map(leftover));
    findings.push(port(facts));
    findings.push(clock(facts));
    findings.extend(facts.subject.alarms.iter().map(|alarm| self::alarm(alarm)));
    findings.extend(facts.subject.open_store.then(open_store));
    let certificates = facts.certificates.iter();
    findings.extend(certificates.map(|file| examine_certificate(file, facts.now)));
    findings.push(names(facts));
    findings.extend(ports(facts));
    findings.extend(translated(&facts.translations, &facts.subject.published));
    findings.extend(services(&facts.translations, &facts.subject.services));
    findings.extend(facts.shaped.iter().map(|(name, qdisc)| shaped(name, qdisc)));
    findings.extend(facts.filtered.iter().map(|name| filtered(name)));
    findings.extend(headroom(facts.host_sides));
    findings.push(firewall(facts));
    findings.extend(neighbours(facts));
    findings
}

/// Checks the kernel and the process's privileges.
pub(super) fn host(facts: &HostFacts) -> Vec<Finding> {
    vec![kernel(facts), btf(facts), privileges(facts), bpf(facts), jit(facts)]
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
    let lacks = |bit: u32| effective >> bit & 1 == 0;
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| lacks(*bit)).map(|(_, name)| *name).collect();
    let (bit, name) = BROADCAST;
    if missing.is_empty() && lacks(bit) {
        return warning(
            "privileges",
            format!(
                "missing privilege: {name}: what others change in a container is put right after a minute, not at once"
            ),
            "run as root",
        );
    }
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
    findings.push(
        merging_uplink(name, &uplink.merging).unwrap_or_else(|| {
            ok("offload", format!("uplink {name} does not merge VXLAN datagrams"))
        }),
    );
    findings.extend(tcx(uplink));
    findings
}

/// The fault of an uplink that has `features` on, which merge VXLAN datagrams. `None`: there are
/// none.
pub fn merging_uplink(name: &str, features: &[&str]) -> Option<Finding> {
    if features.is_empty() {
        return None;
    }
    let off: String = features.iter().map(|feature| format!(" {feature} off")).collect();
    Some(error(
        "offload",
        format!(
            "uplink {name} has {} on: it can merge VXLAN datagrams of different networks, which are then dropped",
            features.join(" and ")
        ),
        &format!("ethtool -K {name}{off}"),
    ))
}

/// Checks that the default route leads out of an uplink.
fn default_route(facts: &Facts) -> Option<Finding> {
    let link = facts.default_link.as_ref()?;
    let (name, uplinks) = (&link.name, &facts.subject.uplinks);
    if uplinks.is_empty() || uplinks.contains(name) {
        return None;
    }
    let detail = format!(
        "the default route leads out of {name}, and the uplink is {}: packets of containers to other hosts that take the default route are dropped (not_an_uplink)",
        uplinks.join(" and ")
    );
    let advice = match link.mac {
        Some(_) => format!(
            "start the agent with --uplink {name} as well, or without --uplink: it then follows the default route after 2 s"
        ),
        None => format!(
            "{name} has no Ethernet header and cannot be an uplink: give a table the default route by the uplink, and 'ip rule add from SUBNET lookup TABLE' for the subnet of each network"
        ),
    };
    Some(warning("uplink", detail, &advice))
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

fn leftover(leftover: &Leftover) -> Finding {
    match leftover.owner {
        Owner::Runs(pid) => error(
            "programs",
            format!("{leftover}: it is of another agent, pid {pid}, in this network namespace"),
            "stop one of the two agents",
        ),
        Owner::Unseen => warning(
            "programs",
            format!(
                "{leftover}: it is of another agent, and whether that runs cannot be told in this PID namespace"
            ),
            "run culvert in the PID namespace of the host, as with 'docker run --pid=host'",
        ),
        Owner::Ended => warning(
            "programs",
            format!(
                "{leftover}: it is of an earlier agent with another --bpffs, and runs before the programs of a later one"
            ),
            "start the agent again, or run 'culvert purge': both detach it",
        ),
    }
}

fn port(facts: &Facts) -> Finding {
    let port = facts.subject.vxlan_port;
    let other = match facts.vxlan_devices.first() {
        Some(device) => Some(format!("kernel vxlan device {device}")),
        None => facts.subject.shared_port.then(|| {
            "another program, such as Docker Swarm with a vxlan device in a namespace,".to_owned()
        }),
    };
    if let Some(other) = other {
        return warning(
            "port",
            format!(
                "{other} uses UDP port {port} as well: it gets the VXLAN frames whose VNI is not Culvert's, and not those of a VNI that both have"
            ),
            "see that no VNI is used by both, or choose another port with --vxlan-port on all hosts",
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

fn alarm(alarm: &str) -> Finding {
    let advice = match alarm {
        "NOSPACE" => {
            "run 'etcdctl compact' and 'etcdctl defrag', or give etcd a larger --quota-backend-bytes; then run 'etcdctl alarm disarm'"
        }
        _ => "'etcdctl alarm list' names the member: replace it by a new one",
    };
    error("store", format!("etcd has the alarm {alarm}: it takes no writes"), advice)
}

fn open_store() -> Finding {
    error(
        "store",
        "the store has no authentication: whoever reaches etcd controls the networks of all hosts, and containers reach other hosts with the address of this one".to_owned(),
        "give etcd users or client certificates, and the agents --store-user or --store-cert; until then this agent keeps its containers from the store's addresses and ports",
    )
}

fn names(facts: &Facts) -> Finding {
    let resolver = &facts.resolver;
    match (resolver.fault(), resolver.source) {
        (Some(why), _) => {
            warning("names", format!("containers get no name server: {why}"), RESOLVER_ADVICE)
        }
        (None, source) => {
            let servers: Vec<String> =
                resolver.conf.servers.iter().map(ToString::to_string).collect();
            ok(
                "names",
                format!(
                    "containers get name server {} from {}",
                    servers.join(", "),
                    source.unwrap_or_default()
                ),
            )
        }
    }
}

fn shaped(name: &str, qdisc: &str) -> Finding {
    warning(
        "shaping",
        format!(
            "{qdisc} on {name} limits nothing: frames to the container go past the queue of its host side"
        ),
        "set it on the container's own interface, or on the uplink",
    )
}

fn filtered(name: &str) -> Finding {
    warning(
        "shaping",
        format!(
            "filters of 'tc filter' on {name} have no effect: frames of the container are taken before them, and frames to the container go past them"
        ),
        "set them on the container's own interface, or on the uplink",
    )
}

fn headroom(sides: HostSides) -> Option<Finding> {
    let HostSides { all, without_headroom } = sides;
    if all == 0 {
        return None;
    }
    if without_headroom == 0 {
        let detail = "the host side of each container is a port of a bridge cvroom*".to_owned();
        return Some(ok("headroom", detail));
    }
    Some(warning(
        "headroom",
        format!(
            "{without_headroom} of {all} host sides of containers are ports of no bridge cvroom*: their frames are copied to make room for the outer header"
        ),
        "the agent's log has the reason: a device of that name that is not the agent's, or a master that does not let the host side go",
    ))
}

fn firewall(facts: &Facts) -> Finding {
    let open = facts.subject.open_ports;
    if facts.firewalls.is_empty() || open == 0 {
        return ok(
            "firewall",
            "tunnelled, masqueraded and published packets pass the host's netfilter rules by; those between containers and the host itself go through them, on interfaces cvg*"
                .to_owned(),
        );
    }
    let (are, ports) = (
        if facts.firewalls.len() == 1 { "is" } else { "are" },
        if open == 1 { "port" } else { "ports" },
    );
    warning(
        "firewall",
        format!(
            "{} {are} active, but rules of the host do not protect the {open} published {ports} that everybody may use: these packets pass netfilter by",
            facts.firewalls.join(" and ")
        ),
        "name the clients of a port by 'culvert run -p PORT --from CIDR', deny others by 'culvert ports deny CIDR'; 'culvert ports ls' shows both",
    )
}

fn neighbours(facts: &Facts) -> Vec<Finding> {
    if facts.neighbours.is_empty() {
        return vec![ok(
            "neighbours",
            "the kernel's tables of neighbours cannot be seen from this network namespace"
                .to_owned(),
        )];
    }
    let finding = |table: &NeighbourTable| {
        let &NeighbourTable { family, entries, limit, refused } = table;
        let detail = format!(
            "the table of {family} neighbours, which all network namespaces share, has {entries} entries of {limit}"
        );
        // Not every container has an IPv6 address.
        let containers = if family == "ipv4" { facts.host_sides.all as u64 } else { 0 };
        let why = if entries >= limit / 4 * 3 {
            format!(
                "in a full table no address is resolved, in containers neither; {refused} were refused since the boot"
            )
        } else if containers >= limit {
            format!(
                "the {containers} containers here may need more within 5 s: one for each other container with which one of them exchanges packets"
            )
        } else {
            return ok("neighbours", detail);
        };
        let setting = format!("net.{family}.neigh.default.gc_thresh");
        let enough = limit.max(containers).saturating_mul(4);
        let advice = format!("sysctl -w {setting}3={enough} {setting}2={}", enough / 2);
        warning("neighbours", format!("{detail}: {why}"), &advice)
    };
    facts.neighbours.iter().map(finding).collect()
}

fn ports(facts: &Facts) -> Option<Finding> {
    if facts.unserved.is_empty() {
        return None;
    }
    let names = facts.unserved.join(", ");
    let detail = format!(
        "published ports are not reached through {names}: only Ethernet, tun and WireGuard interfaces serve them"
    );
    Some(match facts.subject.external_ports {
        0 => ok("ports", detail),
        _ => warning(
            "ports",
            detail,
            "for clients behind it run a program on this host that passes connections on to the port, such as a reverse proxy",
        ),
    })
}

#[cfg(test)]
mod tests;
