//! The programs on interfaces: attach, hold, detach.
//!
//! An attachment is a BPF link. It is pinned, so that the program stays attached when the agent
//! ends. The agent also holds the link open, so that the program stays attached when another
//! program removes the pin.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{MutexGuard, PoisonError},
};

use super::{
    Datapath, LINKS, bpffs,
    error::DatapathError,
    found::Changes,
    links::{self, Attachment, HeldLinks, Pinned},
    loopback_ifindex, pins,
};
use crate::netlink::{Framing, PairKind};

/// Fault of an attachment at whose pin there was another object.
pub(super) const WRONG_PIN: &str = "had another object at its pin";

impl Datapath {
    /// Attaches `from_container` to the host side of a container's device pair, and for a netkit
    /// pair also to the container's side. The host side needs it for held fragments, which
    /// the programs inject there and which have not been checked yet. It is no error if the
    /// program is attached.
    ///
    /// # Errors
    ///
    /// If there is no such interface or the kernel refuses.
    pub fn attach_container(&self, ifindex: u32, kind: PairKind) -> Result<(), DatapathError> {
        self.attach(Attachment::Container, ifindex)?;
        match kind {
            PairKind::Veth => Ok(()),
            PairKind::Netkit => self.attach(Attachment::Netkit, ifindex),
        }
    }

    /// Detaches `from_container` from both sides of a container's device pair.
    ///
    /// # Errors
    ///
    /// If the pin cannot be removed.
    pub fn detach_container(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.detach(Attachment::Netkit, ifindex)?;
        self.detach(Attachment::Container, ifindex)
    }

    /// Interfaces that `from_container` was attached to and not detached from.
    /// The interface itself may be gone.
    ///
    /// # Errors
    ///
    /// If the pins cannot be listed.
    pub fn attached_containers(&self) -> Result<Vec<u32>, DatapathError> {
        let mut attached = self.attached(Attachment::Container)?;
        attached.extend(self.attached(Attachment::Netkit)?);
        Ok(attached.into_iter().collect())
    }

    /// Attaches `from_underlay` to an uplink. It is no error if it is attached.
    ///
    /// # Errors
    ///
    /// If there is no such interface or the kernel refuses.
    pub fn attach_uplink(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach(Attachment::Uplink, ifindex)
    }

    /// Attaches `to_underlay` to an uplink. With [`GUARDED`](culvert_common::abi::UplinkInfo::GUARDED) it drops VXLAN of programs of
    /// earlier versions, which do not mark it. It is no error if it is attached.
    ///
    /// # Errors
    ///
    /// If there is no such interface or the kernel refuses.
    pub fn attach_uplink_out(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach(Attachment::UplinkOut, ifindex)
    }

    /// Detaches `from_underlay`, `from_underlay_xdp` and `to_underlay` from an uplink.
    ///
    /// # Errors
    ///
    /// If the pin cannot be removed.
    pub fn detach_uplink(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.detach(Attachment::UplinkXdp, ifindex)?;
        self.detach(Attachment::UplinkOut, ifindex)?;
        self.detach(Attachment::Uplink, ifindex)
    }

    /// Attaches `from_underlay_xdp` to an uplink in the driver's own XDP mode,
    /// besides `from_underlay`.
    ///
    /// # Errors
    ///
    /// If the driver has no XDP or the kernel refuses.
    pub fn attach_uplink_xdp(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach(Attachment::UplinkXdp, ifindex)
    }

    /// Uplinks that `to_underlay` is attached to.
    ///
    /// # Errors
    ///
    /// If the pins cannot be listed.
    pub fn attached_uplinks_out(&self) -> Result<Vec<u32>, DatapathError> {
        Ok(self.attached(Attachment::UplinkOut)?.into_iter().collect())
    }

    /// Uplinks that `from_underlay` is attached to.
    ///
    /// # Errors
    ///
    /// If the pins cannot be listed.
    pub fn attached_uplinks(&self) -> Result<Vec<u32>, DatapathError> {
        Ok(self.attached(Attachment::Uplink)?.into_iter().collect())
    }

