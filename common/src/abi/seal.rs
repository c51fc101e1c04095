//! Seals: a check that a map value belongs to its key.
//!
//! A program gets a pointer into a map, not a copy. The kernel gives the memory of a
//! removed element to the next insertion at once: from the free list of a preallocated or
//! LRU map, and since Linux 6.1 also from the per-CPU cache of a map with
//! `BPF_F_NO_PREALLOC` (`bpf_mem_cache_free`). While a program reads a value, the memory
//! can thus become the value of another key, in part or as a whole.
//!
//! A seal detects such a value. It is a hash of the key and of the fields that do not change while
//! the entry lives. A program copies the value and compares the seal of the copy with the seal
//! computed from the program's key: a copy that is mixed, or of another key, does not match. The
//! check does not depend on the order of the writes, so it is valid on every processor.

use bytemuck::{Pod, Zeroable};

use super::{
    EndpointInfo, FdbEntry, FdbKey, FloodKey, Flow, FlowKey, FragmentInfo, FragmentKey, HeardEntry,
    LearnedEntry, MappedAddr, NeighEntry, NeighKey, NetworkInfo, PathMtu, PublishedEntry,
    PublishedKey, UnderlayPath, V4, VtepId,
};

/// A map value with a seal over its key of type `K` and over the fields in front of the seal.
pub trait Sealed<K>: Pod {
    /// The seal that this value must have under `key`.
    fn seal_for(&self, key: &K) -> u32;

    /// Whether this value was written as a whole under `key`.
    fn is_of(&self, key: &K) -> bool;

    /// This value with its seal for `key`.
    #[must_use]
    fn sealed(self, key: &K) -> Self;
}

/// A `u32` with a seal: an interface index, a VNI or a [`VtepId`], depending on the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct SealedU32 {
    /// The number.
    pub value: u32,
    /// See [`Sealed`].
    pub seal: u32,
}

impl SealedU32 {
    /// `value` with its seal for `key`.
    #[inline(always)]
    pub fn new<K>(key: &K, value: u32) -> Self
    where
        Self: Sealed<K>,
    {
        Self { value, seal: 0 }.sealed(key)
    }
}

/// Start of the hash: an odd number without structure, so that a value of zeroes does not have the
/// seal 0.
const START: u64 = 0x243f_6a88_85a3_08d3;

/// Adds one word to the hash. Two instructions and the load: a word that differs changes the upper
/// half of the hash, too, where no later word can cancel it.
#[inline(always)]
const fn absorb(hash: u64, word: u32) -> u64 {
    (hash ^ word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Seals `$value` with `$key`: both are read as words of 4 bytes, the value up to its field
/// `seal`.
macro_rules! sealed {
    ($($value:ty, $key:ty);+ $(;)?) => {$(
        const _: () = assert!(align_of::<$value>() >= 4 && align_of::<$key>() >= 4);
        const _: () = assert!(core::mem::offset_of!($value, seal) % 4 == 0);

        impl Sealed<$key> for $value {
            #[inline(always)]
            fn seal_for(&self, key: &$key) -> u32 {
                let key: &[u32; size_of::<$key>() / 4] = bytemuck::cast_ref(key);
                let value: &[u32; size_of::<$value>() / 4] = bytemuck::cast_ref(self);
                let sealed = value.iter().take(core::mem::offset_of!($value, seal) / 4);
                let mut hash = START;
                for word in key {
                    hash = absorb(hash, *word);
                }
                for word in sealed {
                    hash = absorb(hash, *word);
                }
                (hash ^ (hash >> 32)) as u32
            }

            #[inline(always)]
            fn is_of(&self, key: &$key) -> bool {
                self.seal == <Self as Sealed<$key>>::seal_for(self, key)
            }

            #[inline(always)]
            fn sealed(mut self, key: &$key) -> Self {
                self.seal = <Self as Sealed<$key>>::seal_for(&self, key);
                self
            }
        }
    )+};
}

sealed! {
    EndpointInfo, u32;
    NetworkInfo, u32;
    FdbEntry, FdbKey;
    LearnedEntry, FdbKey;
    NeighEntry, NeighKey;
    HeardEntry, NeighKey;
    UnderlayPath, VtepId;
    PathMtu, VtepId;
    SealedU32, u32;
    SealedU32, FloodKey;
    SealedU32, VtepId;
    SealedU32, MappedAddr;
    SealedU32, PublishedKey;
    Flow<V4>, FlowKey<V4>;
    PublishedEntry, PublishedKey;
    FragmentInfo, FragmentKey<V4>;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow() -> Flow {
        let mut flow = Flow { zone: 1, dest: 2, kind: super::super::kind::ORIG, ..Flow::default() };
        flow.to.src = [10, 0, 0, 2];
        flow
    }

    proptest! {
        #[test]
        fn a_value_under_another_key_or_with_one_other_bit_is_found(
            bit in 0..8 * core::mem::offset_of!(Flow<V4>, seal), key_bit in 0..8 * size_of::<FlowKey<V4>>(),
        ) {
            let key = FlowKey::new(256, 6, flow().to);
            let sealed = flow().sealed(&key);
            prop_assert!(sealed.is_of(&key));

            let mut other = sealed;
            bytemuck::bytes_of_mut(&mut other)[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!other.is_of(&key));

            let mut other_key = key;
            bytemuck::bytes_of_mut(&mut other_key)[key_bit / 8] ^= 1 << (key_bit % 8);
            prop_assert!(!sealed.is_of(&other_key));
        }

        #[test]
        fn what_a_program_changes_does_not_break_the_seal(seen: u32, last_seen_ns: u64, packets: u64) {
            let key = FlowKey::new(256, 6, flow().to);
            let mut sealed = flow().sealed(&key);
            (sealed.seen, sealed.last_seen_ns, sealed.packets) = (seen, last_seen_ns, packets);
            prop_assert!(sealed.is_of(&key));
        }

        #[test]
        fn a_copy_half_of_one_entry_and_half_of_another_is_found(
            cut in 1..size_of::<NetworkInfo>() - 1, one: u32, other: u32,
        ) {
            prop_assume!(one != other);
            let info = |vni: u32| NetworkInfo {
                flags: vni, local_endpoints: !vni, remote_vteps: vni, gateway_ifindex: !vni,
                gateway_ip: vni.to_be_bytes(), ..NetworkInfo::zeroed()
            }.sealed(&vni);
            let mut mixed = info(one);
            let (one_bytes, other_value) = (bytemuck::bytes_of_mut(&mut mixed), info(other));
            one_bytes[cut..].copy_from_slice(&bytemuck::bytes_of(&other_value)[cut..]);
            prop_assume!(bytemuck::bytes_of(&mixed) != bytemuck::bytes_of(&info(other)));
            prop_assume!(bytemuck::bytes_of(&mixed) != bytemuck::bytes_of(&info(one)));
            prop_assert!(!mixed.is_of(&one) && !mixed.is_of(&other));
        }
    }

    #[test]
    fn zeroes_are_of_no_key() {
        assert!(!SealedU32::default().is_of(&0_u32));
        assert!(!EndpointInfo::zeroed().is_of(&0));
        assert!(!Flow::default().is_of(&FlowKey::default()));
    }
}
