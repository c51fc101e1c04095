//! The two kinds of chart: a bar or a range for each arm, and lines over a count.
//!
//! plotters makes the scales, the axes and the SVG. Its colours are fixed when it draws, while the
//! page is light or dark: parts in the colour of the text are drawn in [`INK`], which is changed to
//! `currentColor` afterwards.

use anyhow::{Context as _, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axes::{AXIS, Area, Axes, Axis, INK, LETTERS, ToPixels, font};
use super::letters::{width, wrap};
use crate::report::escape::escape;

/// [`INK`] as plotters writes it.
const INK_TEXT: &str = "\"#010203\"";
/// Width of every chart, px.
const WIDTH: u32 = 980;
/// Largest width of the arms' names, px. Longer names have more than one line.
const NAMES: f64 = 290.0;
/// Largest width of the text to the right of a bar, px.
const VALUES: f64 = 220.0;
/// Distance of a text from its bar, px.
const GAP: u32 = 8;
/// Least distance of a text from the edge of its place, px.
const EDGE: u32 = 4;
/// Least height of an arm's row, px.
const ROW: u32 = 22;
/// Height of a line of an arm's name, px.
const LINE: u32 = 15;
/// Height of the heading, px.
const HEADING: u32 = 28;
/// Height of a line chart, px.
const LINES: u32 = 300;

/// Text alternative of a chart, for screen readers.
pub(super) struct Words {
    /// Unique on the page.
    pub(super) id: String,
    /// Title of the chart.
    pub(super) title: String,
    /// Description of the chart.
    pub(super) text: String,
}

/// One arm in one panel of a [`rows`] chart.
#[derive(Clone, Debug, Default)]
pub(super) struct Bar {
    /// End of a bar that begins at zero.
    pub(super) bar: Option<f64>,
    /// Position of a point.
    pub(super) mark: Option<f64>,
    /// The interval of the bar or the point.
    pub(super) interval: Option<(f64, f64)>,
    /// A figure of each round.
    pub(super) dots: Vec<f64>,
    /// Figures joined by a line, the first one filled.
    pub(super) chain: Vec<f64>,
    /// Text beside the bar.
    pub(super) label: String,
}

/// One panel of a [`rows`] chart.
#[derive(Clone, Debug, Default)]
pub(super) struct RowsPanel {
    /// Heading of the panel.
    pub(super) heading: String,
    /// A bar for each arm; none if the arm was not measured.
    pub(super) bars: Vec<Option<Bar>>,
    /// Position of a line through all rows, to compare with.
    pub(super) line: Option<f64>,
    /// Distance from the line within which a difference is not significant.
    pub(super) band: f64,
}

/// A chart with a row for each arm and a panel for each regime.
pub(super) struct Rows {
    /// Name and colour of each arm.
    pub(super) names: Vec<(String, RGBColor)>,
    /// Panels.
    pub(super) panels: Vec<RowsPanel>,
    /// The axis of all panels.
    pub(super) axis: Axis,
    /// Title of the axis.
    pub(super) unit: String,
}

/// Places of the parts of a [`Rows`], px.
struct Layout {
    /// Lines of each arm's name.
    names: Vec<Vec<String>>,
    /// Width of the names with the distances from both sides.
    left: u32,
    /// Width of the texts to the right of the bars with the distances from both sides.
    right: u32,
    /// Height of an arm's row.
    row: u32,
}

impl Layout {
    fn of(chart: &Rows) -> Self {
        let names: Vec<_> =
            chart.names.iter().map(|(name, _)| wrap(name, LETTERS, NAMES)).collect();
        let bars = chart.panels.iter().flat_map(|side| &side.bars).flatten();
        let right = widest(bars.map(|bar| &bar.label)).min(VALUES);
        let left = widest(names.iter().flatten());
        let lines = names.iter().map(Vec::len).max().unwrap_or_default() as u32;
        let around = |width: f64| width.ceil() as u32 + GAP + EDGE;
        Self {
            left: around(left),
            right: around(right),
            row: ROW.max(lines * LINE + 2 * EDGE),
            names,
        }
    }
}

/// Width of the widest of `texts`, px.
fn widest<'a>(texts: impl Iterator<Item = &'a String>) -> f64 {
    texts.map(|text| width(text, LETTERS)).fold(0.0, f64::max)
}

