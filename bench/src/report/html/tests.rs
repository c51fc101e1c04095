use super::letters::width;
use super::*;
use crate::report::fixture;

/// Elements without an end tag.
const VOID: [&str; 2] = ["meta", "!DOCTYPE"];

/// Checks that each end tag closes the element that was opened last.
fn assert_balanced(page: &str) {
    let mut open = Vec::new();
    let mut ids = Vec::new();
    for part in page.split('<').skip(1) {
        let (tag, _) = part.split_once('>').unwrap_or_else(|| panic!("no '>' after <{part}"));
        let name = tag.split([' ', '/']).next().unwrap_or_default();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "</{closed}>");
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
        if let Some((_, id)) = tag.split_once(" id=\"") {
            let id = id.split('"').next().unwrap_or_default();
            assert!(!ids.contains(&id), "id {id} twice");
            ids.push(id);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    for part in page.split("href=\"#").skip(1).chain(page.split("labelledby=\"").skip(1)) {
        let wanted = part.split('"').next().unwrap_or_default();
        assert!(wanted.split(' ').all(|id| ids.contains(&id)), "{wanted} leads nowhere");
    }
}

#[test]
fn the_page_is_whole_and_loads_nothing() {
    let page = page(&fixture::results()).expect("a page");
    assert_balanced(&page);
    for outside in ["http:", "https:", "//", "url(", "<script", "<link", "@import", "src="] {
        assert!(!page.contains(outside), "{outside}");
    }
    // Two of each of ten metrics, latency, cold start, filled tables.
    assert_eq!(page.matches("<svg").count(), 23);
    assert_eq!(page.matches("<desc").count(), 23);
    for word in ["NaN", "inf\"", "-2147483648", "2147483647", "#010203"] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn text_of_a_run_is_only_text() {
    let mut results = fixture::results();
    let evil = "<script>alert('&\"')</script>";
    results.machine.cpu = evil.into();
    results.machine.culvert = evil.into();
    results.machine.date = evil.into();
    results.programs[0].program = evil.into();
    for it in &mut results.filled {
        it.what = evil.into();
    }
    results.arms[1].title = evil.into();
    results.arms[2].id = evil.into();
    results.arms[2].row = Some('<');
    for series in &mut results.series {
        if series.arm == "culvert-overlay" {
            series.arm = evil.into();
        }
    }
    let page = page(&results).expect("a page");
    assert_balanced(&page);
    assert!(!page.contains("<script") && !page.contains("alert('"), "not escaped");
    assert!(page.contains("&lt;script&gt;"));
}

#[test]
fn a_page_of_little_is_a_page() {
    assert_balanced(&page(&Results::default()).expect("a page"));
    let mut results = fixture::results();
    results.series.retain(|series| series.arm == HOST && series.metric == Metric::TcpOne);
    results.filled.truncate(1);
    results.cold_start.truncate(1);
    results.create = None;
    assert_balanced(&page(&results).expect("a page"));
}

#[test]
fn figures_that_make_no_chart_make_no_failure() {
    for figure in [0.0, -1.0, 1e-300, 1e300, f64::MAX] {
        let mut results = fixture::results();
        for series in &mut results.series {
            for sample in &mut series.samples {
                *sample = figure;
            }
        }
        results.series[0].samples.clear();
        for it in &mut results.filled {
            it.entries = 0;
            it.tcp.clear();
            it.udp64.fill(figure);
        }
        for it in &mut results.cold_start {
            (it.endpoints, it.raw_range_ms, it.exec_to_maps_ms) = (0, figure, figure);
        }
        assert_balanced(&page(&results).expect("a page"));
    }
    // One arm that is a billion times faster than the others.
    let mut results = fixture::results();
    results.series[3].samples.fill(1e18);
    assert_balanced(&page(&results).expect("a page"));
}

/// A text of a chart, px.
struct Letters<'a> {
    text: &'a str,
    height: f64,
    /// Left and right end in a wide font.
    ends: (f64, f64),
    y: f64,
}

/// The value of an attribute of a tag, whose name is left out.
fn attribute<'a>(tag: &'a str, name: &str) -> &'a str {
    let (_, rest) = tag.split_once(&format!("{name}=\"")).expect("has the attribute");
    rest.split('"').next().unwrap_or_default()
}

