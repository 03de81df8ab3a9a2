//! A fast hash of 64 bits for names and keys.
//!
//! Gateways of all machines and versions must send the same key to the same backend, so it is a
//! function of its own, which never changes. It keeps nobody from finding keys that collide: what
//! bears that is the bound on loads in [`Ring`](super::ring::Ring).

/// Multiplied by and folded, after wyhash (Wang Yi); both are its constants.
const START: u64 = 0xA076_1D64_78BD_642F;
const STEP: u64 = 0xE703_7ED1_A0B4_28DB;

pub fn hash(bytes: &[u8]) -> u64 {
    let mut state = START ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = fold(state ^ u64::from_le_bytes(word), STEP);
    }
    mix(state)
}

/// The step of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
/// 2014).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Spreads what is near over all bits; splitmix64's last step.
pub fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(GOLDEN);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The next number of splitmix64: chance where nothing secret hangs on it.
pub fn next(state: &mut u64) -> u64 {
    let number = mix(*state);
    *state = state.wrapping_add(GOLDEN);
    number
}

/// 0 up to `n`, without `n`, by the upper bits of `random`; 0 if `n` is.
pub fn below(n: usize, random: u64) -> usize {
    ((u128::from(random) * n as u128) >> 64) as usize
}

fn fold(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn it_is_the_same_for_ever() {
        #[rustfmt::skip]
        let cases: &[(&str, u64)] = &[
            ("",                        0x4396D60DBD8537AF),
            ("a",                       0x53C00842720EFA11),
            ("a.1",                     0x6DC48C39F41C7E01),
            ("/v1/users/4711?x=y",      0xCD670FF6DE785FAA),
        ];
        for (key, expected) in cases {
            assert_eq!(hash(key.as_bytes()), *expected, "{key}");
        }
    }

    #[test]
    fn keys_that_are_alike_are_spread_over_all_bits() {
        let key = |i: usize| format!("session-{i}");
        let all: BTreeSet<u64> = (0..100_000).map(|i| hash(key(i).as_bytes())).collect();
        assert_eq!(all.len(), 100_000);
        // 256 buckets, by the lowest and by the highest bits: 391 keys each, five deviations of 20.
        for shift in [0, 56] {
            let mut buckets = [0_usize; 256];
            for hash in &all {
                buckets[(hash >> shift) as usize % 256] += 1;
            }
            assert!(buckets.iter().all(|n| (291..491).contains(n)), "{buckets:?}");
        }
        // One bit of the key changes half of the hash's.
        for at in 0..64 {
            let changed: u32 = (0..1_000_u64)
                .map(|i| (hash(&i.to_le_bytes()) ^ hash(&(i ^ 1 << at).to_le_bytes())).count_ones())
                .sum();
            assert!((31_000..33_000).contains(&changed), "bit {at}: {changed}");
        }
    }

    #[test]
    fn zeros_at_the_end_count() {
        let keys: BTreeSet<u64> = (0..100).map(|n| hash(&vec![0; n])).collect();
        assert_eq!(keys.len(), 100);
    }
}
