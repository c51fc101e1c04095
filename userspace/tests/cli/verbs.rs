//! The binary as people and scripts run it, against an agent in memory.

use std::{
    ffi::OsStr,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, net::UnixListener},
    },
    path::Path,
};

use crate::{
    binary::{culvert, run, show, success, words},
    fake::Agent,
};

#[test]
fn help_of_every_verb() {
    let nowhere = Path::new("/nonexistent");
    let mut verbs = vec![vec![]];
    let mut seen = 0;
    while let Some(verb) = verbs.pop() {
        let mut args = verb.clone();
        args.push("--help");
        let output = run(nowhere, &args);
        let help = success(&output).to_owned();
        assert!(
            help.contains("\nEXAMPLES:\n") || help.contains("\nCommands:\n"),
            "culvert {args:?} has no examples"
        );
        let name = ["help"].iter().chain(&verb).copied().collect::<Vec<_>>().join("_");
        insta::assert_snapshot!(name, help);
        seen += 1;
        // The subcommands of the verb, from the list in its help.
        let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
        for line in list.lines().take_while(|line| !line.is_empty()) {
            let name = line.split_whitespace().next().unwrap();
            let mut verb = verb.clone();
            // Leaked for the run of one test.
            verb.push(name.to_owned().leak());
            verbs.push(verb);
        }
    }
    // 21 verbs and their own: network 7, network address 2, fdb 1, neigh 1, nat 1, ports 3, vtep 3,
    // node 2, store 1, and culvert itself.
    assert_eq!(seen, 21 + 7 + 2 + 1 + 1 + 1 + 3 + 3 + 2 + 1 + 1);
}

#[test]
fn what_the_network_verbs_print() {
    let agent = Agent::start();
    let lines = [
        "network create -d overlay --subnet 10.1.0.0/16 --subnet fd00:1::/64 --gateway 10.1.0.254 --vni 4097 --mtu 1400 --internal --learning --opt dscp=copy --label a=b=c overlaynet2",
        "network create -d overlay --subnet 10.1.0.0/16 overlaynet2",
        "--format json network create b1",
        "network create b2 --opt a=1 --opt a=2",
        "network create b2 --subnet 10.0.0.1/8",
        "network ls",
        "network ls --format json",
        "network inspect overlaynet1",
        "network inspect overlaynet1 nowhere",
        "network rm nowhere overlaynet2 nothing",
        "network connect overlaynet1 nobody",
        "network disconnect overlaynet1 nobody",
    ];
    let shown: Vec<_> = lines.iter().map(|line| show(&agent, line)).collect();
    insta::assert_snapshot!(shown.join("\n"));
    insta::assert_snapshot!("network_requests", agent.fake.calls().join("\n"));
}

#[test]
fn what_the_container_verbs_print() {
    let agent = Agent::start();
    let mut shown = Vec::new();
    for line in [
        "ps",
        "ps --format json",
        "attach --pid 1 --name a --network overlaynet1 --ip 10.0.0.9 --mac 02:42:0a:00:00:09 --ifname eth7 -p 127.0.0.1:8080:80/tcp",
        "attach --netns /run/netns/x --name b --network overlaynet1 -p 80 -p 8000-8001:90-91/udp --format json",
        "attach --netns /run/netns/x --name b --network overlaynet1",
        "attach --netns /run/netns/x --name c --network nowhere",
        "network connect overlaynet1 a --ip 10.0.0.8",
        "network connect overlaynet1 a --format json",
        "detach a --network overlaynet1",
        "ps",
        "ps --format json",
        "logs a",
        "logs nobody",
        "exec nobody -- true",
        "rm nobody a",
        "detach b",
        "detach b",
        "ps",
    ] {
        shown.push(show(&agent, line));
    }
    insta::assert_snapshot!(shown.join("\n"));
    insta::assert_snapshot!("container_requests", agent.fake.calls().join("\n"));
}

#[test]
fn what_the_address_verbs_print() {
    let agent = Agent::start();
    let lines = [
        "attach --pid 1 --name d --network overlaynet1 --ip 10.0.0.9 --ip 10.0.0.10 --ip fd00::9",
        "network connect overlaynet1 d --ip 10.0.0.8 --ip 10.0.0.18",
        "network address add overlaynet1 d 10.0.0.100",
        "network address rm overlaynet1 d 10.0.0.10",
        "network address rm overlaynet1 d 10.0.0.10",
        "network address add overlaynet1 nobody 10.0.0.100",
        "ps",
    ];
    let shown: Vec<_> = lines.iter().map(|line| show(&agent, line)).collect();
    insta::assert_snapshot!(shown.join("\n"));
    insta::assert_snapshot!("address_requests", agent.fake.calls().join("\n"));
}

