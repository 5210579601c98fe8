//! Migration parameters: QEMU's names and units where QEMU has them, `x-paguro-` where not.
//!
//! Of snapshots and migrations:
//!
//! | name | unit, values | default | |
//! |---|---|---|---|
//! | `max-bandwidth` | bytes a second, 0: no limit | 0 | QEMU's default is 128 MiB/s, which would make everything slow unasked |
//! | `multifd-channels` | 1 to 64 | 2 | of a snapshot: threads that copy and write |
//!
//! Of migrations:
//!
//! | name | unit, values | default | |
//! |---|---|---|---|
//! | `downtime-limit` | ms, at most 2000000 | 300 | how long the guest may stand still, by the forecast |
//! | `avail-switchover-bandwidth` | bytes a second, 0: measured | 0 | what the forecast reckons with |
//! | `cpu-throttle-initial`, `cpu-throttle-increment` | 1 to 99 % | 20, 10 | with `auto-converge` |
//! | `max-cpu-throttle` | `cpu-throttle-initial` to 99 % | 99 | |
//! | `cpu-throttle-tailslow` | boolean | false | |
//! | `throttle-trigger-threshold` | 1 to 100 % | 50 | dirtied, of what was sent |
//! | `vcpu-dirty-limit` | MiB a second, 1 to 1048576 | 1 | of each vCPU, with `dirty-limit` |
//! | `x-vcpu-dirty-limit-period` | ms, 1 to 1000 | 1000 | how often it is looked at |
//! | `mode` | `normal`, `cpr-transfer` | `normal` | `cpr-transfer`: RAM is handed over by descriptor to a process on this host, not copied |
//! | `multifd-compression` | `none`, `zstd` | `none` | with `multifd` |
//! | `multifd-zstd-level` | 1 to 20 | 1 | with `multifd-compression` `zstd` |
//! | `xbzrle-cache-size` | bytes, a power of two, at least a page | 64 MiB | with `xbzrle` |
//! | `tls-creds` | a directory, empty: no TLS | empty | with certificates named as for QEMU's `tls-creds-x509`; in QEMU it is the id of such an object |
//! | `tls-hostname` | a name, empty: that of the address | empty | what the destination's certificate is for |
//! | `x-paguro-convergence-timeout` | s, 0: none | 0 | for so long it is waited for the forecast to come down |
//! | `x-paguro-at-timeout` | `cancel`, `switchover` | `cancel` | what happens then |
//! | `x-paguro-silence` | ms, 0: for ever | 10000 | so long the other side may be silent; both sides have it; of a command (`exec:`) it counts while a guest stands still for it, to the command's end |
//!
//! Of snapshots:
//!
//! | name | unit, values | default | |
//! |---|---|---|---|
//! | `x-paguro-page-buffer` | bytes, 0: by the size of RAM and what memory the machine may have | 0 | page copies that may wait to be written |
//! | `x-paguro-chunk-size` | bytes, a power of two, 4 KiB to 2 MiB | 2 MiB | copied and released at once, at most |
//! | `x-paguro-checksums` | boolean | true | of every page and the metadata |
//! | `x-paguro-huge-pages` | `keep`, `split` | `keep` | whether huge pages are copied whole |
//! | `x-paguro-check-freeze` | boolean | false | compare RAM with the copy before releasing it |
//! | `x-paguro-sync` | boolean | true | off only for measurements |
//! | `x-paguro-arm-in-pause` | boolean | false | only to measure what arming before is worth |
//! | `x-paguro-pause-sleep-us` | microseconds, at most 10 s | 0 | slept in the pause: the test of the ruler |
//!
//! What QEMU has besides can be set to QEMU's default only, and is told so; how paguro differs is listed
//! in `QMP.md`.
//!
//! They are read when `migrate` or `migrate-incoming` starts; `migrate` may bring its own, for itself only
//! ([`terms`](super::terms)). Of a change meanwhile `max-bandwidth` counts for the snapshot or
//! migration that runs, too, and `downtime-limit` for a migration, where they are named; all else is for
//! the next.

use paguro_migration::options::{HugePolicy, SnapshotOptions};
use paguro_migration::source::AtTimeout;
use serde_json::{Value, json};

use super::commands::Answer;
use super::jobs::Work;
use super::settings::{Mode, Settings};
use super::{Args, Monitor, QmpError};
use crate::cli::CompressionArg;

