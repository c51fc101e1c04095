//! The tables of an exact run.

use super::figures::{Cost, Figures, Steps, spread};
use crate::{
    arms::Unit,
    report::grid::Grid,
    report::words::{self, NONE},
    results::{HOST, HOST_AGAIN},
    stats::median,
};

/// All tables, for a terminal.
pub(super) fn terminal(figures: &Figures) -> String {
    let grids = [
        units(figures),
        repeats(figures),
        costs("Programs alone", "Instructions of a program and its helpers.", &figures.programs),
        steps(figures),
        costs("Agent", "Instructions of the agent's process, kernel included.", &figures.agent),
    ];
    let shown: Vec<_> = grids.iter().filter(|it| !it.is_empty()).map(Grid::terminal).collect();
    let Figures { date, culvert, kernel, emulator, .. } = figures;
    format!("{date}; Linux {kernel} on {emulator}; Culvert {culvert}\n\n{}", shown.join("\n"))
}

/// Cost of each unit of each arm, with the difference from the host's cost.
fn units(figures: &Figures) -> Grid {
    let mut grid = Grid::new(
        "Instructions per unit of work",
        "Medians, sender and receiver together, and how many more than the host's.",
        &["unit", "arm", ">instructions", ">above the host", ">ratio to the host"],
    );
    for unit in Unit::ALL {
        let of_unit = figures.arms.iter().filter(|arm| arm.id != HOST_AGAIN);
        let costs = of_unit.filter_map(|arm| Some((arm, figures.cost(&arm.id, unit)?)));
        for (index, (arm, cost)) in costs.enumerate() {
            let heading = if index == 0 { unit.heading() } else { "" };
            let above = figures.above_host(&arm.id, unit).filter(|_| arm.id != HOST);
            let ratio = figures.cost(HOST, unit).map(|host| format!("{:.3}", cost / host));
            grid.row([
                heading.into(),
                arm.id.as_str().into(),
                instructions(cost).into(),
                above.map_or_else(|| NONE.to_owned(), instructions).into(),
                ratio.unwrap_or_else(|| NONE.to_owned()).into(),
            ]);
        }
    }
    grid
}

/// Difference of the host from itself, and differences between the rounds.
fn repeats(figures: &Figures) -> Grid {
    let mut grid = Grid::new(
        "How well the figures repeat",
        "The host against itself, and the largest difference of any arm between two rounds.",
        &["unit", ">A/A, %", ">largest, %"],
    );
    for (unit, by) in figures.host_differences() {
        grid.row([unit.heading().into(), percent(by).into(), percent(figures.spread(unit)).into()]);
    }
    grid
}

/// Instructions that the programs execute, and the helpers that they call.
fn steps(figures: &Figures) -> Grid {
    let mut grid = Grid::new(
        "Programs step by step",
        "Instructions of a program's own machine code and of its helpers, and the helpers' calls.",
        &["what", ">own", ">helpers", ">calls", "helpers called"],
    );
    for Steps { what, own, helpers, calls } in &figures.steps {
        let named = calls.iter().map(|(name, count)| match count {
            1 => name.clone(),
            count => format!("{name} ×{count}"),
        });
        grid.row([
            what.as_str().into(),
            words::whole(*own).into(),
            words::whole(*helpers).into(),
            words::whole(calls.values().sum()).into(),
            named.collect::<Vec<_>>().join(", ").into(),
        ]);
    }
    grid
}

fn costs(title: &str, note: &str, costs: &[Cost]) -> Grid {
    let mut grid = Grid::new(title, note, &["what", ">instructions", ">largest difference, %"]);
    for cost in costs {
        grid.row([
            cost.what.as_str().into(),
            instructions(median(&cost.rounds)).into(),
            percent(spread(&cost.rounds)).into(),
        ]);
    }
    grid
}

fn percent(share: f64) -> String {
    format!("{:.2}", share * 100.0)
}

/// A number of instructions, with a comma at each thousand.
pub(super) fn instructions(number: f64) -> String {
    let sign = if number < 0.0 { "-" } else { "" };
    format!("{sign}{}", words::whole(number.abs().round() as u64))
}
