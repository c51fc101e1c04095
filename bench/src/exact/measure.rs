//! The measurements, within the emulated machine.

use anyhow::{Result, ensure};

use super::{
    control,
    figures::{Cost, Figures, Steps},
    options::{Args, Part},
    steps::{Executed, Stepper},
};
use crate::{
    arms::{Arm, Arms, Device, Receive, Unit},
    machine, programs,
    results::{HOST, HOST_AGAIN, Regime},
    stats::middle_mean,
};

/// Environment variable with the emulator's version; set within the machine.
const EMULATOR: &str = "CULVERT_EMULATOR";

/// Measures everything that `args` ask for. `ns` is the time of an instruction, ns.
pub(super) fn main(args: &Args, ns: f64) -> Result<Figures> {
    let emulator = std::env::var(EMULATOR).unwrap_or_default();
    let mut figures = Figures::new(machine::here()?, emulator);
    println!("making the hosts of all arms");
    let arms = Arms::make(&[Device::Veth, Device::Netkit], &[])?;
    let paused = arms.paused()?;
    units(args, ns, &arms, &mut figures)?;
    if args.wants(Part::Programs) {
        programs(args.rounds, ns, &arms, &mut figures)?;
    }
    drop((paused, arms));
    if args.wants(Part::Agent) {
        for round in 1..=args.rounds {
            println!("round {round} of {}: the agent", args.rounds);
            for (what, time) in control::costs()? {
                add(&mut figures.agent, what.to_owned(), time / ns);
            }
        }
    }
    Ok(figures)
}

/// Measures the units of work of the chosen arms.
fn units(args: &Args, ns: f64, arms: &Arms, figures: &mut Figures) -> Result<()> {
    let chosen: Vec<_> = arms.all.iter().filter(|arm| is_chosen(args, &arm.info.id)).collect();
    for wanted in &args.arms {
        let found = arms.all.iter().any(|arm| arm.info.id.starts_with(wanted.as_str()));
        ensure!(found, "--arms {wanted}: no arm has an id that begins so");
    }
    figures.arms = chosen.iter().map(|arm| arm.info.clone()).collect();
    for round in 1..=args.rounds {
        for unit in Unit::ALL.into_iter().filter(|unit| args.wants(Part::Unit(*unit))) {
            println!("round {round} of {}: {}", args.rounds, unit.heading());
            arms.set(regime(unit), Receive::SendersCore)?;
            for arm in chosen.iter().filter(|arm| arm.has_unit(unit)) {
                figures.add(&arm.info.id, unit, cost(arm, unit)? / ns);
            }
        }
    }
    Ok(())
}

/// Measures the programs alone, by time and step by step.
fn programs(rounds: u32, ns: f64, arms: &Arms, figures: &mut Figures) -> Result<()> {
    arms.set(Regime::Intact, Receive::SendersCore)?;
    for round in 1..=rounds {
        println!("round {round} of {rounds}: the programs alone");
        programs::each_alone(&arms.culvert, &arms.all, |what, known| {
            let what = format!("{}: {what}", known.name()?);
            add(&mut figures.programs, what, known.time()? / ns);
            Ok(())
        })?;
    }
    println!("the programs step by step");
    let mut stepper = Stepper::open()?;
    programs::each_alone(&arms.culvert, &arms.all, |what, known| {
        let what = format!("{}: {what}", known.name()?);
        let Executed { own, helpers, calls } = stepper.step(known)?;
        figures.steps.push(Steps { what, own, helpers, calls });
        Ok(())
    })?;
    // After all others: these packets empty and fill the table of flows.
    println!("the programs on the first packets of flows");
    let (program, beginnings) = programs::first_packets(&arms.culvert, &arms.all, rounds)?;
    for (what, times) in beginnings {
        let what = format!("{}: {what}", program.name_as_str().unwrap_or_default());
        let rounds = times.iter().map(|time| time / ns).collect();
        figures.programs.push(Cost { what, rounds });
    }
    Ok(())
}

/// Whether the arm `id` is measured: the host, and the arms that `--arms` names. Without `--arms`,
/// all arms but the container in host mode, which uses the host's own interfaces.
fn is_chosen(args: &Args, id: &str) -> bool {
    let named = |wanted: &String| id.starts_with(wanted.as_str());
    let wanted = if args.arms.is_empty() {
        !id.starts_with("culvert-host-mode")
    } else {
        args.arms.iter().any(named)
    };
    wanted || [HOST, HOST_AGAIN].contains(&id)
}

/// How frames cross the underlay while `unit` is measured.
pub(super) fn regime(unit: Unit) -> Regime {
    match unit {
        Unit::Tcp64kWire => Regime::WireLike,
        Unit::RoundTrip | Unit::Connection | Unit::Tcp64k | Unit::Udp64 | Unit::NewFlow => {
            Regime::Intact
        }
    }
}

/// The time of a unit, ns: the mean of the middle half of all units.
fn cost(arm: &Arm, unit: Unit) -> Result<f64> {
    let taken = arm.units(unit).map_err(|error| error.context(arm.info.id.clone()))?;
    Ok(middle_mean(&taken.iter().map(|&ns| ns as f64).collect::<Vec<_>>()))
}

fn add(costs: &mut Vec<Cost>, what: String, instructions: f64) {
    match costs.iter_mut().find(|it| it.what == what) {
        Some(known) => known.rounds.push(instructions),
        None => costs.push(Cost { what, rounds: vec![instructions] }),
    }
}
