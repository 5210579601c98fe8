//! Machines of all kinds against the oracle, and whether the oracle would notice.
//!
//! Both go through `paguro soak`, which is what a user checks a host with: a selection of its
//! matrix in which every two properties meet, always the same one (`.ci/run` takes another each time);
//! and versions of the engine with one thing broken on purpose, none of them slowed down, which must
//! be caught within 20 snapshots.

use std::process::Output;

use paguro_lab::host::no_kvm;
use paguro_sys::{Fallbacks, Host, Userfault};

use crate::machine::{paguro, text, turn};

/// Runs a soak; with its output printed, so that its seeds and skips are in the test's output.
fn soak(force: &str, args: &[&str]) -> Output {
    let _turn = turn();
    let mut command = paguro(std::iter::once(&"soak").chain(args));
    if !force.is_empty() {
        command.env("PAGURO_FORCE", force);
    }
    let output = command.output().unwrap();
    println!("{}{}", text(&output.stdout), text(&output.stderr));
    output
}

#[track_caller]
fn all_is_right(output: &Output) {
    let said = text(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    assert!(
        output.status.success() && last.contains(", 0 wrong, "),
        "{said}{}",
        text(&output.stderr)
    );
    assert!(!last.contains(" 0 pages"), "{last}");
}

#[test]
fn any_two_properties_of_a_machine_go_together() {
    all_is_right(&soak("", &["--pairwise", "--seed", "1"]));
}

#[test]
fn any_two_properties_of_a_guest_that_moves_go_together() {
    all_is_right(&soak("", &["--migrate", "--pairwise", "--seed", "1"]));
}

/// The full rate, and a guest that is sent slowly enough to write between the look and the clear.
#[test]
fn lost_pages_of_a_guest_that_moves_are_caught() {
    let kvm = no_kvm().is_none();
    let tracker = if kvm { "log" } else { "wp-async" };
    let case = format!("tracker={tracker},rate=unlimited,memory=32M,moves=");
    let trial = Trial { case };
    trial.catches(&["break-skip-dirty-page"]);
    if kvm {
        trial.catches(&["break-clear-after-read"]);
    } else {
        println!("skipped without KVM: break-clear-after-read, for only KVM's log is cleared");
    }
}

/// A machine at full speed on 2 vCPUs, which is right, and how often it may take to be wrong.
struct Trial {
    /// All but the number that it ends with.
    case: String,
}

/// What is right is so in each of the few; what is broken has many to be caught in.
const FEW: u32 = 4;
const MANY: u32 = 20;

impl Trial {
    /// `None`, and the reason printed, where nothing can be frozen.
    fn new(what: &str) -> Option<Self> {
        let host = Host::probe(&Fallbacks::default());
        if !host.can_freeze() {
            println!("skipped: this process may not use userfaultfd");
            return None;
        }
        let accel = if no_kvm().is_none() && host.userfault == Userfault::Full {
            "kvm"
        } else {
            println!("threads instead of KVM, which cannot be used here");
            "threads"
        };
        let case = format!("accel={accel},cpus=2,rate=unlimited,{what}");
        Some(Self { case })
    }

    /// It is right, and broken in this way it is not.
    #[track_caller]
    fn catches(&self, sabotages: &[&str]) {
        let case = |times| format!("{}{times}", self.case);
        all_is_right(&soak("", &["--case", &case(FEW)]));
        let args = ["--case", &case(MANY)];
        for sabotage in sabotages {
            let output = soak(sabotage, &args);
            let said = text(&output.stdout);
            assert_eq!(
                output.status.code(),
                Some(1),
                "{sabotage}: not caught\n{said}"
            );
            // A wrong page, or an error that comes of one; the machine as such was right above.
            assert!(said.contains("not right: "), "{sabotage}: {said}");
            let again = format!("PAGURO_FORCE={sabotage} paguro soak --case ");
            assert!(said.contains(&again), "{said}");
        }
    }
}

const COPYING: &str = "memory=64M,restore=eager,chunk=64K,pattern=random,snapshots=";

#[test]
fn a_broken_copy_is_caught() {
    if let Some(trial) = Trial::new(COPYING) {
        trial.catches(&[
            "break-release-before-copy",
            "break-claim-twice",
            "break-skip-page",
        ]);
    }
}

/// Small chunks: what is copied with its neighbours hides that it was not protected. What is armed too early
/// is seen where that can be arranged: in `dirty`.
#[test]
fn a_broken_rearming_is_caught() {
    let what = "memory=128M,restore=eager,chunk=4K,pattern=random,snapshots=";
    if let Some(trial) = Trial::new(what) {
        trial.catches(&["break-no-rearm"]);
    }
}

/// The device's counter is in its saved state, and RAM must agree with it.
#[test]
fn devices_that_are_saved_too_late_are_caught() {
    if let Some(trial) = Trial::new(&format!("dma=read,{COPYING}")) {
        trial.catches(&["break-devices-after-freeze"]);
    }
}

/// Each return is saved while it fills, and its guest writes what arrives.
#[test]
fn pages_that_arrive_unprotected_are_caught() {
    let what = "snapshots=1,memory=64M,restore=lazy,pattern=random,returns=";
    if let Some(trial) = Trial::new(what) {
        trial.catches(&["break-place-unprotected"]);
    }
}
