//! What the program says on standard error: messages, traces, its last words.
//!
//! Standard error may be a pipe that nobody reads, a terminal that was stopped (Ctrl-S) or closed.
//! Whoever has something to say may be a vCPU, a thread that serves page faults, or the one that
//! ends the machine: none of them may wait for that, nor panic, as `eprintln!` does. So lines go
//! into a buffer, and a thread writes them. A line that finds no room is dropped, whole; how many were
//! is said as soon as there is room again.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use paguro_sys::Spool;

/// Bytes of lines that are not written yet.
const KEPT_BYTES: usize = 1 << 20;

/// What whoever reads may take to come to the end of what was said, when the program ends.
const FAREWELL: Duration = Duration::from_secs(1);

struct Log {
    spool: Spool,
    dropped_lines: AtomicU64,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// From now on lines go by way of the thread. Before, and if there can be no thread, they are written
/// as they are said.
pub fn start() {
    let to = io::stderr().as_fd().try_clone_to_owned();
    let spool = to.and_then(|to| Spool::start("log", to, KEPT_BYTES));
    if let Ok(spool) = spool {
        // A second one would say the same.
        let _ = LOG.set(Log {
            spool,
            dropped_lines: AtomicU64::new(0),
        });
    }
    std::panic::set_hook(Box::new(say_panic));
}

/// What a thread says that panics, the same way: it may be a vCPU's, whose machine is to fail for it.
fn say_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let trace = Backtrace::capture();
    match trace.status() {
        BacktraceStatus::Captured => say(format_args!("thread '{name}' {info}\n{trace}")),
        _ => say(format_args!("thread '{name}' {info}")),
    }
    // It may be the last that the program says.
    flush();
}

/// Says a line.
pub fn say(line: fmt::Arguments<'_>) {
    put(format!("{line}\n").as_bytes());
}

/// Gives whoever reads the time to get all that was said; to be called before the program ends.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.flush();
    }
}

/// Ends the program, at once but for what was said.
pub fn exit(code: i32) -> ! {
    flush();
    std::process::exit(code)
}

/// Where traces go: each is one write.
#[derive(Clone, Copy, Debug)]
pub struct Traces;

impl Write for Traces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn put(lines: &[u8]) {
    match LOG.get() {
        Some(log) => log.put(lines),
        // If it cannot be said there is nobody to say so to.
        None => drop(io::stderr().write_all(lines)),
    }
}

impl Log {
    fn put(&self, lines: &[u8]) {
        self.confess();
        if !self.spool.put(lines) {
            self.dropped_lines.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says what was not said.
    fn confess(&self) {
        let dropped = self.dropped_lines.swap(0, Ordering::Relaxed);
        if dropped == 0 {
            return;
        }
        let line = format!("paguro: {dropped} messages were dropped, as nobody read them\n");
        if !self.spool.put(line.as_bytes()) {
            self.dropped_lines.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        if self.spool.flush(FAREWELL) {
            self.confess();
            self.spool.flush(FAREWELL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, pipe};

    #[test]
    fn dropped_lines_are_counted_for_who_reads_again() {
        let (mut reader, mut writer) = pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while writer.write(&[0]).is_ok() {}
        rustix::io::ioctl_fionbio(&writer, false).unwrap();
        let mut full = vec![0; rustix::pipe::fcntl_getpipe_size(&writer).unwrap()];
        let spool = Spool::start("a test", writer.into(), 100).unwrap();
        let log = Log {
            spool,
            dropped_lines: AtomicU64::new(0),
        };
        for _ in 0..20 {
            log.put(b"ten bytes\n");
        }
        reader.read_exact(&mut full).unwrap();
        assert!(log.spool.flush(Duration::from_secs(60)));
        log.flush();
        log.put(b"the end\n");
        drop(log);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        let dropped = "paguro: 10 messages were dropped, as nobody read them\n";
        let expected = format!("{}{dropped}the end\n", "ten bytes\n".repeat(10));
        assert_eq!(said, expected);
    }
}
