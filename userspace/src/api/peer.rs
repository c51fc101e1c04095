//! The process at the other end of a connection.

use nix::unistd::geteuid;
use tokio::net::UnixStream;

use super::types::{ApiError, ContainerCreate, ContainerState, ErrorKind, Supervised};

/// The process that has made a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    /// Its effective user. `None`: the kernel does not tell.
    pub(super) uid: Option<u32>,
    /// Its process number. `None`: the kernel does not tell.
    pub(super) pid: Option<i32>,
}

impl Peer {
    /// The peer of a connection.
    pub(super) fn of(stream: &UnixStream) -> Self {
        let peer = stream.peer_cred().ok();
        Self {
            uid: peer.as_ref().map(tokio::net::unix::UCred::uid),
            pid: peer.as_ref().and_then(tokio::net::unix::UCred::pid),
        }
    }

    /// Checks that the peer may have the agent start a command again: the agent starts it as its
    /// own user. Members of the socket's group may be other users.
    pub(super) fn may_rerun(self, request: &ContainerCreate) -> Result<(), ApiError> {
        let own = geteuid().as_raw();
        match &request.rerun {
            Some(rerun) if self.uid != Some(own) => Err(ApiError::new(
                ErrorKind::Invalid,
                format!(
                    "container '{}': --restart {} needs the user of the agent, who starts the command again: run it as uid {own}",
                    request.name, rerun.restart
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Names the peer as the supervisor, whatever it says: the agent kills the supervisor with its
    /// container. An earlier version says nothing.
    pub(super) fn reports(self, state: &mut ContainerState) -> Result<(), ApiError> {
        let by = match state {
            ContainerState::Running { supervisor, .. } => {
                supervisor.get_or_insert_with(|| Supervised { pid: 0, restarts: 0, failing: None })
            }
            ContainerState::Restarting { supervisor, .. } => supervisor,
            ContainerState::Exited { .. } => return Ok(()),
        };
        by.pid = self.pid.filter(|pid| *pid > 0).ok_or_else(|| {
            ApiError::new(
                ErrorKind::Invalid,
                "report: its sender has no process number here: run the command in the pid namespace of the agent",
            )
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_of_a_report_is_the_supervisor() {
        let peer = Peer { uid: Some(0), pid: Some(7) };
        let told = Supervised { pid: 1, restarts: 3, failing: None };
        for supervisor in [None, Some(told.clone())] {
            let restarts = supervisor.as_ref().map_or(0, |supervisor| supervisor.restarts);
            let mut state = ContainerState::Running { pid: 9, log: None, supervisor, id: None };
            peer.reports(&mut state).unwrap();
            let by = Supervised { pid: 7, restarts, failing: None };
            let right =
                ContainerState::Running { pid: 9, log: None, supervisor: Some(by), id: None };
            assert_eq!(state, right);
        }
        let mut waits =
            ContainerState::Restarting { code: 1, log: None, supervisor: told, id: None };
        for pid in [None, Some(0)] {
            let refused = Peer { uid: Some(0), pid }.reports(&mut waits).unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Invalid);
        }
        peer.reports(&mut waits).unwrap();
        assert!(
            matches!(&waits, ContainerState::Restarting { supervisor, .. } if supervisor.pid == 7)
        );
    }

    #[test]
    fn only_the_agents_user_has_a_command_started_again() {
        let own = geteuid().as_raw();
        let request = |rerun: &str| -> ContainerCreate {
            serde_json::from_str(&format!(r#"{{"name":"web","network":"none"{rerun}}}"#)).unwrap()
        };
        let again = request(
            r#","rerun":{"restart":"always","environment":[],"directory":"/","umask":18,"log_max_size":1000,"log_max_files":1}"#,
        );
        for uid in [Some(own ^ 1), None] {
            let peer = Peer { uid, pid: Some(7) };
            let refused = peer.may_rerun(&again).unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Invalid);
            assert!(refused.message.contains("needs the user of the agent"), "{refused}");
            assert_eq!(peer.may_rerun(&request("")), Ok(()));
        }
        assert_eq!(Peer { uid: Some(own), pid: None }.may_rerun(&again), Ok(()));
    }
}
