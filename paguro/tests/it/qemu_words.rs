//! What clients of QEMU may say and what they are answered, word by word: where paguro differs, `QMP.md`
//! says so, and lists nothing besides.
//!
//! QEMU's words stand in `qemu-10.0.words`, which is compared with a real one where there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use paguro_testkit::skipped;
use serde_json::{Value, json};

use crate::machine::{Machine, Qmp, turn};
use crate::raw::Raw;

const WORDS: &str = include_str!("qemu-10.0.words");
const DEVIATIONS: &str = include_str!("../../QMP.md");

/// A member of what a command takes or answers.
struct Member<'a> {
    command: &'a str,
    is_input: bool,
    path: &'a str,
    optional: bool,
    kind: &'a str,
    default: Option<Value>,
}

fn members(words: &'static str) -> Vec<Member<'static>> {
    let lines = words.lines().filter(|line| !line.starts_with('#'));
    let member = |line: &'static str| {
        let parts: Vec<&str> = line.splitn(5, ' ').collect();
        let path = parts[2].trim_end_matches('?');
        Member {
            command: parts[0],
            is_input: parts[1] == "in",
            path,
            optional: path != parts[2],
            kind: parts[3],
            default: parts.get(4).map(|text| serde_json::from_str(text).unwrap()),
        }
    };
    lines.map(member).collect()
}

impl Member<'_> {
    /// Values that QEMU takes.
    fn values(&self) -> Vec<Value> {
        match self.kind {
            "bool" => vec![json!(false), json!(true)],
            "str" => vec![json!("a")],
            "null/str" => vec![Value::Null, json!("")],
            "number" => match (&self.default, self.path) {
                (Some(default), path) => {
                    let number = default.as_u64().unwrap();
                    let other = match number {
                        _ if path.ends_with("-size") => number * 2,
                        0 | 1 => number + 1,
                        _ => number - 1,
                    };
                    vec![default.clone(), json!(other)]
                }
                (None, "sample-pages") => vec![json!(512)],
                (None, _) => vec![json!(50)],
            },
            values => values.split('|').map(Value::from).collect(),
        }
    }

    /// How a deviation is called.
    fn name(&self, value: &Value) -> String {
        let value = match value {
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        match (self.command, self.kind) {
            ("migrate-set-capabilities", _) => format!("capability {value}"),
            ("migrate-set-parameters", "number") => format!("parameter {}", self.path),
            ("migrate-set-parameters", _) => format!("parameter {}={value}", self.path),
            (command, "number" | "str") => format!("{command} {}", self.path),
            (command, _) => format!("{command} {}={value}", self.path),
        }
    }
}

/// Whether the words as such are not taken, whatever the machine could do.
fn is_refused(answer: &Value) -> bool {
    let desc = answer["error"]["desc"].as_str().unwrap_or_default();
    let refusals = [
        "is unexpected",
        "does not accept value",
        "Invalid parameter type",
        "expects",
        "is not supported by paguro",
        "is not offered",
    ];
    answer["error"]["class"] == "CommandNotFound" || refusals.iter().any(|part| desc.contains(part))
}

/// All of an answer.
fn answer(qmp: &mut Qmp, command: &str, arguments: Value) -> Value {
    match qmp.ask(command, arguments) {
        Ok(answer) => json!({ "return": answer }),
        Err((class, desc)) => json!({ "error": { "class": class, "desc": desc } }),
    }
}

/// Says it with that value; the answer.
fn say(mut ask: impl FnMut(&str, Value) -> Value, member: &Member<'_>, value: &Value) -> Value {
    let (command, path) = (member.command, member.path);
    let mut arguments = match command {
        "calc-dirty-rate" => json!({ "calc-time": 50 }),
        // Nobody is there: it fails in a thread of its own.
        "migrate" => json!({ "uri": "unix:/nowhere/at/all" }),
        _ => json!({}),
    };
    let addr = |transport: &str| match transport {
        "socket" => json!({ "transport": "socket", "type": "unix", "path": "/nowhere/at/all" }),
        "exec" => json!({ "transport": "exec", "args": ["/nowhere/at/all"] }),
        "file" => json!({ "transport": "file", "filename": "/nowhere/at/all", "offset": 0 }),
        other => json!({ "transport": other, "host": "nowhere", "port": "1" }),
    };
    let channels = |kind: &str, transport: &str| {
        let mut all = vec![json!({ "channel-type": "main", "addr": addr(transport) })];
        if kind != "main" {
            all.push(json!({ "channel-type": kind, "addr": addr("socket") }));
        }
        json!({ "channels": all })
    };
    let text = value.as_str().unwrap_or_default();
    match path {
        "channels[].channel-type" => arguments = channels(text, "socket"),
        "channels[].addr.transport" => arguments = channels("main", text),
        "capabilities[].capability" => {
            arguments = json!({ "capabilities": [{ "capability": value, "state": true }] });
        }
        "capabilities[].state" => {
            arguments = json!({ "capabilities": [{ "capability": "events", "state": value }] });
        }
        "enable[]" => arguments = json!({ "enable": [value] }),
        path => arguments[path] = value.clone(),
    }
    let answer = ask(command, arguments.clone());
    if command == "migrate-set-capabilities" {
        // Off again, which is always taken.
        arguments["capabilities"][0]["state"] = false.into();
        assert_eq!(ask(command, arguments)["return"], json!({}), "{value}");
    }
    answer
}

