//! Two network namespaces joined by a veth as two hosts: slow, lossy and far apart, and a link that
//! is taken down. `tc tbf` limits the rate, nftables loses packets, the relay delays.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::cuts::{Phase, judge};
use crate::pair::{Pair, Tally, turn};
use crate::relay::{Act, At, Place};
use crate::rng::seeded;

const SOURCE: &str = "paguro-test-a";
const DESTINATION: &str = "paguro-test-b";

/// Two namespaces, gone when dropped.
struct Link;

fn run(command: &str) -> Result<(), String> {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output();
    let output = output.map_err(|error| format!("{command}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

impl Link {
    /// Or why not.
    fn new() -> Result<Self, String> {
        remove();
        let link = Self;
        for command in [
            format!("ip netns add {SOURCE}"),
            format!("ip netns add {DESTINATION}"),
            format!(
                "ip link add veth0 netns {SOURCE} type veth peer name veth0 netns {DESTINATION}"
            ),
            format!("ip -n {SOURCE} addr add 10.199.7.1/24 dev veth0"),
            format!("ip -n {DESTINATION} addr add 10.199.7.2/24 dev veth0"),
            format!("ip -n {SOURCE} link set lo up"),
            format!("ip -n {SOURCE} link set veth0 up"),
            format!("ip -n {DESTINATION} link set veth0 up"),
        ] {
            run(&command)?;
        }
        Ok(link)
    }

    /// Limits the rate, and loses packets on their way in, on both sides.
    fn spoil(&self) -> Result<(), String> {
        for namespace in [SOURCE, DESTINATION] {
            run(&format!(
                "tc -n {namespace} qdisc add dev veth0 root tbf rate 200mbit burst 256kb latency 50ms"
            ))?;
            for rule in [
                "add table ip lossy",
                "add chain ip lossy in { type filter hook input priority 0 ; }",
                "add rule ip lossy in iif veth0 numgen random mod 1000 < 5 drop",
            ] {
                run(&format!("ip netns exec {namespace} nft {rule}"))?;
            }
        }
        Ok(())
    }
}

/// Taken down or up, for good.
fn set(state: &str) {
    run(&format!("ip -n {SOURCE} link set veth0 {state}")).unwrap();
}

fn remove() {
    for namespace in [SOURCE, DESTINATION] {
        let _ = run(&format!("ip netns del {namespace}"));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        remove();
    }
}

fn pair() -> Pair {
    let near = Place::Tcp("127.0.0.1:7001".to_owned());
    let far = Place::Tcp("10.199.7.2:7002".to_owned());
    Pair::apart("10000", [SOURCE, DESTINATION], near, far)
}

#[test]
fn a_guest_moves_over_a_slow_lossy_link() {
    let _turn = turn();
    let link = match Link::new() {
        Ok(link) => link,
        Err(why) => return println!("skipped: network namespaces: {why}"),
    };
    if let Err(why) = link.spoil() {
        return println!("skipped: a slow and lossy link: {why}");
    }
    for at in [
        At::Forward(1 << 20),
        At::Ping2(0),
        At::Pong2(0),
        At::Shut(0),
    ] {
        let mut pair = pair();
        pair.relay.plan(at, Act::Delay(Duration::from_millis(300)));
        pair.migrate(0).unwrap();
        pair.moved().unwrap();
        assert!(pair.relay.has_fired());
    }
}

#[test]
fn a_link_may_go_down_in_any_phase() {
    let mut rng = seeded("links");
    let mut tally = Tally::default();
    let phases = [
        (Phase::Header, At::Forward(50)),
        (Phase::Ram, At::Forward(1 << 20)),
        (Phase::Ping2, At::Ping2(0)),
        (Phase::Pong2, At::Pong2(0)),
        (Phase::Eof, At::Eof(0)),
        (Phase::Shut, At::Shut(0)),
    ];
    for (phase, at) in phases {
        if !crate::is_full() && rng.bool() {
            continue;
        }
        let _turn = turn();
        let _link = match Link::new() {
            Ok(link) => link,
            Err(why) => return println!("skipped: network namespaces: {why}"),
        };
        let mut pair = pair();
        pair.relay.plan(at, Act::Hold);
        let verdict = pair.migrate(0).and_then(|()| {
            pair.relay.wait_fired()?;
            set("down");
            // What is held on its way to the link is sent, into nothing; an answer has passed it
            // already. Nothing more is.
            pair.relay.release(match at {
                At::Pong2(_) | At::Shut(_) => Act::Swallow,
                _ => Act::Hold,
            });
            // So long the link swallows what is under way; nobody hears of that.
            std::thread::sleep(Duration::from_millis(50));
            pair.relay.break_down(false);
            judge(&mut pair, phase, Instant::now(), &mut rng, &|pair| {
                set("up");
                pair.relay.mend();
            })
        });
        tally.add(
            &format!("{phase:?}"),
            verdict.map(|verdict| format!("down in {phase:?}: {verdict}")),
        );
    }
    tally.end("links");
}
