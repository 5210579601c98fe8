//! QMP itself: values without newlines, in pieces, garbage, ids, negotiation, arguments.

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::raw::Raw;

fn machine() -> (tempfile::TempDir, Machine) {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run(dir.path(), &["--paused"]);
    (dir, machine)
}

fn error(class: &str, desc: &str) -> Value {
    json!({ "error": { "class": class, "desc": desc } })
}

#[test]
fn the_greeting_names_a_version() {
    let (_dir, machine) = machine();
    let greeting = &Raw::connect(machine.socket()).greeting["QMP"];
    assert!(greeting["version"]["qemu"]["major"].is_u64(), "{greeting}");
    assert!(
        greeting["version"]["package"]
            .as_str()
            .unwrap()
            .starts_with("paguro")
    );
    assert_eq!(greeting["capabilities"], json!([]));
}

#[test]
fn negotiation_comes_first_and_once() {
    let (_dir, machine) = machine();
    let mut qmp = Raw::connect(machine.socket());
    let class = |answer: Value| answer["error"]["class"].clone();
    assert_eq!(class(qmp.ask("query-status", json!({}))), "CommandNotFound");
    let other = json!({ "enable": ["oob"] });
    assert_eq!(class(qmp.ask("qmp_capabilities", other)), "GenericError");
    let none = json!({ "enable": [] });
    assert_eq!(qmp.ask("qmp_capabilities", none), json!({ "return": {} }));
    let again = qmp.ask("qmp_capabilities", json!({}));
    assert_eq!(class(again), "CommandNotFound");
    // The next client starts anew.
    drop(qmp);
    let mut qmp = Raw::connect(machine.socket());
    assert_eq!(class(qmp.ask("query-status", json!({}))), "CommandNotFound");
}

#[test]
fn values_need_no_newline_and_may_come_in_single_bytes() {
    let (_dir, machine) = machine();
    let mut qmp = Raw::negotiated(machine.socket());
    for byte in br#"{"execute":"query-name","id":"}{"}{"execute":"query-status","id":2}"# {
        qmp.send(&[*byte]);
    }
    assert_eq!(
        qmp.answer(),
        json!({ "return": { "name": "paguro" }, "id": "}{" })
    );
    let status = json!({ "running": false, "status": "prelaunch" });
    assert_eq!(qmp.answer(), json!({ "return": status, "id": 2 }));
}

