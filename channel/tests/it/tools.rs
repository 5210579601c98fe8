//! What the tests share.

use std::io::{self, Read, Write};
use std::thread::{self, JoinHandle};

use paguro_channel::{Address, Channel, ChannelError, Incoming, Listener, Options, Outgoing, Stop};

pub fn options() -> Options {
    Options::new(Stop::new().unwrap())
}

pub fn address(text: &str) -> Address {
    text.parse().unwrap()
}

pub fn listen(text: &str, options: &Options) -> Listener {
    Incoming::listen(&address(text), options).unwrap()
}

/// Both ends of a channel: that of the source, that of the destination.
pub fn pair(text: &str, source: &Options, destination: &Options) -> (Channel, Channel) {
    let listener = listen(text, destination);
    let to = listener.local_address().clone();
    let source = source.clone();
    let connecting = thread::spawn(move || Outgoing::connect(&to, &source).unwrap());
    let accepted = listener.accept(None).unwrap();
    (connecting.join().unwrap(), accepted)
}

/// Bytes that no shift or swap leaves the same.
pub fn pattern(bytes: usize) -> Vec<u8> {
    let word = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..bytes.div_ceil(8)).flat_map(word).take(bytes).collect()
}

pub fn read_all(mut reader: impl Read) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    reader.read_to_end(&mut all).map(|_| all)
}

/// Writes until it fails.
pub fn write_until_error(mut writer: impl Write) -> io::Error {
    let page = vec![7; 64 << 10];
    loop {
        if let Err(error) = writer.write(&page) {
            return error;
        }
    }
}

pub fn inside(error: &io::Error) -> &ChannelError {
    ChannelError::inside(error).unwrap_or_else(|| panic!("from outside: {error:?}"))
}

/// An error as a user sees it.
pub fn text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text += &format!(": {source}");
        next = source.source();
    }
    text
}

/// Runs it in a thread, and comes back when that thread sleeps in the kernel.
pub fn blocked<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let (say, said) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        say.send(rustix::thread::gettid()).unwrap();
        what()
    });
    let id = said.recv().unwrap().as_raw_pid();
    let mut asleep = 0;
    while asleep < 3 && !thread.is_finished() {
        let stat =
            std::fs::read_to_string(format!("/proc/self/task/{id}/stat")).unwrap_or_default();
        asleep = if stat.contains(") S ") { asleep + 1 } else { 0 };
        thread::yield_now();
    }
    thread
}
