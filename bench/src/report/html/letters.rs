//! The width of text. The font is that of the reader's browser, so the width is the largest that is
//! likely.

/// Width of a letter, as a share of the height of the font. DejaVu Sans and Verdana, the widest
/// common fonts for `system-ui` and `sans-serif`, have no wider letter in any of these groups.
fn share(letter: char) -> f64 {
    match letter {
        ' ' | '!' | '\'' | '(' | ')' | ',' | '-' | '.' | '/' | ':' | ';' | '[' | ']' | '|'
        | '·' | 'I' | 'f' | 'i' | 'j' | 'l' | 'r' | 't' => 0.46,
        '%' | '@' | 'M' | 'W' | 'm' | 'w' => 1.08,
        'a'..='z' | '0'..='9' => 0.65,
        'A'..='Z' => 0.8,
        _ => 1.0,
    }
}

/// Largest likely width of `text` in letters of `height`, px.
pub(super) fn width(text: &str, height: f64) -> f64 {
    text.chars().map(share).sum::<f64>() * height
}

/// Divides `text` into lines of at most `limit`, px. A word that is longer than a line is divided,
/// too.
pub(super) fn wrap(text: &str, height: f64, limit: f64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let joined = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if width(&joined, height) <= limit {
            line = joined;
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for letter in word.chars() {
            if !line.is_empty() && width(&format!("{line}{letter}"), height) > limit {
                lines.push(std::mem::take(&mut line));
            }
            line.push(letter);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_divided_at_spaces_and_long_words_anywhere() {
        let limit = width("a line of this", 13.0);
        let lines = wrap("a line of this width, and another one", 13.0, limit);
        assert_eq!(lines.join(" "), "a line of this width, and another one");
        assert!(lines.len() > 1 && lines.iter().all(|line| width(line, 13.0) <= limit));
        let word = "x".repeat(50);
        let lines = wrap(&format!("a {word}"), 13.0, limit);
        assert_eq!(lines.concat(), format!("a{word}"));
        assert!(lines.iter().all(|line| width(line, 13.0) <= limit), "{lines:?}");
        assert_eq!(wrap("", 13.0, limit), [""]);
        assert_eq!(wrap("ab", 13.0, 0.0), ["a", "b"]);
    }
}
