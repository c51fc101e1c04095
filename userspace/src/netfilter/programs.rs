//! The programs that list the host's rules.

use std::{fs, io, os::fd::BorrowedFd, process::Stdio, time::Duration};

use tokio::{io::AsyncReadExt as _, process::Command, runtime::Handle, time::timeout};

use crate::netns::run_in;

/// How long a program may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Most bytes that a program may write.
const MOST: u64 = 64 << 20;

/// Files of the kernel about netfilter in a network namespace.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Whether the kernel tracks connections. Without that, no rule translates.
    pub(super) tracks: bool,
    /// Whether the table `nat` of the legacy iptables is in use.
    pub(super) legacy: bool,
    /// The virtual services of IPVS; empty without IPVS.
    pub(super) ipvs: String,
}

impl Files {
    /// Reads the files in the namespace of the calling thread.
    pub(super) fn read() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let tables = read("/proc/thread-self/net/ip_tables_names");
        Self {
            tracks: fs::exists("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or_default(),
            legacy: tables.lines().any(|table| table == "nat"),
            ipvs: read("/proc/thread-self/net/ip_vs"),
        }
    }
}

/// The arguments of `iptables-save`.
const NAT: &[&str] = &["-t", "nat"];

/// What a program has written.
pub(super) enum Output {
    Text(String),
    /// The program is not installed.
    Absent,
    /// It has failed, or not ended in time.
    Failed,
}

impl Output {
    /// What the program has written. `None`: nothing.
    pub(super) fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::Failed => None,
        }
    }
}

/// What `iptables-save -t nat` writes of the rules that are nftables rules for the kernel.
pub(super) async fn saved(netns: BorrowedFd<'_>) -> Output {
    output(netns, "iptables-nft-save", NAT).await
}

/// What `iptables-save -t nat` writes of the rules of the legacy iptables. Must be called only if
/// [`Files::legacy`] is set: the program makes the table if there is none, and with it the kernel
/// begins to track connections.
pub(super) async fn legacy(netns: BorrowedFd<'_>) -> Output {
    match output(netns, "iptables-legacy-save", NAT).await {
        Output::Text(text) => Output::Text(text),
        Output::Absent | Output::Failed => output(netns, "iptables-save", NAT).await,
    }
}

/// What `nft -j list ruleset` writes.
pub(super) async fn ruleset(netns: BorrowedFd<'_>) -> Output {
    output(netns, "nft", &["-j", "list", "ruleset"]).await
}

/// What a program writes in a network namespace.
async fn output(netns: BorrowedFd<'_>, program: &str, arguments: &[&str]) -> Output {
    let Ok(runtime) = Handle::try_current() else { return Output::Failed };
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // The program is in the namespace of the thread that starts it.
    let started = run_in(netns, || {
        let _entered = runtime.enter();
        command.spawn()
    });
    let mut child = match started {
        Ok(Ok(child)) => child,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Output::Absent,
        _ => return Output::Failed,
    };
    let Some(written) = child.stdout.take() else { return Output::Failed };
    let mut written = written.take(MOST);
    let mut text = Vec::new();
    // A program that writes more than that is not waited for.
    let ended = timeout(DEADLINE, async {
        written.read_to_end(&mut text).await?;
        child.wait().await
    });
    match ended.await {
        Ok(Ok(status)) if status.success() => {
            String::from_utf8(text).map_or(Output::Failed, Output::Text)
        }
        Ok(_) => Output::Failed,
        Err(_) => {
            tracing::warn!(
                "netfilter: '{program} {}' has not ended within {} s: the ports that its rules \
                 translate are not known",
                arguments.join(" "),
                DEADLINE.as_secs()
            );
            Output::Failed
        }
    }
}