/// `migrate-set-parameters`
pub fn set(monitor: &Monitor, mut args: Args) -> Result<Answer, QmpError> {
    let mut migrations = monitor.migrations.lock();
    // What runs has settings of its own, maybe: only what is named here is for it, too.
    let limits = [args.has("downtime-limit"), args.has("max-bandwidth")];
    let new = after(&migrations.settings, &mut args)?;
    args.finish()?;
    migrations.settings = new;
    if let Some(job) = &migrations.last {
        let settings = &migrations.settings;
        let (time, bandwidth) = (settings.downtime_limit(), settings.snapshot.max_bandwidth);
        let [downtime_limit, max_bandwidth] = limits;
        match &job.work {
            Work::Snapshot { control, .. } if max_bandwidth => control.set_max_bandwidth(bandwidth),
            Work::Snapshot { .. } => {}
            Work::Migration(migration) => {
                if downtime_limit {
                    migration.set_downtime_limit(time);
                }
                if max_bandwidth {
                    migration.set_max_bandwidth(bandwidth);
                }
            }
        }
    }
    Ok(Answer::default())
}

/// Takes all parameters out of arguments; what is set after them, all of them or none.
pub fn after(before: &Settings, args: &mut Args) -> Result<Settings, QmpError> {
    let mut new = before.clone();
    change_snapshot(&mut new.snapshot, args)?;
    change_migration(&mut new, args)?;
    take_foreign(args)?;
    check_together(&new)?;
    Ok(new)
}

/// `query-migrate-parameters`
pub fn query(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let settings = &monitor.migrations.lock().settings;
    let mut all = of_migrations(settings);
    let more = of_snapshots(settings);
    if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
        all.extend(more);
        all.extend(foreign().map(|(name, value)| (name.to_owned(), value)));
    }
    Ok(all.into())
}

/// What QEMU has besides, with its defaults: there is no network whose neighbours are told, no COLO, no
/// list of who may come in, no other codec, no direct I/O that is not chosen by itself, no bitmaps of
/// disks. A client may say that it wants it as it is.
fn foreign() -> impl Iterator<Item = (&'static str, Value)> {
    let numbers = [
        ("announce-initial", 50),
        ("announce-max", 550),
        ("announce-rounds", 5),
        ("announce-step", 100),
        ("max-postcopy-bandwidth", 0),
        ("multifd-qatzip-level", 1),
        ("multifd-zlib-level", 1),
        ("x-checkpoint-delay", 20_000),
    ];
    let numbers = numbers.map(|(name, value)| (name, json!(value)));
    let others = [
        ("direct-io", json!(false)),
        ("tls-authz", json!("")),
        ("zero-page-detection", json!("multifd")),
    ];
    numbers.into_iter().chain(others)
}

fn take_foreign(args: &mut Args) -> Result<(), QmpError> {
    // Given once, it is in QEMU's answers; none is not.
    let bitmaps = ("block-bitmap-mapping", json!([]));
    for (name, default) in foreign().chain([bitmaps]) {
        let is_default = |value: &Value| *value == default || (value.is_null() && default == "");
        if let Some(value) = args.value(name).filter(|value| !is_default(value)) {
            return Err(QmpError::generic(format!(
                "Parameter '{name}' does not accept value '{value}': there is only '{default}'"
            )));
        }
    }
    Ok(())
}

fn of_migrations(settings: &Settings) -> Value {
    let throttle = &settings.throttle;
    json!({
        "downtime-limit": settings.downtime_limit_ms,
        "avail-switchover-bandwidth": settings.avail_switchover_bandwidth,
        "cpu-throttle-initial": throttle.initial,
        "cpu-throttle-increment": throttle.increment,
        "max-cpu-throttle": throttle.max,
        "cpu-throttle-tailslow": throttle.tailslow,
        "throttle-trigger-threshold": throttle.trigger_threshold,
        "vcpu-dirty-limit": settings.vcpu_dirty_limit,
        "x-vcpu-dirty-limit-period": settings.vcpu_dirty_limit_period_ms,
        "mode": match settings.mode {
            Mode::Normal => "normal",
            Mode::CprTransfer => "cpr-transfer",
        },
        "multifd-compression": match settings.multifd_compression {
            CompressionArg::None => "none",
            CompressionArg::Zstd => "zstd",
        },
        "multifd-zstd-level": settings.multifd_zstd_level,
        "xbzrle-cache-size": settings.xbzrle_cache_bytes,
        "tls-creds": settings.tls_creds,
        "tls-hostname": settings.tls_hostname,
        "x-paguro-convergence-timeout": settings.convergence_timeout_s,
        "x-paguro-at-timeout": match settings.at_timeout {
            AtTimeout::Cancel => "cancel",
            AtTimeout::Switchover => "switchover",
        },
        "x-paguro-silence": settings.silence_ms,
    })
}

