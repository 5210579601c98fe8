//! A guest moves to another process.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use paguro_lab::process::{IN_VAIN, POLL};
use paguro_lab::{Channel, Machine, Watch};
use serde_json::json;

use super::blow::Blow;
use super::case::{Fault, Party};
use super::command::Client;
use super::saving::{CONVERGES, LASTS};
use super::scene::{Before, IN_DOUBT, Scene, migration, nothing_is_left, settled};

/// So long a destination to which nobody has connected is waited for.
const NOBODY: Duration = Duration::from_secs(2);

/// So long a process may take from its last word to its end.
const GOING: Duration = Duration::from_secs(10);

/// Runs a case.
pub fn run(scene: &mut Scene<'_>) -> Result<()> {
    let memory_bytes = scene.memory_bytes();
    let mut blow = Blow::draw(&scene.case, &mut scene.rng, memory_bytes)?;
    let options = scene.machine(memory_bytes, &blow);
    let (mut here, before) = scene.source(&options)?;
    let mut awaiting = options.awaiting();
    awaiting.through = blow.through(Party::Destination);
    let mut there = Machine::start(&awaiting).context("the destination")?;
    let channel = scene.rng.pick(&[Channel::Tcp, Channel::Unix]);
    let channels = scene.rng.pick(&[0, 2]);
    if channels > 0 {
        let parameters = json!({ "multifd-channels": channels });
        there.agree(parameters.as_object().context("no object")?, &["multifd"])?;
    }
    let uri = there.listen(&channel)?;
    let before_there = Before::of(&mut there)?;
    let watch = Watch::start(here.progress().clone(), there.progress().clone())?;
    here.hang_up();
    let address = here.qmp_address();
    let channels = format!("--multifd-channels={channels}");
    let mut args = vec!["migrate", "--qmp", &address, &uri];
    args.extend(CONVERGES);
    if !channels.ends_with("=0") {
        args.push(&channels);
    }
    let pids = [here.pid(), there.pid()];
    let early = blow.is_early && scene.case.to != Party::Client;
    let machine = match scene.case.to {
        Party::Destination => pids[1],
        _ => pids[0],
    };
    if early {
        blow.strike(machine, None)?;
    }
    let mut client = Client::begin(scene.program.file, &args)?;
    if !early {
        std::thread::sleep(blow.moment);
        let pid = match scene.case.to {
            Party::Client => client.pid(),
            _ => machine,
        };
        blow.strike(pid, None)?;
    }
    let ended = client.wait(LASTS)?;
    blow.lift(None)?;
    let ended = match ended {
        Some(ended) => ended,
        None => client.must_end()?,
    };
    if client.said().contains("panicked") {
        bail!("the command panicked: {}", client.said());
    }
    let status = if blow
        .outlived(&mut here, Party::Machine)
        .context("the source")?
    {
        Some(settled(&mut here, || Ok(there.ended()?.is_some()))?)
    } else {
        None
    };
    if ended.success() && !matches!(status.as_deref(), None | Some("completed")) {
        bail!("it is {status:?}, and its command says all is well");
    }
    if status.is_some() {
        nothing_is_left(&mut here, &before)?;
    }
    scene.outcome = match &status {
        None => "source gone".to_owned(),
        Some(status) if status.is_empty() => "not begun".to_owned(),
        Some(status) => status.clone(),
    };
    let mut ends = Ends { here, there, watch };
    let survivor = match status.as_deref() {
        None => ends.without_source(scene)?,
        Some("completed") => ends.moved(scene, &blow)?,
        Some(IN_DOUBT) => ends.in_doubt(scene)?,
        Some(_) => ends.stayed(scene)?,
    };
    ends.watch.check()?;
    let Ends {
        here,
        mut there,
        watch,
    } = ends;
    match survivor {
        Side::Here => scene.goes_on(here, "the source, which kept its guest")?,
        Side::There => {
            nothing_is_left(&mut there, &before_there).context("the destination")?;
            scene.goes_on(there, "the destination")?;
            // It stands beside it all the time.
            watch.check()?;
        }
        Side::Nowhere => {}
    }
    Ok(())
}

