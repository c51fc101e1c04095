//! The limits of the agent's own system calls: a seccomp filter (seccomp(2)) and `no_new_privs`
//! (prctl(2)).
//!
//! Both also hold for the programs that a process starts, and cannot be taken back. The commands of
//! containers have neither: the starter starts their supervisors, a process that the agent starts
//! before it limits itself ([`sandbox::start_starter`]). The programs that list netfilter's rules
//! have both: the agent itself starts them.
//!
//! The filter names the system calls that are refused (ADR 0024). All others are permitted.

use std::{
    collections::BTreeMap,
    env::consts::ARCH,
    sync::{Arc, Once, OnceLock},
};

use nix::libc::{self, c_int, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use super::{capabilities, shared::Shared};
use crate::{config::SeccompMode, sandbox};

/// System calls that neither the agent nor a program that it starts needs.
const REFUSED: &[c_long] = &[
    // Loading of kernels and modules, and reboot.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    // The memory, files and execution of other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The clock.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // Interfaces that have often had faults.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Opening of files without the checks of a path, and changes of the root.
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    // Other settings of the host.
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    // Compatibility with other systems, and real-time scheduling.
    libc::SYS_personality,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
];

/// Further ones, which only this architecture has: I/O ports, segments, libraries of a.out.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[c_long] =
    &[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[c_long] = &[];

/// A kernel with the ABI x32 has each system call of x86-64 a second time. x32 calls have this bit;
/// seccomp reports them as x86-64 (seccomp(2), "Caveats").
#[cfg(target_arch = "x86_64")]
const X32: c_long = 0x4000_0000;

/// Refused system calls that have another number in x32: ptrace, kexec_load, process_vm_readv,
/// process_vm_writev (arch/x86/entry/syscalls/syscall_64.tbl).
#[cfg(target_arch = "x86_64")]
const REFUSED_IN_X32: [c_long; 4] = [521, 528, 539, 540];

/// Families of the sockets that the agent and its programs open. Others are refused.
const FAMILIES: [c_int; 5] =
    [libc::AF_UNIX, libc::AF_NETLINK, libc::AF_INET, libc::AF_INET6, libc::AF_PACKET];

/// Result of [`confine`], kept until logging is set up.
static DONE: OnceLock<Confinement> = OnceLock::new();

/// Whether the agent has limited its system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Confinement {
    /// `--seccomp off`.
    Off,
    /// The filter and `no_new_privs`.
    On,
    /// `--seccomp on`, but the limits could not be set: the reason.
    Failed(String),
}

/// Gives up what this process does not need: capabilities and, with [`SeccompMode::On`], system
/// calls. In that mode, starts the starter first. Must be called while the process has one thread:
/// the limits belong to threads, and new ones inherit them.
pub fn confine(mode: SeccompMode) {
    let started = match mode {
        SeccompMode::On => Some(sandbox::start_starter()),
        SeccompMode::Off => None,
    };
    capabilities::give_up();
    let done = match started {
        None => Confinement::Off,
        // Commands that are started again would have the limits.
        Some(Err(error)) => {
            Confinement::Failed(format!("the starter process does not start: {error}"))
        }
        Some(Ok(())) => match limit_thread() {
            Ok(()) => Confinement::On,
            Err(error) => Confinement::Failed(error.to_string()),
        },
    };
    let _ = DONE.set(done);
}

/// Writes the result of [`confine`] to the log, if it was called.
fn tell() {
    match DONE.get() {
        None | Some(Confinement::Failed(_)) => {}
        Some(Confinement::On) => {
            let number = REFUSED.len() + REFUSED_HERE.len();
            tracing::info!("system calls: {number} are refused to the agent, with no_new_privs");
        }
        Some(Confinement::Off) => tracing::info!("system calls: the agent's are not limited"),
    }
}

/// Tells the limits in the log, once in the life of the process. Keeps the problems in `status`: the
/// agent is not limited, or its starter has ended.
pub(super) async fn keep(shared: Arc<Shared>) {
    // An agent that starts anew at another address has the same limits.
    static TOLD: Once = Once::new();
    TOLD.call_once(tell);
    let problems = &shared.shown.problems;
    if let Some(Confinement::Failed(why)) = DONE.get() {
        let line = format!(
            "system calls: the agent's are not limited: {why}; to start the agent without the limit, give --seccomp off"
        );
        problems.set("seccomp", Some(line));
    }
    let Some(ended) = sandbox::follow_starter() else { return };
    tokio::select! {
        () = shared.ending.shutdown.cancelled() => {}
        () = ended => {
            let line = "starter: the process that starts commands again has ended, so none is started again: restart the agent";
            problems.set("starter", Some(line.to_owned()));
        }
    }
}

/// Sets the filter and `no_new_privs` for the calling thread. Threads and programs that it starts
/// inherit both.
fn limit_thread() -> Result<(), seccompiler::Error> {
    // Sets `no_new_privs`, too.
    apply_filter(&filter()?)
}

/// The filter. Refused calls fail with `EPERM`, as those of Docker's profile do.
fn filter() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().chain(REFUSED_HERE).map(|number| (*number, Vec::new())).collect();
    let is_no_family = FAMILIES.iter().map(|family| {
        let family = u64::from(family.unsigned_abs());
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    });
    let is_no_family = is_no_family.collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(is_no_family)?]);
    #[cfg(target_arch = "x86_64")]
    {
        let of_x32: Vec<_> =
            rules.iter().map(|(number, chain)| (number | X32, chain.clone())).collect();
        rules.extend(of_x32);
        rules.extend(REFUSED_IN_X32.map(|number| (number | X32, Vec::new())));
    }
    let refusal = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let architecture = TargetArch::try_from(ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Allow, refusal, architecture)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::{fs, io, net::UdpSocket, process::Command, thread};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::*;

    /// The lines of a status (proc(5)) about `no_new_privs` and seccomp.
    fn limits(status: &str) -> Vec<String> {
        let names = ["NoNewPrivs:", "Seccomp:"];
        let is_meant = |line: &&str| names.iter().any(|name| line.starts_with(name));
        status.lines().filter(is_meant).map(str::to_owned).collect()
    }

    fn of_this_thread() -> Vec<String> {
        limits(&fs::read_to_string("/proc/thread-self/status").unwrap())
    }

    /// Asks for the thread's personality by this number, which changes nothing (personality(2)).
    fn personality(number: c_long) -> io::Result<c_long> {
        // SAFETY: the call has no pointer among its arguments.
        let answer = unsafe { libc::syscall(number, 0xffff_ffff_u64) };
        if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    }

    fn is_refused<T>(answer: io::Result<T>) -> bool {
        answer.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
    }

    /// On a thread of its own: the other tests go on without the filter.
    #[test]
    fn the_filter_refuses_and_its_programs_have_it() {
        let before = of_this_thread();
        let limited = || {
            assert!(personality(libc::SYS_personality).is_ok());
            limit_thread().unwrap();
            assert_eq!(of_this_thread(), ["NoNewPrivs:\t1", "Seccomp:\t2"]);
            assert!(is_refused(personality(libc::SYS_personality)));
            #[cfg(target_arch = "x86_64")]
            assert!(is_refused(personality(libc::SYS_personality | X32)));

            // What the agent does still succeeds.
            assert!(UdpSocket::bind("127.0.0.1:0").is_ok());
            for (family, is_permitted) in [
                (AddressFamily::Unix, true),
                (AddressFamily::Inet6, true),
                (AddressFamily::Vsock, false),
                (AddressFamily::Alg, false),
            ] {
                let opened = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
                let refused = is_refused(opened.map_err(io::Error::from));
                assert_eq!(!refused, is_permitted, "{family:?}");
            }
            assert!(
                thread::spawn(|| is_refused(personality(libc::SYS_personality))).join().unwrap()
            );
            let program = Command::new("cat").arg("/proc/self/status").output().unwrap();
            let status = String::from_utf8(program.stdout).unwrap();
            assert_eq!(limits(&status), ["NoNewPrivs:\t1", "Seccomp:\t2"]);
        };
        thread::spawn(limited).join().unwrap();
        assert_eq!(of_this_thread(), before);
    }

    #[test]
    fn each_call_is_refused_once() {
        let mut numbers: Vec<_> = REFUSED.iter().chain(REFUSED_HERE).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), REFUSED.len() + REFUSED_HERE.len());
        // Without them there would be no agent.
        for needed in [libc::SYS_bpf, libc::SYS_mount, libc::SYS_setns, libc::SYS_execve] {
            assert!(!numbers.contains(&&needed), "{needed}");
        }
        assert!(filter().is_ok());
    }
}
