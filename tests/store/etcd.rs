//! Features that only etcd has: endpoints, TLS, users.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use culvert::{
    model::{
        Alive, Driver, Node,
        ops::{
            EndpointSpec, NetworkSpec, create_endpoint, execute, register_node, remove_endpoint,
        },
        witness_key,
    },
    store::{
        EtcdOptions, EtcdStore, FollowOptions, Follower, Outcome, StateStore, StoreError,
        StoreOptions, StoreUrl, Write, open, retry::Backoff,
    },
};
use culvert_tests::{
    certs::{Authority, Pair},
    etcd::{Config, EtcdServer, Tls, free_port},
};
use etcd_client::{AlarmAction, AlarmType, Client, PermissionType};
use futures::StreamExt;

use crate::{
    backend::{Etcd, answer, etcd_options, in_time},
    ops::{endpoint, make_network, name, network},
    suite::{briefs, put, write},
};

fn start(config: Config) -> EtcdServer {
    tokio::task::block_in_place(|| EtcdServer::start_with(config)).expect("etcd starts")
}

async fn connect(options: &EtcdOptions) -> EtcdStore {
    EtcdStore::connect(options).await.expect("options are fine")
}

/// Returns the line of the error, which must be [`StoreError::Unavailable`].
async fn unavailable(options: &EtcdOptions) -> String {
    let started = Instant::now();
    let error = connect(options).await.snapshot("/t/").await.expect_err("is out of reach");
    let took = started.elapsed();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(took < options.timeout + Duration::from_secs(1), "{took:?}");
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    for endpoint in &options.endpoints {
        assert!(line.contains(endpoint), "{line}");
    }
    line
}

