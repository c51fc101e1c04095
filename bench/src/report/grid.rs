//! A table that can be shown in a terminal, in Markdown or in HTML.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::escape::escape;

/// Meaning of a cell's text, shown by colour or weight.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Tone {
    /// No particular meaning.
    #[default]
    Plain,
    /// The main figure of the row is the first word.
    Strong,
    /// Good.
    Good,
    /// Bad.
    Bad,
    /// Undecided.
    Unsure,
}

/// A cell.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Text with a meaning.
    pub(crate) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }

    /// The first word, which is emphasized, and the rest of the text.
    fn strong(&self) -> Option<(&str, &str)> {
        let end = self.text.find(' ').unwrap_or(self.text.len());
        (self.tone == Tone::Strong && end > 0).then(|| self.text.split_at(end))
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// A table.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    /// Title of the table.
    pub(crate) title: String,
    /// How to read the table; may be empty.
    pub(crate) note: String,
    /// Headings, and whether the column holds figures.
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<Cell>>,
}

impl Grid {
    /// An empty table. A heading that begins with `>` is of a column of figures.
    pub(crate) fn new(title: &str, note: &str, headings: &[&str]) -> Self {
        let column = |heading: &&str| match heading.strip_prefix('>') {
            Some(figures) => (figures.to_owned(), true),
            None => ((*heading).to_owned(), false),
        };
        Self {
            title: title.to_owned(),
            note: note.to_owned(),
            columns: headings.iter().map(column).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row with a cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether it has no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Text for a terminal, like the CLI's tables: no borders, three spaces between the columns.
    /// Headings keep their case, since they have units.
    pub(crate) fn terminal(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(self.columns.iter().map(|(heading, _)| heading));
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| cell.text.as_str()));
        }
        for (column, (_, figures)) in table.column_iter_mut().zip(&self.columns) {
            column.set_padding((0, 3));
            if *figures {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut text = format!("{}\n", self.title);
        if !self.note.is_empty() {
            text.push_str(&format!("{}\n", self.note));
        }
        text.push('\n');
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// The table as Markdown, without title and note.
    pub(crate) fn markdown(&self) -> String {
        let cell = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
        let mut text = String::from("|");
        for (heading, _) in &self.columns {
            text.push_str(&format!(" {} |", cell(heading)));
        }
        text.push_str("\n|");
        for (_, figures) in &self.columns {
            text.push_str(if *figures { "---:|" } else { "---|" });
        }
        text.push('\n');
        for row in &self.rows {
            text.push('|');
            for it in row {
                let shown = match it.strong() {
                    Some((first, rest)) => format!("**{}**{}", cell(first), cell(rest)),
                    None => cell(&it.text),
                };
                text.push_str(&format!(" {shown} |"));
            }
            text.push('\n');
        }
        text
    }

    /// The table as HTML, with the note as its caption.
    pub(crate) fn html(&self) -> String {
        let mut text = String::from("<div class=\"wide\"><table>\n");
        if !self.note.is_empty() {
            text.push_str(&format!("<caption>{}</caption>\n", escape(&self.note)));
        }
        text.push_str("<thead><tr>");
        let class = |figures: bool| if figures { " class=\"n\"" } else { "" };
        for (heading, figures) in &self.columns {
            let class = class(*figures);
            text.push_str(&format!("<th scope=\"col\"{class}>{}</th>", escape(heading)));
        }
        text.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            text.push_str("<tr>");
            for (cell, (_, figures)) in row.iter().zip(&self.columns) {
                let shown = escape(&cell.text);
                let shown = match cell.tone {
                    Tone::Plain => shown,
                    Tone::Strong => match cell.strong() {
                        Some((first, rest)) => {
                            format!("<strong>{}</strong>{}", escape(first), escape(rest))
                        }
                        None => shown,
                    },
                    Tone::Good => format!("<span class=\"good\">{shown}</span>"),
                    Tone::Bad => format!("<span class=\"bad\">{shown}</span>"),
                    Tone::Unsure => format!("<span class=\"unsure\">{shown}</span>"),
                };
                text.push_str(&format!("<td{}>{shown}</td>", class(*figures)));
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</tbody></table></div>\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_cannot_break_the_table() {
        let mut grid = Grid::new("t", "", &["<a>", ">b|c"]);
        grid.row([Cell::from("x|y\nz"), Cell::new("<1> (2)", Tone::Strong)]);
        assert_eq!(grid.markdown(), "| <a> | b\\|c |\n|---|---:|\n| x\\|y z | **<1>** (2) |\n");
        let html = grid.html();
        assert!(html.contains("<strong>&lt;1&gt;</strong> (2)") && !html.contains("<a>"), "{html}");
    }
}
