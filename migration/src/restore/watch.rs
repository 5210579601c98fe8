//! Watches a file that guest RAM maps.
//!
//! Nobody asks before the kernel reads a page of a mapping, so nothing can be promised for a single
//! page of a file that somebody writes to. What can be done is to look often whether somebody did, and
//! to stop the machine.
//!
//! A file may also answer nothing at all: a server that is away holds whoever asks for as long as it
//! is. So the file is asked in a thread of its own, and who watches waits for no answer: what the
//! handler of SIGBUS counts is told all the same. That somebody waits for a page of such a file nobody
//! hears either, for he is held in the kernel. It is shown by a thread that the kernel holds in a page
//! fault for as long: then the machine is stopped as if its reads had failed. Of a fault that KVM takes
//! no thread shows anything, so a machine of KVM is stopped when the file has been silent for as long,
//! whether or not it needs a page: one that stands still and says that it runs is worse.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paguro_pager::{SourceError, Waiters};
use paguro_sys::{BusErrors, page_size};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::ear::Ear;
use super::identity::Identity;
use super::{Failure, RestoreFile, RestoreOptions, file};
use crate::memory::Origin;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long the file is waited for before who watches looks at everything else again.
const ANSWER: Duration = Duration::from_millis(100);
/// The name of the thread that asks, which is held as well.
const ASKS: &str = "restore/ask";
/// No file is said not to answer before, however little patience was asked for.
const SILENCE: Duration = Duration::from_secs(1);

/// A RAM block, and where its pages are in the file.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) block: String,
    pub(super) pages_offset: u64,
    pub(super) bus_errors: BusErrors,
}

/// Watches a mapped file until it is dropped.
#[derive(Debug)]
pub struct MapWatch {
    shared: Arc<Shared>,
    stop: OwnedFd,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    places: Vec<Place>,
    trouble: Mutex<Option<String>>,
    /// The file was written to.
    changed: AtomicBool,
    retry: Duration,
    /// Nobody sees who waits for a page.
    faults_in_kernel: bool,
    /// At which all are to be patient anew.
    round: AtomicU64,
    end: AtomicBool,
    ear: Arc<Ear>,
}

impl MapWatch {
    /// Has `on_failure` hear, in the watching thread, that pages cannot be had or that the file was written
    /// to: as [`Filler::on_failure`](super::Filler::on_failure), except that nobody can be let go whom
    /// the kernel holds. Who waits for a page waits on, whatever is answered, until it can be read, or
    /// until [`MapWatch::lost_pages`] counts it. What was to be heard before is told at once, in the
    /// caller's thread.
    pub fn on_failure(&self, on_failure: Failure) {
        self.shared.ear.listen(on_failure);
    }

    /// Whether RAM is not what it should be, for good. Of pages that are lost it is true from before
    /// anybody can see zeros in their place.
    pub fn has_failed(&self) -> bool {
        self.lost_pages() > 0 || self.shared.changed.load(Ordering::Acquire)
    }

    /// Pages that could not be read, and in whose place zeros are now.
    pub fn lost_pages(&self) -> u64 {
        self.shared.count(BusErrors::lost)
    }

    /// Reads that failed and were tried again.
    pub fn failed_reads(&self) -> u64 {
        self.shared.count(BusErrors::failed)
    }

    /// Why pages cannot be read at the moment, as long as they are tried again.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble().clone()
    }

    /// All that could not be read is tried again, for as long as at first: the machine goes on.
    pub fn renew(&self) {
        for place in &self.shared.places {
            place.bus_errors.renew();
        }
        self.shared.round.fetch_add(1, Ordering::AcqRel);
    }
}

impl Origin for MapWatch {
    fn has_failed(&self) -> bool {
        MapWatch::has_failed(self)
    }
}

