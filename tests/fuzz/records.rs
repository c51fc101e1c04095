//! Records of the store, which any host of the cluster can write.

use culvert::{
    model::{
        Alive, Decoded, Endpoint, ForeignVtep, IpOwner, Key, MacOwner, Network, Node, ROOT,
        StoreRecord, View, VniOwner, decode, encode,
    },
    printable::printable,
    store::{Change, Entry},
};
use culvert_tests::chaos::{self, Random};

use crate::input::{Input, corpus, mutate};

/// Stores that are made, one after the other.
const FEW: u32 = 300;
const MANY: u32 = 30_000;
/// Writes into each store.
const WRITES: usize = 64;
/// Greatest length of the reason why a record is skipped, in characters.
const LONGEST_REASON: usize = 300;

#[test]
fn the_corpus_is_read() {
    let mut view = View::default();
    let corpus = corpus("records");
    for (revision, Input { name, bytes }) in (1..).zip(&corpus) {
        let key = format!("{ROOT}{name}");
        again(&key, bytes);
        let entry = Entry { key, value: bytes.clone(), mod_revision: revision };
        view.apply(&Change::Put(entry));
    }
    // The record of a newer schema.
    let skipped: Vec<_> = view.problems.keys().map(String::as_str).collect();
    assert_eq!(skipped, [format!("{ROOT}nodes/host2")]);
}

#[test]
fn no_record_makes_the_view_panic() {
    let corpus = corpus("records");
    let mut random = Random::seeded();
    for _ in chaos::each("mutated records", chaos::rounds(FEW, MANY)) {
        let mut view = View::default();
        let mut written = Vec::new();
        for revision in 1..=WRITES as i64 {
            let Input { name, mut bytes } = random.pick(&corpus).clone();
            let mut key = format!("{ROOT}{name}").into_bytes();
            if random.below(4) == 0 {
                mutate(&mut random, &mut key, &corpus);
            }
            let key = String::from_utf8_lossy(&key).into_owned();
            mutate(&mut random, &mut bytes, &corpus);
            again(&key, &bytes);
            let entry = Entry { key: key.clone(), value: bytes, mod_revision: revision };
            view.apply(&Change::Put(entry));
            written.push(key);
        }
        for reason in view.problems.values() {
            assert!(!reason.contains(char::is_control), "{reason:?}");
            assert!(reason.chars().count() <= LONGEST_REASON, "{reason}");
        }
        for line in view.complaints() {
            assert!(!printable(&line).contains(char::is_control), "{line:?}");
        }
        for (revision, key) in (WRITES as i64 + 1..).zip(written) {
            view.apply(&Change::Delete { key, revision });
        }
        assert!(view.is_empty(), "left after all keys were deleted: {view:?}");
    }
}

/// A record that is accepted is read again as it is written.
pub(crate) fn again(key: &str, value: &[u8]) {
    let Ok(key) = key.parse::<Key>() else { return };
    match &key {
        Key::Store => {}
        Key::Network(_) => same::<Network>(&key, value),
        Key::Vni(_) => same::<VniOwner>(&key, value),
        Key::Node(_) => same::<Node>(&key, value),
        Key::Alive(_) => same::<Alive>(&key, value),
        Key::Endpoint { .. } => same::<Endpoint>(&key, value),
        Key::Ipam { .. } => same::<IpOwner>(&key, value),
        Key::Mac { .. } => same::<MacOwner>(&key, value),
        Key::Vtep { .. } => same::<ForeignVtep>(&key, value),
    }
}

fn same<T: StoreRecord + PartialEq + std::fmt::Debug>(key: &Key, value: &[u8]) {
    if let Decoded::Record(record) = decode::<T>(key, value) {
        let written = encode(&record).unwrap();
        assert_eq!(decode(key, &written), Decoded::Record(record), "{key:?}");
    }
}
