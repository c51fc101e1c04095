//! Server and client over a real unix socket, with an agent in memory.

use std::{
    io::{Read, Write},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::{Arc, Barrier},
    time::Duration,
};

use crate::fake::{Agent, Fake};
use culvert::{
    api::{
        self, Backend, BindError, Client, MAX_BODY,
        types::{
            AddressChange, Connect, ContainerCreate, ContainerState, ErrorKind, FlowProtocol,
            NatQuery, NetworkCreate, Sources, Supervised, VtepChange,
        },
    },
    model::{
        Capabilities, CapabilityOption, Driver, Isolation, Name, NameOptions, NamespaceMode,
        Privileges, RunAs,
    },
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket},
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

pub(crate) fn container(name: &str, network: &str) -> ContainerCreate {
    ContainerCreate {
        name: name.parse().unwrap(),
        network: network.to_owned(),
        ip: Some("10.0.0.7".parse().unwrap()),
        more_ips: vec!["10.0.0.8".parse().unwrap()],
        mac: Some("02:42:0a:00:00:07".parse().unwrap()),
        ports: vec!["8080:80".to_owned()],
        from: vec!["192.0.2.0/24".parse().unwrap()],
        expose: Vec::new(),
        ifname: None,
        netns: None,
        pid: None,
        auto_remove: true,
        command: vec!["sh".to_owned(), "-c".to_owned(), "x\ny".to_owned()],
        names: NameOptions {
            hostname: Some("www".parse().unwrap()),
            servers: vec!["10.0.0.53".parse().unwrap()],
            search: vec!["example.com".parse().unwrap()],
            options: vec!["ndots:2".parse().unwrap()],
            hosts: vec!["db:fd00::9".parse().unwrap(), "up:host-gateway".parse().unwrap()],
        },
        rerun: None,
        privileges: Privileges {
            user: Some(RunAs { uid: 1000, gid: 100, groups: vec![4] }),
            capabilities: Capabilities::left_by(&[CapabilityOption::All], &[]),
        },
        isolation: Isolation {
            pid: NamespaceMode::Private,
            ipc: NamespaceMode::Host,
            read_only: true,
            tmpfs: vec!["/tmp:size=1m,exec".parse().unwrap()],
        },
    }
}

