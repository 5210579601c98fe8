//! A relay between source and destination that counts bytes, knows what they mean as far as that
//! is needed, and does something at one of them.
//!
//! It tells the parts of a migration apart by what both sides must say there: the source sends
//! PING 2 last and then nothing until PONG 2 has come, so that PING 2 ends what was read and the
//! next byte is EOF, the permission to run. The return path is a row of messages.
//!
//! What has *come in* here was sent; what has *gone out* may have been received. When one side is
//! gone the relay goes on reading what the other one sends, to know what that was.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use paguro_testkit::IN_VAIN;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::side::Judged;

const PING_2: [u8; 9] = [8, 0, 2, 0, 4, 0, 0, 0, 2];
/// Says only that its sender is well: it may come at any time.
const PING_1: [u8; 9] = [8, 0, 2, 0, 4, 0, 0, 0, 1];

/// What comes before the last orders, if these only say that their sender is well.
pub fn without_breaths(mut bytes: &[u8]) -> &[u8] {
    while let Some(before) = bytes.strip_suffix(&PING_1) {
        bytes = before;
    }
    bytes
}

/// How often a waiting thread looks whether the relay still exists.
const LOOK: Duration = Duration::from_millis(20);

/// Where something happens: before that byte is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// So many bytes of the stream were passed on.
    Forward(u64),
    /// So many bytes of the return path were.
    Back(u64),
    /// So many bytes of PING 2.
    Ping2(u64),
    /// So many bytes of PONG 2.
    Pong2(u64),
    /// EOF, or so many bytes behind its beginning.
    Eof(u64),
    /// So many bytes of SHUT.
    Shut(u64),
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing more is passed on, and both sides are told.
    Cut,
    /// Nothing more is passed on, and nobody is told: a network that is gone.
    Swallow,
    /// It takes so much longer.
    Delay(Duration),
    /// Nothing is passed on until [`Relay::release`]; there, nothing more.
    Hold,
}

/// What has come in and gone out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks {
    pub forward_bytes: u64,
    pub back_bytes: u64,
    pub ping2_in: bool,
    pub ping2_out: bool,
    pub pong2_in: bool,
    pub pong2_out: bool,
    pub eof_in: bool,
    pub eof_out: bool,
    pub shut_in: bool,
    pub shut_out: bool,
}

#[derive(Default)]
struct State {
    plan: Option<(At, Act)>,
    fired: bool,
    /// A held thread goes on, or cuts.
    released: Option<Act>,
    /// Nothing comes through: what there is is cut (true) or swallowed.
    dead: Option<bool>,
    marks: Marks,
    /// Directions in which bytes are just being passed on: who takes them may act on them before
    /// the marks say that they went.
    passing: u32,
    over: bool,
    tail: Vec<u8>,
    answers: Vec<u8>,
    connections: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A relay at work. Dropping it ends it.
pub struct Relay {
    shared: Arc<Shared>,
}

/// What a relay connects.
#[derive(Clone, Debug)]
pub enum Place {
    Unix(PathBuf),
    Tcp(String),
}

impl Relay {
    /// Passes on what comes to `from`. `enter` is called in the thread that listens and connects,
    /// first.
    pub fn start(from: &Place, to: &Place, enter: impl FnOnce() + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let (own, from, to) = (shared.clone(), from.clone(), to.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            enter();
            let door = Door::open(&from);
            ready.send(()).unwrap();
            own.serve(&door, &to);
        });
        is_ready.recv().expect("the relay cannot listen");
        Self { shared }
    }

    /// Something shall happen, once.
    pub fn plan(&self, at: At, act: Act) {
        let mut state = self.shared.lock();
        state.plan = Some((at, act));
        state.fired = false;
        state.released = None;
    }

    /// Waits until it has happened, or begun.
    pub fn wait_fired(&self) -> Judged<Marks> {
        self.wait("nothing comes to where something is to happen", |state| {
            state.fired
        })
    }

    /// Waits until the permission has come in.
    pub fn wait_permission(&self) -> Judged<Marks> {
        self.wait("no permission was sent", |state| state.marks.eof_in)
    }

