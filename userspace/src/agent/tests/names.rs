//! Names: the files that commands of a container see in `/etc`, and the options about them.

use std::{fs, os::unix::fs::MetadataExt as _};

use super::{
    fake::{Paper, Running, World, eventually, name, network, run},
    refusals::assert_refused,
};
use crate::{
    agent::containers::{Containers, Record},
    api::{
        Backend as _,
        types::{ApiError, Connect, ContainerCreate, ContainerRow, ErrorKind},
    },
    model::ROOT,
};

fn asking(
    container: &str,
    network: &str,
    ask: impl FnOnce(&mut ContainerCreate),
) -> ContainerCreate {
    let mut request = run(container, network);
    ask(&mut request);
    request
}

async fn make(host: &Running, request: ContainerCreate) -> ContainerRow {
    host.agent.container_create(request).await.unwrap()
}

fn read(row: &ContainerRow, file: &str) -> String {
    fs::read_to_string(format!("{}/{file}", row.etc.as_ref().unwrap())).unwrap()
}

/// The lines of the hosts file after the 6 lines that every container has.
fn own_hosts(row: &ContainerRow) -> Vec<String> {
    read(row, "hosts").lines().skip(6).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_gets_the_files_of_its_options_and_of_its_host() {
    let world = World::new().await;
    let paper = Paper::new();
    paper.state().resolv_conf =
        "nameserver 127.0.0.1\nnameserver 192.0.2.53\nsearch lan\noptions rotate\n".to_owned();
    let one = world.start(1, &paper).await.ready().await;
    let plain = make(&one, run("plain", "bridge")).await;
    assert_eq!(plain.hostname.as_deref(), Some("plain"));
    assert_eq!(read(&plain, "hostname"), "plain\n");
    assert_eq!(own_hosts(&plain), ["172.17.0.2\tplain"]);
    assert_eq!(read(&plain, "resolv.conf"), "nameserver 192.0.2.53\nsearch lan\noptions rotate\n");
    assert_eq!(plain.warnings, Vec::<String>::new());

    let given = asking("web", "bridge", |request| {
        request.names.hostname = Some(name("www.example.com"));
        request.names.servers = vec!["10.0.0.53".parse().unwrap()];
        request.names.search = vec![".".parse().unwrap()];
        request.names.options = vec!["ndots:2".parse().unwrap()];
        request.names.hosts =
            vec!["db:fd00::9".parse().unwrap(), "up:host-gateway".parse().unwrap()];
    });
    let web = make(&one, given).await;
    assert_eq!(web.hostname.as_deref(), Some("www.example.com"));
    assert_eq!(
        own_hosts(&web),
        ["fd00::9\tdb", "172.17.0.1\tup", "172.17.0.3\twww.example.com www web"]
    );
    assert_eq!(read(&web, "resolv.conf"), "nameserver 10.0.0.53\noptions ndots:2\n");
    // A container without a network has only the loopback address.
    assert_eq!(own_hosts(&make(&one, run("alone", "none")).await), ["127.0.0.1\talone"]);

    // A container that shares the namespace of `web` has the files of `web`. A container in the
    // host's namespace has the host's files.
    let side = make(&one, run("side", "container:web")).await;
    assert_eq!((&side.etc, &side.hostname), (&web.etc, &web.hostname));
    let bare = make(&one, run("bare", "host")).await;
    assert_eq!((bare.etc, bare.hostname), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_of_hosts_follows_the_addresses_and_goes_with_the_container() {
    let world = World::new().await;
    let paper = Paper::new();
    let one = world.start(1, &paper).await.ready().await;
    one.network("blue").await.unwrap();
    let request = asking("web", "blue", |request| {
        request.names.hostname = Some(name("www"));
    });
    let web = make(&one, request).await;
    let connect = Connect { container: name("web"), ip: None, more_ips: Vec::new(), mac: None };
    one.agent.connect(&name("bridge"), connect).await.unwrap();
    assert_eq!(own_hosts(&web), ["10.0.1.2\twww web", "172.17.0.2\twww web"]);

    // An agent that starts again finds the files and the options.
    one.stop().await;
    let one = world.start(1, &paper).await.ready().await;
    let rows = one.agent.containers().await.unwrap();
    assert_eq!((&rows[0].etc, &rows[0].hostname), (&web.etc, &web.hostname));
    one.agent.disconnect(&name("blue"), &name("web")).await.unwrap();
    assert_eq!(own_hosts(&web), ["172.17.0.2\twww web"]);
    one.agent.container_remove(&name("web"), false).await.unwrap();
    assert!(fs::metadata(web.etc.unwrap()).is_err());

    // A container of an earlier version has no files, and gets none.
    let old = make(&one, run("old", "blue")).await;
    fs::remove_dir_all(old.etc.unwrap()).unwrap();
    let connect = Connect { container: name("old"), ip: None, more_ips: Vec::new(), mac: None };
    let row = one.agent.connect(&name("bridge"), connect).await.unwrap();
    assert_eq!((row.etc, row.hostname), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_a_name_server_for_containers_is_warned_of_where_it_matters() {
    let world = World::new().await;
    let paper = Paper::new();
    paper.state().resolv_conf = "nameserver 127.0.0.53\nsearch lan\n".to_owned();
    let one = world.start(1, &paper).await.ready().await;
    let web = make(&one, run("web", "bridge")).await;
    let [warning] = web.warnings.as_slice() else { panic!("{:?}", web.warnings) };
    assert!(
        warning.contains("'web' gets no name server: ") && warning.contains("--dns"),
        "{warning}"
    );
    assert!(warning.contains("127.0.0.53"), "{warning}");
    assert_eq!(read(&web, "resolv.conf"), "search lan\n");
    assert_eq!(one.agent.containers().await.unwrap()[0].warnings, Vec::<String>::new());

    let mut inner = network("inner");
    inner.internal = true;
    one.agent.network_create(inner).await.unwrap();
    let named = asking("named", "bridge", |request| {
        request.names.servers = vec!["10.0.0.53".parse().unwrap()];
    });
    for request in [named, run("alone", "none"), run("inside", "inner"), run("bare", "host")] {
        assert_eq!(make(&one, request).await.warnings, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_about_names_are_refused_where_they_have_no_effect() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.run("web", "bridge").await.unwrap();
    let before = world.store.snapshot(ROOT).await.unwrap();
    let namespaces = one.paper.state().namespaces.clone();
    let refused = async |request: ContainerCreate, part: &str| {
        let outcome: Result<_, ApiError> = one.agent.container_create(request).await;
        assert_refused(outcome, ErrorKind::Invalid, part);
    };
    let dns = |request: &mut ContainerCreate| {
        request.names.servers = vec!["10.0.0.53".parse().unwrap()];
    };
    let up = |request: &mut ContainerCreate| {
        request.names.hosts = vec!["up:host-gateway".parse().unwrap()];
    };
    refused(asking("x", "host", dns), "--dns does not go with '--network host'").await;
    refused(asking("x", "container:web", up), "keeps the names of the other container").await;
    refused(asking("x", "none", up), "'--add-host up:host-gateway' needs").await;
    let mut adopting = asking("x", "bridge", dns);
    adopting.pid = Some(1);
    refused(adopting, "--dns does not go with a namespace of another program").await;
    assert_eq!(one.agent.containers().await.unwrap().len(), 1);
    assert_eq!(one.paper.state().namespaces, namespaces);
    assert_eq!(world.store.snapshot(ROOT).await.unwrap().entries, before.entries);
    let files = one.shared.options.state_dir.join("etc");
    assert_eq!(fs::read_dir(files).unwrap().count(), 1);
}

/// Whether `status` has a problem with all of these parts.
fn is_told(host: &Running, parts: &[&str]) -> bool {
    let problems = host.shared.shown.problems.lines();
    problems.iter().any(|line| parts.iter().all(|part| line.contains(part)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn name_servers_follow_the_host_until_a_container_has_its_own() {
    let world = World::new().await;
    let paper = Paper::new();
    let serve = |text: &str| paper.state().resolv_conf = text.to_owned();
    serve("nameserver 192.0.2.53\nsearch lan\n");
    let one = world.start(1, &paper).await.ready().await;
    let plain = make(&one, run("plain", "bridge")).await;
    let searching = asking("searching", "bridge", |request| {
        request.names.search = vec!["corp.example".parse().unwrap()];
    });
    let searching = make(&one, searching).await;
    let given = asking("given", "bridge", |request| {
        request.names.servers = vec!["10.0.0.53".parse().unwrap()];
    });
    let given = make(&one, given).await;
    let edited = make(&one, run("edited", "bridge")).await;
    let side = make(&one, run("side", "container:plain")).await;
    assert_eq!(side.etc, plain.etc);
    let file = |row: &ContainerRow| format!("{}/resolv.conf", row.etc.as_ref().unwrap());
    let inode = fs::metadata(file(&plain)).unwrap().ino();
    let mine = "nameserver 10.9.9.9\n";
    fs::write(file(&edited), mine).unwrap();

    serve("nameserver 192.0.2.5\nsearch home\n");
    eventually("the files follow", || async {
        read(&plain, "resolv.conf") == "nameserver 192.0.2.5\nsearch home\n"
            && read(&searching, "resolv.conf") == "nameserver 192.0.2.5\nsearch corp.example\n"
    })
    .await;
    // A command that runs has the file mounted.
    assert_eq!(fs::metadata(file(&plain)).unwrap().ino(), inode);
    eventually("two repairs are counted", || async {
        let repairs = one.shared.shown.repairs.all();
        repairs.get("resolv.conf").is_some_and(|repair| {
            repair.count == 2 && repair.last.contains("the host has 192.0.2.5 now")
        })
    })
    .await;
    let parts = ["container 'edited'", "names 10.9.9.9,", "the host has 192.0.2.5 now"];
    eventually("the kept file is told", || async { is_told(&one, &parts) }).await;
    assert_eq!(read(&edited, "resolv.conf"), mine);
    assert_eq!(read(&given, "resolv.conf"), "nameserver 10.0.0.53\nsearch lan\n");

    // What the line advises ends the problem, and the container follows again.
    fs::write(file(&edited), "nameserver 192.0.2.5\nsearch home\n").unwrap();
    eventually("the problem is over", || async { !is_told(&one, &["'edited'"]) }).await;
    serve("nameserver 192.0.2.6\n");
    eventually("it follows", || async { read(&edited, "resolv.conf") == "nameserver 192.0.2.6\n" })
        .await;

    // The host gets other servers while no agent runs, as in a reboot.
    eventually("all follow", || async { read(&plain, "resolv.conf") == "nameserver 192.0.2.6\n" })
        .await;
    one.stop().await;
    serve("nameserver 192.0.2.77\n");
    let one = world.start(1, &paper).await.ready().await;
    eventually("the next agent writes them", || async {
        [&plain, &edited].iter().all(|row| read(row, "resolv.conf") == "nameserver 192.0.2.77\n")
    })
    .await;
    assert_eq!(fs::metadata(file(&plain)).unwrap().ino(), inode);
    assert_eq!(read(&given, "resolv.conf"), "nameserver 10.0.0.53\nsearch lan\n");
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_keep_their_name_servers_while_the_host_has_none() {
    let world = World::new().await;
    let paper = Paper::new();
    let serve = |text: &str| paper.state().resolv_conf = text.to_owned();
    let one = world.start(1, &paper).await.ready().await;
    let web = make(&one, run("web", "bridge")).await;
    serve("");
    let parts = ["names no server", "containers keep the name servers"];
    eventually("it is told", || async { is_told(&one, &parts) }).await;
    assert_eq!(read(&web, "resolv.conf"), "nameserver 192.0.2.53\n");
    serve("nameserver 192.0.2.54\n");
    eventually("the new server is there", || async {
        read(&web, "resolv.conf") == "nameserver 192.0.2.54\n" && !is_told(&one, &parts)
    })
    .await;

    // An earlier version has not noted what it has written. This file was written later.
    let state_dir = one.shared.options.state_dir.clone();
    one.stop().await;
    let mut containers = Containers::load(&state_dir).unwrap();
    let record = containers.get(&name("web")).cloned().unwrap();
    containers.put(Record { resolv_conf: None, ..record }).unwrap();
    serve("nameserver 192.0.2.55\n");
    let one = world.start(1, &paper).await.ready().await;
    let parts = ["container 'web'", "is kept", "the host has 192.0.2.55 now"];
    eventually("it is told", || async { is_told(&one, &parts) }).await;
    assert_eq!(read(&web, "resolv.conf"), "nameserver 192.0.2.54\n");
    one.agent.container_remove(&name("web"), false).await.unwrap();
    eventually("the problem is over", || async { !is_told(&one, &parts) }).await;
    one.stop().await;
}

/// An earlier version has not noted what it has written into the files of its containers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_an_earlier_version_get_the_hosts_name_servers_as_well() {
    let world = World::new().await;
    let paper = Paper::new();
    let one = world.start(1, &paper).await.ready().await;
    let plain = make(&one, run("plain", "bridge")).await;
    let edited = make(&one, run("edited", "bridge")).await;
    let state_dir = one.shared.options.state_dir.clone();
    one.stop().await;
    let mut containers = Containers::load(&state_dir).unwrap();
    for container in ["plain", "edited"] {
        let record = containers.get(&name(container)).cloned().unwrap();
        containers.put(Record { resolv_conf: None, ..record }).unwrap();
    }
    let mine = "nameserver 10.9.9.9\n";
    let path = format!("{}/resolv.conf", edited.etc.as_ref().unwrap());
    fs::write(&path, mine).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
    fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();

    paper.state().resolv_conf = "nameserver 192.0.2.55\n".to_owned();
    let one = world.start(1, &paper).await.ready().await;
    for text in ["nameserver 192.0.2.55\n", "nameserver 192.0.2.56\n"] {
        paper.state().resolv_conf = text.to_owned();
        eventually("it follows", || async { read(&plain, "resolv.conf") == text }).await;
    }
    eventually("the kept file is told", || async {
        is_told(&one, &["container 'edited'", "is kept"])
    })
    .await;
    assert_eq!(read(&edited, "resolv.conf"), mine);
    one.stop().await;
}
