//! The first chapter: the five modes, and packets between a container and an external host.

use std::process::Command;

use anyhow::Result;

use super::stage::{LISTENING, Stage, wait_until};
use crate::lab::{HostPlan, external, path};
use crate::process::{self, Background};

/// Log of the external host's web server.
const LOG: &str = "external-web.log";

/// Whether the external host has seen a request from `ip`.
fn seen_from(log: &str, ip: &str) -> bool {
    log.lines().any(|line| line.starts_with(&format!("{ip} ")) && line.contains("GET /"))
}

/// A web server on the external host. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct ExternalServer {
    plan: HostPlan,
    server: Background,
}

impl ExternalServer {
    /// Shows the external host and starts its web server.
    pub(super) fn start(stage: &mut Stage) -> Result<Self> {
        let plan = external::host();
        stage.step("An external host, behind a router: it knows no route to any container")?;
        let said = stage.type_on(&plan, "ip route")?;
        stage.expect("no route to 172.17.0.0/16", !said.contains("172.17."))?;
        let dir = path("external-web");
        let dir = dir.display();
        stage.type_on(
            &plan,
            &format!("mkdir -p {dir} && echo 'Hello from external' > {dir}/index.html"),
        )?;
        let line = format!("python3 -u -m http.server 80 --directory {dir}");
        let log = path(LOG);
        stage.prompt(&plan.node, &format!("{line} > {} 2>&1 &", log.display()));
        let mut command: Command = plan.command("sh".as_ref());
        let line = format!("exec {line}");
        let mut server = Background::start("python3", command.args(["-c", &line]), &log)?;
        process::wait_for("the external host's web server", LISTENING, || {
            server.check()?;
            let page = plan.shell("curl -sf http://127.0.0.1/")?;
            Ok(page.status.success().then_some(()))
        })?;
        Ok(Self { plan, server })
    }

    /// Ends the web server.
    pub(super) fn stop(mut self) -> Result<()> {
        self.server.stop()
    }

    /// Checks that `container` on `host` reads the external host's page, and that the log of the
    /// external host has the address of `host` and not the container's.
    pub(super) fn sees_the_host(
        &self,
        stage: &mut Stage,
        host: &HostPlan,
        container: &str,
        ip: &str,
    ) -> Result<()> {
        let line = format!("culvert exec {container} -- curl -s http://{}/", self.plan.ip);
        let said = stage.type_on(host, &line)?;
        stage.expect("the external host's page", said.trim() == "Hello from external")?;
        let said = stage.type_on(&self.plan, &format!("tail -n 1 {}", path(LOG).display()))?;
        stage.expect(
            &format!("the external host sees {} ({}), not {ip}", host.ip, host.node),
            seen_from(&said, &host.ip) && !seen_from(&said, ip),
        )
    }

