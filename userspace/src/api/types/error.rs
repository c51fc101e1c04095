//! Errors of requests.

use serde::{Deserialize, Serialize};

/// The error of a request. `message` is one line that names the object, what is wrong with it and
/// what would be valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Class of the refusal.
    pub kind: ErrorKind,
    /// The error message, one line.
    pub message: String,
}

/// Class of a refusal, with its HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// 400: the request is invalid.
    Invalid,
    /// 404: the object does not exist.
    NotFound,
    /// 409: the current state does not allow the request.
    Conflict,
    /// 503: the store or the kernel does not answer.
    Unavailable,
    /// 500: a defect of Culvert or an unexpected refusal of the kernel.
    Internal,
}

impl ApiError {
    /// Makes an error of class `kind`. Line breaks and other control characters in `message`, which
    /// may come from the store or a library, become spaces.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: one_line(message.into()) }
    }
}

/// Returns `text` on one line: control characters become spaces. A text that is too long is
/// shortened in the middle, because its end contains the advice.
pub fn one_line(text: String) -> String {
    const HALF: usize = 300;
    let text = if text.contains(char::is_control) {
        text.trim().replace(char::is_control, " ")
    } else {
        text
    };
    let head = text.char_indices().nth(HALF).map(|(at, _)| at);
    let tail = text.char_indices().nth_back(HALF - 1).map(|(at, _)| at);
    match (head, tail) {
        (Some(head), Some(tail)) if head < tail => format!("{}…{}", &text[..head], &text[tail..]),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn lines_are_of_one_line_and_not_endless() {
        assert_eq!(one_line("a b".to_owned()), "a b");
        assert_eq!(one_line("a\nb\u{1b}[1m\n".to_owned()), "a b [1m");
        let just = "ü".repeat(600);
        assert_eq!(one_line(just.clone()), just);
        let long = format!("{}{}", "ü".repeat(1000), "is valid");
        let cut = one_line(long);
        assert_eq!(cut.chars().count(), 601);
        assert!(cut.ends_with("is valid"));
    }
}