/// Every method of the backend gives through the socket what it gives itself.
#[test]
fn every_request_makes_the_round_trip() {
    let agent = Agent::start();
    let direct = Fake::new(agent.dir.path());
    let client = Client::new(agent.socket());
    /// Runs the expression on both and compares.
    macro_rules! same {
        (|$backend:ident| $call:expr) => {{
            let through = {
                let $backend = &client;
                $call.await
            };
            let itself = {
                let $backend = &*direct;
                $call.await
            };
            assert_eq!(through, itself);
            through
        }};
    }
    let create = NetworkCreate {
        name: name("n2"),
        driver: Driver::Bridge,
        subnets: vec!["10.1.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()],
        gateway: Some("10.1.0.254".parse().unwrap()),
        vni: Some(4097),
        mtu: Some(1400),
        internal: true,
        learning: true,
        options: [("dscp".to_owned(), "copy".to_owned())].into(),
        labels: [("a".to_owned(), "b=c".to_owned())].into(),
    };
    block_on(async {
        same!(|b| b.network_create(create.clone())).unwrap();
        assert_eq!(
            same!(|b| b.network_create(create.clone())).unwrap_err().kind,
            ErrorKind::Conflict
        );
        same!(|b| b.networks()).unwrap();
        same!(|b| b.network_inspect(&name("n2"))).unwrap();
        same!(|b| b.network_inspect(&name("n3"))).unwrap_err();
        same!(|b| b.container_create(container("c1", "n2"))).unwrap();
        same!(|b| b.container_create(container("c2", "n9"))).unwrap_err();
        let connect = Connect { container: name("c1"), ip: None, more_ips: Vec::new(), mac: None };
        same!(|b| b.connect(&name("overlaynet1"), connect.clone())).unwrap();
        same!(|b| b.disconnect(&name("overlaynet1"), &name("c1"))).unwrap();
        let address = AddressChange { container: name("c1"), ip: "10.0.0.9".parse().unwrap() };
        same!(|b| b.address_add(&name("overlaynet1"), address.clone())).unwrap();
        same!(|b| b.address_remove(&name("overlaynet1"), address.clone())).unwrap();
        same!(|b| b.address_remove(&name("overlaynet1"), address.clone())).unwrap_err();
        let running = ContainerState::Running {
            pid: 7,
            log: Some("/x/c1.log".into()),
            supervisor: Some(Supervised { pid: 6, restarts: 2, failing: Some("x".to_owned()) }),
            id: Some("0a".to_owned()),
        };
        same!(|b| b.container_state(&name("c1"), running.clone())).unwrap();
        same!(|b| b.containers()).unwrap();
        let refused = same!(|b| b.container_remove(&name("c1"), false)).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict);
        let ended = ContainerState::Exited { code: 137, id: None };
        same!(|b| b.container_state(&name("c1"), ended.clone())).unwrap();
        same!(|b| b.containers()).unwrap();
        same!(|b| b.container_remove(&name("c1"), true)).unwrap();
        same!(|b| b.fdb()).unwrap();
        same!(|b| b.neighbours()).unwrap();
        let vtep = VtepChange {
            ip: "192.168.0.9".parse().unwrap(),
            network: name("n2"),
            port: Some(8472),
        };
        same!(|b| b.vtep_add(vtep.clone())).unwrap();
        same!(|b| b.vteps()).unwrap();
        same!(|b| b.vtep_remove(vtep.clone())).unwrap();
        same!(|b| b.vtep_remove(vtep.clone())).unwrap_err();
        let sources = Sources { sources: vec!["192.0.2.0/24".parse().unwrap()] };
        let ipv6 = Sources { sources: vec!["2001:db8::/32".parse().unwrap()] };
        same!(|b| b.ports_deny(sources.clone())).unwrap();
        same!(|b| b.ports_deny(ipv6.clone())).unwrap_err();
        same!(|b| b.ports()).unwrap();
        same!(|b| b.ports_allow(sources.clone())).unwrap();
        for query in [
            NatQuery::default(),
            NatQuery { protocol: Some(FlowProtocol::Udp), ..NatQuery::default() },
            NatQuery {
                container: Some(name("c1")),
                protocol: Some(FlowProtocol::Tcp),
                address: Some("192.0.2.7".parse().unwrap()),
                from: Some(7),
            },
        ] {
            same!(|b| b.nat(query.clone())).unwrap();
            same!(|b| b.nat_page(query.clone())).unwrap();
        }
        let nobody = NatQuery { container: Some(name("nobody")), ..NatQuery::default() };
        same!(|b| b.nat(nobody.clone())).unwrap_err();
        same!(|b| b.nodes()).unwrap();
        same!(|b| b.node_remove(&name("host2"), false)).unwrap_err();
        same!(|b| b.node_remove(&name("host2"), true)).unwrap();
        same!(|b| b.stats()).unwrap();
        same!(|b| b.status()).unwrap();
        same!(|b| b.network_remove(&name("n2"))).unwrap();
        same!(|b| b.purge()).unwrap();
    });
    assert_eq!(agent.fake.calls(), direct.calls());
}

#[test]
fn many_clients_at_once() {
    let agent = Agent::start();
    let barrier = Barrier::new(32);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                barrier.wait();
                let client = Client::new(agent.socket());
                assert_eq!(block_on(client.networks()).unwrap().len(), 1);
            });
        }
    });
}

