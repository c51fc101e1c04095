//! Reads and delivers a list of the whole store.

use futures::StreamExt;
use tokio::time::Instant;

use super::{Break, Listed, Update, Worker, comparison::Comparison};
use crate::store::{Change, Page, Revision};

/// Number of changes in an update of a list. The receiver works on one update while the follower
/// reads the next.
const PART: usize = 4096;

/// A list that is being received.
#[derive(Debug, Default)]
struct Listing {
    /// `None`: nothing was delivered that the list could be compared with.
    comparison: Option<Comparison>,
    /// Changes that are not delivered yet.
    changes: Vec<Change>,
    /// Delivered keys that the list does not have.
    gone: Vec<String>,
}

impl Worker {
    /// Lists all keys, and delivers the difference to the delivered keys.
    ///
    /// Nothing is delivered before the mark has been checked. The first list is delivered page by
    /// page: if a later page cannot be read, the delivered part is still correct, as with an
    /// interrupted watch. A later list is compared as a whole with what was delivered, and nothing
    /// of it is delivered before. Deletions come last in any case.
    pub(super) async fn list(&mut self) -> Result<(), Break> {
        let began = Instant::now();
        self.check_same().await?;
        let before = self.last.unwrap_or_default();
        let mut pages = self.store.list(&self.prefix).await?;
        let mut listing = Listing {
            comparison: self.last.filter(|_| self.complete).map(Comparison::new),
            ..Listing::default()
        };
        let (mut held, mut keys, mut revision, mut same) = (Vec::new(), 0, None, false);
        while let Some(page) = pages.next().await {
            let page = page?;
            keys += page.entries.len();
            revision = Some(page.revision);
            if !same && page.from <= self.mark_key && self.mark_key < page.to {
                self.identify(&page, listing.comparison.is_none()).await?;
                same = true;
            }
            held.push(page);
            if same {
                for page in held.drain(..) {
                    self.take_page(page, &mut listing).await?;
                }
            }
        }
        let Some(revision) = revision.filter(|_| same) else {
            return Err(Break::Failed("store: a list without the store's mark".to_owned()));
        };
        let listed = Listed { keys, began, took: began.elapsed() };
        // Another store may have taken the place of the one that was checked before the list.
        let proven = self.check_same().await?.unwrap_or_default();
        let changes = self.changes_of(listing, proven, revision)?;
        self.last = Some(revision);
        self.complete = true;
        self.healthy();
        self.send_rest(before, revision, changes, listed).await
    }

    /// Checks the mark in the page that has its place, and writes it if there is none. With `known`,
    /// the store then counts as identified: no comparison follows.
    async fn identify(&mut self, page: &Page, known: bool) -> Result<(), Break> {
        self.same_store(page.revision, &page.entries)?;
        if self.mark.is_none() {
            match self.mark_in(&page.entries) {
                Some(mark) => self.mark = Some(mark),
                // The next list contains the mark.
                None if self.write_mark(page.revision).await? => return Err(Break::Relist),
                None => {}
            }
        }
        if known {
            self.replaced = None;
            self.health.send_if_modified(|health| {
                let news = !health.identified || health.replaced.is_some();
                (health.identified, health.replaced) = (true, None);
                health.accepted = self.accepted;
                news
            });
        }
        Ok(())
    }

    /// Takes a page of a list: to be compared, or delivered at once.
    async fn take_page(&mut self, page: Page, listing: &mut Listing) -> Result<(), Break> {
        if let Some(comparison) = &mut listing.comparison {
            comparison.add(self.seen.compare(page));
            return Ok(());
        }
        let newest = page.entries.iter().max_by_key(|entry| entry.mod_revision);
        self.witness_to(newest.map(|entry| (entry.key.as_str(), entry.mod_revision)));
        let found = self.seen.turn_to(page);
        listing.changes.extend(found.news.into_iter().map(Change::Put));
        listing.gone.extend(found.gone.into_iter().map(|(key, _)| key));
        if listing.changes.len() >= PART {
            let revision = self.last.unwrap_or_default();
            let changes = std::mem::take(&mut listing.changes);
            self.send(Update { revision, changes, resync: true, listed: None }).await?;
        }
        Ok(())
    }

    /// The changes of a list that are to be delivered still. Up to `proven` the history of the store
    /// is known to be the one that was seen.
    fn changes_of(
        &mut self,
        listing: Listing,
        proven: Revision,
        revision: Revision,
    ) -> Result<Vec<Change>, Break> {
        let Listing { comparison, mut changes, mut gone } = listing;
        if let Some(comparison) = comparison {
            let changed = comparison.conclude(proven, self.fleeting.as_deref()).map_err(|why| {
                Break::Doubtful(format!("store: replaced: {why}; nothing is deleted"))
            })?;
            for entry in &changed.news {
                self.seen.put(&entry.key, entry.mod_revision);
                self.witness_to(Some((&entry.key, entry.mod_revision)));
            }
            changes = changed.news.into_iter().map(Change::Put).collect();
            gone = changed.gone;
        }
        for key in gone {
            self.seen.delete(&key);
            changes.push(Change::Delete { key, revision });
        }
        Ok(changes)
    }

    /// Delivers the rest of a list of `revision`. `before` is the revision from before the list.
    async fn send_rest(
        &self,
        before: Revision,
        revision: Revision,
        changes: Vec<Change>,
        listed: Listed,
    ) -> Result<(), Break> {
        let mut rest = changes.into_iter();
        loop {
            let changes: Vec<Change> = rest.by_ref().take(PART).collect();
            if rest.as_slice().is_empty() {
                let listed = Some(listed);
                return self.send(Update { revision, changes, resync: true, listed }).await;
            }
            self.send(Update { revision: before, changes, resync: true, listed: None }).await?;
        }
    }
}
