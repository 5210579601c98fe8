//! Every state that can be reached, and what must hold in it.
//!
//! An enumerator of our own and not the crate `stateright`: what has to be shown of the *end* of
//! runs is not its "eventually", which by its documentation works on paths without cycles only, but
//! a property of every state in which nothing more is sure to happen, and that there is no circle
//! of steps that are. The rest is a queue and a table of states.

use std::collections::{BTreeMap, HashMap};

use super::steps::steps;
use super::world::{Setting, World};
use crate::*;

/// All was looked at.
#[derive(Clone, Debug)]
pub struct Explored {
    pub states: usize,
    pub steps: usize,
    /// States in which nothing more is sure to happen.
    pub ends: usize,
    /// How they end: the two states by name, a `*` where the guest runs; and how many do.
    pub outcomes: BTreeMap<String, usize>,
}

/// How it came to what must not be.
#[derive(Debug)]
pub struct Broken {
    pub rule: &'static str,
    /// What happened, in order: as few steps as possible.
    pub trace: Vec<String>,
}

/// Walks through everything, breadth first.
pub fn explore(setting: &Setting) -> Result<Explored, Broken> {
    let first = World::new(setting);
    let mut number = HashMap::from([(first.clone(), 0_usize)]);
    let mut came: Vec<(usize, String)> = vec![(0, String::new())];
    let mut sure: Vec<Vec<usize>> = Vec::new();
    let mut queue = std::collections::VecDeque::from([first]);
    let (mut taken, mut ends) = (0, 0);
    let mut outcomes = BTreeMap::new();
    while let Some(world) = queue.pop_front() {
        let at = sure.len();
        let trace = |came: &[(usize, String)]| {
            let mut trace = Vec::new();
            let mut at = at;
            while at != 0 {
                trace.push(came[at].1.clone());
                at = came[at].0;
            }
            trace.reverse();
            trace
        };
        if let Some(rule) = always(&world, setting) {
            let trace = trace(&came);
            return Err(Broken { rule, trace });
        }
        let mut follow = Vec::new();
        for step in steps(&world, setting) {
            if step.then == world {
                continue;
            }
            taken += 1;
            let fresh = number.len();
            let to = *number.entry(step.then).or_insert_with_key(|then| {
                queue.push_back(then.clone());
                came.push((at, step.what));
                fresh
            });
            if step.sure {
                follow.push(to);
            }
        }
        if follow.is_empty() {
            ends += 1;
            *outcomes.entry(outcome(&world)).or_default() += 1;
            if let Some(rule) = at_end(&world, setting) {
                let mut trace = trace(&came);
                trace.push(format!("{world:?}"));
                return Err(Broken { rule, trace });
            }
        }
        sure.push(follow);
    }
    if !every_run_ends(&sure) {
        let rule = "every run ends";
        return Err(Broken {
            rule,
            trace: Vec::new(),
        });
    }
    Ok(Explored {
        states: sure.len(),
        steps: taken,
        ends,
        outcomes,
    })
}

/// What must hold in every state; which rule does not.
fn always(world: &World, setting: &Setting) -> Option<&'static str> {
    let near = &world.near;
    if world.runs_here() && world.runs_there() {
        return Some("never do both run");
    }
    if world.history.permitted
        && !world.history.loaded
        && setting.source.return_path
        && !setting.stock
    {
        return Some("the permission is sent when everything is loaded, and not before");
    }
    if world.history.destroyed {
        return Some("no side destroys its copy before the other has confirmed");
    }
    if near.alive && near.running && near.machine.held().is_some() {
        return Some("a guest that is said to be stopped is stopped");
    }
    if let SourceState::Resumed {
        telling: Telling::Contradicted,
        ..
    } = near.machine.state()
    {
        return Some("no two sides have the right to run");
    }
    None
}

/// What must hold when nothing more is sure to happen; which rule does not.
fn at_end(world: &World, setting: &Setting) -> Option<&'static str> {
    let (near, far) = (&world.near, &world.far);
    if near.alive && !world.history.permitted && !near.running {
        return Some("the source runs on wherever the permission was not sent");
    }
    if world.runs_here() || world.runs_there() {
        let waiting = matches!(far.machine.state(), DestinationState::Waiting { .. });
        let told = world.asks == 0 || !setting.source.reconnects || setting.stock;
        if world.runs_here() && far.alive && waiting && !told {
            return Some("a destination that waits is told when the source runs on");
        }
        return None;
    }
    // Where the source is alive its copy is whole. If neither copy is there, whoever had the guest
    // is no more, and that is not the migration's doing.
    let silent = (near.alive && near.machine.advice().may.is_empty())
        || (far.alive && far.whole && far.machine.advice().may.is_empty());
    silent.then_some("somebody runs, or a whole copy is there and a state that says what to do")
}

fn outcome(world: &World) -> String {
    let side = |alive: bool, running: bool, name: &str| {
        if alive {
            format!("{name}{}", if running { "*" } else { "" })
        } else {
            "dead".to_owned()
        }
    };
    let (near, far) = (&world.near, &world.far);
    let here = side(near.alive, near.running, near.machine.status().name());
    let there = side(far.alive, far.running, far.machine.status().name());
    format!("{here} | {there}")
}

/// There is no circle of steps that are sure to happen.
fn every_run_ends(sure: &[Vec<usize>]) -> bool {
    let mut into = vec![0_usize; sure.len()];
    for &to in sure.iter().flatten() {
        into[to] += 1;
    }
    let mut free: Vec<usize> = (0..sure.len()).filter(|&at| into[at] == 0).collect();
    let mut seen = 0;
    while let Some(at) = free.pop() {
        seen += 1;
        for &to in &sure[at] {
            into[to] -= 1;
            if into[to] == 0 {
                free.push(to);
            }
        }
    }
    seen == sure.len()
}