/// Draws a [`Rows`].
pub(super) fn rows(words: &Words, chart: &Rows) -> Result<String> {
    let count = chart.names.len() as u32;
    let Layout { names: lines_of, left, right, row } = Layout::of(chart);
    svg(words, HEADING + count * row + AXIS, |root| {
        let (names, panels) = root.split_horizontally(left);
        for (index, lines) in (0..count).zip(&lines_of) {
            let middle = (HEADING + index * row + row / 2) as i32;
            let first = middle - (lines.len() as i32 - 1) * LINE as i32 / 2;
            for (line, below) in lines.iter().zip(0..) {
                let place = ((left - GAP) as i32, first + below * LINE as i32);
                names.draw(&Text::new(line.clone(), place, letters(HPos::Right)))?;
            }
        }
        let columns = chart.panels.len().max(1);
        for (area, side) in panels.split_evenly((1, columns)).iter().zip(&chart.panels) {
            let (width, _) = area.dim_in_pixel();
            let plot = area.margin(HEADING, 0, 0, right);
            area.draw(&Text::new(side.heading.clone(), (0, 9), bold(HPos::Left)))?;
            let axes = Axes {
                x: chart.axis,
                x_name: &chart.unit,
                x_labels: chart.axis.labels(width.saturating_sub(right)),
                y_labels: 0,
                y: Axis::Linear(0.0, f64::from(count)),
                y_unit: "",
            };
            axes.draw(&plot, &mut |place| bars_of(root, chart, side, place))?;
        }
        Ok(())
    })
}

/// Draws the bars of a panel.
fn bars_of(root: &Area<'_>, chart: &Rows, side: &RowsPanel, place: &ToPixels<'_>) -> Result<()> {
    let count = chart.names.len() as f64;
    let start = chart.axis.start();
    if let Some(line) = side.line {
        let edge = |share: f64, row: f64| place(chart.axis.within(line + share), row);
        if side.band > 0.0 {
            let corners = [edge(-side.band, count), edge(side.band, 0.0)];
            root.draw(&Rectangle::new(corners, INK.mix(0.12).filled()))?;
        }
        let path = vec![edge(0.0, count), edge(0.0, 0.0)];
        root.draw(&PathElement::new(path, INK.mix(0.35).stroke_width(1)))?;
    }
    for (index, (bar, (_, color))) in side.bars.iter().zip(&chart.names).enumerate() {
        let row = count - index as f64 - 0.5;
        let at = |value: f64| place(value, row);
        let Some(bar) = bar else {
            let (x, y) = at(start);
            root.draw(&Text::new("–", (x + 4, y), letters(HPos::Left)))?;
            continue;
        };
        let mut right = at(start).0;
        if let Some(value) = bar.bar {
            let ((x0, y), (x1, _)) = (at(start), at(value));
            let corners = [(x0, y - 6), (x1.max(x0 + 1), y + 6)];
            root.draw(&Rectangle::new(corners, color.filled()))?;
            right = x1;
        }
        for (round, &dot) in bar.dots.iter().enumerate() {
            // The dots of the rounds are shifted vertically, so that equal figures are not one dot.
            let (x, y) = at(dot);
            let y = y + (round % 5) as i32 * 2 - 4;
            root.draw(&Circle::new((x, y), 1, INK.mix(0.5).filled()))?;
            right = right.max(x);
        }
        if let Some((low, high)) = bar.interval {
            let ((x0, y), (x1, _)) = (at(low), at(high));
            for line in [[(x0, y), (x1, y)], [(x0, y - 4), (x0, y + 4)], [(x1, y - 4), (x1, y + 4)]]
            {
                let style = if bar.mark.is_some() { color } else { &INK }.stroke_width(2);
                root.draw(&PathElement::new(line.to_vec(), style))?;
            }
            right = right.max(x1);
        }
        if let Some(mark) = bar.mark {
            root.draw(&Circle::new(at(mark), 3, color.filled()))?;
            // The labels of points are in one column, since the points are scattered.
            right = at(chart.axis.end()).0;
        }
        let chain: Vec<_> = bar.chain.iter().map(|&value| at(value)).collect();
        if chain.len() > 1 {
            root.draw(&PathElement::new(chain.clone(), color.stroke_width(3)))?;
        }
        for (index, &(x, y)) in chain.iter().enumerate() {
            if index == 0 {
                root.draw(&Circle::new((x, y), 5, color.filled()))?;
            } else {
                let tick = vec![(x, y - 6), (x, y + 6)];
                root.draw(&PathElement::new(tick, color.stroke_width(3)))?;
            }
            right = right.max(x);
        }
        let (_, y) = at(start);
        let place = (right + GAP as i32, y);
        root.draw(&Text::new(bar.label.clone(), place, letters(HPos::Left)))?;
    }
    Ok(())
}