/// Where the guest is.
enum Side {
    Here,
    There,
    Nowhere,
}

struct Ends {
    here: Machine,
    there: Machine,
    watch: Watch,
}

impl Ends {
    /// The source says that it has moved.
    fn moved(&mut self, scene: &mut Scene<'_>, blow: &Blow) -> Result<Side> {
        self.here.wait_status("postmigrate").context("the source")?;
        if !blow
            .outlived(&mut self.there, Party::Destination)
            .context("the destination")?
        {
            scene.outcome += ", then lost with the destination";
            return Ok(Side::Nowhere);
        }
        self.there
            .wait_status("running")
            .context("the destination")?;
        Ok(Side::There)
    }

    /// The destination is gone, and nobody knows whether the guest ran there.
    fn in_doubt(&mut self, scene: &Scene<'_>) -> Result<Side> {
        if scene.case.to != Party::Destination || !scene.case.fault.may_end() {
            bail!(
                "the source is in doubt, and its destination is gone: {}",
                self.there.said()
            );
        }
        self.here.wait_status("postmigrate")?;
        self.watch.check()?;
        self.watch.there_is_dead();
        self.here.cont()?;
        Ok(Side::Here)
    }

    /// The source kept its guest: the destination has none, and never had.
    fn stayed(&mut self, scene: &mut Scene<'_>) -> Result<Side> {
        self.here.wait_status("running").context("the source")?;
        if self.watch.there_ran() {
            bail!("the source kept its guest, and the destination ran");
        }
        match self.there_alone(scene)? {
            Side::Nowhere => Ok(Side::Here),
            _ => bail!("the source kept its guest, and the destination has it"),
        }
    }

    /// The source was ended or killed: the guest is at the destination, or gone with it.
    fn without_source(&mut self, scene: &mut Scene<'_>) -> Result<Side> {
        let side = self.there_alone(scene)?;
        scene.outcome += match side {
            Side::There => ", moved before",
            _ => ", and its guest with it",
        };
        Ok(side)
    }

    /// What a destination comes to, of whose source nothing more will come.
    fn there_alone(&mut self, scene: &Scene<'_>) -> Result<Side> {
        let deadline = Instant::now() + IN_VAIN;
        let nobody = Instant::now() + NOBODY;
        let mut looked = || -> Result<Option<Side>> {
            let status = self.there.status()?;
            if matches!(status.as_str(), "running" | "paused") {
                return Ok(Some(Side::There));
            }
            let now = migration(&mut self.there)?;
            let advice = now["x-paguro-advice"]["may"].to_string();
            if advice.contains("`cont`") {
                self.there.cont()?;
                self.there.wait_status("running")?;
                return Ok(Some(Side::There));
            }
            let waits = matches!(now["status"].as_str(), None | Some("none" | "setup"));
            if waits && Instant::now() > nobody {
                // Nobody has come, and it would wait for the next one.
                self.there.execute("quit", json!({}))?;
                return Ok(Some(Side::Nowhere));
            }
            if Instant::now() > deadline {
                bail!("the destination waits for ever: {now}");
            }
            Ok(None)
        };
        loop {
            match looked() {
                Ok(None) => std::thread::sleep(POLL),
                Ok(Some(side)) => return Ok(side),
                Err(error) => {
                    // The connection breaks before the process is gone.
                    let Some(status) = self.there.ended_within(GOING)? else {
                        return Err(error.context("the destination"));
                    };
                    return gave_up(scene, status, &self.there.said());
                }
            }
        }
    }
}

/// A destination that ended: because no guest came, or because it was told to.
fn gave_up(scene: &Scene<'_>, status: std::process::ExitStatus, said: &str) -> Result<Side> {
    let told = scene.case.to == Party::Destination && scene.case.fault.may_end();
    let orderly = status.code() == Some(1) && said.contains("did not come in");
    let killed = told && matches!(scene.case.fault, Fault::Kill | Fault::CgroupMemory);
    if said.contains("panicked") || !(orderly || killed || told && status.success()) {
        bail!("the destination ended with {status}: {said}");
    }
    Ok(Side::Nowhere)
}
