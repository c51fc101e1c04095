//! The files of `packaging/`, which users install beside the binary: for systemd, systemd-networkd,
//! NetworkManager and fail2ban.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use culvert::config::DEFAULT_STATE_DIR;
use culvert_tests::{
    cluster::{Cluster, Host, SOON, culvert_binary, unique_name},
    external::External,
    netns::{Process, wait_until},
    sock::container,
};
use nix::sys::signal::Signal;

use crate::{
    host_changes::repairs,
    nat::World,
    ports::{echo, exchange},
};

const UNIT: &str = "systemd/culvert.service";
const STRICT: &str = "systemd/culvert.service.d/strict.conf";
const NETWORKD: &str = "networkd/05-culvert.network";
const NETWORK_MANAGER: &str = "NetworkManager/culvert.conf";
const ACTION: &str = "fail2ban/action.d/culvert.conf";
const JAIL: &str = "fail2ban/jail.d/web.conf";

/// The keys that each file may have, with their sections, as the other system documents them.
const KEYS: [(&str, &[&str]); 6] = [
    (
        UNIT,
        &[
            "Unit/Description",
            "Unit/After",
            "Unit/Wants",
            "Service/ExecStart",
            "Service/Restart",
            "Service/KillMode",
            "Service/OOMPolicy",
            "Service/StateDirectory",
            "Service/StateDirectoryMode",
            "Install/WantedBy",
        ],
    ),
    (
        STRICT,
        &[
            "Service/NoNewPrivileges",
            "Service/CapabilityBoundingSet",
            "Service/SystemCallArchitectures",
            "Service/SystemCallFilter",
            "Service/SystemCallErrorNumber",
            "Service/LockPersonality",
            "Service/MemoryDenyWriteExecute",
            "Service/RestrictAddressFamilies",
            "Service/RestrictRealtime",
            "Service/RestrictSUIDSGID",
            "Service/LimitCORE",
        ],
    ),
    (NETWORKD, &["Match/Name", "Link/Unmanaged"]),
    (NETWORK_MANAGER, &["keyfile/unmanaged-devices"]),
    (ACTION, &["Definition/actionban", "Definition/actionunban"]),
    (JAIL, &["web/enabled", "web/filter", "web/logpath", "web/backend", "web/action"]),
];

/// Settings that give a unit mounts of its own (systemd.exec(5)): mounts of the agent would not
/// reach the host.
const OWN_MOUNTS: [&str; 18] = [
    "PrivateTmp",
    "PrivateDevices",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivateIPC",
    "ProtectSystem",
    "ProtectHome",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectProc",
    "ProcSubset",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "BindPaths",
    "DynamicUser",
];

/// Path of a file.
fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("packaging").join(file)
}

/// The values of a file: `SECTION/KEY` and value. All systems have sections in brackets,
/// `KEY=VALUE` and comments that begin with '#'. In a unit of systemd a '\' continues a line.
fn values(file: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path(file)).unwrap().replace("\\\n", " ");
    let (mut values, mut section) = (BTreeMap::new(), String::new());
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let pair = line.split_once('=');
        let (key, value) = pair.unwrap_or_else(|| unreachable!("{file}: {line}"));
        let before = values.insert(format!("{section}/{}", key.trim()), value.trim().to_owned());
        assert_eq!(before, None, "{file}: {line}: twice");
    }
    values
}

/// Each file has the keys that its system knows, in their sections, and the values fit Culvert.
/// systemd itself checks the unit where it is installed.
#[test]
fn the_files_have_the_keys_of_their_systems() {
    for (file, keys) in KEYS {
        let found: BTreeSet<String> = values(file).into_keys().collect();
        let known: BTreeSet<String> = keys.iter().copied().map(str::to_owned).collect();
        assert_eq!(found, known, "{file}");
        let own_mounts = OWN_MOUNTS.map(|setting| format!("Service/{setting}"));
        assert!(own_mounts.iter().all(|setting| !found.contains(setting)), "{file}");
    }
    assert_eq!(values(NETWORKD)["Link/Unmanaged"], "yes");
    assert_eq!(format!("/var/lib/{}", values(UNIT)["Service/StateDirectory"]), DEFAULT_STATE_DIR);
    // The jail's action is the file of that name, and it reads the log of the container 'web'.
    let jail = values(JAIL);
    assert_eq!(path(ACTION).file_stem().unwrap().to_str(), Some(&*jail["web/action"]));
    assert_eq!(jail["web/logpath"], format!("{DEFAULT_STATE_DIR}/logs/web.log"));

    // systemd-analyze refuses a unit whose program is not installed.
    let unit = fs::read_to_string(path(UNIT)).unwrap();
    let installed = unit.replace("/usr/local/bin/culvert ", "/bin/true ");
    assert_ne!(installed, unit);
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("culvert.service");
    fs::write(&copy, installed).unwrap();
    match Command::new("systemd-analyze").arg("verify").arg(&copy).output() {
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let about_it: Vec<&str> =
                errors.lines().filter(|line| line.contains("culvert.service")).collect();
            assert!(about_it.is_empty(), "{errors}");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("systemd-analyze is not installed: the keys alone were checked");
        }
        Err(error) => unreachable!("systemd-analyze: {error}"),
    }
}

