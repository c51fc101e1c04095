//! Reads a prefix in several key ranges.
//!
//! etcd's `limit` is not used: for each limited range etcd 3.4 scans every key up to the end of the
//! range, so a list of 200 000 keys in pages of 512 takes minutes. Instead, the [`Layout`] of the
//! keys determines in advance where the prefix is divided: between groups, and within a group by
//! the first digit of its random members.

use etcd_client::{GetOptions, KeyValue};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::connection::{Connections, MAX_ANSWER, Repeat};
use crate::store::{Entry, Layout, Page, Pages, Revision, Snapshot, StoreError, prefix_end};

/// Number of key ranges that are read ahead.
const AHEAD: usize = 3;
/// With at most this many groups, each group is divided by first digits.
const CUT_APART: usize = 16;
/// Number of small groups that share a key range.
const TOGETHER: usize = 16;

/// Reads the whole prefix at one revision.
pub(super) async fn whole(
    connections: &Connections,
    layout: Option<Layout>,
    prefix: &str,
) -> Result<Snapshot, StoreError> {
    let mut pages: Vec<Page> = pages(connections, layout, prefix).await?.try_collect().await?;
    pages.sort_unstable_by(|one, other| one.from.cmp(&other.from));
    let revision = pages.first().map_or(0, |page| page.revision);
    let entries = pages.into_iter().flat_map(|page| page.entries).collect();
    Ok(Snapshot { revision, entries })
}

/// Reads the prefix in key ranges. For the root of the layout, the first page has every key that is
/// not a member of a group.
pub(super) async fn pages(
    connections: &Connections,
    layout: Option<Layout>,
    prefix: &str,
) -> Result<Pages, StoreError> {
    let Some(layout) = layout.filter(|layout| layout.root == prefix) else {
        let page = stretch(connections.clone(), prefix.to_owned(), prefix_end(prefix), 0).await?;
        return Ok(stream::iter([Ok(page)]).boxed());
    };
    let (from, to) = (prefix_end(layout.ordered), prefix_end(layout.root));
    let small = stretch(connections.clone(), from, to, 0).await?;
    let (connections, revision) = (connections.clone(), small.revision);
    let cuts = cuts(layout, small.entries.iter().map(|entry| entry.key.as_str()));
    let rest = stream::iter(cuts.into_iter().map(move |(from, to)| {
        // Each key range has a task, so it is received and decoded while others are processed.
        let task = tokio::spawn(stretch(connections.clone(), from, to, revision));
        async move {
            let failed = |error| StoreError::Unavailable(format!("list: {error}"));
            task.await.map_err(failed).flatten()
        }
    }));
    Ok(stream::iter([Ok(small)]).chain(rest.buffered(AHEAD)).boxed())
}

/// Key ranges that cover all keys below the root up to the end of [`Layout::ordered`], derived from
/// the keys of the groups.
fn cuts<'a>(layout: Layout, keys: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let Layout { root, random, ordered, groups, small } = layout;
    let names = keys.filter_map(|key| key.strip_prefix(groups));
    let (small, large): (Vec<&str>, Vec<&str>) = names.partition(|name| name.contains(small));
    let mut points = vec![root.to_owned(), random.to_owned(), ordered.to_owned()];
    let apart = large.len() <= CUT_APART;
    for (index, name) in large.into_iter().enumerate() {
        if apart {
            let digits = (0..16).map(|digit| format!("{random}{name}/{digit:x}"));
            points.extend(digits);
        }
        if apart || index.is_multiple_of(TOGETHER) {
            points.extend([format!("{random}{name}/"), format!("{ordered}{name}/")]);
        }
    }
    for name in small.into_iter().step_by(TOGETHER) {
        points.extend([format!("{random}{name}/"), format!("{ordered}{name}/")]);
    }
    points.sort_unstable();
    points.dedup();
    let ends = points.iter().skip(1).cloned().chain([prefix_end(ordered)]).collect::<Vec<_>>();
    points.into_iter().zip(ends).collect()
}

/// Reads the keys from `from` (included) to `to` (excluded) at a revision; 0 is the newest.
async fn stretch(
    connections: Connections,
    from: String,
    to: String,
    revision: Revision,
) -> Result<Page, StoreError> {
    let mut options = GetOptions::new().with_range(to.as_str());
    if revision != 0 {
        options = options.with_revision(revision);
    }
    // The timeout applies to each key range: a large store needs longer for all of them.
    let answer = connections
        .within(connections.call(Repeat::Always, |client| {
            let (from, options) = (from.clone(), options.clone());
            async move {
                let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
                kv.get(from, Some(options)).await
            }
        }))
        .await?;
    let newest = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    let entries = answer.kvs().iter().filter_map(entry).collect();
    Ok(Page { revision: if revision == 0 { newest } else { revision }, from, to, entries })
}

/// A pair as an entry. `None`: the key is not UTF-8, so Culvert did not write it.
pub(super) fn entry(pair: &KeyValue) -> Option<Entry> {
    Some(Entry {
        key: pair.key_str().ok()?.to_owned(),
        value: pair.value().to_vec(),
        mod_revision: pair.mod_revision(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        root: "/t/",
        random: "/t/endpoints/",
        ordered: "/t/ipam/",
        groups: "/t/networks/",
        small: '@',
    };

    fn covers(names: &[String]) -> usize {
        let keys: Vec<String> =
            names.iter().map(|name| format!("{}{name}", LAYOUT.groups)).collect();
        let cuts = cuts(LAYOUT, keys.iter().map(String::as_str));
        assert_eq!(cuts[0].0, LAYOUT.root);
        assert_eq!(cuts[cuts.len() - 1].1, prefix_end(LAYOUT.ordered));
        for pair in cuts.windows(2) {
            assert!(pair[0].0 < pair[0].1 && pair[0].1 == pair[1].0, "{pair:?}");
        }
        cuts.len()
    }

    #[test]
    fn the_stretches_leave_no_gap_and_are_not_too_many() {
        assert_eq!(covers(&[]), 3);
        let few: Vec<String> = (0..3).map(|n| format!("net{n}")).collect();
        assert_eq!(covers(&few), 3 + 3 * 18);
        let many: Vec<String> =
            (0..1000).flat_map(|n| [format!("net{n}"), format!("bridge@host{n}")]).collect();
        assert!(covers(&many) < 300);
    }
}
