//! The uplink where `--uplink` does not name it: the interface of the default route.
//!
//! The agent chooses it at its start. While it runs, it looks at the choice again after each event
//! that may change it. If an agent that starts now has chosen otherwise for some time, the agent
//! starts anew. A route that fails over for a moment costs nothing.

use std::{net::Ipv4Addr, time::Duration};

use tokio::time::Instant;

use crate::agent::platform::{UplinkChoice, UplinkFault};

/// What the agent does about the interface of the default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// Nothing: the uplinks are right.
    Stay,
    /// It starts anew, because an agent that starts now would choose other uplinks. The difference
    /// on one line, and the choice.
    Follow(String, (Vec<String>, Ipv4Addr)),
    /// It keeps its uplinks, and tells the problem, on one line.
    Tell(String),
}

/// The choice of the uplinks, as the agent has seen it.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// The choice may have changed.
    stale: bool,
    /// What the choice demands, and since when.
    course: Option<(Course, Instant)>,
    /// When the choice is to be looked at again.
    due: Option<Instant>,
    /// The default route has led out of an uplink since the start.
    led_out: bool,
}

impl Choice {
    /// Notes that the choice may have changed.
    pub(super) const fn changed(&mut self) {
        self.stale = true;
    }

    /// Whether the choice may have changed since it was looked at.
    pub(super) const fn is_stale(&self) -> bool {
        self.stale
    }

    /// When the choice is to be looked at again.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Notes that the host does not say anything about the choice until `then`.
    pub(super) const fn look_again(&mut self, then: Instant) {
        self.due = Some(then);
    }

    /// What the host demands of an agent with the uplinks `present` and the VTEP address `vtep`.
    /// `given`: the uplinks are the values of `--uplink`. Uplinks that have the VTEP address are
    /// kept: other hosts send to it, and the default route may come back.
    pub(super) fn course(
        &mut self,
        now: UplinkChoice,
        (present, vtep): (&[String], Ipv4Addr),
        given: bool,
    ) -> Course {
        let uplinks = present.join(" and ");
        if !given && !now.addresses.contains(&vtep) {
            // That its address is lost is another problem.
            if let (Some(name), [only]) = (&now.default, present)
                && name == only
            {
                return Course::Stay;
            }
            return match now.chosen {
                Ok(chosen) => Course::Follow(
                    format!(
                        "the default route leads out of {} instead of {uplinks}",
                        chosen.0.join(" and ")
                    ),
                    chosen,
                ),
                Err(fault) => Course::Tell(kept(&uplinks, &fault)),
            };
        }
        match now.default {
            Some(name) if present.contains(&name) => {
                self.led_out = true;
                Course::Stay
            }
            // A host may have its default route elsewhere on purpose: only that it has left is told.
            Some(name) if self.led_out || !given => Course::Tell(format!(
                "default route: it leads out of {name} now, and no longer out of the uplink {uplinks}: packets of containers that take it are dropped (not_an_uplink); start the agent with --uplink {name} as well, if it has an Ethernet header"
            )),
            // A restarted agent would not find an uplink.
            None if !given => match now.chosen {
                Err(fault) => Course::Tell(kept(&uplinks, &fault)),
                Ok(_) => Course::Stay,
            },
            _ => Course::Stay,
        }
    }

    /// What is to be done now: `course`, if the host has demanded it for `steady`. `None`: it is to be
    /// looked at again, when [`Self::due`] says.
    pub(super) fn settle(
        &mut self,
        course: Course,
        now: Instant,
        steady: Duration,
    ) -> Option<Course> {
        (self.stale, self.due) = (false, None);
        let since = match &self.course {
            Some((before, since)) if *before == course => *since,
            _ => now,
        };
        self.course = Some((course.clone(), since));
        if course == Course::Stay || now >= since + steady {
            return Some(course);
        }
        self.due = Some(since + steady);
        None
    }
}