#[test]
fn what_the_verbs_that_look_print() {
    let agent = Agent::start();
    let mut shown = Vec::new();
    for verb in ["fdb show", "neigh show", "nat ls", "vtep ls", "stats", "status"] {
        shown.push(show(&agent, verb));
        shown.push(show(&agent, &format!("{verb} --format json")));
    }
    agent.fake.trouble("/culvert/v1/networks/x: garbage, skipped");
    agent.fake.trouble("uplink eth0: MTU is 1400");
    for line in [
        "status",
        "vtep add 192.168.0.9 --network overlaynet1 --port 8472",
        "vtep ls",
        "vtep rm 192.168.0.9 --network overlaynet1",
        "vtep rm 192.168.0.9 --network overlaynet1",
        "nat ls --protocol icmp",
        "nat ls --container web1 --protocol udp --address 192.0.2.9",
        "nat ls --container nobody",
        "nat ls --protocol sctp",
        "nat ls --address here",
    ] {
        shown.push(show(&agent, line));
    }
    insta::assert_snapshot!(shown.join("\n"));
    insta::assert_snapshot!("nat_requests", agent.fake.calls().join("\n"));
}

/// What of the output of a command acts on a terminal, or is a line of its own although it is a
/// part of a text. `None`: nothing. [`FORGED`] has such characters, and a word after a line break.
fn acting(output: &str) -> Option<String> {
    let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    let mut lines = output.lines();
    let found = lines.find(|line| line.contains(acts) || line.trim_start().starts_with("INJECTED"));
    found.map(|line| format!("{line:?}"))
}

/// A text that clears the screen, sets the title, changes the direction and begins a line.
const FORGED: &str = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}\r\nINJECTED";

/// Text of others does not act on the terminal, whichever command prints it: in tables, in JSON and
/// in the lines of errors.
#[test]
fn text_of_others_is_printed_without_what_acts_on_a_terminal() {
    let agent = Agent::start();
    agent.fake.forge(FORGED);
    let shown = [
        words("network ls"),
        words("network inspect overlaynet1"),
        words("ps"),
        words("node ls"),
        words("vtep ls"),
        words("fdb show"),
        words("neigh show"),
        words("nat ls"),
        words("ports ls"),
        words("stats"),
        words("status"),
        words("doctor --bpffs /nonexistent"),
        words("doctor --bpffs /nonexistent --uplink lo"),
    ];
    // The refusal of the agent, the path in a row of it, and arguments, which may be text of others
    // in a script.
    let refused = [
        words("node rm nowhere"),
        words("logs victim"),
        vec!["network", "inspect", FORGED],
        vec!["network", "create", "n", "--label", FORGED],
        vec!["doctor", "--uplink", FORGED],
        vec!["ps", FORGED],
        vec![FORGED],
    ];
    let both = |args: &[&str]| {
        let output = run(&agent.socket(), args);
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap())
    };
    for args in &shown {
        for format in ["table", "json"] {
            let [out, errors] = both(&[args.as_slice(), &["--format", format]].concat());
            assert_eq!(acting(&out), None, "{args:?}");
            assert!(out.contains("2J") && out.contains("INJECTED"), "{args:?}: {out}");
            assert_eq!(errors, "", "{args:?}");
        }
    }
    for args in &refused {
        let [_, errors] = both(args);
        assert_eq!(acting(&errors), None, "{args:?}");
        assert_eq!(errors.lines().count(), 1, "{args:?}: {errors}");
        assert!(errors.contains("INJECTED"), "{args:?}: {errors}");
    }
}

#[test]
fn what_the_ports_verbs_print() {
    let agent = Agent::start();
    let lines = [
        "ports ls",
        "attach --pid 1 --name a --network overlaynet1 -p 127.0.0.1:8080:80/tcp -p 90",
        "attach --pid 2 --name b --network overlaynet1 -p 91 --from 192.0.2.0/24 --from 198.51.100.7",
        "ps",
        "ports deny 203.0.113.7 198.51.100.0/24",
        "ports deny 2001:db8::1",
        "ports ls",
        "ports ls --format json",
        "ports allow 203.0.113.7",
        "ports allow 198.51.100.0/24",
        "ports ls",
    ];
    let mut shown: Vec<_> = lines.iter().map(|line| show(&agent, line)).collect();
    agent.fake.tunnel("tun9");
    agent.fake.tunnel("wg0");
    agent.fake.warn("container 'c': its published ports are not reached through tun9, wg0");
    for line in [
        "attach --pid 3 --name c --network overlaynet1 -p 127.0.0.1:92:80 -p 93 --from 192.0.2.9",
        "ps",
        "ports ls",
    ] {
        shown.push(show(&agent, line));
    }
    insta::assert_snapshot!(shown.join("\n"));
    insta::assert_snapshot!("ports_requests", agent.fake.calls().join("\n"));
}

