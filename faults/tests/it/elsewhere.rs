//! Faults of another process' memory: it opens a userfaultfd, sends it, and is served from here.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use paguro_faults::{Arrivals, Faults, FaultsError, MissingHandler, Outcome, Use};
use paguro_ram::{Backing, Located, Span, Spans};
use paguro_sys::{Advice, Features, Handshake, RegisterMode, Uffd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::common::*;

const PAGES: usize = 16;
const KINDS: [Backing; 2] = [Backing::Anonymous, Backing::Memfd];
/// Page that its owner gives back before anything comes.
const GIVEN_BACK: usize = 9;

/// What a page is full of at its source.
fn content(block: usize, page: usize) -> [u8; PAGE] {
    [(100 * block + page + 1) as u8; PAGE]
}

/// Fetches what is asked for, in the thread that asks.
struct Serves(Arc<Arrivals>);

impl MissingHandler for Serves {
    fn missing(&self, faults: &Faults, at: Located) {
        self.0.answer(faults, at, || {
            let page = content(at.block, at.page);
            let offset = at.page * PAGE;
            self.0.land(at.block, offset, &page, |_| {}).unwrap();
            true
        });
    }

    fn removed(&self, _: &Faults, block: usize, pages: Range<usize>) {
        self.0.given_back(block, pages, |_| {});
    }

    fn broken(&self, _: &Faults, _: Located) {}
}

/// One step at a time: who says so has done his.
struct Turns(UnixStream);

impl Turns {
    fn done(&mut self) {
        self.0.write_all(&[1]).unwrap();
    }

    fn awaits(&mut self) {
        self.0.read_exact(&mut [0]).unwrap();
    }
}

/// The other process: memory that it cannot fill by itself.
fn owner(socket: OwnedFd) {
    let blocks = KINDS.map(|kind| block("ram", PAGES, kind));
    let uffd = host().unwrap().open_uffd().unwrap();
    let all = |block: usize| blocks[block].addresses_of(&(0..PAGES));
    // One as a VMM may do it; the other is registered by who serves.
    uffd.register(all(0), RegisterMode::Missing).unwrap();
    send(
        &socket,
        &format!("{} {}", all(0).start, all(1).start),
        &uffd,
    );
    let mut turns = Turns(socket.into());
    let page = |block: usize, page: usize| {
        let mut bytes = [0; PAGE];
        blocks[block].mapping().copy_out(page * PAGE, &mut bytes);
        bytes
    };
    let give_back = |page| {
        let mapping = blocks[0].mapping();
        mapping.advise(page * PAGE, PAGE, Advice::DontNeed).unwrap();
    };
    turns.awaits();
    give_back(GIVEN_BACK);
    for block in 0..2 {
        assert_eq!(page(block, 3), content(block, 3), "asked for");
    }
    turns.done();
    turns.awaits();
    for block in 0..2 {
        for at in 0..8 {
            assert_eq!(page(block, at), content(block, at), "{block} {at}");
        }
        assert_eq!(page(block, 8), [0; PAGE], "zeros came");
    }
    assert_eq!(page(0, GIVEN_BACK), [0; PAGE]);
    give_back(2);
    assert_eq!(page(0, 2), [0; PAGE]);
    turns.done();
    turns.awaits();
    // Protected, and caught.
    (1..4).for_each(|page| blocks[0].mapping().copy_in(page * PAGE, &[9]));
    turns.done();
    turns.awaits();
    // Nobody serves any more.
    assert_eq!(page(0, 15), [0; PAGE]);
    turns.done();
    // Who serves may drop everything while this lives, or after it.
    turns.awaits();
}

fn send(socket: &OwnedFd, spans: &str, uffd: &Uffd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let fds = [uffd.as_fd()];
    assert!(rights.push(SendAncillaryMessage::ScmRights(&fds)));
    let text = [IoSlice::new(spans.as_bytes())];
    sendmsg(socket, &text, &mut rights, SendFlags::empty()).unwrap();
}

fn receive(socket: &UnixStream) -> (Uffd, Spans) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 100];
    let mut into = [IoSliceMut::new(&mut text)];
    let got = recvmsg(socket, &mut into, &mut rights, RecvFlags::CMSG_CLOEXEC).unwrap();
    let fd = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let said = Handshake {
        features: Features::EVENT_REMOVE,
        user_mode_only: false,
    };
    let starts = std::str::from_utf8(&text[..got.bytes]).unwrap().split(' ');
    let spans = starts.zip(KINDS).map(|(start, kind)| {
        Span::elsewhere("ram", start.parse().unwrap(), PAGES * PAGE, 1, kind).unwrap()
    });
    let spans = Spans::elsewhere(spans.collect()).unwrap();
    (Uffd::adopt(fd.unwrap(), said).unwrap(), spans)
}

