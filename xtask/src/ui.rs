//! Output of the verbs: steps with their durations, progress, warnings.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Text in an ANSI style if `coloured` is true, else plain text.
fn styled(code: &str, text: &str) -> String {
    if coloured() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Bold text.
pub(crate) fn bold(text: &str) -> String {
    styled("1", text)
}

/// Dimmed text.
pub(crate) fn dim(text: &str) -> String {
    styled("2", text)
}

/// Text for a success.
pub(crate) fn green(text: &str) -> String {
    styled("32", text)
}

/// Text for a failure.
pub(crate) fn red(text: &str) -> String {
    styled("31", text)
}

/// Prints a line. Ignores a closed standard output (`| head`), on which `println!` would panic.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Prints the heading of a step.
pub(crate) fn heading(text: &str) {
    line(&format!("\n{}", bold(&format!("== {text}"))));
}

/// Prints a warning on standard error.
pub(crate) fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "warning: {text}");
}

/// Prints an error on standard error.
pub(crate) fn error(text: &str) {
    // A message of another program may have line ends; errors here are one line.
    let text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let _ = writeln!(std::io::stderr(), "error: {text}");
}

/// Text of a duration, such as `1.5 s` or `2 min 3 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:.0} s", duration.as_secs() / 60, seconds % 60.0)
    }
}

/// The progress of a piece of work: a spinner or a bar on a terminal, a line at its start and its
/// end elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    what: String,
    start: Instant,
    terminal: bool,
}

impl Progress {
    /// Starts to show `what`.
    pub(crate) fn start(what: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {wide_msg:.dim}") {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        if terminal {
            bar.enable_steady_tick(Duration::from_millis(100));
        } else {
            line(&format!("{what} ..."));
        }
        Self { bar, what: what.to_owned(), start: Instant::now(), terminal }
    }

    /// Shows the current step.
    pub(crate) fn message(&self, text: &str) {
        self.bar.set_message(text.trim().to_owned());
    }

    /// Shows the progress, in per cent.
    pub(crate) fn percent(&self, percent: u64) {
        if self.bar.length().is_none() {
            self.bar.set_length(100);
            let style = ProgressStyle::with_template("{spinner} {prefix} {bar:30} {wide_msg:.dim}");
            if let Ok(style) = style {
                self.bar.set_style(style);
            }
        }
        self.bar.set_position(percent.min(100));
    }

    /// Ends the progress and prints the result.
    pub(crate) fn finish(self, ok: bool) {
        self.bar.finish_and_clear();
        let mark = if ok { green("ok") } else { red("failed") };
        let took = seconds(self.start.elapsed());
        if self.terminal {
            line(&format!("{} {mark} {}", self.what, dim(&format!("({took})"))));
        } else {
            line(&format!("{}: {mark} ({took})", self.what));
        }
    }
}

/// Prints `rows` in columns under `header`.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let format = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            let pad = width.saturating_sub(cell.chars().count());
            text.push_str(cell);
            text.push_str(&" ".repeat(pad + 2));
        }
        text.trim_end().to_owned()
    };
    line(&bold(&format(&mut header.iter().copied())));
    for row in rows {
        line(&format(&mut row.iter().map(String::as_str)));
    }
}
