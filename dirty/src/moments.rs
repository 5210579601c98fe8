//! Moments between two steps whose order matters: tests of this crate have others act just then. For
//! everybody else nothing is left of it.

/// Where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// What a write released while arming is not protected any more, and nobody can know yet.
    Released,
    /// Pages are claimed and none is copied.
    Claimed,
    /// They are about to be copied, and are protected still.
    Copies,
    /// A copy is queued, and its pages still count as left.
    Queued,
    /// Who gives pages back waits for those who claimed them.
    AwaitsCopies,
}

/// Whoever acts at such moments.
#[derive(Default)]
pub(crate) struct Moments {
    #[cfg(test)]
    act: std::sync::OnceLock<Box<dyn Fn(Moment) + Send + Sync>>,
}

impl Moments {
    #[cfg(not(test))]
    pub(crate) fn at(&self, _: Moment) {}

    /// Called by whoever is there, who goes on when this returns.
    #[cfg(test)]
    pub(crate) fn at(&self, moment: Moment) {
        if let Some(act) = self.act.get() {
            act(moment);
        }
    }

    #[cfg(test)]
    pub(crate) fn act(&self, act: impl Fn(Moment) + Send + Sync + 'static) {
        assert!(self.act.set(Box::new(act)).is_ok(), "somebody acts already");
    }
}
