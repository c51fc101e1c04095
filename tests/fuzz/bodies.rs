//! Bodies of requests to the agent's API.

use culvert::api::types::{
    AddressChange, Connect, ContainerCreate, ContainerState, NatQuery, NetworkCreate, Sources,
    VtepChange,
};
use culvert_tests::chaos::{self, Random};
use serde_json::{from_slice, to_vec};

use crate::input::{Input, corpus, mutate};

/// Bodies that are read.
const FEW: u32 = 20_000;
const MANY: u32 = 2_000_000;

/// Reads a body as each request. Returns how many accept it.
pub(crate) fn read(body: &[u8]) -> u32 {
    /// What is accepted is read again as it is written.
    macro_rules! each {
        ($($request:ty),+) => {
            0 $(+ match from_slice::<$request>(body) {
                Err(_) => 0,
                Ok(request) => {
                    let written = to_vec(&request).unwrap();
                    assert_eq!(from_slice::<$request>(&written).unwrap(), request);
                    1
                }
            })+
        };
    }
    each!(
        AddressChange,
        Connect,
        ContainerCreate,
        ContainerState,
        NatQuery,
        NetworkCreate,
        Sources,
        VtepChange
    )
}

#[test]
fn the_corpus_is_read() {
    for Input { name, bytes } in corpus("bodies") {
        assert!(read(&bytes) > 0, "{name}: is no request");
    }
}

#[test]
fn no_body_makes_the_api_panic() {
    let corpus = corpus("bodies");
    let mut random = Random::seeded();
    let mut accepted = 0;
    for _ in chaos::each("mutated bodies", chaos::rounds(FEW, MANY)) {
        let mut body = random.pick(&corpus).bytes.clone();
        mutate(&mut random, &mut body, &corpus);
        accepted += read(&body);
    }
    // Otherwise the changes would be too coarse to reach what is behind the syntax.
    assert!(accepted > FEW / 20, "{accepted} bodies were accepted");
}
