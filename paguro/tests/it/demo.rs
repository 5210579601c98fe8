//! `paguro demo`: what it prints, what it says where it cannot, and that it can fail.

use std::process::Output;

use paguro_sys::{Fallbacks, Host};
use serde_json::Value;

use crate::machine::{paguro, text, turn};

fn demo(force: &str, args: &[&str]) -> Output {
    let _turn = turn();
    let mut command = paguro(std::iter::once(&"demo").chain(args));
    if !force.is_empty() {
        command.env("PAGURO_FORCE", force);
    }
    command.output().unwrap()
}

/// Whether it can run here; the reason is printed if not.
fn can_freeze() -> bool {
    let can = Host::probe(&Fallbacks::default()).can_freeze();
    if !can {
        println!("skipped: this process may not use userfaultfd");
    }
    can
}

#[test]
fn the_demo_shows_a_table_and_that_all_is_right() {
    if !can_freeze() {
        return;
    }
    let output = demo("", &[]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    for row in [
        "guest-observed pause",
        "guest time lost",
        "longest stall",
        "write rate",
        "bytes saved",
        "zero pages",
        "faults",
        "extra memory",
        "first instruction",
        "pages checked, 0 wrong",
    ] {
        assert!(said.contains(row), "{row} is missing: {said}");
    }
}

#[test]
fn without_faults_of_the_kernel_the_demo_says_what_to_do_and_runs_in_threads() {
    if !can_freeze() {
        return;
    }
    let output = demo("user-mode-only", &["--json"]);
    let (said, noted) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}{noted}");
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(json["accel"], "threads");
    assert_eq!(
        (&json["wrong"], &json["problems"]),
        (&0.into(), &Value::Array(vec![]))
    );
    for number in [
        "pages_checked",
        "rate_before",
        "normal_pages",
        "first_instruction_us",
    ] {
        assert!(json[number].as_u64().unwrap() > 0, "{number}: {said}");
    }
    assert!(noted.contains("--accel threads"), "{noted}");
}

#[test]
fn without_userfaultfd_the_demo_says_what_to_do() {
    let output = demo("no-userfaultfd", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("hint: run as root"));
}

#[test]
fn a_demo_with_a_wrong_page_fails() {
    if !can_freeze() {
        return;
    }
    let output = demo("break-skip-page", &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    // It may be one that the guest cannot run without.
    if said.contains("the guest makes no progress") {
        return;
    }
    let json: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert!(json["wrong"].as_u64().unwrap() > 0, "{json}");
    assert!(said.contains("pages are wrong"), "{said}");
}
