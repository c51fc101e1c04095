//! The enclosure: process, mount and network namespaces in which this program runs again.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::places::DIR;
use crate::signals;

/// Where `ip netns` keeps namespaces by name.
const NETNS: &str = "/run/netns";

/// Environment variable that marks the first process of an enclosure. Without this check, a user
/// who types the hidden verb `inside` would mount file systems over the machine's own.
const MARK: &str = "CULVERT_XTASK_ENCLOSED";

/// Runs this program again with `args` as process 1 of an enclosure and waits for it.
pub(crate) fn run(args: &[&str]) -> Result<ExitStatus> {
    let mut child = start(this_program(args)?.process_group(0))?;
    let _foreground = signals::foreground(child.id());
    Ok(child.wait()?)
}

/// Starts this program again with `args` as process 1 of an enclosure that outlives this process.
/// Its output goes to `log`.
pub(crate) fn start_detached(args: &[&str], log: &Path) -> Result<Child> {
    let file =
        fs::File::create(log).with_context(|| format!("{}: cannot be created", log.display()))?;
    let errors = file.try_clone().context("cannot copy a file descriptor")?;
    let mut command = this_program(args)?;
    // The child gets no process group of its own: it calls setsid(2), which fails for the leader of
    // a process group.
    start(command.arg("--detached").stdin(Stdio::null()).stdout(file).stderr(errors))
}

fn this_program(args: &[&str]) -> Result<Command> {
    let own = env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(own);
    command.args(args).env(MARK, "1");
    Ok(command)
}

fn start(command: &mut Command) -> Result<Child> {
    make_mount_points()?;
    signals::check()?;
    // The new process namespace is for our children. This process enters the new mount and network
    // namespaces, too, and does not use them.
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context(
            "cannot make namespaces: needs root with CAP_SYS_ADMIN (a container needs \
             --privileged)",
        )?;
    command.spawn().context("cannot start this program again")
}

/// Makes the mount points of the enclosure. They are made before the enclosure starts, in the file
/// system that the enclosure shares with the machine.
fn make_mount_points() -> Result<()> {
    for dir in [NETNS, DIR] {
        fs::create_dir_all(dir).with_context(|| format!("{dir}: cannot be created"))?;
    }
    Ok(())
}

/// Mounts the file systems that the enclosure needs; called inside it. `detached`: the enclosure
/// outlives the process that started it.
pub(crate) fn prepare(detached: bool) -> Result<()> {
    if env::var_os(MARK).is_none() || std::process::id() != 1 {
        bail!("'cargo xtask inside' is for 'demo' and 'lab' to call: use those");
    }
    if detached {
        nix::unistd::setsid().context("setsid failed")?;
    } else {
        // The process that waits for this one may be killed: then the enclosure must end, too.
        prctl::set_pdeathsig(Signal::SIGKILL).context("prctl failed")?;
    }
    let none = None::<&str>;
    // Mounts from here on are private to the enclosure.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("/: cannot be made private")?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), safe, none).context("/proc: cannot be mounted")?;
    // /sys/class/net shows the devices of the network namespace that it was mounted in.
    mount(Some("sysfs"), "/sys", Some("sysfs"), safe, none).context("/sys: cannot be mounted")?;
    for dir in [NETNS, DIR] {
        mount(
            Some("tmpfs"),
            dir,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=755"),
        )
        .with_context(|| format!("{dir}: cannot be mounted on"))?;
    }
    Ok(())
}

/// A command that runs `program` inside the enclosure of process `pid`, in the current directory.
pub(crate) fn enter(pid: u32, program: &OsStr) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--mount", "--pid", "--net", "--", "env", "-C"]);
    command.arg(env::current_dir().unwrap_or_else(|_| "/".into())).arg(program);
    command
}
