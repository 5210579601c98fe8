//! Telling of what is done: a report, and what could not be confirmed.
//!
//! Whether a snapshot or a migration is complete decides who may run the guest. So what a command
//! cannot tell of one that is complete is told as that, and does not make a failure of it.

use anyhow::{Result, bail};
use paguro_qmp::Client;
use serde_json::{Value, json};

use crate::log::say;

/// What to do about a file that may not outlive a crash.
const UNCONFIRMED: &str = "`sync -f FILE`, and look whether that succeeds, before the machine that is \
     left here is ended";

/// The machine's report of what it has completed.
pub fn report(client: &mut Client) -> Value {
    let asked = client.execute("x-paguro-query-report", json!({}));
    let report = asked.map_err(anyhow::Error::from).and_then(|report| {
        if report.is_object() {
            Ok(report)
        } else {
            bail!("the report is no object: {report}")
        }
    });
    let mut report = report.unwrap_or_else(|error| {
        json!({ "warning": format!("it is complete, but its report did not come: {error:#}") })
    });
    report["status"] = "completed".into();
    report
}

/// Prints a report, and warnings on standard error.
pub fn tell(report: &Value, print: impl FnOnce(&Value) -> Result<()>) {
    if let Some(warning) = report["warning"].as_str() {
        say(format_args!("paguro: warning: {warning}"));
        if report["total_us"].is_u64() {
            say(format_args!("hint: {UNCONFIRMED}"));
        }
    }
    if let Some(why) = report["not_resumed"].as_str() {
        say(format_args!(
            "paguro: warning: it is complete, but the guest does not run on: {why}"
        ));
    }
    if let Err(error) = print(report) {
        say(format_args!(
            "paguro: warning: it is complete, but its report cannot be printed: {error:#}"
        ));
    }
}

/// Of a machine that cannot be asked any more how far it is.
pub const LOST: &str = "it was begun, and whether it was or will be completed is not known";