/// Sends `request` as it is and returns status line and body.
fn raw(agent: &Agent, request: &[u8]) -> (String, String) {
    let mut stream = UnixStream::connect(agent.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The server may refuse before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[test]
fn requests_that_make_no_sense_are_refused_in_one_line() {
    let agent = Agent::start();
    let deep = "[".repeat(10_000);
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(100_000));
    let cases = [
        ("POST", "/v1/networks", ""),
        ("POST", "/v1/networks", "{"),
        ("POST", "/v1/networks", "\0\u{1}garbage"),
        ("POST", "/v1/networks", "[]"),
        ("POST", "/v1/networks", "{\"name\": \"a/b\", \"driver\": \"overlay\"}"),
        ("POST", "/v1/networks", "{\"name\": \"a\\nb\", \"driver\": \"overlay\"}"),
        ("POST", "/v1/networks", "{\"name\": \"a\", \"driver\": \"macvlan\"}"),
        ("POST", "/v1/networks", "{\"name\": \"a\", \"driver\": \"overlay\", \"vni\": -1}"),
        ("POST", "/v1/networks", &deep),
        ("POST", "/v1/networks", &long),
        ("POST", "/v1/containers", "{\"name\": \"a\", \"network\": \"n\", \"mac\": \"x\"}"),
        ("POST", "/v1/containers/a/state", "{\"state\": \"paused\"}"),
        ("POST", "/v1/vteps", "{\"ip\": \"::1\", \"network\": \"n\"}"),
        ("DELETE", "/v1/vteps", "null"),
        ("GET", "/v1/networks/a%2Fb", ""),
        ("GET", "/v1/networks/%ff", ""),
        ("GET", "/v1/networks/..", ""),
        ("DELETE", "/v1/containers/a?force=maybe", ""),
        ("DELETE", "/v1/containers/a?frce=true", ""),
        ("GET", "/v1/nat?protocol=sctp", ""),
        ("GET", "/v1/nat?address=fd00::1", ""),
        ("GET", "/v1/nat?container=a%2Fb", ""),
        ("GET", "/v1/nat?state=icmp", ""),
        ("GET", "/v1/nat/page?from=-1", ""),
    ];
    for (method, path, body) in cases {
        let (status, answer) = raw(&agent, &request(method, path, body));
        let shown: String = body.chars().take(60).collect();
        assert_eq!(status, "HTTP/1.1 400 Bad Request", "{method} {path} {shown}: {answer}");
        let error: api::types::ApiError = serde_json::from_str(&answer).unwrap();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(!error.message.contains(char::is_control), "{error}");
        assert!(error.message.len() < 1000, "{error}");
    }
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/v1/frobnicate"),
        ("GET", "/v2/networks"),
        ("PUT", "/v1/networks"),
        ("DELETE", "/v1/status"),
    ] {
        let (status, answer) = raw(&agent, &request(method, path, ""));
        assert_eq!(status, "HTTP/1.1 404 Not Found", "{method} {path}");
        let error: api::types::ApiError = serde_json::from_str(&answer).unwrap();
        assert!(error.message.starts_with(&format!("API request '{method} {path}' is unknown")));
    }
    assert!(agent.fake.calls().is_empty(), "nothing of this reached the backend");
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let agent = Agent::start();
    let body = " ".repeat(MAX_BODY + 1);
    let (status, answer) = raw(&agent, &request("POST", "/v1/networks", &body));
    assert_eq!(status, "HTTP/1.1 400 Bad Request");
    assert!(answer.contains(&format!("at most {MAX_BODY} bytes are valid")), "{answer}");
    assert!(agent.fake.calls().is_empty());
}

#[test]
fn garbage_instead_of_http_does_not_hurt_others() {
    let agent = Agent::start();
    let (status, _) = raw(&agent, b"\x16\x03\x01 hello\r\n\r\n");
    assert_eq!(status, "HTTP/1.1 400 Bad Request");
    assert!(block_on(Client::new(agent.socket()).status()).is_ok());
}

#[test]
fn shutdown_does_not_wait_for_an_idle_client_and_removes_the_socket() {
    let mut agent = Agent::start();
    let idle = UnixStream::connect(agent.socket()).unwrap();
    let mut half = UnixStream::connect(agent.socket()).unwrap();
    half.write_all(b"GET /v1/sta").unwrap();
    // A request behind the two shows that both are accepted.
    block_on(Client::new(agent.socket()).status()).unwrap();
    agent.stop();
    assert!(!agent.socket().exists());
    assert_eq!(std::fs::read_dir(agent.dir.path()).unwrap().count(), 0);
    drop((idle, half));
}

#[test]
fn a_client_without_an_agent_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let expected = format!(
        "agent: nobody listens on {}: start it with 'culvert agent' or name its socket with --socket",
        path.display()
    );
    let ask = |path: &Path| block_on(Client::new(path).networks()).unwrap_err();
    assert_eq!(ask(&path).message, expected);
    assert_eq!(ask(&path).kind, ErrorKind::Unavailable);
    // A socket that an agent left behind when it was killed.
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(ask(&path).message, expected);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    assert_eq!(ask(&path).message, expected);
    let long = dir.path().join("x".repeat(200));
    assert!(ask(&long).message.contains("cannot be connected to"), "{}", ask(&long));
}

#[test]
fn a_client_does_not_wait_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    // Accepts into its backlog and says nothing.
    let _hung = UnixListener::bind(&path).unwrap();
    let client = Client::new(&path).with_timeout(Some(Duration::from_millis(50)));
    let error = block_on(client.status()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    let line = format!(
        "agent: {}, pid {}, has not answered within 0.1 s: look into its log, or give a longer --timeout",
        path.display(),
        std::process::id()
    );
    assert_eq!(error.message, line);
    // An agent whose backlog is full.
    let path = dir.path().join("y.sock");
    let full = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(full.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&full, Backlog::new(1).unwrap()).unwrap();
    let connection = || {
        let socket = tokio::net::UnixStream::connect(&path);
        block_on(async { socket.await.map(|stream| stream.into_std().unwrap()) })
    };
    let mut waiting = Vec::new();
    while let Ok(stream) = connection() {
        waiting.push(stream);
    }
    let client = Client::new(&path).with_timeout(Some(Duration::from_millis(50)));
    let error = block_on(client.status()).unwrap_err();
    assert!(error.message.contains("y.sock has not answered within 0.1 s"), "{error}");
    assert!(block_on(client.reach()).unwrap_err().to_string().contains("has not answered"));
}