/// An agent with the capabilities and `no_new_privs` of the stricter settings serves containers.
/// setpriv(1) sets both in place of systemd.
#[test]
#[ignore = "needs root"]
fn an_agent_with_the_stricter_settings_serves_containers() {
    let strict = values(STRICT);
    assert_eq!(strict["Service/NoNewPrivileges"], "yes");
    let kept = strict["Service/CapabilityBoundingSet"].to_lowercase();
    let kept: Vec<String> =
        kept.split_whitespace().map(|name| name.replacen("cap_", ",+", 1)).collect();
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    let plain = host.agent_command(&[]);
    let mut command = Command::new(plain.get_program());
    // The first two arguments are `nsenter`'s.
    command.args(plain.get_args().take(2)).args(["setpriv", "--no-new-privs", "--bounding-set"]);
    command.arg(format!("-all{}", kept.concat())).args(plain.get_args().skip(2));
    host.agent = Some(Process::spawn(command));
    host.wait_ready();

    let (first, second) = (unique_name("first"), unique_name("second"));
    host.run_idle(&first, "bridge", &["-p", "80:80"]);
    host.run_idle(&second, "bridge", &["--restart", "always"]);
    host.wait_ping(&first, &host.ip(&second, "bridge"));
    let problems = host.json(&["status"])["problems"].to_string();
    assert!(!problems.contains("not permitted") && !problems.contains("starter"), "{problems}");
    let pid = host.json(&["status"])["agent"]["pid"].to_string();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "{status}");
    for name in [&first, &second] {
        host.ok(&["rm", "-f", name]);
    }
}

/// Names of the devices of a host.
fn devices(host: &Host) -> BTreeSet<String> {
    let links = host.netns.run("ip -o link show | cut -d: -f2 | cut -d@ -f1");
    links.split_whitespace().map(str::to_owned).collect()
}

/// The pattern of device names that systemd-networkd and NetworkManager do not manage fits all
/// devices that Culvert makes, and no other.
#[test]
#[ignore = "needs root"]
fn the_files_name_every_device() {
    let pattern = values(NETWORKD)["Match/Name"].clone();
    let unmanaged = values(NETWORK_MANAGER)["keyfile/unmanaged-devices"].clone();
    assert_eq!(unmanaged, format!("interface-name:{pattern}"));
    let prefix = pattern.strip_suffix('*').unwrap();

    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    let before = devices(host);
    host.start_agent(&[]);
    host.wait_ready();
    host.overlay("net", "10.0.0.0/24", &[]);
    host.run_idle(&unique_name("over"), "net", &["-p", "8080:80"]);
    host.run_idle(&unique_name("bridged"), "bridge", &[]);
    assert!(before.iter().all(|name| !name.starts_with(prefix)), "{before:?}");
    let made: Vec<String> = devices(host).difference(&before).cloned().collect();
    assert!(made.iter().all(|name| name.starts_with(prefix)), "{made:?}");
    // A gateway device for each network, a device for each container, and those without packets.
    assert!(made.len() >= 4, "{made:?}");
}

/// What runs systemd-networkd with files of its own in a network namespace. It takes devices at
/// once if `/sys` is read-only: udev tells nothing about the devices of a namespace.
const RUN_NETWORKD: &str = "set -e
    mount -t sysfs -o ro none /sys
    mount -t tmpfs none /run
    if [ -d /etc/systemd/network ]; then mount -t tmpfs none /etc/systemd/network; fi
    mkdir -p /run/systemd/network
    cp \"$@\" /run/systemd/network
    chmod -R a+rX /run/systemd
    exec /usr/lib/systemd/systemd-networkd";

