//! Cuts a stream of bytes into JSON values.
//!
//! QMP clients put nothing between two values, not even a newline, so a value ends where its own
//! brackets say. A parser of streams gives up at the first syntax error; a monitor has to answer
//! it and go on. So this looks at brackets and strings only, and what lies between them is for
//! the JSON parser.
//!
//! After garbage, all is skipped up to a control character (a newline will do) or to the start of
//! an object or array. What is kept of an unfinished value is bounded in bytes, and its brackets
//! in depth; beyond that the value is reported once and its rest swallowed.

use std::fmt;

/// Bytes of one value at most.
pub const MAX_BYTES: usize = 1 << 20;

/// Nested brackets in one value at most.
pub const MAX_DEPTH: u64 = 64;

/// Why bytes were thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// Something that starts no value.
    Stray(u8),
    /// A bracket that closes none of its kind.
    Unbalanced(u8),
    /// A control character inside a string.
    ControlInString,
    /// More than [`MAX_BYTES`].
    TooLong,
    /// More than [`MAX_DEPTH`].
    TooDeep,
}

impl fmt::Display for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stray(byte) => write!(f, "stray '{}'", byte.escape_ascii()),
            Self::Unbalanced(byte) => write!(f, "unbalanced '{}'", char::from(*byte)),
            Self::ControlInString => write!(f, "control character in a string"),
            Self::TooLong => write!(f, "value longer than {MAX_BYTES} bytes"),
            Self::TooDeep => write!(f, "value nested deeper than {MAX_DEPTH}"),
        }
    }
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The bytes of one value, from its first bracket to its last.
    Value(Vec<u8>),
    /// Something else was skipped.
    Garbage(Garbage),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a value.
    Between,
    /// In a value.
    Inside,
    /// In a string in a value.
    Text,
    /// Behind a backslash in a string.
    Escape,
    /// After garbage.
    Recovery,
}

/// Holds the unfinished value between two reads.
#[derive(Debug)]
pub struct Splitter {
    state: State,
    value: Vec<u8>,
    depth: u64,
    /// Bit *n*: the bracket at depth *n* is square.
    square: u64,
    /// The value was reported as garbage: find its end, keep nothing.
    swallow: bool,
}

impl Default for Splitter {
    fn default() -> Self {
        Self {
            state: State::Between,
            value: Vec::new(),
            depth: 0,
            square: 0,
            swallow: false,
        }
    }
}

impl Splitter {
    /// Takes what was read and calls `found` with each value and each piece of garbage in it, in
    /// order.
    pub fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(Piece)) {
        for &byte in bytes {
            if let Some(piece) = self.step(byte) {
                found(piece);
            }
        }
    }

    fn step(&mut self, byte: u8) -> Option<Piece> {
        match self.state {
            State::Between => self.begin(byte),
            State::Recovery => match byte {
                b'{' | b'[' => self.begin(byte),
                // Also what never occurs in UTF-8: clients use it to force a fresh start.
                0x00..=0x08 | 0x0a..=0x1f | 0xfe | 0xff => {
                    self.state = State::Between;
                    None
                }
                _ => None,
            },
            State::Inside => match byte {
                b'"' => self.keep(byte, State::Text),
                b'{' | b'[' => self.open(byte),
                b'}' | b']' => self.close(byte),
                _ => self.keep(byte, State::Inside),
            },
            State::Text => match byte {
                b'\\' => self.keep(byte, State::Escape),
                b'"' if self.depth == 0 => {
                    let refused = self.keep(byte, State::Between);
                    let value = self.end();
                    refused.or(value)
                }
                b'"' => self.keep(byte, State::Inside),
                0x00..=0x1f => self.give_up(byte, Garbage::ControlInString),
                _ => self.keep(byte, State::Text),
            },
            State::Escape => match byte {
                0x00..=0x1f => self.give_up(byte, Garbage::ControlInString),
                _ => self.keep(byte, State::Text),
            },
        }
    }

    /// The first byte of a value, or not.
    fn begin(&mut self, byte: u8) -> Option<Piece> {
        self.value.clear();
        self.depth = 0;
        self.swallow = false;
        match byte {
            b'{' | b'[' => self.open(byte),
            b'"' => self.keep(byte, State::Text),
            b' ' | b'\t' | b'\r' | b'\n' => None,
            b'}' | b']' => Some(Piece::Garbage(Garbage::Unbalanced(byte))),
            _ => self.give_up(byte, Garbage::Stray(byte)),
        }
    }

    fn open(&mut self, byte: u8) -> Option<Piece> {
        if self.depth < MAX_DEPTH {
            let bit = 1 << self.depth;
            self.square = self.square & !bit | if byte == b'[' { bit } else { 0 };
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH && !self.swallow {
            self.state = State::Inside;
            return Some(self.refuse(Garbage::TooDeep));
        }
        self.keep(byte, State::Inside)
    }

    fn close(&mut self, byte: u8) -> Option<Piece> {
        self.depth -= 1;
        let square = self.depth >= MAX_DEPTH || self.square >> self.depth & 1 == 1;
        let round = self.depth >= MAX_DEPTH || !square;
        let matches = if byte == b']' { square } else { round };
        if !matches {
            return self.give_up(byte, Garbage::Unbalanced(byte));
        }
        let refused = self.keep(byte, State::Inside);
        if self.depth > 0 {
            return refused;
        }
        let value = self.end();
        refused.or(value)
    }

    /// The value is whole.
    fn end(&mut self) -> Option<Piece> {
        self.state = State::Between;
        let value = std::mem::take(&mut self.value);
        (!self.swallow).then_some(Piece::Value(value))
    }

    fn keep(&mut self, byte: u8, next: State) -> Option<Piece> {
        self.state = next;
        if self.swallow {
            return None;
        }
        if self.value.len() == MAX_BYTES {
            return Some(self.refuse(Garbage::TooLong));
        }
        self.value.push(byte);
        None
    }

    /// Reports the value and swallows its rest.
    fn refuse(&mut self, garbage: Garbage) -> Piece {
        self.swallow = true;
        self.value = Vec::new();
        Piece::Garbage(garbage)
    }

    /// Nobody knows where this value would end.
    fn give_up(&mut self, byte: u8, garbage: Garbage) -> Option<Piece> {
        self.value = Vec::new();
        self.state = match byte {
            0x00..=0x08 | 0x0a..=0x1f | 0xfe | 0xff => State::Between,
            _ => State::Recovery,
        };
        (!self.swallow).then_some(Piece::Garbage(garbage))
    }
}

#[cfg(test)]
#[path = "splitter_tests.rs"]
mod tests;
