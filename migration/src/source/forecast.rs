//! How long the guest would stand still if it were stopped now.
//!
//! ```text
//! downtime = what the destination has still to digest of all that was sent
//!          + bytes of dirty pages / bandwidth, or what it takes to find and read them
//!          + device state: bytes / bandwidth, and the time to stop, to collect and to load it
//!          + the last sync of dirty pages
//!          + two round trips: PING to PONG, EOF to SHUT
//! ```
//!
//! The bandwidth (of `stream`) is that of the time that was spent in writing. If the
//! destination [digests](super::digestion) less than that, this counts. Dirty pages count as whole ones,
//! though they may turn out to be zero or little different; but for what compression is seen to save.
//! QEMU counts only the second line of it, and one window.
//!
//! What device state costs says the machine, which knows its vCPUs, or how long it ever took to
//! save it: loading it is taken to be as long.
//!
//! What it takes to find and read pages was measured, too: of pages that lie far apart this may be most
//! of it, and on the main channel it adds to what it takes to write them. In the first pass, as long as it is not over, most pages may be absent: how many are not is
//! concluded from those that were looked at.

use std::time::Duration;

use crate::machine::DeviceCost;

/// A window is at least that long.
const WINDOW: Duration = Duration::from_millis(100);
/// Of a machine that says nothing, before it was ever saved: one of a few vCPUs.
const A_FEW_VCPUS: DeviceCost = DeviceCost {
    bytes: 64 << 10,
    time: Duration::from_millis(2),
};

/// What device state will cost: by the word of the machine, or else by how it was saved before.
pub fn device_cost(said: Option<DeviceCost>, saved: Option<DeviceCost>) -> DeviceCost {
    let twice = saved.map(|saved| DeviceCost {
        time: saved.time * 2,
        ..saved
    });
    said.or(twice).unwrap_or(A_FEW_VCPUS)
}

/// How fast something went of late: over about 100 ms, or the last ten times that something was
/// counted and [faded](Self::fade), if that is longer ago.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    amount: f64,
    seconds: f64,
}

impl Rate {
    /// So much was done in `time`.
    pub fn count(&mut self, amount: f64, time: Duration) {
        let seconds = time.as_secs_f64();
        let keep = (-seconds / WINDOW.as_secs_f64()).exp();
        self.amount = self.amount * keep + amount;
        self.seconds = self.seconds * keep + seconds;
    }

    /// What was counted so far counts less from now on, so that what was measured in a bad moment
    /// does not stay because there is hardly anything to measure.
    pub fn fade(&mut self) {
        const KEEP: f64 = 0.9;
        self.amount *= KEEP;
        self.seconds *= KEEP;
    }

    /// A second's worth, if anything was counted.
    pub fn per_s(&self) -> Option<f64> {
        (self.amount > 0.0 && self.seconds > 0.0).then(|| self.amount / self.seconds)
    }
}

/// How long the sender took to find and read pages; with multifd, to have them written, too.
#[derive(Debug, Default)]
pub struct Labour {
    /// Pages that were looked at for the first time, as how many of them what was sent is, and how long
    /// that took.
    looked: u64,
    found: u64,
    looking: Duration,
    /// Pages that were not looked at yet.
    pub unlooked: u64,
    /// Pages that are sent.
    sent: Rate,
}

impl Labour {
    /// Of so many pages some were to be sent, which made as many bytes as `found` pages have.
    pub fn count(&mut self, pages: u64, found: u64, sent: u64, time: Duration) {
        if self.unlooked > 0 {
            self.unlooked = self.unlooked.saturating_sub(pages);
            self.looked += pages;
            self.found += found;
            self.looking += time;
        }
        if sent > 0 {
            self.sent.count(sent as f64, time);
        }
    }

    /// A pass is over.
    pub fn fade(&mut self) {
        self.sent.fade();
    }

    /// Of so many dirty pages, how many will be sent, and how long that takes.
    pub fn expect(&self, dirty: u64) -> (u64, Duration) {
        let unlooked = self.unlooked.min(dirty);
        let written = dirty - unlooked;
        let looked = self.looked.max(1) as f64;
        let found = match self.looked {
            0 => unlooked,
            _ => (unlooked as f64 * self.found as f64 / looked) as u64,
        };
        let looking = self.looking.as_secs_f64() * unlooked as f64 / looked;
        let sending = self.sent.per_s().map_or(0.0, |rate| written as f64 / rate);
        let time = Duration::try_from_secs_f64(looking + sending).unwrap_or(Duration::MAX);
        (found + written, time)
    }
}

/// What a forecast is made of.
#[derive(Clone, Copy, Debug)]
pub struct Outlook {
    /// For how long the destination is busy with what was sent.
    pub backlog: Duration,
    /// Bytes of dirty pages.
    pub dirty_bytes: u64,
    /// And those that they are on the way.
    pub packed_bytes: u64,
    /// How long it takes to find and read them, at least.
    pub work: Duration,
    /// Bytes a second that the channel takes.
    pub bytes_per_s: u64,
    /// How long a round trip to the destination takes.
    pub round_trip: Duration,
    /// How long the last sync took.
    pub sync: Duration,
    /// What device state costs.
    pub devices: DeviceCost,
}

