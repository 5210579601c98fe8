//! Files that a machine is saved or moved to: whoever finds one that is complete may run the guest
//! in it, so what is told of it decides whether it runs twice.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::machine::{Machine, PAGURO, output, paguro, plain, text, turn};
use crate::migrating::Side;

const NOBODY: u32 = 65534;

/// A machine of a user who is not root, in a directory of his own; with the options of a side.
fn of_a_user(args: &[&str]) -> Option<Side> {
    let dir = tempfile::tempdir().unwrap();
    let mut command = paguro([""; 0]);
    if rustix::process::geteuid().is_root() {
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
        let mut tried = Command::new(PAGURO);
        tried.arg("--version").uid(NOBODY).stdout(Stdio::null());
        if !tried.status().is_ok_and(|status| status.success()) {
            println!("skipped: nobody cannot run {PAGURO}");
            return None;
        }
    }
    let machine = Machine::run_by(command, dir.path(), args);
    let qmp = machine.connect();
    Some(Side { dir, machine, qmp })
}

/// A directory that this user may write but not read.
fn unreadable(side: &Side) -> PathBuf {
    let path = side.dir.path().join("D");
    fs::create_dir(&path).unwrap();
    let root = rustix::process::geteuid().is_root();
    // To its owner as to others.
    let mode = if root { 0o733 } else { 0o333 };
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

fn file_uri(path: &Path) -> String {
    format!("file:{}", path.display())
}

/// The guest in a file runs, or can.
fn comes_in(uri: &str, status: &str) {
    let mut there = Side::run(&["--incoming", uri]);
    there.qmp.wait_status(status);
    let writes = there.check();
    there.runs_on(writes);
    there.quit();
}

#[test]
fn a_guest_that_is_in_a_file_does_not_run_on_beside_it() {
    let _turn = turn();
    let Some(mut here) = of_a_user(&["--workload", "rate=10000"]) else {
        return;
    };
    let writes = here.runs_on(1000);
    let file = unreadable(&here).join("x");
    let uri = file_uri(&file);
    let (mut here, output) = here.migrate(&uri, &["--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{report}");
    assert_eq!(report["warning"], Value::Null, "{report}");
    assert_eq!(here.status(), "postmigrate");
    assert!(here.check() >= writes);
    comes_in(&uri, "running");
    // And an older one is replaced.
    here.qmp.execute("cont", json!({}));
    let (mut here, output) = Way::Snapshot.go(here, &file);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(here.status(), "postmigrate");
    verified(&file);
    // So that it can be removed.
    let dir = file.parent().unwrap();
    fs::set_permissions(dir, Permissions::from_mode(0o700)).unwrap();
    here.quit();
}

/// A machine of which system calls fail as strace is told.
fn failing(inject: &[&str]) -> Option<Side> {
    let strace = || {
        let mut command = Command::new("strace");
        // It is the tracer that goes into the background, not the program.
        command.args(["-D", "-f", "-qq", "-o", "/dev/null"]);
        command
    };
    let tried = strace().arg("true").status();
    if !tried.is_ok_and(|status| status.success()) {
        println!("skipped: strace does not work here");
        return None;
    }
    let mut command = strace();
    command.args(inject.iter().map(|what| format!("--inject={what}")));
    plain(command.arg(PAGURO));
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_by(command, dir.path(), &["--workload", "rate=1000"]);
    let qmp = machine.connect();
    Some(Side { dir, machine, qmp })
}

/// The two commands that leave a guest in a file and a machine that is stopped.
#[derive(Clone, Copy)]
enum Way {
    Migrate,
    Snapshot,
}

impl Way {
    fn go(self, side: Side, file: &Path) -> (Side, Output) {
        let Side { dir, machine, qmp } = side;
        drop(qmp);
        let address = machine.qmp_address();
        let uri = file_uri(file);
        let output = match self {
            Self::Migrate => output(["migrate", "--qmp", &address, "--json", &uri]),
            Self::Snapshot => machine.snapshot(file, &["--json", "--stop"]),
        };
        let qmp = machine.connect();
        (Side { dir, machine, qmp }, output)
    }
}

/// The directory could be synced when that was tried, and cannot be when the file has its name.
#[test]
fn what_fails_when_a_file_has_its_name_is_a_warning() {
    let _turn = turn();
    for way in [Way::Migrate, Way::Snapshot] {
        // A thread's last, of the directory. Before it comes that of the file, and in a migration also
        // one before the guest would be stopped, and one before it is permitted to run.
        let syncs = match way {
            Way::Migrate => "fsync:error=EIO:when=4+",
            Way::Snapshot => "fsync:error=EIO:when=3+",
        };
        let Some(mut here) = failing(&[syncs, "syncfs:error=EIO"]) else {
            return;
        };
        // One that writes might need another pass, with a sync of its own.
        here.qmp.execute("stop", json!({}));
        let file = here.dir.path().join("x");
        let (mut here, output) = way.go(here, &file);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}{}", text(&output.stdout));
        assert!(said.contains("warning: the file is complete"), "{said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["status"], "completed");
        let warning = report["warning"].as_str().unwrap();
        assert!(warning.contains("sync the directory of"), "{warning}");
        let now = here.qmp.execute("query-migrate", json!({}));
        assert_eq!(now["status"], "completed");
        assert_eq!(now["x-paguro-warning"], warning);
        assert!(now.get("error-desc").is_none(), "{now}");
        assert_eq!(here.status(), "postmigrate");
        match way {
            Way::Migrate => comes_in(&file_uri(&file), "paused"),
            Way::Snapshot => verified(&file),
        }
        here.quit();
    }
}

/// Whatever fails before that, the guest runs on, and the older file is what it was.
#[test]
fn what_fails_before_a_file_has_its_name_changes_nothing() {
    let _turn = turn();
    for (way, inject) in [
        (Way::Migrate, "fsync:error=EIO:when=2+"),
        (Way::Migrate, "?rename,?renameat,renameat2:error=EIO"),
        (Way::Snapshot, "fsync:error=EIO:when=2+"),
        // The first is to see whether it will work.
        (Way::Snapshot, "?link,linkat:error=ENOSPC:when=2+"),
        (Way::Snapshot, "?rename,?renameat,renameat2:error=EIO"),
    ] {
        let Some(here) = failing(&[inject]) else {
            return;
        };
        let file = here.dir.path().join("x");
        fs::write(&file, "the old one").unwrap();
        let (mut here, output) = way.go(here, &file);
        assert_eq!(output.status.code(), Some(1), "{inject}");
        let ended: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(ended["status"], "failed", "{inject}: {ended}");
        assert_eq!(here.status(), "running", "{inject}: {ended}");
        assert_eq!(fs::read(&file).unwrap(), b"the old one");
        let left = fs::read_dir(here.dir.path()).unwrap().count();
        assert_eq!(left, 2, "{inject}: more than the file and the socket");
        let writes = here.check();
        here.runs_on(writes);
        here.quit();
    }
}

/// Without `/proc`, and on kernels that want a capability for it, a file without a name never gets
/// one: there it has one from the beginning.
#[test]
fn where_no_file_can_be_named_later_it_works_too() {
    let _turn = turn();
    for way in [Way::Migrate, Way::Snapshot] {
        let Some(here) = failing(&["?link,linkat:error=ENOENT"]) else {
            return;
        };
        let file = here.dir.path().join("x");
        let (mut here, output) = way.go(here, &file);
        assert!(output.status.success(), "{}", text(&output.stdout));
        assert_eq!(here.status(), "postmigrate");
        let left = fs::read_dir(here.dir.path()).unwrap().count();
        assert_eq!(left, 2, "more than the file and the socket");
        here.quit();
    }
}

/// Neither is the rename known to be done, nor that it was not.
#[test]
fn a_guest_that_may_be_in_a_file_does_not_run_on() {
    let _turn = turn();
    for way in [Way::Migrate, Way::Snapshot] {
        let Some(here) = failing(&[
            "?rename,?renameat,renameat2:error=ETIMEDOUT",
            "?unlink,unlinkat:error=ETIMEDOUT",
        ]) else {
            return;
        };
        let file = here.dir.path().join("x");
        let mut here = match way {
            // The command waits for a while whether the doubt ends.
            Way::Migrate => {
                let mut here = here;
                here.qmp
                    .execute("migrate", json!({ "uri": file_uri(&file) }));
                let now = here.qmp.wait_migration("x-paguro-in-doubt");
                let said = now["error-desc"].as_str().unwrap();
                assert!(said.contains("is not known"), "{now}");
                here
            }
            Way::Snapshot => {
                let (here, output) = way.go(here, &file);
                assert_eq!(output.status.code(), Some(1));
                let ended: Value = serde_json::from_slice(&output.stdout).unwrap();
                assert_eq!(ended["status"], "failed", "{ended}");
                assert!(
                    ended["error"].as_str().unwrap().contains("is not known"),
                    "{ended}"
                );
                assert!(
                    ended["hint"].as_str().unwrap().contains("look at the file"),
                    "{ended}"
                );
                here
            }
        };
        assert_eq!(here.status(), "postmigrate");
        here.quit();
    }
}

/// The guest is not even stopped for a moment.
#[test]
fn a_target_that_cannot_be_is_refused_while_the_guest_runs() {
    let _turn = turn();
    let mut here = Side::run(&[]);
    here.qmp.set(&[("events", true)]);
    let dir = here.dir.path().to_owned();
    let at = |name: &str| dir.join(name);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    symlink("loop", at("loop")).unwrap();
    symlink("no/such/x", at("nowhere")).unwrap();
    let long = "n".repeat(256);
    for (path, why, what) in [
        (at("pipe"), "it is a pipe", "exec:cat"),
        (at(""), "it is a directory", "name a file"),
        (at("loop"), "Too many levels", "circle"),
        (at("nowhere"), "No such file", "make the directory"),
        (at(&long), "File name too long", "shorter name"),
        ("/dev/null".into(), "it is a device", "exec:cat"),
        (
            "/dev/stdout".into(),
            "a descriptor of this process",
            "exec:cat",
        ),
    ] {
        for mapped_ram in [false, true] {
            here.qmp.set(&[("mapped-ram", mapped_ram)]);
            let addr = json!({ "transport": "file", "filename": path, "offset": 0 });
            let channel = json!({ "channel-type": "main", "addr": addr });
            here.qmp
                .execute("migrate", json!({ "channels": [channel] }));
            let end = here.qmp.migration_end();
            assert_eq!(end["status"], "failed", "{path:?}");
            let said = end["x-paguro-error"].as_str().unwrap();
            assert!(
                said.contains(why) && said.contains(path.to_str().unwrap()),
                "{end}"
            );
            let hint = end["x-paguro-hint"].as_str().unwrap_or_default();
            assert!(hint.contains(what), "{end}");
            assert_eq!(here.status(), "running");
        }
    }
    let events = here.qmp.events();
    assert!(
        events
            .iter()
            .any(|event| event["data"]["status"] == "failed")
    );
    assert!(
        !events.iter().any(|event| event["event"] == "STOP"),
        "{events:?}"
    );
    // Neither is what is no file waited for when it is read.
    let pipe = at("pipe").display().to_string();
    for (command, why) in [("restore", "it is a pipe"), ("inspect", "as a snapshot")] {
        let output = output([command, &pipe]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    }
    here.quit();
}

#[test]
fn a_file_is_replaced_where_its_link_leads() {
    let _turn = turn();
    let elsewhere = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let elsewhere = elsewhere.unwrap();
    let mut here = Side::run(&["--workload", "rate=1000"]);
    let link = here.dir.path().join("n".repeat(255));
    symlink(elsewhere.path().join("x"), &link).unwrap();
    for way in [Way::Snapshot, Way::Migrate] {
        let (side, output) = way.go(here, &link);
        here = side;
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
        match way {
            Way::Snapshot => verified(&link),
            Way::Migrate => comes_in(&file_uri(&link), "running"),
        }
        here.qmp.execute("cont", json!({}));
    }
    here.quit();
}

#[track_caller]
fn verified(file: &Path) {
    let output = output(["inspect", "--verify", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}