/// The members of an answer, as paths.
fn flatten<'a>(value: &'a Value, path: String, into: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                if !name.starts_with("x-paguro-") {
                    let dot = if path.is_empty() { "" } else { "." };
                    flatten(value, format!("{path}{dot}{name}"), into);
                }
            }
        }
        Value::Array(list) => {
            let item = format!("{path}[]");
            list.iter()
                .for_each(|value| flatten(value, item.clone(), into));
        }
        value => into.push((path, value)),
    }
}

fn is_of_kind(value: &Value, kind: &str) -> bool {
    match kind {
        "bool" => value.is_boolean(),
        "number" => value.is_number(),
        "str" => value.is_string(),
        values => value.as_str().is_some_and(|text| {
            text.starts_with("x-paguro-") || values.split('|').any(|known| known == text)
        }),
    }
}

/// What of an answer QEMU would not say, or would say besides.
fn compare(command: &str, answer: &Value, members: &[Member<'_>], found: &mut BTreeSet<String>) {
    let mut said = Vec::new();
    flatten(answer, String::new(), &mut said);
    let known: BTreeMap<String, &Member<'_>> = members
        .iter()
        .filter(|member| !member.is_input && member.command == command)
        .map(|member| {
            // The cases of a union have one place.
            let mut parts = member.path.split('=');
            let first = parts.next().unwrap_or_default();
            let rest = parts.next().and_then(|case| case.split_once('.'));
            let path = rest.map_or(first.to_owned(), |(_, rest)| format!("{first}.{rest}"));
            (path, member)
        })
        .collect();
    for (path, value) in &said {
        match known.get(path) {
            Some(member) if is_of_kind(value, member.kind) => {}
            _ => {
                found.insert(format!("{command} {path}"));
            }
        }
    }
    for (path, member) in known {
        let is_said = said.iter().any(|(said, _)| *said == path);
        if !member.optional && !is_said && !answer.as_array().is_some_and(Vec::is_empty) {
            found.insert(format!("{command} {path}"));
        }
    }
}

#[test]
fn where_qmp_differs_from_that_of_qemu_is_listed() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_in_turn(dir.path(), &["--paused"]);
    let members = members(WORDS);
    let mut found = BTreeSet::new();
    let mut qmp = machine.connect();
    for member in members.iter().filter(|member| member.is_input) {
        let is_nested = member.path.contains('=')
            || (member.path.contains("[]") && member.command == "migrate-set-parameters");
        if is_nested {
            continue;
        }
        for value in member.values() {
            // A client at a time: that one is no longer there, or not yet.
            if member.command == "qmp_capabilities" {
                drop(qmp);
                let mut unready = Raw::connect(machine.socket());
                if is_refused(&say(
                    |command, arguments| unready.ask(command, arguments),
                    member,
                    &value,
                )) {
                    found.insert(member.name(&value));
                }
                drop(unready);
                qmp = machine.connect();
                continue;
            }
            let answer = say(
                |command, arguments| answer(&mut qmp, command, arguments),
                member,
                &value,
            );
            if is_refused(&answer) {
                found.insert(member.name(&value));
            }
            if member.command == "migrate" && answer.get("return").is_some() {
                qmp.migration_end();
            }
        }
    }
    // After one that went well.
    let plain = json!({ "mode": "normal", "multifd-compression": "none" });
    qmp.execute("migrate-set-parameters", plain);
    qmp.execute("migrate", json!({ "uri": "exec:cat >/dev/null" }));
    qmp.migration_end();
    for command in [
        "query-migrate",
        "query-migrate-parameters",
        "query-migrate-capabilities",
    ]
    .into_iter()
    .chain([
        "query-dirty-rate",
        "query-kvm",
        "query-name",
        "query-status",
        "query-version",
    ]) {
        let answer = qmp.execute(command, json!({}));
        compare(command, &answer, &members, &mut found);
    }
    // QEMU tells all parameters, always.
    let all = qmp.execute("query-migrate-parameters", json!({}));
    let parameters = members
        .iter()
        .filter(|member| member.is_input && member.command == "migrate-set-parameters");
    for member in parameters.filter(|member| member.default.is_some()) {
        if all.get(member.path).is_none() {
            found.insert(format!("parameter {}", member.path));
        }
    }
    // The first column; several names of a row are separated by commas.
    let rows = DEVIATIONS.lines().filter(|line| line.starts_with("| `"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split(','));
    let listed: BTreeSet<String> = names
        .map(|name| name.trim().trim_matches('`').to_owned())
        .collect();
    let unlisted: Vec<_> = found.difference(&listed).collect();
    let stale: Vec<_> = listed.difference(&found).collect();
    assert!(unlisted.is_empty(), "not in QMP.md: {unlisted:#?}");
    assert!(stale.is_empty(), "in QMP.md, and not so: {stale:#?}");
}

/// What clients of older versions say, and do not mean.
#[test]
fn what_older_clients_do_not_want_is_taken() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_in_turn(dir.path(), &["--paused"]);
    let greeting = Raw::connect(machine.socket()).greeting;
    assert_eq!(greeting["QMP"]["version"]["qemu"]["major"], 10);
    let mut qmp = machine.connect();
    qmp.set(&[("compress", false), ("block", false)]);
    qmp.execute(
        "migrate-set-parameters",
        json!({ "tls-creds": null, "tls-hostname": null }),
    );
    let to = "unix:/nowhere/at/all";
    let arguments = json!({ "uri": to, "blk": false, "inc": false, "detach": false });
    qmp.execute("migrate", arguments);
    qmp.migration_end();
    let (_, desc) = qmp.refused("migrate", json!({ "uri": to, "blk": true }));
    assert!(desc.contains("disks are not migrated"), "{desc}");
}