/// The problem, on one line, that an agent that starts now would find no uplink.
fn kept(uplinks: &str, fault: &UplinkFault) -> String {
    format!(
        "default route: {}; the agent keeps the uplink {uplinks}, but a restarted agent would not start with it",
        fault.line()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEADY: Duration = Duration::from_secs(2);
    const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// What a host says whose default route leads out of `name`.
    fn leads_out_of(name: &str) -> UplinkChoice {
        let vtep = Ipv4Addr::new(192, 0, 2, 1);
        let chosen = Ok((names(&[name]), vtep));
        UplinkChoice { addresses: Vec::new(), default: Some(name.to_owned()), chosen }
    }

    /// The uplink has the VTEP address, and another card has the default route.
    #[test]
    fn an_uplink_with_the_vtep_address_is_kept() {
        let mut choice = Choice::default();
        let addresses = vec![VTEP];
        let mut course = |name: &str| {
            let now = UplinkChoice { addresses: addresses.clone(), ..leads_out_of(name) };
            choice.course(now, (&names(&["up0"]), VTEP), false)
        };
        assert_eq!(course("up0"), Course::Stay);
        let told = course("card0");
        let Course::Tell(line) = &told else { panic!("{told:?}") };
        assert!(line.contains("out of card0 now") && line.contains("--uplink card0"), "{line}");
    }

    /// The address of the uplink was moved to a bridge, or is gone.
    #[test]
    fn another_interface_is_followed_when_it_is_steady() {
        let mut choice = Choice::default();
        let began = Instant::now();
        let mut look = |now: UplinkChoice, after: Duration| {
            let course = choice.course(now, (&names(&["up0"]), VTEP), false);
            let settled = choice.settle(course, began + after, STEADY);
            (settled, choice.due().map(|due| due - began))
        };
        let none = Duration::ZERO;
        assert_eq!(look(leads_out_of("up0"), none), (Some(Course::Stay), None));
        let bare = UplinkFault::Absent("uplink up0 has no IPv4 address".to_owned());
        let bare = UplinkChoice { chosen: Err(bare), ..leads_out_of("up0") };
        assert_eq!(look(bare, none), (Some(Course::Stay), None));
        assert_eq!(look(leads_out_of("br0"), none), (None, Some(STEADY)));
        // It fails over and back.
        assert_eq!(look(leads_out_of("up0"), STEADY / 2), (Some(Course::Stay), None));
        assert_eq!(look(leads_out_of("br0"), STEADY), (None, Some(STEADY * 2)));
        // Yet another interface, or another address there, is another choice.
        let other = UplinkChoice {
            chosen: Ok((names(&["br0"]), Ipv4Addr::new(192, 0, 2, 9))),
            ..leads_out_of("br0")
        };
        assert_eq!(look(other.clone(), STEADY * 2), (None, Some(STEADY * 3)));
        assert_eq!(look(other.clone(), STEADY * 5 / 2), (None, Some(STEADY * 3)));
        let (settled, due) = look(other, STEADY * 3);
        let Some(Course::Follow(line, (uplinks, _))) = &settled else { panic!("{settled:?}") };
        assert_eq!(line, "the default route leads out of br0 instead of up0");
        assert_eq!((uplinks, due), (&names(&["br0"]), None));
    }

    #[test]
    fn an_interface_that_cannot_be_an_uplink_is_told() {
        let mut choice = Choice::default();
        for fault in [
            UplinkFault::Absent("no default route tells the uplink".to_owned()),
            UplinkFault::Wrong("uplink tun9 has no Ethernet header".to_owned()),
        ] {
            let line = fault.line().to_owned();
            let now = UplinkChoice { addresses: vec![VTEP], default: None, chosen: Err(fault) };
            let course = choice.course(now, (&names(&["up0"]), VTEP), false);
            let Course::Tell(told) = &course else { panic!("{course:?}") };
            assert!(told.contains(&line) && told.contains("keeps the uplink up0"), "{told}");
            let began = Instant::now();
            assert_eq!(choice.settle(course.clone(), began, STEADY), None);
            assert_eq!(choice.settle(course.clone(), began + STEADY, STEADY), Some(course));
        }
    }

    #[test]
    fn uplinks_that_were_given_are_kept() {
        let mut choice = Choice::default();
        let present = names(&["up0", "up1"]);
        let mut course = |default: Option<&str>| {
            let default = default.map(str::to_owned);
            let chosen = Ok((present.clone(), Ipv4Addr::new(192, 0, 2, 1)));
            let now = UplinkChoice { addresses: vec![VTEP], default, chosen };
            choice.course(now, (&present, VTEP), true)
        };
        // Elsewhere on purpose.
        assert_eq!(course(Some("mgmt")), Course::Stay);
        assert_eq!(course(None), Course::Stay);
        assert_eq!(course(Some("up1")), Course::Stay);
        let left = course(Some("br0"));
        let Course::Tell(line) = &left else { panic!("{left:?}") };
        for words in ["leads out of br0", "up0 and up1", "--uplink br0"] {
            assert!(line.contains(words), "{words}: {line}");
        }
        assert_eq!(course(None), Course::Stay);
        assert_eq!(course(Some("up0")), Course::Stay);
    }
}
