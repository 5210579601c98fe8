//! `paguro migrate`: asks a running machine, over its control socket, to move to another process.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use paguro_migration::channel::Address;
use paguro_qmp::Client;
use paguro_workload::human;
use serde_json::{Value, json};

use crate::cli::{MigrateArgs, name};
use crate::done;
use crate::hints::{self, Advised};
use crate::interrupt::{Again, Interrupts};
use crate::progress::Bar;
use crate::qmp::terms::own_capabilities;

/// How often the other side is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// A doubt that lasts longer is told; most end with the first question to the destination.
const DOUBT: Duration = Duration::from_secs(10);

/// Said when --at-timeout switchover comes true.
const FORCED: &str =
    "it does not converge in time, and the guest is stopped all the same: for {} by the forecast";

/// The status of a guest that is ready to move, and waits to be told.
const WAITS: &str = "pre-switchover";

/// The status of doubt.
const IN_DOUBT: &str = "x-paguro-in-doubt";

/// Runs the command.
pub fn migrate(args: &MigrateArgs) -> Result<ExitCode> {
    let uri = args.uri.as_ref().map(absolute).transpose()?;
    let uri = uri.map(|uri| uri.to_string());
    let ended = run(args, uri.as_deref());
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
            let ended = json!({
                "status": "failed", "uri": uri, "error": text, "hint": hint, "advice": null,
            });
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

/// The machine's process may be in another directory.
fn absolute(uri: &Address) -> Result<Address> {
    let absolute = |path: &std::path::Path| {
        std::path::absolute(path).with_context(|| format!("no absolute path for {uri}"))
    };
    Ok(match uri {
        Address::Unix(path) => Address::Unix(absolute(path)?).checked()?,
        Address::File { path, offset } => Address::File {
            path: absolute(path)?,
            offset: *offset,
        },
        other => other.clone(),
    })
}

/// Moves it; gives the fields of `--json`.
fn run(args: &MigrateArgs, uri: Option<&str>) -> Result<Value> {
    let interrupts = Interrupts::catch(Again::Leaves)?;
    let mut client = Client::connect(&args.qmp.0)?;
    let Some(uri) = uri else {
        client.execute("migrate-continue", json!({ "state": WAITS }))?;
        return watch(&mut client, args, None, &interrupts);
    };
    let settings = settings(&mut client, args)?;
    let begin = json!({ "uri": uri, "x-paguro-settings": settings });
    let uri = Some(uri);
    if interrupts.came() {
        let mut ended = stopped(&json!({ "status": "cancelled" }), uri);
        ended["advice"] = json!({ "is": "it had not begun", "may": [] });
        return Ok(ended);
    }
    client.execute("migrate", begin)?;
    watch(&mut client, args, uri, &interrupts)
}

/// What counts for it and is never set.
fn settings(client: &mut Client, args: &MigrateArgs) -> Result<Value> {
    let capabilities = own_capabilities(client, |name| match name {
        "auto-converge" => Some(args.auto_converge),
        "dirty-limit" => Some(args.vcpu_dirty_limit.is_some()),
        "multifd" => Some(args.multifd.multifd_channels.is_some()),
        "xbzrle" => Some(args.xbzrle),
        // What the operator switched on for himself stays on; all else would be another migration.
        "pause-before-switchover" | "return-path" => None,
        _ => Some(false),
    })?;
    Ok(json!({
        "capabilities": capabilities,
        "parameters": parameters(args)?,
        "on-disconnect": name(args.on_disconnect),
    }))
}

fn parameters(args: &MigrateArgs) -> Result<Value> {
    let directory = args
        .tls_creds
        .as_ref()
        .map(std::path::absolute)
        .transpose()?;
    let multifd = &args.multifd;
    let compression = multifd.multifd_compression.map(name);
    let all = [
        ("mode", args.mode.map(|mode| name(mode).into())),
        ("downtime-limit", args.downtime_limit.map(Value::from)),
        (
            "max-bandwidth",
            args.max_bandwidth.map(|size| size.0.into()),
        ),
        (
            "avail-switchover-bandwidth",
            args.switchover_bandwidth.map(|size| size.0.into()),
        ),
        ("vcpu-dirty-limit", args.vcpu_dirty_limit.map(Value::from)),
        (
            "x-paguro-convergence-timeout",
            args.timeout.map(Value::from),
        ),
        (
            "x-paguro-at-timeout",
            args.at_timeout.map(|what| name(what).into()),
        ),
        ("x-paguro-silence", args.silence.map(Value::from)),
        (
            "xbzrle-cache-size",
            args.xbzrle_cache_size.map(|size| size.0.into()),
        ),
        (
            "multifd-channels",
            multifd.multifd_channels.map(Value::from),
        ),
        ("multifd-compression", compression.map(Value::from)),
        (
            "multifd-zstd-level",
            multifd.multifd_zstd_level.map(Value::from),
        ),
        ("tls-creds", directory.map(|path| json!(path))),
        ("tls-hostname", args.tls_hostname.clone().map(Value::from)),
    ];
    let given = all
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Ok(Value::Object(given.collect()))
}

/// Waits for its end.
fn watch(
    client: &mut Client,
    args: &MigrateArgs,
    uri: Option<&str>,
    interrupts: &Interrupts,
) -> Result<Value> {
    watch_on(client, args, uri, interrupts).context(done::LOST)
}

fn watch_on(
    client: &mut Client,
    args: &MigrateArgs,
    uri: Option<&str>,
    interrupts: &Interrupts,
) -> Result<Value> {
    let bar = Bar::bytes("moving");
    let mut cancelled = false;
    let mut doubt: Option<Instant> = None;
    let mut forced = false;
    loop {
        let now = client.execute("query-migrate", json!({}))?;
        let status = now["status"].as_str().unwrap_or_default();
        if status == IN_DOUBT {
            doubt.get_or_insert_with(Instant::now);
        } else {
            doubt = None;
        }
        match status {
            "completed" => {
                drop(bar);
                return Ok(completed(client, uri));
            }
            "failed" | "cancelled" => return Ok(stopped(&now, uri)),
            _ if doubt.is_some_and(|since| since.elapsed() > DOUBT) => {
                return Ok(stopped(&now, uri));
            }
            // Whoever is to say what becomes of it needs the control socket.
            WAITS if !interrupts.came() => {
                let mut ended = stopped(&now, uri);
                ended["error"] = "this command leaves it before the switchover, as was set".into();
                ended["hint"] = hints::MOVES_ON.into();
                return Ok(ended);
            }
            _ => {}
        }
        if !forced && now["x-paguro-forced"] == true {
            let expected = now["x-paguro-expected-downtime-us"].as_u64().unwrap_or(0);
            bar.say_above(FORCED.replace("{}", &forecast(expected)));
            forced = true;
        }
        show(&bar, &now);
        match interrupts.which() {
            Some(signal) if !cancelled && args.on_disconnect.goes_on_after(signal) => {
                let mut ended = stopped(&now, uri);
                let error = "this command was ended by a signal; the migration goes on";
                ended["error"] = error.into();
                ended["hint"] = hints::GOES_ON.into();
                return Ok(ended);
            }
            Some(_) if !cancelled => {
                // Refused is what came too late: its end will be told.
                let asked = client.execute("migrate_cancel", json!({}));
                if let Err(error) = asked {
                    bar.say_above(format_args!("{error:#}"));
                }
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

fn show(bar: &Bar, now: &Value) {
    let ram = |field: &str| now["ram"][field].as_u64().unwrap_or(0);
    let (total, left) = (ram("total"), ram("remaining"));
    bar.set(total.saturating_sub(left), total);
    let throttle = now["cpu-throttle-percentage"]
        .as_u64()
        .map(|percent| format!(", guest slowed down by {percent} %"));
    bar.say(format!(
        "pass {}, {} sent, {} left, dirty {}/s, {}/s, forecast {}{}",
        ram("dirty-sync-count"),
        human(ram("transferred")),
        human(left),
        human(ram("dirty-pages-rate") * ram("page-size")),
        human((now["ram"]["mbps"].as_f64().unwrap_or(0.0) * 1e6 / 8.0) as u64),
        forecast(now["x-paguro-expected-downtime-us"].as_u64().unwrap_or(0)),
        throttle.unwrap_or_default(),
    ));
}

fn completed(client: &mut Client, uri: Option<&str>) -> Value {
    let mut report = done::report(client);
    if let Some(uri) = uri {
        report["uri"] = uri.into();
    }
    for field in ["error", "hint", "advice"] {
        report[field] = Value::Null;
    }
    report
}

fn stopped(now: &Value, uri: Option<&str>) -> Value {
    let otherwise = match now["status"].as_str() {
        Some("cancelled") => "the migration was cancelled",
        _ => "no reason given",
    };
    let otherwise = match now["x-paguro-not-resumed"].as_str() {
        Some(why) => format!("{otherwise}, and the guest does not run on: {why}"),
        None => otherwise.to_owned(),
    };
    json!({
        "status": now["status"],
        "uri": uri,
        "error": now["x-paguro-error"].as_str().unwrap_or(&otherwise),
        "hint": now["x-paguro-hint"],
        "advice": now["x-paguro-advice"],
    })
}

/// Why it failed, where the guest is, and what can be done.
fn failure(ended: &Value) -> anyhow::Error {
    let text = ended["error"].as_str().unwrap_or("no reason given");
    let advice = &ended["advice"];
    let is = advice["is"].as_str().unwrap_or("nothing more is known");
    let may = advice["may"].as_array().into_iter().flatten();
    let may: Vec<_> = may.filter_map(Value::as_str).collect();
    let doubt = if ended["status"] == IN_DOUBT {
        "the outcome is in doubt: "
    } else {
        ""
    };
    let text = format!("{doubt}{text}; {is}");
    let mut next = Vec::new();
    next.extend(ended["hint"].as_str().map(str::to_owned));
    // That alone is nothing to do.
    if !matches!(may[..], [] | ["wait"]) {
        next.push(format!("over QMP you may: {}", may.join("; or ")));
    }
    if next.is_empty() {
        anyhow::Error::msg(text)
    } else {
        Advised::error(text, next.join("\nhint: "))
    }
}

/// Before anything is known of the bandwidth there is no forecast, which the engine says by the
/// largest number.
fn forecast(us: u64) -> String {
    match us {
        u64::MAX => "not known yet".to_owned(),
        us => format!("{:.3} ms", us as f64 / 1000.0),
    }
}

fn print_report(report: &Value) -> Result<()> {
    let number = |field: &str| report[field].as_u64().unwrap_or(0);
    let millis = |field: &str| number(field) as f64 / 1000.0;
    let size = |field: &str| human(number(field));
    let mut out = io::stdout().lock();
    let uri = report["uri"].as_str().unwrap_or("its destination");
    if report["total_us"].is_null() {
        return Ok(writeln!(out, "moved to {uri}")?);
    }
    writeln!(out, "moved to {uri}: {}", size("total_bytes"))?;
    writeln!(out, "  total       {:>9.1} ms", millis("total_us"))?;
    writeln!(
        out,
        "  setup       {:>9.1} ms   of that {:.1} ms to begin tracking writes",
        millis("setup_us"),
        millis("track_us")
    )?;
    writeln!(
        out,
        "  downtime    {:>9.3} ms   the forecast was {}{}",
        millis("downtime_us"),
        forecast(number("forecast_us")),
        if report["forced"] == true {
            ", and the time to converge was over"
        } else {
            ""
        }
    )?;
    writeln!(
        out,
        "  last dirty  {:>12}   when the guest was stopped",
        size("last_dirty_bytes")
    )?;
    writeln!(
        out,
        "  sent        {:>12}   of that {} in the downtime",
        size("transferred_bytes"),
        size("downtime_bytes")
    )?;
    writeln!(
        out,
        "  pages       {:>12}   and {} zero",
        number("normal_pages"),
        number("zero_pages")
    )?;
    if number("xbzrle_pages") > 0 || number("xbzrle_cache_misses") > 0 {
        writeln!(
            out,
            "  differences {:>12}   pages, in {}; {} were not in the cache",
            number("xbzrle_pages"),
            size("xbzrle_bytes"),
            number("xbzrle_cache_misses")
        )?;
    }
    writeln!(out, "  passes      {:>12}", number("dirty_sync_count"))?;
    match number("bandwidth") {
        0 => writeln!(
            out,
            "  bandwidth   {:>12}   too little was sent to measure it",
            "-"
        )?,
        _ => writeln!(
            out,
            "  bandwidth   {:>10}/s   of the channel, without --max-bandwidth",
            size("bandwidth")
        )?,
    }
    writeln!(
        out,
        "  slowed down {:>10} %   at the end",
        number("throttle_percent")
    )?;
    Ok(())
}
