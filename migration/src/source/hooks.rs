//! Points of a source at which something can be broken on purpose, so that tests can show that it is
//! noticed. Whoever comes by one asks nothing: by default each gives back what it was given.

use std::ops::Range;
use std::sync::mpsc::RecvTimeoutError;

use paguro_dirty::tracker::{Tracker, TrackerError};

use super::command::Command;
use super::nothing::Nothing;

/// What is broken on purpose, for tests to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceSabotage {
    /// Nothing.
    None,
    /// Pages are read before their chunk is cleared: a write in between is lost.
    ClearAfterRead,
    /// Some dirty pages of the last pass are left out.
    SkipPage,
    /// The multifd channels do not wait for each other but at the end, and one of them lags.
    SkipMultifdSync,
    /// The cache of XBZRLE is told of pages that are not sent.
    StaleDelta,
    /// Whoever is to send EOF ends instead, and says nothing.
    SilentSender,
}

impl SourceSabotage {
    /// The names under which a program offers them.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("break-clear-after-read", Self::ClearAfterRead),
        ("break-skip-dirty-page", Self::SkipPage),
        ("break-skip-multifd-sync", Self::SkipMultifdSync),
        ("break-stale-xbzrle", Self::StaleDelta),
        ("break-silent-sender", Self::SilentSender),
    ];
}

/// The first packet that may be held: those before it are of memory that guests seldom write.
const HELD: u64 = 10;

/// One method for each point.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hooks(SourceSabotage);

impl Hooks {
    pub(super) fn new(sabotage: SourceSabotage) -> Self {
        Self(sabotage)
    }

    fn breaks(self, what: SourceSabotage) -> bool {
        self.0 == what
    }

    /// Who clears a chunk that is taken.
    pub(super) fn clearing(self, tracker: &dyn Tracker) -> &dyn Tracker {
        if self.breaks(SourceSabotage::ClearAfterRead) {
            &Nothing
        } else {
            tracker
        }
    }

    /// A chunk that was taken is sent.
    pub(super) fn sent(
        self,
        tracker: &dyn Tracker,
        block: usize,
        chunk: Range<usize>,
    ) -> Result<(), TrackerError> {
        if self.breaks(SourceSabotage::ClearAfterRead) {
            tracker.clear(block, chunk)
        } else {
            Ok(())
        }
    }

    /// The chunks of the last pass.
    pub(super) fn rest(self, mut chunks: Vec<(usize, Range<usize>)>) -> Vec<(usize, Range<usize>)> {
        if self.breaks(SourceSabotage::SkipPage)
            && let Some((_, chunk)) = chunks.last_mut()
        {
            // Half of the last one, so that there is something to miss.
            chunk.end -= chunk.len() / 2;
        }
        chunks
    }

    /// What a sender is told to do.
    pub(super) fn told(
        self,
        command: Result<Command, RecvTimeoutError>,
    ) -> Result<Command, RecvTimeoutError> {
        match command {
            Ok(Command::Eof) if self.breaks(SourceSabotage::SilentSender) => {
                Err(RecvTimeoutError::Disconnected)
            }
            command => command,
        }
    }

    /// Whether the multifd channels are to write SYNC at the end of a pass, the last one or another.
    pub(super) fn syncs(self, last: bool) -> bool {
        last || !self.breaks(SourceSabotage::SkipMultifdSync)
    }

    /// Whether a channel that has `held` no packet so far is to hold this one until all others are through.
    pub(super) fn holds(self, held: bool, channel: u8, number: u64) -> bool {
        self.breaks(SourceSabotage::SkipMultifdSync) && !held && channel == 0 && number >= HELD
    }

    /// Whether a page goes into the cache of differences and nowhere else.
    pub(super) fn hoards(self, page: usize) -> bool {
        self.breaks(SourceSabotage::StaleDelta) && page.is_multiple_of(4)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use paguro_ram::PageSet;

    use super::*;

    #[test]
    fn by_default_nothing_is_broken() {
        let hooks = Hooks::new(SourceSabotage::None);
        let chunks = vec![(0, 0..512), (1, 512..1000)];
        assert_eq!(hooks.rest(chunks.clone()), chunks);
        assert!(matches!(hooks.told(Ok(Command::Eof)), Ok(Command::Eof)));
        assert!(hooks.syncs(false) && hooks.syncs(true));
        assert!(!(0..100).any(|number| hooks.holds(false, 0, number)));
        assert!(!(0..100).any(|page| hooks.hoards(page)));
    }

    /// Counts what is cleared.
    #[derive(Default)]
    struct Clears(AtomicUsize);

    impl Tracker for Clears {
        fn start(&self) -> Result<(), TrackerError> {
            Ok(())
        }

        fn sync(&self, _: &[PageSet]) -> Result<usize, TrackerError> {
            Ok(0)
        }

        fn clear(&self, _: usize, _: Range<usize>) -> Result<(), TrackerError> {
            self.0.fetch_add(1, Relaxed);
            Ok(())
        }

        fn stop(&self) {}
    }

    #[test]
    fn each_breaks_one_thing() {
        for (index, (name, sabotage)) in SourceSabotage::NAMES.into_iter().enumerate() {
            let hooks = Hooks::new(sabotage);
            let clears = Clears::default();
            hooks.clearing(&clears).clear(0, 0..2).unwrap();
            let broken = [
                clears.0.load(Relaxed) == 0,
                hooks.rest(vec![(0, 0..2)]) != [(0, 0..2)],
                !hooks.syncs(false),
                hooks.hoards(0),
                hooks.told(Ok(Command::Eof)).is_err(),
            ];
            assert!(
                (0..5).all(|point| broken[point] == (point == index)),
                "{name}"
            );
            // However it is broken, a chunk is cleared once, and the last SYNC is written.
            hooks.sent(&clears, 0, 0..2).unwrap();
            assert_eq!(clears.0.load(Relaxed), 1, "{name}");
            assert!(hooks.syncs(true));
        }
    }

    #[test]
    fn one_packet_is_held_and_by_one_channel() {
        let hooks = Hooks::new(SourceSabotage::SkipMultifdSync);
        assert!(hooks.holds(false, 0, HELD));
        assert!(!hooks.holds(false, 0, HELD - 1));
        assert!(!hooks.holds(true, 0, HELD));
        assert!(!hooks.holds(false, 1, HELD));
    }
}
