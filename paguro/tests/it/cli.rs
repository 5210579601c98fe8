//! The command line: help, and what makes no sense.

use crate::machine::{output, paguro, text, turn};

fn help(args: &[&str]) -> String {
    let output = output(args);
    assert!(output.status.success(), "{args:?}");
    text(&output.stdout)
}

#[test]
fn help_teaches_by_examples() {
    for (args, words) in [
        (
            &["--help"][..],
            &[
                "run",
                "snapshot",
                "migrate",
                "restore",
                "inspect",
                "bench",
                "soak",
                "demo",
                "Examples:",
            ][..],
        ),
        (
            &["run", "--help"],
            &[
                "--name",
                "--kernel",
                "--cmdline",
                "--memory",
                "--cpus",
                "--backing",
                "--pages",
                "--accel",
                "--workload",
                "--qmp",
                "--serial",
                "--restore",
                "--incoming",
                "--restore-mode",
                "--prefetch",
                "--paused",
                "--check-freeze",
                "Examples:",
            ],
        ),
        (&["restore", "--help"], &["--restore-mode", "Examples:"]),
        (
            &["snapshot", "--help"],
            &["--qmp", "--json", "pause_us", "Examples:"],
        ),
        (
            &["migrate", "--help"],
            &["--qmp", "--json", "downtime_us", "--timeout", "Examples:"],
        ),
        (&["inspect", "--help"], &["--verify", "--json", "Examples:"]),
        (&["bench", "snapshot", "--help"], &["--quick", "--json"]),
        (
            &["soak", "--help"],
            &["--minutes", "--seed", "--failures", "--from"],
        ),
    ] {
        let text = help(args);
        for word in words {
            assert!(text.contains(word), "{args:?}: {word} is not in: {text}");
        }
    }
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for args in [
        &["run", "--memory", "12MB"][..],
        &["run", "--cpus", "0"],
        &["run", "--qmp", "tcp:1:2"],
        &["run", "--workload", "pattern=spiral"],
        &["run", "--x-dma", "direct=on"],
        &["run", "--prefetch", "fast"],
        &["run", "--cmdline", "x"],
        &["snapshot", "file"],
        &["run", "--incoming", "carrier-pigeon:1"],
        &["run", "--incoming", "defer", "--restore", "file"],
        &["migrate", "tcp:127.0.0.1:1"],
        &["migrate", "--qmp", "unix:/x", "tcp:127.0.0.1"],
        &["frobnicate"],
        &[],
    ] {
        let output = output(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn too_little_memory_is_refused() {
    let output = output(["run", "--accel", "threads", "--memory", "512"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("512 bytes of RAM"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn what_cannot_be_forced_is_an_error_that_lists_what_can() {
    let output = paguro(["inspect", "x"])
        .env("PAGURO_FORCE", "no-gravity")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in ["no-gravity", "no-pagemap-scan", "break-skip-page"] {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn a_guest_that_resets_ends_the_program_with_0() {
    let _turn = turn();
    let args = [
        "run",
        "--accel",
        "threads",
        "--memory",
        "16M",
        "--workload",
        "writes=10",
    ];
    let output = output(args);
    assert!(output.status.success(), "{}", text(&output.stderr));
}
