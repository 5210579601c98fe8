//! Errors in words.

use std::error::Error;

/// An error with its causes, in one line: for whoever prints it.
///
/// Errors here say what went wrong in one place, and do not repeat their
/// [`source`](std::error::Error::source); printed alone, [`SnapshotError::Freeze`](super::SnapshotError::Freeze)
/// does not say why. (`anyhow` prints the same with `{:#}`.)
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Of a file that is there: what could not be confirmed of it.
pub(crate) fn unconfirmed(error: &dyn Error) -> String {
    let why = with_causes(error);
    format!("the file is complete and has its name, but a crash of the host may undo that: {why}")
}
