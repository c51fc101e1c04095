//! The mark of a store, which distinguishes it from another store at the same address.

use serde::{Deserialize, Serialize};

/// The newest version of [`StoreMark`] that this build reads, and the one that it writes.
const SCHEMA: u32 = 1;

/// The mark of a store: a record that the first follower writes into a store without one.
/// A store with another mark, or without the mark that it had, is another store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMark {
    /// Version of the fields, 1.
    pub schema: u32,
    /// 64 hexadecimal digits.
    pub id: String,
}

impl StoreMark {
    /// A new random mark, which no other store has.
    pub fn fresh() -> Self {
        Self { schema: SCHEMA, id: new_id() }
    }

    /// Reads a mark. `None`: a newer Culvert wrote the value, or the value is not a mark.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let mark: Self = serde_json::from_slice(value).ok()?;
        (1..=SCHEMA).contains(&mark.schema).then_some(mark)
    }

    /// The mark as it is stored: JSON.
    ///
    /// # Errors
    ///
    /// None in practice: every value can be written as JSON.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// 64 random hexadecimal digits: the identifier of a store, a network, an endpoint or a
/// node.
pub fn new_id() -> String {
    let random: [u8; 32] = rand::random();
    random.iter().fold(String::with_capacity(64), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(u32::from(nibble), 16));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_and_nothing_else_is_one() {
        let mark = StoreMark::fresh();
        assert_eq!(mark.id.len(), 64);
        assert_ne!(mark, StoreMark::fresh());
        assert_eq!(StoreMark::decode(&mark.encode().unwrap()), Some(mark));
        for other in ["", "{", r#"{"schema":0,"id":"a"}"#, r#"{"schema":2,"id":"a"}"#, "{}"] {
            assert_eq!(StoreMark::decode(other.as_bytes()), None, "{other}");
        }
    }
}