    /// Shows the bridge mode: address and routes, external access and its path, and a published
    /// port.
    pub(super) fn bridge(&self, stage: &mut Stage, one: &HostPlan, two: &HostPlan) -> Result<()> {
        stage.step("Mode 1, bridge, the default: a container with a published port")?;
        let dir = path("web");
        let dir = dir.display();
        stage
            .type_on(one, &format!("mkdir -p {dir} && echo 'Hello from web' > {dir}/index.html"))?;
        stage.type_on(
            one,
            &format!(
                "culvert run -d --name web -p 8080:80 -- python3 -u -m http.server 80 --directory \
                 {dir}"
            ),
        )?;
        let probe = "culvert exec web -- curl -sf http://127.0.0.1/";
        wait_until(one, "web's web server", probe, |_| true)?;
        let said = stage.type_on(one, "culvert exec web -- ip -brief address")?;
        stage.expect("the address 172.17.0.2/16", said.contains("172.17.0.2/16"))?;
        let said = stage.type_on(one, "culvert exec web -- ip route")?;
        let default = said.contains("default via 172.17.0.1 dev eth0");
        stage.expect("a default route by the gateway", default)?;

        stage.step("SNAT of outgoing packets, in eBPF: the external host sees host1")?;
        self.sees_the_host(stage, one, "web", "172.17.0.2")?;
        let said = stage.type_on(one, "culvert nat ls")?;
        let flow = said.lines().any(|l| l.contains("172.17.0.2:") && l.contains(&one.ip));
        stage.expect("the flow, with both addresses", flow)?;
        let said =
            stage.type_on(one, "bridge link; cat /proc/net/ip_tables_names 2>/dev/null || true")?;
        stage.expect(
            "no bridge that forwards (cvroom0 only lends headroom), and no iptables table, on host1",
            said.trim().lines().all(|line| line.contains("state disabled")),
        )?;

        stage.step("Each hop counts: the gateway, the router, the external host")?;
        let out = &self.plan.ip;
        // ping fails if only an ICMP error comes back. The exit code of grep says whether it came.
        let ping = |ttl: u8, line: &str| {
            format!("culvert exec web -- ping -n -c 1 -W 2 -t {ttl} {out} | grep '{line}'")
        };
        let router = external::router().ip;
        for (ttl, who, ip) in [(1, "the gateway", "172.17.0.1"), (2, "the router", &*router)] {
            let said = stage.type_on(one, &ping(ttl, "Time to live exceeded"))?;
            stage.expect(&format!("TTL {ttl}: {who}"), said.contains(&format!("From {ip} ")))?;
        }
        let said = stage.type_on(one, &ping(64, "bytes from"))?;
        stage
            .expect("TTL 64: the external host's answer, two hops less", said.contains("ttl=62"))?;

        stage.step(
            "The published port: from the external host, from host2, and on host1 by 127.0.0.1",
        )?;
        stage.type_on(one, "culvert ps")?;
        for (from, to) in [(&self.plan, &*one.ip), (two, &*one.ip), (one, "127.0.0.1")] {
            let said = stage.type_on(from, &format!("curl -s http://{to}:8080/"))?;
            stage.expect("web's page", said.trim() == "Hello from web")?;
        }
        let said = stage.type_on(one, "culvert logs web")?;
        let real = seen_from(&said, &self.plan.ip) && seen_from(&said, &two.ip);
        stage.expect("web sees its clients' own addresses", real)?;
        let said = stage.type_on(one, "ss -Hltn")?;
        stage.expect("no process that listens for it", !said.contains(":8080"))
    }

    /// Shows the modes host, container and none.
    pub(super) fn other_modes(&self, stage: &mut Stage, one: &HostPlan) -> Result<()> {
        stage.step("Mode 2, host: the host's own interfaces")?;
        let run = "culvert run --rm --name hostc1 --network host -- ip -brief address";
        let said = stage.type_on(one, run)?;
        let host = said.contains(one.uplink) && said.contains(&format!("{}/24", one.ip));
        stage.expect(&format!("{} with {}", one.uplink, one.ip), host)?;

        stage.step("Mode 3, container: those of another container")?;
        let run = "culvert run --rm --name hostcs2 --network container:web -- ";
        let said = stage.type_on(one, &format!("{run}ip -brief address"))?;
        stage.expect("web's eth0", said.contains("eth0") && said.contains("172.17.0.2/16"))?;
        let said = stage.type_on(one, &format!("{run}curl -s http://127.0.0.1/"))?;
        stage.expect("web's page on 127.0.0.1", said.trim() == "Hello from web")?;

        stage.step("Mode 4, none: lo, and nothing else")?;
        let run = "culvert run --rm --name hostn1 --network none -- ip -brief address";
        let said = stage.type_on(one, run)?;
        let alone = said.lines().count() == 1 && said.starts_with("lo ");
        stage.expect("lo alone", alone)?;

        stage.type_on(one, "culvert rm -f web")?;
        Ok(())
    }

    /// Shows that external access from an overlay network uses the same interface.
    pub(super) fn out_of_the_overlay(
        &self,
        stage: &mut Stage,
        two: &HostPlan,
        ip: &str,
    ) -> Result<()> {
        stage.step(
            "External access from the overlay: the same eth0, where Docker adds a second one",
        )?;
        let said = stage.type_on(two, "culvert exec over2 -- ip -brief link")?;
        stage.expect("lo and eth0 alone", said.lines().count() == 2 && said.contains("eth0"))?;
        self.sees_the_host(stage, two, "over2", ip)
    }
}

#[cfg(test)]
mod tests {
    use super::seen_from;

    #[test]
    fn a_web_servers_log_names_its_clients() {
        let log = "Serving HTTP on 0.0.0.0 port 80\n\
                   192.168.1.21 - - [25/Nov/2026 16:35:10] \"GET / HTTP/1.1\" 200 -\n";
        assert!(seen_from(log, "192.168.1.21"));
        assert!(!seen_from(log, "192.168.1.2"));
        assert!(!seen_from(log, "172.17.0.2"));
    }
}