/// Starts systemd-networkd with these files.
fn networkd(host: &Host, files: &[&Path]) -> Process {
    let mut command = host.netns.command("unshare");
    command.args(["--mount", "sh", "-c", RUN_NETWORKD, "sh"]).args(files);
    command.env("SYSTEMD_LOG_LEVEL", "info").env("SYSTEMD_LOG_TARGET", "console");
    Process::spawn(command)
}

/// The lines of systemd-networkd about devices that it configures, for devices whose name begins
/// with `prefix`.
fn configured(networkd: &Process, prefix: &str) -> Vec<String> {
    let log = networkd.stderr();
    let lines = log.lines().filter(|line| line.contains(": Configuring with "));
    lines.filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
}

/// systemd-networkd has a file for all devices. With Culvert's file it leaves Culvert's devices
/// alone, also those that are made while it runs. Without that file it does not.
#[test]
#[ignore = "needs root and systemd-networkd"]
fn networkd_leaves_the_devices_alone() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let (first, second) = (unique_name("netd"), unique_name("netd"));
    host.run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    host.netns.run("ip link add spare0 type bridge && ip link set spare0 up");
    let dir = tempfile::tempdir().unwrap();
    let all = dir.path().join("10-all.network");
    fs::write(&all, "[Match]\nName=cv* spare*\n\n[Network]\nAddress=10.99.0.1/24\n").unwrap();

    let mut daemon = networkd(host, &[&path(NETWORKD), &all]);
    wait_until(SOON, "networkd to configure a device", || {
        assert!(daemon.is_running(), "{}", daemon.stderr());
        !configured(&daemon, "spare0").is_empty()
            && daemon.stderr().contains("Enumeration completed")
    });
    host.run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    // It looks at devices in the order in which they are made.
    host.netns.run("ip link add spare1 type bridge && ip link set spare1 up");
    wait_until(SOON, "networkd to configure a later device", || {
        !configured(&daemon, "spare1").is_empty()
    });
    let touched = configured(&daemon, "cv");
    assert!(touched.is_empty(), "{touched:?}");
    host.wait_ping(&first, "10.0.0.3");
    host.netns.run("ping -c1 -W2 10.0.0.2");
    for kind in ["gateway device", "container device", "assistant device", "setting"] {
        assert_eq!(repairs(host, kind).0, 0, "{:?}", repairs(host, kind));
    }
    daemon.stop(Signal::SIGTERM, SOON);

    let daemon = networkd(host, &[&all]);
    wait_until(SOON, "networkd to take Culvert's devices", || {
        !configured(&daemon, "cv").is_empty()
    });
}

/// The commands of the action, as fail2ban runs them: with its tags replaced, by a shell. They may
/// be run again, and do nothing for clients of IPv6, which published ports do not serve.
#[test]
#[ignore = "needs root"]
fn the_action_of_fail2ban_bans_and_unbans() {
    let world = World::new(1);
    let host = world.host();
    let (name, _) = world.run("bridge", &["-p", "8080:80"]);
    let _server = echo(&container(&name), "tcp", 80);
    let action = values(ACTION);
    let binaries = culvert_binary().parent().unwrap().display().to_string();
    let search = format!("{binaries}:{}", std::env::var("PATH").unwrap());
    let run = |key: &str, family: &str, ip: &str| {
        let line = action[key].replace("<family>", family).replace("<ip>", ip);
        let mut command = host.netns.command("sh");
        command.args(["-c", &line]).env("PATH", &search).env("CULVERT_SOCKET", host.socket());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    };
    let denied = || host.json(&["ports", "ls"])["denied"].clone();
    let served = || exchange(&world.external.host, "tcp", host.vtep(), 8080, 10);
    let client = External::IP.to_string();
    assert_eq!(served(), "ok 10");
    for _ in 0..2 {
        run("Definition/actionban", "inet4", &client);
        run("Definition/actionban", "inet6", "2001:db8::1");
        assert_eq!(denied(), serde_json::json!([client]));
        assert_eq!(served(), "timeout");
    }
    for _ in 0..2 {
        run("Definition/actionunban", "inet4", &client);
        run("Definition/actionunban", "inet6", "2001:db8::1");
        assert_eq!(denied(), serde_json::json!([]));
        assert_eq!(served(), "ok 10");
    }
    // The log that a jail reads is where the jail's file has it, in the state directory.
    let web = unique_name("web");
    host.ok(&["run", "-d", "--name", &web, "--network", "none", "--", "sleep", "1000"]);
    let log = host.dir().join(format!("state/logs/{web}.log"));
    wait_until(SOON, "the log", || log.exists());
}
