//! A prefix read in stretches.
//!
//! Not by etcd's `limit`: for each limited range etcd 3.4 looks at every key up to the
//! range's end, so that pages of 512 make a list of 200 000 keys take minutes. Instead
//! the prefix is cut beforehand, where the layout of the keys tells that about as much
//! lies on both sides: by networks, and the identifiers of a network's endpoints, which
//! are random, by their first digit. Where that goes wrong a stretch is longer than
//! others, and nothing else.

use etcd_client::GetOptions;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{EtcdStore, MAX_ANSWER, Repeat, entry};
use crate::{
    model::{ENDPOINTS, IPAM, NETWORKS, ROOT},
    store::{Page, Pages, Revision, Snapshot, StoreError, prefix_end},
};

/// Stretches that are read ahead.
const AHEAD: usize = 3;
/// Everybody's networks that are cut by themselves: more of them are small.
const CUT_APART: usize = 16;
/// Other networks, the nodes' own, that share a stretch.
const TOGETHER: usize = 16;

/// The whole prefix, at one revision.
pub(super) async fn whole(store: &EtcdStore, prefix: &str) -> Result<Snapshot, StoreError> {
    let mut pages: Vec<Page> = pages(store, prefix).await?.try_collect().await?;
    pages.sort_unstable_by(|one, other| one.from.cmp(&other.from));
    let revision = pages.first().map_or(0, |page| page.revision);
    let entries = pages.into_iter().flat_map(|page| page.entries).collect();
    Ok(Snapshot { revision, entries })
}

/// The prefix in stretches. Of [`ROOT`] the first page has all that is small: networks,
/// nodes and the store's mark.
pub(super) async fn pages(store: &EtcdStore, prefix: &str) -> Result<Pages, StoreError> {
    if prefix != ROOT {
        let page = stretch(store.clone(), prefix.to_owned(), prefix_end(prefix), 0).await?;
        return Ok(stream::iter([Ok(page)]).boxed());
    }
    let small = stretch(store.clone(), prefix_end(IPAM), prefix_end(ROOT), 0).await?;
    let (store, revision) = (store.clone(), small.revision);
    let cuts = cuts(small.entries.iter().map(|entry| entry.key.as_str()));
    let rest = stream::iter(cuts.into_iter().map(move |(from, to)| {
        // A task of its own: it is received and taken apart while others are worked on.
        let task = tokio::spawn(stretch(store.clone(), from, to, revision));
        async move {
            let failed = |error| StoreError::Unavailable(format!("list: {error}"));
            task.await.map_err(failed).flatten()
        }
    }));
    Ok(stream::iter([Ok(small)]).chain(rest.buffered(AHEAD)).boxed())
}

/// Stretches that cover what lies below [`ROOT`] up to the end of [`IPAM`], given the
/// keys of the networks.
fn cuts<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let names = keys.filter_map(|key| key.strip_prefix(NETWORKS));
    let (own, everybodys): (Vec<&str>, Vec<&str>) = names.partition(|name| name.contains('@'));
    let mut points = vec![ROOT.to_owned(), ENDPOINTS.to_owned(), IPAM.to_owned()];
    let apart = everybodys.len() <= CUT_APART;
    for (index, name) in everybodys.into_iter().enumerate() {
        if apart {
            let digits = (0..16).map(|digit| format!("{ENDPOINTS}{name}/{digit:x}"));
            points.extend(digits);
        }
        if apart || index.is_multiple_of(TOGETHER) {
            points.extend([format!("{ENDPOINTS}{name}/"), format!("{IPAM}{name}/")]);
        }
    }
    for name in own.into_iter().step_by(TOGETHER) {
        points.extend([format!("{ENDPOINTS}{name}/"), format!("{IPAM}{name}/")]);
    }
    points.sort_unstable();
    points.dedup();
    let ends = points.iter().skip(1).cloned().chain([prefix_end(IPAM)]).collect::<Vec<_>>();
    points.into_iter().zip(ends).collect()
}

/// The keys from `from` up to `to`, at a revision, or the newest if that is 0.
async fn stretch(
    store: EtcdStore,
    from: String,
    to: String,
    revision: Revision,
) -> Result<Page, StoreError> {
    let mut options = GetOptions::new().with_range(to.as_str());
    if revision != 0 {
        options = options.with_revision(revision);
    }
    // Each may take the whole time: a large store is not a slow one.
    let answer = store
        .within(store.connections.call(Repeat::Always, |client| {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(names: &[String]) -> usize {
        let keys: Vec<String> = names.iter().map(|name| format!("{NETWORKS}{name}")).collect();
        let cuts = cuts(keys.iter().map(String::as_str));
        assert_eq!(cuts[0].0, ROOT);
        assert_eq!(cuts[cuts.len() - 1].1, prefix_end(IPAM));
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
