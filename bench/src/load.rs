//! Who else used the cores meanwhile.

use std::time::Instant;

/// Clock ticks a second in `/proc`: 100 on every Linux that this runs on.
const TICKS_PER_S: f64 = 100.0;

/// Since when.
#[derive(Debug)]
pub struct Load {
    since: Instant,
    busy: f64,
    own: f64,
}

impl Load {
    /// From now on.
    pub fn begin() -> Self {
        Self {
            since: Instant::now(),
            busy: busy_s(),
            own: own_s(),
        }
    }

    /// The share of all cores that went to others than this process and the children that it has
    /// waited for.
    pub fn others_share(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let all = self.since.elapsed().as_secs_f64() * cores as f64;
        let others = (busy_s() - self.busy) - (own_s() - self.own);
        (others / all.max(1e-3)).clamp(0.0, 1.0)
    }
}

/// Seconds in which cores were not idle.
fn busy_s() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_ticks(&text).unwrap_or(0) as f64 / TICKS_PER_S
}

/// Seconds that this process used, and its children that have ended.
fn own_s() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    own_ticks(&text).unwrap_or(0) as f64 / TICKS_PER_S
}

/// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`: guests are in user
/// already, and stolen time is somebody else's.
fn busy_ticks(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|&at| fields.get(at));
    Some(busy.sum())
}

/// Fields 14 to 17: user and system time, of itself and of its children.
fn own_ticks(text: &str) -> Option<u64> {
    // The name, in brackets, may have anything in it.
    let rest = text.rsplit_once(')')?.1;
    let fields = rest.split_whitespace().skip(11).take(4);
    Some(fields.filter_map(|field| field.parse::<u64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_busy() {
        let text = "cpu  10 20 30 4000 500 6 7 8 9 9\ncpu0 1 1 1 1\n";
        assert_eq!(busy_ticks(text), Some(10 + 20 + 30 + 6 + 7 + 8));
    }

    #[test]
    fn a_strange_name_hides_no_time() {
        let text = "12 (a) b) S 1 1 1 0 -1 4194560 1 2 3 4 100 200 30 4 20 0 1";
        assert_eq!(own_ticks(text), Some(334));
    }
}
