//! The initramfs of the emulated machine: mounts the host's files.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use crate::{process, tools};

/// Kernel modules that the guest's root file system needs.
const MODULES: [&str; 3] = ["9p", "9pnet_virtio", "overlay"];

/// The first process, in busybox's shell.
const INIT: &str = r#"#!/bin/sh
b=/bin/busybox
stop() { echo "culvert-vm: $1"; $b poweroff -f; }
$b mkdir -p /proc /dev /mem /lower /root
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module || stop "cannot load $module"; done
$b mount -t tmpfs mem /mem
$b mkdir /mem/upper /mem/work
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro root /lower ||
    stop "cannot see the host's files"
$b mount -t overlay -o lowerdir=/lower,upperdir=/mem/upper,workdir=/mem/work overlay /root ||
    stop "cannot mount an overlay on the host's files"
$b mount --move /dev /root/dev
$b mount --move /proc /root/proc
inside=$($b sed 's/.*culvert_inside=\([^ ]*\).*/\1/' /root/proc/cmdline)
exec $b switch_root /root /bin/sh $inside
"#;

/// Path of busybox, the shell and tools of the initramfs.
fn busybox() -> Result<PathBuf> {
    tools::which("busybox").context("busybox: not installed: run 'cargo xtask setup --full'")
}

/// Makes the initramfs in `dir`. Returns its path.
pub(super) fn build(kernel: &Kernel, dir: &Path) -> Result<PathBuf> {
    let root = dir.join("initramfs");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| unwritten(&root))?;
    }
    for each in ["bin", "modules"] {
        fs::create_dir_all(root.join(each)).with_context(|| unwritten(&root))?;
    }
    let busybox = busybox()?;
    put(&busybox, &root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh")).with_context(|| unwritten(&root))?;
    for library in libraries(&busybox)? {
        let Ok(inside) = library.strip_prefix("/") else { continue };
        put(&library, &root.join(inside))?;
    }
    for (number, module) in modules(kernel)?.iter().enumerate() {
        load(module, &root.join("modules"), number)?;
    }
    let init = root.join("init");
    fs::write(&init, INIT).with_context(|| unwritten(&init))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
        .with_context(|| unwritten(&init))?;

    let archive = dir.join("initramfs.cpio");
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | \"$0\" cpio -o -H newc > \"$1\""]);
    process::quiet(pack.arg(&busybox).arg(&archive).current_dir(&root))?;
    Ok(archive)
}

fn unwritten(path: &Path) -> String {
    format!("{}: cannot be written", path.display())
}

fn put(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| unwritten(dir))?;
    }
    fs::copy(from, to).with_context(|| unwritten(to)).map(drop)
}

/// The shared libraries of a program; none if it is linked statically.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = process::capture(Command::new("ldd").arg(program))?;
    // ldd fails for a static program, and names no library.
    Ok(said
        .text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// The files of the modules that are needed, in the order in which they are to be loaded.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let modprobe = tools::which("modprobe").context("modprobe: not installed: it is in kmod")?;
    // modprobe looks for lib/modules in this directory.
    let Some(base) = kernel.modules.parent().and_then(Path::parent) else {
        bail!("{}: not a directory of modules", kernel.modules.display());
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut command = Command::new(&modprobe);
        command.arg("-d").arg(base).args(["-S", &kernel.release, "--show-depends", module]);
        // A line is `insmod FILE`, or `builtin NAME` for a module that is built into the kernel.
        for line in process::quiet(&mut command)?.lines() {
            let file = line.trim().strip_prefix("insmod ").map(|rest| PathBuf::from(rest.trim()));
            files.extend(file.filter(|file| !files.contains(file)));
        }
    }
    Ok(files)
}

/// Writes an unpacked module to the directory that `init` loads: busybox does not unpack modules.
fn load(module: &Path, dir: &Path, number: usize) -> Result<()> {
    let name = module.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (stem, unpack) = match name.rsplit_once('.') {
        Some((stem, "xz")) => (stem, Some("xz")),
        Some((stem, "zst")) => (stem, Some("zstd")),
        Some((stem, "gz")) => (stem, Some("gzip")),
        _ => (name, None),
    };
    let to = dir.join(format!("{number:02}-{stem}"));
    let Some(unpack) = unpack else { return put(module, &to) };
    let mut command = Command::new("sh");
    command.args(["-c", "\"$0\" -dc \"$1\" > \"$2\"", unpack]);
    process::quiet(command.arg(module).arg(&to)).map(drop)
}
