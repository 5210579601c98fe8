//! What was asked for.

use crate::machine::Machine;
use crate::{Control, SnapshotOptions};

/// One snapshot, as its four parts see it: of which machine, how, and who watches.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) machine: &'a dyn Machine,
    pub(super) options: &'a SnapshotOptions,
    pub(super) control: &'a Control,
}