impl Drop for MapWatch {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        // What is called when something fails may hold the last reference.
        if let Some(thread) = thread.filter(|it| it.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

pub(super) fn start(
    file: &RestoreFile,
    places: Vec<Place>,
    options: &RestoreOptions,
) -> io::Result<Arc<MapWatch>> {
    let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
    let its = stop.try_clone()?;
    let (open, identity) = file.identity();
    let shared = Arc::new(Shared {
        path: file.path().to_owned(),
        places,
        trouble: Mutex::new(None),
        changed: AtomicBool::new(false),
        retry: options.retry,
        faults_in_kernel: options.faults_in_kernel,
        round: AtomicU64::new(0),
        end: AtomicBool::new(false),
        ear: Ear::new(Waiters::Keep, file.path().display().to_string()),
    });
    let asked = Asked::start(open, identity)?;
    let watched = shared.clone();
    let thread = paguro_sys::NewThread::named("restore/watch".to_owned())
        .spawn(move || watched.watch(&its, asked))?;
    Ok(Arc::new(MapWatch {
        shared,
        stop,
        thread: Mutex::new(Some(thread)),
    }))
}

impl Shared {
    fn watch(&self, stop: &OwnedFd, mut asked: Asked) {
        let (mut failed, mut in_vain, mut held) = (0, 0, Held::new(0));
        while !self.wait(stop) {
            let pages = self.count(BusErrors::lost);
            let before = std::mem::replace(&mut failed, self.count(BusErrors::failed));
            let failing = failed > before;
            let page = self.last_page();
            let answer = asked.ask(page.as_ref().map(|page| page.offset));
            // First: what was cut short cannot be read either.
            if let Some(how) = answer.as_ref().and_then(|it| it.change.clone()) {
                self.changed.store(true, Ordering::Release);
                self.ear.hear(&file::changed(&self.path, how));
                return;
            }
            if pages > 0 {
                let what = self.path.display().to_string();
                self.ear.hear(&SourceError::Lost { pages, what });
                return;
            }
            let silence = asked.silence().filter(|time| *time >= SILENCE);
            let reads = answer.map(|answer| answer.read);
            let is_well = matches!(reads, Some(Ok(())));
            let error = match (reads, silence) {
                (Some(Err(source)), _) => Some(unreadable(&page, source)),
                (_, Some(time)) => Some(self.silent(time)),
                (_, None) => None,
            };
            if failing || silence.is_some() {
                self.trouble_is(error.as_ref().unwrap_or(&unexplained(&page)));
            } else if is_well {
                self.trouble_is_over();
            }
            let before = std::mem::replace(&mut in_vain, self.count(BusErrors::in_vain));
            if in_vain > before {
                self.ear.hear(&error.unwrap_or_else(|| unexplained(&page)));
            } else if let Some(time) = silence
                && self.is_waited_for(&mut held)
                && held.tell()
            {
                self.ear.hear(&self.silent(time));
            }
            if silence.is_none() {
                held = Held::new(0);
            }
        }
    }

    /// Whether somebody has waited for a page for as long as he is to, as far as that can be known.
    fn is_waited_for(&self, held: &mut Held) -> bool {
        let longest = held.look(self.round.load(Ordering::Acquire));
        let time = if self.faults_in_kernel {
            held.began.elapsed()
        } else {
            longest
        };
        time >= self.retry.max(SILENCE)
    }

    /// Waits until it is time to look; whether it is to end. What the host refuses now it may grant
    /// later, and the file is to be looked at all the same.
    fn wait(&self, stop: &OwnedFd) -> bool {
        let bells = self.places.iter().map(|place| place.bus_errors.bell());
        let mut fds: Vec<_> = bells
            .map(|bell| PollFd::from_borrowed_fd(bell, PollFlags::IN))
            .collect();
        fds.push(PollFd::new(stop, PollFlags::IN));
        let look = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK.as_nanos() as _,
        };
        match poll(&mut fds, Some(&look)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::debug!(%error, "nobody hears the bells of a mapped file");
                std::thread::sleep(LOOK);
            }
        }
        for place in &self.places {
            let _ = rustix::io::read(place.bus_errors.bell(), &mut [0u8; 8]);
        }
        self.end.load(Ordering::Acquire)
    }

    /// Tells of trouble, once until it is over.
    fn trouble_is(&self, error: &SourceError) {
        let mut trouble = self.trouble();
        if trouble.is_none() {
            let error = crate::error::with_causes(error);
            tracing::warn!(error, "pages cannot be had; they are tried again");
            *trouble = Some(error);
        }
    }

    /// What could not be read last can be.
    fn trouble_is_over(&self) {
        if self.trouble().take().is_some() {
            tracing::warn!("pages that could not be had are here");
        }
    }

    fn silent(&self, time: Duration) -> SourceError {
        SourceError::Silent {
            what: self.path.display().to_string(),
            seconds: time.as_secs(),
        }
    }

