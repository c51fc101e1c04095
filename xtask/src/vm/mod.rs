//! An emulated machine: another kernel, with this machine's own files.
//!
//! The guest sees the file system of the host, read-only (9p), below a layer of its own in memory.
//! So the guest has the host's programs and tools, and its changes are not kept. The guest has only
//! the networks that it makes itself.

pub(crate) mod fetch;
mod initramfs;
pub(crate) mod kernel;
mod steps;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use self::kernel::Kernel;
use self::steps::Steps;
use crate::{paths, process, tools};

/// Memory of the guest, bytes, including the files that it writes.
pub(crate) const MEMORY: u64 = 4 << 30;
/// A guest without output for this time hangs. Under emulation, a test takes many times as long as
/// on the host.
const SILENCE: Duration = Duration::from_secs(600);
/// The line that the guest prints before the script runs. Earlier output is from the firmware and
/// the kernel.
const BEGUN: &str = "culvert-vm: begun";
/// The guest's last line, with the exit code of its script behind it.
const ENDED: &str = "culvert-vm: ended ";

/// The architecture of the host, and the emulator's program for a machine of that architecture.
const EMULATORS: [(&str, &str); 1] = [("x86_64", "qemu-system-x86_64")];

/// The clock of the emulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The host's clock.
    Host,
    /// A clock that counts instructions, the kernel's included. Each instruction takes
    /// [`NS_PER_INSTRUCTION`], and idle time passes at once. The machine has one processor, and a
    /// second serial port at which the guest can ask for [single steps](steps).
    Instructions,
}

/// Time of an instruction on [`Clock::Instructions`], ns: 2 to the power of QEMU's `shift`.
pub(crate) const NS_PER_INSTRUCTION: u32 = 1 << SHIFT;
const SHIFT: u32 = 1;

impl Clock {
    /// QEMU's options for processors and clock.
    fn options(self) -> Vec<String> {
        let words = match self {
            // Two processors take turns on one thread of the emulator. With a thread for each, QEMU
            // 7.2 lets one processor run kernel code that the other is replacing (text_poke):
            // "Oops: int3".
            Self::Host => "-accel tcg,thread=single -cpu max -smp 2".to_owned(),
            // Without ERMS and FSRM a copy takes one instruction for 8 bytes. With them it takes
            // one instruction for each byte: QEMU counts each step of `rep movsb`.
            Self::Instructions => format!(
                "-accel tcg,thread=single -cpu max,-erms,-fsrm,-cx16 -smp 1 -icount shift={SHIFT},sleep=off"
            ),
        };
        words.split(' ').map(str::to_owned).collect()
    }
}

/// The emulator and its version, as `QEMU 7.2.22`.
pub(crate) fn emulator() -> Result<String> {
    let program = emulator_program()?;
    let said = process::quiet(Command::new(&program).arg("--version"))?;
    let version = said.lines().next().and_then(|line| line.split_whitespace().nth(3));
    Ok(format!("QEMU {}", version.unwrap_or("of an unknown version")))
}

/// The emulator's path, or its name if it is not installed.
fn emulator_program() -> Result<PathBuf> {
    let arch = std::env::consts::ARCH;
    let Some((_, emulator)) = EMULATORS.iter().find(|(name, _)| *name == arch) else {
        bail!(
            "there is no emulated machine for {arch}: its kernel and tests are x86_64's, so \
             run this on an x86_64 host"
        );
    };
    Ok(tools::which(emulator).unwrap_or_else(|| emulator.into()))
}

/// Runs a shell script as root on the emulated machine, and hands each line of its output to
/// `each` as it comes.
///
/// # Errors
/// The machine cannot be started, or the script does not end with exit code 0.
pub(crate) fn run(clock: Clock, script: &str, mut each: impl FnMut(&str)) -> Result<()> {
    run_all(clock, &[script.to_owned()], |_, line| each(line))
}

/// Runs each script like [`run`], on a machine of its own, all at once. `each` gets the number of
/// the script, from 0, and a line.
///
/// # Errors
/// The error of [`run`] for the first script that fails. The other scripts run to their end.
pub(crate) fn run_all(
    clock: Clock,
    scripts: &[String],
    mut each: impl FnMut(usize, &str),
) -> Result<()> {
    let emulator = emulator_program()?;
    let kernel = Kernel::find()?;
    let dir = paths::vm();
    fs::create_dir_all(&dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
    let _alone = lock(&dir)?;
    let initramfs = initramfs::build(&kernel, &dir)?;
    let (sender, lines) = channel();
    thread::scope(|scope| {
        let mut machines = Vec::new();
        for (number, script) in scripts.iter().enumerate() {
            let inside = dir.join(format!("inside-{number}.sh"));
            fs::write(&inside, wrap(&kernel, script))
                .with_context(|| format!("{}: cannot be written", inside.display()))?;
            let machine = Machine { emulator: &emulator, kernel: &kernel, initramfs: &initramfs };
            let sender = sender.clone();
            machines.push(scope.spawn(move || {
                // Sending does not fail: the receiver exists until every machine has ended.
                machine.run(clock, &inside, |line| drop(sender.send((number, line.to_owned()))))
            }));
        }
        drop(sender);
        for (number, line) in lines {
            each(number, &line);
        }
        machines.into_iter().try_for_each(|machine| {
            machine.join().unwrap_or_else(|_| bail!("the thread of an emulated machine panicked"))
        })
    })
}

/// The files of an emulated machine.
#[derive(Clone, Copy, Debug)]
struct Machine<'a> {
    emulator: &'a Path,
    kernel: &'a Kernel,
    initramfs: &'a Path,
}

