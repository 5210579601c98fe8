//! Waiting for a destination that has still to digest what was sent.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use paguro_wire::stream::order::Order;

use super::Sender;
use crate::channel::ChannelError;
use crate::source::command::{LOOK, Stopped};
use crate::source::forecast::{Outlook, is_short, is_worth_a_wait};
use crate::source::{Inner, MigrateError};
use crate::stream::BREATH;
use crate::switchover::outcome::PING_OPEN;

impl Sender<'_> {
    /// Whether the guest could be stopped if all that was sent were digested, which is not known yet
    /// or not so, and worth waiting for.
    pub(super) fn awaits(&self, outlook: &Outlook, sent_to: u64, is_first: bool) -> bool {
        let at_best = Outlook {
            backlog: Duration::ZERO,
            ..*outlook
        };
        if !self.can_tell() || !self.is_enough(&at_best) || self.is_time_over() {
            return false;
        }
        let inner = self.job.migration.lock();
        let digestion = &inner.heard.digestion;
        !digestion.has(sent_to)
            && (is_first
                || is_short(digestion.round_trip(), self.job.migration.downtime_limit())
                || !self.is_enough(outlook)
                || is_worth_a_wait(outlook.backlog, at_best.downtime()))
    }

    /// Bytes of which it matters whether they were digested.
    pub(super) fn sent_to(&self) -> u64 {
        if self.returns {
            self.asked_to
        } else {
            self.written_bytes()
        }
    }

    /// Whether it can be known what was digested.
    pub(super) fn can_tell(&self) -> bool {
        self.returns || self.stream.is_file()
    }

    /// Waits until what was sent since `began` was digested, or the time to converge is over. The guest
    /// runs meanwhile.
    pub(super) fn await_digestion(&mut self, sent_to: u64, began: Instant) -> Result<(), Stopped> {
        if !self.returns {
            self.stream.flush()?;
            let at = Instant::now();
            self.stream.settle()?;
            let writing = self.writing();
            let digestion = &mut self.job.migration.lock().heard.digestion;
            digestion.settle(sent_to, writing, at, Instant::now());
            return Ok(());
        }
        let start = Instant::now();
        loop {
            let inner = self.job.migration.lock();
            let more = |inner: &mut Inner| !inner.heard.digestion.has(sent_to) && !inner.heard.deaf;
            let waited = self
                .job
                .migration
                .changed
                .wait_timeout_while(inner, LOOK, more);
            let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if inner.heard.digestion.has(sent_to) || self.is_time_over() {
                return Ok(());
            }
            let (is_told, heard) = (inner.heard.digestion.will_tell(sent_to), inner.heard.at);
            drop(inner);
            if self.is_told_to_stop() {
                return Err(Stopped::Told);
            }
            self.check_silence(start.max(heard))?;
            if !is_told {
                // There were too many questions.
                self.ask(began)?;
            }
            self.stream.idle(BREATH)?;
            self.look_at_vcpus();
        }
    }

    /// A destination that says nothing, although it was asked, is given up.
    pub(super) fn check_silence(&self, since: Instant) -> Result<(), Stopped> {
        let silence = self.job.options.channel.silence.filter(|_| self.returns);
        match silence.filter(|limit| since.elapsed() > *limit) {
            None => Ok(()),
            Some(silence) => {
                let peer = self.job.options.address.to_string();
                let silent = ChannelError::Silent { peer, silence };
                Err(Stopped::Failed(MigrateError::Channel(silent)))
            }
        }
    }

    /// Lets the destination say that it is there, that it has digested all that was written so far, the
    /// last of it since `began`, and how long that takes.
    pub(super) fn ask(&mut self, began: Instant) -> Result<(), MigrateError> {
        if self.returns {
            // Before it goes: what is not written yet is not waited for.
            self.stream.flush()?;
            self.asked_to = self.written_bytes();
            let writing = self.writing();
            // Not under the lock: the destination may be slow to take it, and who cancels waits for none.
            let asks = {
                let mut inner = self.job.migration.lock();
                inner.heard.digestion.ask(self.asked_to, began, writing)
            };
            if asks {
                self.stream.order(&Order::Ping(PING_OPEN))?;
            }
        }
        Ok(())
    }

    /// Time spent in writing since this was asked last.
    fn writing(&mut self) -> Duration {
        self.measure();
        let spent = self.stream.bandwidth.spent();
        spent - std::mem::replace(&mut self.asked_spent, spent)
    }
}
