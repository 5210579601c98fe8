//! Errors in words, where there is nobody to take an error.

use std::error::Error;

/// An error with its reasons, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
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
    let why = chain(error);
    format!("the file is complete and has its name, but a crash of the host may undo that: {why}")
}
