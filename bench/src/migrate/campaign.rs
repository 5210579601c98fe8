//! What is measured, in which order and how often.

use std::path::Path;

use anyhow::{Context, Result};
use paguro_lab::machine::Parameters;
use paguro_lab::{
    Accel, Backing, Channel, Choice, Console, Machine, MachineOptions, Ruler, Window, host,
};
use paguro_workload::Spec;
use paguro_workload::spec::Op;
use serde_json::json;

use super::codecs;
use super::figures::{Figures, MoveSeen, Moves, Tracking};
use super::journey::{Traveller, Way, workload};
use crate::plan::MIB;
use crate::report::RulerTest;
use crate::setup::{IDLE_SET, files_in, room_for};
use crate::stats::Spread;
use crate::variant::{SLEEP_US, Variant};

/// The guest of the peers' figures.
pub(super) const MEMORY_BYTES: u64 = 512 * MIB;
pub(super) const SET_BYTES: u64 = 256 * MIB;

/// Writes of a guest that leaves its memory alone: enough to be seen running.
const IDLE_RATE: u64 = 20_000;

/// What of it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes a second, against raw sockets.
    Throughput,
    /// Downtime of guests that write, and throughput.
    Moves,
    /// What tracking costs.
    Tracking,
    /// Zero pages, differences of pages, and compression.
    Pages,
}

impl Choice for Part {
    const ALL: &'static [(&'static str, Self)] = &[
        ("throughput", Self::Throughput),
        ("moves", Self::Moves),
        ("tracking", Self::Tracking),
        ("pages", Self::Pages),
    ];
}

/// A campaign under way.
pub struct Campaign<'a> {
    program: &'a Path,
    pub(super) runs: usize,
    /// Everything, or this.
    only: Option<Part>,
    accel: Accel,
    sizes: Vec<u64>,
    pub(super) console: &'a dyn Console,
    pub(super) figures: Figures,
}

impl<'a> Campaign<'a> {
    /// On this host.
    pub fn new(
        program: &'a Path,
        quick: bool,
        only: Option<Part>,
        accel: Accel,
        console: &'a dyn Console,
    ) -> Self {
        let runs = if quick { 3 } else { 7 };
        let mut sizes = vec![256 * MIB, 1024 * MIB];
        if !quick {
            sizes.push(4096 * MIB);
        }
        let steps = 1 + 14 * runs + sizes.len() * runs + 3;
        console.begin("measuring", steps as u64);
        Self {
            program,
            runs,
            only,
            accel,
            sizes,
            console,
            figures: Figures {
                quick,
                accel: accel.name(),
                ..Figures::default()
            },
        }
    }

    /// All of it, the test of the ruler first.
    pub fn run(mut self) -> Result<Figures> {
        self.figures.ruler = self.test_ruler().context("the test of the ruler")?;
        self.console.step();
        // The limit of moves is the throughput of raw sockets.
        if self.wants(Part::Throughput) || self.wants(Part::Moves) {
            for channel in [Channel::Tcp, Channel::Unix] {
                self.throughput(channel).context("throughput")?;
            }
        }
        if self.wants(Part::Moves) {
            for channel in [Channel::Tcp, Channel::Unix] {
                for rate in [10_000, 100_000, 0] {
                    self.moves(channel, rate, Backing::Anon).context("moves")?;
                }
            }
            // The same guest in shared memory, which is asked in another way what of it exists.
            for backing in [Backing::Anon, Backing::Memfd] {
                self.moves(Channel::Unix, 50_000, backing)
                    .context("moves")?;
            }
        }
        if self.wants(Part::Tracking) {
            for bytes in self.sizes.clone() {
                self.tracking(bytes).context("tracking")?;
            }
        }
        if self.wants(Part::Pages) {
            self.pages()?;
        }
        if let Some(only) = self.only {
            self.skip(format!("what `--only` leaves out: all but {}", only.name()));
        }
        Ok(self.figures)
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }

    fn pages(&mut self) -> Result<()> {
        self.console.at("zero pages");
        let scan = codecs::zero_scan((SET_BYTES / 2) as usize, self.runs)?;
        self.figures.zero_scan = Some(scan);
        self.console.step();
        self.console.at("XBZRLE");
        for changed in [8, 64, 1024] {
            let delta = codecs::delta(changed, 4096, self.runs);
            self.figures.xbzrle.push(delta);
        }
        self.console.step();
        self.console.at("zstd");
        self.figures.zstd = Some(codecs::zstd(1, 64, self.runs)?);
        self.console.step();
        Ok(())
    }

    fn skip(&mut self, what: String) {
        self.figures.skipped.push(what);
    }

    pub(super) fn options(&self, memory_bytes: u64, workload: Spec) -> MachineOptions {
        MachineOptions {
            memory_bytes,
            accel: self.accel,
            workload,
            ..MachineOptions::new(self.program)
        }
    }

