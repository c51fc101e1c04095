//! Pins and links that other programs have removed.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
};

use super::{DIRS, Datapath, DatapathError, MAPS, PROGRAM_PINS, bpffs, links, pins};

impl Datapath {
    /// Mounts the BPF file system again, and pins the maps and programs again, where another
    /// program has unmounted it or removed pins. Returns the faults that were found, a line each.
    ///
    /// # Errors
    ///
    /// If the file system cannot be mounted, or the kernel refuses a pin.
    pub fn repair_pins(&self) -> Result<Vec<String>, DatapathError> {
        let mut found = Vec::new();
        if let Some(bpffs) = self.pins.parent()
            && !bpffs::is_mounted(bpffs)
        {
            bpffs::ensure_mounted(bpffs)?;
            found.push(format!("{}: no BPF file system was mounted there", bpffs.display()));
        }
        for dir in DIRS.map(|dir| self.pins.join(dir)) {
            if !dir.is_dir() {
                bpffs::create_dir(&dir)?;
            }
        }
        let mut keep = |object: BorrowedFd<'_>, path: PathBuf| {
            if path.exists() {
                return Ok(());
            }
            found.push(format!("{}: the pin was missing", path.display()));
            pins::pin(object, &path).map_err(|source| DatapathError::Io {
                path,
                what: "pin",
                source,
            })
        };
        for (name, map) in &self.maps {
            keep(map.as_fd(), self.pins.join(MAPS).join(name))?;
        }
        for (name, program) in self.ebpf().programs() {
            if let Ok(fd) = program.fd() {
                keep(fd.as_fd(), self.pins.join(PROGRAM_PINS).join(name))?;
            }
        }
        Ok(found)
    }

    /// Attaches programs again that another program has detached. Returns the faults that were
    /// found, a line each.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn repair_links(&self) -> Result<Vec<String>, DatapathError> {
        let dir = self.links_dir();
        let attached = self.attached().clone();
        let mut found = Vec::new();
        for (attachment, ifindex) in attached {
            if let Some(line) = links::lost(&dir, attachment, ifindex) {
                self.attach(attachment, ifindex)?;
                found.push(line);
            }
        }
        Ok(found)
    }
}