    fn wait(&self, what: &str, is: impl Fn(&State) -> bool) -> Judged<Marks> {
        let mut state = self.shared.lock();
        let is_not = |state: &mut State| !is(state);
        let changed = &self.shared.changed;
        changed.wait_while_for(&mut state, is_not, IN_VAIN);
        if is(&state) {
            Ok(state.marks)
        } else {
            Err(format!("{what}: {:?}", state.marks))
        }
    }

    /// As they are once what is just being passed on is noted; whoever takes no bytes is not waited
    /// for.
    pub fn marks(&self) -> Marks {
        self.shared
            .sleep(Duration::from_secs(5), |state| state.passing == 0);
        self.shared.lock().marks
    }

    pub fn has_fired(&self) -> bool {
        self.shared.lock().fired
    }

    /// What is held goes on, or that happens to it.
    pub fn release(&self, act: Act) {
        self.shared.lock().released = Some(act);
        self.shared.changed.notify_all();
    }

    /// From now on nothing comes through.
    pub fn break_down(&self, cut: bool) {
        self.shared.lock().dead = Some(cut);
        self.shared.changed.notify_all();
    }

    /// New connections come through again; what is broken stays so.
    pub fn mend(&self) {
        let mut state = self.shared.lock();
        state.plan = None;
        state.dead = None;
        state.connections += 1;
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }
}

/// What one thread does with what it has read.
enum Fate {
    Pass,
    /// These many bytes, then that.
    PassThen(usize, Act),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn serve(self: Arc<Self>, door: &Door, to: &Place) {
        loop {
            let Some(source) = door.accept(|| self.lock().over) else {
                return;
            };
            let (dead, age) = {
                let mut state = self.lock();
                let first = state.connections == 0;
                if first {
                    state.connections = 1;
                }
                (state.dead, (state.connections, first))
            };
            match dead {
                Some(true) => {
                    source.end();
                    continue;
                }
                Some(false) => {
                    // Nobody is told; it lies there until the relay ends.
                    let own = self.clone();
                    std::thread::spawn(move || {
                        own.sleep(IN_VAIN, |state| state.over);
                        drop(source);
                    });
                    continue;
                }
                None => {}
            }
            let Ok(destination) = to.connect() else {
                source.end();
                continue;
            };
            for forward in [true, false] {
                let (own, source, destination) =
                    (self.clone(), source.clone(), destination.clone());
                let pump = move || {
                    if forward {
                        own.pump(&source, &destination, age, true)
                    } else {
                        own.pump(&destination, &source, age, false)
                    }
                };
                std::thread::spawn(pump);
            }
        }
    }

    /// Waits, at most so long, until something is so.
    fn sleep(&self, time: Duration, is: impl Fn(&State) -> bool) {
        let mut state = self.lock();
        let is_not = |state: &mut State| !is(state);
        self.changed.wait_while_for(&mut state, is_not, time);
    }