/// A real QEMU of that version, by `PAGURO_TEST_QEMU` or as it is installed; its schema.
fn schema() -> Result<Vec<Value>, String> {
    let program = std::env::var("PAGURO_TEST_QEMU");
    let program = program.unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    let mut command = Command::new(&program);
    command.args([
        "-machine",
        "none",
        "-nodefaults",
        "-display",
        "none",
        "-qmp",
        "stdio",
    ]);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let (mut to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = BufReader::new(from).lines();
    let mut next = || -> Result<Value, String> {
        let line = lines
            .next()
            .ok_or("it ended")?
            .map_err(|error| error.to_string())?;
        serde_json::from_str(&line).map_err(|error| error.to_string())
    };
    let greeting = next()?;
    let version = &greeting["QMP"]["version"]["qemu"];
    let is_meant = version["major"] == 10 && version["minor"] == 0;
    let mut schema = Vec::new();
    for command in ["qmp_capabilities", "query-qmp-schema", "quit"] {
        writeln!(to, "{}", json!({ "execute": command })).map_err(|error| error.to_string())?;
        let answer = next()?;
        if command == "query-qmp-schema" {
            schema = answer["return"].as_array().cloned().unwrap_or_default();
        }
    }
    child.wait().map_err(|error| error.to_string())?;
    if is_meant {
        Ok(schema)
    } else {
        Err(format!("{program} is {version}, and not 10.0"))
    }
}

/// The type of a member in the schema.
fn kind<'a>(types: &BTreeMap<&'a str, &'a Value>, name: &str) -> String {
    let names = |list: &Value, member: fn(&Value) -> &Value| {
        let list = list.as_array().unwrap().iter();
        list.map(|one| member(one).as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    match types[name]["meta-type"].as_str().unwrap() {
        "builtin" => match types[name]["name"].as_str().unwrap() {
            "int" | "number" => "number".to_owned(),
            other => other.to_owned(),
        },
        "enum" => names(&types[name]["values"], |value| value).join("|"),
        "alternate" => {
            let members = names(&types[name]["members"], |member| &member["type"]);
            let mut kinds: Vec<_> = members.iter().map(|member| kind(types, member)).collect();
            kinds.sort();
            kinds.join("/")
        }
        "array" => kind(types, types[name]["element-type"].as_str().unwrap()),
        other => other.to_owned(),
    }
}

/// Members that are directly in what a command takes or answers.
#[test]
fn the_words_of_qemu_are_those_of_a_real_one() {
    let schema = match schema() {
        Ok(schema) => schema,
        Err(why) => return skipped(why),
    };
    let names = schema
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one));
    let types: BTreeMap<_, _> = names.collect();
    for member in members(WORDS) {
        let command = types[member.command];
        let way = if member.is_input {
            "arg-type"
        } else {
            "ret-type"
        };
        let mut at = types[command[way].as_str().unwrap()];
        if at["meta-type"] == "array" {
            at = types[at["element-type"].as_str().unwrap()];
        }
        let first = member.path.trim_start_matches("[].");
        let (name, is_nested) = match first.find(['.', '[', '=']) {
            Some(end) => (&first[..end], true),
            None => (first, false),
        };
        let all = at["members"].as_array().unwrap();
        let found = all.iter().find(|one| one["name"] == name);
        let found = found.unwrap_or_else(|| panic!("{} has no {name}", member.command));
        if !is_nested {
            let kind = kind(&types, found["type"].as_str().unwrap());
            assert_eq!(kind, member.kind, "{} {name}", member.command);
            let optional = found.get("default").is_some();
            assert_eq!(optional, member.optional, "{} {name}", member.command);
        }
    }
}
