//! The short form of the tables, as README.md has it.

use anyhow::{Result, bail};

use super::table::{self, Form};
use super::words;
use crate::results::Results;

/// The line before the table.
const BEGIN: &str = "<!-- begin: cargo xtask bench --write -->";
/// The line after the table.
const END: &str = "<!-- end: bench -->";

/// Rows A to F and the targets in Markdown, with machine and date of the measurement.
pub(crate) fn render(results: &Results) -> String {
    let targets = table::targets(results);
    format!(
        "{}; both hosts are namespaces of this machine. TCP, one stream: medians, and medians of \
         the ratios to C {} with their 95 % intervals; *wire-like*: frames are cut to the MTU and \
         merged again, as a network card does; *intact*: GSO frames cross the underlay whole. \
         Between namespaces, an arriving frame is a clone that shares its data with the sender's \
         queue. So the decapsulation first copies its head (`skb_unclone`). This cost is the \
         harness's own: a frame from a network card is no clone. The article's column is \
         [its own](docs/ARTICLE.md#throughput).\n\n{}\n{}\n\n{}",
        words::circumstances(results),
        words::pairs(results),
        table::article(results, Form::Page).markdown(),
        targets.note,
        targets.markdown(),
    )
}

/// `readme` with `table` between its two markers.
///
/// # Errors
///
/// The markers are missing, or in the wrong order.
pub(crate) fn replace(readme: &str, table: &str) -> Result<String> {
    let parts = readme.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let Some((before, after)) = parts else {
        bail!("has no '{BEGIN}' with a '{END}' after it");
    };
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", table.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn the_table_takes_the_place_of_the_last_one() {
        let text = format!("above\n{BEGIN}\nold\n{END}\nbelow\n");
        let first = replace(&text, "new\n").expect("has markers");
        assert_eq!(first, format!("above\n{BEGIN}\n\nnew\n\n{END}\nbelow\n"));
        assert_eq!(replace(&first, "new\n").expect("has markers"), first);
        assert!(replace("no markers", "new").is_err());
        assert!(replace(&format!("{END}{BEGIN}"), "new").is_err());
    }

    #[test]
    fn the_short_form() {
        insta::assert_snapshot!(render(&fixture::results()));
    }
}
