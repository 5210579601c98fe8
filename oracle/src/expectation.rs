//! What each page must hold, given the counters.

use paguro_guest::layout::{STACK_GUARD_BYTES, STACK_WINDOW_BYTES, stack_of};
use paguro_guest::{ImageError, image};
use paguro_workload::layout::{AREA_START, MAILBOX_GPA, PAGE_BYTES, PAGE_WORDS};
use paguro_workload::mailbox::{BEGUN, Counters, DONE, MARK};
use paguro_workload::{Content, Op, Params, Stream, Writer};

use crate::{DeviceWriter, Wrong};

const PAGE: usize = PAGE_BYTES as usize;

/// The expectation of every page of RAM.
pub(crate) struct Expectation {
    params: Params,
    /// All that lies below the workload area, counters included.
    low: Vec<u8>,
    vcpus: Vec<Progress>,
    devices: Vec<(u64, Progress)>,
}

/// How far a writer is.
struct Progress {
    stream: Stream,
    done: u64,
    in_flight: Option<InFlight>,
}

/// A write of which any part may have been stored.
struct InFlight {
    page: u64,
    content: Content,
}

/// What a page was found to be.
pub(crate) enum Finding {
    Right,
    HalfWritten,
    Wrong(Wrong),
}

impl Expectation {
    /// `counters` of each vCPU, `devices` of each device that `params` have.
    pub(crate) fn new(
        params: Params,
        counters: &[Counters],
        devices: &[DeviceWriter],
    ) -> Result<Self, ImageError> {
        let mut low = vec![0; AREA_START as usize];
        for piece in image(&params)? {
            let at = piece.gpa as usize;
            low[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
        }
        for (vcpu, counters) in counters.iter().enumerate() {
            let mailbox = MAILBOX_GPA as usize + vcpu * PAGE;
            let words = [
                (BEGUN, counters.begun),
                (DONE, counters.done),
                (MARK, counters.mark),
            ];
            for (offset, word) in words {
                low[mailbox + offset..][..8].copy_from_slice(&word.to_le_bytes());
            }
        }
        let progress = |stream: Stream, done, in_flight: Option<u64>| Progress {
            stream,
            done,
            in_flight: in_flight.filter(|_| stream.op() == Op::Write).map(|n| {
                let page = stream.page(n);
                InFlight {
                    page,
                    content: stream.content(page, n),
                }
            }),
        };
        Ok(Self {
            params,
            low,
            vcpus: (0..)
                .zip(counters)
                .map(|(vcpu, counters)| {
                    let stream = Stream::vcpu(&params, vcpu);
                    progress(stream, counters.done, counters.in_flight())
                })
                .collect(),
            devices: devices
                .iter()
                .filter_map(|device| {
                    let stream = Stream::device(&params, device.writer)?;
                    Some((device.writer, progress(stream, device.done, None)))
                })
                .collect(),
        })
    }

    /// Compares the page at `gpa`. `zero` says that all of `found` is.
    pub(crate) fn check(&self, gpa: u64, found: &[u8; PAGE], zero: bool) -> Finding {
        if gpa < AREA_START {
            return self.check_low(gpa, found);
        }
        let Some(page) = self.params.area.page_at(gpa) else {
            if zero {
                return Finding::Right;
            }
            return compare(
                found,
                |_| 0,
                || Wrong {
                    gpa,
                    why: "RAM outside the workload area, never written".to_owned(),
                    ..NOTHING
                },
            );
        };
        let owner = self.params.owner(page);
        let progress = match owner {
            Writer::Vcpu(vcpu) => self.vcpus.get(vcpu as usize),
            Writer::Device(writer) => {
                let mut devices = self.devices.iter();
                devices
                    .find(|device| device.0 == writer)
                    .map(|device| &device.1)
            }
        };
        match progress {
            Some(progress) => progress.check(owner, gpa, page, found, zero),
            None => Finding::Wrong(Wrong {
                gpa,
                page: Some(page),
                why: format!("{owner:?} has no counter"),
                ..NOTHING
            }),
        }
    }

    fn check_low(&self, gpa: u64, found: &[u8; PAGE]) -> Finding {
        let Some(expected) = self
            .low
            .get(gpa as usize..)
            .and_then(|low| low.first_chunk())
        else {
            return Finding::Right;
        };
        let mut free = 0..0;
        let stacks = stack_of(0)..stack_of(self.params.vcpus);
        if !self.params.threads && stacks.contains(&gpa) {
            let top = PAGE - STACK_GUARD_BYTES as usize;
            free = top - STACK_WINDOW_BYTES as usize..top;
        }
        let expected_word = |i: usize| {
            if free.contains(&(8 * i)) {
                word(found, i)
            } else {
                word(expected, i)
            }
        };
        compare(found, expected_word, || Wrong {
            gpa,
            why: "program, tables, stacks and mailboxes below 2 MiB".to_owned(),
            ..NOTHING
        })
    }
}

const NOTHING: Wrong = Wrong {
    gpa: 0,
    page: None,
    offset: 0,
    expected: 0,
    found: 0,
    why: String::new(),
};

impl Progress {
    fn check(&self, owner: Writer, gpa: u64, page: u64, found: &[u8; PAGE], zero: bool) -> Finding {
        let old = self.stream.content_at(page, self.done);
        let in_flight = self.in_flight.as_ref().filter(|write| write.page == page);
        if zero && old.is_none() {
            return Finding::Right;
        }
        let words = self.stream.words();
        let stored = |content: Option<Content>, i| match content {
            Some(content) if i < words => content.word(i),
            _ => 0,
        };
        // Words are stored in ascending order: new ones first, then old ones.
        let new = in_flight.map(|write| write.content);
        let new_words = new.map_or(0, |_| {
            let is_new = |i: &usize| word(found, *i) == stored(new, *i);
            (0..words).take_while(is_new).count()
        });
        let expected = |i| {
            if i < new_words {
                stored(new, i)
            } else {
                stored(old, i)
            }
        };
        let finding = compare(found, expected, || Wrong {
            gpa,
            page: Some(page),
            ..NOTHING
        });
        match finding {
            Finding::Wrong(wrong) => Finding::Wrong(Wrong {
                why: self.explain(owner, page, &wrong),
                ..wrong
            }),
            _ if (1..words).contains(&new_words) => Finding::HalfWritten,
            right => right,
        }
    }

