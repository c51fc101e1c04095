//! Ports that the host's netfilter or IPVS translates without a socket, as Docker without its
//! userland proxy and kube-proxy do. The programs take packets before netfilter.
//!
//! The rules are read with the programs `nft` and `iptables-save`, if they are installed.

mod iptables;
mod ipvs;
mod nftables;
mod programs;
mod rules;

use std::os::fd::BorrowedFd;

use tokio::{sync::Semaphore, task::spawn_blocking};

use self::programs::Files;
pub use self::rules::{Chain, Rules, Translation, Translator};
use crate::netns::run_in;

/// Who has it reads and parses rules.
static TURN: Semaphore = Semaphore::const_new(1);

/// Reads the rules of a network namespace. Rules that cannot be read are left out. Must be called
/// within a tokio runtime.
pub async fn read(netns: BorrowedFd<'_>) -> Rules {
    // One at a time: clients may ask for very many. The semaphore is never closed.
    let _turn = TURN.acquire().await;
    let files = run_in(netns, Files::read).unwrap_or_default();
    let mut rules = Rules { translations: ipvs::parse(&files.ipvs), ..Rules::default() };
    if !files.tracks {
        return rules;
    }
    let (saved, ruleset) =
        tokio::join!(programs::saved(netns, files.legacy), programs::ruleset(netns));
    // kube-proxy has tens of thousands of rules.
    let parsed = spawn_blocking(move || {
        for text in saved {
            rules.add(&iptables::parse(&text));
        }
        if let Some(text) = ruleset {
            rules.add(&nftables::parse(&text));
        }
        rules
    });
    parsed.await.unwrap_or_default()
}
