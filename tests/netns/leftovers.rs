//! Programs of an agent that had another BPF file system.

use std::{
    ffi::OsString,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::Command,
    time::Duration,
};

use aya::programs::TcAttachType;
use culvert_common::abi::ABI_VERSION;
use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    external::External,
    netns::{Process, programs, wait_until},
    sock::{self, Behaviour, Server, container},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::nat::World;

/// The agent's command line with other values for some options.
fn agent_with(host: &Host, options: &[(&str, &Path)], extra: &[&str]) -> Command {
    let plain = host.agent_command(extra);
    let mut args: Vec<OsString> = plain.get_args().map(ToOwned::to_owned).collect();
    for (option, value) in options {
        let at = args.iter().position(|arg| arg == option).map(|at| at + 1);
        args[at.unwrap_or_else(|| unreachable!("no {option}"))] = value.into();
    }
    let mut command = Command::new(plain.get_program());
    command.args(args);
    command
}

fn ingress(host: &Host, ifname: &str) -> Vec<String> {
    programs(&host.netns, ifname, TcAttachType::Ingress)
}

/// Name of the host side of the only container.
fn host_side(host: &Host) -> String {
    host.netns.run("ip -o link show | grep -o 'cv[0-9a-f]\\{12\\}' | head -n1").trim().to_owned()
}

/// The findings of `culvert doctor` about programs.
fn findings(host: &Host, bpffs: &Path) -> Vec<Value> {
    let output =
        host.culvert(&["--format", "json", "doctor", "--bpffs", bpffs.to_str().unwrap_or("")]);
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.into_iter().filter(|row| row["check"] == "programs").collect()
}

/// An agent with another `--bpffs` takes over. Connections continue, each interface has one
/// program, and nothing of the former pins is left.
#[test]
#[ignore = "needs root"]
fn an_agent_with_another_bpffs_takes_over() {
    let mut world = World::new(2);
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80);
    let _server = Server::tcp(world.external.host.path(), any, Behaviour::Echo);
    let (name, _) = world.run("bridge", &[]);
    let to = SocketAddrV4::new(External::IP, 80);
    let stream = sock::within(&container(&name), || sock::open(to, 0));
    let mut stream = stream.unwrap_or_else(|error| unreachable!("{error}"));
    let mut talk = || {
        let mut answer = [0; 4];
        stream
            .set_read_timeout(Some(Duration::from_secs(3)))
            .and_then(|()| stream.write_all(b"ping"))
            .and_then(|()| stream.read_exact(&mut answer))
            .unwrap_or_else(|error| unreachable!("the connection: {error}"));
    };
    talk();
    let former = world.host().bpffs();
    let other = world.host().dir().join("other").join("bpf");
    world.cluster.hosts[0].stop_agent(Signal::SIGKILL);
    let found = findings(world.host(), &other);
    assert!(!found.is_empty());
    for row in &found {
        assert_eq!(row["level"], "warning", "{row}");
        let detail = row["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(&format!("pinned at {}", former.display())), "{detail}");
    }

    let host = &mut world.cluster.hosts[0];
    host.agent = Some(Process::spawn(agent_with(host, &[("--bpffs", &other)], &[])));
    host.wait_ready();
    wait_until(SOON, "the former programs to be detached", || {
        ingress(host, "up0") == ["from_underlay"]
    });
    wait_until(SOON, "the former BPF file system to be removed", || !former.exists());
    talk();
    let host = world.host();
    assert_eq!(ingress(host, &host_side(host)), ["from_container"]);
    wait_until(SOON, "the repairs to be counted: an uplink, a container, a gateway", || {
        let status = host.json(&["status"]);
        let repairs = status["repairs"].as_array().cloned().unwrap_or_default();
        let repair = repairs.iter().find(|repair| repair["kind"] == "earlier program");
        repair.and_then(|repair| repair["count"].as_u64()).unwrap_or(0) >= 3
    });
    wait_until(SOON, "the flows in the log", || {
        host.agent_log().contains("1 flows carried over, 0 lost")
    });
    let rows = host.json(&["nat", "ls"]);
    let rows = rows.as_array().cloned().unwrap_or_default();
    assert!(rows.iter().any(|row| row["container"] == name && row["dst_port"] == 80), "{rows:?}");
    assert_eq!(findings(host, &other), [Value::Null; 0]);
    // Programs in another network namespace belong to another agent.
    assert_eq!(ingress(&world.cluster.hosts[1], "up0"), ["from_underlay"]);
    assert!(world.cluster.hosts[1].bpffs().join(format!("v{ABI_VERSION}")).exists());
}

