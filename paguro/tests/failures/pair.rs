//! A source, a destination, a relay between them, and what must be true of them in the end.

use std::fs::File;
use std::os::fd::AsFd;

use fastrand::Rng;
use paguro_lab::Watch;
pub use paguro_testkit::turn;
use serde_json::json;
use tempfile::TempDir;

use crate::relay::{Marks, Place, Relay};
use crate::side::{Judged, Side};

/// Two machines on their way.
pub struct Pair {
    pub source: Side,
    pub destination: Side,
    pub relay: Relay,
    pub watch: Watch,
    pub place: Place,
    pub direct: Place,
    _dir: TempDir,
}

/// What was found out, in a word, for the figures.
pub type Verdict = Judged<&'static str>;

impl Pair {
    /// Two with a relay at a unix socket.
    pub fn new(rate: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::unix(dir.path(), "relay");
        let direct = Place::unix(dir.path(), "destination");
        let source = Side::source(None, rate);
        let destination = Side::destination(None, &direct.uri());
        let relay = Relay::start(&place, &direct, || {});
        Self::joined(source, destination, relay, (place, direct), dir)
    }

    /// Two in network namespaces; the relay is with the source.
    pub fn apart(rate: &str, namespaces: [&str; 2], place: Place, direct: Place) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Side::source(Some(namespaces[0]), rate);
        let destination = Side::destination(Some(namespaces[1]), &direct.uri());
        let namespace = format!("/run/netns/{}", namespaces[0]);
        let relay = Relay::start(&place, &direct, move || {
            let namespace = File::open(namespace).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        });
        Self::joined(source, destination, relay, (place, direct), dir)
    }

    fn joined(
        source: Side,
        destination: Side,
        relay: Relay,
        (place, direct): (Place, Place),
        dir: TempDir,
    ) -> Self {
        let watch = Watch::start(source.progress.clone(), destination.progress.clone()).unwrap();
        Self {
            source,
            destination,
            relay,
            watch,
            place,
            direct,
            _dir: dir,
        }
    }

    /// Never did both guests run.
    pub fn must_have_run_once(&self) -> Judged {
        self.watch.check().map_err(|error| error.to_string())
    }

    /// The destination is known to be dead, and an operator has said so: the source may run.
    pub fn there_is_dead(&self) -> Judged {
        self.must_have_run_once()?;
        self.watch.there_is_dead();
        Ok(())
    }

    /// Lets it begin, at most so many bytes a second (0: all that goes).
    pub fn migrate(&mut self, bandwidth: u64) -> Judged {
        // So that there is something to move.
        self.source.must_have_written(4000)?;
        let limits = json!({ "max-bandwidth": bandwidth, "downtime-limit": 2000 });
        self.source.must("migrate-set-parameters", limits)?;
        let uri = self.place.uri();
        self.source.must("migrate", json!({ "uri": uri })).map(drop)
    }

    /// The permission was not sent: the guest runs at the source, and why is said.
    pub fn source_ran_on(&mut self, now: &serde_json::Value, marks: &Marks) -> Verdict {
        if marks.eof_in {
            return Err(format!(
                "it took the guest back after the permission was sent: {now}"
            ));
        }
        if now["status"] == "failed" && now["error-desc"].as_str().is_none_or(str::is_empty) {
            return Err(format!("it does not say why it failed: {now}"));
        }
        self.source.must_run()?;
        self.must_have_run_once()?;
        Ok("before permission, source ran on")
    }

    /// The destination is dead and the source does not know what it did: it stands, whole, and runs
    /// once the operator says so.
    pub fn doubt_at_source(&mut self, rng: &mut Rng) -> Verdict {
        // It may still be on its way to the relay.
        self.relay.wait_permission()?;
        self.source.must_stand("postmigrate")?;
        self.source.must_advise(&["migrate_cancel", "`cont`"])?;
        let said = if rng.bool() {
            "in the window, source whole and in doubt, `cont`"
        } else {
            // Nobody can be asked, so it changes nothing yet.
            self.source.must("migrate_cancel", json!({}))?;
            self.source.must_stand("postmigrate")?;
            self.source.must_advise(&["migrate-continue", "`cont`"])?;
            "in the window, source whole and in doubt, `migrate_cancel` and `cont`"
        };
        self.there_is_dead()?;
        self.source.must("cont", json!({}))?;
        self.source.must_run()?;
        self.must_have_run_once()?;
        Ok(said)
    }

    /// The guest has moved: the source stands, whole.
    pub fn source_is_done(&mut self, marks: &Marks) -> Judged {
        if !marks.shut_out && !marks.eof_in {
            return Err(format!("completed without a confirmation: {marks:?}"));
        }
        self.source.must_stand("postmigrate")?;
        self.source.must_advise(&["`quit`"])
    }

    /// The guest runs at the destination.
    pub fn destination_runs(&mut self, marks: &Marks) -> Judged {
        if !marks.eof_out {
            return Err(format!("it runs without permission: {marks:?}"));
        }
        self.destination.must_run()?;
        self.must_have_run_once()
    }

    /// Both know that the guest has moved.
    pub fn moved(&mut self) -> Judged {
        self.source.wait_for(&["completed"])?;
        self.destination.wait_for(&["completed"])?;
        let marks = self.relay.marks();
        self.source_is_done(&marks)?;
        self.destination_runs(&marks)
    }

    /// The source is dead and the destination waits with a whole guest: it runs once the operator
    /// says so.
    pub fn doubt_at_destination(&mut self, marks: &Marks) -> Verdict {
        if marks.eof_out {
            return Err(format!("it waits although the permission came: {marks:?}"));
        }
        if self.watch.there_ran() {
            return Err("it ran before it was in doubt".to_owned());
        }
        self.destination.must_stand("inmigrate")?;
        self.destination.must_advise(&["`cont`"])?;
        self.destination.must("cont", json!({}))?;
        self.destination.must_run()?;
        self.must_have_run_once()?;
        Ok("in the window, destination whole and in doubt, `cont`")
    }

    /// The destination has given up, and never ran.
    pub fn destination_gave_up(&mut self) -> Judged {
        self.destination.must_fail()?;
        if self.watch.there_ran() {
            Err("the destination ran and gave up".to_owned())
        } else {
            Ok(())
        }
    }
}

/// Figures of a campaign.
#[derive(Default)]
pub struct Tally {
    counts: std::collections::BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Tally {
    /// One trial, described by `what`.
    pub fn add(&mut self, what: &str, verdict: Judged<String>) {
        match verdict {
            Ok(verdict) => *self.counts.entry(verdict).or_default() += 1,
            Err(error) => {
                println!("WRONG: {what}: {error}");
                self.wrong.push(format!("{what}: {error}"));
            }
        }
    }

    /// Prints them; fails if anything was wrong.
    pub fn end(self, what: &str) {
        let all: usize = self.counts.values().sum::<usize>() + self.wrong.len();
        println!("{what}: {all} trials");
        for (verdict, count) in &self.counts {
            println!("{count:6}  {verdict}");
        }
        assert!(
            self.wrong.is_empty(),
            "{what}: {} wrong: {:#?}",
            self.wrong.len(),
            self.wrong
        );
    }
}
