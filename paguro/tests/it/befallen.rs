//! Signals, limits and full disks in the middle of the work: a few fixed cases of `paguro soak
//! --failures`, and whether it would notice.

use std::process::Output;

use paguro_sys::{Fallbacks, Host, Userfault};

use crate::machine::{paguro, text, turn};

/// Runs cases on what there is here, KVM or threads.
fn soak(force: &str, cases: &[&str]) -> Output {
    let _turn = turn();
    let host = Host::probe(&Fallbacks::default());
    let kvm = crate::migrating::has_kvm() && host.userfault == Userfault::Full;
    let accel = if kvm { "kvm" } else { "threads" };
    let cases = cases.iter().map(|case| format!("{case},accel={accel}"));
    let args = cases.flat_map(|case| ["--failure".to_owned(), case]);
    let mut command = paguro(std::iter::once("soak".to_owned()).chain(args));
    let output = command.env("PAGURO_FORCE", force).output().unwrap();
    println!("{}{}", text(&output.stdout), text(&output.stderr));
    output
}

#[test]
fn whatever_befalls_those_at_work_no_guest_is_lost() {
    let output = soak(
        "",
        &[
            "work=snapshot,fault=hup,to=machine,seed=1",
            "work=snapshot,fault=kill,to=client,seed=2",
            "work=snapshot,fault=file-size,to=machine,seed=3",
            "work=stopped,fault=disk-full,to=machine,seed=4",
            "work=stopped,fault=term-twice,to=client,seed=5",
            "work=file,fault=cgroup-pids,to=machine,seed=6",
            "work=restore,fault=stop-cont,to=machine,seed=7",
            "work=move,fault=kill,to=destination,seed=8",
            "work=move,fault=quit,to=machine,seed=9",
            "work=move,fault=descriptors,to=destination,seed=10",
        ],
    );
    let said = text(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    assert!(output.status.success(), "{said}");
    assert!(last.contains(" 0 wrong, 0 failed, "), "{last}");
    assert!(!last.contains(" 0 pages"), "{last}");
}

#[test]
fn a_lost_page_is_noticed_whatever_else_happens() {
    let cases = [1, 2, 3].map(|seed| format!("work=stopped,fault=alrm,to=client,seed={seed}"));
    let output = soak("break-skip-page", &cases.each_ref().map(String::as_str));
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("pages are wrong"), "{said}");
    let again = "to see it again: PAGURO_FORCE=break-skip-page paguro soak --failure 'work=";
    assert!(said.contains(again), "{said}");
}