/// Returns the line of the error, which must be [`StoreError::Refused`].
async fn refused(options: &EtcdOptions, prefix: &str) -> String {
    let error = connect(options).await.snapshot(prefix).await.expect_err("is refused");
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_rolled_back_is_recognized() {
    crate::follow::a_store_that_was_rolled_back_is_recognized(Etcd::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_back_is_recognized_in_spite_of_a_compaction() {
    crate::follow::a_roll_back_is_recognized_in_spite_of_a_compaction(Etcd::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_back_to_before_the_registration_is_recognized() {
    crate::follow::a_roll_back_to_before_the_registration_is_recognized(Etcd::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_opened_by_url_with_a_name_or_an_address() {
    let server = start(Config::default());
    let port = server.endpoint().rsplit_once(':').expect("port").1.to_owned();
    for host in ["127.0.0.1", "localhost"] {
        let url: StoreUrl = format!("etcd://{host}:{port}").parse().expect("valid");
        let store = open(&url, &StoreOptions::default()).await.expect("opens");
        write(&*store, vec![put("/t/a", host)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_does_not_answer_gives_one_line() {
    let closed = format!("127.0.0.1:{}", free_port().expect("port"));
    let options = EtcdOptions { timeout: Duration::from_secs(2), ..etcd_options(&[closed]) };
    assert!(unavailable(&options).await.contains("refused"));
    // Nothing was sent, so a transaction is not in doubt.
    let unsent = connect(&options).await.commit(vec![], vec![put("/t/a", "v")]).await;
    assert!(matches!(unsent, Err(StoreError::Unsent(_))), "{unsent:?}");

    // If two endpoints fail, the error names both.
    let closed =
        [free_port(), free_port()].map(|port| format!("127.0.0.1:{}", port.expect("port")));
    let options = EtcdOptions { timeout: Duration::from_secs(2), ..etcd_options(&closed) };
    unavailable(&options).await;

    // This listener never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = silent.local_addr().expect("address").to_string();
    let options = EtcdOptions { timeout: Duration::from_secs(2), ..etcd_options(&[address]) };
    unavailable(&options).await;

    let nowhere = etcd_options(&["localhost.invalid:2379".to_owned()]);
    let options = EtcdOptions { timeout: Duration::from_secs(3), insecure: true, ..nowhere };
    unavailable(&options).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_to_an_endpoint_that_answers() {
    let server = start(Config::default());
    let closed = format!("127.0.0.1:{}", free_port().expect("port"));
    for endpoints in [[closed.clone(), server.endpoint()], [server.endpoint(), closed]] {
        let store = connect(&etcd_options(&endpoints)).await;
        let revision = write(&store, vec![put("/t/a", "v")]).await;
        store.snapshot("/t/").await.expect("snapshot");
        let mut watch = store.watch("/t/", revision).await.expect("watch");
        let changes = in_time("a change", watch.next()).await.expect("item").expect("changes");
        assert_eq!(briefs(&changes), ["/t/a=v"]);
        let lease = store.grant(Duration::from_secs(60)).await.expect("grant");
        store.keep_alive(lease).await.expect("keep alive");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_may_have_arrived_is_not_sent_again() {
    let (frozen, live) = (start(Config::default()), start(Config::default()));
    // An endpoint that does not answer uses half of the timeout.
    let options = EtcdOptions {
        timeout: Duration::from_secs(8),
        ..etcd_options(&[frozen.endpoint(), live.endpoint()])
    };
    let store = connect(&options).await;
    write(&store, vec![put("/t/first", "v")]).await;
    frozen.freeze().expect("freezes");
    let error = store.commit(vec![], vec![put("/t/a", "v")]).await.expect_err("no answer");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    // The next call goes to the other endpoint at once, and the transaction was not executed.
    let started = Instant::now();
    let snapshot = store.snapshot("/t/").await.expect("snapshot");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(snapshot.entries.is_empty(), "{snapshot:?}");

    // A read is repeated at another endpoint within its timeout.
    let options = EtcdOptions {
        timeout: Duration::from_secs(3),
        ..etcd_options(&[frozen.endpoint(), live.endpoint()])
    };
    connect(&options).await.snapshot("/t/").await.expect("snapshot");
    frozen.thaw().expect("thaws");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_notices_a_server_that_hangs() {
    let server = start(Config::default());
    let options =
        EtcdOptions { timeout: Duration::from_secs(2), ..etcd_options(&[server.endpoint()]) };
    let store = connect(&options).await;
    let revision = write(&store, vec![put("/t/a", "v")]).await;
    let mut watch = store.watch("/t/", revision + 1).await.expect("watch");
    // The store sends keep-alive pings to a quiet server, which answers them.
    assert!(tokio::time::timeout(Duration::from_secs(7), watch.next()).await.is_err());
    server.freeze().expect("freezes");
    let started = Instant::now();
    let item = in_time("the watch to notice", watch.next()).await.expect("an item");
    assert!(matches!(item, Err(StoreError::Unavailable(_))), "{item:?}");
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    server.thaw().expect("thaws");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_under_one_url_delete_nothing() {
    let (mut one, other) = (start(Config::default()), start(Config::default()));
    let store = connect(&etcd_options(&[one.endpoint(), other.endpoint()])).await;
    write(&store, vec![put("/culvert/v1/x/a", "v")]).await;
    let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(100));
    let options = FollowOptions { backoff, ..culvert::model::follow_options() };
    let mut follower = Follower::spawn(Arc::new(store), options);
    assert!(in_time("the whole", follower.next()).await.expect("update").resync);
    tokio::task::block_in_place(|| one.stop());
    let mut health = follower.health();
    let replaced = health
        .wait_for(|health| health.error.as_ref().is_some_and(|error| error.contains("replaced")));
    in_time("the other cluster to show", replaced).await.expect("follower");
    assert!(tokio::time::timeout(Duration::from_millis(300), follower.next()).await.is_err());
}

struct Certificates {
    dir: tempfile::TempDir,
    authority: Authority,
    server: Pair,
    client: Pair,
}

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let authority = Authority::new(dir.path(), "authority").expect("authority");
        let server = authority.issue("server").expect("server");
        let client = authority.issue("client").expect("client");
        Self { dir, authority, server, client }
    }

    fn server(&self) -> EtcdServer {
        let (cert, key) = (self.server.cert.clone(), self.server.key.clone());
        start(Config {
            tls: Some(Tls { ca: self.authority.cert(), cert, key }),
            ..Config::default()
        })
    }

    fn options(&self, endpoint: &str, client: &Pair) -> EtcdOptions {
        EtcdOptions {
            ca: Some(self.authority.cert()),
            cert: Some(client.cert.clone()),
            key: Some(client.key.clone()),
            timeout: Duration::from_secs(3),
            ..etcd_options(&[endpoint.to_owned()])
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_client_certificates() {
    let certificates = Certificates::new();
    let mut server = certificates.server();
    let port = server.endpoint().rsplit_once(':').expect("port").1.to_owned();
    // The certificate contains both the address and the name.
    for host in ["127.0.0.1", "localhost"] {
        let options = certificates.options(&format!("{host}:{port}"), &certificates.client);
        let store = connect(&options).await;
        let revision = write(&store, vec![put("/t/a", host)]).await;
        let mut watch = store.watch("/t/", revision).await.expect("watch");
        let changes = in_time("a change", watch.next()).await.expect("item").expect("changes");
        assert_eq!(briefs(&changes), [format!("/t/a={host}")]);
    }
    let options = certificates.options(&server.endpoint(), &certificates.client);
    let store = connect(&options).await;
    answer(&store, "/t/").await;
    tokio::task::block_in_place(|| server.restart()).expect("restarts");
    assert_eq!(answer(&store, "/t/").await.entries.len(), 1);

    // A client without a certificate, or with another authority's, does not reach the store.
    let naked = EtcdOptions { cert: None, key: None, ..options.clone() };
    unavailable(&naked).await;
    let strangers = certificates.dir.path().join("strangers");
    std::fs::create_dir(&strangers).expect("directory");
    let stranger = Authority::new(&strangers, "stranger").expect("authority");
    let wrong = stranger.issue("client").expect("client");
    unavailable(&certificates.options(&server.endpoint(), &wrong)).await;
    // A server certificate of another authority is not accepted.
    let doubtful = EtcdOptions { ca: Some(stranger.cert()), ..options.clone() };
    let line = unavailable(&doubtful).await;
    assert!(line.contains("certificate"), "{line}");
    // Plaintext to a server with TLS, and TLS to a server without TLS.
    unavailable(&EtcdOptions { ca: None, cert: None, key: None, ..options.clone() }).await;
    let plain = start(Config::default());
    unavailable(&certificates.options(&plain.endpoint(), &certificates.client)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let certificates = Certificates::new();
    let server = certificates.server();
    let strangers = certificates.dir.path().join("strangers");
    std::fs::create_dir(&strangers).expect("directory");
    let stranger = Authority::new(&strangers, "stranger").expect("authority");
    // The client's files have this certificate until they are renewed.
    let used = stranger.issue("client").expect("client");
    let options = certificates.options(&server.endpoint(), &used);
    let store = connect(&options).await;
    store.snapshot("/t/").await.expect_err("is out of reach");
    for (from, to) in
        [(&certificates.client.cert, &used.cert), (&certificates.client.key, &used.key)]
    {
        std::fs::copy(from, to).expect("file is renewed");
    }
    answer(&store, "/t/").await;
}

/// An etcd without free space answers reads, refuses writes, and reports the reason by its alarm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_are_told() {
    let server = start(Config::default());
    let store = connect(&etcd_options(&[server.endpoint()])).await;
    write(&store, vec![put("/t/a", "1")]).await;
    assert_eq!(store.alarms().await.expect("answer"), [""; 0]);
    let mut client = Client::connect([server.endpoint()], None).await.expect("connects");
    client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.expect("alarm");
    assert_eq!(store.alarms().await.expect("answer"), ["NOSPACE"]);
    answer(&store, "/t/").await;
    let written = store.commit(Vec::new(), vec![put("/t/b", "1")]).await;
    assert!(matches!(written, Err(StoreError::Refused(_))), "{written:?}");
    client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, None).await.expect("alarm");
    assert_eq!(store.alarms().await.expect("answer"), [""; 0]);
    write(&store, vec![put("/t/b", "1")]).await;
}

/// Makes the users `root`, and `culvert`, which may access the keys below `prefix`.
async fn enable_users(server: &EtcdServer, prefix: &str) {
    let mut client = Client::connect([server.endpoint()], None).await.expect("connects");
    client.user_add("root", "secret", None).await.expect("root");
    client.role_add("root").await.expect("role");
    client.user_grant_role("root", "root").await.expect("grant");
    client.user_add("culvert", "pässword", None).await.expect("user");
    client.role_add("culvert").await.expect("role");
    let permission = etcd_client::Permission::new(PermissionType::Readwrite, prefix);
    client.role_grant_permission("culvert", permission.with_prefix()).await.expect("permission");
    client.user_grant_role("culvert", "culvert").await.expect("grant");
    client.auth_enable().await.expect("enable");
}

/// Files with passwords.
struct Passwords(tempfile::TempDir);

impl Passwords {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    /// The file of a user. Nobody finds the password in its name.
    fn file(&self, user: &str) -> PathBuf {
        self.0.path().join(format!("{user}.secret"))
    }

    /// Writes the file of a user, as an editor does: a new file takes the place of the old one.
    fn write(&self, user: &str, password: &str) {
        let scratch = self.0.path().join("new");
        std::fs::write(&scratch, format!("{password}\n")).expect("written");
        std::fs::rename(scratch, self.file(user)).expect("renamed");
    }

    /// Options to log in as a user.
    fn options(&self, server: &EtcdServer, user: Option<&str>, password: &str) -> EtcdOptions {
        if let Some(user) = user {
            self.write(user, password);
        }
        EtcdOptions {
            user: user.map(str::to_owned),
            password_file: user.map(|user| self.file(user)),
            ..etcd_options(&[server.endpoint()])
        }
    }
}

/// A role that covers only the followed keys is enough to follow them. The follower has no witness of
/// its own then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_the_witnesses_is_enough_to_follow() {
    let server = start(Config::default());
    enable_users(&server, "/culvert/v1/").await;
    let passwords = Passwords::new();
    let store = connect(&passwords.options(&server, Some("culvert"), "pässword")).await;
    let options = FollowOptions {
        own_key: Some(witness_key("test")),
        own_every: Duration::from_millis(50),
        ..culvert::model::follow_options()
    };
    let follower = Follower::spawn(Arc::new(store), options);
    let mut health = follower.health();
    let refusal = health.wait_for(|health| health.own_refused.is_some());
    let state = in_time("the refusal", refusal).await.expect("follower").clone();
    assert!(state.healthy && state.own.is_none(), "{state:?}");
    let why = state.own_refused.expect("a reason");
    assert!(why.contains("permission denied"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_passwords() {
    let mut server = start(Config::default());
    enable_users(&server, "/culvert/").await;
    let passwords = Passwords::new();
    let right = passwords.options(&server, Some("culvert"), "pässword");
    let store = connect(&right).await;
    let revision = write(&store, vec![put("/culvert/v1/x", "v")]).await;
    let mut watch = store.watch("/culvert/", revision).await.expect("watch");
    let changes = in_time("a change", watch.next()).await.expect("item").expect("changes");
    assert_eq!(briefs(&changes), ["/culvert/v1/x=v"]);

    let line = refused(&right, "/other/").await;
    assert!(line.contains("permission denied"), "{line}");
    let beyond = store.watch("/other/", 1).await.map(drop).expect_err("is refused");
    assert!(matches!(beyond, StoreError::Refused(_)), "{beyond:?}");
    let others = Passwords::new();
    for (user, password) in [(Some("culvert"), "wrong"), (Some("nobody"), "x"), (None, "")] {
        let line = refused(&others.options(&server, user, password), "/culvert/").await;
        assert!(!line.contains("wrong"), "a password in a message: {line}");
        assert!(user.is_none() || line.contains("--store-password-file /"), "{line}");
    }

    // The restarted server does not know the old tokens. The store logs in again by itself.
    tokio::task::block_in_place(|| server.restart()).expect("restarts");
    assert_eq!(answer(&store, "/culvert/").await.entries.len(), 1);
    // A change of the users invalidates all tokens. The store logs in again then, too.
    let root = etcd_client::ConnectOptions::new().with_user("root", "secret");
    let mut client = Client::connect([server.endpoint()], Some(root)).await.expect("connects");
    client.user_add("another", "x", None).await.expect("user");
    in_time("a new login", async {
        loop {
            match store.commit(vec![], vec![put("/culvert/v1/y", "v")]).await {
                Ok(outcome) => return assert!(matches!(outcome, Outcome::Committed(_))),
                Err(StoreError::Unavailable(_)) => {
                    tokio::time::sleep(Duration::from_millis(50)).await
                }
                Err(other) => panic!("{other}"),
            }
        }
    })
    .await;
}

/// A password is changed while the store is in use, before the file or after it. The next call
/// after both succeeds, also one that must not be sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_is_used_without_a_restart() {
    let server = start(Config::default());
    enable_users(&server, "/culvert/").await;
    let passwords = Passwords::new();
    let options = passwords.options(&server, Some("culvert"), "pässword");
    let store = connect(&options).await;
    write(&store, vec![put("/culvert/v1/x", "1")]).await;
    let root = etcd_client::ConnectOptions::new().with_user("root", "secret");
    let mut client = Client::connect([server.endpoint()], Some(root)).await.expect("connects");

    client.user_change_password("culvert", "second").await.expect("changed");
    for _ in 0..2 {
        let error = store.snapshot("/culvert/").await.expect_err("is refused");
        assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
        let line = error.to_string();
        assert!(line.contains(&passwords.file("culvert").display().to_string()), "{line}");
        assert!(!line.contains("pässword") && !line.contains("second"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    passwords.write("culvert", "second");
    assert_eq!(store.snapshot("/culvert/").await.expect("an answer").entries.len(), 1);

    passwords.write("culvert", "third");
    write(&store, vec![put("/culvert/v1/x", "2")]).await;
    client.user_change_password("culvert", "third").await.expect("changed");
    write(&store, vec![put("/culvert/v1/x", "3")]).await;
    let snapshot = store.snapshot("/culvert/").await.expect("an answer");
    assert_eq!(snapshot.entries[0].value, b"3");
}

/// The roles that docs/SECURITY.md gives to the host `host1`.
struct Roles {
    /// Permissions: role, kind, key, and whether the key is a prefix.
    permissions: Vec<(String, PermissionType, String, bool)>,
    /// The roles of the user `host1`.
    granted: Vec<String>,
}

impl Roles {
    /// Reads the commands of the page, with an identifier in place of `$ID`.
    fn read(id: &str) -> Self {
        let mut roles = Self { permissions: Vec::new(), granted: Vec::new() };
        for line in include_str!("../../docs/SECURITY.md").lines() {
            let line = line.replace("$ID", id);
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["etcdctl", "role", "grant-permission", role, rest @ ..] => {
                    let (is_prefix, kind, key) = match rest {
                        ["--prefix=true", kind, key] => (true, kind, key),
                        [kind, key] => (false, kind, key),
                        _ => panic!("{line}"),
                    };
                    let kind = match *kind {
                        "read" => PermissionType::Read,
                        "readwrite" => PermissionType::Readwrite,
                        _ => panic!("{line}"),
                    };
                    let (role, key) = ((*role).to_owned(), (*key).to_owned());
                    roles.permissions.push((role, kind, key, is_prefix));
                }
                ["etcdctl", "user", "grant-role", "host1", role] => {
                    roles.granted.push((*role).to_owned());
                }
                _ => {}
            }
        }
        roles
    }

    /// Makes the users `root` and `host1`.
    async fn enable(&self, server: &EtcdServer) {
        let mut client = Client::connect([server.endpoint()], None).await.expect("connects");
        let mut made = BTreeSet::from(["root"]);
        client.user_add("root", "secret", None).await.expect("root");
        client.role_add("root").await.expect("role");
        client.user_grant_role("root", "root").await.expect("grant");
        for (role, kind, key, is_prefix) in &self.permissions {
            if made.insert(role.as_str()) {
                client.role_add(role.as_str()).await.expect("role");
            }
            let permission = etcd_client::Permission::new(*kind, key.as_str());
            let permission = if *is_prefix { permission.with_prefix() } else { permission };
            client.role_grant_permission(role.as_str(), permission).await.expect("permission");
        }
        client.user_add("host1", "secret", None).await.expect("user");
        for role in &self.granted {
            client.user_grant_role("host1", role.as_str()).await.expect("grant");
        }
        client.auth_enable().await.expect("enable");
    }
}

/// With the roles of docs/SECURITY.md a host does all that its agent does for its containers, and
/// writes no record of another host, and none of a network that it is not in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_writes_only_what_its_roles_permit() {
    let server = start(Config::default());
    let id = "7a".repeat(32);
    let roles = Roles::read(&id);
    assert!(roles.permissions.len() >= 8 && roles.granted.len() >= 3);
    roles.enable(&server).await;
    let passwords = Passwords::new();
    let as_user = |user: &str| passwords.options(&server, Some(user), "secret");
    let (admin, host) = (connect(&as_user("root")).await, connect(&as_user("host1")).await);

    // An administrator makes the networks.
    let own = name("bridge").on(&name("host1"));
    make_network(&admin, &network("blue", &["10.0.0.0/24"])).await;
    let bridge = network("x", &["172.17.0.0/16"]);
    let bridge = NetworkSpec { name: own.clone(), driver: Driver::Bridge, ..bridge };
    make_network(&admin, &bridge).await;

    let node = Node::new(name("host1"), id.clone(), [192, 0, 2, 1].into(), 4789);
    let agent = Alive::new(id.clone());
    let lease = host.grant(Duration::from_secs(60)).await.expect("grant");
    execute(&host, None, |view| Ok(((), register_node(view, &node, &agent, lease)?)))
        .await
        .expect("its node");
    for network in [own, name("blue")] {
        let spec = EndpointSpec { network: network.clone(), ..endpoint("x", "host1", "c") };
        let made = execute(&host, None, |view| create_endpoint(view, &spec)).await;
        let (made, _) = made.expect("its endpoint");
        execute(&host, None, |view| Ok(((), remove_endpoint(view, &network, &made.id)?)))
            .await
            .expect("its endpoint");
    }
    write(&host, vec![put(&witness_key(&id), "v")]).await;

    let keys = [
        // The name of another host may begin with this one's.
        "nodes/host2",
        "nodes/host10",
        "alive/host2",
        "networks/blue",
        "networks/bridge@host2",
        "vnis/300",
        "endpoints/red/7b",
        "endpoints/bridge@host2/7b",
        "endpoints/bridge@host10/7b",
        "ipam/red/10.1.0.2",
        "ipam/bridge@host2/172.17.0.2",
        "macs/red/0e:00:00:00:00:01",
        "macs/bridge@host2/0e:00:00:00:00:01",
        "macs/bridge@host10/0e:00:00:00:00:01",
        "vteps/blue/192.0.2.99",
        "store",
    ];
    let keys = keys.iter().map(|key| format!("/culvert/v1/{key}"));
    let puts = keys.chain([witness_key("7b")]).map(|key| put(&key, "v"));
    let others = Write::DeletePrefix("/culvert/v1/endpoints/".to_owned());
    for change in puts.chain([others]) {
        let refused = host.commit(Vec::new(), vec![change.clone()]).await;
        let error = refused.expect_err("is refused");
        assert!(matches!(error, StoreError::Refused(_)), "{change:?}: {error:?}");
        assert!(error.to_string().contains("permission denied"), "{change:?}: {error}");
    }
    // The keys of a network do not tell its hosts apart, which the page says.
    for key in ["endpoints/blue/7b", "ipam/blue/10.0.0.9", "macs/blue/0e:00:00:00:00:01"] {
        write(&host, vec![put(&format!("/culvert/v1/{key}"), "v")]).await;
    }
}
