//! Progress bars: on standard error, and only where somebody looks at it.

use std::fmt::Display;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paguro_workload::human;

use crate::log;

/// A bar that goes away when dropped. Without a terminal it shows nothing.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// Counts pages.
    pub fn pages(what: &'static str, total: u64) -> Self {
        Self::new(
            what,
            total,
            "{prefix} [{wide_bar}] {human_pos}/{human_len} pages {eta}",
        )
    }

    /// Counts bytes.
    pub fn bytes(what: &'static str) -> Self {
        Self::new(what, 0, "{prefix} [{wide_bar}] {bytes}/{total_bytes} {msg}")
    }

    /// Counts steps of a longer work.
    pub fn steps(what: &'static str, total: u64) -> Self {
        Self::new(what, total, "{prefix} [{wide_bar}] {pos}/{len} {msg} {eta}")
    }

    fn new(what: &'static str, total: u64, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        // A template that does not parse would be ours; the plain bar does as well.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what);
        // Drawn when it is set: a thread of its own could not be had where threads are few, and
        // nothing here is worth an end of the work.
        Self(bar)
    }

    /// Where it is.
    pub fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// One more is done.
    pub fn step(&self) {
        self.0.inc(1);
    }

    /// What it is at.
    pub fn say(&self, what: String) {
        self.0.set_message(what);
    }

    /// Does something that prints, out of the bar's way.
    pub fn above<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }

    /// Says a line on standard error, out of the bar's way.
    pub fn say_above(&self, line: impl Display) {
        self.above(|| {
            log::say(format_args!("{line}"));
            log::flush();
        });
    }

    /// What else there is to say.
    pub fn say_written(&self, bytes: u64) {
        self.0.set_message(format!("{} written", human(bytes)));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
