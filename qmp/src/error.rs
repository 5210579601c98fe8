//! What a client is told when a command cannot be done.

use std::error::Error;

use serde_json::{Value, json};

/// QEMU's error classes, as far as they occur here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nearly everything: clients are to show the text.
    GenericError,
    /// There is no such command, or not in this state of the session.
    CommandNotFound,
}

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpError {
    /// Its class.
    pub class: Class,
    /// For people.
    pub desc: String,
}

impl QmpError {
    /// A `GenericError`.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self {
            class: Class::GenericError,
            desc: desc.into(),
        }
    }

    /// A `CommandNotFound`.
    pub fn not_found(desc: impl Into<String>) -> Self {
        Self {
            class: Class::CommandNotFound,
            desc: desc.into(),
        }
    }

    /// As it goes over the wire.
    pub fn to_json(&self) -> Value {
        let class = match self.class {
            Class::GenericError => "GenericError",
            Class::CommandNotFound => "CommandNotFound",
        };
        json!({ "class": class, "desc": self.desc })
    }
}

/// Any error of a layer below: its text with all its causes.
impl<E: Error> From<E> for QmpError {
    fn from(error: E) -> Self {
        Self::generic(with_causes(&error))
    }
}

/// The text of an error, followed by those of its causes.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