fn of_snapshots(settings: &Settings) -> Value {
    let options = &settings.snapshot;
    let huge = match options.huge {
        HugePolicy::Keep => "keep",
        HugePolicy::Split => "split",
    };
    json!({
        "max-bandwidth": options.max_bandwidth,
        "multifd-channels": options.threads,
        "x-paguro-page-buffer": options.page_buffer_bytes,
        "x-paguro-chunk-size": options.chunk_bytes,
        "x-paguro-checksums": options.checksums,
        "x-paguro-huge-pages": huge,
        "x-paguro-check-freeze": options.for_tests.check_freeze,
        "x-paguro-sync": !options.for_tests.unsynced,
        "x-paguro-arm-in-pause": options.for_tests.arm_in_pause,
        "x-paguro-pause-sleep-us": options.for_tests.pause_sleep_us,
    })
}

const MAX_CHANNELS: u64 = 64;
const MAX_PAGE_BUFFER_BYTES: u64 = 1 << 40;
const MIN_CHUNK_BYTES: u64 = 4 << 10;
const MAX_CHUNK_BYTES: u64 = 2 << 20;
/// A TiB a second.
const MAX_DIRTY_LIMIT: u64 = 1 << 20;
const MAX_PAUSE_SLEEP_US: u64 = 10_000_000;
const MAX_DOWNTIME_LIMIT_MS: u64 = 2_000_000;
/// A week: longer is meant otherwise, and sums of times stay sums.
const MAX_TIMEOUT_S: u64 = 7 * 24 * 3600;

fn change_migration(settings: &mut Settings, args: &mut Args) -> Result<(), QmpError> {
    if let Some(ms) = within(args, "downtime-limit", 0, MAX_DOWNTIME_LIMIT_MS)? {
        settings.downtime_limit_ms = ms as u64;
    }
    if let Some(rate) = args.unsigned("avail-switchover-bandwidth")? {
        settings.avail_switchover_bandwidth = rate;
    }
    let throttle = &mut settings.throttle;
    for (name, most, place) in [
        ("cpu-throttle-initial", 99, &mut throttle.initial),
        ("cpu-throttle-increment", 99, &mut throttle.increment),
        (MAX_THROTTLE, 99, &mut throttle.max),
        (
            "throttle-trigger-threshold",
            100,
            &mut throttle.trigger_threshold,
        ),
    ] {
        if let Some(percent) = within(args, name, 1, most)? {
            *place = percent as u8;
        }
    }
    if let Some(on) = args.boolean("cpu-throttle-tailslow")? {
        throttle.tailslow = on;
    }
    if let Some(rate) = within(args, "vcpu-dirty-limit", 1, MAX_DIRTY_LIMIT)? {
        settings.vcpu_dirty_limit = rate as u64;
    }
    if let Some(ms) = within(args, "x-vcpu-dirty-limit-period", 1, 1000)? {
        settings.vcpu_dirty_limit_period_ms = ms as u64;
    }
    if let Some(name) = args.string("mode")? {
        settings.mode = match name.as_str() {
            "normal" => Mode::Normal,
            "cpr-transfer" => Mode::CprTransfer,
            other => return Err(not_accepted("mode", other)),
        };
    }
    if let Some(name) = args.string("multifd-compression")? {
        settings.multifd_compression = match name.as_str() {
            "none" => CompressionArg::None,
            "zstd" => CompressionArg::Zstd,
            other => return Err(not_accepted("multifd-compression", other)),
        };
    }
    if let Some(level) = within(args, "multifd-zstd-level", 1, 20)? {
        settings.multifd_zstd_level = level as u8;
    }
    if let Some(bytes) = args.unsigned("xbzrle-cache-size")? {
        if bytes < paguro_sys::page_size() as u64 || !bytes.is_power_of_two() {
            return Err(QmpError::generic(
                "Parameter 'xbzrle-cache-size' expects a power of two no less than the target page size",
            ));
        }
        settings.xbzrle_cache_bytes = bytes;
    }
    if let Some(directory) = args.string_or_null("tls-creds")? {
        settings.tls_creds = directory;
    }
    if let Some(name) = args.string_or_null("tls-hostname")? {
        settings.tls_hostname = name;
    }
    if let Some(seconds) = within(args, "x-paguro-convergence-timeout", 0, MAX_TIMEOUT_S)? {
        settings.convergence_timeout_s = seconds as u64;
    }
    if let Some(name) = args.string("x-paguro-at-timeout")? {
        settings.at_timeout = match name.as_str() {
            "cancel" => AtTimeout::Cancel,
            "switchover" => AtTimeout::Switchover,
            other => return Err(not_accepted("x-paguro-at-timeout", other)),
        };
    }
    if let Some(ms) = within(args, "x-paguro-silence", 0, 1000 * MAX_TIMEOUT_S)? {
        settings.silence_ms = ms as u64;
    }
    Ok(())
}