    /// The clock that times moves reads a pause of a snapshot with and without a sleep of 20 ms.
    fn test_ruler(&mut self) -> Result<RulerTest> {
        self.console.at("the ruler");
        let spec = Spec {
            rate_pages_per_s: 0,
            op: Op::Write,
            ..workload(0, IDLE_SET)
        };
        let mut machine = Machine::start(&self.options(64 * MIB, spec))?;
        machine.wait_writes(1000)?;
        let dir = files_in(&host::memory_dir())?;
        let path = dir.path().join("snapshot");
        let mut read = |variant: Variant| -> Result<Spread> {
            let mut all = Vec::new();
            for _ in 0..5 {
                let most = std::time::Duration::from_secs(10);
                let ruler = Ruler::lay(machine.progress().clone(), most)?;
                let report = machine.snapshot(&path, &variant.parameters(), true)?;
                let record = ruler.read();
                std::fs::remove_file(&path)?;
                let at = report["pause_at_ns"].as_u64().context("no pause")?;
                let us = report["pause_us"].as_u64().context("no pause")?;
                all.push(record.still_across(Window::new(at, at + us * 1000)).ns as f64 / 1e3);
            }
            Ok(Spread::of(all))
        };
        let without_us = read(Variant::Default)?;
        let with_us = read(Variant::Sleep)?;
        let reads_us = with_us.min - without_us.min;
        let sleep_us = SLEEP_US as f64;
        Ok(RulerTest {
            sleep_us,
            with_us,
            without_us,
            reads_us,
            outside_reads_us: reads_us,
            is_right: (reads_us - sleep_us).abs() <= 1000.0,
        })
    }

    fn travel(
        &self,
        guest: &mut Traveller,
        channel: Channel,
        parameters: &Parameters,
    ) -> Result<MoveSeen> {
        let way = Way::alone(channel);
        let seen = guest.travel(way, parameters, self.console)?;
        self.console.step();
        Ok(seen)
    }

    fn moves(&mut self, channel: Channel, rate: u64, backing: Backing) -> Result<()> {
        let backing_name = backing.name();
        self.console.at(&format!(
            "moves, {channel:?}, {rate} pages/s, {backing_name}"
        ));
        let options = MachineOptions {
            backing,
            ..self.options(MEMORY_BYTES, workload(rate, SET_BYTES))
        };
        let mut guest = Traveller::start(&options, SET_BYTES + 2 * MIB)?;
        let parameters = [
            ("downtime-limit", json!(300)),
            ("x-paguro-convergence-timeout", json!(2)),
            ("x-paguro-at-timeout", json!("switchover")),
        ];
        let named = parameters.map(|(name, value)| (name.to_owned(), value));
        let parameters = Parameters::from_iter(named);
        let mut seen = Vec::new();
        for _ in 0..self.runs {
            seen.push(self.travel(&mut guest, channel, &parameters)?);
        }
        // Of the same channel in the same run.
        let raw = self.figures.throughput.iter();
        let raw = raw.filter(|there| there.channel == channel && there.connections == 1);
        let bytes_per_us = raw
            .map(|there| there.bytes as f64 / there.raw_us.median.max(1.0))
            .next()
            .context("raw sockets were not measured")?;
        let spread = |of: &dyn Fn(&MoveSeen) -> f64| Spread::of(seen.iter().map(of));
        self.figures.moves.push(Moves {
            channel,
            backing: backing_name.to_owned(),
            rate_pages_per_s: rate,
            set_bytes: SET_BYTES,
            runs: seen.len(),
            seen_us: spread(&|seen| seen.seen_us),
            idle_us: spread(&|seen| seen.idle_us),
            blind_us: spread(&|seen| seen.blind_us),
            downtime_us: spread(&|seen| seen.report.downtime_us as f64),
            forecast_us: spread(&|seen| seen.report.forecast_us as f64),
            seen_by_forecast: spread(&|seen| seen.seen_us / seen.report.forecast_us.max(1) as f64),
            last_dirty_bytes: spread(&|seen| seen.report.last_dirty_bytes as f64),
            dirty_by_bandwidth_us: spread(&|seen| seen.report.dirty_us()),
            seen_by_dirty: spread(&|seen| seen.seen_us / seen.report.dirty_us().max(1.0)),
            downtime_bytes: spread(&|seen| seen.report.downtime_bytes as f64),
            limit_us: spread(&|seen| seen.report.downtime_bytes as f64 / bytes_per_us),
            total_us: spread(&|seen| seen.report.total_us as f64),
            passes: spread(&|seen| seen.report.dirty_sync_count as f64),
            rate_kept: spread(&|seen| seen.rate_meanwhile / seen.rate_before.max(1.0)),
        });
        Ok(())
    }

    fn tracking(&mut self, memory_bytes: u64) -> Result<()> {
        let what = format!("tracking, {} MiB", memory_bytes >> 20);
        self.console.at(&what);
        if let Err(reason) = room_for(memory_bytes) {
            self.skip(format!("{what}: {reason}"));
            return Ok(());
        }
        let options = self.options(memory_bytes, workload(IDLE_RATE, IDLE_SET));
        // All of RAM is there: what is absent costs nothing to track.
        let mut guest = Traveller::start(&options, memory_bytes)?;
        let mut seen = Vec::new();
        for _ in 0..self.runs {
            seen.push(self.travel(&mut guest, Channel::Unix, &Parameters::new())?);
        }
        self.figures.tracking.push(Tracking {
            memory_bytes,
            start_us: Spread::of(seen.iter().map(|seen| seen.report.track_us as f64)),
            sync_us: Spread::of(seen.iter().map(|seen| seen.report.sync_us as f64)),
        });
        Ok(())
    }
}
