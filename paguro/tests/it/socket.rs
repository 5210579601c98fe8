//! The socket: whose turn it is, and what stands at its path already.

use paguro_testkit::{ends, run};
use serde_json::json;

use crate::machine::{Machine, output, text};
use crate::raw::Raw;

#[test]
fn a_second_client_waits_for_the_first_to_go() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run(dir.path(), &["--paused"]);
    let mut first = machine.connect();
    let socket = machine.socket().to_owned();
    let second = run(move || Raw::connect(&socket).greeting);
    // The first is served although the second waits.
    first.execute("query-status", json!({}));
    drop(first);
    assert!(ends(&second)["QMP"].is_object());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let machine = Machine::run(dir.path(), &["--paused"]);
    machine.connect();
    let address = machine.qmp_address();
    let args = [
        "run", "--accel", "threads", "--memory", "16M", "--qmp", &address,
    ];
    let second = output(args);
    let said = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another process listens there"), "{said}");
    // The first still has its socket.
    machine.connect();
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    std::fs::write(&path, "text").unwrap();
    let address = format!("unix:{}", path.display());
    let args = [
        "run", "--accel", "threads", "--memory", "16M", "--qmp", &address,
    ];
    let output = output(args);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no socket"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
}