/// The agent says what it waits for before the client gives up, and then carries out what it has
/// begun. What comes too late is not begun.
#[test]
fn an_agent_answers_in_time_even_if_it_hangs() {
    let agent = Agent::start();
    agent.fake.hang();
    let client = Client::new(agent.socket()).with_timeout(Some(Duration::from_secs(1)));
    let error = block_on(client.containers()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_eq!(
        error.message,
        "agent: it answers, but has not finished this within 0.9 s: see its log"
    );
    // Other requests are answered.
    block_on(client.status()).unwrap();
    let late = b"DELETE /v1/containers/c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
        Culvert-Deadline-Ms: 1\r\n\r\n";
    let (status, answer) = raw(&agent, late);
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(answer.contains("it is not carried out"), "{answer}");
    assert!(agent.fake.calls().is_empty());
}

/// An agent that has reached its limit of open files answers, and does not spin.
#[test]
fn an_agent_without_a_file_left_answers() {
    if std::env::var_os("CULVERT_TEST_EXHAUSTED").is_none() {
        // The limit is the process's, so the test runs in one of its own.
        let name = "api::an_agent_without_a_file_left_answers";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env("CULVERT_TEST_EXHAUSTED", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let agent = Agent::start();
    let client = Client::new(agent.socket());
    block_on(client.status()).unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 100, most).unwrap();
    // Made before no file is left.
    let socket =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    connect(socket.as_raw_fd(), &UnixAddr::new(&agent.socket()).unwrap()).unwrap();
    let mut stream = UnixStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&request("GET", "/v1/status", "")).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    drop(files);
    block_on(client.status()).unwrap();
}

#[test]
fn a_client_survives_an_agent_that_talks_nonsense() {
    for answer in [
        "",
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
        "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let error = block_on(Client::new(&path).status()).unwrap_err();
            assert!(error.message.starts_with("agent: "), "{answer:?}: {error}");
            assert!(!error.message.contains(char::is_control), "{answer:?}: {error}");
        });
    }
}

#[test]
fn a_second_agent_is_refused_and_named_the_first() {
    let agent = Agent::start();
    let error = api::bind(&agent.socket()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "socket {} is in use by culvert agent pid {}: stop it or give another --socket",
            agent.socket().display(),
            std::process::id()
        )
    );
    // And the first does not notice.
    assert!(block_on(Client::new(agent.socket()).status()).is_ok());
}

#[test]
fn a_listener_that_does_not_know_our_lock_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let _other = UnixListener::bind(&path).unwrap();
    assert!(matches!(api::bind(&path), Err(BindError::InUse { pid: Some(_), .. })));
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_stale_socket_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er/x.sock");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = api::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(listener);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn the_socket_is_for_its_owner_and_group() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/x.sock");
    let listener = api::bind(&path).unwrap();
    assert_eq!(listener.path(), path);
    let found = std::fs::metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
}

#[test]
fn what_is_not_a_socket_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(api::bind(&path), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(api::bind(&path), Err(BindError::NotASocket(_))));
    let below = path.join("a").join("x".repeat(120));
    let error = api::bind(&below).unwrap_err().to_string();
    assert!(error.ends_with("at most 107 are valid"), "{error}");
    assert!(!path.join("a").exists(), "nothing is made for a path that cannot be");
}

#[test]
fn of_many_agents_that_start_at_once_one_gets_the_socket() {
    for stale in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        if stale {
            drop(UnixListener::bind(&path).unwrap());
        }
        let barrier = Arc::new(Barrier::new(8));
        let agents: Vec<_> = (0..8)
            .map(|_| {
                let (barrier, path) = (barrier.clone(), path.clone());
                std::thread::spawn(move || {
                    barrier.wait();
                    api::bind(&path)
                })
            })
            .collect();
        let results: Vec<_> = agents.into_iter().map(|agent| agent.join().unwrap()).collect();
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(matches!(error, BindError::InUse { .. }), "{error}");
        }
        UnixStream::connect(&path).unwrap();
    }
}
