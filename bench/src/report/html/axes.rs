//! Axes of charts, from plotters' scales.

use std::cell::Cell;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

/// Placeholder for the colour of the page's text.
pub(super) const INK: RGBColor = RGBColor(1, 2, 3);
/// Height of letters, px.
pub(super) const LETTERS: f64 = 13.0;
/// Height of the horizontal axis, px.
pub(super) const AXIS: u32 = 40;
/// Width of the labels to the left, px.
const LEFT: u32 = 62;
/// Largest number of powers of ten of a logarithmic axis. Figures with a wider range get no chart.
const DECADES: f64 = 9.0;
/// Ratio of the axis ends from which a logarithmic axis has labels at powers of ten alone.
const CROWDED: f64 = 60.0;

/// The drawing area.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Converts figures to pixels.
pub(super) type ToPixels<'a> = dyn Fn(f64, f64) -> (i32, i32) + 'a;

/// An axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Axis {
    /// Start and end.
    Linear(f64, f64),
    /// Start and end, both above zero.
    Log(f64, f64),
}

impl Axis {
    /// From zero to somewhat above the largest figure; none if there is nothing to show.
    pub(super) fn linear(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let most = figures.filter(|it| it.is_finite()).fold(0.0, f64::max);
        (most > 1e-12 && most < 1e18).then_some(Self::Linear(0.0, most * 1.06))
    }

    /// Around all figures and one; none if there is nothing to show.
    pub(super) fn around_one(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) = figures
            .filter(|it| it.is_finite())
            .fold((1.0_f64, 1.0_f64), |(low, high), it| (it.min(low), it.max(high)));
        let margin = ((high - low) * 0.05).max(0.01);
        (low >= 0.0 && high < 1e12).then_some(Self::Linear(low - margin, high + margin))
    }

    /// Around all figures above zero; none if there are none or they differ too much.
    pub(super) fn log(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) = figures
            .filter(|it| it.is_finite() && *it > 0.0)
            .fold((f64::MAX, 0.0), |(low, high), it| (it.min(low), it.max(high)));
        let wide = |low: f64, high: f64| (high / low).log10();
        (low > 1e-12 && high < 1e18 && low <= high && wide(low, high) < DECADES)
            .then(|| Self::Log(low / 1.3, high * 1.3))
    }

    /// Start of the axis.
    pub(super) fn start(self) -> f64 {
        match self {
            Self::Linear(low, _) | Self::Log(low, _) => low,
        }
    }

    /// End of the axis.
    pub(super) fn end(self) -> f64 {
        match self {
            Self::Linear(_, high) | Self::Log(_, high) => high,
        }
    }

    /// `value`, limited to the range of the axis.
    pub(super) fn within(self, value: f64) -> f64 {
        match self {
            Self::Linear(low, high) | Self::Log(low, high) => value.max(low).min(high),
        }
    }

    /// Number of labels for which an axis of `pixels` has room, as plotters counts labels.
    pub(super) fn labels(self, pixels: u32) -> usize {
        match self {
            Self::Linear(..) => (pixels / 40) as usize,
            // Ten labels for each power of ten, most of which are left empty; or one label.
            Self::Log(low, high) => {
                let decades = (high / low).log10().floor().max(1.0);
                (decades * if high / low > CROWDED { 1.0 } else { 10.0 }) as usize
            }
        }
    }

    /// The label at `value`; empty if the axis has no label there.
    fn label(self, value: f64, unit: &str) -> String {
        if let Self::Log(low, high) = self {
            // A small tolerance, since the computed logarithm of a power of ten may be slightly
            // smaller.
            let digit = (value / 10_f64.powf((value.log10() + 1e-9).floor())).round() as u32;
            let shown: &[u32] = if high / low > CROWDED { &[1] } else { &[1, 2, 5] };
            if !shown.contains(&digit) {
                return String::new();
            }
        }
        format!("{}{unit}", short(value))
    }
}

/// The shortest text of a round number.
fn short(value: f64) -> String {
    let trim = |text: String| {
        let text = if text.contains('.') { text.trim_end_matches('0') } else { &text };
        text.trim_end_matches('.').to_owned()
    };
    match value.abs() {
        it if it >= 1e6 => format!("{}M", trim(format!("{:.1}", value / 1e6))),
        it if it >= 1e4 => format!("{}k", trim(format!("{:.0}", value / 1e3))),
        it if it >= 1e3 => format!("{}k", trim(format!("{:.1}", value / 1e3))),
        _ => trim(format!("{value:.3}")),
    }
}

