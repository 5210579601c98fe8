//! What is wanted, urgent first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use paguro_ram::Located;
use parking_lot::{Condvar, Mutex};

use crate::patience::Backoff;

/// A page that somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) at: Located,
    /// Since when it is waited for, or has been tried anew.
    since: Instant,
    number: u64,
    /// Since when it cannot be had.
    pub(crate) failing: Option<Instant>,
    /// Whether somebody was told that it cannot be had, and keeps those who wait for it.
    pub(crate) told: bool,
    backoff: Backoff,
    /// Which of the times it belongs to at which all was to be tried anew.
    round: u64,
}

impl Want {
    fn new(at: Located, round: u64, number: u64) -> Self {
        Self {
            at,
            since: Instant::now(),
            number,
            failing: None,
            told: false,
            backoff: Backoff::default(),
            round,
        }
    }
}

/// The queue of pages that somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    state: Mutex<State>,
    /// Where those who serve wait.
    changed: Condvar,
    /// Where those sleep who serve nobody: apart. Of those who wait together one is woken after the other,
    /// each when the one before has been here, and who is in no hurry may have to wait for a core.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Want>,
    /// What threads fetch at the moment. They may be held with it for as long as it is.
    in_hand: Vec<Want>,
    /// What could not be had, each with when to try again. As many as threads wait for pages: few.
    later: Vec<(Instant, Want)>,
    round: u64,
    /// That the next one has.
    number: u64,
    closed: bool,
}

impl State {
    fn want(&mut self, at: Located) -> Want {
        self.number += 1;
        Want::new(at, self.round, self.number)
    }

    /// Neither had nor refused yet.
    fn open(&mut self) -> impl Iterator<Item = &mut Want> {
        self.queue.iter_mut().chain(&mut self.in_hand)
    }

    fn hand_out(&mut self) -> Option<Want> {
        let want = self.take_due().or_else(|| self.queue.pop_front())?;
        self.in_hand.push(want);
        Some(want)
    }

    fn take_due(&mut self) -> Option<Want> {
        let now = Instant::now();
        let due = self
            .later
            .iter()
            .position(|(when, _)| self.closed || *when <= now)?;
        Some(self.later.swap_remove(due).1)
    }
}

impl Wanted {
    /// Queues one; false once it is closed, for then nobody may be left to serve it.
    pub(crate) fn push(&self, at: Located) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        // Who waits for it was interrupted and is back. If nobody hurries any more on his account,
        // he is a new one.
        let want = state.want(at);
        if let Some((_, late)) = state.later.iter_mut().find(|(_, want)| want.at == at) {
            if !late.told {
                return true;
            }
            let renewed = (Instant::now(), want);
            state.later.retain(|(_, want)| want.at != at);
            state.later.push(renewed);
        } else if let Some(open) = state.open().find(|want| want.at == at) {
            // Whoever fetches it wakes all that wait for it, which he does when it is there.
            if std::mem::replace(&mut open.told, false) {
                open.since = want.since;
            }
            return true;
        } else {
            state.queue.push_back(want);
        }
        drop(state);
        // All: who is woken may take what is to be tried again first.
        self.changed.notify_all();
        true
    }

    /// One that was handed out is there, or given up.
    pub(crate) fn done(&self, want: &Want) {
        self.state
            .lock()
            .in_hand
            .retain(|other| other.number != want.number);
    }

    /// One that is waited for since `patience`, and neither came nor was refused: the source answers
    /// nobody. Each is told once.
    pub(crate) fn overdue(&self, patience: Duration) -> Option<(Located, Duration)> {
        let mut state = self.state.lock();
        let late = |want: &&mut Want| !want.told && want.since.elapsed() >= patience;
        let want = state.open().find(late)?;
        want.told = true;
        Some((want.at, want.since.elapsed()))
    }

    /// Puts one back that cannot be had now, to be tried again later; false once it is closed.
    pub(crate) fn put_off(&self, mut want: Want) -> bool {
        let mut state = self.state.lock();
        let in_hand = |other: &Want| other.number == want.number;
        if let Some(at) = state.in_hand.iter().position(in_hand) {
            // He may have been tried anew while the source did not answer.
            let now = state.in_hand.swap_remove(at);
            (want.since, want.told) = (now.since, want.told || now.told);
        }
        if state.closed {
            return false;
        }
        if want.round != state.round {
            want = state.want(want.at);
        }
        let wait = if want.told {
            Backoff::longest()
        } else {
            want.backoff.next()
        };
        let late = (Instant::now() + wait, want);
        // Two may have waited for the same page, and one of them is still hurried for.
        match state
            .later
            .iter_mut()
            .find(|(_, other)| other.at == want.at)
        {
            Some(other) if other.1.told => *other = late,
            Some(_) => {}
            None => state.later.push(late),
        }
        drop(state);
        // Others wait until the first of those that they know of.
        self.changed.notify_all();
        true
    }

    /// What could not be had is tried again at once, as if it had been asked for just now.
    pub(crate) fn renew(&self) {
        let mut state = self.state.lock();
        state.round += 1;
        let (now, round) = (Instant::now(), state.round);
        for late in &mut state.later {
            *late = (now, Want::new(late.1.at, round, late.1.number));
        }
        for want in state.open() {
            (want.since, want.told, want.round) = (now, false, round);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Whether something that is waited for could not be had so far.
    pub(crate) fn is_failing(&self) -> bool {
        let mut state = self.state.lock();
        !state.later.is_empty() || state.open().any(|want| want.told)
    }

    /// The next one, or `None` once it is closed and empty.
    pub(crate) fn wait(&self) -> Option<Want> {
        let mut state = self.state.lock();
        loop {
            if let Some(want) = state.hand_out() {
                return Some(want);
            }
            if state.closed {
                return None;
            }
            let next = state.later.iter().map(|(when, _)| *when).min();
            match next {
                Some(when) => {
                    self.changed.wait_until(&mut state, when);
                }
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Waits that long; false if it was closed meanwhile.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        let open = |state: &mut State| !state.closed;
        self.ended.wait_while_for(&mut state, open, time);
        !state.closed
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
        self.ended.notify_all();
    }
}
