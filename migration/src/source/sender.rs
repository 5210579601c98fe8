//! The thread that sends: RAM while the guest runs, then what is left of it, devices, EOF.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use paguro_dirty::tracker::Tracker;
use paguro_ram::GuestRam;
use paguro_sys::page_size;
use paguro_wire::device::DeviceSection;
use paguro_wire::stream::order::Order;

use super::delta::Deltas;
use super::forecast::{Labour, Outlook, is_short, is_worth_a_pass, is_worth_a_wait};
use super::lanes::{Batch, Lanes, Tried};
use super::options::{AtTimeout, MigrateOptions, SourceSabotage};
use super::outstanding::{Due, Outstanding, TakeError};
use super::progress::Progress;
use super::stream::{BREATH, EofError, Pace, Stream, table_of};
use super::throttle::Brake;
use super::{MigrateError, Migration};
use crate::Memory;
use crate::channel::ChannelError;
use crate::machine::Machine;
use crate::switchover::outcome::PING_OPEN;
use crate::switchover::{SourceEvent, Unexpected};

/// A PART takes about that long.
const PART: Duration = Duration::from_millis(50);
/// And is no longer, so that what it takes the destination is known soon.
const PART_BYTES: u64 = 4 << 20;
/// Waits are looked into that often.
const LOOK: Duration = Duration::from_millis(20);
/// Fewer bytes say nothing about the channels.
const MEASURED_BYTES: u64 = 64 << 10;

/// What the control side has it do.
pub(super) enum Command {
    /// The guest is stopped: send what is left, and these.
    Rest(Vec<DeviceSection>),
    /// Send PING with this value.
    Ping(u32),
    /// Send the permission to run.
    Eof,
    /// Tell the destination to forget it.
    Forget,
    /// End the channel as a whole one.
    Finish,
}

/// Why the thread ends before it is told to.
pub(super) enum Stopped {
    /// It was told to, or the channel is being closed.
    Told,
    /// It failed.
    Failed(MigrateError),
}

impl From<MigrateError> for Stopped {
    fn from(error: MigrateError) -> Self {
        Self::Failed(error)
    }
}

pub(super) struct Sender<'a> {
    pub(super) machine: &'a dyn Machine,
    pub(super) memory: &'a Memory,
    pub(super) migration: &'a Migration,
    pub(super) options: &'a MigrateOptions,
    pub(super) ram: GuestRam,
    pub(super) stream: Stream,
    pub(super) pages: Outstanding,
    pub(super) tracker: Arc<dyn Tracker>,
    pub(super) commands: Receiver<Command>,
    /// Whether there is a return path.
    pub(super) returns: bool,
    pub(super) began: Instant,
    pub(super) devices: Vec<DeviceSection>,
    /// The guest was stopped, and what is left is sent.
    pub(super) is_stopped: bool,
    /// What slows the guest down.
    pub(super) brake: Brake,
    /// The cache of XBZRLE.
    pub(super) deltas: Option<Deltas>,
    /// The multifd channels, and what goes to them next.
    pub(super) lanes: Option<Lanes>,
    pub(super) batch: Box<Batch>,
    /// What sending was, so far.
    pub(super) labour: Labour,
    /// Bytes before the last PING.
    pub(super) asked_to: u64,
    /// Every channel writes SYNC, and the mark on the main channel is due.
    pub(super) multifd_sync: bool,
}

/// Slows the vCPUs down, and lets them go on every path.
struct Slowed<'a>(&'a dyn Machine);

impl Drop for Slowed<'_> {
    fn drop(&mut self) {
        self.0.throttle(0);
    }
}