#[test]
fn what_the_node_verbs_print() {
    let agent = Agent::start();
    let lines =
        ["node ls", "node ls --format json", "node rm host3 host2 nowhere", "node rm -f host2"];
    let shown: Vec<_> = lines.iter().map(|line| show(&agent, line)).collect();
    insta::assert_snapshot!(shown.join("\n"));
    insta::assert_snapshot!("node_requests", agent.fake.calls().join("\n"));
}

#[test]
fn without_an_agent_every_verb_that_needs_it_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("x.sock");
    for stale in [false, true] {
        if stale {
            drop(UnixListener::bind(&socket).unwrap());
        }
        for line in [
            "network create n",
            "network ls",
            "network rm n",
            "network connect n c",
            "network disconnect n c",
            "network address add n c 10.0.0.9",
            "network address rm n c 10.0.0.9",
            "run --name c -- true",
            "run --name c -d -- true",
            "attach --pid 1 --name c --network n",
            "detach c",
            "exec c -- true",
            "ps",
            "rm c",
            "logs c",
            "fdb show",
            "neigh show",
            "nat ls",
            "vtep ls",
            "vtep add 192.168.0.9 --network n",
            "node ls",
            "node rm n",
            "status",
            "stats",
        ] {
            let output = run(&socket, &words(line));
            assert_eq!(output.status.code(), Some(1), "{line}");
            assert!(output.stdout.is_empty(), "{line}");
            let expected = format!(
                "culvert: agent: nobody listens on {}: start it with 'culvert agent' or name its socket with --socket\n",
                socket.display()
            );
            assert_eq!(String::from_utf8(output.stderr).unwrap(), expected, "{line}");
        }
    }
}

#[test]
fn the_option_wins_over_the_environment() {
    let agent = Agent::start();
    let socket = agent.socket();
    let socket = socket.to_str().unwrap();
    success(&run(Path::new("/nonexistent"), &["--socket", socket, "ps"]));
    success(&run(Path::new("/nonexistent"), &["ps", "--socket", socket]));
}

#[test]
fn nothing_to_do_shows_help_and_is_wrong_usage() {
    for args in [
        &[][..],
        &["network"],
        &["network", "address"],
        &["vtep"],
        &["fdb"],
        &["neigh"],
        &["nat"],
        &["node"],
    ] {
        let output = run(Path::new("/nonexistent"), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("Usage: culvert"), "{args:?}: {stderr}");
    }
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    let agent = Agent::start();
    for line in [
        "network create a/b",
        "network create bridge@host1",
        "network create a --gateway 10.0.0.1 --gateway 10.0.0.2",
        "network address add a b",
        "network address add a b 10.0.0",
        "network address rm a b 10.0.0.0/24",
        "run --name a --ip 10.0.0.9 --ip 10.0.0 -- true",
        "ps --frobnicate",
        "run --name a",
        "agent --store x",
        "run --name a -p 80:0 -- true",
        "run --name a -p 0-1:80-81 -- true",
        "run --name a -p 80:65536 -- true",
        "run --name a -p 65536:80 -- true",
        "run --name a -p 80:80/sctp -- true",
        "run --name a -p 80:80/ -- true",
        "run --name a -p http:80 -- true",
        "run --name a -p 1:2:3:4 -- true",
        "run --name a -p 80: -- true",
        "run --name a -p 2-1:1-2 -- true",
        "run --name a -p 1-2:1-3 -- true",
        "run --name a -p 1-2:80 -- true",
        "run --name a -p [::1]:80:80 -- true",
        "run --name a -p ::1:80:80 -- true",
        "run --name a -p 1.2.3:80:80 -- true",
        "attach --pid 1 --name a --network overlaynet1 -p 80:0",
    ] {
        let output = run(&agent.socket(), &words(line));
        assert_eq!(output.status.code(), Some(2), "{line}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with("culvert: ") && stderr.lines().count() == 1, "{stderr}");
        if let Some((_, port)) = line.split_once("-p").filter(|_| line.contains("name a -p")) {
            let port = port.trim_start().split(' ').next().unwrap();
            assert!(stderr.contains(&format!("published port '{port}'")), "{stderr}");
            assert!(stderr.trim_end().ends_with("is valid"), "{stderr}");
        }
    }
    // An argument that is not UTF-8.
    let output =
        culvert(&agent.socket(), &["rm"]).arg(OsStr::from_bytes(&[0xff])).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1);
    assert!(agent.fake.calls().is_empty());
}

