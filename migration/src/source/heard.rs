//! What was heard of the destination.

use std::time::Instant;

use super::digestion::Digestion;

/// What was heard of the destination over the connection that there is.
pub(super) struct Heard {
    /// What PING 1 and PONG 1 say of it.
    pub(super) digestion: Digestion,
    /// When it last said something.
    pub(super) at: Instant,
    /// The thread that hears it has ended, or there is none.
    pub(super) deaf: bool,
}

impl Heard {
    /// Nothing so far.
    pub(super) fn new() -> Self {
        Self {
            digestion: Digestion::default(),
            at: Instant::now(),
            deaf: false,
        }
    }

    /// There is a new connection, which `returns` something or not.
    pub(super) fn begin(&mut self, returns: bool) {
        *self = Self {
            deaf: !returns,
            ..Self::new()
        };
    }
}
