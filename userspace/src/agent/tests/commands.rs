//! Commands whose supervisor is gone, or has not told of itself.

use std::{collections::BTreeSet, path::PathBuf, process::Child, sync::Arc};

use super::{
    fake::{Running, World, eventually, name, run, stored, two_hosts},
    refusals::assert_refused,
};
use crate::{
    agent::{
        containers::{Origin, Process, Record, boot},
        platform::{FoundSupervisor, Wanted},
    },
    api::{
        Backend as _,
        types::{
            ApiError, ContainerCreate, ContainerRow, ContainerState, ErrorKind, Rerun, Supervised,
        },
    },
    model::{
        Capabilities, CapabilityOption, Isolation, Name, NamespaceMode, Privileges, RestartPolicy,
        RunAs,
    },
};

/// A process, which is killed when this is dropped.
struct Sleep(Child);

impl Sleep {
    fn new() -> Self {
        Self(std::process::Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn process(&self) -> Process {
        Process::find(self.pid()).unwrap().unwrap()
    }

    fn runs(&self) -> bool {
        Process::find(self.pid()).unwrap().is_some()
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn detached(container: &str, network: &str, policy: &str) -> ContainerCreate {
    let rerun = Rerun {
        restart: policy.parse().unwrap(),
        environment: vec![("SECRET".to_owned(), "x".to_owned())],
        directory: "/srv".into(),
        umask: 0o027,
        log_max_size: 5000,
        log_max_files: 3,
    };
    ContainerCreate { rerun: Some(rerun), ..run(container, network) }
}

/// Makes a container whose command and supervisor run.
async fn start(host: &Running, request: ContainerCreate) -> (Sleep, Sleep) {
    let container = request.name.clone();
    host.agent.container_create(request).await.unwrap();
    let (command, supervisor) = (Sleep::new(), Sleep::new());
    let state = running(&command, &supervisor, 0);
    host.agent.container_state(&container, state).await.unwrap();
    (command, supervisor)
}

fn running(command: &Sleep, supervisor: &Sleep, restarts: u32) -> ContainerState {
    let supervisor = Supervised { pid: supervisor.pid(), restarts, failing: None };
    let log = Some(PathBuf::from("/paper/log"));
    ContainerState::Running { pid: command.pid(), log, supervisor: Some(supervisor), id: None }
}

async fn row(host: &Running, container: &str) -> ContainerRow {
    let rows = host.agent.containers().await.unwrap();
    rows.into_iter().find(|row| row.name == container).unwrap()
}

/// The containers whose supervisor was started, with the number of the restart. The simulated host
/// starts nothing, so that the agent tries again.
fn launched(host: &Running) -> BTreeSet<(String, Option<u32>)> {
    let state = host.paper.state();
    state.launched.iter().map(|l| (l.spec.name.clone(), l.spec.restarts)).collect()
}

/// Changes the record of a container on disk to one of an earlier boot.
fn reboot(world: &World, container: &str) {
    let node = crate::model::testing::node("host1", 1);
    let path = world.state_dir(&node).join(format!("containers/{container}.json"));
    let mut record: Record = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let past = boot().map(|boot| boot ^ 1);
    record.boot = past;
    let past = |process: Process| Process { boot: past, ..process };
    record.process = record.process.map(past);
    record.supervisor = record.supervisor.map(past);
    std::fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_started_again_when_its_supervisor_is_gone() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let (mut command, mut supervisor) = start(&one, detached("web", "blue", "always")).await;
    let (mut other, mut its) = start(&one, run("job", "blue")).await;
    let web = row(&one, "web").await;
    assert_eq!((web.state.as_str(), web.restart), ("running", RestartPolicy::Always));
    // What the command gets may be secret.
    let state_dir = &one.shared.options.state_dir;
    let record = std::fs::read_to_string(state_dir.join("containers/web.json")).unwrap();
    assert!(!record.contains("SECRET") && state_dir.join("reruns/web.json").exists());

    command.kill();
    other.kill();
    its.kill();
    // Its supervisor is there to do so.
    let restarting = ContainerState::Restarting {
        code: 3,
        log: None,
        supervisor: Supervised { pid: supervisor.pid(), restarts: 7, failing: Some("why".into()) },
        id: None,
    };
    one.agent.container_state(&name("web"), restarting).await.unwrap();
    let web = row(&one, "web").await;
    assert_eq!((web.state.as_str(), web.exit_code, web.restarts), ("restarting", Some(3), 7));
    let status = one.agent.status().await.unwrap();
    assert_eq!(status.counts.restarts, 7);
    assert!(status.problems.iter().any(|line| line.contains("'web'") && line.contains("(why)")));
    let refused = one.agent.container_remove(&name("web"), false).await;
    assert_refused(refused, ErrorKind::Conflict, "is restarting (--restart always)");
    assert!(launched(&one).is_empty());

    supervisor.kill();
    eventually("it is started again", || async { !launched(&one).is_empty() }).await;
    let launch = one.paper.state().launched[0].clone();
    assert_eq!(launch.spec.command, ["sleep"]);
    assert_eq!((launch.spec.restart, launch.spec.restarts), (RestartPolicy::Always, Some(7)));
    assert_eq!(launch.spec.netns, Some("/paper/netns/web".into()));
    assert_eq!((launch.spec.log_limits.max_size, launch.spec.log_limits.max_files), (5000, 3));
    let surroundings = &launch.surroundings;
    assert_eq!(surroundings.environment.as_ref().unwrap()[0].0, "SECRET");
    assert_eq!((&surroundings.directory, surroundings.umask), (&Some("/srv".into()), Some(0o027)));
    assert_eq!(launch.socket, one.shared.options.socket);
    // The other has ended, nobody knows how.
    assert_eq!(row(&one, "job").await.state, "exited");
    assert_eq!(launched(&one).len(), 1);

    let (command, supervisor) = (Sleep::new(), Sleep::new());
    let state = running(&command, &supervisor, 7);
    one.agent.container_state(&name("web"), state).await.unwrap();
    eventually("the problem is over", || async {
        one.agent.status().await.unwrap().problems.is_empty()
    })
    .await;
    let web = row(&one, "web").await;
    assert_eq!((web.state.as_str(), web.exit_code, web.restarts), ("running", None, 7));

    // A container with a policy is removed with its supervisor.
    one.agent.container_remove(&name("web"), true).await.unwrap();
    assert!(!supervisor.runs() && !command.runs());
    assert!(!state_dir.join("reruns/web.json").exists());
}

/// User, capabilities and namespaces of a command are kept for the next agent, which starts it
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_started_again_may_do_no_more_than_before() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let user = RunAs { uid: 4711, gid: 4712, groups: vec![4713] };
    let privileges = Privileges {
        user: Some(user.clone()),
        capabilities: Capabilities::left_by(&[CapabilityOption::All], &[]),
    };
    let mut request = detached("web", "blue", "always");
    request.privileges = privileges.clone();
    let isolation = Isolation {
        pid: NamespaceMode::Private,
        ipc: NamespaceMode::Private,
        read_only: true,
        tmpfs: vec!["/tmp:size=1m".parse().unwrap()],
    };
    request.isolation = isolation.clone();
    let (mut command, mut supervisor) = start(&one, request).await;
    let web = row(&one, "web").await;
    assert_eq!((web.privileges, web.isolation), (privileges.clone(), isolation.clone()));
    let mut wrong = run("job", "blue");
    wrong.privileges.user = Some(RunAs { uid: u32::MAX, ..user });
    let refused = one.agent.container_create(wrong).await;
    assert_refused(refused, ErrorKind::Invalid, "container 'job': --user: 4294967295 is no user");
    let mut wrong = run("job", "blue");
    wrong.isolation.tmpfs = vec!["/run".parse().unwrap(), "/run/a".parse().unwrap()];
    let refused = one.agent.container_create(wrong).await;
    assert_refused(refused, ErrorKind::Invalid, "container 'job': --tmpfs /run/a: it is in");

    let paper = Arc::clone(&one.paper);
    one.stop().await;
    command.kill();
    supervisor.kill();
    let one = world.start(1, &paper).await.ready().await;
    eventually("it is started again", || async { !launched(&one).is_empty() }).await;
    assert_eq!(paper.state().launched[0].spec.privileges, privileges);
    assert_eq!(paper.state().launched[0].spec.isolation, isolation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reboot_commands_run_as_their_policy_says() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let mut processes = Vec::new();
    for (container, policy, end) in [
        ("always", "always", Some(0)),
        ("until", "unless-stopped", Some(143)),
        ("failed", "on-failure", Some(1)),
        ("done", "on-failure", Some(0)),
        ("often", "on-failure:2", None),
        ("killed", "on-failure:3", None),
    ] {
        let (command, supervisor) = start(&one, detached(container, "blue", policy)).await;
        let state = running(&command, &supervisor, 2);
        one.agent.container_state(&name(container), state).await.unwrap();
        if let Some(code) = end {
            let ended = ContainerState::Exited { code, id: None };
            one.agent.container_state(&name(container), ended).await.unwrap();
        }
        processes.push((command, supervisor));
    }
    processes.push(start(&one, run("plain", "blue")).await);
    one.agent.container_create(detached("never", "blue", "always")).await.unwrap();
    let mut once = run("once", "blue");
    once.auto_remove = true;
    processes.push(start(&one, once).await);
    let mut untold = run("untold", "blue");
    untold.auto_remove = true;
    one.agent.container_create(untold).await.unwrap();

    // An agent's restart alone changes nothing.
    let paper = Arc::clone(&one.paper);
    one.stop().await;
    let one = world.start(1, &paper).await.ready().await;
    assert_eq!(one.agent.containers().await.unwrap().len(), 10);
    // The agent looks every 20 ms.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    one.stop().await;
    assert_eq!(paper.state().launched.len(), 0);

    for container in
        ["always", "until", "failed", "done", "often", "killed", "plain", "never", "once", "untold"]
    {
        reboot(&world, container);
    }
    drop(processes);
    let one = world.start(1, &paper).await.ready().await;
    eventually("four are started", || async { launched(&one).len() == 4 }).await;
    let started = launched(&one);
    let started: Vec<_> = started.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    let third = Some(3);
    assert_eq!(
        started,
        [("always", third), ("failed", third), ("killed", third), ("until", third)]
    );
    // The others have their network, and the address of those with --rm is free.
    eventually("--rm is carried out", || async {
        one.agent.containers().await.unwrap().len() == 8
    })
    .await;
    assert_eq!(stored(&world).await.endpoints_in(&name("blue")).count(), 8);
    let states: Vec<_> = ["done", "often", "plain", "never"].to_vec();
    let mut found = Vec::new();
    for container in states {
        found.push(row(&one, container).await.state);
    }
    assert_eq!(found, ["exited", "exited", "exited", "created"]);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(launched(&one).len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_cannot_be_started_again_is_told_and_tried_again() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.paper.state().refuse_launch = Some("it will not".to_owned());
    let (mut command, mut supervisor) = start(&one, detached("web", "blue", "always")).await;
    command.kill();
    supervisor.kill();
    let told = |part: &'static str| {
        let problems = one.shared.shown.problems.lines();
        problems.iter().any(|line| line.contains("'web'") && line.contains(part))
    };
    eventually("it is told", || async { told("is not started again: it will not") }).await;
    one.eventually("it is tried again", |state| state.launched.len() >= 2).await;

    std::fs::remove_file(one.shared.options.state_dir.join("reruns/web.json")).unwrap();
    eventually("the missing file is named", || async { told("reruns/web.json") }).await;
    one.agent.container_remove(&name("web"), false).await.unwrap();
    eventually("the problem is over", || async { !told("") }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_waits_for_the_network_of_its_container() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let (mut command, mut supervisor) = start(&one, detached("web", "blue", "always")).await;
    let mut side = detached("side", "container:web", "always");
    side.names = crate::model::NameOptions::default();
    let others = start(&one, side).await;
    let paper = Arc::clone(&one.paper);
    one.stop().await;
    paper.state().namespaces.clear();
    paper.plugging.close(true);
    command.kill();
    supervisor.kill();
    drop(others);
    let one = world.start(1, &paper).await;
    one.eventually("the device pair is made", |_| paper.plugging.waiting() > 0).await;
    assert!(launched(&one).is_empty());
    paper.plugging.close(false);
    eventually("both are started", || async { launched(&one).len() == 2 }).await;
    let netns = std::path::Path::new("/paper/netns/web");
    assert!(paper.state().launched.iter().all(|l| l.spec.netns.as_deref() == Some(netns)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_was_not_told_is_found() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    for container in ["web", "db"] {
        one.run(container, "blue").await.unwrap();
    }
    // Its supervisor did not reach the agent.
    let (command, supervisor) = (Sleep::new(), Sleep::new());
    let found = FoundSupervisor {
        supervisor: supervisor.process(),
        process: Some(command.process()),
        detached: true,
    };
    one.paper.state().supervisors.insert(name("web"), found.clone());
    assert_eq!(row(&one, "web").await.state, "created");
    let refused = one.agent.container_remove(&name("web"), false).await;
    assert_refused(refused, ErrorKind::Conflict, "is running (pid");
    assert_eq!(row(&one, "web").await.pid, Some(command.pid()));
    one.agent.container_remove(&name("db"), false).await.unwrap();

    // The next agent looks by itself.
    let mut late = run("late", "blue");
    late.auto_remove = true;
    one.agent.container_create(late).await.unwrap();
    let paper = Arc::clone(&one.paper);
    one.stop().await;
    let (late, its) = (Sleep::new(), Sleep::new());
    let found = FoundSupervisor {
        supervisor: its.process(),
        process: Some(late.process()),
        detached: false,
    };
    paper.state().supervisors.insert(name("late"), found);
    let one = world.start(1, &paper).await.ready().await;
    eventually("it is known", || async { row(&one, "late").await.pid == Some(late.pid()) }).await;
    one.agent.container_remove(&name("late"), true).await.unwrap();
    assert!(!late.runs());
    let log = one.shared.options.state_dir.join("logs/web.log");
    assert_eq!(row(&one, "web").await.log.as_deref(), log.to_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_cannot_be_looked_for_is_not_forgotten() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let (mut command, mut supervisor) = start(&one, detached("job", "blue", "always")).await;
    let refusal = ApiError::new(ErrorKind::Internal, "no file is left");
    one.paper.state().refuse_search = Some(refusal.clone());
    let refused = one.agent.container_remove(&name("web"), true).await;
    assert_refused(refused, ErrorKind::Internal, "container 'web': no file is left");
    command.kill();
    supervisor.kill();
    let told = |part: &'static str| {
        let problems = one.shared.shown.problems.lines();
        problems.iter().any(|line| line.contains(part))
    };
    eventually("it is told", || async { told("container 'job': no file is left") }).await;
    assert!(launched(&one).is_empty());

    // The next agent looks again until it can.
    let paper = Arc::clone(&one.paper);
    one.stop().await;
    let (web, its) = (Sleep::new(), Sleep::new());
    let found = FoundSupervisor {
        supervisor: its.process(),
        process: Some(web.process()),
        detached: false,
    };
    paper.state().supervisors.insert(name("web"), found);
    let one = world.start(1, &paper).await.ready().await;
    let told = |part: &'static str| {
        let problems = one.shared.shown.problems.lines();
        problems.iter().any(|line| line.contains(part))
    };
    eventually("it is told", || async { told("no file is left; trying again") }).await;
    paper.state().refuse_search = None;
    eventually("it is known", || async { row(&one, "web").await.pid == Some(web.pid()) }).await;
    eventually("it is started again", || async { !launched(&one).is_empty() }).await;
}

/// A search looks at all processes of the host: one serves all containers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_commands_are_looked_for_at_once() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let all: BTreeSet<Name> = ["a", "b", "c"].map(name).into();
    one.paper.state().refuse_search = Some(ApiError::new(ErrorKind::Internal, "no file is left"));
    for container in &all {
        // Both processes are killed.
        drop(start(&one, detached(container.as_str(), "blue", "always")).await);
    }
    one.eventually("all are looked for", |state| state.searched.contains(&all)).await;
    assert!(launched(&one).is_empty());
    one.paper.state().refuse_search = None;
    eventually("all are started again", || async { launched(&one).len() == all.len() }).await;
    one.agent.purge().await.unwrap();
    assert_eq!(one.paper.state().searched.last(), Some(&all), "by the purge");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_about_an_earlier_container_of_the_name_is_refused() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let former = one.run("web", "blue").await.unwrap().id.unwrap();
    one.agent.container_remove(&name("web"), false).await.unwrap();
    let unknown = ContainerState::Exited { code: 1, id: Some(former.clone()) };
    one.agent.container_state(&name("web"), unknown.clone()).await.unwrap();

    let mut request = run("web", "blue");
    request.auto_remove = true;
    let own = one.agent.container_create(request).await.unwrap().id.unwrap();
    assert_ne!(own, former);
    let refused = one.agent.container_state(&name("web"), unknown).await;
    assert_refused(refused, ErrorKind::NotFound, "another one than the report is about");
    assert_eq!(row(&one, "web").await.state, "created");
    let ended = ContainerState::Exited { code: 0, id: Some(own) };
    one.agent.container_state(&name("web"), ended).await.unwrap();
    assert!(one.agent.containers().await.unwrap().is_empty(), "--rm");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reported_log_does_not_choose_the_file() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let precious = world.dir.path().join("precious");
    std::fs::write(&precious, "").unwrap();
    let logs = one.shared.options.state_dir.join("logs");
    std::fs::create_dir_all(&logs).unwrap();
    std::fs::write(logs.join("once.log"), "").unwrap();
    let mut once = run("once", "blue");
    once.auto_remove = true;
    for request in [once, detached("web", "blue", "always")] {
        let container = request.name.clone();
        one.agent.container_create(request).await.unwrap();
        let (command, supervisor) = (Sleep::new(), Sleep::new());
        let by = Supervised { pid: supervisor.pid(), restarts: 0, failing: None };
        let (pid, log) = (command.pid(), Some(precious.clone()));
        let state = ContainerState::Running { pid, log, supervisor: Some(by), id: None };
        one.agent.container_state(&container, state).await.unwrap();
        let own = logs.join(format!("{container}.log"));
        assert_eq!(row(&one, container.as_str()).await.log.as_deref(), own.to_str());
        // Both are killed.
    }
    eventually("it is started again", || async { !launched(&one).is_empty() }).await;
    assert_eq!(one.paper.state().launched[0].spec.log, Some(logs.join("web.log")));
    eventually("the log is removed", || async { !logs.join("once.log").exists() }).await;
    assert!(precious.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_removal_waits_for_a_start_that_is_under_way() {
    for purge in [false, true] {
        let world = World::new().await;
        let (one, _two) = two_hosts(&world).await;
        let (mut command, mut supervisor) = start(&one, detached("web", "blue", "always")).await;
        one.paper.launching.close(true);
        command.kill();
        supervisor.kill();
        one.eventually("it is being started", |_| one.paper.launching.waiting() > 0).await;
        let agent = Arc::clone(&one.agent);
        let removal = tokio::spawn(async move {
            match purge {
                true => agent.purge().await,
                false => agent.container_remove(&name("web"), true).await,
            }
        });
        // The command runs already, and its supervisor tells of it.
        let (command, supervisor) = (Sleep::new(), Sleep::new());
        let state = running(&command, &supervisor, 1);
        one.agent.container_state(&name("web"), state).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert!(!removal.is_finished() && command.runs(), "purge: {purge}");
        one.paper.launching.close(false);
        removal.await.unwrap().unwrap();
        assert!(!command.runs() && !supervisor.runs(), "purge: {purge}");
        assert_eq!(one.paper.state().launched.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_ended_before_its_start_was_told_is_started_again() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.agent.container_create(detached("web", "blue", "always")).await.unwrap();
    one.agent.container_create(detached("found", "blue", "always")).await.unwrap();
    let mut once = run("once", "blue");
    once.auto_remove = true;
    one.agent.container_create(once).await.unwrap();
    let (mut command, mut supervisor, mut other) = (Sleep::new(), Sleep::new(), Sleep::new());
    command.kill();
    for container in ["web", "once"] {
        let state = running(&command, &supervisor, 0);
        one.agent.container_state(&name(container), state).await.unwrap();
        assert_eq!(row(&one, container).await.state, "exited");
    }
    // A supervisor that is found between two runs of its command.
    let found = FoundSupervisor { supervisor: other.process(), process: None, detached: false };
    one.paper.state().supervisors.insert(name("found"), found);
    let refused = one.agent.container_remove(&name("found"), false).await;
    assert_refused(refused, ErrorKind::Conflict, "is restarting");
    assert_eq!(row(&one, "found").await.state, "restarting");
    assert!(launched(&one).is_empty());

    one.paper.state().supervisors.clear();
    supervisor.kill();
    other.kill();
    eventually("both are started again", || async { launched(&one).len() == 2 }).await;
    eventually("--rm is carried out", || async {
        one.agent.containers().await.unwrap().len() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_for_good_is_not_revived_by_a_supervisor_that_lives_on() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let (mut command, mut supervisor) = start(&one, detached("web", "blue", "always")).await;
    command.kill();
    let ended = ContainerState::Exited { code: 143, id: None };
    one.agent.container_state(&name("web"), ended).await.unwrap();
    // The supervisor lives on, because another process still writes to the log.
    let found =
        FoundSupervisor { supervisor: supervisor.process(), process: None, detached: false };
    let paper = Arc::clone(&one.paper);
    paper.state().supervisors.insert(name("web"), found);
    one.stop().await;
    let one = world.start(1, &paper).await.ready().await;
    assert_eq!(row(&one, "web").await.state, "exited");
    paper.state().supervisors.clear();
    supervisor.kill();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let web = row(&one, "web").await;
    assert_eq!((web.state.as_str(), web.exit_code), ("exited", Some(143)));
    assert!(launched(&one).is_empty());
    one.agent.container_remove(&name("web"), false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_no_child_of_the_supervisor_is_not_killed() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let stranger = Sleep::new();
    one.paper.state().strangers.insert(stranger.pid());
    one.run("web", "blue").await.unwrap();
    let supervisor = Sleep::new();
    let state = running(&stranger, &supervisor, 0);
    one.agent.container_state(&name("web"), state).await.unwrap();
    assert_eq!(row(&one, "web").await.pid, None);
    one.agent.container_remove(&name("web"), true).await.unwrap();
    assert!(stranger.runs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_cannot_be_removed_does_not_hold_the_others_up() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let mut stuck = run("a", "blue");
    stuck.auto_remove = true;
    let (mut command, mut supervisor) = start(&one, stuck).await;
    let (mut other, mut its) = start(&one, detached("b", "blue", "always")).await;
    // A request is about it and does not end.
    let turn = one.shared.requests.turns.wait(&name("a")).await;
    for process in [&mut command, &mut supervisor, &mut other, &mut its] {
        process.kill();
    }
    eventually("the other is started again", || async { !launched(&one).is_empty() }).await;
    assert_eq!(one.agent.containers().await.unwrap().len(), 2);
    drop(turn);
    eventually("--rm is carried out", || async {
        one.agent.containers().await.unwrap().len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_keeps_dying_is_started_after_growing_pauses() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let (mut command, mut supervisor) = start(&one, detached("web", "blue", "always")).await;
    let mut pauses = Vec::new();
    for restarts in 1..=4 {
        let before = one.paper.state().launched.len();
        command.kill();
        supervisor.kill();
        let died = std::time::Instant::now();
        one.eventually("it is started", |state| state.launched.len() > before).await;
        pauses.push(died.elapsed().as_millis());
        (command, supervisor) = (Sleep::new(), Sleep::new());
        let state = running(&command, &supervisor, restarts);
        one.agent.container_state(&name("web"), state).await.unwrap();
    }
    // Each pause is twice the one before, from 100 ms on. It begins before the process is killed.
    assert!(pauses[1] >= 80 && pauses[2] >= 150 && pauses[3] >= 300, "{pauses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_was_not_reported_yet_is_killed_with_its_supervisor() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.agent.container_create(detached("web", "blue", "always")).await.unwrap();
    // It ignores the end of its parent, as a command does that has not begun yet.
    let mut supervisor = std::process::Command::new("sh");
    let supervisor = supervisor.args(["-c", "sleep 1000 & wait"]).spawn().unwrap();
    let supervisor = Sleep(supervisor);
    eventually("its child runs", || async { !supervisor.process().children().unwrap().is_empty() })
        .await;
    let child = supervisor.process().children().unwrap()[0];
    let former = Sleep::new();
    let state = running(&former, &supervisor, 1);
    one.agent.container_state(&name("web"), state).await.unwrap();
    one.agent.container_remove(&name("web"), true).await.unwrap();
    assert!(!supervisor.runs() && !former.runs());
    assert!(!child.lives(), "the one that was not reported");
}

#[test]
fn supervisors_are_looked_for_by_name_identifier_and_namespace() {
    let record = |origin| Record {
        id: Some("0a".to_owned()),
        ..Record::new(name("web"), origin, "/run/netns/web".into())
    };
    let wanted = Wanted::of(&record(Origin::Owned)).unwrap();
    assert_eq!((wanted.name, wanted.id.as_deref()), (name("web"), Some("0a")));
    assert_eq!(wanted.netns, Some("/run/netns/web".into()));
    assert_eq!(Wanted::of(&record(Origin::Host)).unwrap().netns, None);
    assert!(Wanted::of(&record(Origin::Attached)).is_none());
}
