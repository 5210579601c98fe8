//! Bytes a second of a guest that leaves its memory alone, against raw sockets with as many
//! connections.
//!
//! The guest writes just often enough to be seen running, and nobody watches it: on a host with as many
//! cores as the transfer has threads, whatever else runs would be taken for a cost of the engine.

use anyhow::Result;
use paguro_lab::Channel;
use paguro_lab::machine::Parameters;
use serde_json::json;

use super::campaign::{Campaign, MEMORY_BYTES, SET_BYTES};
use super::figures::Throughput;
use super::journey::{Traveller, Way, workload};
use super::raw::{self, Into};
use crate::setup::{IDLE_SET, warm_host};
use crate::stats::Spread;

/// That pages go over.
const CONNECTIONS: [usize; 3] = [1, 2, 4];

/// Writes a second of the guest.
const RATE: u64 = 1000;

impl Campaign<'_> {
    /// Of this channel, with each number of connections in turn: so what changes on the host meanwhile
    /// changes all of them alike.
    pub(super) fn throughput(&mut self, channel: Channel) -> Result<()> {
        self.console.at(&format!("throughput, {channel:?}"));
        let options = self.options(MEMORY_BYTES, workload(RATE, IDLE_SET));
        let mut guest = Traveller::start(&options, SET_BYTES)?;
        let parameters = Parameters::from_iter([("downtime-limit".to_owned(), json!(50))]);
        let mut seen = CONNECTIONS.map(|_| Seen::default());
        for _ in 0..self.runs {
            for (seen, connections) in seen.iter_mut().zip(CONNECTIONS) {
                let way = Way {
                    channel,
                    connections,
                };
                let engine = guest.rush(way, &parameters, self.console)?;
                let stop = engine.setup_us + engine.downtime_us;
                let moved = engine.total_us.saturating_sub(stop);
                seen.bytes = engine.precopy_bytes;
                seen.moved.push(moved as f64);
                let raw = |into| {
                    warm_host(MEMORY_BYTES);
                    raw::send(channel, seen.bytes as usize, connections, into)
                };
                seen.present.push(raw(Into::Present)?.as_secs_f64() * 1e6);
                seen.fresh.push(raw(Into::Fresh)?.as_secs_f64() * 1e6);
                self.console.step();
            }
        }
        for (seen, connections) in seen.into_iter().zip(CONNECTIONS) {
            self.figures.throughput.push(Throughput {
                channel,
                connections,
                bytes: seen.bytes,
                runs: self.runs,
                moved_us: Spread::of(seen.moved),
                raw_us: Spread::of(seen.present),
                raw_fresh_us: Spread::of(seen.fresh),
            });
        }
        Ok(())
    }
}

/// Times of all runs in microseconds.
#[derive(Default)]
struct Seen {
    bytes: u64,
    moved: Vec<f64>,
    present: Vec<f64>,
    fresh: Vec<f64>,
}