/// An interface has one XDP program. The former one is detached before the new one is attached.
#[test]
#[ignore = "needs root"]
fn an_agent_with_another_bpffs_takes_over_xdp() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    let xdp = ["--datapath", "xdp"];
    host.start_agent(&xdp);
    host.wait_ready();
    let former = host.bpffs();
    host.stop_agent(Signal::SIGKILL);
    let other = host.dir().join("other").join("bpf");
    host.agent = Some(Process::spawn(agent_with(host, &[("--bpffs", &other)], &xdp)));
    host.wait_ready();
    wait_until(SOON, "the former BPF file system to be removed", || !former.exists());
    wait_until(SOON, "the repair in the log", || {
        host.agent_log().contains("repaired: from_underlay_xdp on up0, pinned at")
    });
    assert_eq!(ingress(host, "up0"), ["from_underlay"]);
    assert!(host.netns.run("ip -d link show up0").contains("prog/xdp"));
}

/// `culvert purge` removes attached programs wherever they are pinned, and nothing in another
/// network namespace.
#[test]
#[ignore = "needs root"]
fn purge_removes_programs_that_are_pinned_elsewhere() {
    let mut cluster = Cluster::new(2);
    let host = &mut cluster.hosts[0];
    host.run_idle(&unique_name("left"), "bridge", &[]);
    let former = host.bpffs();
    host.ok(&["ports", "deny", "203.0.113.7"]);
    host.stop_agent(Signal::SIGKILL);
    assert_eq!(ingress(host, "up0"), ["from_underlay"]);
    let (state, other) = (host.dir().join("state"), host.dir().join("other"));
    assert!(state.join("denied").exists());
    let mut purge = host.culvert_command(&["purge", "--state-dir"]);
    let output = purge.arg(&state).arg("--bpffs").arg(other).output();
    let output = output.unwrap_or_else(|error| unreachable!("{error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for ifname in ["up0", "lo"] {
        assert_eq!(ingress(host, ifname), [""; 0], "{ifname}");
    }
    assert!(!former.exists());
    // The list of denied clients is removed, too, as by a purge through the running agent.
    assert!(!state.join("denied").exists());
    assert_eq!(ingress(&cluster.hosts[1], "up0"), ["from_underlay"]);
    assert!(cluster.hosts[1].healthy());
}

/// Programs of a running agent are not touched, neither by a second agent in its network namespace
/// nor by the purge of another agent.
#[test]
#[ignore = "needs root"]
fn programs_of_a_running_agent_are_not_touched() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let dir = host.dir().join("second");
    let (socket, state, bpffs) = (dir.join("socket"), dir.join("state"), dir.join("bpf"));
    let node = Path::new("second");
    let options: [(&str, &Path); 4] =
        [("--node", node), ("--socket", &socket), ("--state-dir", &state), ("--bpffs", &bpffs)];
    let mut second = Process::spawn(agent_with(host, &options, &[]));
    assert_eq!(second.wait(SOON).code(), Some(1));
    let errors = second.stderr();
    let refused = |errors: &str| {
        let pid = host.agent.as_ref().map(Process::pid).map_or(0, |pid| pid.as_raw());
        let line = errors.lines().find(|line| line.starts_with("culvert: ")).unwrap_or_default();
        assert!(line.contains(&format!("another agent, pid {pid}, serves this")), "{errors}");
        assert!(line.contains("up0"), "{errors}");
    };
    refused(&errors);
    let mut purge = host.culvert_command(&["--socket"]);
    purge.arg(&socket).arg("purge").arg("--state-dir").arg(&state).arg("--bpffs").arg(&bpffs);
    let output = purge.output().unwrap_or_else(|error| unreachable!("{error}"));
    assert_eq!(output.status.code(), Some(1));
    refused(&String::from_utf8_lossy(&output.stderr));
    assert_eq!(ingress(host, "up0"), ["from_underlay"]);
    assert!(host.healthy());
    let repairs = host.json(&["status"])["repairs"].to_string();
    assert!(!repairs.contains("program"), "{repairs}");
}
