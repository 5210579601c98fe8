//! Machines of many kinds, and machines in which one thing is broken on purpose.
//!
//! `paguro soak` walks the full matrix; here is a selection in which every two properties meet,
//! once with a seed that never changes and once with a new one, which is printed.

use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::machine::{paguro, text, turn};

/// Runs `paguro soak`; whether it found nothing wrong, and what it printed.
fn soak(forced: &str, args: &[&str]) -> (bool, String) {
    let _turn = turn();
    let mut command = paguro(["soak"].iter().chain(args));
    if !forced.is_empty() {
        command.env("PAGURO_FORCE", forced);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let printed = text(&output.stdout) + &text(&output.stderr);
    (output.status.success(), printed)
}

/// Whether this process may run vCPUs and freeze their memory; says so if not.
fn can_freeze_kvm() -> bool {
    let open = |path| {
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .is_ok()
    };
    let can = open("/dev/kvm") && rustix::process::geteuid().is_root();
    if !can {
        println!("skipped: needs /dev/kvm, and root for the page faults that KVM takes");
    }
    can
}

#[test]
fn machines_of_all_kinds_in_pairs_come_back_right() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for seed in [1, u64::from(now.subsec_nanos())] {
        println!("seed {seed}");
        let (right, printed) = soak("", &["--pairwise", "--seed", &seed.to_string()]);
        println!("{printed}");
        assert!(right, "see the case that is not right above");
    }
}

/// Twenty snapshots of a machine in which one thing is broken: it must be noticed, by the oracle
/// or by a checksum, in nothing but the ordinary course of things.
fn is_noticed(broken: &str, case: &str) {
    if !can_freeze_kvm() {
        return;
    }
    let case = format!("accel=kvm,cpus=2,rate=unlimited,snapshots=20,{case}");
    let (right, printed) = soak(broken, &["--case", &case]);
    println!("{printed}");
    assert!(!right, "{broken} went unnoticed in 20 snapshots");
    assert!(printed.contains("not right"), "it ended for another reason");
}

#[test]
fn a_release_before_the_copy_is_noticed() {
    is_noticed("break-release-before-copy", "memory=64M,restore=eager");
}

#[test]
fn a_page_claimed_twice_is_noticed() {
    is_noticed("break-claim-twice", "memory=64M,restore=eager");
}

#[test]
fn a_last_look_before_the_readers_stand_still_is_noticed() {
    is_noticed(
        "break-rearm-before-barrier",
        "memory=256M,restore=eager,pattern=random",
    );
}

#[test]
fn a_last_look_that_is_left_out_is_noticed() {
    is_noticed("break-no-rearm", "memory=64M,restore=eager,pattern=random");
}

#[test]
fn device_state_of_another_moment_is_noticed() {
    is_noticed(
        "break-devices-after-freeze",
        "memory=64M,restore=eager,dma=read",
    );
}

#[test]
fn a_page_that_is_left_out_is_noticed() {
    is_noticed("break-skip-page", "memory=64M,restore=eager");
}

#[test]
fn a_page_placed_without_protection_is_noticed() {
    is_noticed("break-place-unprotected", "memory=64M,restore=lazy");
}
