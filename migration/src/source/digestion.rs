//! What the destination has still to digest.
//!
//! That bytes could be written says that they lie in buffers, of which a TCP connection has many
//! megabytes; whether the destination puts pages in their places as fast as they come is another
//! matter. Memory that its host hands out for the first time, a huge page at a time, may take it
//! seconds for what was written in a moment, and a slow network is no faster for a large buffer in
//! front of it. A guest that is stopped then stands still until all of that is done.
//!
//! So a PING follows what is sent, part by part, and its PONG says that everything before it was
//! digested, and how fast:
//!
//! ```text
//! source       [ part 1 ] PING [ part 2 ] PING       [ .. ] PING
//! destination        [  part 1      ] PONG [ part 2     ] PONG
//!                                      |<----- busy ----->|
//!                                       |<- late ->|  of a round trip that is the fastest of all
//! ```
//!
//! A PONG that comes about when it must says only that the destination keeps up; one that comes late
//! says what it can do. What counts is what was measured last: a host that stood still for a moment is
//! forgotten after a few parts, and the fastest PONG is not made slower by it.
//!
//! Where the source takes its time to find something to send, the destination waits for it, and is not slow:
//! what comes in time is set against the time that was spent in writing it. A few bytes say nothing; they
//! are gathered until there are more.
//!
//! A file has no destination that answers. Syncing it is the question and the answer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::forecast::Rate;
use crate::stream::Gathered;

/// Of a destination that does not answer, not everything is kept.
const UNANSWERED: usize = 64;
/// Syncing so much takes about as long as syncing nothing.
const FEW_BYTES: u64 = 256 << 10;
/// So late an answer may be because nobody had a core for it.
const LATE: Duration = Duration::from_millis(5);

/// What was sent, what was digested of it, and how fast.
#[derive(Debug, Default)]
pub(super) struct Digestion {
    /// PINGs that were not answered, the oldest first.
    asked: VecDeque<Asked>,
    answered: Option<Answered>,
    /// How long a PONG took, the fastest of all: the others waited behind what was on its way, or
    /// for a host that stood still.
    fastest: Option<Duration>,
    /// Bytes.
    rate: Rate,
    /// What was digested since that was counted last, and whether any of it was late.
    gathered: Gathered,
    was_late: bool,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Bytes written before it.
    bytes: u64,
    /// When the first of those behind the PING before it was.
    began: Instant,
    /// How long they took to be written.
    writing: Duration,
    at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Answered {
    bytes: u64,
    at: Instant,
}

impl Digestion {
    /// A PING goes now, behind so many bytes. The last of them began to be looked for at `began`, and
    /// writing them took `writing` of the time since then. Whether it does: not if many were never
    /// answered.
    pub(super) fn ask(&mut self, bytes: u64, began: Instant, writing: Duration) -> bool {
        let asks = self.asked.len() < UNANSWERED;
        if asks {
            let at = Instant::now();
            self.asked.push_back(Asked {
                bytes,
                began,
                writing,
                at,
            });
        }
        asks
    }

    /// The PONG of the oldest PING came.
    pub(super) fn answer(&mut self, now: Instant) {
        let Some(asked) = self.asked.pop_front() else {
            return;
        };
        let took = now.saturating_duration_since(asked.at);
        let fastest = self.fastest.map_or(took, |fastest| fastest.min(took));
        self.fastest = Some(fastest);
        let (mut free, mut before) = (asked.began + fastest, 0);
        if let Some(answered) = self.answered {
            free = free.max(answered.at);
            before = answered.bytes;
        }
        let bytes = asked.bytes.saturating_sub(before);
        let late = took - fastest;
        let busy = now
            .saturating_duration_since(free)
            .min(asked.writing + late);
        self.count(bytes, busy, late * 4 >= busy);
        self.answered = Some(Answered {
            bytes: asked.bytes,
            at: now,
        });
    }

    /// A file was synced up to so many bytes. Writing the last of them took `writing`, and the sync
    /// began at `at`.
    pub(super) fn settle(&mut self, bytes: u64, writing: Duration, at: Instant, now: Instant) {
        let new = bytes - self.answered.map_or(0, |answered| answered.bytes);
        if new < FEW_BYTES {
            let took = now.saturating_duration_since(at);
            self.fastest = Some(self.fastest.map_or(took, |fastest| fastest.min(took)));
        } else {
            self.count(new, writing + now.saturating_duration_since(at), true);
        }
        self.answered = Some(Answered { bytes, at: now });
    }

    fn count(&mut self, bytes: u64, busy: Duration, is_late: bool) {
        self.was_late |= is_late;
        let Some((bytes, busy)) = self.gathered.add(bytes, busy, LATE) else {
            return;
        };
        let is_late = std::mem::take(&mut self.was_late);
        let faster = bytes as f64 / busy.as_secs_f64();
        if is_late || self.rate.per_s().is_none_or(|rate| rate < faster) {
            self.rate.count(bytes as f64, busy);
        }
        self.rate.fade();
    }