    /// Attaches `from_client`, or `from_client_l3` where the packets begin with the IP header, to a
    /// client link. It is no error if it is attached.
    ///
    /// # Errors
    ///
    /// If there is no such interface or the kernel refuses.
    pub fn attach_client(&self, ifindex: u32, framing: Framing) -> Result<(), DatapathError> {
        self.attach(
            match framing {
                Framing::Ethernet => Attachment::Client,
                Framing::Ip => Attachment::ClientL3,
            },
            ifindex,
        )
    }

    /// Detaches `from_client` and `from_client_l3` from a client link.
    ///
    /// # Errors
    ///
    /// If the pin cannot be removed.
    pub fn detach_client(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.detach(Attachment::ClientL3, ifindex)?;
        self.detach(Attachment::Client, ifindex)
    }

    /// Client links that `from_client` or `from_client_l3` was attached to and not detached from.
    /// The interface itself may be gone.
    ///
    /// # Errors
    ///
    /// If the pins cannot be listed.
    pub fn attached_clients(&self) -> Result<Vec<u32>, DatapathError> {
        let mut attached = self.attached(Attachment::Client)?;
        attached.extend(self.attached(Attachment::ClientL3)?);
        Ok(attached.into_iter().collect())
    }

    /// Attaches `from_host` to a gateway device. It is no error if it is attached.
    ///
    /// # Errors
    ///
    /// If there is no such interface or the kernel refuses.
    pub fn attach_gateway(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach(Attachment::Gateway, ifindex)
    }

    /// Detaches `from_host` from a gateway device.
    ///
    /// # Errors
    ///
    /// If the pin cannot be removed.
    pub fn detach_gateway(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.detach(Attachment::Gateway, ifindex)
    }

    /// Gateway devices that `from_host` was attached to and not detached from. The device itself may
    /// be gone.
    ///
    /// # Errors
    ///
    /// If the pins cannot be listed.
    pub fn attached_gateways(&self) -> Result<Vec<u32>, DatapathError> {
        Ok(self.attached(Attachment::Gateway)?.into_iter().collect())
    }