/// The axes of a panel.
pub(super) struct Axes<'a> {
    /// The horizontal axis.
    pub(super) x: Axis,
    /// Title of the horizontal axis.
    pub(super) x_name: &'a str,
    /// Approximate number of labels of the horizontal axis.
    pub(super) x_labels: usize,
    /// The vertical axis.
    pub(super) y: Axis,
    /// Suffix of each label of the vertical axis.
    pub(super) y_unit: &'a str,
    /// Approximate number of labels of the vertical axis. With 0, the axis has no lines either.
    pub(super) y_labels: usize,
}

impl Axes<'_> {
    /// Draws the axes, and the contents by `draw`.
    pub(super) fn draw(
        &self,
        area: &Area<'_>,
        draw: &mut dyn FnMut(&ToPixels<'_>) -> Result<()>,
    ) -> Result<()> {
        let log = |low: f64, high: f64| (low..high).log_scale();
        match (self.x, self.y) {
            (Axis::Linear(a, b), Axis::Linear(c, d)) => self.on(area, a..b, c..d, draw),
            (Axis::Log(a, b), Axis::Linear(c, d)) => self.on(area, log(a, b), c..d, draw),
            (Axis::Linear(a, b), Axis::Log(c, d)) => self.on(area, a..b, log(c, d), draw),
            (Axis::Log(a, b), Axis::Log(c, d)) => self.on(area, log(a, b), log(c, d), draw),
        }
    }

    fn on<X, Y>(
        &self,
        area: &Area<'_>,
        x: X,
        y: Y,
        draw: &mut dyn FnMut(&ToPixels<'_>) -> Result<()>,
    ) -> Result<()>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let left = if self.y_labels > 0 { LEFT } else { 1 };
        let mut builder = ChartBuilder::on(area);
        builder.x_label_area_size(AXIS).y_label_area_size(left);
        let mut chart = builder.build_cartesian_2d(x, y)?;
        let mut mesh = chart.configure_mesh();
        if self.y_labels == 0 {
            mesh.disable_y_mesh();
        }
        mesh.x_labels(self.x_labels)
            .y_labels(self.y_labels)
            .max_light_lines(0)
            .x_label_formatter(&once(&|value| self.x.label(value, "")))
            .y_label_formatter(&once(&|value| self.y.label(value, self.y_unit)))
            .x_desc(self.x_name)
            .axis_style(INK.mix(0.5))
            .bold_line_style(INK.mix(0.12))
            .label_style(font(LETTERS - 1.0))
            .axis_desc_style(font(LETTERS - 1.0))
            .draw()?;
        draw(&|x, y| chart.backend_coord(&(x, y)))
    }
}

/// Makes each label once in a row: plotters ends one power of ten with the figure with which the
/// next one begins, and would print the label twice.
fn once<'a>(label: &'a dyn Fn(f64) -> String) -> impl Fn(&f64) -> String + 'a {
    let last = Cell::new(f64::NAN);
    move |&value| {
        let again = (last.replace(value) / value - 1.0).abs() < 1e-9;
        if again { String::new() } else { label(value) }
    }
}

/// Letters of this height, px. plotters has another measure of the height.
pub(super) fn font(pixels: f64) -> TextStyle<'static> {
    ("sans-serif", pixels * 1.24).into_font().color(&INK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_of_what_can_be_drawn() {
        assert_eq!(Axis::linear([0.0, 2.0].into_iter()), Some(Axis::Linear(0.0, 2.12)));
        assert_eq!(Axis::linear([0.0].into_iter()), None);
        assert_eq!(Axis::linear([f64::NAN, 1e300].into_iter()), None);
        assert_eq!(Axis::around_one([0.9, 1.3].into_iter()), Some(Axis::Linear(0.88, 1.32)));
        assert_eq!(Axis::log([1e-9, 1e9].into_iter()), None);
        assert_eq!(Axis::log([0.0, -1.0].into_iter()), None);
        assert_eq!(Axis::log([0.0, 13.0].into_iter()), Some(Axis::Log(10.0, 13.0 * 1.3)));
    }

    #[test]
    fn labels_are_short() {
        let texts = [0.0, 0.5, 20.0, 1_000.0, 2_500.0, 100_000.0, 1.5e6].map(short);
        assert_eq!(texts, ["0", "0.5", "20", "1k", "2.5k", "100k", "1.5M"]);
        let log = Axis::Log(5.0, 90.0);
        let texts = [10.0, 20.0, 30.0, 50.0].map(|value| log.label(value, ""));
        assert_eq!(texts, ["10", "20", "", "50"]);
        let label = |it| log.label(it, "");
        let one = once(&label);
        assert_eq!([10.0, 20.0, 20.0, 10.0].map(|value| one(&value)), ["10", "20", "", "10"]);
    }
}