/// Count, figure and its interval.
pub(super) type Point = (f64, f64, Option<(f64, f64)>);

/// A line of a [`lines`] chart.
pub(super) struct Line {
    /// Name of the line.
    pub(super) name: String,
    /// Colour of the line.
    pub(super) color: RGBColor,
    /// Points in the order of their counts.
    pub(super) points: Vec<Point>,
}

/// A panel of lines.
pub(super) struct Panel {
    /// Heading.
    pub(super) heading: String,
    /// Lines.
    pub(super) lines: Vec<Line>,
    /// The count's axis.
    pub(super) x: Axis,
    /// Title of the count's axis.
    pub(super) x_name: String,
    /// The figure's axis.
    pub(super) y: Axis,
    /// Unit of the labels at the y axis.
    pub(super) y_unit: String,
}

/// Draws panels of lines beside each other.
pub(super) fn lines(words: &Words, panels: &[Panel]) -> Result<String> {
    svg(words, LINES, |root| {
        for (area, panel) in root.split_evenly((1, panels.len().max(1))).iter().zip(panels) {
            area.draw(&Text::new(panel.heading.clone(), (8, 9), bold(HPos::Left)))?;
            let mut x = 8;
            for line in &panel.lines {
                let color = line.color;
                area.draw(&Circle::new((x + 5, 32), 5, color.filled()))?;
                area.draw(&Text::new(line.name.clone(), (x + 15, 32), letters(HPos::Left)))?;
                x += 15 + width(&line.name, LETTERS).ceil() as i32 + 18;
            }
            let axes = Axes {
                x: panel.x,
                x_name: &panel.x_name,
                x_labels: panel.x.labels(400),
                y_labels: 6,
                y: panel.y,
                y_unit: &panel.y_unit,
            };
            let plot = area.margin(48, 0, 0, 24);
            axes.draw(&plot, &mut |place| {
                for line in &panel.lines {
                    let points = line.points.iter().map(|&(x, y, _)| place(x, y)).collect();
                    root.draw(&PathElement::new::<Vec<_>, _>(points, line.color.stroke_width(2)))?;
                    for &(x, y, interval) in &line.points {
                        if let Some((low, high)) = interval {
                            let bar = vec![place(x, low), place(x, high)];
                            root.draw(&PathElement::new(bar, line.color.stroke_width(2)))?;
                        }
                        root.draw(&Circle::new(place(x, y), 4, line.color.filled()))?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

fn letters(side: HPos) -> TextStyle<'static> {
    font(LETTERS).pos(Pos::new(side, VPos::Center))
}

fn bold(side: HPos) -> TextStyle<'static> {
    ("sans-serif", LETTERS * 1.24, FontStyle::Bold)
        .into_font()
        .color(&INK)
        .pos(Pos::new(side, VPos::Center))
}

/// An SVG element for a page, of all that `draw` draws.
fn svg(words: &Words, height: u32, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut drawn = String::new();
    {
        let root = SVGBackend::with_string(&mut drawn, (WIDTH, height)).into_drawing_area();
        draw(&root)?;
        root.present()?;
    }
    let (_, inside) = drawn.split_once('>').context("plotters wrote no SVG")?;
    let Words { id, title, text } = words;
    Ok(format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\n\
         <title id=\"{id}-t\">{}</title>\n<desc id=\"{id}-d\">{}</desc>{}",
        escape(title),
        escape(text),
        inside.replace(INK_TEXT, "\"currentColor\""),
    ))
}