/// Tracking ends on every path.
struct Tracked(Arc<dyn Tracker>);

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Sender<'_> {
    /// All of it, up to the command to finish.
    pub(super) fn run(mut self) -> Result<(), Stopped> {
        let pings = match self.returns {
            true => [&[PING_OPEN], &self.migration.id().pings()[..]].concat(),
            false => Vec::new(),
        };
        self.ask_multifd_sync(false);
        if self.returns {
            self.migration.lock().digestion.ask(0, Instant::now());
        }
        self.stream
            .begin(&pings, std::mem::take(&mut self.multifd_sync))?;
        let start = Instant::now();
        let _tracked = Tracked(self.tracker.clone());
        self.tracker.start().map_err(MigrateError::Tracker)?;
        // What was written before is sent with all the rest.
        self.sync()?;
        let progress = self.migration.progress();
        Progress::set(&progress.track_us, micros(start.elapsed()));
        Progress::set(&progress.setup_us, micros(self.began.elapsed()));
        self.hand_over(SourceEvent::Ready)?;
        let slowed = Slowed(self.machine);
        self.precopy()?;
        self.hand_over(SourceEvent::Converged)?;
        self.obey(slowed)
    }

    /// An event that is too late means that the channel is about to be closed.
    fn hand_over(&self, event: SourceEvent) -> Result<(), Stopped> {
        match self.migration.on(event) {
            Ok(()) => Ok(()),
            Err(Unexpected::Late(_) | Unexpected::NotNow(_)) => Err(Stopped::Told),
        }
    }

    /// Whoever reads a page that cannot be had may have been given zeros for it, and they were sent. From
    /// the last page on nothing goes out before this is known: what is there may be run.
    fn check_ram(&self) -> Result<(), MigrateError> {
        match self.memory.is_spoilt() {
            true => Err(MigrateError::LostPages),
            false => Ok(()),
        }
    }

    fn is_told_to_stop(&self) -> bool {
        is_told_to_stop(&self.commands)
    }

    /// Pass after pass, until the rest can be sent within the limit.
    fn precopy(&mut self) -> Result<(), Stopped> {
        let mut pace = Pace::new(self.written_bytes(), self.migration.max_bandwidth());
        let mut since = (Instant::now(), self.written_bytes());
        self.labour.unlooked = self.pages.pages() as u64;
        // What was sent at first is by far the most of it.
        let mut is_first = true;
        loop {
            let pass = Instant::now();
            self.pass(&mut pace)?;
            // The rest would be sent in vain.
            self.check_ram()?;
            let sent_to = self.sent_to();
            let (mut new_pages, mut sync) = self.sync()?;
            let mut outlook = self.outlook(sync);
            if self.awaits(&outlook, sent_to, is_first) {
                is_first = false;
                self.await_digestion(sent_to, pass)?;
                let (more_pages, again) = self.collect()?;
                (new_pages, sync) = (new_pages + more_pages, again);
                outlook = self.outlook(sync);
            }
            let new_bytes = (new_pages * page_size()) as u64;
            let took = since.0.elapsed().as_secs_f64().max(1e-6);
            let progress = self.migration.progress();
            Progress::set(&progress.dirty_pages_rate, (new_pages as f64 / took) as u64);
            let sent_bytes = self.written_bytes() - since.1;
            since = (Instant::now(), self.written_bytes());

            let forecast = self.forecast(&outlook);
            if self.is_enough(&outlook) {
                if self.is_time_over() || !is_worth_a_pass(forecast, sent_bytes, self.pages.bytes())
                {
                    return Ok(());
                }
                continue;
            }
            if self.is_out_of_time(forecast)? {
                tracing::warn!(
                    forecast_us = micros(forecast),
                    "it does not converge in time, and the guest is stopped all the same"
                );
                Progress::set(&progress.forced, 1);
                return Ok(());
            }
            let percent = self.brake.sync(self.machine, new_bytes, sent_bytes);
            self.slowed(percent);
            self.look_at_vcpus();
        }
    }

    /// Whether the guest may be stopped.
    fn is_enough(&self, outlook: &Outlook) -> bool {
        outlook.downtime() <= self.migration.downtime_limit() || self.pages.pages() == 0
    }

    /// Whether the guest could be stopped if all that was sent were digested, which is not known yet
    /// or not so, and worth waiting for.
    fn awaits(&self, outlook: &Outlook, sent_to: u64, is_first: bool) -> bool {
        let at_best = Outlook {
            backlog: Duration::ZERO,
            ..*outlook
        };
        if !self.can_tell() || !self.is_enough(&at_best) || self.is_time_over() {
            return false;
        }
        let inner = self.migration.lock();
        let digestion = &inner.digestion;
        !digestion.has(sent_to)
            && (is_first
                || is_short(digestion.round_trip(), self.migration.downtime_limit())
                || !self.is_enough(outlook)
                || is_worth_a_wait(outlook.backlog, at_best.downtime()))
    }

    /// Bytes of which it matters whether they were digested.
    fn sent_to(&self) -> u64 {
        match self.returns {
            true => self.asked_to,
            false => self.written_bytes(),
        }
    }

    /// Whether it can be known what was digested.
    fn can_tell(&self) -> bool {
        self.returns || self.stream.is_file()
    }

    /// Waits until what was sent since `began` was digested, or the time to converge is over. The guest
    /// runs meanwhile.
    fn await_digestion(&mut self, sent_to: u64, began: Instant) -> Result<(), Stopped> {
        if !self.returns {
            self.stream.flush()?;
            let at = Instant::now();
            self.stream.settle()?;
            let digestion = &mut self.migration.lock().digestion;
            digestion.settle(sent_to, began, at, Instant::now());
            return Ok(());
        }
        let start = Instant::now();
        loop {
            let inner = self.migration.lock();
            let more = |inner: &mut super::Inner| !inner.digestion.has(sent_to) && !inner.deaf;
            let waited = self.migration.changed.wait_timeout_while(inner, LOOK, more);
            let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if inner.digestion.has(sent_to) || self.is_time_over() {
                return Ok(());
            }
            let (is_told, heard) = (inner.digestion.will_tell(sent_to), inner.heard);
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
    fn check_silence(&self, since: Instant) -> Result<(), Stopped> {
        let silence = self.options.channel.silence.filter(|_| self.returns);
        match silence.filter(|limit| since.elapsed() > *limit) {
            None => Ok(()),
            Some(silence) => {
                let peer = self.options.address.to_string();
                let silent = ChannelError::Silent { peer, silence };
                Err(Stopped::Failed(MigrateError::Channel(silent)))
            }
        }
    }

    fn look_at_vcpus(&mut self) {
        let percent = self.brake.look(self.machine, &*self.tracker);
        self.slowed(percent);
    }

    fn slowed(&self, percent: Option<u8>) {
        if let Some(percent) = percent {
            tracing::info!(percent, "the guest is slowed down");
            let progress = self.migration.progress();
            Progress::set(&progress.throttle_percent, u64::from(percent));
        }
    }

    fn is_time_over(&self) -> bool {
        let timeout = self.options.convergence.timeout;
        timeout.is_some_and(|time| self.began.elapsed() >= time)
    }

    /// Whether the time to converge is over and the guest is to be stopped all the same.
    fn is_out_of_time(&self, forecast: Duration) -> Result<bool, Stopped> {
        let convergence = &self.options.convergence;
        let over = |time: &Duration| self.began.elapsed() >= *time;
        match (convergence.timeout.filter(over), convergence.at_timeout) {
            (None, _) => Ok(false),
            (Some(_), AtTimeout::Switchover) => Ok(true),
            (Some(time), AtTimeout::Cancel) => Err(Stopped::Failed(MigrateError::NotConverging {
                after_s: time.as_secs(),
                forecast_ms: u64::try_from(forecast.as_millis()).unwrap_or(u64::MAX),
            })),
        }
    }

    /// Everything that is dirty now, in PARTs; less when the time to converge is over.
    fn pass(&mut self, pace: &mut Pace) -> Result<(), Stopped> {
        let chunks: Vec<_> = self.pages.chunks().collect();
        if let Some(deltas) = &mut self.deltas {
            deltas.begin_pass(self.migration.progress());
        }
        let mut due = Due::default();
        let mut chunks = chunks.into_iter().peekable();
        let pass = Instant::now();
        while chunks.peek().is_some() {
            let (part, at) = (Instant::now(), self.written_bytes());
            let most = pace.bytes_in(PART).unwrap_or(u64::MAX).min(PART_BYTES);
            self.stream.begin_part(false);
            while part.elapsed() < PART
                && self.written_bytes() - at < most
                && let Some((block, chunk)) = chunks.next()
            {
                if self.is_told_to_stop() {
                    return Err(Stopped::Told);
                }
                let (start, before) = (Instant::now(), self.written_bytes());
                let differences = self.differences();
                self.send(block, chunk.clone(), &mut due)?;
                let bytes = self.written_bytes() - before;
                let sent = due.content.len() + due.gone.len();
                // What is in doubt is looked at and turns out to be zero. Lanes tell only later what they
                // wrote.
                let found = match self.lanes {
                    Some(_) => sent as u64,
                    None => bytes.div_ceil(paguro_sys::page_size() as u64),
                };
                let pages = chunk.len() as u64;
                self.labour
                    .count(pages, found, sent as u64, start.elapsed());
                // A chunk of zeros says nothing about the channel, nor does one of which next to
                // nothing is sent.
                let whole = due.content.len() as u64 - (self.differences() - differences);
                if whole > super::outstanding::CHUNK as u64 / 4 {
                    self.stream.bandwidth.count(bytes, start.elapsed());
                }
            }
            self.publish();
            self.look_at_vcpus();
            let last_sync = Progress::get(&self.migration.progress().sync_us);
            let outlook = self.outlook(Duration::from_micros(last_sync));
            let over = self.is_out_of_time(self.forecast(&outlook))?;
            let is_last = over || chunks.peek().is_none();
            if is_last {
                self.end_multifd_pass(false)?;
            }
            self.stream.end_part()?;
            // What goes over multifd channels is known to be there at the end of a pass only.
            match (self.lanes.is_some(), is_last) {
                (false, _) => self.ask(part)?,
                (true, true) => self.ask(pass)?,
                (true, false) => {}
            }
            if over {
                break;
            }
            if self.lanes.is_some() {
                // There is little in it, but it says that this side is well.
                self.stream.flush()?;
            }
            while let Some(rest) = pace.due(self.written_bytes(), self.migration.max_bandwidth()) {
                if self.is_told_to_stop() {
                    return Err(Stopped::Told);
                }
                std::thread::sleep(rest.min(LOOK));
                self.stream.idle(BREATH)?;
                self.look_at_vcpus();
                if self.is_time_over() {
                    // What happens now is decided behind the next PART.
                    break;
                }
            }
        }
        self.stream.flush()?;
        self.labour.fade();
        Ok(())
    }

    fn send(
        &mut self,
        block: usize,
        chunk: std::ops::Range<usize>,
        due: &mut Due,
    ) -> Result<(), Stopped> {
        self.bring(block, &chunk)?;
        let broken = self.options.sabotage == SourceSabotage::ClearAfterRead;
        let tracker: &dyn Tracker = if broken { &Nothing } else { &*self.tracker };
        let taken = self.pages.take(block, chunk.clone(), tracker, due);
        taken.map_err(|error| match error {
            TakeError::Tracker(error) => MigrateError::Tracker(error),
            TakeError::Presence { block, source } => MigrateError::Presence { block, source },
        })?;
        if self.lanes.is_some() {
            return self.hand_to_lanes(block, due);
        }
        if let Some(deltas) = &mut self.deltas {
            let progress = self.migration.progress();
            for &page in &due.content {
                deltas.page(&mut self.stream, &self.ram, (block, page), progress)?;
            }
            for &page in &due.gone {
                deltas.zero(&mut self.stream, (block, page), progress)?;
            }
            return Ok(());
        }
        let mut zeros = due.gone.len();
        for &page in &due.content {
            zeros += usize::from(!self.stream.page(block, page)?);
        }
        for &page in &due.gone {
            self.stream.zero(block, page)?;
        }
        if broken {
            self.tracker
                .clear(block, chunk)
                .map_err(MigrateError::Tracker)?;
        }
        let progress = self.migration.progress();
        let total = due.content.len() + due.gone.len();
        Progress::add(&progress.normal_pages, total - zeros);
        Progress::add(&progress.zero_pages, zeros);
        Ok(())
    }

    /// Has what of a chunk is still elsewhere come. While it cannot be had the other side hears that
    /// this one lives, and this one that it is to stop.
    fn bring(&mut self, block: usize, chunk: &std::ops::Range<usize>) -> Result<(), Stopped> {
        let mut end = None;
        let brought = {
            let (commands, stream, end) = (&self.commands, &mut self.stream, &mut end);
            let is_stopped = self.is_stopped;
            let mut go_on = || {
                if is_told_to_stop(commands) {
                    *end = Some(Stopped::Told);
                } else if !is_stopped && let Err(error) = stream.idle(BREATH) {
                    *end = Some(error.into());
                }
                end.is_none()
            };
            self.pages.bring(block, chunk, &mut go_on)
        };
        match (brought, end) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(end)) => Err(end),
            (Err(source), None) => {
                let block = self.ram.blocks()[block].id().to_owned();
                Err(MigrateError::Unarrived { block, source }.into())
            }
        }
    }

    /// Pages of which only the difference was sent, so far.
    fn differences(&self) -> u64 {
        Progress::get(&self.migration.progress().xbzrle_pages)
    }

    /// Bytes written to all channels.
    fn written_bytes(&self) -> u64 {
        let multifd = &self.migration.progress().multifd_bytes;
        self.stream.written_bytes() + Progress::get(multifd)
    }

    fn hand_to_lanes(&mut self, block: usize, due: &Due) -> Result<(), Stopped> {
        let content = due.content.iter().map(|&page| (page, false));
        let gone = due.gone.iter().map(|&page| (page, true));
        for (page, is_gone) in content.chain(gone) {
            if !self.batch.takes(block) {
                self.push_batch()?;
            }
            self.batch.add(block, page, is_gone);
        }
        Ok(())
    }

    fn push_batch(&mut self) -> Result<(), Stopped> {
        if !self.batch.is_empty() {
            self.patiently(|sender, lanes| lanes.push(&sender.batch, LOOK))?;
            self.batch.clear();
        }
        Ok(())
    }

    /// What is left goes to the channels, and each writes SYNC behind it.
    fn sync_lanes(&mut self, last: bool) -> Result<(), Stopped> {
        self.push_batch()?;
        self.ask_multifd_sync(last);
        if self.multifd_sync {
            self.patiently(|_, lanes| lanes.synced(LOOK))?;
        }
        Ok(())
    }

    fn ask_multifd_sync(&mut self, last: bool) {
        let asked = self
            .lanes
            .as_ref()
            .is_some_and(|lanes| lanes.ask_sync(last));
        self.multifd_sync = asked;
    }

    /// The end of a pass on the multifd channels, within a PART.
    fn end_multifd_pass(&mut self, last: bool) -> Result<(), Stopped> {
        if self.lanes.is_none() {
            return Ok(());
        }
        let (start, before) = (Instant::now(), self.written_bytes());
        self.sync_lanes(last)?;
        let bytes = self.written_bytes() - before;
        if bytes > MEASURED_BYTES {
            self.stream.bandwidth.count(bytes, start.elapsed());
        }
        if std::mem::take(&mut self.multifd_sync) {
            self.stream.multifd_flush();
        }
        Ok(())
    }

    /// Tries until the channels could, within a PART.
    fn patiently(
        &mut self,
        mut attempt: impl FnMut(&Self, &Lanes) -> Tried,
    ) -> Result<(), Stopped> {
        loop {
            let Some(lanes) = &self.lanes else {
                return Ok(());
            };
            match attempt(self, lanes) {
                Tried::Done => return Ok(()),
                Tried::Broken => return Err(Stopped::Told),
                Tried::Busy if self.is_told_to_stop() => return Err(Stopped::Told),
                Tried::Busy => self.stream.breathe(BREATH)?,
            }
        }
    }

    /// A pass is over: what was written meanwhile, in pages, and how long the answer took.
    fn sync(&mut self) -> Result<(usize, Duration), MigrateError> {
        let progress = self.migration.progress();
        Progress::add(&progress.dirty_syncs, 1);
        self.migration
            .begin_pass(Progress::get(&progress.dirty_syncs));
        self.collect()
    }

    /// The same once more, before another pass.
    fn collect(&mut self) -> Result<(usize, Duration), MigrateError> {
        let start = Instant::now();
        let new = self
            .pages
            .sync(&*self.tracker)
            .map_err(MigrateError::Tracker)?;
        let took = start.elapsed();
        Progress::set(&self.migration.progress().sync_us, micros(took));
        self.publish();
        Ok((new, took))
    }

    /// Lets the destination say that it is there, that it has digested all that was written so far, the
    /// last of it since `began`, and how long that takes.
    fn ask(&mut self, began: Instant) -> Result<(), MigrateError> {
        if self.returns {
            // Before it goes: what is not written yet is not waited for.
            self.stream.flush()?;
            self.asked_to = self.written_bytes();
            if self.migration.lock().digestion.ask(self.asked_to, began) {
                self.stream.order(&Order::Ping(PING_OPEN))?;
            }
        }
        Ok(())
    }

    /// How things stand.
    fn outlook(&self, sync: Duration) -> Outlook {
        let measured = self.stream.bandwidth.bytes_per_s();
        let given = self.options.avail_switchover_bandwidth;
        let inner = self.migration.lock();
        let digestion = &inner.digestion;
        let digested = digestion.bytes_per_s().map_or(0, |rate| rate as u64);
        let bytes_per_s = match (given, measured, digested) {
            (0, 0, one) | (0, one, 0) => one,
            (0, measured, digested) => measured.min(digested),
            (given, _, _) => given,
        };
        let backlog = match self.can_tell() {
            true => {
                let (sent_to, stays) = (self.sent_to(), !self.returns);
                digestion.backlog(sent_to, stays, bytes_per_s, Instant::now())
            }
            false => self.stream.held(bytes_per_s),
        };
        let (pages, work) = self.labour.expect(self.pages.pages() as u64);
        Outlook {
            backlog: backlog.unwrap_or_default(),
            dirty_bytes: pages * page_size() as u64,
            work,
            bytes_per_s,
            round_trip: digestion.round_trip(),
            sync,
        }
    }

    /// What is to be expected, for all to see.
    fn forecast(&self, outlook: &Outlook) -> Duration {
        let forecast = outlook.downtime();
        let progress = self.migration.progress();
        Progress::set(&progress.bandwidth, self.stream.bandwidth.bytes_per_s());
        // Nothing was sent yet from which to tell: then there is next to nothing to send.
        let known = match forecast {
            Duration::MAX => 0,
            forecast => micros(forecast),
        };
        Progress::set(&progress.expected_downtime_us, known);
        Progress::set(&progress.forecast_us, known);
        Progress::set(&progress.last_dirty_bytes, outlook.dirty_bytes);
        forecast
    }

    fn publish(&self) {
        let progress = self.migration.progress();
        let written = self.written_bytes();
        Progress::set(&progress.remaining_bytes, self.pages.bytes());
        Progress::set(&progress.transferred_bytes, written);
        if !self.is_stopped {
            Progress::set(&progress.precopy_bytes, written);
        }
    }

    /// Does what the control side commands, until it lets go of the channel.
    fn obey(mut self, slowed: Slowed<'_>) -> Result<(), Stopped> {
        let mut slowed = Some(slowed);
        // The destination hears from us even while an operator decides, and so do we from it.
        let silence = self.options.channel.silence.filter(|_| self.returns);
        let patience = silence.map_or(Duration::from_secs(3600), |silence| silence / 3);
        // What is sent from here on is little and lies in buffers: that it can be written does not
        // show that anybody takes it. So an answer is waited for, to the PINGs at least.
        let mut asked = Instant::now();
        loop {
            let command = self.commands.recv_timeout(patience);
            if command.is_ok() {
                asked = Instant::now();
            }
            match command {
                Ok(Command::Rest(devices)) => {
                    drop(slowed.take());
                    let before = self.written_bytes();
                    let progress = self.migration.progress();
                    Progress::set(&progress.precopy_bytes, before);
                    self.is_stopped = true;
                    self.rest(devices)?;
                    // Where nobody will say that it has all: a disk fails, and takes its time, while a
                    // cancel lets the guest run on.
                    if !self.returns {
                        self.stream.settle()?;
                    }
                    let downtime_bytes = self.written_bytes() - before;
                    Progress::set(&progress.downtime_bytes, downtime_bytes);
                    self.publish();
                    asked = Instant::now();
                    self.hand_over(SourceEvent::Sent)?;
                }
                Ok(Command::Ping(value)) => self.stream.order(&Order::Ping(value))?,
                Ok(Command::Eof) if self.options.sabotage == SourceSabotage::SilentSender => {
                    return Err(Stopped::Told);
                }
                Ok(Command::Eof) if self.returns => {
                    let sound = self.check_ram().map_err(EofError::Withheld);
                    let event = match sound.and_then(|()| self.stream.eof(&self.devices)) {
                        Ok(()) => SourceEvent::EofWritten,
                        Err(EofError::Torn(error)) => {
                            self.migration.note(error);
                            SourceEvent::EofTorn
                        }
                        Err(EofError::Withheld(error)) => {
                            self.migration.note(error);
                            SourceEvent::EofWithheld
                        }
                    };
                    self.hand_over(event)?;
                }
                Ok(Command::Eof) => return self.last_way(),
                Ok(Command::Forget) => {
                    if self.stream.is_whole() {
                        self.stream.order(&Order::Forget)?;
                    }
                }
                Ok(Command::Finish) => {
                    if let Some(lanes) = &self.lanes {
                        lanes.finish();
                    }
                    // All was confirmed: how the channel ends changes nothing any more.
                    if let Err(error) = self.stream.finish() {
                        tracing::debug!(%error, "the channel did not end well");
                    }
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) if self.returns => {
                    let heard = self.migration.lock().heard;
                    self.check_silence(asked.max(heard))?;
                    self.ask(Instant::now())?;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped::Told),
            }
        }
    }

    /// Without a return path the end of the channel is the only confirmation there is.
    fn last_way(mut self) -> Result<(), Stopped> {
        let is_file = matches!(self.options.address, crate::channel::Address::File { .. });
        let sound = self.check_ram().map_err(EofError::Withheld);
        let sent = sound.and_then(|()| self.stream.eof(&self.devices));
        let migration = self.migration;
        let event = match sent.map(|()| self.stream.finish()) {
            Ok(Ok(unconfirmed)) => {
                if let Some(what) = unconfirmed {
                    migration.warn(&what);
                }
                SourceEvent::EofWritten
            }
            Ok(Err(error)) if error.is_file_in_doubt() => {
                migration.note(error);
                SourceEvent::EofTorn
            }
            // A file that never got its name is none.
            Ok(Err(error)) | Err(EofError::Torn(error) | EofError::Withheld(error)) if is_file => {
                migration.note(error);
                SourceEvent::EofWithheld
            }
            Err(EofError::Withheld(error)) => {
                migration.note(error);
                SourceEvent::EofWithheld
            }
            Ok(Err(error)) | Err(EofError::Torn(error)) => {
                migration.note(error);
                SourceEvent::EofTorn
            }
        };
        match migration.on(event) {
            Ok(()) => Ok(()),
            Err(_) => Err(Stopped::Told),
        }
    }

    /// The guest stands still and device state was collected: the last sync comes now.
    fn rest(&mut self, devices: Vec<DeviceSection>) -> Result<(), Stopped> {
        if table_of(&self.ram)? != *self.stream.table() {
            return Err(Stopped::Failed(MigrateError::BlocksChanged));
        }
        self.sync()?;
        if let Some(deltas) = &mut self.deltas {
            deltas.begin_pass(self.migration.progress());
        }
        let skip = self.options.sabotage == SourceSabotage::SkipPage;
        let mut due = Due::default();
        let chunks: Vec<_> = self.pages.chunks().collect();
        // In END nothing can be said while the multifd channels are waited for.
        self.stream.begin_part(self.lanes.is_none());
        let count = chunks.len();
        for (index, (block, mut chunk)) in chunks.into_iter().enumerate() {
            if self.is_told_to_stop() {
                return Err(Stopped::Told);
            }
            if skip && index + 1 == count {
                // Half of the last one, so that there is something to miss.
                chunk.end -= chunk.len() / 2;
            }
            self.send(block, chunk, &mut due)?;
        }
        if self.lanes.is_some() {
            self.sync_lanes(true)?;
            self.stream.end_part()?;
            self.stream.begin_part(true);
            if std::mem::take(&mut self.multifd_sync) {
                self.stream.multifd_flush();
            }
        }
        self.stream.end_part()?;
        self.check_ram()?;
        self.stream.devices(&devices)?;
        self.devices = devices;
        Ok(())
    }
}

fn is_told_to_stop(commands: &Receiver<Command>) -> bool {
    // Nothing is commanded before the guest is stopped.
    matches!(commands.try_recv(), Err(TryRecvError::Disconnected))
}

/// A tracker that hears nothing: where there is nothing to hear, or something is broken on purpose.
pub(super) struct Nothing;

impl Tracker for Nothing {
    fn start(&self) -> Result<(), paguro_dirty::tracker::TrackerError> {
        Ok(())
    }

    fn sync(
        &self,
        _: &[paguro_ram::PageSet],
    ) -> Result<usize, paguro_dirty::tracker::TrackerError> {
        Ok(0)
    }

    fn clear(
        &self,
        _: usize,
        _: std::ops::Range<usize>,
    ) -> Result<(), paguro_dirty::tracker::TrackerError> {
        Ok(())
    }

    fn stop(&self) {}
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