    /// Says what the page should hold and, where that can be told, what it does hold.
    fn explain(&self, owner: Writer, page: u64, wrong: &Wrong) -> String {
        const FAR: usize = 1000;
        let (stream, i) = (&self.stream, wrong.offset as usize / 8);
        let last = stream.last_write(page, self.done);
        let should = match last {
            Some(n) => format!(
                "{owner:?} did {} writes, the last one here was {n}",
                self.done
            ),
            None => format!("{owner:?} did {} writes, none of them here", self.done),
        };
        if wrong.found == 0 {
            return format!("{should}; found zero");
        }
        let is_found =
            |n: &u64| i < stream.words() && stream.content(page, *n).word(i) == wrong.found;
        let mut older = std::iter::successors(last, |n| stream.last_write(page, *n)).take(FAR);
        if let Some(n) = older.find(is_found) {
            return format!("{should}; found the older write {n}");
        }
        let next = |n: u64| stream.next_write(page, n);
        let mut newer =
            std::iter::successors(next(self.done), |n| next(n.checked_add(1)?)).take(FAR);
        match newer.find(is_found) {
            Some(n) => format!("{should}; found write {n}, which came later"),
            None => format!("{should}; found nothing known"),
        }
    }
}

fn compare(
    found: &[u8; PAGE],
    expected: impl Fn(usize) -> u64,
    wrong: impl FnOnce() -> Wrong,
) -> Finding {
    match (0..PAGE_WORDS).find(|i| word(found, *i) != expected(*i)) {
        None => Finding::Right,
        Some(i) => Finding::Wrong(Wrong {
            offset: 8 * i as u64,
            expected: expected(i),
            found: word(found, i),
            ..wrong()
        }),
    }
}

pub(crate) fn word(page: &[u8; PAGE], i: usize) -> u64 {
    let (words, _) = page.as_chunks::<8>();
    u64::from_le_bytes(words[i])
}
