//! `paguro snapshot`: asks a running machine, over its control socket, to save itself.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cli::SnapshotArgs;
use crate::done;
use crate::hints::{self, Advised};
use crate::interrupt::{Again, Interrupts};
use crate::progress::Bar;
use crate::qmp::Client;
use crate::size::human;

/// How often the other side is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// The capabilities that a snapshot sets, and puts back.
const CAPABILITIES: [&str; 5] = [
    "background-snapshot",
    "mapped-ram",
    // Those of migrations do not go together with these.
    "auto-converge",
    "pause-before-switchover",
    "return-path",
];

/// The parameter behind `--page-buffer`.
const PAGE_BUFFER: &str = "x-paguro-page-buffer";

/// Runs the command.
pub fn snapshot(args: &SnapshotArgs) -> Result<ExitCode> {
    let path = std::path::absolute(&args.file)
        .with_context(|| format!("no absolute path for {}", args.file.display()))?;
    let ended = take(args, &path);
    let failed = !matches!(&ended, Ok(ended) if ended["status"] == "completed");
    match ended {
        Ok(ended) if !failed => done::tell(&ended, |report| match args.json {
            true => Ok(writeln!(io::stdout(), "{report:#}")?),
            false => print_report(report),
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
    let before = capabilities(&mut client)?;
    let buffer = args.page_buffer.map(|size| size.0);
    let buffer_before = buffer.map(|bytes| change_buffer(&mut client, bytes));
    let buffer_before = buffer_before.transpose()?;
    let ended = set(&mut client, &[!args.stop, true, false, false, false])
        .and_then(|()| run(&mut client, path, &interrupts));
    // Also after a failure; which is the one to tell.
    let restored = set(&mut client, &before);
    let buffer_restored = buffer_before.map(|bytes| change_buffer(&mut client, bytes));
    let restored = restored.and(buffer_restored.transpose().map(drop));
    let ended = ended?;
    restored.context("the snapshot is complete, but settings could not be put back")?;
    Ok(ended)
}

fn capabilities(client: &mut Client) -> Result<[bool; CAPABILITIES.len()]> {
    let list = client.execute("query-migrate-capabilities", json!({}))?;
    let entries = list.as_array().context("capabilities are no list")?;
    let state = |name: &str| {
        let entry = entries.iter().find(|entry| entry["capability"] == name);
        entry.and_then(|entry| entry["state"].as_bool())
    };
    let mut found = [false; CAPABILITIES.len()];
    for (name, found) in CAPABILITIES.iter().zip(&mut found) {
        *found = state(name).with_context(|| format!("the other side has no {name}"))?;
    }
    Ok(found)
}

/// Sets the page buffer; its size before.
fn change_buffer(client: &mut Client, bytes: u64) -> Result<u64> {
    let parameters = client.execute("query-migrate-parameters", json!({}))?;
    let before = parameters[PAGE_BUFFER].as_u64();
    let before = before.with_context(|| format!("the other side has no {PAGE_BUFFER}"))?;
    client.execute("migrate-set-parameters", json!({ PAGE_BUFFER: bytes }))?;
    Ok(before)
}

fn set(client: &mut Client, states: &[bool; CAPABILITIES.len()]) -> Result<()> {
    let list = CAPABILITIES
        .iter()
        .zip(states)
        .map(|(name, state)| json!({ "capability": name, "state": state }));
    let arguments = json!({ "capabilities": Value::from_iter(list) });
    client
        .execute("migrate-set-capabilities", arguments)
        .map(drop)
}

/// Starts it and waits for its end.
fn run(client: &mut Client, path: &Path, interrupts: &Interrupts) -> Result<Value> {
    let name = path.to_str().context("QMP can only name files in UTF-8")?;
    // Not as a URI, in which ",offset=" has a meaning.
    let addr = json!({ "transport": "file", "filename": name, "offset": 0 });
    let channel = json!({ "channel-type": "main", "addr": addr });
    client.execute("migrate", json!({ "channels": [channel] }))?;
    watch(client, path, interrupts).context(done::LOST)
}

fn watch(client: &mut Client, path: &Path, interrupts: &Interrupts) -> Result<Value> {
    let bar = Bar::bytes("saving");
    let mut cancelled = false;
    loop {
        let now = client.execute("query-migrate", json!({}))?;
        let number = |field: &str| now["ram"][field].as_u64().unwrap_or(0);
        let status = now["status"].as_str().unwrap_or_default();
        match status {
            "completed" => {
                drop(bar);
                return Ok(completed(client, path));
            }
            "failed" | "cancelled" => {
                return Ok(json!({
                    "status": status,
                    "path": path,
                    "error": now["x-paguro-error"].as_str().unwrap_or("the snapshot was cancelled"),
                    "hint": now["x-paguro-hint"],
                }));
            }
            _ => {}
        }
        bar.set(
            number("total").saturating_sub(number("remaining")),
            number("total"),
        );
        bar.say_written(number("transferred"));
        if !cancelled && interrupts.came() {
            client.execute("migrate_cancel", json!({}))?;
            cancelled = true;
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
