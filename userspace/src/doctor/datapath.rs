//! `culvert doctor --datapath`: which hook receives VXLAN, and the cost of the programs.

use super::finding::{Finding, Level, ok, warning};
use crate::{
    choice::{self, Uplink},
    config::DatapathMode,
    datapath::Price,
    sandbox::GRO,
};

/// Facts about the data plane.
#[derive(Clone, Debug)]
pub struct DatapathFacts {
    /// The uplinks that exist.
    pub uplinks: Vec<Uplink>,
    /// Run time of the programs, or the reason why it is not known.
    pub price: Result<Price, String>,
    /// UDP port for VXLAN.
    pub port: u16,
    /// A kernel vxlan device is up on that UDP port.
    pub knows_vxlan: bool,
    /// Mode of the running agent.
    pub running: Option<String>,
}

/// Checks the facts.
pub fn examine_datapath(facts: &DatapathFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let price = facts.price.as_ref().ok().copied();
    findings.push(match &facts.price {
        Ok(Price { tc_ns, xdp_ns }) => ok(
            "price",
            format!("a frame of an unknown network costs {tc_ns} ns in from_underlay, {xdp_ns} ns in from_underlay_xdp"),
        ),
        Err(why) => warning(
            "price",
            format!("the programs cannot be measured: {why}"),
            "run as root, and see 'culvert doctor'",
        ),
    });
    for uplink in &facts.uplinks {
        let (mode, _) = choice::choose(DatapathMode::Auto, std::slice::from_ref(uplink), price);
        let detail = format!("{}: {mode}, as {}", uplink.describe(), uplink.verdict(price));
        findings.push(ok("datapath", detail));
        if !uplink.gro {
            findings.push(warning(
                "gro",
                format!("uplink {} has GRO off: TCP comes one frame at a time", uplink.name),
                &format!("ethtool -K {} gro on", uplink.name),
            ));
        }
    }
    findings.push(if facts.knows_vxlan {
        ok("vxlan", format!("GRO knows VXLAN on UDP port {}", facts.port))
    } else {
        let advice = if facts.running.is_some() {
            format!("see the agent's log for why it has no {GRO}")
        } else {
            format!("start the agent, which makes {GRO}")
        };
        let detail = format!(
            "no vxlan device of the kernel has UDP port {}: tunnelled TCP comes one frame at a time",
            facts.port
        );
        warning("vxlan", detail, &advice)
    });
    let (chosen, reason) = choice::choose(DatapathMode::Auto, &facts.uplinks, price);
    if let Some(running) = &facts.running
        && running != chosen
    {
        findings.push(warning(
            "datapath",
            format!("the agent runs with {running}; {chosen} is {reason}"),
            &format!(
                "leave out --datapath {running}, unless hostile VXLAN is what there is most of"
            ),
        ));
    }
    debug_assert!(findings.iter().all(|finding| finding.level != Level::Error));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::XdpSupport;

    fn healthy() -> DatapathFacts {
        DatapathFacts {
            uplinks: vec![Uplink {
                name: "up0".to_owned(),
                driver: "ixgbe".to_owned(),
                xdp: XdpSupport::Native,
                gro: true,
                merges_vxlan: true,
            }],
            price: Ok(Price { tc_ns: 120, xdp_ns: 80 }),
            port: 4789,
            knows_vxlan: true,
            running: Some("tc".to_owned()),
        }
    }

    /// Asserts that exactly one finding is a warning: it has this check and these words.
    fn assert_found(break_it: impl FnOnce(&mut DatapathFacts), check: &str, words: &[&str]) {
        let mut facts = healthy();
        break_it(&mut facts);
        let findings = examine_datapath(&facts);
        let bad: Vec<_> = findings.iter().filter(|found| found.level != Level::Ok).collect();
        let [found] = bad.as_slice() else { panic!("{check}: {bad:?}") };
        assert_eq!((found.check.as_str(), found.level), (check, Level::Warning));
        let line = format!("{}: {}", found.detail, found.advice);
        for word in words {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert!(!found.advice.is_empty() && line.lines().count() == 1, "{line}");
    }

    #[test]
    fn what_slows_the_way_in_is_named() {
        let all = examine_datapath(&healthy());
        assert!(all.iter().all(|found| found.level == Level::Ok && found.advice.is_empty()));
        assert!(all.iter().any(|found| found.detail.contains("XDP costs 80 ns a frame")));
        let gro = |facts: &mut DatapathFacts| facts.uplinks[0].gro = false;
        assert_found(gro, "gro", &["up0", "ethtool -K up0 gro on"]);
        assert_found(|facts| facts.knows_vxlan = false, "vxlan", &["4789", "log", "cvgro0"]);
        assert_found(
            |facts| facts.running = Some("xdp".to_owned()),
            "datapath",
            &["runs with xdp", "80 ns"],
        );
        assert_found(|facts| facts.price = Err("no".to_owned()), "price", &["no", "root"]);
        let stopped = |facts: &mut DatapathFacts| {
            facts.running = None;
            facts.knows_vxlan = false;
        };
        assert_found(stopped, "vxlan", &["start the agent"]);
    }
}
