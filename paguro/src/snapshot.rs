//! `paguro snapshot`: asks a running machine, over its control socket, to save itself.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use paguro_qmp::Client;
use paguro_workload::human;
use serde_json::{Value, json};

use crate::cli::{SnapshotArgs, name};
use crate::done;
use crate::hints::{self, Advised};
use crate::interrupt::{Again, Interrupts};
use crate::progress::Bar;
use crate::qmp::terms::own_capabilities;

/// How often the other side is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// Runs the command.
pub fn snapshot(args: &SnapshotArgs) -> Result<ExitCode> {
    let path = std::path::absolute(&args.file)
        .with_context(|| format!("no absolute path for {}", args.file.display()))?;
    let ended = take(args, &path);
    let failed = !matches!(&ended, Ok(ended) if ended["status"] == "completed");
    match ended {
        Ok(ended) if !failed => done::tell(&ended, |report| {
            if args.json {
                Ok(writeln!(io::stdout(), "{report:#}")?)
            } else {
                print_report(report)
            }
        }),
        Ok(ended) if args.json => writeln!(io::stdout(), "{ended:#}")?,
        Err(error) if args.json => {
            let hint = hints::hint(&error);
            let text = format!("{error:#}");
            let ended = json!({ "status": "failed", "path": path, "error": text, "hint": hint });
            writeln!(io::stdout(), "{ended:#}")?;
        }
        Ok(ended) => return Err(failure(&ended)),
        Err(error) => return Err(error),
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Takes it; gives the fields of `--json`.
fn take(args: &SnapshotArgs, path: &Path) -> Result<Value> {
    let interrupts = Interrupts::catch(Again::Leaves)?;
    let mut client = Client::connect(&args.qmp.0)?;
    let name = path.to_str().context("QMP can only name files in UTF-8")?;
    // Not as a URI, in which ",offset=" has a meaning.
    let addr = json!({ "transport": "file", "filename": name, "offset": 0 });
    let channel = json!({ "channel-type": "main", "addr": addr });
    let settings = settings(&mut client, args)?;
    let begin = json!({ "channels": [channel], "x-paguro-settings": settings });
    if interrupts.came() {
        let error = "the snapshot was cancelled before it began";
        return Ok(json!({ "status": "cancelled", "path": path, "error": error, "hint": null }));
    }
    client.execute("migrate", begin)?;
    watch(&mut client, args, path, &interrupts).context(done::LOST)
}

/// What counts for it and is never set: whatever is set for migrations does not stand in its way.
fn settings(client: &mut Client, args: &SnapshotArgs) -> Result<Value> {
    let capabilities = own_capabilities(client, |name| match name {
        "background-snapshot" => Some(!args.stop),
        "mapped-ram" => Some(true),
        _ => Some(false),
    })?;
    let mut parameters = json!({ "mode": "normal" });
    if let Some(size) = args.page_buffer {
        parameters["x-paguro-page-buffer"] = size.0.into();
    }
    Ok(json!({
        "capabilities": capabilities,
        "parameters": parameters,
        "on-disconnect": name(args.on_disconnect),
    }))
}

/// Waits for its end.
fn watch(
    client: &mut Client,
    args: &SnapshotArgs,
    path: &Path,
    interrupts: &Interrupts,
) -> Result<Value> {
    let bar = Bar::bytes("saving");
    let mut cancelled = false;
    loop {
        let now = client.execute("query-migrate", json!({}))?;
        let number = |field: &str| now["ram"][field].as_u64().unwrap_or(0);
        let ended = |error: &str, hint: &Value| {
            let status = &now["status"];
            json!({ "status": status, "path": path, "error": error, "hint": hint })
        };
        match now["status"].as_str().unwrap_or_default() {
            "completed" => {
                drop(bar);
                return Ok(completed(client, path));
            }
            "failed" | "cancelled" => {
                let error = now["x-paguro-error"].as_str();
                let error = error.unwrap_or("the snapshot was cancelled");
                return Ok(ended(error, &now["x-paguro-hint"]));
            }
            _ => {}
        }
        bar.set(
            number("total").saturating_sub(number("remaining")),
            number("total"),
        );
        bar.say_written(number("transferred"));
        match interrupts.which() {
            Some(signal) if !cancelled && args.on_disconnect.goes_on_after(signal) => {
                let error = "this command was ended by a signal; the snapshot goes on";
                return Ok(ended(error, &json!(hints::GOES_ON)));
            }
            Some(_) if !cancelled => {
                client.execute("migrate_cancel", json!({}))?;
                cancelled = true;
            }
            _ => {}
        }
        if cancelled {
            std::thread::sleep(POLL);
        } else {
            interrupts.wait(POLL);
        }
    }
}

fn completed(client: &mut Client, path: &Path) -> Value {
    let mut report = done::report(client);
    report["path"] = json!(path);
    report["error"] = Value::Null;
    report["hint"] = Value::Null;
    report
}

fn failure(ended: &Value) -> anyhow::Error {
    let text = ended["error"]
        .as_str()
        .unwrap_or("no reason given")
        .to_owned();
    match ended["hint"].as_str() {
        Some(hint) => Advised::error(text, hint),
        None => anyhow::Error::msg(text),
    }
}

fn print_report(report: &Value) -> Result<()> {
    let number = |field: &str| report[field].as_u64().unwrap_or(0);
    let millis = |field: &str| number(field) as f64 / 1000.0;
    let path = PathBuf::from(report["path"].as_str().unwrap_or_default());
    let mut out = io::stdout().lock();
    if report["total_us"].is_null() {
        return Ok(writeln!(out, "{}", path.display())?);
    }
    let page = paguro_sys::page_size() as u64;
    writeln!(
        out,
        "{}: {}",
        path.display(),
        human(number("total_pages") * page)
    )?;
    writeln!(out, "  written     {:>12}", human(number("written_bytes")))?;
    writeln!(
        out,
        "  pages       {:>12}   and {} zero",
        number("normal_pages"),
        number("zero_pages")
    )?;
    writeln!(
        out,
        "  before      {:>9.1} ms   until the pause",
        millis("setup_us")
    )?;
    writeln!(out, "  pause       {:>9.3} ms", millis("pause_us"))?;
    writeln!(out, "  saving      {:>9.1} ms", millis("save_us"))?;
    writeln!(out, "  syncing     {:>9.1} ms", millis("finish_us"))?;
    writeln!(
        out,
        "  faults      {:>12}   writes that waited for a copy",
        number("faults")
    )?;
    writeln!(
        out,
        "  buffer      {:>12}   at most, of {}",
        human(number("peak_buffer_bytes")),
        human(number("page_buffer_bytes"))
    )?;
    if let Some(bound) = report["page_buffer_bound"].as_str() {
        let wanted = human(number("page_buffer_wanted_bytes"));
        writeln!(out, "  {:24}   not {wanted}, because of {bound}", "")?;
    }
    if number("buffer_waits") > 0 {
        writeln!(
            out,
            "  waits       {:>12}   writes that waited for room in it: {:.1} ms, {:.1} ms at most",
            number("buffer_waits"),
            millis("buffer_wait_us"),
            millis("longest_buffer_wait_us")
        )?;
    }
    Ok(())
}
