//! `calc-dirty-rate` and `query-dirty-rate`: how fast the guest writes, before it is moved.
//!
//! | `mode` | how |
//! |---|---|
//! | `page-sampling` (default) | pages picked at random are looked at twice; what is written with the same content is not seen; goes on beside a snapshot or a migration |
//! | `dirty-bitmap` | the machine's tracker, unless that is the dirty ring |
//! | `dirty-ring` | the dirty ring, which knows the rate of each vCPU; only with `--accel kvm,dirty-ring-size=N` |
//!
//! A page that is written often counts once, so the rate falls with `calc-time`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use paguro_dirty::Sampling;
use paguro_dirty::tracker::{DirtyRate, measure};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use super::commands::Answer;
use super::{Args, Monitor, QmpError, with_causes};
use crate::guest::Guest;

/// The last measurement.
#[derive(Clone, Default)]
pub struct Rates(Arc<Mutex<Rate>>);

#[derive(Default)]
enum Rate {
    #[default]
    Unstarted,
    Measuring(Plan),
    Measured(Plan, DirtyRate),
    Failed(Plan, String),
}

#[derive(Clone, Copy)]
struct Plan {
    mode: Mode,
    time: Duration,
    in_ms: bool,
    sample_pages: u64,
    start_s: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Sampling,
    Ring,
    Bitmap,
}

const LEAST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(60);

/// Pages sampled of each GiB.
const SAMPLE_PAGES: u64 = 512;
const SAMPLE_PAGES_RANGE: std::ops::RangeInclusive<u64> = 128..=16384;

/// `calc-dirty-rate`
pub fn calc(monitor: &Monitor, mut args: Args) -> Result<Answer, QmpError> {
    let plan = Plan::take(&mut args)?;
    args.finish()?;
    let has_ring = monitor.guest.config().dirty_ring_entries.is_some();
    match (plan.mode, has_ring) {
        (Mode::Ring, false) => {
            return Err(QmpError::generic(
                "mode dirty-ring needs the dirty ring: --accel kvm,dirty-ring-size=N",
            ));
        }
        (Mode::Bitmap, true) => {
            return Err(QmpError::generic(
                "mode dirty-bitmap is not possible with the dirty ring: use dirty-ring",
            ));
        }
        _ => {}
    }
    if plan.mode != Mode::Sampling {
        monitor.migrations.lock().refuse_if_busy()?;
    }
    let mut rate = monitor.rates.lock();
    if matches!(*rate, Rate::Measuring(_)) {
        return Err(QmpError::generic("the last measurement has not ended yet"));
    }
    *rate = Rate::Measuring(plan);
    let (rates, guest) = (monitor.rates.clone(), monitor.guest.clone());
    let run = move || {
        let ended = match plan.measure(&guest) {
            Ok(measured) => Rate::Measured(plan, measured),
            Err(why) => Rate::Failed(plan, why),
        };
        *rates.lock() = ended;
    };
    if let Err(error) = paguro_sys::NewThread::named("dirty-rate".to_owned()).spawn(run) {
        *rate = Rate::Unstarted;
        return Err(error.into());
    }
    Ok(Answer::default())
}

/// `query-dirty-rate`. One that failed is `unstarted`, with `x-paguro-error`.
pub fn query(monitor: &Monitor, mut args: Args) -> Result<Answer, QmpError> {
    let unit = args.string("calc-time-unit")?;
    args.finish()?;
    let in_ms = unit.as_deref().map(in_ms).transpose()?;
    let rate = monitor.rates.lock();
    let mut all = match &*rate {
        Rate::Unstarted => json!({
            "status": "unstarted",
            "start-time": 0,
            "calc-time": 0,
            "calc-time-unit": "second",
            "sample-pages": 0,
            "mode": Mode::Sampling.name(),
        }),
        Rate::Measuring(plan) => plan.describe("measuring", in_ms),
        Rate::Measured(plan, _) => plan.describe("measured", in_ms),
        Rate::Failed(plan, why) => {
            let mut all = plan.describe("unstarted", in_ms);
            all["x-paguro-error"] = why.clone().into();
            all
        }
    };
    if let Rate::Measured(plan, measured) = &*rate {
        let pages_per_s = measured.pages_per_s();
        all["dirty-rate"] = mib(pages_per_s).into();
        all["x-paguro-pages-per-second"] = pages_per_s.into();
        if plan.mode == Mode::Ring {
            let vcpus = measured.vcpus.iter().enumerate();
            let vcpus = vcpus.map(|(id, rate)| json!({ "id": id, "dirty-rate": mib(*rate) }));
            all["vcpu-dirty-rate"] = Value::from_iter(vcpus);
        }
    }
    Ok(all.into())
}