#[test]
fn garbage_is_answered_and_the_next_command_done() {
    let (_dir, machine) = machine();
    let mut qmp = Raw::negotiated(machine.socket());
    let deep = "[".repeat(1000) + &"]".repeat(1000);
    for garbage in [
        "hello\n",
        "}\n",
        "{]\n",
        "{\"execute\" \"stop\"}",
        "{\"execute\":\"st\nop\"}\n",
        "\u{fffe}\n",
        "[1, 2]",
        "\"text\"",
        &deep,
    ] {
        qmp.send(garbage.as_bytes());
        qmp.send(br#"{"execute":"query-name","id":1}"#);
        let mut answers = vec![qmp.answer()];
        while answers.last().unwrap().get("id").is_none() {
            answers.push(qmp.answer());
        }
        assert_eq!(
            answers.pop().unwrap()["return"]["name"],
            "paguro",
            "{garbage:?}"
        );
        assert!(!answers.is_empty(), "{garbage:?} went unanswered");
        for answer in answers {
            assert_eq!(answer["error"]["class"], "GenericError", "{garbage:?}");
        }
    }
}

#[test]
fn ids_of_any_type_come_back_and_none_where_there_was_none() {
    let (_dir, machine) = machine();
    let mut qmp = Raw::negotiated(machine.socket());
    for id in [json!(7), json!("x"), json!({ "a": [1, null] }), json!(null)] {
        qmp.send(
            json!({ "execute": "nope", "id": id })
                .to_string()
                .as_bytes(),
        );
        let mut expected = error("CommandNotFound", "The command nope has not been found");
        expected["id"] = id;
        assert_eq!(qmp.answer(), expected);
    }
    qmp.send(br#"{"execute":"query-migrate"}"#);
    assert_eq!(qmp.answer(), json!({ "return": {} }));
}

#[test]
fn requests_that_are_none_are_named() {
    let (_dir, machine) = machine();
    let mut qmp = Raw::negotiated(machine.socket());
    for (request, desc) in [
        (json!({}), "QMP input lacks member 'execute'"),
        (
            json!({ "execute": 3 }),
            "QMP input member 'execute' must be a string",
        ),
        (
            json!({ "execute": "stop", "arguments": [] }),
            "QMP input member 'arguments' must be an object",
        ),
        (
            json!({ "execute": "stop", "more": 1 }),
            "QMP input member 'more' is unexpected",
        ),
        (
            json!({ "execute": "stop", "arguments": { "x": 1 } }),
            "Parameter 'x' is unexpected",
        ),
        (
            json!({ "execute": "migrate", "arguments": { "uri": 3 } }),
            "Invalid parameter type for 'uri', expected: string",
        ),
        (
            json!({ "execute": "migrate", "arguments": { "uri": "file:/x", "y": 1 } }),
            "Parameter 'y' is unexpected",
        ),
        (
            json!({ "execute": "migrate-set-capabilities" }),
            "Parameter 'capabilities' is missing",
        ),
        (
            json!({ "execute": "migrate-set-capabilities", "arguments": { "capabilities": [{ "capability": "events" }] } }),
            "Parameter 'capabilities[0].state' is missing",
        ),
        (
            json!({ "execute": "migrate-set-parameters", "arguments": { "multifd-channels": 0 } }),
            "Parameter 'multifd-channels' expects a value between 1 and 64",
        ),
    ] {
        qmp.send(request.to_string().as_bytes());
        assert_eq!(qmp.answer(), error("GenericError", desc), "{request}");
    }
}

#[test]
fn every_command_that_is_listed_exists() {
    let (_dir, machine) = machine();
    let mut qmp = machine.connect();
    let list = qmp.execute("query-commands", json!({}));
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["name"])
        .collect();
    for name in [
        "qmp_capabilities",
        "query-status",
        "stop",
        "cont",
        "quit",
        "query-version",
        "query-commands",
        "migrate-set-capabilities",
        "query-migrate-capabilities",
        "migrate-set-parameters",
        "query-migrate-parameters",
        "migrate",
        "migrate_cancel",
        "query-migrate",
    ] {
        assert!(
            names.iter().any(|listed| *listed == name),
            "{name} is not listed"
        );
    }
    for name in names
        .iter()
        .filter_map(|name| name.as_str())
        .filter(|name| *name != "qmp_capabilities")
    {
        // An argument that no command takes: refused by the command, so it is there.
        let (class, desc) = qmp.refused(name, json!({ "no-such-argument": 1 }));
        assert_eq!(class, "GenericError", "{name}: {desc}");
    }
}

#[test]
fn capabilities_are_all_off_and_set_together_or_not_at_all() {
    let (_dir, machine) = machine();
    let mut qmp = machine.connect();
    let off = json!([
        { "capability": "auto-converge", "state": false },
        { "capability": "background-snapshot", "state": false },
        { "capability": "dirty-limit", "state": false },
        { "capability": "events", "state": false },
        { "capability": "mapped-ram", "state": false },
        { "capability": "multifd", "state": false },
        { "capability": "pause-before-switchover", "state": false },
        { "capability": "return-path", "state": false },
        { "capability": "xbzrle", "state": false },
    ]);
    assert_eq!(qmp.execute("query-migrate-capabilities", json!({})), off);
    let both = json!({ "capabilities": [
        { "capability": "events", "state": true },
        { "capability": "background-snapshot", "state": true },
        { "capability": "postcopy-ram", "state": true },
    ] });
    let (class, desc) = qmp.refused("migrate-set-capabilities", both);
    assert_eq!(class, "GenericError");
    assert_eq!(
        desc,
        "background-snapshot is not compatible with postcopy-ram"
    );
    assert_eq!(qmp.execute("query-migrate-capabilities", json!({})), off);
    qmp.set(&[("events", true)]);
    let now = qmp.execute("query-migrate-capabilities", json!({}));
    assert_eq!(now[3], json!({ "capability": "events", "state": true }));
}

#[test]
fn parameters_are_set_together_or_not_at_all() {
    let (_dir, machine) = machine();
    let mut qmp = machine.connect();
    let before = qmp.execute("query-migrate-parameters", json!({}));
    assert_eq!(before["max-bandwidth"], 0);
    let (_, desc) = qmp.refused(
        "migrate-set-parameters",
        json!({ "max-bandwidth": 1000, "x-paguro-chunk-size": 12345 }),
    );
    assert!(desc.contains("power of two"), "{desc}");
    assert_eq!(qmp.execute("query-migrate-parameters", json!({})), before);
    let initial =
        json!({ "max-bandwidth": 1000, "cpu-throttle-initial": 60, "max-cpu-throttle": 50 });
    let (_, desc) = qmp.refused("migrate-set-parameters", initial);
    assert!(desc.contains("cpu-throttle-initial"), "{desc}");
    assert_eq!(qmp.execute("query-migrate-parameters", json!({})), before);
    let new = json!({
        "max-bandwidth": 1000,
        "multifd-channels": 3,
        "downtime-limit": 50,
        "avail-switchover-bandwidth": 5000,
        "cpu-throttle-initial": 30,
        "cpu-throttle-increment": 5,
        "max-cpu-throttle": 80,
        "cpu-throttle-tailslow": true,
        "throttle-trigger-threshold": 70,
        "mode": "cpr-transfer",
        "vcpu-dirty-limit": 7,
        "x-vcpu-dirty-limit-period": 500,
        "multifd-compression": "zstd",
        "multifd-zstd-level": 3,
        "xbzrle-cache-size": 1 << 20,
        "tls-creds": "/etc/pki",
        "tls-hostname": "there",
        "x-paguro-convergence-timeout": 60,
        "x-paguro-at-timeout": "switchover",
        "x-paguro-silence": 1500,
        "x-paguro-page-buffer": 1 << 20,
        "x-paguro-chunk-size": 65536,
        "x-paguro-checksums": false,
        "x-paguro-huge-pages": "split",
        "x-paguro-check-freeze": true,
        "x-paguro-sync": false,
        "x-paguro-arm-in-pause": true,
        "x-paguro-pause-sleep-us": 20000,
        // What only QEMU has, as it has it.
        "announce-initial": 50,
        "announce-max": 550,
        "announce-rounds": 5,
        "announce-step": 100,
        "direct-io": false,
        "max-postcopy-bandwidth": 0,
        "multifd-qatzip-level": 1,
        "multifd-zlib-level": 1,
        "tls-authz": "",
        "x-checkpoint-delay": 20000,
        "zero-page-detection": "multifd",
    });
    qmp.execute("migrate-set-parameters", new.clone());
    assert_eq!(qmp.execute("query-migrate-parameters", json!({})), new);
    // What is broken on purpose is so from the start (`PAGURO_FORCE`), or never.
    let broken = json!({ "x-paguro-sabotage": "break-skip-page" });
    let (_, desc) = qmp.refused("migrate-set-parameters", broken);
    assert!(desc.contains("'x-paguro-sabotage' is unexpected"), "{desc}");
}

#[test]
fn stop_and_cont_tell_their_events_with_a_timestamp() {
    let (_dir, machine) = machine();
    let mut qmp = machine.connect();
    qmp.execute("cont", json!({}));
    let events = qmp.events_until("RESUME");
    assert!(events[0]["timestamp"]["seconds"].is_u64(), "{events:?}");
    assert!(
        events[0]["timestamp"]["microseconds"].is_u64(),
        "{events:?}"
    );
    let status = json!({ "running": true, "status": "running" });
    assert_eq!(qmp.execute("query-status", json!({})), status);
    // Once more is no error, and no event.
    qmp.execute("cont", json!({}));
    qmp.execute("stop", json!({}));
    qmp.execute("stop", json!({}));
    let names: Vec<_> = qmp
        .events_until("STOP")
        .iter()
        .map(|event| event["event"].clone())
        .collect();
    assert_eq!(names, ["STOP"]);
    let status = json!({ "running": false, "status": "paused" });
    assert_eq!(qmp.execute("query-status", json!({})), status);
}

#[test]
fn quit_is_answered_and_ends_the_program_with_0() {
    let (_dir, machine) = machine();
    let mut qmp = machine.connect();
    let socket = machine.socket().to_owned();
    assert_eq!(qmp.execute("quit", json!({})), json!({}));
    let events = qmp.events_until("SHUTDOWN");
    assert_eq!(
        events[0]["data"],
        json!({ "guest": false, "reason": "host-qmp-quit" })
    );
    assert_eq!(qmp.event_or_end(), None);
    let (status, said) = machine.wait();
    assert!(status.success(), "{said}");
    assert!(!socket.exists(), "the socket stays behind");
}
