//! Verbs that take several names.

use std::fmt::Display;

use crate::cli::failure::{Failure, tell};

/// Runs `each` for every item. A refusal is written to standard error, and the next item follows;
/// the verb fails after the last item. If the agent does not answer, the verb fails at once: it
/// ends within the timeout of one answer, not of one answer for each item.
pub(super) async fn for_all<T: Display>(
    items: &[T],
    mut each: impl AsyncFnMut(&T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut refused = false;
    for item in items {
        match each(item).await {
            Ok(()) => {}
            Err(Failure { code, line: Some(line), in_vain: false }) if code != 0 => {
                refused = true;
                tell(&line);
            }
            // The agent does not answer, or the reader of standard output has closed it.
            Err(failure) => return Err(failure),
        }
    }
    if refused { Err(Failure::silent(1)) } else { Ok(()) }
}