impl Rates {
    /// Whether one is under way that tracks writes, which one at a time may do. A sample tracks none.
    pub fn is_tracking(&self) -> bool {
        matches!(*self.lock(), Rate::Measuring(plan) if plan.mode != Mode::Sampling)
    }

    fn lock(&self) -> MutexGuard<'_, Rate> {
        self.0.lock()
    }
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Sampling => "page-sampling",
            Self::Ring => "dirty-ring",
            Self::Bitmap => "dirty-bitmap",
        }
    }
}

impl Plan {
    fn take(args: &mut Args) -> Result<Self, QmpError> {
        let time = args.unsigned("calc-time")?;
        let time = args.need("calc-time", time)?;
        let unit = args.string("calc-time-unit")?;
        let in_ms = unit.as_deref().map(in_ms).transpose()?.unwrap_or(false);
        let time = if in_ms {
            Duration::from_millis(time)
        } else {
            Duration::from_secs(time)
        };
        if time < LEAST || time > MOST {
            return Err(QmpError::generic(
                "Parameter 'calc-time' expects a time between 50 ms and 60 s",
            ));
        }
        let mode = match args.string("mode")?.as_deref() {
            None | Some("page-sampling") => Mode::Sampling,
            Some("dirty-ring") => Mode::Ring,
            Some("dirty-bitmap") => Mode::Bitmap,
            Some(other) => {
                return Err(QmpError::generic(format!(
                    "Parameter 'mode' does not accept value '{other}'"
                )));
            }
        };
        let sample_pages = args.unsigned("sample-pages")?;
        if sample_pages.is_some() && mode != Mode::Sampling {
            return Err(QmpError::generic(
                "Parameter 'sample-pages' is for mode page-sampling only",
            ));
        }
        let sample_pages = sample_pages.unwrap_or(SAMPLE_PAGES);
        if !SAMPLE_PAGES_RANGE.contains(&sample_pages) {
            return Err(QmpError::generic(
                "Parameter 'sample-pages' expects a value between 128 and 16384",
            ));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            mode,
            time,
            in_ms,
            sample_pages,
            start_s: now.unwrap_or_default().as_secs(),
        })
    }

    fn describe(&self, status: &str, in_ms: Option<bool>) -> Value {
        let in_ms = in_ms.unwrap_or(self.in_ms);
        let time = if in_ms {
            self.time.as_millis() as u64
        } else {
            self.time.as_secs()
        };
        json!({
            "status": status,
            "start-time": self.start_s,
            "calc-time": time,
            "calc-time-unit": if in_ms { "millisecond" } else { "second" },
            "sample-pages": if self.mode == Mode::Sampling { self.sample_pages } else { 0 },
            "mode": self.mode.name(),
        })
    }

    fn measure(&self, guest: &Guest) -> Result<DirtyRate, String> {
        let wait = || std::thread::sleep(self.time);
        if self.mode == Mode::Sampling {
            let sampling = Sampling {
                pages_per_gib: self.sample_pages,
                seed: self.start_s,
            };
            let rate = guest.sample_writes(&sampling, wait);
            return rate.map_err(|error| with_causes(&error));
        }
        let tracker = guest.vm().tracker();
        let tracker = tracker.map_err(|error| with_causes(&error))?;
        measure(&*tracker, guest.ram(), wait).map_err(|error| with_causes(&error))
    }
}

fn in_ms(unit: &str) -> Result<bool, QmpError> {
    match unit {
        "second" => Ok(false),
        "millisecond" => Ok(true),
        other => Err(QmpError::generic(format!(
            "Parameter 'calc-time-unit' does not accept value '{other}'"
        ))),
    }
}

/// QEMU's rates are in MiB a second.
fn mib(pages_per_s: u64) -> u64 {
    (pages_per_s * paguro_sys::page_size() as u64) >> 20
}
