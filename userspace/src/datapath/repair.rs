//! Pins and links that other programs have removed.
//!
//! The kernel has no event for either: the agent looks for them at fixed times.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
};

use super::{
    DIRS, Datapath, MAPS, PROGRAM_PINS, bpffs, error::DatapathError, found::Repaired,
    links::Attachment, pins,
};

impl Datapath {
    /// Mounts the BPF file system again, and pins the maps and programs again, where another
    /// program has unmounted it or removed pins.
    pub fn repair_pins(&self) -> Repaired {
        let mut repaired = Repaired::default();
        if let Err(error) = self.keep_file_system(&mut repaired) {
            repaired.fail(error);
            return repaired;
        }
        let mut keep = |object: BorrowedFd<'_>, path: PathBuf| {
            if path.exists() {
                return;
            }
            match pins::pin(object, &path) {
                Ok(()) => repaired.found.note(path.display().to_string(), "was missing"),
                Err(source) => repaired.fail(DatapathError::Io { path, what: "pin", source }),
            }
        };
        for (name, map) in &self.maps {
            keep(map.as_fd(), self.pins.join(MAPS).join(name));
        }
        for (name, program) in self.ebpf().programs() {
            if let Ok(fd) = program.fd() {
                keep(fd.as_fd(), self.pins.join(PROGRAM_PINS).join(name));
            }
        }
        repaired
    }

    /// Mounts the BPF file system and makes the directories of the pins, where they are missing.
    fn keep_file_system(&self, repaired: &mut Repaired) -> Result<(), DatapathError> {
        if let Some(bpffs) = self.pins.parent()
            && !bpffs::is_mounted(bpffs)
        {
            bpffs::ensure_mounted(bpffs)?;
            repaired.found.note(bpffs.display().to_string(), "had no BPF file system");
        }
        for dir in DIRS.map(|dir| self.pins.join(dir)) {
            if !dir.is_dir() {
                bpffs::create_dir(&dir)?;
            }
        }
        Ok(())
    }

    /// Attaches programs again that another program has detached, and pins links again whose pins
    /// another program has removed. The result also has what was put right since the last call
    /// because the program had to be attached. A program whose link has lost its pin has been
    /// attached all the time.
    pub fn repair_links(&self) -> Repaired {
        let mut repaired = Repaired::default();
        // One look at the directory for all links: a host has thousands.
        match bpffs::list(&self.links_dir()) {
            Ok(pinned) => {
                let pinned: BTreeSet<PathBuf> = pinned.into_iter().collect();
                let held: Vec<_> = self.held().keys().copied().collect();
                for (attachment, ifindex) in held {
                    if let Err(error) = self.repair_link(attachment, ifindex, &pinned) {
                        repaired.fail(error);
                    }
                }
            }
            Err(error) => repaired.fail(error),
        }
        repaired.found = std::mem::take(&mut *self.found());
        repaired
    }

    fn repair_link(
        &self,
        attachment: Attachment,
        ifindex: u32,
        pinned: &BTreeSet<PathBuf>,
    ) -> Result<(), DatapathError> {
        if !self.keeps(attachment, ifindex)? {
            // A link of an interface that is gone is removed together with what the interface was
            // for.
            let is_gone = nix::net::if_::if_indextoname(ifindex).is_err();
            return if is_gone { Ok(()) } else { self.attach(attachment, ifindex) };
        }
        if pinned.contains(&attachment.pin(&self.links_dir(), ifindex)) {
            return Ok(());
        }
        self.pin_again(attachment, ifindex)
    }
}
