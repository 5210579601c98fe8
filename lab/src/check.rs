//! Every page against the oracle.

use std::path::Path;

use anyhow::{Context, Result, bail};
use paguro_oracle::{Report, SnapshotFile};

/// Checks so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Pages compared, 4 KiB each.
    pub pages_checked: u64,
    /// Pages that were wrong.
    pub wrong: u64,
}

impl Tally {
    /// Counts a check; an error that says what is wrong if something is.
    pub fn add(&mut self, what: &str, report: &Report) -> Result<()> {
        self.pages_checked += report.pages_checked;
        self.wrong += report.wrong_count;
        if report.is_right() {
            return Ok(());
        }
        bail!("{what}: {}", describe(report))
    }
}

/// Compares RAM in a snapshot file with what the counters in it imply.
///
/// # Errors
///
/// The file cannot be read as one. Wrong pages are no error but in the report.
pub fn check_file(path: &Path) -> Result<Report> {
    let file = SnapshotFile::open(path)?;
    paguro_oracle::check(&file, file.device_writers())
        .with_context(|| format!("cannot check {}", path.display()))
}

/// What is wrong, with its first pages.
pub fn describe(report: &Report) -> String {
    let mut text = format!(
        "{} of {} pages are wrong",
        report.wrong_count, report.pages_checked
    );
    for wrong in report.wrong.iter().take(4) {
        let number = wrong.page.map(|page| format!(" (page {page})"));
        text += &format!(
            "\n  {:#x}{} + {:#x}: {:#x}, must be {:#x}: {}",
            wrong.gpa,
            number.unwrap_or_default(),
            wrong.offset,
            wrong.found,
            wrong.expected,
            wrong.why
        );
    }
    text
}
