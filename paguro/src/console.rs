//! The terminal, as those see it who try and measure: a bar on standard error, lines above it, and
//! signals that end the work.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};

use anyhow::Result;
use paguro_lab::Console;

use crate::interrupt::{Again, Interrupts};
use crate::log;
use crate::progress::Bar;

/// Standard output, standard error and signals.
pub struct Terminal {
    bar: RefCell<Option<Bar>>,
    total: Cell<u64>,
    interrupts: Interrupts,
}

impl Terminal {
    /// From now on signals end the work, and a second one the process.
    pub fn open() -> Result<Self> {
        Ok(Self {
            bar: RefCell::default(),
            total: Cell::default(),
            interrupts: Interrupts::catch(Again::Leaves)?,
        })
    }

    /// Takes the bar away.
    pub fn close(&self) {
        self.bar.take();
    }

    fn with_bar(&self, act: impl FnOnce(&Bar)) {
        if let Some(bar) = &*self.bar.borrow() {
            act(bar);
        }
    }
}

impl Console for Terminal {
    fn begin(&self, what: &'static str, total: u64) {
        self.close();
        self.total.set(total);
        self.bar.replace(Some(Bar::steps(what, total)));
    }

    fn step(&self) {
        self.with_bar(Bar::step);
    }

    fn set(&self, done: u64) {
        self.with_bar(|bar| bar.set(done, self.total.get()));
    }

    fn at(&self, what: &str) {
        self.with_bar(|bar| bar.say(what.to_owned()));
    }

    fn print(&self, line: &str) -> io::Result<()> {
        let print = || writeln!(io::stdout(), "{line}");
        match &*self.bar.borrow() {
            Some(bar) => bar.above(print),
            None => print(),
        }
    }

    fn note(&self, line: &str) {
        match &*self.bar.borrow() {
            Some(bar) => bar.say_above(line),
            None => log::say(format_args!("{line}")),
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupts.came()
    }
}
