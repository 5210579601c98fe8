//! A guest that moves from machine to machine while the outside clock watches it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use paguro_workload::Spec;
use serde_json::Value;

use super::figures::MoveSeen;
use crate::bench::fill::{Part, fill};
use crate::interrupt::Interrupts;
use crate::lab::machine::Parameters;
use crate::lab::{Channel, Machine, MachineOptions, Watcher, now_ns};

/// The guest alone, before a move.
const BEFORE: Duration = Duration::from_millis(200);
/// And after.
const AFTER: Duration = Duration::from_millis(20);
/// What is watched at most.
const MOST: Duration = Duration::from_secs(20);

/// A machine with a guest; each move makes it another machine.
pub struct Traveller {
    machine: Option<Machine>,
    options: MachineOptions,
}

impl Traveller {
    /// Starts one, with `filled_bytes` of its RAM filled.
    pub fn start(options: &MachineOptions, filled_bytes: u64) -> Result<Self> {
        let mut machine = Machine::start(options)?;
        let share = filled_bytes as f64 / options.memory_bytes as f64;
        fill(&mut machine, Part::dense(share))?;
        machine.wait_writes(100)?;
        Ok(Self {
            machine: Some(machine),
            options: options.clone(),
        })
    }

    /// Moves it once.
    pub fn travel(
        &mut self,
        channel: Channel,
        parameters: &Parameters,
        interrupts: &Interrupts,
    ) -> Result<MoveSeen> {
        if interrupts.came() {
            bail!("interrupted");
        }
        let mut here = self.machine.take().context("a guest that got lost")?;
        let mut there = Machine::start(&self.options.awaiting())?;
        let uri = there.listen(&channel)?;
        let both = vec![here.progress().clone(), there.progress().clone()];
        let watcher = Watcher::follow(both, MOST)?;
        std::thread::sleep(BEFORE);
        let begin = now_ns();
        here.begin_move(&uri, parameters, &[])?;
        let report = here.wait_moved()?.context("nobody cancelled it")?;
        let seen_end = now_ns();
        std::thread::sleep(AFTER);
        let record = watcher.stop();
        here.quit()?;
        self.machine = Some(there);
        let idle = record.longest_gap(begin - BEFORE.as_nanos() as u64 * 4 / 5, begin);
        let gap = record.gap_across(begin, seen_end);
        let before = record.rate_pages_per_s(begin - BEFORE.as_nanos() as u64 * 4 / 5, begin);
        let while_moving = record.rate_pages_per_s(begin, gap.at_ns.max(begin + 1));
        Ok(MoveSeen {
            seen_us: gap.ns as f64 / 1e3,
            idle_us: idle.ns as f64 / 1e3,
            blind_us: gap.blind_ns as f64 / 1e3,
            rate_before: before,
            rate_meanwhile: while_moving,
            report: serde_json::from_value(numbers(report)).context("a report that is none")?,
        })
    }
}

/// Only what is measured.
fn numbers(mut report: Value) -> Value {
    if let Some(fields) = report.as_object_mut() {
        fields.retain(|_, value| value.is_number());
    }
    report
}

/// What the guest of most measurements does.
pub fn workload(rate_pages_per_s: u64, set_bytes: u64) -> Spec {
    Spec {
        rate_pages_per_s,
        set_bytes: Some(set_bytes),
        ..Spec::default()
    }
}
