//! Ports that the host's netfilter or IPVS translates without a socket, as Docker without its
//! userland proxy and kube-proxy do. The programs take packets before netfilter.
//!
//! The rules are read with the programs `nft` and `iptables-save`, if they are installed.

mod generation;
mod iptables;
mod ipvs;
mod nftables;
mod programs;
mod rules;

use std::os::fd::BorrowedFd;

use tokio::{sync::Mutex, task::spawn_blocking};

use self::programs::{Files, Output};
pub use self::rules::{Chain, Rules, Translation, Translator};
use crate::netns::run_in;

/// Reads the rules of a network namespace. Rules that cannot be read are left out. Must be called
/// within a tokio runtime.
pub async fn read(netns: BorrowedFd<'_>) -> Rules {
    RulesReader::default().read(netns).await
}

/// Reads the rules of one network namespace, again and again. The nftables rules, to which the rules
/// of `iptables-nft` belong, are listed again only after they have changed: a list takes two
/// processes, and kube-proxy has tens of thousands of rules.
#[derive(Debug, Default)]
pub struct RulesReader {
    /// Locked while the rules are read.
    listed: Mutex<Listed>,
}

/// What a reader keeps.
#[derive(Debug, Default)]
struct Listed {
    /// The nftables rules, with the generation that they had before they were listed. `None`: they
    /// are to be listed.
    last: Option<(u32, Rules)>,
    /// A program has listed them, so the kernel has nftables already.
    has_listed: bool,
}

impl RulesReader {
    /// As [`read`]. The namespace must be the one of the calls before.
    pub async fn read(&self, netns: BorrowedFd<'_>) -> Rules {
        // One at a time: clients may ask for very many.
        let mut listed = self.listed.lock().await;
        // The generation is read before the rules: if they change meanwhile, they are listed again.
        let has_listed = listed.has_listed;
        let look = || (Files::read(), has_listed.then(generation::read).flatten());
        let (files, generation) = run_in(netns, look).unwrap_or_default();
        let mut rules = Rules { translations: ipvs::parse(&files.ipvs), ..Rules::default() };
        if !files.tracks {
            return rules;
        }
        let of_nftables = match listed.standing(generation) {
            Some(rules) => rules,
            None => listed.list(netns, generation).await,
        };
        rules.merge(of_nftables);
        if files.legacy {
            // The kernel has no generation of these rules.
            let text = programs::legacy(netns).await.text();
            rules.merge(parsed(text, None).await.unwrap_or_default());
        }
        rules
    }
}

impl Listed {
    /// The rules that were listed last, if they stand: they are of this generation.
    fn standing(&self, generation: Option<u32>) -> Option<Rules> {
        let (of, rules) = self.last.as_ref()?;
        (Some(*of) == generation).then(|| rules.clone())
    }

    /// Lists the nftables rules, and keeps them if all could be listed.
    async fn list(&mut self, netns: BorrowedFd<'_>, generation: Option<u32>) -> Rules {
        let (saved, ruleset) = tokio::join!(programs::saved(netns), programs::ruleset(netns));
        let is_whole = !matches!((&saved, &ruleset), (Output::Failed, _) | (_, Output::Failed));
        let is_there = matches!((&saved, &ruleset), (Output::Text(_), _) | (_, Output::Text(_)));
        self.has_listed |= is_there;
        let rules = parsed(saved.text(), ruleset.text()).await;
        self.last = generation.filter(|_| is_whole).zip(rules.clone());
        rules.unwrap_or_default()
    }
}

/// The rules in what `iptables-save` and `nft` have written. `None`: the task has failed.
async fn parsed(saved: Option<String>, ruleset: Option<String>) -> Option<Rules> {
    // kube-proxy has tens of thousands of rules.
    let parsed = spawn_blocking(move || {
        let mut rules = Rules::default();
        if let Some(text) = saved {
            rules.add(&iptables::parse(&text));
        }
        if let Some(text) = ruleset {
            rules.add(&nftables::parse(&text));
        }
        rules
    });
    parsed.await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_stand_until_their_generation_is_another() {
        let mut listed = Listed::default();
        assert_eq!((listed.standing(Some(7)), listed.standing(None)), (None, None));
        let rules = Rules { services: [[10, 96, 0, 1].into()].into(), ..Rules::default() };
        listed.last = Some((7, rules.clone()));
        assert_eq!(listed.standing(Some(7)), Some(rules));
        assert_eq!((listed.standing(Some(8)), listed.standing(None)), (None, None));
    }
}
