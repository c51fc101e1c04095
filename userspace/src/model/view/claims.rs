//! Claims to addresses, packed.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use super::{Claim, packed::Id, sorted::Sorted};
use crate::model::{IpOwner, Name, SCHEMA};

/// `ipam/NETWORK/IP`, by network and address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// No group is empty.
    groups: BTreeMap<Name, NetworkClaims>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NetworkClaims {
    v4: Sorted<Ipv4Addr, PackedClaim>,
    v6: Sorted<Ipv6Addr, PackedClaim>,
}

/// A claim. The usual form is packed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PackedClaim {
    /// Owner and revision (big-endian, 48 bits) of a valid claim of this schema.
    Endpoint(Id, [u8; 6]),
    /// Any other claim: its record cannot be read, or does not have the usual form.
    Odd(Box<Claim<IpOwner>>),
}

impl PackedClaim {
    fn new(claim: Claim<IpOwner>) -> Self {
        let usual = || {
            let owner = claim.owner.as_ref().filter(|owner| owner.schema == SCHEMA)?;
            let [high @ .., a, b, c, d, e, f] = claim.revision.to_be_bytes();
            (high == [0, 0]).then_some(())?;
            Some(Self::Endpoint(Id::parse(&owner.endpoint)?, [a, b, c, d, e, f]))
        };
        usual().unwrap_or_else(|| Self::Odd(Box::new(claim)))
    }

    fn claim(&self) -> Claim<IpOwner> {
        match self {
            Self::Endpoint(id, [a, b, c, d, e, f]) => Claim {
                owner: Some(IpOwner { schema: SCHEMA, endpoint: id.text() }),
                revision: i64::from_be_bytes([0, 0, *a, *b, *c, *d, *e, *f]),
            },
            Self::Odd(claim) => (**claim).clone(),
        }
    }

    fn is_of(&self, endpoint: &Id) -> bool {
        match self {
            Self::Endpoint(id, _) => id == endpoint,
            Self::Odd(claim) => {
                let owner = claim.owner.as_ref();
                owner.and_then(|owner| Id::parse(&owner.endpoint)).as_ref() == Some(endpoint)
            }
        }
    }
}

impl Claims {
    /// Networks with at least one taken address.
    pub fn networks(&self) -> impl Iterator<Item = &Name> {
        self.groups.keys()
    }

    /// Whether no address is taken.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The taken addresses of all networks, each with its network.
    pub fn all(&self) -> impl Iterator<Item = (&Name, IpAddr)> {
        self.groups.iter().flat_map(|(network, group)| {
            let v4 = group.v4.iter().map(|(ip, _)| IpAddr::V4(*ip));
            let v6 = group.v6.iter().map(|(ip, _)| IpAddr::V6(*ip));
            v4.chain(v6).map(move |ip| (network, ip))
        })
    }

    /// Number of taken addresses of a network.
    pub fn count_in(&self, network: &Name) -> usize {
        self.groups.get(network).map_or(0, |group| group.v4.len() + group.v6.len())
    }

    /// The claim to an address of a network.
    pub fn get(&self, network: &Name, ip: IpAddr) -> Option<Claim<IpOwner>> {
        self.held(network, ip).map(PackedClaim::claim)
    }

    /// The taken addresses of a network within a range, in order.
    pub fn taken(
        &self,
        network: &Name,
        range: RangeInclusive<IpAddr>,
    ) -> impl Iterator<Item = IpAddr> + use<'_> {
        let group = self.groups.get(network);
        let (v4, v6) = match (range.start(), range.end()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => (Some(*from..=*to), None),
            (IpAddr::V6(from), IpAddr::V6(to)) => (None, Some(*from..=*to)),
            // A range of mixed address families is empty: no subnet has both.
            _ => (None, None),
        };
        let v4 = group.zip(v4).map(|(group, range)| group.v4.keys_in(range));
        let v6 = group.zip(v6).map(|(group, range)| group.v6.keys_in(range));
        let v4 = v4.into_iter().flatten().map(IpAddr::V4);
        v4.chain(v6.into_iter().flatten().map(IpAddr::V6))
    }

    /// Whether the endpoint owns the address.
    pub(crate) fn is_of(&self, network: &Name, ip: IpAddr, endpoint: &Id) -> bool {
        self.held(network, ip).is_some_and(|held| held.is_of(endpoint))
    }

    /// The endpoint that owns an address.
    pub(crate) fn owner(&self, network: &Name, ip: IpAddr) -> Option<Id> {
        match self.held(network, ip)? {
            PackedClaim::Endpoint(id, _) => Some(*id),
            PackedClaim::Odd(claim) => Id::parse(&claim.owner.as_ref()?.endpoint),
        }
    }

    fn held(&self, network: &Name, ip: IpAddr) -> Option<&PackedClaim> {
        let group = self.groups.get(network)?;
        match ip {
            IpAddr::V4(ip) => group.v4.get(&ip),
            IpAddr::V6(ip) => group.v6.get(&ip),
        }
    }

    /// Adds or replaces a claim.
    pub(crate) fn put(&mut self, network: &Name, ip: IpAddr, claim: Claim<IpOwner>) {
        if !self.groups.contains_key(network) {
            self.groups.insert(network.clone(), NetworkClaims::default());
        }
        let Some(group) = self.groups.get_mut(network) else { return };
        match ip {
            IpAddr::V4(ip) => group.v4.insert(ip, PackedClaim::new(claim)),
            IpAddr::V6(ip) => group.v6.insert(ip, PackedClaim::new(claim)),
        }
    }

    /// Removes a claim.
    pub(crate) fn remove(&mut self, network: &Name, ip: IpAddr) -> Option<Claim<IpOwner>> {
        let group = self.groups.get_mut(network)?;
        let held = match ip {
            IpAddr::V4(ip) => group.v4.remove(&ip),
            IpAddr::V6(ip) => group.v6.remove(&ip),
        };
        if group.v4.len() + group.v6.len() == 0 {
            self.groups.remove(network);
        }
        held.map(|held| held.claim())
    }

    /// Packs the claims that were added in no order.
    pub(super) fn pack(&mut self) {
        for group in self.groups.values_mut() {
            group.v4.pack();
            group.v6.pack();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn claims_are_held_as_they_were(
            owner in proptest::option::of("[0-9a-f]{0,66}|.{0,9}"), schema in 1..3_u32, revision: i64,
        ) {
            let owner = owner.map(|endpoint| IpOwner { schema, endpoint });
            let claim = Claim { owner, revision };
            prop_assert_eq!(PackedClaim::new(claim.clone()).claim(), claim);
        }
    }

    #[test]
    fn a_claim_takes_few_bytes() {
        assert!(size_of::<PackedClaim>() <= 40, "{}", size_of::<PackedClaim>());
    }
}
