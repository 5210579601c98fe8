//! What must be so whichever way pages go.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};

use super::*;
use crate::channel::{self, Address, Outgoing, Stop, Writer};
use crate::multifd::Compression;
use crate::source::hooks::Hooks;
use crate::source::{MigrateOptions, Migration, SourceSabotage};
use crate::stream::table_of;

const PAGE: usize = 4096;
const CHANNELS: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Deltas,
    Multifd,
}

const KINDS: [Kind; 3] = [Kind::Plain, Kind::Deltas, Kind::Multifd];

/// 64 pages, each full of its number.
fn ram() -> GuestRam {
    let block = RamBlock::new(BlockConfig {
        id: "ram".to_owned(),
        guest_address: 0,
        bytes: 64 * PAGE,
        backing: Backing::Anonymous,
        pages: PageKind::Small,
    });
    let ram = GuestRam::new(vec![block.unwrap()]);
    (0..64).for_each(|page| put(&ram, page, page as u8));
    ram
}

fn put(ram: &GuestRam, page: usize, value: u8) {
    let mapping = ram.blocks()[0].mapping();
    mapping.copy_in(page * PAGE, &[value; PAGE]);
}

fn due(content: &[usize], gone: &[usize]) -> Due {
    Due {
        content: content.to_vec(),
        gone: gone.to_vec(),
    }
}

/// Whether a page full of `value` is among what came over some channel.
fn has(came: &[Vec<u8>], value: u8) -> bool {
    let page = [value; PAGE];
    came.iter()
        .any(|bytes| bytes.windows(PAGE).any(|window| window == page))
}

/// A destination that takes what comes over channels as they are made.
struct Far<'s, 'e> {
    scope: &'s Scope<'s, 'e>,
    listener: UnixListener,
    options: &'e MigrateOptions,
    came: Vec<ScopedJoinHandle<'s, Vec<u8>>>,
}

impl<'s, 'e> Far<'s, 'e> {
    /// A channel to it.
    fn connect(&mut self) -> Writer {
        let Self { scope, options, .. } = self;
        let connected = Outgoing::connect(&options.address, &options.channel).unwrap();
        let (mut socket, _) = self.listener.accept().unwrap();
        self.came.push(scope.spawn(move || {
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).unwrap();
            bytes
        }));
        connected.split().1
    }

    /// A way to it, with its channels.
    fn way(&mut self, kind: Kind, ram: &GuestRam, migration: &'e Migration) -> Box<dyn Way> {
        let hooks = Hooks::new(SourceSabotage::None);
        match kind {
            Kind::Plain => Box::new(Plain),
            Kind::Deltas => Box::new(Deltas::new(ram, 1 << 20, hooks).unwrap()),
            Kind::Multifd => {
                let (way, queue) = Multifd::new(CHANNELS, hooks);
                for channel in 0..CHANNELS {
                    let lane = Lane {
                        channel,
                        writer: self.connect(),
                        queue: queue.clone(),
                        ram: ram.clone(),
                        table: table_of(ram).unwrap(),
                        compression: Compression::None,
                        migration,
                        silence: None,
                    };
                    self.scope.spawn(move || lane.run());
                }
                Box::new(way)
            }
        }
    }
}

