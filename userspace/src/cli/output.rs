//! Output as tables for people and as JSON for scripts.

use std::{
    fmt::Display,
    io::{self, Write},
};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::args::Format;
use crate::printable::{printable, printable_json};

/// A row of a table.
pub(super) trait Row: Serialize {
    /// Headers.
    const HEADERS: &'static [&'static str];
    /// A cell for each header.
    fn cells(&self) -> Vec<String>;
}

/// Prints `rows` in `format`.
pub(super) fn rows<R: Row>(out: &mut dyn Write, format: Format, rows: &[R]) -> io::Result<()> {
    match format {
        Format::Json => json(out, rows),
        Format::Table => table(out, R::HEADERS, rows.iter().map(R::cells)),
    }
}

/// Rows that come page by page and are printed as they come. The columns are as wide as those of
/// the first page with rows.
pub(super) struct Pages {
    format: Format,
    /// A row has been printed.
    begun: bool,
    /// Widths of the columns of a table in characters, once it has begun.
    widths: Vec<usize>,
}

impl Pages {
    pub(super) const fn new(format: Format) -> Self {
        Self { format, begun: false, widths: Vec::new() }
    }

    /// Prints the rows of a page. A single page is printed as by [`rows`].
    pub(super) fn print<R: Row>(
        &mut self,
        out: &mut dyn Write,
        page: &[R],
        is_last: bool,
    ) -> io::Result<()> {
        let is_first = !self.begun;
        if is_first && is_last {
            return rows(out, self.format, page);
        }
        self.begun |= !page.is_empty();
        match self.format {
            Format::Table => {
                let cells: Vec<_> = page.iter().map(|row| printed(row.cells())).collect();
                if is_first && !page.is_empty() {
                    let width = |(at, header): (usize, &&str)| {
                        let of_row =
                            |row: &Vec<String>| row.get(at).map_or(0, |text| text.chars().count());
                        cells.iter().map(of_row).fold(header.chars().count(), usize::max)
                    };
                    self.widths = R::HEADERS.iter().enumerate().map(width).collect();
                    self.line(out, R::HEADERS.iter().copied())?;
                }
                cells.iter().try_for_each(|row| self.line(out, row.iter().map(String::as_str)))
            }
            Format::Json => {
                let text = serde_json::to_string_pretty(page)?;
                let inner = text.strip_prefix("[\n").and_then(|text| text.strip_suffix("\n]"));
                if let Some(inner) = inner {
                    let begin = if is_first { "[\n" } else { ",\n" };
                    write!(out, "{begin}{}", printable_json(inner))?;
                }
                if is_last { writeln!(out, "\n]") } else { Ok(()) }
            }
        }
    }

    /// Prints a line of the table.
    fn line<'a>(
        &self,
        out: &mut dyn Write,
        cells: impl Iterator<Item = &'a str>,
    ) -> io::Result<()> {
        let padded = cells.zip(&self.widths).map(|(text, width)| format!("{text:width$}   "));
        let line: String = padded.collect();
        writeln!(out, "{}", line.trim_end())
    }
}

/// Prints pretty JSON.
pub(super) fn json(out: &mut dyn Write, value: &(impl Serialize + ?Sized)) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    out.write_all(printable_json(&text).as_bytes())
}

/// Prints a line. Characters that act on a terminal are escaped, as in all that this module prints.
pub(super) fn line(out: &mut dyn Write, text: &str) -> io::Result<()> {
    writeln!(out, "{}", printable(text))
}

/// Prints a table as Docker does: no borders, three spaces between the columns. Lines are not
/// cut to the width of the terminal, as a script must get whole values.
pub(super) fn table(
    out: &mut dyn Write,
    headers: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headers);
    table.add_rows(rows.map(printed));
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The cells of a row as they are printed.
fn printed(cells: Vec<String>) -> Vec<String> {
    cells.into_iter().map(|text| printable(&text).into_owned()).collect()
}

/// Prints `NAME: value` lines with the values aligned.
pub(super) fn facts(out: &mut dyn Write, facts: &[(&str, String)]) -> io::Result<()> {
    let width = facts.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
    for (name, value) in facts {
        let line = format!("{:width$}  {}", format!("{name}:"), printable(value));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The items with commas between them, or a dash if there is none.
pub(super) fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    or_dash(items.join(", "))
}

/// `text`, or a dash if it is empty: an empty cell shifts columns for `awk`.
pub(super) fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Bytes for people, in powers of ten as in `docker stats`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // Tenths as integers, so that no value is rounded up to "1000.0 kB".
    let (mut tenths, mut unit) = (bytes / 100, 0);
    while tenths >= 10_000 {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS.get(unit).copied().unwrap_or("EB"))
}

/// Seconds for people, in the two largest units.
pub(super) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m {}s", seconds % 60),
        () if days == 0 => format!("{hours}h {}m", minutes % 60),
        () => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_is_one_line_and_does_not_act() {
        let mut out = Vec::new();
        let bad = "a\n\u{1b}[2J\u{9b}m\u{202e}";
        table(&mut out, &["ONE", "TWO"], [vec![bad.to_owned(), "b".to_owned()]].into_iter())
            .unwrap();
        facts(&mut out, &[("Fact", bad.to_owned())]).unwrap();
        line(&mut out, bad).unwrap();
        json(&mut out, &[bad]).unwrap();
        let text = String::from_utf8(out).unwrap();
        let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(acts), "{text:?}");
        // The table with its headers, the fact, the line, and the brackets of the JSON.
        assert_eq!(text.lines().count(), 2 + 1 + 1 + 3, "{text:?}");
    }

    #[derive(Clone, Serialize)]
    struct Pair {
        one: String,
        two: u32,
    }

    impl Row for Pair {
        const HEADERS: &'static [&'static str] = &["ONE", "TWO"];

        fn cells(&self) -> Vec<String> {
            vec![self.one.clone(), self.two.to_string()]
        }
    }

    #[test]
    fn pages_are_printed_as_all_rows_at_once() {
        let row = |one: &str, two| Pair { one: one.to_owned(), two };
        let all = [row("longest", 1), row("a", 22), row("\u{9b}", 3), row("d", 4)];
        for format in [Format::Table, Format::Json] {
            let mut wanted = Vec::new();
            rows(&mut wanted, format, &all).unwrap();
            for cut in [vec![0, 0, 2, 4, 4], vec![0, 4], vec![0, 1, 2, 3, 4], vec![0, 3, 3, 4]] {
                let mut pages = Pages::new(format);
                let mut out = Vec::new();
                for (at, ends) in cut.windows(2).enumerate() {
                    let is_last = at + 2 == cut.len();
                    pages.print(&mut out, &all[ends[0]..ends[1]], is_last).unwrap();
                }
                let [out, wanted] = [&out, &wanted].map(|text| String::from_utf8_lossy(text));
                assert_eq!(out, wanted, "{cut:?}");
            }
        }
    }

    #[test]
    fn sizes() {
        let shown = |bytes| size(bytes);
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(999), "999 B");
        assert_eq!(shown(1000), "1.0 kB");
        assert_eq!(shown(999_999), "999.9 kB");
        assert_eq!(shown(1_000_000), "1.0 MB");
        assert_eq!(shown(u64::MAX), "18.4 EB");
    }

    #[test]
    fn durations() {
        assert_eq!(duration(0), "0s");
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(60), "1m 0s");
        assert_eq!(duration(3661), "1h 1m");
        assert_eq!(duration(90_000), "1d 1h");
        assert!(duration(u64::MAX).ends_with('h'));
    }
}
