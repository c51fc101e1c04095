//! Pins and links that other programs have removed or replaced.
//!
//! The kernel has no event for either: the agent looks for them at fixed times.

use std::{
    collections::BTreeMap,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use super::{
    DIRS, Datapath, MAPS, PROGRAM_PINS, attached::WRONG_PIN, bpffs, error::DatapathError,
    found::Repaired, links::Attachment, pins,
};

/// How pins are compared with what was pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinCheck {
    /// Each pin is there. One whose file is not the one that was last compared with the object is
    /// opened: another program has put it there.
    Files,
    /// Each pin leads to its object. This opens each pin.
    Objects,
}

impl Datapath {
    /// Mounts the BPF file system again, and pins the maps and programs again, where another
    /// program has unmounted it, or removed or replaced pins.
    pub fn repair_pins(&self, check: PinCheck) -> Repaired {
        let mut repaired = Repaired::default();
        if let Err(error) = self.keep_file_system(&mut repaired) {
            repaired.fail(error);
            return repaired;
        }
        let mut keep = |object: BorrowedFd<'_>, path: PathBuf| {
            let inode = path.symlink_metadata().ok().map(|file| file.ino());
            let fault = match self.keep_pin(object, &path, inode, check) {
                Ok(Pin::Right) => return,
                Ok(Pin::Missing) => "was missing",
                Ok(Pin::Wrong) => "led to another object",
                Err(error) => return repaired.fail(error),
            };
            repaired.found.note(path.display().to_string(), fault);
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

    /// Attaches programs again that another program has detached or replaced, and pins links again
    /// whose pins another program has removed or replaced. The result also has what was put right
    /// since the last call because the program had to be attached. A program whose link has lost its
    /// pin has been attached all the time.
    pub fn repair_links(&self, check: PinCheck) -> Repaired {
        let mut repaired = Repaired::default();
        // One look at the directory for all links: a host has thousands.
        match bpffs::inodes(&self.links_dir()) {
            Ok(pinned) => {
                let held: Vec<_> = self.held().keys().copied().collect();
                for (attachment, ifindex) in held {
                    if let Err(error) = self.repair_link(attachment, ifindex, &pinned, check) {
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
        pinned: &BTreeMap<PathBuf, u64>,
        check: PinCheck,
    ) -> Result<(), DatapathError> {
        if !self.keeps(attachment, ifindex)? {
            // A link of an interface that is gone is removed together with what the interface was
            // for.
            let is_gone = nix::net::if_::if_indextoname(ifindex).is_err();
            return if is_gone { Ok(()) } else { self.attach(attachment, ifindex) };
        }
        let held = self.held();
        let Some(link) = held.get(&(attachment, ifindex)) else { return Ok(()) };
        let path = attachment.pin(&self.links_dir(), ifindex);
        let inode = pinned.get(&path).copied();
        let fault = match self.keep_pin(link.as_fd(), &path, inode, check)? {
            Pin::Right => return Ok(()),
            Pin::Missing => "had lost its pin",
            Pin::Wrong => WRONG_PIN,
        };
        self.note(attachment.describe(ifindex), fault);
        Ok(())
    }

    /// Pins an object again if its pin is missing, or leads to another object. `inode` is the inode
    /// number of what has the path of the pin.
    fn keep_pin(
        &self,
        object: BorrowedFd<'_>,
        path: &Path,
        inode: Option<u64>,
        check: PinCheck,
    ) -> Result<Pin, DatapathError> {
        let found = match inode {
            None => Pin::Missing,
            Some(inode) if check == PinCheck::Files && self.files().get(path) == Some(&inode) => {
                return Ok(Pin::Right);
            }
            Some(inode) => {
                let leads = pins::leads_to(path, object);
                if leads.map_err(|source| pins::cannot_open(path, source))? {
                    self.files().insert(path.to_owned(), inode);
                    return Ok(Pin::Right);
                }
                bpffs::remove_file(path)?;
                Pin::Wrong
            }
        };
        self.files().remove(path);
        let failed = |source| DatapathError::Io { path: path.to_owned(), what: "pin", source };
        pins::pin(object, path).map_err(failed)?;
        Ok(found)
    }
}

/// State in which a pin was found.
enum Pin {
    Right,
    Missing,
    /// Another object was pinned there.
    Wrong,
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use aya::programs::{SchedClassifier, TcAttachType};
    use culvert_common::abi::programs;

    use super::*;
    use crate::{
        datapath::{Options, link, links},
        testing::in_namespaces,
    };

    const UPLINK: &str = "up0";

    /// Runs a test in namespaces of its own, with the options of a data plane, and with the
    /// interface index of [`UPLINK`].
    fn with_an_uplink(test: impl FnOnce(&Options, u32) + Send) {
        in_namespaces(|dir| {
            let options = Options { bpffs: dir.join("bpf"), ..Options::of_a_test() };
            let mut make = Command::new("ip");
            make.args(["link", "add", UPLINK, "type", "bridge"]);
            assert!(make.status().unwrap().success());
            test(&options, nix::net::if_::if_nametoindex(UPLINK).unwrap());
        });
    }

    /// Names of the programs at the ingress of [`UPLINK`].
    fn attached() -> Vec<String> {
        let (_, programs) = SchedClassifier::query_tcx(UPLINK, TcAttachType::Ingress).unwrap();
        programs.iter().map(|program| program.name_as_str().unwrap().to_owned()).collect()
    }

    fn found(repaired: &Repaired) -> Vec<String> {
        assert_eq!(repaired.failed, None);
        repaired.found.lines().into_iter().map(|(_, line)| line).collect()
    }

    /// Another program puts a program of its own under a link, without detaching the link.
    #[test]
    #[ignore = "needs root"]
    fn a_program_that_was_exchanged_is_put_back() {
        with_an_uplink(|options, ifindex| {
            let datapath = Datapath::load(options).unwrap();
            datapath.attach_uplink(ifindex).unwrap();
            let exchange = || {
                let pinned = pins::open(&Attachment::Uplink.pin(&datapath.links_dir(), ifindex));
                let ebpf = datapath.ebpf();
                let other = ebpf.program(programs::FROM_CLIENT).unwrap().fd().unwrap();
                link::update(pinned.unwrap().as_fd(), other.as_fd()).unwrap();
            };
            exchange();
            assert_eq!(attached(), ["from_client"]);
            let repaired = datapath.repair_links(PinCheck::Files);
            assert_eq!(found(&repaired), ["from_underlay on up0 had another program"]);
            assert_eq!(attached(), ["from_underlay"]);
            // So does an attachment.
            exchange();
            datapath.attach_uplink(ifindex).unwrap();
            assert_eq!(attached(), ["from_underlay"]);
            let repaired = datapath.repair_links(PinCheck::Files);
            assert_eq!(found(&repaired), ["from_underlay on up0 had another program"]);
        });
    }

    /// Another program pins an object of its own at the path of a pin.
    #[test]
    #[ignore = "needs root"]
    fn a_pin_of_another_object_is_made_again() {
        with_an_uplink(|options, ifindex| {
            let datapath = Datapath::load(options).unwrap();
            datapath.attach_uplink(ifindex).unwrap();
            let maps = datapath.pins.join(MAPS);
            let pin = Attachment::Uplink.pin(&datapath.links_dir(), ifindex);
            let network = maps.join("NETWORKS");
            let are_right = |check| {
                assert_eq!(datapath.repair_links(check), Repaired::default());
                assert_eq!(datapath.repair_pins(check), Repaired::default());
                let inode = |path: &Path| Some(fs::symlink_metadata(path).unwrap().ino());
                for path in [&pin, &network] {
                    assert_eq!(datapath.files().get(path).copied(), inode(path));
                }
            };
            // The first look at a pin opens it, whatever the check.
            for check in [PinCheck::Files, PinCheck::Objects] {
                are_right(check);
                for (path, object) in [(&pin, "FDB"), (&network, "VTEPS")] {
                    fs::remove_file(path).unwrap();
                    fs::hard_link(maps.join(object), path).unwrap();
                }
                let links = datapath.repair_links(check);
                assert_eq!(found(&links), [format!("from_underlay on up0 {WRONG_PIN}")]);
                let lines = found(&datapath.repair_pins(check));
                assert_eq!(lines.len(), 1, "{lines:?}");
                assert!(lines[0].ends_with("maps/NETWORKS led to another object"), "{lines:?}");
            }
            are_right(PinCheck::Files);
            let info = links::info(pins::open(&pin).unwrap().as_fd(), ifindex).unwrap();
            assert_eq!(pins::ifindex_of(&info), Some(ifindex));
            assert_eq!(attached(), ["from_underlay"]);
        });
    }

    /// A wrong pin neither stops the start, nor is it taken for the link of the interface.
    #[test]
    #[ignore = "needs root"]
    fn the_next_agent_removes_wrong_pins() {
        with_an_uplink(|options, ifindex| {
            let datapath = Datapath::load(options).unwrap();
            datapath.attach_uplink(ifindex).unwrap();
            let (maps, links) = (datapath.pins.join(MAPS), datapath.links_dir());
            drop(datapath);
            let pin = Attachment::Uplink.pin(&links, ifindex);
            let moved = Attachment::Uplink.pin(&links, ifindex + 1);
            let map = Attachment::Container.pin(&links, ifindex);
            fs::rename(&pin, &moved).unwrap();
            fs::hard_link(maps.join("FDB"), &map).unwrap();

            let datapath = Datapath::load(options).unwrap();
            assert!(!moved.exists() && !map.exists());
            datapath.attach_uplink(ifindex).unwrap();
            assert_eq!(attached(), ["from_underlay"]);
            let repaired = datapath.repair_links(PinCheck::Files);
            let lines = found(&repaired);
            assert!(lines[0].starts_with(&format!("{WRONG_PIN}, 2 times: ")), "{lines:?}");
        });
    }

    /// A directory at the path of a pin is not removed. The error names its path.
    #[test]
    #[ignore = "needs root"]
    fn a_directory_in_place_of_a_pin_is_named() {
        with_an_uplink(|options, ifindex| {
            let datapath = Datapath::load(options).unwrap();
            let path = Attachment::Container.pin(&datapath.links_dir(), ifindex);
            fs::create_dir(&path).unwrap();
            let error = datapath.attach(Attachment::Container, ifindex).unwrap_err().to_string();
            drop(datapath);
            let at_start = Datapath::load(options).unwrap_err().to_string();
            for line in [error, at_start] {
                let words =
                    format!("{}: no BPF object is pinned here, remove it: ", path.display());
                assert!(line.starts_with(&words) && line.lines().count() == 1, "{line}");
            }
            fs::remove_dir(&path).unwrap();
            Datapath::load(options).unwrap();
        });
    }
}
