//! A guest that moves from machine to machine while the outside clock watches it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use paguro_lab::machine::Parameters;
use paguro_lab::{Channel, Console, Machine, MachineOptions, Ruler, Window, now_ns};
use paguro_workload::Spec;
use serde_json::{Value, json};

use super::campaign::MEMORY_BYTES;
use super::figures::{Engine, MoveSeen};
use crate::fill::{Part, fill};
use crate::setup::warm_host;

/// The guest alone, before a move.
const BEFORE: Duration = Duration::from_millis(200);
/// And after.
const AFTER: Duration = Duration::from_millis(20);
/// What is watched at most.
const MOST: Duration = Duration::from_secs(20);

/// What a guest moves over.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Its kind.
    pub channel: Channel,
    /// That pages go over: 1 is the main one, more are multifd channels beside it.
    pub connections: usize,
}

impl Way {
    /// The main connection alone.
    pub fn alone(channel: Channel) -> Self {
        let connections = 1;
        Self {
            channel,
            connections,
        }
    }

    fn capabilities(self) -> &'static [&'static str] {
        match self.connections {
            1 => &[],
            _ => &["multifd"],
        }
    }

    fn parameters(self) -> Parameters {
        let channels = (self.connections > 1).then(|| json!(self.connections));
        let name = "multifd-channels".to_owned();
        channels
            .map(|channels| (name, channels))
            .into_iter()
            .collect()
    }
}

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

    /// Moves it once, watched.
    pub fn travel(
        &mut self,
        way: Way,
        parameters: &Parameters,
        console: &dyn Console,
    ) -> Result<MoveSeen> {
        let mut both = self.both(way, console)?;
        let progress = [&both.here, &both.there].map(|machine| machine.progress().clone());
        let ruler = Ruler::follow(progress.to_vec(), MOST)?;
        std::thread::sleep(BEFORE);
        let begin = now_ns();
        let report = both.go(way, parameters)?;
        let seen_end = now_ns();
        std::thread::sleep(AFTER);
        let record = ruler.read();
        both.here.quit()?;
        self.machine = Some(both.there);
        let alone = Window::new(begin - BEFORE.as_nanos() as u64 * 4 / 5, begin);
        let idle = record.longest_still(alone);
        let still = record.still_across(Window::new(begin, seen_end));
        let before = record.rate_pages_per_s(alone);
        let moving = Window::new(begin, still.at_ns.max(begin + 1));
        let while_moving = record.rate_pages_per_s(moving);
        Ok(MoveSeen {
            seen_us: still.ns as f64 / 1e3,
            idle_us: idle.ns as f64 / 1e3,
            blind_us: still.blind_ns as f64 / 1e3,
            rate_before: before,
            rate_meanwhile: while_moving,
            report,
        })
    }

    /// Moves it once. Nobody watches: that takes its share of a core.
    pub fn rush(
        &mut self,
        way: Way,
        parameters: &Parameters,
        console: &dyn Console,
    ) -> Result<Engine> {
        let mut both = self.both(way, console)?;
        let report = both.go(way, parameters)?;
        both.here.quit()?;
        self.machine = Some(both.there);
        Ok(report)
    }

    fn both(&mut self, way: Way, console: &dyn Console) -> Result<Both> {
        if console.is_interrupted() {
            bail!("interrupted");
        }
        warm_host(MEMORY_BYTES);
        let here = self.machine.take().context("a guest that got lost")?;
        let mut there = Machine::start(&self.options.awaiting())?;
        there.agree(&way.parameters(), way.capabilities())?;
        let uri = there.listen(&way.channel)?;
        Ok(Both { here, there, uri })
    }
}

/// The machine that the guest is in, and the one that it goes to.
struct Both {
    here: Machine,
    there: Machine,
    uri: String,
}

impl Both {
    fn go(&mut self, way: Way, parameters: &Parameters) -> Result<Engine> {
        let mut all = way.parameters();
        all.extend(parameters.clone());
        self.here.begin_move(&self.uri, &all, way.capabilities())?;
        let report = self.here.wait_moved()?.context("nobody cancelled it")?;
        serde_json::from_value(numbers(report)).context("a report that is none")
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
