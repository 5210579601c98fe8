//! Machines of the lab that move to others.
//!
//! ```text
//! let mut here = Machine::start(&options)?;
//! let (mut there, uri) = Machine::start_incoming(&options, "tcp:127.0.0.1:0")?;
//! let report = here.migrate_to(&uri, &Move::default())?;
//! there.wait_status("running")?;
//! there.stop()?;
//! tally.add("moved", &there.check_ram()?)?;
//! ```

#![allow(dead_code, reason = "for campaigns of migrations, which come to be")]

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::machine::{IN_VAIN, POLL, Parameters};
use super::{Machine, MachineOptions};

/// How a machine is moved. The default is the program's.
#[derive(Clone, Debug, Default)]
pub struct Move {
    /// Names and values of `migrate-set-parameters`.
    pub parameters: Parameters,
    /// Capabilities that are switched on; all others that there are are off.
    pub capabilities: Vec<&'static str>,
}

impl Machine {
    /// Starts one that waits for another of the same options. `uri` as of `--incoming`; an address
    /// of a socket may leave the choice to the host (`tcp:127.0.0.1:0`, and `unix` for a path in a
    /// directory that goes with the machine). Gives the address for [`Machine::migrate_to`].
    pub fn start_incoming(options: &MachineOptions, uri: &str) -> Result<(Self, String)> {
        let options = MachineOptions {
            incoming: true,
            ..options.clone()
        };
        let mut machine = Self::start(&options)?;
        let at = machine.listen(uri)?;
        Ok((machine, at))
    }

    /// Lets one that was started with `incoming` listen; where.
    pub fn listen(&mut self, uri: &str) -> Result<String> {
        let uri = match uri {
            "unix" => format!("unix:{}", self.directory().join("incoming.sock").display()),
            other => other.to_owned(),
        };
        self.execute("migrate-incoming", json!({ "uri": uri }))?;
        if !uri.starts_with("tcp:") {
            return Ok(uri);
        }
        let now = self.execute("query-migrate", json!({}))?;
        let address = &now["socket-address"][0];
        match (address["host"].as_str(), address["port"].as_str()) {
            (Some(host), Some(port)) if host.contains(':') => Ok(format!("tcp:[{host}]:{port}")),
            (Some(host), Some(port)) => Ok(format!("tcp:{host}:{port}")),
            _ => bail!("the machine does not say where it listens: {now}"),
        }
    }

    /// Moves it and waits for the end; it is stopped then (`postmigrate`). Gives the engine's
    /// report.
    ///
    /// # Errors
    ///
    /// Why it failed, in its own words.
    pub fn migrate_to(&mut self, uri: &str, how: &Move) -> Result<Value> {
        self.begin_migration(uri, how)?;
        self.wait_migration()
    }

    /// Begins to move it, without waiting for the end.
    pub fn begin_migration(&mut self, uri: &str, how: &Move) -> Result<()> {
        let mut all = self.defaults.clone();
        all.extend(how.parameters.clone());
        self.execute("migrate-set-parameters", Value::Object(all))?;
        let known = self.execute("query-migrate-capabilities", json!({}))?;
        let known = known.as_array().context("capabilities are no list")?;
        let names = known.iter().map(|entry| &entry["capability"]);
        let states = names.map(|name| {
            let on = how.capabilities.iter().any(|wanted| *name == *wanted);
            json!({ "capability": name, "state": on })
        });
        let states = Value::from_iter(states);
        self.execute(
            "migrate-set-capabilities",
            json!({ "capabilities": states }),
        )?;
        self.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// What `query-migrate` says.
    pub fn migration(&mut self) -> Result<Value> {
        self.execute("query-migrate", json!({}))
    }

    /// Waits for the end of a migration and gives the engine's report.
    pub fn wait_migration(&mut self) -> Result<Value> {
        let deadline = Instant::now() + IN_VAIN;
        loop {
            let now = self.migration()?;
            match now["status"].as_str().unwrap_or_default() {
                "completed" => return self.execute("x-paguro-query-report", json!({})),
                status @ ("failed" | "cancelled" | "x-paguro-in-doubt") => {
                    let reason = now["error-desc"].as_str().unwrap_or("no reason");
                    bail!("the migration is {status}: {reason}");
                }
                _ => {}
            }
            if Instant::now() > deadline {
                bail!("the migration does not end: {now}\n{}", self.said());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for a state of `query-status`: `running` of a machine that came in.
    pub fn wait_status(&mut self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + IN_VAIN;
        loop {
            let status = self.status()?;
            if status == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("its state is {status:?}, not {wanted:?}\n{}", self.said());
            }
            std::thread::sleep(POLL);
        }
    }
}