    /// How long a round trip takes; nothing before one is known.
    pub(super) fn round_trip(&self) -> Duration {
        self.fastest.unwrap_or_default()
    }

    /// Bytes a second, if anything is known; it may be more.
    pub(super) fn bytes_per_s(&self) -> Option<f64> {
        self.rate.per_s()
    }

    /// Whether the first so many bytes were digested.
    pub(super) fn has(&self, bytes: u64) -> bool {
        self.answered
            .is_some_and(|answered| answered.bytes >= bytes)
    }

    /// Whether a PING that is not answered yet will say so.
    pub(super) fn will_tell(&self, bytes: u64) -> bool {
        self.asked.back().is_some_and(|asked| asked.bytes >= bytes)
    }

    /// For how long the destination is busy with the first so many bytes, beyond the round trip that
    /// a question takes anyhow. With `stays` it does nothing unless it is asked. While nothing is known
    /// of it, `bytes_per_s` counts.
    pub(super) fn backlog(
        &self,
        bytes: u64,
        stays: bool,
        bytes_per_s: u64,
        now: Instant,
    ) -> Option<Duration> {
        if self.has(bytes) {
            return Some(Duration::ZERO);
        }
        let answered = self.answered?;
        let rate = self.rate.per_s().unwrap_or(bytes_per_s as f64);
        let left = Duration::try_from_secs_f64((bytes - answered.bytes) as f64 / rate);
        let left = left.unwrap_or(Duration::MAX);
        let round_trip = self.round_trip();
        let done = if stays {
            Duration::ZERO
        } else {
            now.saturating_duration_since(answered.at) + round_trip
        };
        // What is overdue takes as long again, for all that is known.
        let oldest = self.asked.front();
        let overdue = oldest.map_or(Duration::ZERO, |asked| {
            now.saturating_duration_since(asked.at)
                .saturating_sub(round_trip)
        });
        Some(left.saturating_sub(done).max(overdue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A PING at `at` milliseconds behind so many MiB that were begun `wrote` milliseconds before.
    fn ask(digestion: &mut Digestion, start: Instant, at: u64, mib: u64, wrote: u64) {
        assert!(digestion.ask(mib * MIB, start + ms(at - wrote), ms(wrote)));
        digestion.asked.back_mut().unwrap().at = start + ms(at);
    }

    #[test]
    fn what_lies_in_buffers_is_a_backlog() {
        let mut digestion = Digestion::default();
        let start = Instant::now();
        ask(&mut digestion, start, 0, 0, 0);
        digestion.answer(start + ms(1));
        // 100 MiB within 50 ms, of which the destination takes 50 MiB a second.
        ask(&mut digestion, start, 51, 50, 50);
        ask(&mut digestion, start, 52, 100, 1);
        let backlog = |digestion: &Digestion, at| {
            digestion.backlog(100 * MIB, false, 200 * MIB, start + ms(at))
        };
        // Nothing but how fast it was written is known yet: half a second, of which 51 ms are over.
        let left = backlog(&digestion, 52).unwrap();
        assert!((ms(440)..ms(460)).contains(&left), "{left:?}");
        digestion.answer(start + ms(1002));
        let rate = digestion.bytes_per_s().unwrap() / MIB as f64;
        assert!((49.0..51.0).contains(&rate), "{rate}");
        let left = backlog(&digestion, 1002).unwrap();
        assert!((ms(990)..ms(1010)).contains(&left), "{left:?}");
        let left = backlog(&digestion, 1502).unwrap();
        // More than half a second, as the PING is that late.
        assert!(left >= ms(490), "{left:?}");
        assert!(!digestion.has(100 * MIB) && digestion.will_tell(100 * MIB));
        digestion.answer(start + ms(2002));
        assert_eq!(backlog(&digestion, 2003), Some(Duration::ZERO));
        assert!(digestion.has(100 * MIB));
        assert_eq!(digestion.round_trip(), ms(1));
    }

    #[test]
    fn what_is_on_its_way_is_none() {
        let mut digestion = Digestion::default();
        let start = Instant::now();
        ask(&mut digestion, start, 0, 0, 0);
        digestion.answer(start + ms(100));
        // 1 MiB each millisecond, a PING each 50 ms, and a round trip of 100 ms.
        for part in 1..=20 {
            ask(&mut digestion, start, 100 + part * 50, part * 50, 50);
            if part > 2 {
                digestion.answer(start + ms(100 + part * 50));
            }
        }
        let left = digestion.backlog(1000 * MIB, false, 0, start + ms(1100));
        assert!(left.unwrap() <= ms(1), "{left:?}");
        let left = digestion.backlog(1020 * MIB, false, 0, start + ms(1120));
        assert!(left.unwrap() <= ms(1), "{left:?}");
        // They do not come.
        let left = digestion
            .backlog(1020 * MIB, false, 0, start + ms(1500))
            .unwrap();
        assert!(left >= ms(340), "{left:?}");
    }

    #[test]
    fn what_stays_until_it_is_asked_for_does_not_get_less() {
        let mut digestion = Digestion::default();
        let start = Instant::now();
        digestion.settle(100 * MIB, ms(900), start + ms(900), start + ms(1000));
        assert_eq!(digestion.round_trip(), ms(0));
        let rate = digestion.bytes_per_s().unwrap() / MIB as f64;
        assert!((99.0..101.0).contains(&rate), "{rate}");
        let left = digestion
            .backlog(110 * MIB, true, 0, start + ms(9999))
            .unwrap();
        assert!((ms(99)..ms(101)).contains(&left), "{left:?}");
        // Next to nothing was written: what remains is what a sync takes anyhow.
        digestion.settle(100 * MIB + 4096, ms(0), start + ms(1000), start + ms(1020));
        assert_eq!(digestion.round_trip(), ms(20));
        let rate = digestion.bytes_per_s().unwrap() / MIB as f64;
        assert!((99.0..101.0).contains(&rate), "{rate}");
    }

    #[test]
    fn a_host_that_stood_still_once_is_forgotten() {
        let mut digestion = Digestion::default();
        let start = Instant::now();
        let mut at = 0;
        let mut part = |digestion: &mut Digestion, takes: u64| {
            let sent = digestion
                .answered
                .map_or(0, |answered| answered.bytes / MIB);
            ask(digestion, start, at + 1, sent + 1, 1);
            at += 1 + takes;
            digestion.answer(start + ms(at));
        };
        for _ in 0..20 {
            part(&mut digestion, 2);
        }
        let before = digestion.bytes_per_s().unwrap();
        part(&mut digestion, 150);
        assert!(digestion.bytes_per_s().unwrap() < before / 2.0);
        for _ in 0..60 {
            part(&mut digestion, 2);
        }
        let after = digestion.bytes_per_s().unwrap();
        assert!(after > before * 0.8, "{after} of {before}");
        assert_eq!(digestion.round_trip(), ms(2));
    }

    /// Asks after `looked` milliseconds of looking and 0.1 of writing so many KiB more.
    fn ask_after_a_search(digestion: &mut Digestion, start: Instant, bytes: u64, looked: u64) {
        let writing = Duration::from_micros(100);
        assert!(digestion.ask(bytes, start, writing));
        digestion.asked.back_mut().unwrap().at = start + ms(looked);
    }

    #[test]
    fn who_waits_for_a_source_that_searches_is_not_slow() {
        let mut digestion = Digestion::default();
        let mut start = Instant::now();
        ask(&mut digestion, start, 0, 0, 0);
        digestion.answer(start + ms(1));
        // 100 KiB each, between which much is looked at that is absent or zero.
        for pass in 1..=100 {
            start += ms(50);
            ask_after_a_search(&mut digestion, start, pass * (100 << 10), 45);
            digestion.answer(start + ms(46));
        }
        let rate = digestion.bytes_per_s().unwrap();
        assert!(rate > 500e6, "{rate}");
        // It was held up once, and it was not this that it is slow.
        start += ms(50);
        ask_after_a_search(&mut digestion, start, 101 * (100 << 10), 45);
        digestion.answer(start + ms(95));
        assert!(digestion.bytes_per_s().unwrap() < 100e6);
        for pass in 102..=150 {
            start += ms(100);
            ask_after_a_search(&mut digestion, start, pass * (100 << 10), 45);
            digestion.answer(start + ms(46));
        }
        let rate = digestion.bytes_per_s().unwrap();
        assert!(rate > 500e6, "{rate}");
    }

    #[test]
    fn a_few_bytes_say_nothing_of_who_digests_them() {
        let mut digestion = Digestion::default();
        let start = Instant::now();
        ask(&mut digestion, start, 0, 0, 0);
        digestion.answer(start + ms(1));
        // A PING by itself, for which there is no core for a while.
        for count in 1..=5000 {
            let at = start + ms(10 * count);
            assert!(digestion.ask(13 * count, at, Duration::from_micros(10)));
            digestion.asked.back_mut().unwrap().at = at;
            digestion.answer(at + ms(4));
        }
        assert!(digestion.bytes_per_s().is_none_or(|rate| rate > 1e9));
    }

    #[test]
    fn the_fastest_answer_says_how_long_a_round_trip_takes() {
        let mut digestion = Digestion::default();
        let start = Instant::now();
        digestion.answer(start);
        assert_eq!(digestion.round_trip(), Duration::ZERO);
        for (took, fastest) in [(20, 20), (3, 3), (150, 3)] {
            ask(&mut digestion, start, 0, 0, 0);
            digestion.answer(start + ms(took));
            assert_eq!(digestion.round_trip(), ms(fastest));
        }
    }

    #[test]
    fn of_a_destination_that_never_answers_not_everything_is_kept() {
        let mut digestion = Digestion::default();
        let asks = |_: &usize| digestion.ask(0, Instant::now(), ms(0));
        assert_eq!((0..1000).filter(asks).count(), UNANSWERED);
    }
}