fn change_snapshot(options: &mut SnapshotOptions, args: &mut Args) -> Result<(), QmpError> {
    if let Some(rate) = args.unsigned("max-bandwidth")? {
        options.max_bandwidth = rate;
    }
    if let Some(count) = within(args, "multifd-channels", 1, MAX_CHANNELS)? {
        options.threads = count;
    }
    if let Some(bytes) = within(args, PAGE_BUFFER, 0, MAX_PAGE_BUFFER_BYTES)? {
        options.page_buffer_bytes = bytes;
    }
    if let Some(bytes) = within(args, CHUNK_SIZE, MIN_CHUNK_BYTES, MAX_CHUNK_BYTES)? {
        if !bytes.is_power_of_two() {
            return Err(QmpError::generic(format!(
                "Parameter '{CHUNK_SIZE}' expects a power of two"
            )));
        }
        options.chunk_bytes = bytes;
    }
    if let Some(on) = args.boolean("x-paguro-checksums")? {
        options.checksums = on;
    }
    if let Some(policy) = args.string("x-paguro-huge-pages")? {
        options.huge = match policy.as_str() {
            "keep" => HugePolicy::Keep,
            "split" => HugePolicy::Split,
            other => return Err(not_accepted("x-paguro-huge-pages", other)),
        };
    }
    if let Some(on) = args.boolean("x-paguro-check-freeze")? {
        options.for_tests.check_freeze = on;
    }
    if let Some(on) = args.boolean("x-paguro-sync")? {
        options.for_tests.unsynced = !on;
    }
    if let Some(on) = args.boolean("x-paguro-arm-in-pause")? {
        options.for_tests.arm_in_pause = on;
    }
    if let Some(us) = within(args, "x-paguro-pause-sleep-us", 0, MAX_PAUSE_SLEEP_US)? {
        options.for_tests.pause_sleep_us = us as u64;
    }
    Ok(())
}

const PAGE_BUFFER: &str = "x-paguro-page-buffer";
const CHUNK_SIZE: &str = "x-paguro-chunk-size";

const MAX_THROTTLE: &str = "max-cpu-throttle";

/// Of the buffer, one chunk is written while the next is copied.
fn check_together(settings: &Settings) -> Result<(), QmpError> {
    let Settings {
        snapshot, throttle, ..
    } = settings;
    let least = 2 * snapshot.chunk_bytes;
    if snapshot.page_buffer_bytes != 0 && snapshot.page_buffer_bytes < least {
        return Err(QmpError::generic(format!(
            "Parameter '{PAGE_BUFFER}' must hold two chunks: {least} bytes or more, or be 0"
        )));
    }
    if throttle.max < throttle.initial {
        return Err(QmpError::generic(format!(
            "Parameter '{MAX_THROTTLE}' expects an integer in the range of cpu-throttle-initial to 99"
        )));
    }
    Ok(())
}

/// A number between two others, both included.
fn within(args: &mut Args, name: &str, least: u64, most: u64) -> Result<Option<usize>, QmpError> {
    let value = args.unsigned(name)?;
    if value.is_some_and(|value| value < least || value > most) {
        return Err(QmpError::generic(format!(
            "Parameter '{name}' expects a value between {least} and {most}"
        )));
    }
    Ok(value.map(|value| value as usize))
}

fn not_accepted(name: &str, value: &str) -> QmpError {
    QmpError::generic(format!(
        "Parameter '{name}' does not accept value '{value}'"
    ))
}
