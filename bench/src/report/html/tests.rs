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