impl Outlook {
    /// The forecast; the longest there is while nothing is known of the channel.
    pub fn downtime(&self) -> Duration {
        if self.bytes_per_s == 0 {
            return Duration::MAX;
        }
        let pages = self.takes(self.packed_bytes).max(self.work);
        let rest = self.sync + 2 * self.round_trip;
        let rest = pages
            .saturating_add(self.device_time())
            .saturating_add(rest);
        self.backlog.saturating_add(rest)
    }

    /// What device state takes of it: no pass makes that less.
    fn device_time(&self) -> Duration {
        let sending = self.takes(self.devices.bytes);
        sending.saturating_add(self.devices.time)
    }

    fn takes(&self, bytes: u64) -> Duration {
        let seconds = bytes as f64 / self.bytes_per_s.max(1) as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// A stop that is shorter is not made shorter at the price of another pass.
const SHORT: Duration = Duration::from_millis(5);

/// Whether to make another pass although the guest may be stopped: its stop would not be short, and
/// the last pass left less than half of what it sent. So passes go on only while each is worth it, and
/// all of them together take less than twice as long as the first of them.
pub fn is_worth_a_pass(forecast: Duration, sent_bytes: u64, left_bytes: u64) -> bool {
    forecast > SHORT && left_bytes.saturating_mul(2) < sent_bytes
}

/// Whether to wait for a destination that is busy with what was sent, although the guest may be
/// stopped: it would stand still for that more than for all else. Where it would for the round trips
/// of a long way, the guest would write more meanwhile than is gained.
pub fn is_worth_a_wait(backlog: Duration, rest: Duration) -> bool {
    backlog > SHORT && backlog > rest
}

/// Whether the way is so short that an answer can be waited for, whatever it says: what the guest
/// writes meanwhile is little by what it may stand still.
pub fn is_short(round_trip: Duration, limit: Duration) -> bool {
    round_trip <= SHORT.max(limit / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_go_on_while_each_is_worth_it() {
        let long = Duration::from_millis(50);
        assert!(is_worth_a_pass(long, 100 << 20, 20 << 20));
        assert!(!is_worth_a_pass(long, 100 << 20, 50 << 20));
        assert!(!is_worth_a_pass(SHORT, 100 << 20, 1 << 20));
        assert!(!is_worth_a_pass(long, 0, 0));
    }

    #[test]
    fn a_backlog_is_waited_for_where_that_is_worth_it() {
        let ms = Duration::from_millis;
        assert!(is_worth_a_wait(ms(50), ms(20)));
        assert!(!is_worth_a_wait(ms(50), ms(60)));
        assert!(!is_worth_a_wait(ms(4), ms(1)));
    }

    #[test]
    fn what_is_left_is_reckoned_by_its_content_and_by_the_work_it_was() {
        let mut labour = Labour {
            unlooked: 1000,
            ..Labour::default()
        };
        assert_eq!(labour.expect(1000), (1000, Duration::ZERO));
        // Every tenth page was there.
        for _ in 0..5 {
            labour.count(100, 10, 10, Duration::from_millis(1));
        }
        assert_eq!(labour.expect(500), (50, Duration::from_millis(5)));
        // All was looked at, and a page here and there takes long.
        labour.count(500, 50, 50, Duration::from_millis(5));
        labour.count(5, 5, 5, Duration::from_secs(5));
        let (pages, time) = labour.expect(7);
        assert_eq!((pages, time.as_secs_f64().round()), (7, 7.0));
        // That was a moment's: it is forgotten in a few passes.
        for _ in 0..60 {
            labour.fade();
            labour.count(5, 5, 5, Duration::from_micros(50));
        }
        assert!(labour.expect(7).1 < Duration::from_millis(200));
    }

    #[test]
    fn every_part_of_the_downtime_counts() {
        let outlook = Outlook {
            backlog: Duration::from_millis(50),
            dirty_bytes: 100 << 20,
            packed_bytes: 100 << 20,
            work: Duration::from_millis(40),
            bytes_per_s: 1000 << 20,
            round_trip: Duration::from_millis(10),
            sync: Duration::from_millis(3),
            devices: A_FEW_VCPUS,
        };
        let ms = outlook.downtime().as_millis();
        assert!((175..177).contains(&ms), "{ms} ms");
        let slow = Outlook {
            work: Duration::from_secs(14),
            ..outlook
        };
        assert_eq!(slow.downtime().as_millis(), 14_075);
        let many_vcpus = Outlook {
            devices: DeviceCost {
                bytes: 10 << 20,
                time: Duration::from_millis(60),
            },
            ..outlook
        };
        let ms = many_vcpus.downtime().as_millis();
        assert!((243..245).contains(&ms), "{ms} ms");
        // Devices go as they are, however well pages pack.
        let packed = Outlook {
            packed_bytes: 50 << 20,
            ..many_vcpus
        };
        let ms = packed.downtime().as_millis();
        assert!((193..195).contains(&ms), "{ms} ms");
    }

    #[test]
    fn the_machine_knows_best_what_its_devices_cost() {
        let ms = |bytes, time| DeviceCost {
            bytes,
            time: Duration::from_millis(time),
        };
        let (said, saved) = (Some(ms(1 << 20, 60)), Some(ms(2 << 20, 20)));
        assert_eq!(device_cost(said, saved), ms(1 << 20, 60));
        assert_eq!(device_cost(None, saved), ms(2 << 20, 40));
        assert_eq!(device_cost(None, None), A_FEW_VCPUS);
    }
}