#[test]
fn completion_scripts_are_for_their_shells() {
    for (shell, part) in [
        ("bash", "complete -F _culvert"),
        ("zsh", "#compdef culvert"),
        ("fish", "complete -c culvert"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let output = run(Path::new("/nonexistent"), &["completion", shell]);
        assert!(success(&output).contains(part), "{shell}");
    }
}

/// A pipe whose reader is gone.
fn closed_pipe() -> OwnedFd {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    writer
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let agent = Agent::start();
    for line in [
        "ps",
        "--help",
        "completion bash",
        "network ls --format json",
        "network inspect overlaynet1",
    ] {
        let output = culvert(&agent.socket(), &words(line)).stdout(closed_pipe()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{line}");
    }
    // Standard error is closed as well: the line of the error is lost.
    let status = culvert(&agent.socket(), &["rm", "nobody"])
        .stdout(closed_pipe())
        .stderr(closed_pipe())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_full_disk_is_told() {
    let agent = Agent::start();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = culvert(&agent.socket(), &["ps"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("culvert: standard output cannot be written to: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1);
}

#[test]
fn purge_goes_through_the_agent_and_waits_for_its_end() {
    let agent = Agent::start();
    success(&run(&agent.socket(), &["purge"]));
    assert_eq!(agent.fake.calls(), ["purge"]);
    assert!(!agent.socket().exists(), "the agent is gone when purge returns");
}

#[test]
fn doctor_works_with_and_without_an_agent() {
    let agent = Agent::start();
    let nowhere = agent.dir.path().join("nowhere");
    for (socket, level, detail) in [
        (agent.socket(), "ok", "pid 4711, store healthy".to_owned()),
        (
            nowhere.clone(),
            "warning",
            format!("not running: nobody listens on {}", nowhere.display()),
        ),
    ] {
        // The loopback device is a poor uplink, but one that every host has.
        let args = ["doctor", "--uplink", "lo", "--bpffs", "/nonexistent", "--format", "json"];
        let output = run(&socket, &args);
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = rows.as_array().unwrap();
        assert_eq!(rows[0]["check"], "agent");
        assert_eq!(rows[0]["level"], level);
        assert_eq!(rows[0]["detail"], detail);
        assert!(rows.len() > 1);
        let errors = rows.iter().filter(|row| row["level"] == "error").count();
        assert_eq!(output.status.code(), Some(i32::from(errors > 0)));
    }
    agent.fake.trouble("no answer from etcd");
    let output = run(&agent.socket(), &["doctor", "--uplink", "lo"]);
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8(output.stdout).unwrap();
    let mut lines = table.lines();
    assert_eq!(words_of(lines.next().unwrap()), ["LEVEL", "CHECK", "DETAIL", "ADVICE"]);
    assert!(lines.next().unwrap().starts_with("error"), "{table}");
}

/// The files that the agent names, or those of the options.
#[test]
fn doctor_names_a_certificate_that_has_expired() {
    let expired = concat!(env!("CARGO_MANIFEST_DIR"), "/src/doctor/testdata/client.pem");
    let findings = |socket: &Path, options: &[&str]| {
        let args = ["doctor", "--uplink", "lo", "--bpffs", "/nonexistent", "--format", "json"];
        let output = run(socket, &[&args, options].concat());
        assert_eq!(output.status.code(), Some(1));
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = rows.as_array().unwrap().iter();
        let found = rows.filter(|row| row["check"] == "certificate");
        found.map(|row| format!("{} {}", row["level"], row["detail"])).collect::<Vec<_>>()
    };
    let agent = Agent::start();
    agent.fake.certify("--store-cert", expired);
    let nowhere = agent.dir.path().join("nowhere");
    let option = ["--store-cert", expired];
    for found in [findings(&agent.socket(), &[]), findings(&nowhere, &option)] {
        let [line] = found.as_slice() else { panic!("{found:?}") };
        assert!(line.contains("\"error\""), "{line}");
        assert!(line.contains("CN=host1 has expired at 2021-01-01T00:00:00Z"), "{line}");
    }
    // The files whose names the last agent has kept in its state directory.
    let kept = format!("[[\"--store-cert\", {expired:?}]]");
    std::fs::write(agent.dir.path().join("store-certificates"), kept).unwrap();
    let found = findings(&nowhere, &["--state-dir", agent.dir.path().to_str().unwrap()]);
    assert!(found[0].contains("CN=host1 has expired"), "{found:?}");
    let found = findings(&nowhere, &["--store-ca", "/nonexistent"]);
    assert!(found[0].contains("--store-ca /nonexistent cannot be read"), "{found:?}");
}

fn words_of(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}
