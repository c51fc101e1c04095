//! The page: one self-contained file, for a reader without prior knowledge.

mod axes;
mod charts;
mod figures;
mod letters;

use anyhow::Result;
use plotters::style::RGBColor;

use super::escape::escape;
use super::table::{self, Form};
use super::targets::{self, Outcome};
use super::words;
use crate::results::{ArmInfo, HOST, Metric, Regime, Results};

/// Style of the page.
const STYLE: &str = include_str!("html/page.css");

/// `text` with a capital first letter.
fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

/// How many targets are met, and how it goes on. A target counts as met only if its interval is on
/// the right side.
fn met(results: &Results) -> (String, String) {
    let outcomes: Vec<Outcome> = targets::all(results).iter().map(|it| it.outcome()).collect();
    let count = |outcome| outcomes.iter().filter(|it| **it == outcome).count();
    let measured = outcomes.len() - count(Outcome::NotMeasured);
    let mut text = "measured targets are met".to_owned();
    let undecided = count(Outcome::MetUncertain) + count(Outcome::MissedUncertain);
    for (number, what) in [
        (undecided, "lie within their intervals, and are neither met nor missed"),
        (count(Outcome::NotMeasured), "more were not measured"),
    ] {
        if number > 0 {
            text.push_str(&format!("; {number} {what}"));
        }
    }
    (format!("{} of {measured}", count(Outcome::Met)), text)
}

/// The page of a run.
///
/// # Errors
///
/// A chart cannot be drawn.
pub(crate) fn page(results: &Results) -> Result<String> {
    let mut page = Page::default();
    page.summary(results);
    page.compared(results);
    page.charts(results)?;
    page.latency(results)?;
    page.scale(results)?;
    page.programs(results);
    page.targets(results);
    page.figures(results);
    page.method(results);
    page.glossary(results);
    let links: Vec<String> = page
        .sections
        .iter()
        .map(|(id, title)| format!("<a href=\"#{id}\">{}</a>", escape(title)))
        .collect();
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Culvert benchmark, {date}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1>How fast is Culvert?</h1>\n\
         <p class=\"quiet\">Benchmark of {date}: Culvert {version} against the kernel's own \
         means and against no container network at all.</p>\n<nav>{}</nav>\n</header>\n\
         <main>\n{}</main>\n</body>\n</html>\n",
        links.join(" "),
        page.body,
        date = escape(&results.machine.date),
        version = escape(&results.machine.culvert),
    ))
}

/// The part of a page that is written so far.
#[derive(Debug, Default)]
struct Page {
    sections: Vec<(&'static str, &'static str)>,
    body: String,
}

impl Page {
    /// Begins a section.
    fn section(&mut self, id: &'static str, title: &'static str) {
        self.sections.push((id, title));
        self.body.push_str(&format!("<h2 id=\"{id}\">{}</h2>\n", escape(title)));
    }

    /// A paragraph of text.
    fn text(&mut self, text: &str) {
        self.body.push_str(&format!("<p>{}</p>\n", escape(text)));
    }

    /// A chart with its caption.
    fn figure(&mut self, title: &str, caption: &str, svg: &str) {
        self.body.push_str(&format!(
            "<h3>{}</h3>\n<figure>\n<figcaption>{}</figcaption>\n{svg}</figure>\n",
            escape(title),
            escape(caption)
        ));
    }

    /// The main figures.
    fn summary(&mut self, results: &Results) {
        let claim = |base, base_name, regime, metric, what| {
            let ratio = results.ratio("culvert-overlay", base, regime, metric);
            words::claim(ratio, base_name, what)
        };
        let facts = [
            claim(
                HOST,
                "the host",
                Regime::WireLike,
                Metric::TcpOne,
                "TCP throughput, through the overlay, frames cut to the MTU as on a wire",
            ),
            claim(
                HOST,
                "the host",
                Regime::Intact,
                Metric::TcpOne,
                "TCP throughput, through the overlay, frames intact",
            ),
            claim(
                "vxlan-docker",
                "kernel vxlan",
                Regime::Intact,
                Metric::Udp64,
                "64-byte packets per second, through the overlay",
            ),
            met(results),
        ];
        self.body.push_str("<ul class=\"facts\">\n");
        for (figure, text) in facts {
            let (figure, text) = (escape(&figure), escape(&text));
            self.body.push_str(&format!("<li><b>{figure}</b> {text}</li>\n"));
        }
        self.body.push_str("</ul>\n");
    }