impl Machine<'_> {
    /// Runs the script `inside` and hands each line of its output to `each` as it comes.
    fn run(self, clock: Clock, inside: &Path, mut each: impl FnMut(&str)) -> Result<()> {
        let mut command = Command::new(self.emulator);
        command
            // No KVM: it is not available in every virtual machine, and hangs on some machines.
            .args(clock.options())
            .args(["-m", &(MEMORY >> 20).to_string()])
            .args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &append(inside)])
            .args([
                "-fsdev",
                "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
            ])
            .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
        let steps = match clock {
            Clock::Host => None,
            // The path is short enough for a socket, and unique to this process.
            Clock::Instructions => {
                let name = format!("/run/culvert-vm-{}", std::process::id());
                Some(Steps::start(PathBuf::from(name))?)
            }
        };
        command.args(steps.as_ref().map(Steps::options).unwrap_or_default());
        let (mut begun, mut code, mut early) = (false, None, String::new());
        let status = process::lines_watched(&mut command, Some(SILENCE), |line| {
            // A serial console ends its lines with CR LF.
            let line = line.trim_end_matches('\r');
            match line.strip_prefix(ENDED) {
                Some(rest) => code = rest.trim().parse::<i32>().ok(),
                // The emulator prints this line each time the guest is idle.
                None if line.ends_with("icount sleep disabled and no active timers") => {}
                None if begun && code.is_none() => each(line),
                // The codes by which the firmware clears the screen may be in the same line.
                None if line.ends_with(BEGUN) => begun = true,
                None => {
                    early.push_str(line);
                    early.push('\n');
                }
            }
        })?;
        // An error of the single steps is reported first: it is the cause of the guest's failure.
        steps.map_or(Ok(()), Steps::end)?;
        match code {
            Some(0) => Ok(()),
            Some(code) => bail!("the emulated machine's script failed (exit code {code})"),
            None => bail!(
                "the emulated machine ended ({status}) before its script did: {}",
                process::last_lines(&early, 3)
            ),
        }
    }
}

/// Locks the files of the machine against other runs, until the result is dropped.
fn lock(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join("lock");
    let file =
        File::create(&path).with_context(|| format!("{}: cannot be made", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EAGAIN => {
            anyhow!("another emulated machine of this work tree runs: wait for its end")
        }
        errno => anyhow!("{}: cannot be locked: {errno}", path.display()),
    })
}

/// A text as one quoted word of a shell.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The kernel's command line.
fn append(inside: &Path) -> String {
    format!("console=ttyS0 quiet panic=-1 culvert_inside={}", inside.display())
}

/// The shell script that the guest's first process runs once the host's files are its root.
fn wrap(kernel: &Kernel, script: &str) -> String {
    let modules = kernel.modules.display();
    // A tmpfs on /tmp would hide the build output or the repository if they are below /tmp.
    let tmp = if paths::target().starts_with("/tmp") || paths::root().starts_with("/tmp") {
        ""
    } else {
        "mount -t tmpfs tmp /tmp"
    };
    // `modprobe tun` makes the device node /dev/net/tun. Without udev there is no node before, and
    // only the node lets other programs load the module.
    format!(
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb\n\
         mkdir -p /lib/modules\n\
         mount --bind {modules} /lib/modules\n\
         mount -t sysfs sys /sys\n\
         mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         mount -t tmpfs run /run\n\
         {tmp}\n\
         mkdir -p /run/netns /dev/shm /dev/pts\n\
         mount -t devpts pts /dev/pts\n\
         modprobe tun\n\
         ip link set lo up\n\
         echo \"{BEGUN}\"\n\
         (\n{script}\n) </dev/null\n\
         echo \"{ENDED}$?\"\n\
         busybox poweroff -f\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_instructions_has_one_processor_and_does_not_sleep() {
        let options = Clock::Instructions.options().join(" ");
        assert!(options.contains("thread=single"), "{options}");
        assert!(options.ends_with("-smp 1 -icount shift=1,sleep=off"), "{options}");
        assert_eq!(NS_PER_INSTRUCTION, 2);
    }

    #[test]
    fn the_script_s_exit_code_is_the_last_line() {
        let kernel = Kernel {
            release: "6.12".to_owned(),
            image: "/k/boot/vmlinuz-6.12".into(),
            modules: "/k/lib/modules".into(),
        };
        let script = wrap(&kernel, "exit 3");
        assert!(script.contains("mount --bind /k/lib/modules /lib/modules"), "{script}");
        assert!(script.contains("(\nexit 3\n)"), "{script}");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert!(append(Path::new("/t/inside.sh")).ends_with("culvert_inside=/t/inside.sh"));
    }
}
