//! Migration parameters: QEMU's names and units where QEMU has them, `x-paguro-` where not.
//!
//! | name | unit, values | default | |
//! |---|---|---|---|
//! | `max-bandwidth` | bytes a second, 0: no limit | 0 | written to the file; QEMU's default is 128 MiB/s, which would make every snapshot slow unasked |
//! | `multifd-channels` | 1 to 64 | 2 | threads that copy and write |
//! | `x-paguro-page-buffer` | bytes, 0: by the size of RAM | 0 | page copies that may wait to be written |
//! | `x-paguro-chunk-size` | bytes, a power of two, 4 KiB to 2 MiB | 2 MiB | copied and released at once, at most |
//! | `x-paguro-checksums` | boolean | true | of every page and the metadata |
//! | `x-paguro-huge-pages` | `keep`, `split` | `keep` | whether huge pages are copied whole |
//! | `x-paguro-check-freeze` | boolean | false | compare RAM with the copy before releasing it |
//! | `x-paguro-sync` | boolean | true | off only for measurements |
//! | `x-paguro-arm-in-pause` | boolean | false | only to measure what arming before is worth |
//! | `x-paguro-pause-sleep-us` | microseconds, at most 10 s | 0 | slept in the pause: the test of the ruler |
//! | `x-paguro-sabotage` | `none` or a name of `PAGURO_FORCE` | `none` | broken on purpose, for tests |
//!
//! They are read when `migrate` starts; a change meanwhile is for the next one.

use paguro_migration::options::{HugePolicy, SnapshotOptions};
use serde_json::json;

use super::commands::Answer;
use super::{Args, Monitor, QmpError};
use crate::force;

/// `migrate-set-parameters`
pub fn set(monitor: &Monitor, mut args: Args) -> Result<Answer, QmpError> {
    let mut migrations = monitor.migrations.lock();
    // All of them or none.
    let mut new = migrations.options.clone();
    change(&mut new, &mut args)?;
    args.finish()?;
    check_together(&new)?;
    migrations.options = new;
    Ok(Answer::default())
}

/// `query-migrate-parameters`
pub fn query(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let options = &monitor.migrations.lock().options;
    let huge = match options.huge {
        HugePolicy::Keep => "keep",
        HugePolicy::Split => "split",
    };
    let list = json!({
        "max-bandwidth": options.max_bandwidth,
        "multifd-channels": options.channels,
        "x-paguro-page-buffer": options.page_buffer_bytes,
        "x-paguro-chunk-size": options.chunk_bytes,
        "x-paguro-checksums": options.checksums,
        "x-paguro-huge-pages": huge,
        "x-paguro-check-freeze": options.check_freeze,
        "x-paguro-sync": options.sync,
        "x-paguro-arm-in-pause": options.arm_in_pause,
        "x-paguro-pause-sleep-us": options.pause_sleep_us,
        "x-paguro-sabotage": force::sabotage_name(options.sabotage),
    });
    Ok(list.into())
}

const MAX_CHANNELS: u64 = 64;
const MAX_PAGE_BUFFER_BYTES: u64 = 1 << 40;
const MIN_CHUNK_BYTES: u64 = 4 << 10;
const MAX_CHUNK_BYTES: u64 = 2 << 20;
const MAX_PAUSE_SLEEP_US: u64 = 10_000_000;

fn change(options: &mut SnapshotOptions, args: &mut Args) -> Result<(), QmpError> {
    if let Some(rate) = args.unsigned("max-bandwidth")? {
        options.max_bandwidth = rate;
    }
    if let Some(count) = within(args, "multifd-channels", 1, MAX_CHANNELS)? {
        options.channels = count;
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
        options.check_freeze = on;
    }
    if let Some(on) = args.boolean("x-paguro-sync")? {
        options.sync = on;
    }
    if let Some(on) = args.boolean("x-paguro-arm-in-pause")? {
        options.arm_in_pause = on;
    }
    if let Some(us) = within(args, "x-paguro-pause-sleep-us", 0, MAX_PAUSE_SLEEP_US)? {
        options.pause_sleep_us = us as u64;
    }
    if let Some(name) = args.string("x-paguro-sabotage")? {
        options.sabotage = match name.as_str() {
            "none" => Default::default(),
            name => force::sabotage(name).ok_or_else(|| not_accepted("x-paguro-sabotage", name))?,
        };
    }
    Ok(())
}

const PAGE_BUFFER: &str = "x-paguro-page-buffer";
const CHUNK_SIZE: &str = "x-paguro-chunk-size";

/// One chunk is written while the next is copied.
fn check_together(options: &SnapshotOptions) -> Result<(), QmpError> {
    let least = 2 * options.chunk_bytes;
    if options.page_buffer_bytes == 0 || options.page_buffer_bytes >= least {
        return Ok(());
    }
    Err(QmpError::generic(format!(
        "Parameter '{PAGE_BUFFER}' must hold two chunks: {least} bytes or more, or be 0"
    )))
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