    /// The page that could not be read last.
    fn last_page(&self) -> Option<Page> {
        self.places.iter().find_map(|place| {
            let number = place.bus_errors.last_page()?;
            Some(Page {
                block: place.block.clone(),
                number,
                offset: place.pages_offset + (number * page_size()) as u64,
            })
        })
    }

    fn count(&self, of: impl Fn(&BusErrors) -> u64) -> u64 {
        self.places.iter().map(|place| of(&place.bus_errors)).sum()
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A page, and where it is in the file.
struct Page {
    block: String,
    number: usize,
    offset: u64,
}

fn unreadable(page: &Option<Page>, source: io::Error) -> SourceError {
    let (block, first) = match page {
        Some(page) => (page.block.clone(), page.number),
        None => (String::new(), 0),
    };
    SourceError::Read {
        block,
        first,
        end: first + 1,
        source,
    }
}

fn unexplained(page: &Option<Page>) -> SourceError {
    unreadable(page, io::Error::other("the kernel could not read it"))
}

/// What the file says.
struct Answer {
    /// How it is another one than it was.
    change: Option<String>,
    /// To a read of the page that was asked for.
    read: io::Result<()>,
}

/// A thread that asks the file, and may wait for ever for an answer. Nobody waits for its end.
struct Asked {
    questions: mpsc::Sender<Option<u64>>,
    answers: mpsc::Receiver<Answer>,
    /// Since when an answer is due.
    since: Option<Instant>,
}

impl Asked {
    fn start(file: Arc<File>, identity: Identity) -> io::Result<Self> {
        let (questions, asked) = mpsc::channel::<Option<u64>>();
        let (answer, answers) = mpsc::channel();
        let ask = move || {
            for at in asked {
                let change = identity.change(&file);
                let read = at.map_or(Ok(()), |at| file.read_exact_at(&mut [0], at));
                if answer.send(Answer { change, read }).is_err() {
                    return;
                }
            }
        };
        paguro_sys::NewThread::named(ASKS.to_owned()).spawn(ask)?;
        Ok(Self {
            questions,
            answers,
            since: None,
        })
    }

    /// What it says now, or says to what it was asked before, if it says something soon.
    fn ask(&mut self, at: Option<u64>) -> Option<Answer> {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            // It ends with the other end of these only.
            let _ = self.questions.send(at);
        }
        let answer = self.answers.recv_timeout(ANSWER).ok()?;
        self.since = None;
        Some(answer)
    }

    /// For how long it has not answered.
    fn silence(&self) -> Option<Duration> {
        self.since.map(|since| since.elapsed())
    }
}

/// Threads of this process that the kernel holds, and since when: whoever waits for a page of a mapped
/// file is one, until it comes.
struct Held {
    /// Since when it is looked for them.
    began: Instant,
    threads: Vec<(u32, Instant)>,
    round: u64,
    told: bool,
}

impl Held {
    fn new(round: u64) -> Self {
        Self {
            began: Instant::now(),
            threads: Vec::new(),
            round,
            told: false,
        }
    }

    /// For how long the one is held that has been longest. In another round it begins anew.
    fn look(&mut self, round: u64) -> Duration {
        if round != self.round {
            *self = Self::new(round);
        }
        let held = held_threads();
        self.threads.retain(|(thread, _)| held.contains(thread));
        for thread in held {
            if !self.threads.iter().any(|(known, _)| *known == thread) {
                self.threads.push((thread, Instant::now()));
            }
        }
        let times = self.threads.iter().map(|(_, since)| since.elapsed());
        times.max().unwrap_or_default()
    }

    /// Once in a round.
    fn tell(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }
}

/// Those in a page fault, and those in uninterruptible sleep; none where the host does not say.
fn held_threads() -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let is_held = |path: PathBuf| {
        let read = |name| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        let stat = read("stat");
        let rest = stat.split_once('(').map_or("", |(_, rest)| rest);
        let (name, state) = rest.rsplit_once(") ").unwrap_or_default();
        // -1: it waits, and in no system call.
        name != ASKS && (state.starts_with('D') || read("syscall").starts_with("-1 "))
    };
    let numbers = threads.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        is_held(entry.path()).then_some(number)
    });
    numbers.collect()
}
