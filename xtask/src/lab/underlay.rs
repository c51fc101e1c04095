//! The network that the hosts and the router are plugged into: a switch, in the enclosure's own network
//! namespace, where the store listens, too.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::host::HostPlan;
use super::outside;
use crate::process;

/// The store's address. The article's.
pub(super) const STORE_IP: &str = "192.168.1.18";

/// The switch.
const SWITCH: &str = "switch0";

/// The underlay with its hosts and the router plugged in.
#[derive(Debug)]
pub(crate) struct Underlay;

impl Underlay {
    /// Makes the switch, each host's namespace with its uplink, and the world outside.
    pub(crate) fn make(hosts: &[HostPlan]) -> Result<Self> {
        let mut batch = format!(
            "link set lo up\n\
             link add {SWITCH} type bridge\n\
             address add {STORE_IP}/24 dev {SWITCH}\n\
             link set {SWITCH} up\n"
        );
        let router = outside::router();
        for HostPlan { netns, uplink, port, .. } in hosts.iter().chain([&router]) {
            batch.push_str(&format!(
                "netns add {netns}\n\
                 link add {port} type veth peer name {uplink} netns {netns}\n\
                 link set {port} master {SWITCH} up\n"
            ));
        }
        run_batch("ip", &["-batch", "-"], &batch)?;
        for HostPlan { netns, uplink, ip, port, .. } in hosts.iter().chain([&router]) {
            let mut batch = format!(
                "link set lo up\n\
                 address add {ip}/24 dev {uplink}\n\
                 link set {uplink} up\n"
            );
            if *ip != router.ip {
                batch.push_str(&format!("route add default via {}\n", router.ip));
            }
            run_batch("ip", &["-netns", netns, "-batch", "-"], &batch)?;
            // A veth's ring is short and drops without a word; behind a queue it pushes back,
            // as a NIC does.
            let queue = ["root", "pfifo", "limit", "1000"];
            let mut inside = Command::new("tc");
            process::quiet(
                inside.args(["-netns", netns, "qdisc", "add", "dev", uplink]).args(queue),
            )?;
            process::quiet(Command::new("tc").args(["qdisc", "add", "dev", port]).args(queue))?;
        }
        outside::make()?;
        Ok(Self)
    }
}

/// Runs `program` with `batch` on its standard input.
pub(super) fn run_batch(program: &str, args: &[&str], batch: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program}: cannot be started"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails early closes its end; its status below says so.
        let _ = stdin.write_all(batch.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{program} {}: {}", args.join(" "), process::last_lines(&said, 3));
    }
    Ok(())
}