/// What the kernel places for us is placed there.
fn serve(turns: &mut Turns, faults: &Arc<Faults>, arrivals: &Arc<Arrivals>) {
    let early = arrivals.land(0, 0, &content(0, 0), |_| {});
    assert!(matches!(early, Err(FaultsError::Elsewhere { .. })));
    assert!(arrivals.places(0, 0..1, PAGE).is_none());
    let serves = Arc::new(Serves(arrivals.clone()));
    arrivals.serve(faults, serves).unwrap();
    turns.done();
    turns.awaits();
    assert!(arrivals.received(0).contains(GIVEN_BACK));
    for block in 0..2 {
        let mut all = Vec::new();
        (0..8).for_each(|page| all.extend(content(block, page)));
        arrivals.land(block, 0, &all, |_| {}).unwrap();
        arrivals.zero(block, 8 * PAGE, PAGE, |_| {}).unwrap();
    }
    let given_back = content(0, GIVEN_BACK);
    let nothing = |pages| panic!("{pages:?} came");
    arrivals
        .land(0, GIVEN_BACK * PAGE, &given_back, nothing)
        .unwrap();
    turns.done();
    turns.awaits();
}

#[test]
fn another_process_is_served_from_here() {
    const CHILD: &str = "PAGURO_TEST_ELSEWHERE";
    if std::env::var_os(CHILD).is_some() {
        return owner(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    }
    let _alone = alone();
    if host().is_none() {
        return;
    }
    let (here, there) = UnixStream::pair().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "elsewhere::another_process_is_served_from_here"])
        .env(CHILD, "1")
        .stdin(Stdio::from(OwnedFd::from(there)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (uffd, spans) = receive(&here);
    let mut turns = Turns(here);
    let faults = Faults::adopt(uffd, spans.clone(), 2).unwrap();
    let arrivals = Arc::new(Arrivals::new(spans));
    serve(&mut turns, &faults, &arrivals);

    let catcher = Arc::new(Catcher::default());
    faults.register(0, Use::WriteProtect).unwrap();
    faults.barrier().protected = Some(catcher.clone());
    faults.protect(0, 0..4).unwrap();
    faults.release(0, 3..4).unwrap();
    turns.done();
    turns.awaits();
    assert_eq!(catcher.caught.load(Ordering::SeqCst), 2);
    faults
        .unregister(0, Use::WriteProtect, &[0..4, 4..PAGES], || {})
        .unwrap();

    arrivals.end(&faults);
    assert!(!faults.is_registered(0, Use::Missing));
    turns.done();
    turns.awaits();
    faults.register(0, Use::Missing).unwrap();
    turns.done();
    assert!(child.wait().unwrap().success());
    // It is gone, and what comes for it is nobody's.
    let late = faults.place(0, 14, &content(0, 14)).unwrap();
    assert_eq!(late, Outcome::MappingChanged);
    faults
        .unregister(0, Use::Missing, &[0..4, 4..PAGES], || {})
        .unwrap();
    assert!(faults.register(0, Use::Missing).is_err());
}