    fn compared(&mut self, results: &Results) {
        self.section("compared", "What was compared");
        self.text(
            "A container network moves packets between containers on different hosts. That costs \
             time on every packet. Here the same load generators send the same traffic along \
             several paths between two ends, called arms: through Culvert, through what Linux or \
             other networks have for the same purpose, and straight from host to host with no \
             container network at all. The last one, row C, is what the others are measured \
             against: 1.00 is as fast as without a container network.",
        );
        self.text(
            "Everything is measured twice. Wire-like: the sender cuts packets to the MTU and the \
             receiver merges them again, as between machines with a network card. Frames intact: \
             packets of up to 64 KB cross from one host to the other whole, as between two virtual \
             hosts of one machine.",
        );
        self.text(
            "The rows are those of the article whose table Culvert began with; its ratios are in \
             the last column. Its hosts were virtual machines with other costs, so only the \
             ratios compare, and even they only in part.",
        );
        self.body.push_str(&table::article(results, Form::Page).html());
    }

    fn charts(&mut self, results: &Results) -> Result<()> {
        self.section("charts", "Throughput and cost");
        self.text(
            "A bar is the median of all rounds, each dot one round. The black or white bracket is \
             where the median lies with a confidence of 95 %. Beside it stand the median and its \
             ratio to the host. The ratio is taken within a round or, where the arms alternate in \
             slices, between neighbouring slices. The thin vertical line continues \
             the host's bar. Both panels of a chart have the same scale. Below each chart, the \
             ratios to the host can be unfolded: there the grey band is what the host differs \
             from itself (A/A), and no difference smaller than that is claimed.",
        );
        self.key();
        for metric in figures::CHARTED {
            if let Some(svg) = figures::metric(results, metric)? {
                let better = if metric.less_is_better() { "Less" } else { "More" };
                let caption = format!("{} {better} is better.", words::explain(metric));
                self.figure(&capital(&words::heading(metric)), &caption, &svg);
                if let Some(svg) = figures::ratios(results, metric)? {
                    self.body.push_str(&format!(
                        "<details>\n<summary>Ratios to the host, enlarged</summary>\n\
                         <figure>\n{svg}</figure>\n</details>\n"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The legend of the colours.
    fn key(&mut self) {
        let hex = |RGBColor(red, green, blue)| format!("#{red:02x}{green:02x}{blue:02x}");
        self.body.push_str("<p class=\"key\">");
        for (color, name) in [
            (figures::CULVERT, "Culvert"),
            (figures::OTHER, "other networks"),
            (figures::PLAIN, "host to host"),
        ] {
            let color = hex(color);
            self.body.push_str(&format!("<span><i style=\"background:{color}\"></i>{name}</span>"));
        }
        self.body.push_str("</p>\n");
    }

    fn latency(&mut self, results: &Results) -> Result<()> {
        let Some(svg) = figures::latency(results)? else {
            return Ok(());
        };
        self.section("latency", "Latency");
        self.figure(
            "TCP round trip, percentiles",
            "One byte there and back over an open TCP connection. From left to right: half of \
             the exchanges (dot), 99 of 100, and 999 of 1,000 take at most this long. Medians of \
             all rounds. Less, that is further to the left, is better.",
            &svg,
        );
        Ok(())
    }

    fn scale(&mut self, results: &Results) -> Result<()> {
        let [_, create, cold_start, filled, attack, listings] = table::details(results);
        let all = [&create, &cold_start, &filled, &attack, &listings];
        if all.iter().all(|grid| grid.is_empty()) {
            return Ok(());
        }
        self.section("scale", "Scale");
        let charts = [
            (create, None, ""),
            (
                cold_start,
                figures::cold_start(results)?,
                "How long an agent takes to know all endpoints of other hosts after it is \
                 started, and the memory that takes. A line parallel to the raw read's is slower by a fixed \
                 factor. Less is better.",
            ),
            (
                filled,
                figures::filled(results)?,
                "Throughput of the overlay while the tables that its programs look into hold so \
                 many entries. It has to stay flat. Vertical lines: 95 % intervals.",
            ),
            (attack, None, ""),
            (listings, None, ""),
        ];
        for (grid, svg, caption) in charts {
            if grid.is_empty() {
                continue;
            }
            match svg {
                Some(svg) => self.figure(&grid.title, caption, &svg),
                None => self.body.push_str(&format!("<h3>{}</h3>\n", escape(&grid.title))),
            }
            self.body.push_str(&grid.html());
        }
        Ok(())
    }

    fn programs(&mut self, results: &Results) {
        let [programs, ..] = table::details(results);
        if !programs.is_empty() {
            self.section("programs", "BPF programs");
            self.text(
                "What Culvert adds to a packet's path is small programs in the kernel: one where \
                 a packet leaves a container, one where it arrives from another host.",
            );
            self.body.push_str(&programs.html());
        }
    }

    fn targets(&mut self, results: &Results) {
        self.section("targets", "Targets");
        self.text(
            "What Culvert is to reach on a machine of this class. A figure counts by its median; \
             where its 95 % interval reaches to the other side of the target, that is said.",
        );
        self.body.push_str(&table::targets(results).html());
    }

    fn figures(&mut self, results: &Results) {
        self.section("figures", "All figures");
        let metrics = table::metrics(results, Form::Page);
        let title = escape(&metrics.title);
        let table = metrics.html();
        self.body.push_str(&format!(
            "<details>\n<summary>{title}, every arm</summary>\n{table}</details>\n"
        ));
    }

    fn method(&mut self, results: &Results) {
        let (machine, settings) = (&results.machine, &results.settings);
        self.section("method", "Method and machine");
        let rounds = words::whole(settings.rounds.into());
        let quick = if settings.quick { ", a quick run" } else { "" };
        let core = if settings.receive_on_other_core {
            "Receiving is the work of the core that does not send, as on a second machine."
        } else {
            "Receiving is the work of whichever core the kernel chooses."
        };
        self.text(&format!(
            "{rounds} rounds{quick}; in each, every arm is measured for {} s a metric, in an order \
             that rotates from round to round, so that what else the machine does falls on all. \
             Both hosts are network namespaces of one machine. {core}",
            settings.seconds
        ));
        if let Some(slices) = &settings.slices {
            self.text(&format!(
                "TCP streams and round trips alternate: the connections of all arms stay open, \
                 and one arm after the other has traffic, for {} ms or {} round trips, after {} ms \
                 that do not count. Each arm has two such slices between two of the host, and its \
                 ratio is that of neighbouring slices. Slices in which the hypervisor took time \
                 away, or another program displaced the load, more than usual are thrown away.",
                slices.stream_ms, slices.round_trips, slices.lead_in_ms
            ));
        }
        let others = if settings.slices.is_some() { "The other ratios" } else { "Ratios" };
        self.text(&format!(
            "{others} are taken within a round. The median of the ratios is shown: a machine that \
             is slower for a while is so for both. Intervals are 95 % by the percentile bootstrap. \
             The host is measured a second time as if it were another arm (A/A): a difference \
             smaller than that of the two is not claimed.",
        ));
        self.body.push_str(&table::noise(results).html());
        let slices = table::slices(results);
        if !slices.is_empty() {
            self.body.push_str(&format!("<h3>{}</h3>\n{}", escape(&slices.title), slices.html()));
        }
        let facts = [
            ("Date", machine.date.clone()),
            ("Processor", format!("{}, {} cores", machine.cpu, machine.cores)),
            ("Memory", format!("{} MiB", words::whole(machine.memory_mib))),
            ("Kernel", format!("Linux {}", machine.kernel)),
            ("Load", format!("{:.2} before, {:.2} after", machine.load_before, machine.load_after)),
            ("Culvert", machine.culvert.clone()),
        ];
        self.body.push_str("<div class=\"wide\"><table>\n<tbody>\n");
        for (name, value) in facts {
            let value = escape(&value);
            self.body
                .push_str(&format!("<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>\n"));
        }
        self.body.push_str("</tbody></table></div>\n");
    }

    fn glossary(&mut self, results: &Results) {
        if results.arms.is_empty() {
            return;
        }
        self.section("arms", "Glossary of arms");
        self.body.push_str("<dl>\n");
        for ArmInfo { id, title, row } in &results.arms {
            let row = row.map_or_else(String::new, |row| format!(", row {row}"));
            self.body.push_str(&format!(
                "<dt>{} <span class=\"quiet\">({}{})</span></dt>\n<dd>{}</dd>\n",
                escape(title),
                escape(id),
                escape(&row),
                escape(words::about(id)),
            ));
        }
        self.body.push_str("</dl>\n");
    }
}

#[cfg(test)]
mod tests;