    /// Passes bytes on in one direction, until an end.
    fn pump(&self, from: &Socket, to: &Socket, (age, first): (usize, bool), forward: bool) {
        let mut bytes = vec![0; 64 << 10];
        let mut open = true;
        let end = || {
            from.end();
            to.end();
        };
        loop {
            {
                let state = self.lock();
                if state.over {
                    return end();
                }
                let dead = match state.dead {
                    // Mended meanwhile: for this connection it is too late.
                    None if state.connections != age => Some(true),
                    dead => dead,
                };
                match dead {
                    Some(true) => return end(),
                    Some(false) => {
                        drop(state);
                        self.sleep(LOOK, |state| state.over || state.dead != Some(false));
                        continue;
                    }
                    None => {}
                }
            }
            let count = match from.read(&mut bytes) {
                Ok(0) => {
                    to.end_writes();
                    return;
                }
                Ok(count) => count,
                Err(error) if is_nothing_yet(&error) => continue,
                // What the other one still says is to be known.
                Err(_) => {
                    to.end_writes();
                    return;
                }
            };
            let mut left = &bytes[..count];
            let mut send = |left: &[u8]| {
                // Who is gone takes nothing, but what the other one says is still read.
                open = open && to.write_all(left).is_ok();
            };
            let fate = if first {
                self.look_at(left, forward)
            } else {
                Fate::Pass
            };
            // The other direction may have been broken while this one waited.
            if self.lock().dead.is_some() {
                continue;
            }
            if let Fate::PassThen(some, act) = fate {
                send(&left[..some]);
                left = &left[some..];
                let act = match act {
                    Act::Hold => {
                        self.sleep(IN_VAIN, |state| state.released.is_some() || state.over);
                        self.lock().released.unwrap_or(Act::Cut)
                    }
                    act => act,
                };
                match act {
                    Act::Cut => {
                        self.lock().dead = Some(true);
                        self.changed.notify_all();
                        continue;
                    }
                    Act::Swallow => {
                        self.lock().dead = Some(false);
                        self.changed.notify_all();
                        continue;
                    }
                    Act::Delay(time) => self.sleep(time, |state| state.over),
                    Act::Hold => {}
                }
            }
            self.lock().passing += 1;
            send(left);
            let mut state = self.lock();
            state.passing -= 1;
            if first {
                let marks = &mut state.marks;
                if forward {
                    marks.ping2_out |= marks.ping2_in && open;
                    marks.eof_out |= marks.eof_in && open;
                } else {
                    marks.pong2_out |= marks.pong2_in && open;
                    marks.shut_out |= marks.shut_in && open;
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Notes what these bytes are, and says what happens at which of them.
    fn look_at(&self, bytes: &[u8], forward: bool) -> Fate {
        let mut state = self.lock();
        let state = &mut *state;
        let length = bytes.len() as u64;
        let passed = if forward {
            &mut state.marks.forward_bytes
        } else {
            &mut state.marks.back_bytes
        };
        let before = *passed;
        *passed += length;
        // Where in these bytes, or before them, something begins.
        let mut found: Vec<(At, u64)> = Vec::new();
        let marks = &mut state.marks;
        if forward {
            if marks.ping2_in {
                state.tail.extend_from_slice(bytes);
                while state.tail.starts_with(&PING_1) {
                    state.tail.drain(..PING_1.len());
                }
                // Anything but EOF there is a command that it shall be forgotten.
                if !marks.eof_in && state.tail.first() == Some(&0) {
                    marks.eof_in = true;
                    found.push((At::Eof(0), before + length - state.tail.len() as u64));
                }
            } else {
                const KEPT: usize = 16 * PING_1.len();
                let new = &bytes[bytes.len().saturating_sub(KEPT)..];
                state.tail.extend_from_slice(new);
                let cut = state.tail.len().saturating_sub(KEPT);
                state.tail.drain(..cut);
                let orders = without_breaths(&state.tail);
                if orders.ends_with(&PING_2) {
                    let behind = state.tail.len() - orders.len() + PING_2.len();
                    marks.ping2_in = true;
                    found.push((At::Ping2(0), before + length - behind as u64));
                    state.tail.clear();
                }
            }
        } else {
            state.answers.extend_from_slice(bytes);
            let mut at = before + length - state.answers.len() as u64;
            while let [_, number, high, low, ..] = state.answers[..] {
                let whole = 4 + usize::from(u16::from_be_bytes([high, low]));
                if state.answers.len() < whole {
                    break;
                }
                let message: Vec<u8> = state.answers.drain(..whole).collect();
                match number {
                    1 => {
                        marks.shut_in = true;
                        found.push((At::Shut(0), at));
                    }
                    2 if message[4..] == [0, 0, 0, 2] => {
                        marks.pong2_in = true;
                        found.push((At::Pong2(0), at));
                    }
                    _ => {}
                }
                at += whole as u64;
            }
        }
        let Some((at, act)) = state.plan.filter(|_| !state.fired) else {
            return Fate::Pass;
        };
        let begin = |wanted: At| {
            found
                .iter()
                .find(|(at, _)| *at == wanted)
                .map(|(_, from)| *from)
        };
        let place = match at {
            At::Forward(place) if forward => Some(place),
            At::Back(place) if !forward => Some(place),
            At::Forward(_) | At::Back(_) => None,
            At::Ping2(more) => begin(At::Ping2(0)).map(|from| from + more),
            At::Pong2(more) => begin(At::Pong2(0)).map(|from| from + more),
            At::Eof(more) => begin(At::Eof(0)).map(|from| from + more),
            At::Shut(more) => begin(At::Shut(0)).map(|from| from + more),
        };
        match place.filter(|place| *place < before + length) {
            None => Fate::Pass,
            Some(place) => {
                state.fired = true;
                let some = place.saturating_sub(before);
                match at {
                    At::Eof(more) if more > 0 => state.marks.eof_out = true,
                    _ => {}
                }
                self.changed.notify_all();
                Fate::PassThen(some as usize, act)
            }
        }
    }
}

enum Door {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Door {
    fn open(at: &Place) -> Self {
        match at {
            Place::Unix(path) => {
                let door = UnixListener::bind(path).unwrap();
                door.set_nonblocking(true).unwrap();
                Self::Unix(door)
            }
            Place::Tcp(address) => {
                let door = TcpListener::bind(address).unwrap();
                door.set_nonblocking(true).unwrap();
                Self::Tcp(door)
            }
        }
    }

    fn accept(&self, over: impl Fn() -> bool) -> Option<Socket> {
        while !over() {
            let accepted = match self {
                Self::Unix(door) => door.accept().map(|(socket, _)| Socket::unix(socket)),
                Self::Tcp(door) => door.accept().map(|(socket, _)| Socket::tcp(socket)),
            };
            match accepted {
                Ok(socket) => return Some(socket),
                // Nobody yet, or the end: there is nothing that tells of both.
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        None
    }
}

impl Place {
    /// As `migrate` and `migrate-incoming` name it.
    pub fn uri(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix:{}", path.display()),
            Self::Tcp(address) => format!("tcp:{address}"),
        }
    }

    pub fn unix(dir: &Path, name: &str) -> Self {
        Self::Unix(dir.join(name))
    }

    pub fn connect(&self) -> io::Result<Socket> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).map(Socket::unix),
            Self::Tcp(address) => TcpStream::connect(address).map(Socket::tcp),
        }
    }
}

/// A connection of either kind. Reads wait for a moment only.
#[derive(Clone)]
pub enum Socket {
    Unix(Arc<UnixStream>),
    Tcp(Arc<TcpStream>),
}

fn is_nothing_yet(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

impl Socket {
    pub fn unix(socket: UnixStream) -> Self {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        Self::Unix(Arc::new(socket))
    }

    pub fn tcp(socket: TcpStream) -> Self {
        socket.set_nonblocking(false).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        Self::Tcp(Arc::new(socket))
    }

    fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => (&**socket).read(into),
            Self::Tcp(socket) => (&**socket).read(into),
        }
    }

    pub fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(socket) => (&**socket).write_all(bytes),
            Self::Tcp(socket) => (&**socket).write_all(bytes),
        }
    }

