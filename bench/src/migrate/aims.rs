//! The project's aims for migrations, and whether they were reached.

use super::figures::{Figures, Moves};
use crate::report::Aim;
use crate::text::time;

/// Judges all that was measured.
pub fn judge(figures: &Figures) -> Vec<Aim> {
    let mut aims = Vec::new();
    for there in &figures.throughput {
        let what = format!("throughput, {:?}, {}", there.channel, there.connections());
        let aim = |into: &str, share: f64| Aim {
            what: format!("{what}, {into} memory"),
            aim: "85 % of raw sockets".to_owned(),
            reached: format!("{:.0} %", share * 100.0),
            is_met: Some(share >= 0.85),
        };
        aims.push(aim("raw into present", there.share()));
        aims.push(aim("raw into fresh", there.fresh_share()));
    }
    for moves in &figures.moves {
        let rate = match moves.rate_pages_per_s {
            0 => "full rate".to_owned(),
            rate => format!("{}k pages/s", rate / 1000),
        };
        let most = moves.limit_us.median * 1.1 + 5e3;
        aims.push(Aim {
            what: format!(
                "downtime as seen, {:?}, {rate}, {}",
                moves.channel, moves.backing
            ),
            aim: format!(
                "{} (what was left, by raw sockets, + 10 % + 5 ms)",
                time(most)
            ),
            reached: format!(
                "{}, at most {}",
                time(moves.seen_us.median),
                time(moves.seen_us.max)
            ),
            is_met: Some(moves.seen_us.median <= most),
        });
    }
    let memfd = figures
        .moves
        .iter()
        .filter(|moves| moves.backing == "memfd");
    aims.extend(memfd.filter_map(|memfd| {
        let like = |moves: &&Moves| {
            moves.backing == "anon"
                && moves.channel == memfd.channel
                && moves.rate_pages_per_s == memfd.rate_pages_per_s
        };
        let anon = figures.moves.iter().find(like)?;
        let ratio = memfd.total_us.median / anon.total_us.median.max(1.0);
        Some(Aim {
            what: "time to move a guest in memfd, by that in anonymous memory".to_owned(),
            aim: "1.2x".to_owned(),
            reached: format!("{ratio:.2}x"),
            is_met: Some(ratio <= 1.2),
        })
    }));
    aims
}
