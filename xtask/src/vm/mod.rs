//! An emulated machine: another kernel, with this machine's own files.
//!
//! The guest sees the file system of the host, read-only (9p), below a layer of its own in memory:
//! so it has the host's programs and tools, and its changes are not kept. It has only the networks
//! that it makes itself.

pub(crate) mod fetch;
mod initramfs;
pub(crate) mod kernel;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use self::kernel::Kernel;
use crate::{paths, process, tools};

/// Memory of the guest, including the files that it writes.
const MEMORY: &str = "4096";
/// A guest without output for this time hangs. Emulated, a test takes many times as long.
const SILENCE: Duration = Duration::from_secs(600);
/// The line before the script's first: earlier output is from the firmware and the kernel.
const BEGUN: &str = "culvert-vm: begun";
/// The guest's last line, with the exit code of its script behind it.
const ENDED: &str = "culvert-vm: ended ";

/// The programs of the emulator's kind of machine, by the name of the host's.
const EMULATORS: [(&str, &str); 1] = [("x86_64", "qemu-system-x86_64")];

/// Runs a shell script as root on the emulated machine, and hands each line of its output to
/// `each` as it comes.
///
/// # Errors
/// The machine cannot be started, or the script does not come to its end with exit code 0.
pub(crate) fn run(script: &str, mut each: impl FnMut(&str)) -> Result<()> {
    let arch = std::env::consts::ARCH;
    let Some((_, emulator)) = EMULATORS.iter().find(|(name, _)| *name == arch) else {
        bail!(
            "there is no emulated machine for {arch}: its kernel and tests are x86_64's, so \
             run this on an x86_64 host"
        );
    };
    let kernel = Kernel::find()?;
    let dir = paths::vm();
    fs::create_dir_all(&dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
    let initramfs = initramfs::build(&kernel, &dir)?;
    let inside = dir.join("inside.sh");
    fs::write(&inside, wrap(&kernel, script))
        .with_context(|| format!("{}: cannot be written", inside.display()))?;

    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let mut command = Command::new(tools::which(emulator).unwrap_or_else(|| emulator.into()));
    command
        // Nested virtualisation is not available everywhere, and hangs on some machines.
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", &processors.to_string(), "-m", MEMORY])
        .args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", &append(&inside)])
        .args(["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"])
        .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
    let (mut begun, mut code, mut early) = (false, None, String::new());
    let status = process::lines_watched(&mut command, Some(SILENCE), |line| {
        // A serial console ends its lines with CR LF.
        let line = line.trim_end_matches('\r');
        match line.strip_prefix(ENDED) {
            Some(rest) => code = rest.trim().parse::<i32>().ok(),
            None if begun && code.is_none() => each(line),
            // The firmware clears the screen, perhaps in this very line.
            None if line.ends_with(BEGUN) => begun = true,
            None => {
                early.push_str(line);
                early.push('\n');
            }
        }
    })?;
    match code {
        Some(0) => Ok(()),
        Some(code) => bail!("the emulated machine's script failed (exit code {code})"),
        None => bail!(
            "the emulated machine ended ({status}) before its script did: {}",
            process::last_lines(&early, 3)
        ),
    }
}

/// The kernel's command line.
fn append(inside: &Path) -> String {
    format!("console=ttyS0 quiet panic=-1 culvert_inside={}", inside.display())
}

/// What the guest's first process runs once the host's files are its root.
fn wrap(kernel: &Kernel, script: &str) -> String {
    let modules = kernel.modules.display();
    // Files of the host below a directory that a tmpfs would hide stay visible.
    let tmp = if paths::target().starts_with("/tmp") || paths::root().starts_with("/tmp") {
        ""
    } else {
        "mount -t tmpfs tmp /tmp"
    };
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
    fn the_script_s_exit_code_is_the_last_line() {
        let kernel = Kernel {
            release: "6.12".to_owned(),
            image: "/k/boot/vmlinuz-6.12".into(),
            modules: "/k/lib/modules".into(),
        };
        let script = wrap(&kernel, "exit 3");
        assert!(script.contains("mount --bind /k/lib/modules /lib/modules"), "{script}");
        assert!(script.contains("(\nexit 3\n)"), "{script}");
        assert!(append(Path::new("/t/inside.sh")).ends_with("culvert_inside=/t/inside.sh"));
    }
}
