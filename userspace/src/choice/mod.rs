//! Choice of the hook at which the uplinks receive VXLAN, with the reason. [`device`] chooses
//! the kind of device pair that connects containers with the host.
//!
//! `from_underlay_xdp` drops hostile VXLAN before the kernel allocates an skb. Frames that it
//! passes are checked again at tcx. So XDP costs time on every frame and saves time on
//! hostile frames only: `auto` chooses tc, and the reason says what XDP would cost.

pub mod device;

use serde::{Deserialize, Serialize};

use crate::{
    config::DatapathMode,
    datapath::Price,
    netlink::{Link, Netlink, RX_GRO},
};

/// Whether the driver of an interface runs XDP programs itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpSupport {
    /// The driver runs XDP programs.
    Native,
    /// The driver does not run XDP programs.
    None,
    /// The kernel does not report it.
    Unknown,
}

/// Facts about an uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// Name.
    pub name: String,
    /// Name of the driver; empty if the driver does not report it.
    pub driver: String,
    /// Whether the driver runs XDP programs itself.
    pub xdp: XdpSupport,
    /// Received TCP segments are merged (GRO).
    pub gro: bool,
    /// VXLAN frames are merged too: GRO is on, and a kernel vxlan device that is up has the
    /// agent's UDP port.
    pub merges_vxlan: bool,
}

/// Reads the facts about the uplinks. Uplinks that do not exist are left out.
pub async fn read(netlink: &Netlink, names: &[String], port: u16) -> Vec<Uplink> {
    let links = netlink.links().await.unwrap_or_default();
    let knows_vxlan = links.iter().any(|link| link.vxlan_port == Some(port) && link.up);
    let find = |name: &String| links.iter().find(|link| link.name == *name);
    names.iter().filter_map(find).map(|link| uplink(netlink, link, knows_vxlan)).collect()
}

fn uplink(netlink: &Netlink, link: &Link, knows_vxlan: bool) -> Uplink {
    let gro = matches!(netlink.feature(&link.name, RX_GRO), Ok(Some(true)));
    Uplink {
        name: link.name.clone(),
        driver: netlink.driver(&link.name).unwrap_or_default(),
        xdp: match netlink.native_xdp(link.index) {
            Some(true) => XdpSupport::Native,
            Some(false) => XdpSupport::None,
            None => XdpSupport::Unknown,
        },
        gro,
        merges_vxlan: gro && knows_vxlan,
    }
}

impl Uplink {
    fn is_veth(&self) -> bool {
        self.driver == "veth"
    }

    /// Whether a measurement decides if XDP is faster: the driver runs XDP, and is not veth.
    pub fn is_open(&self) -> bool {
        self.xdp == XdpSupport::Native && !self.is_veth()
    }

    /// The facts as text: `up0 (ixgbe, native XDP, GRO on, VXLAN merged)`.
    pub fn describe(&self) -> String {
        let driver = if self.driver.is_empty() { "driver unknown" } else { &self.driver };
        let xdp = match self.xdp {
            XdpSupport::Native => "native XDP",
            XdpSupport::None => "no native XDP",
            XdpSupport::Unknown => "XDP unknown",
        };
        let gro = if self.gro { "GRO on" } else { "GRO off" };
        let merges = if self.merges_vxlan { "VXLAN merged" } else { "VXLAN not merged" };
        format!("{} ({driver}, {xdp}, {gro}, {merges})", self.name)
    }

    /// Costs and savings of XDP on this uplink, as text.
    pub fn verdict(&self, price: Option<Price>) -> String {
        let name = &self.name;
        match (self.xdp, price) {
            (XdpSupport::Native, _) if self.is_veth() => {
                format!("{name} is a veth, where native XDP copies every frame and strips GSO")
            }
            (XdpSupport::None, _) => format!("the driver of {name} has no native XDP"),
            (XdpSupport::Unknown, _) => format!("whether {name} has native XDP is not known"),
            (XdpSupport::Native, Some(Price { tc_ns, xdp_ns })) => format!(
                "on {name} XDP costs {xdp_ns} ns a frame and saves {tc_ns} ns and an skb of a hostile one"
            ),
            (XdpSupport::Native, None) => {
                format!("on {name} XDP costs on every frame and saves on hostile ones only")
            }
        }
    }
}

/// The hook that receives VXLAN, `tc` or `xdp`, and the reason on one line.
pub fn choose(
    asked: DatapathMode,
    uplinks: &[Uplink],
    price: Option<Price>,
) -> (&'static str, String) {
    let facts = uplinks.iter().map(|uplink| uplink.verdict(price)).collect::<Vec<_>>().join("; ");
    match asked {
        DatapathMode::Tc => ("tc", "asked for with --datapath tc".to_owned()),
        DatapathMode::Auto if facts.is_empty() => ("tc", "chosen".to_owned()),
        DatapathMode::Auto => ("tc", format!("chosen: {facts}")),
        DatapathMode::Xdp if facts.is_empty() => {
            ("xdp", "asked for with --datapath xdp, beside tc".to_owned())
        }
        DatapathMode::Xdp => ("xdp", format!("asked for with --datapath xdp, beside tc: {facts}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(driver: &str, xdp: XdpSupport) -> Uplink {
        Uplink {
            name: "up0".to_owned(),
            driver: driver.to_owned(),
            xdp,
            gro: true,
            merges_vxlan: false,
        }
    }

    #[test]
    fn every_choice_has_its_reason() {
        let price = Some(Price { tc_ns: 120, xdp_ns: 80 });
        let reason = |asked, uplink: Uplink, price| choose(asked, &[uplink], price);
        let native = || uplink("ixgbe", XdpSupport::Native);
        for (uplink, price, words) in [
            (
                uplink("veth", XdpSupport::Native),
                price,
                "chosen: up0 is a veth, where native XDP copies",
            ),
            (
                uplink("e1000", XdpSupport::None),
                price,
                "chosen: the driver of up0 has no native XDP",
            ),
            (uplink("", XdpSupport::Unknown), price, "not known"),
            (
                native(),
                price,
                "XDP costs 80 ns a frame and saves 120 ns and an skb of a hostile one",
            ),
            (native(), None, "XDP costs on every frame"),
        ] {
            let (mode, reason) = reason(DatapathMode::Auto, uplink, price);
            assert_eq!(mode, "tc");
            assert!(reason.contains(words), "{reason}");
            assert_eq!(reason.lines().count(), 1);
        }
        let (mode, why) = reason(DatapathMode::Xdp, uplink("veth", XdpSupport::Native), price);
        assert_eq!(mode, "xdp");
        assert!(why.contains("asked for") && why.contains("copies every frame"), "{why}");
        assert_eq!(reason(DatapathMode::Tc, native(), price).0, "tc");
        assert_eq!(choose(DatapathMode::Auto, &[], None).0, "tc");
    }

    #[test]
    fn facts_are_told_on_a_line() {
        let text = uplink("veth", XdpSupport::Native).describe();
        assert_eq!(text, "up0 (veth, native XDP, GRO on, VXLAN not merged)");
        assert!(uplink("", XdpSupport::Unknown).describe().contains("driver unknown"));
    }
}