    /// Attaches `from_loopback` to the loopback device. It is no error if it is
    /// attached.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn attach_loopback(&self) -> Result<(), DatapathError> {
        self.attach(Attachment::Loopback, loopback_ifindex())
    }

    /// Detaches `from_loopback` from the loopback device. It is no error if it is not attached.
    ///
    /// # Errors
    ///
    /// If the pin cannot be removed.
    pub fn detach_loopback(&self) -> Result<(), DatapathError> {
        self.detach(Attachment::Loopback, loopback_ifindex())
    }

    /// Detaches all that this process has attached. The pins stay: [`Self::purge`] removes them.
    ///
    /// # Errors
    ///
    /// If the kernel refuses. The other programs are detached nevertheless.
    pub fn release(&self) -> Result<(), DatapathError> {
        let held = std::mem::take(&mut *self.held());
        let mut outcome = Ok(());
        for ((_, ifindex), link) in held {
            outcome = outcome.and(links::detach(link.as_fd(), ifindex));
        }
        outcome
    }

    /// Replaces the programs of the links that the last agent pinned by the programs of this build.
    pub(super) fn replace_programs(&self) -> Result<(), DatapathError> {
        let dir = self.links_dir();
        for &attachment in Attachment::ALL {
            for ifindex in links::pinned(&dir, attachment)? {
                if let Some(link) = self.adopt(attachment, ifindex)? {
                    self.held().insert((attachment, ifindex), link);
                }
            }
        }
        Ok(())
    }

    /// The pinned link of an attachment, with the loaded program. Another object that is pinned in
    /// its place loses that pin, which is noted.
    fn adopt(
        &self,
        attachment: Attachment,
        ifindex: u32,
    ) -> Result<Option<OwnedFd>, DatapathError> {
        let pinned = links::replace(&self.ebpf(), &self.links_dir(), attachment, ifindex)?;
        match pinned {
            Pinned::Link(link) => Ok(Some(link)),
            Pinned::Nothing => Ok(None),
            Pinned::Other => {
                self.note(attachment.describe(ifindex), WRONG_PIN);
                Ok(None)
            }
        }
    }

    /// Attaches a program unless it is attached. Notes it if another program had detached it.
    pub(super) fn attach(&self, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError> {
        if self.keeps(attachment, ifindex)? {
            return Ok(());
        }
        let link = match self.adopt(attachment, ifindex)? {
            Some(link) => link,
            None => links::attach(&self.ebpf(), &self.links_dir(), attachment, ifindex)?,
        };
        if self.held().insert((attachment, ifindex), link).is_some() {
            self.note(attachment.describe(ifindex), "was detached");
        }
        Ok(())
    }

    /// Whether this process has attached a program that still is attached. If another program is
    /// attached by its link, it is put back, which is noted. The link may have lost its pin: the
    /// program stays attached without it as long as this process holds the link, and
    /// [`Self::repair_links`] pins the link again.
    pub(super) fn keeps(
        &self,
        attachment: Attachment,
        ifindex: u32,
    ) -> Result<bool, DatapathError> {
        let info = match self.held().get(&(attachment, ifindex)) {
            Some(link) => links::info(link.as_fd(), ifindex)?,
            None => return Ok(false),
        };
        if pins::ifindex_of(&info) != Some(ifindex) {
            return Ok(false);
        }
        if self.program_ids.get(&attachment) == Some(&info.prog_id) {
            return Ok(true);
        }
        self.put_program_back(attachment, ifindex)
    }

    /// Replaces the program of a held link by the loaded one, and notes it. Returns whether the link
    /// attaches it.
    fn put_program_back(
        &self,
        attachment: Attachment,
        ifindex: u32,
    ) -> Result<bool, DatapathError> {
        // Code that needs both locks takes them in this order.
        let ebpf = self.ebpf();
        let held = self.held();
        let Some(link) = held.get(&(attachment, ifindex)) else { return Ok(false) };
        let is_attached = links::update(&ebpf, link.as_fd(), attachment, ifindex)?;
        if is_attached {
            self.note(attachment.describe(ifindex), "had another program");
        }
        Ok(is_attached)
    }

    fn detach(&self, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError> {
        let held = self.held().remove(&(attachment, ifindex));
        // To remove the pin and close the descriptor may not be enough: an agent that has started
        // anew has another descriptor until the last thread of its former run has ended.
        let detached = held.map_or(Ok(()), |link| links::detach(link.as_fd(), ifindex));
        let pin = attachment.pin(&self.links_dir(), ifindex);
        self.files().remove(&pin);
        bpffs::remove_file(&pin)?;
        detached
    }

    /// Interfaces that a program is attached to: by a pinned link, which may be of a former agent,
    /// or by a link that this process holds.
    fn attached(&self, attachment: Attachment) -> Result<BTreeSet<u32>, DatapathError> {
        let pinned = links::pinned(&self.links_dir(), attachment)?;
        let mut attached: BTreeSet<u32> = pinned.into_iter().collect();
        let held = self.held();
        let held = held.keys().filter(|(of, _)| *of == attachment);
        attached.extend(held.map(|(_, ifindex)| *ifindex));
        Ok(attached)
    }

    /// The identifiers of the links that this process holds.
    pub(super) fn link_ids(&self) -> BTreeSet<u32> {
        let held = self.held();
        let infos = held.values().filter_map(|link| pins::link_info(link.as_fd()).ok());
        infos.map(|info| info.id).collect()
    }

    /// Notes a change by another program that was put right.
    pub(super) fn note(&self, object: String, fault: &str) {
        self.found().note(object, fault);
    }

    // A thread that panicked with one of these locks held left a valid value: each changes in one
    // step.

    pub(super) fn held(&self) -> MutexGuard<'_, HeldLinks> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The changes by other programs that were put right and not told yet.
    pub(super) fn found(&self) -> MutexGuard<'_, Changes> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn links_dir(&self) -> PathBuf {
        self.pins.join(LINKS)
    }
}
