//! Sandboxes that an agent which was killed has left without a record.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::{
    fake::{Paper, Running, World, eventually, name, run, stored, two_hosts},
    paper::NETNS,
    refusals::assert_refused,
};
use crate::{
    agent::unfinished::Unfinished,
    api::{
        Backend as _,
        types::{ApiError, ErrorKind},
    },
};

fn path(container: &str) -> PathBuf {
    PathBuf::from(format!("/paper/netns/{container}"))
}

async fn states(host: &Running) -> Vec<(String, String)> {
    let rows = host.agent.containers().await.unwrap();
    rows.into_iter().map(|row| (row.name, row.state)).collect()
}

fn problems(host: &Running) -> Vec<String> {
    host.shared.shown.problems.lines()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_without_a_record_is_shown_and_removed_by_name() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let state_dir = one.shared.options.state_dir.clone();
    assert!(Unfinished::load(&state_dir).left().is_empty(), "web is complete");
    let paper = Arc::clone(&one.paper);
    one.stop().await;

    // An agent is killed after it has made a namespace; when it was about to; when it had finished;
    // and in between the host has lost a namespace.
    let killed = Unfinished::load(&state_dir);
    killed.begin(&name("lost")).unwrap();
    for container in ["made", "gone", "web", "other"] {
        killed.made(&name(container), NETNS).unwrap();
    }
    for container in ["made", "theirs", "other"] {
        paper.state().namespaces.insert(path(container), BTreeSet::new());
    }
    // Another program has since made one of that name.
    paper.state().foreign.insert(path("other"));

    let one = world.start(1, &paper).await.ready().await;
    let shown = [("made", "unfinished"), ("web", "created")];
    assert_eq!(states(&one).await, shown.map(|(name, state)| (name.to_owned(), state.to_owned())));
    let told = problems(&one);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("/paper/netns/made is left: 'culvert rm made'"), "{told:?}");
    assert_eq!(Unfinished::load(&state_dir).left(), [name("made")]);
    assert_refused(one.run("made", "blue").await, ErrorKind::Conflict, "'culvert rm made'");
    // A namespace of another program is refused, and not taken for ours.
    let refused = one.run("theirs", "blue").await.unwrap_err();
    assert_eq!(
        (refused.kind, refused.message.as_str()),
        (ErrorKind::Conflict, "sandbox exists already")
    );
    assert_eq!(Unfinished::load(&state_dir).left(), [name("made")]);

    one.agent.container_remove(&name("made"), false).await.unwrap();
    assert!(!paper.state().namespaces.contains_key(&path("made")));
    assert!(paper.state().namespaces.contains_key(&path("theirs")));
    assert!(paper.state().namespaces.contains_key(&path("other")));
    assert!(problems(&one).is_empty() && Unfinished::load(&state_dir).left().is_empty());
    one.run("made", "blue").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_cannot_be_removed_is_shown() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let refusal = ApiError::new(ErrorKind::Internal, "the kernel says no");
    one.paper.state().refuse_removal = Some(refusal.clone());
    let mut wrong = run("web", "blue");
    wrong.ip = Some("10.9.9.9".parse().unwrap());
    one.agent.container_create(wrong).await.unwrap_err();
    assert_eq!(states(&one).await, [("web".to_owned(), "unfinished".to_owned())]);
    assert!(problems(&one)[0].contains("'culvert rm web'"));
    assert_eq!(one.agent.container_remove(&name("web"), false).await, Err(refusal));
    one.paper.state().refuse_removal = None;
    one.agent.container_remove(&name("web"), false).await.unwrap();
    assert!(problems(&one).is_empty() && one.paper.state().namespaces.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_is_cut_short_leaves_a_name() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    // Its record is lost: the store alone tells of it.
    let state_dir = one.shared.options.state_dir.clone();
    let paper = Arc::clone(&one.paper);
    one.stop().await;
    std::fs::remove_file(state_dir.join("containers/web.json")).unwrap();
    let one = world.start(1, &paper).await.ready().await;
    assert_eq!(states(&one).await, [("web".to_owned(), "created".to_owned())]);
    // The removal ends once the endpoint is gone.
    let refusal = ApiError::new(ErrorKind::Internal, "the kernel says no");
    paper.state().refuse_removal = Some(refusal);
    one.agent.container_remove(&name("web"), false).await.unwrap_err();
    assert_eq!(stored(&world).await.endpoints.count(), 0);
    one.crash().await;
    paper.state().refuse_removal = None;
    let one = world.start(1, &paper).await.ready().await;
    assert_eq!(states(&one).await, [("web".to_owned(), "unfinished".to_owned())]);
    one.agent.container_remove(&name("web"), false).await.unwrap();
    assert!(paper.state().namespaces.is_empty());
    assert!(states(&one).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_removes_what_was_not_finished() {
    let world = World::new().await;
    let paper = Paper::new();
    let node = crate::model::testing::node("host1", 1);
    let state_dir = world.state_dir(&node);
    std::fs::create_dir_all(&state_dir).unwrap();
    let killed = Unfinished::load(&state_dir);
    for container in ["made", "other"] {
        killed.made(&name(container), NETNS).unwrap();
        paper.state().namespaces.insert(path(container), BTreeSet::new());
    }
    let one = world.start(1, &paper).await.ready().await;
    // Another program replaces it while the agent runs.
    paper.state().foreign.insert(path("other"));
    one.agent.purge().await.unwrap();
    assert_eq!(paper.state().namespaces.keys().collect::<Vec<_>>(), [&path("other")]);
}

/// The problem of a sandbox ends with its container.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_cannot_be_made_again_is_told_until_its_container_is_removed() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.run("web", "none").await.unwrap();
    let paper = Arc::clone(&one.paper);
    one.stop().await;
    paper.state().namespaces.clear();
    paper.state().refuse_revival = Some(ApiError::new(ErrorKind::Internal, "no namespace"));
    let one = world.start(1, &paper).await.ready().await;
    let told = || async { problems(&one) == ["container 'web': no namespace"] };
    eventually("the problem", told).await;
    one.agent.container_remove(&name("web"), false).await.unwrap();
    assert!(problems(&one).is_empty(), "{:?}", problems(&one));
}
