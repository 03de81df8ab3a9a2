//! Names and numbers that everything else is said in.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The fencing number of a service. Only ever raised, by compare-and-swap in the store.
pub type Epoch = u64;

/// A PostgreSQL timeline number.
pub type Tli = u32;

/// A place in the write-ahead log, in bytes. Two places compare only within one branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl FromStr for Lsn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a WAL position such as 0/16B3748");
        let (high, low) = text.split_once('/').ok_or_else(wrong)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| wrong())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| wrong())?;
        Ok(Lsn(u64::from(high) << 32 | u64::from(low)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One life of a node's data directory: the incarnation rises before the first destructive byte
/// of a rewind or a clone, so that a promise made by the old data never counts for the new.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    pub node: String,
    pub incarnation: u32,
}

impl Member {
    pub fn new(node: impl Into<String>, incarnation: u32) -> Self {
        Member { node: node.into(), incarnation }
    }

    /// The application name and the name of the replication slot: `a_2`. PostgreSQL folds neither,
    /// and slot names allow only lower case, digits and `_`.
    pub fn slot(&self) -> String {
        use std::fmt::Write;
        let mut slot = String::with_capacity(self.node.len() + 4);
        slot.extend(self.node.chars().map(|c| if c == '-' { '_' } else { c }));
        // Writing to a string can't fail.
        let _ = write!(slot, "_{}", self.incarnation);
        slot
    }

    /// `name` is its slot. Rows are compared with members all the time: this makes no text for it.
    pub fn has_slot(&self, name: &str) -> bool {
        let mut letters = name.bytes().rev();
        let mut digits = self.incarnation;
        loop {
            if letters.next() != Some(b'0' + (digits % 10) as u8) {
                return false;
            }
            digits /= 10;
            if digits == 0 {
                break;
            }
        }
        let node = self.node.bytes().rev().map(|b| if b == b'-' { b'_' } else { b });
        letters.next() == Some(b'_') && letters.eq(node)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.incarnation)
    }
}

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not NODE.INCARNATION");
        let (node, incarnation) = text.rsplit_once('.').ok_or_else(wrong)?;
        Ok(Member::new(node, incarnation.parse().map_err(|_| wrong())?))
    }
}

impl Serialize for Member {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An instant on this machine's CLOCK_BOOTTIME, in milliseconds. Never compared between machines.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// Milliseconds from `earlier` to here; 0 if `earlier` is later.
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The instant `ms` milliseconds later.
    pub fn plus(self, ms: u64) -> Time {
        Time(self.0.saturating_add(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_come_back_as_they_were() {
        for text in ["0/0", "0/16B3748", "1F/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().map(|lsn| lsn.to_string()), Ok(text.to_string()));
        }
        assert_eq!("a.b.3".parse(), Ok(Member::new("a.b", 3)));
        for text in ["", "5", "x/1", "1/x", "1/123456789"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
        assert_eq!(Member::new("db-1", 2).slot(), "db_1_2");
    }

    #[test]
    fn a_slot_is_known_without_making_it() {
        let members = [("a", 0), ("a", 1), ("a", 10), ("a", 101), ("b-1", 1), ("b", 11), ("1", 1)];
        let members = members.map(|(node, incarnation)| Member::new(node, incarnation));
        let odd =
            ["", "_", "a", "a_", "_1", "a_01", "a_1_", "1", "b-1_1", "aa_1"].map(String::from);
        for name in members.iter().map(Member::slot).chain(odd) {
            for member in &members {
                assert_eq!(member.has_slot(&name), member.slot() == name, "{member} {name}");
            }
        }
    }
}
