//! Text of others in the output for people: records, paths and names of interfaces may have any
//! characters, also such as act on a terminal.

use std::{borrow::Cow, fmt::Write as _};

/// Whether a terminal does something else with a character than to show it in its place: a control
/// character, a separator of lines, or a character that changes the direction of the text.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}')
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with each character that `acts` replaced by what `escape` appends for it.
fn escaped(
    text: &str,
    acts: impl Fn(char) -> bool,
    escape: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    if !text.contains(&acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) {
            escape(c, &mut shown);
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// The text on one line, with each character that acts on a terminal as an escape sequence, such as
/// `\u{1b}` or `\n`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, acts, |c, shown| shown.extend(c.escape_default()))
}

/// JSON with the same value, in which no string has a character that acts on a terminal. JSON
/// itself escapes only those up to U+001F.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    // Line breaks are between the strings, never in them.
    let acts = |c: char| c != '\n' && acts(c);
    escaped(json, acts, |c, shown| {
        // All of them are in the basic plane. A write to a string does not fail.
        let _ = write!(shown, "\\u{:04x}", u32::from(c));
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped() {
        assert_eq!(printable("a\nb\t\u{1b}[2J"), "a\\nb\\t\\u{1b}[2J");
        assert_eq!(
            printable("\u{9b}1m\u{202e}x\u{7f}\u{2028}"),
            "\\u{9b}1m\\u{202e}x\\u{7f}\\u{2028}"
        );
        for plain in ["", "web → db", "C:\\x", "größe", "…", "🦀"] {
            assert!(matches!(printable(plain), Cow::Borrowed(same) if same == plain));
        }
    }

    proptest! {
        #[test]
        fn json_keeps_its_value(text in any::<String>()) {
            let both = [text.as_str(), "\u{9b}\u{202e}\u{7f}"];
            let json = serde_json::to_string_pretty(&both).unwrap();
            let shown = printable_json(&json);
            prop_assert!(!shown.contains(|c: char| c != '\n' && acts(c)));
            let read: Vec<String> = serde_json::from_str(&shown).unwrap();
            prop_assert_eq!(&read[0], &text);
            prop_assert_eq!(read[1].as_str(), "\u{9b}\u{202e}\u{7f}");
        }

        #[test]
        fn nothing_that_acts_is_left(text in any::<String>()) {
            prop_assert!(!printable(&text).contains(acts));
        }
    }
}