    /// Fills `into`, or an error at the end.
    pub fn read_exact(&self, mut into: &mut [u8]) -> io::Result<()> {
        let until = Instant::now() + IN_VAIN;
        while !into.is_empty() {
            match self.read(into) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => into = &mut into[count..],
                Err(error) if is_nothing_yet(&error) && Instant::now() < until => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What there is, perhaps nothing; and whether it was the end.
    pub fn read_some(&self) -> (Vec<u8>, bool) {
        let mut bytes = vec![0; 4096];
        match self.read(&mut bytes) {
            Ok(count) => {
                bytes.truncate(count);
                (bytes, count == 0)
            }
            Err(error) => (Vec::new(), !is_nothing_yet(&error)),
        }
    }

    /// Reads until the other side ends, or nothing has come for so long. What there was.
    pub fn read_rest(&self, quiet: Duration) -> (Vec<u8>, bool) {
        let (mut all, mut bytes) = (Vec::new(), [0; 64 << 10]);
        let mut last = Instant::now();
        loop {
            match self.read(&mut bytes) {
                Ok(0) => return (all, true),
                Ok(count) => {
                    all.extend_from_slice(&bytes[..count]);
                    last = Instant::now();
                }
                Err(error) if is_nothing_yet(&error) => {
                    if last.elapsed() > quiet {
                        return (all, false);
                    }
                }
                Err(_) => return (all, true),
            }
        }
    }

    pub fn end_writes(&self) {
        let _ = match self {
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
        };
    }

    pub fn end(&self) {
        let _ = match self {
            Self::Unix(socket) => socket.shutdown(Shutdown::Both),
            Self::Tcp(socket) => socket.shutdown(Shutdown::Both),
        };
    }
}
