//! A destination that lies: whatever it says and whenever, the source runs on, is in doubt, or is
//! done, exactly as what it had sent itself makes it so.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use serde_json::json;

use crate::pair::{Tally, turn};
use crate::relay::{Place, Socket, without_breaths};
use crate::side::{Judged, Side};

const PING_1: [u8; 9] = [8, 0, 2, 0, 4, 0, 0, 0, 1];
const PONG_1: [u8; 8] = [0, 2, 0, 4, 0, 0, 0, 1];
const PING_2: [u8; 9] = [8, 0, 2, 0, 4, 0, 0, 0, 2];
const PONG_2: [u8; 8] = [0, 2, 0, 4, 0, 0, 0, 2];
const SHUT_0: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];
const SHUT_1: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 1];

/// What is said, and when.
#[derive(Clone, Debug)]
enum Lie {
    /// At once.
    First(Vec<u8>),
    /// When RAM has begun to come.
    InRam(Vec<u8>),
    /// When PING 2 has come.
    AtPing2(Vec<u8>),
    /// When EOF has come, after a PONG 2 that was due.
    AtEof(Vec<u8>),
}

/// Where the source ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    RunsOn,
    InDoubt,
    Done,
}

#[test]
fn a_destination_that_lies_never_costs_the_guest() {
    let garbage: Vec<u8> = (0..200u8)
        .map(|byte| byte.wrapping_mul(37) | 0x80)
        .collect();
    let long = [[0, 2, 0xff, 0xff].as_slice(), &[7; 64]].concat();
    let early = [PONG_2.as_slice(); 3].concat();
    let both = [PONG_2, SHUT_0].concat();
    let lies = [
        (Lie::First(garbage.clone()), End::RunsOn),
        (Lie::First(long.clone()), End::RunsOn),
        (Lie::First(SHUT_0.to_vec()), End::RunsOn),
        (Lie::First(both.clone()), End::RunsOn),
        (Lie::InRam(garbage.clone()), End::RunsOn),
        (Lie::InRam(SHUT_0.to_vec()), End::RunsOn),
        (Lie::InRam(SHUT_1.to_vec()), End::RunsOn),
        // PONG 2 before PING 2 was sent says nothing: silence follows.
        (Lie::InRam(early), End::RunsOn),
        (Lie::AtPing2(Vec::new()), End::RunsOn),
        (Lie::AtPing2(garbage.clone()), End::RunsOn),
        (Lie::AtPing2(SHUT_0.to_vec()), End::RunsOn),
        (Lie::AtPing2(SHUT_1.to_vec()), End::RunsOn),
        (Lie::AtPing2(vec![0, 2, 0, 4, 0, 0, 0, 3]), End::RunsOn),
        (Lie::AtEof(Vec::new()), End::InDoubt),
        (Lie::AtEof(garbage), End::InDoubt),
        (Lie::AtEof(long), End::InDoubt),
        (Lie::AtEof(PONG_2.to_vec()), End::InDoubt),
        (Lie::AtEof(SHUT_0[..5].to_vec()), End::InDoubt),
        (Lie::AtEof(SHUT_0.to_vec()), End::Done),
    ];
    let mut tally = Tally::default();
    for (number, (lie, end)) in lies.into_iter().enumerate() {
        if !crate::is_full() && number % 5 != 3 {
            continue;
        }
        let _turn = turn();
        let verdict = tell(&lie, end).map(|()| format!("{end:?}"));
        tally.add(&format!("{lie:02x?}"), verdict);
    }
    tally.end("destinations that lie");
}

fn tell(lie: &Lie, end: End) -> Judged {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("liar");
    let door = UnixListener::bind(&place).unwrap();
    let mut source = Side::source(None, "10000");
    source.must_have_written(1000)?;
    let uri = Place::Unix(place.clone()).uri();
    source.must("migrate", json!({ "uri": uri }))?;
    let (socket, _) = door.accept().map_err(|error| error.to_string())?;
    // Nobody can be asked later.
    drop(door);
    std::fs::remove_file(&place).unwrap();
    let socket = Socket::unix(socket);
    let own = (socket.clone(), lie.clone());
    let liar = std::thread::spawn(move || lies(&own.0, &own.1));
    let now = source.wait_for(&["failed", "completed", "x-paguro-in-doubt"]);
    socket.end();
    liar.join().unwrap();
    let now = now?;
    let found = match now["status"].as_str() {
        Some("failed") => End::RunsOn,
        Some("completed") => End::Done,
        _ => End::InDoubt,
    };
    if found != end {
        return Err(format!("{found:?}, not {end:?}: {now}"));
    }
    match end {
        End::RunsOn => {
            if now["error-desc"].as_str().is_none_or(str::is_empty) {
                return Err(format!("it does not say why: {now}"));
            }
        }
        End::InDoubt | End::Done => {
            source.must_stand("postmigrate")?;
            source.must_advise(&["`cont`"])?;
            source.must("cont", json!({}))?;
        }
    }
    source.must_run()
}

/// Takes the stream, and says it.
fn lies(socket: &Socket, lie: &Lie) {
    let mut all = Vec::new();
    let mut total = 0;
    let mut byte = [0; 1];
    let say = |bytes: &[u8]| drop(socket.write_all(bytes));
    if let Lie::First(bytes) = lie {
        say(bytes);
    }
    loop {
        let (more, over) = socket.read_some();
        all.extend_from_slice(&more);
        let keep = all.len().saturating_sub(64);
        // Whoever lies later is a good destination before: without a PONG nothing is finished.
        if let Lie::AtPing2(_) | Lie::AtEof(_) = lie {
            let new = all.len().saturating_sub(more.len() + PING_1.len() - 1);
            let pings = all[new..].windows(PING_1.len());
            pings
                .filter(|ping| *ping == PING_1)
                .for_each(|_| say(&PONG_1));
        }
        if let Lie::InRam(bytes) = lie
            && total > 8192
        {
            say(bytes);
            break;
        }
        if over {
            return;
        }
        if without_breaths(&all).ends_with(&PING_2) {
            match lie {
                Lie::AtPing2(bytes) => {
                    say(bytes);
                    break;
                }
                Lie::AtEof(bytes) => {
                    say(&PONG_2);
                    if socket.read_exact(&mut byte).is_ok() {
                        say(bytes);
                    }
                    break;
                }
                // It is silent from here on.
                Lie::First(_) | Lie::InRam(_) => break,
            }
        }
        total += more.len();
        all.drain(..keep);
    }
    // Takes what comes until the source has had enough.
    while !socket.read_rest(Duration::from_secs(1)).1 {}
}