/// The text of an element, from the part of the page after the beginning of its tag.
fn letters(part: &str) -> Letters<'_> {
    let (tag, rest) = part.split_once('>').expect("an end of the tag");
    let text = rest.split("</text>").next().unwrap_or_default().trim();
    let number = |name| attribute(tag, name).parse::<f64>().expect("a number");
    let (x, y, height) = (number("x"), number("y"), number("font-size"));
    let bold = if tag.contains("\"bold\"") { 1.15 } else { 1.0 };
    let wide = width(text, height) * bold;
    let left = match attribute(tag, "text-anchor") {
        "end" => x - wide,
        "middle" => x - wide / 2.0,
        _ => x,
    };
    Letters { text, height, ends: (left, left + wide), y }
}

/// A run with the longest names and figures that are likely.
fn long() -> Results {
    let mut results = fixture::results();
    let titles = [
        "container to published port of a container, Linux bridge and iptables",
        "container to container, kernel vxlan as flannel wires it",
        "host to published port of a container, Culvert bridge",
    ];
    for (arm, title) in results.arms.iter_mut().zip(titles.into_iter().cycle()) {
        arm.title = title.into();
    }
    for series in &mut results.series {
        if series.metric.less_is_better() {
            series.samples.iter_mut().for_each(|sample| *sample *= 50.0);
        }
    }
    results
}

#[test]
fn texts_of_charts_fit_and_do_not_overlap() {
    for results in [fixture::results(), long()] {
        let page = page(&results).expect("a page");
        for chart in page.split("<svg ").skip(1) {
            let chart = chart.split("</svg>").next().unwrap_or_default();
            let size = attribute(chart, "viewBox").split(' ').nth(2).and_then(|it| it.parse().ok());
            let size: f64 = size.expect("a width");
            let texts: Vec<_> = chart.split("<text ").skip(1).map(letters).collect();
            assert!(texts.len() > 5, "{} texts", texts.len());
            for it in &texts {
                let fits = it.ends.0 >= 0.0 && it.ends.1 <= size;
                assert!(fits, "'{}' from {:?} of {size}", it.text, it.ends);
            }
            // The figures at the axes have smaller letters, and places of their own.
            let rows: Vec<_> = texts.iter().filter(|it| it.height > axes::LETTERS - 0.5).collect();
            for (index, one) in rows.iter().enumerate() {
                for other in rows.iter().skip(index + 1) {
                    let beside = one.ends.1 <= other.ends.0 || other.ends.1 <= one.ends.0;
                    let apart = (one.y - other.y).abs() >= one.height;
                    assert!(beside || apart, "'{}' overlaps '{}'", one.text, other.text);
                }
            }
        }
    }
}

#[test]
fn the_headline_claims_no_more_than_the_intervals() {
    let facts = |results: &Results| {
        let page = page(results).expect("a page");
        let (_, rest) = page.split_once("<ul class=\"facts\">").expect("has facts");
        rest.split("</ul>").next().unwrap_or_default().to_owned()
    };
    let clear = facts(&fixture::results());
    assert!(clear.contains("<b>92 to 94 %</b> of the host&#39;s TCP throughput"), "{clear}");
    assert!(clear.contains("<b>9 of 13</b>"), "{clear}");
    // Rounds that differ by a half: the host is within the interval.
    let noisy = facts(&fixture::run(1, 1.0));
    assert!(noisy.contains("<b>not distinguishable</b> from the host"), "{noisy}");
    assert!(noisy.contains("neither met nor missed"), "{noisy}");
}
