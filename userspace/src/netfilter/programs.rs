//! The programs that list the host's rules.

use std::{fs, os::fd::BorrowedFd, process::Stdio, time::Duration};

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

/// What `iptables-save -t nat` writes, for each kind of iptables that is installed and in use.
/// `legacy`: see [`Files::legacy`].
pub(super) async fn saved(netns: BorrowedFd<'_>, legacy: bool) -> Vec<String> {
    let nat = &["-t", "nat"];
    let mut saved: Vec<String> =
        output(netns, "iptables-nft-save", nat).await.into_iter().collect();
    // The legacy program makes the table if there is none, and with it the kernel begins to track
    // connections.
    if legacy {
        let text = match output(netns, "iptables-legacy-save", nat).await {
            Some(text) => Some(text),
            None => output(netns, "iptables-save", nat).await,
        };
        saved.extend(text);
    }
    saved
}

/// What `nft -j list ruleset` writes. `None`: it is not installed, or fails.
pub(super) async fn ruleset(netns: BorrowedFd<'_>) -> Option<String> {
    output(netns, "nft", &["-j", "list", "ruleset"]).await
}

/// What a program writes in a network namespace. `None`: it is not installed, or fails.
async fn output(netns: BorrowedFd<'_>, program: &str, arguments: &[&str]) -> Option<String> {
    let runtime = Handle::try_current().ok()?;
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // The program is in the namespace of the thread that starts it.
    let started = run_in(netns, || {
        let _entered = runtime.enter();
        command.spawn()
    });
    let mut child = started.ok()?.ok()?;
    let mut written = child.stdout.take()?.take(MOST);
    let mut text = Vec::new();
    // A program that writes more than that is not waited for.
    let ended = timeout(DEADLINE, async {
        written.read_to_end(&mut text).await?;
        child.wait().await
    });
    match ended.await {
        Ok(status) => status.ok()?.success().then(|| String::from_utf8(text).ok())?,
        Err(_) => {
            tracing::warn!(
                "netfilter: '{program} {}' has not ended within {} s: the ports that its rules \
                 translate are not known",
                arguments.join(" "),
                DEADLINE.as_secs()
            );
            None
        }
    }
}
