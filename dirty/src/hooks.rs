//! What is broken on purpose.
//!
//! A test that cannot fail shows nothing, so tests break one thing at a time and demand that this is
//! noticed. What can be broken are points in the life of a freeze: the step or the value of each goes
//! through its hook, which leaves it as it is unless just this point is to be broken.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One thing broken on purpose, so that a test can show that it would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sabotage {
    /// Nothing is broken.
    #[default]
    None,
    /// A chunk is released before it is copied (P3).
    ReleaseBeforeCopy,
    /// A page may be claimed twice (P2, P1).
    ClaimTwice,
    /// What was released while arming is armed again before the readers stand still (P1).
    RearmBeforeBarrier,
    /// What was released while arming is not armed again (P1).
    NoRearm,
    /// Device state is collected after the freeze (P1).
    DevicesAfterFreeze,
    /// One page is left out (P1).
    SkipPage,
    /// Pages that arrive while frozen are placed without protection (P1).
    PlaceUnprotected,
}

impl Sabotage {
    /// The names under which a program offers them.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("break-release-before-copy", Self::ReleaseBeforeCopy),
        ("break-claim-twice", Self::ClaimTwice),
        ("break-rearm-before-barrier", Self::RearmBeforeBarrier),
        ("break-no-rearm", Self::NoRearm),
        ("break-devices-after-freeze", Self::DevicesAfterFreeze),
        ("break-skip-page", Self::SkipPage),
        ("break-place-unprotected", Self::PlaceUnprotected),
    ];
}

/// The points of a freeze at which something can be broken, in the order of its life. By default every
/// step is taken and every value comes back as it was given.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    sabotage: Sabotage,
    /// Pages that could be left out so far, of which the first is.
    left_out: AtomicUsize,
}

impl From<Sabotage> for Hooks {
    fn from(sabotage: Sabotage) -> Self {
        Self {
            sabotage,
            left_out: AtomicUsize::new(0),
        }
    }
}

impl Hooks {
    /// The step after which pages are placed protected.
    pub(crate) fn protect_placements(&self, step: impl FnOnce()) {
        if self.sabotage != Sabotage::PlaceUnprotected {
            step();
        }
    }

    /// The step that arms again what a write released.
    pub(crate) fn rearm<E>(&self, step: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        match self.sabotage {
            Sabotage::NoRearm => Ok(()),
            _ => step(),
        }
    }

    /// The last look of arming, behind the barrier. Who breaks it has looked before he had a barrier.
    pub(crate) fn last_look<E>(&self, step: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        match self.sabotage {
            Sabotage::RearmBeforeBarrier => Ok(()),
            _ => step(),
        }
    }

    /// Whether a page that somebody writes needs no copy: it `is_saved`.
    pub(crate) fn needs_no_copy(&self, is_saved: bool) -> bool {
        is_saved && self.sabotage != Sabotage::ClaimTwice
    }

    /// What the caller may copy of `pages`: that of which he has the claim is `mine`.
    pub(crate) fn claimed(
        &self,
        pages: &Range<usize>,
        mut mine: Vec<Range<usize>>,
    ) -> Vec<Range<usize>> {
        if self.sabotage == Sabotage::ClaimTwice {
            mine.clear();
            mine.push(pages.clone());
        }
        mine
    }

    /// Claimed pages are about to be copied. To `release` them now is what must not be.
    pub(crate) fn before_copy<E>(&self, release: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        match self.sabotage {
            Sabotage::ReleaseBeforeCopy => release(),
            _ => Ok(()),
        }
    }

    /// Whether this page is missing in the picture.
    pub(crate) fn leaves_out(&self, page: usize) -> bool {
        self.sabotage == Sabotage::SkipPage
            && page % 7 == 3
            && self.left_out.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// The step that finds out by itself whether a copy is right. What is broken is to be noticed by
    /// others.
    pub(crate) fn check<E>(&self, step: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        match self.sabotage {
            Sabotage::None => step(),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each point makes of what it is given: whether it is another thing than by default.
    fn broken(hooks: &Hooks) -> Vec<&'static str> {
        let mut found = Vec::new();
        let mut note = |name, is_broken: bool| is_broken.then(|| found.push(name));
        let (taken, not_taken) = (Err(()), Ok(()));
        let mut places = false;
        hooks.protect_placements(|| places = true);
        note("placements", !places);
        note("rearm", hooks.rearm(|| taken) != taken);
        note("last look", hooks.last_look(|| taken) != taken);
        note("saved", !hooks.needs_no_copy(true));
        assert!(!hooks.needs_no_copy(false));
        let mine = vec![1..3, 5..6];
        note("claimed", hooks.claimed(&(0..9), mine.clone()) != mine);
        note("release", hooks.before_copy(|| taken) != not_taken);
        let left_out: Vec<usize> = (0..100).filter(|&page| hooks.leaves_out(page)).collect();
        assert!(left_out.is_empty() || left_out == [3], "{left_out:?}");
        note("left out", !left_out.is_empty());
        note("check", hooks.check(|| taken) != taken);
        found
    }

    #[test]
    fn each_breaks_its_own_point_and_none_breaks_nothing() {
        assert!(broken(&Hooks::default()).is_empty());
        let expect: [&[&str]; 7] = [
            &["release"],
            &["saved", "claimed"],
            &["last look"],
            &["rearm"],
            // By who collects them.
            &[],
            &["left out"],
            &["placements"],
        ];
        for ((name, sabotage), expect) in Sabotage::NAMES.into_iter().zip(expect) {
            let mut found = broken(&Hooks::from(sabotage));
            assert_eq!(found.pop(), Some("check"), "{name}");
            assert_eq!(found, expect, "{name}");
        }
    }
}