/// Lets pages of `ram` go, and gives back what was counted and what came over each channel.
fn go(
    kind: Kind,
    ram: &GuestRam,
    act: impl FnOnce(&mut dyn Way, &mut Main<'_>),
) -> (Tally, Vec<Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let channel_options = channel::Options::new(Stop::new().unwrap());
    let options = MigrateOptions::new(Address::Unix(path), channel_options);
    let migration = Migration::new(&options, None).unwrap();
    let mut tally = Tally::default();
    let came = std::thread::scope(|scope| {
        let mut far = Far {
            scope,
            listener,
            options: &options,
            came: Vec::new(),
        };
        let table = table_of(ram).unwrap();
        let mut stream = Stream::new(far.connect(), "machine", ram.clone(), table);
        let mut way = far.way(kind, ram, &migration);
        let (_told, commands) = channel();
        let mut main = Main {
            stream: &mut stream,
            tally: &mut tally,
            commands: &commands,
        };
        act(&mut *way, &mut main);
        way.finish();
        stream.finish().unwrap();
        drop(way);
        let ended = far.came.into_iter().map(|it| it.join().unwrap());
        ended.collect()
    });
    (tally, came)
}

/// A pass of these, each in a call of its own.
fn pass(way: &mut dyn Way, main: &mut Main<'_>, calls: &[Due]) -> Told {
    way.begin_pass(main.tally);
    main.stream.begin_part(false);
    for due in calls {
        assert!(way.send(main, 0, due).is_ok());
    }
    let Ok(told) = way.end_part(main, true) else {
        panic!("it was not told to stop");
    };
    main.stream.end_part().unwrap();
    main.stream.flush().unwrap();
    told
}

#[test]
fn all_that_is_given_has_left_when_a_pass_ends() {
    for kind in KINDS {
        let ram = ram();
        let calls = [due(&[40, 3, 17], &[9]), due(&[5], &[]), due(&[0], &[])];
        let (tally, came) = go(kind, &ram, |way, main| {
            let told = pass(way, main, &calls);
            let multifd = kind == Kind::Multifd;
            let expected = if multifd { Told::Pass } else { Told::Part };
            assert_eq!(told, expected, "{kind:?}");
            let written = main.stream.written_bytes() + way.written_bytes();
            assert!(written >= 4 * PAGE as u64, "{kind:?}: {written}");
            // However often that is done.
            for _ in 0..2 {
                way.measure(main.tally, &mut main.stream.bandwidth);
            }
            assert_eq!(main.tally.multifd_bytes, way.written_bytes());
        });
        assert_eq!((tally.normal_pages, tally.zero_pages), (4, 2), "{kind:?}");
        for page in [40, 3, 17, 5] {
            assert!(has(&came, page), "{kind:?}: page {page}");
        }
        assert!(!has(&came, 6), "{kind:?}");
    }
}

#[test]
fn a_page_that_was_sent_is_sent_again_as_it_is_then() {
    for kind in KINDS {
        let ram = ram();
        let (tally, came) = go(kind, &ram, |way, main| {
            // Twice as it was, for differences begin with the second pass.
            for value in [3, 3, 200] {
                put(&ram, 3, value);
                pass(way, main, &[due(&[3], &[])]);
            }
            way.measure(main.tally, &mut main.stream.bandwidth);
        });
        // The whole page has changed: so is its difference.
        assert_eq!(tally.normal_pages, 3, "{kind:?}");
        assert!(has(&came, 3) && has(&came, 200), "{kind:?}");
        let overflows = u64::from(kind == Kind::Deltas);
        assert_eq!(tally.differences.overflows, overflows, "{kind:?}");
    }
}

#[test]
fn what_is_left_is_there_before_the_end_is() {
    for kind in KINDS {
        let ram = ram();
        let (_, came) = go(kind, &ram, |way, main| {
            way.begin_pass(main.tally);
            way.begin_rest(main);
            assert!(way.send(main, 0, &due(&[7, 8], &[])).is_ok());
            assert!(way.end_rest(main).is_ok());
            let own = way.written_bytes();
            // SYNC was written behind it.
            let there = own > 2 * PAGE as u64 || kind != Kind::Multifd;
            assert!(there, "{kind:?}: {own}");
            main.stream.end_part().unwrap();
            main.stream.flush().unwrap();
        });
        assert!(has(&came, 7) && has(&came, 8), "{kind:?}");
    }
}

#[test]
fn channels_that_take_nothing_are_not_waited_for_by_who_is_told_to_stop() {
    // No thread takes what is in the queue.
    let (mut way, _queue) = Multifd::new(CHANNELS, Hooks::new(SourceSabotage::None));
    let ram = ram();
    let (told, commands) = channel();
    drop(told);
    let mut tally = Tally::default();
    let dir = tempfile::tempdir().unwrap();
    let address = Address::File {
        path: dir.path().join("stream"),
        offset: 0,
    };
    let options = channel::Options::new(Stop::new().unwrap());
    let writer = Outgoing::connect(&address, &options).unwrap().split().1;
    let table = table_of(&ram).unwrap();
    let mut stream = Stream::new(writer, "machine", ram, table);
    let mut main = Main {
        stream: &mut stream,
        tally: &mut tally,
        commands: &commands,
    };
    assert!(way.send(&mut main, 0, &due(&[1], &[])).is_ok());
    let ended = way.end_part(&mut main, true);
    assert!(matches!(ended, Err(Stopped::Told)));
    assert_eq!(way.writing(1 << 30, 1), Duration::ZERO);
}
