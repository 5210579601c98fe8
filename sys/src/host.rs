//! What the kernel of this host can do, probed once. What may change while a machine runs (swap, limits,
//! rights) is no part of it, but for the right to use userfaultfd, which can be asked for again, and
//! with it what was not to be had for a reason that may have passed.

use crate::presence::{has_pagemap_scan, probe_marker};
use crate::uffd::{Features, Uffd, UffdError};
use crate::{Advice, Limits, Mapping, page_size};

/// What [`Fallbacks::few_mappings`] leaves.
const FEW_MAPPINGS: usize = 64;

/// Fallbacks to take although the kernel could do better: each makes a test on a new kernel run
/// the path of an old one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fallbacks {
    /// As if absent anonymous pages could not be protected (before Linux 6.4): populate them.
    pub no_wp_unpopulated: bool,
    /// As if `PAGEMAP_SCAN` were missing (before Linux 6.7): read `/proc/self/pagemap`.
    pub no_pagemap_scan: bool,
    /// As if `MADV_POPULATE_READ` were missing (before Linux 5.14): read a byte a page.
    pub no_populate_read: bool,
    /// As if only faults in user mode could be handled (no privileges).
    pub user_mode_only: bool,
    /// As if there were no userfaultfd at all.
    pub no_userfaultfd: bool,
    /// As if KVM cleared its log of written pages whenever it is read (before Linux 5.1).
    pub no_manual_protect: bool,
    /// As if KVM protected all of RAM when its log is switched on (before Linux 5.6).
    pub no_initially_all_set: bool,
    /// As if KVM had no ring of written pages (before Linux 5.11).
    pub no_dirty_ring: bool,
    /// As if userfaultfd could not protect without telling anybody (before Linux 6.7).
    pub no_wp_async: bool,
    /// As if page tables did not tell a protected absent page from one that was swapped out (without
    /// `CAP_SYS_ADMIN`): what is in doubt counts as content.
    pub no_marker_entries: bool,
    /// As if a process could have hardly any mappings (a very small `vm.max_map_count`).
    pub few_mappings: bool,
}

/// A name, and what it switches.
pub type Named = (&'static str, fn(&mut Fallbacks));

impl Fallbacks {
    /// The names under which a program offers them, with what each does.
    pub const NAMES: [Named; 11] = [
        ("no-wp-unpopulated", |f| f.no_wp_unpopulated = true),
        ("no-pagemap-scan", |f| f.no_pagemap_scan = true),
        ("no-populate-read", |f| f.no_populate_read = true),
        ("user-mode-only", |f| f.user_mode_only = true),
        ("no-userfaultfd", |f| f.no_userfaultfd = true),
        ("no-manual-protect", |f| f.no_manual_protect = true),
        ("no-initially-all-set", |f| f.no_initially_all_set = true),
        ("no-dirty-ring", |f| f.no_dirty_ring = true),
        ("no-wp-async", |f| f.no_wp_async = true),
        ("no-marker-entries", |f| f.no_marker_entries = true),
        ("few-mappings", |f| f.few_mappings = true),
    ];

    /// Forces the fallback of that name; false if there is none.
    pub fn force(&mut self, name: &str) -> bool {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        if let Some((_, set)) = found {
            set(self);
        }
        found.is_some()
    }
}

/// How much of userfaultfd this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Userfault {
    /// Nothing: not in this kernel, or not allowed.
    None,
    /// Only faults taken in user mode: enough for threads, not for KVM or read(2).
    UserMode,
    /// All.
    Full,
}

/// What this host can do.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// How much of userfaultfd may be used.
    pub userfault: Userfault,
    /// Its features.
    pub features: Features,
    /// Whether `PAGEMAP_SCAN` works.
    pub pagemap_scan: bool,
    /// Whether `MADV_POPULATE_READ` works.
    pub populate_read: bool,
    /// What it may not use although the kernel has it.
    pub forced: Fallbacks,
    /// What stands in the page tables for a protected absent page, where this process is shown it:
    /// [`crate::presence`].
    pub marker: Option<u64>,
}

impl Host {
    /// Asks the kernel, then forgets what `forced` denies.
    pub fn probe(forced: &Fallbacks) -> Self {
        let (userfault, features) = match Uffd::supported(forced.user_mode_only) {
            _ if forced.no_userfaultfd => (Userfault::None, Features::empty()),
            Ok((features, true)) => (Userfault::UserMode, features),
            Ok((features, false)) => (Userfault::Full, features),
            Err(error) => {
                tracing::debug!(%error, "no userfaultfd");
                (Userfault::None, Features::empty())
            }
        };
        let mut host = Self {
            userfault,
            features: features - denied(forced),
            pagemap_scan: false,
            populate_read: false,
            forced: *forced,
            marker: None,
        };
        host.ask_for_the_rest();
        tracing::debug!(?host, "probed");
        host
    }

    /// The same host, with the right to use userfaultfd as it is now. What it could not do is asked for
    /// again: there may have been no descriptor to ask with, or no right to.
    pub fn asked_again(&self) -> Self {
        let mut now = *self;
        if !self.forced.no_userfaultfd {
            match Uffd::supported(self.forced.user_mode_only) {
                Ok((features, user_mode_only)) => {
                    now.features = features - denied(&self.forced);
                    now = now.with_right_to(user_mode_only);
                }
                Err(_) => now.userfault = Userfault::None,
            }
        }
        now.ask_for_the_rest();
        now
    }

    /// Asks for what it cannot do so far, but for what it may not. What it can do it can for good.
    fn ask_for_the_rest(&mut self) {
        let forced = self.forced;
        if let Ok(page) = Mapping::anonymous(page_size(), false) {
            if !self.pagemap_scan && !forced.no_pagemap_scan {
                self.pagemap_scan = has_pagemap_scan(&page);
            }
            if !self.populate_read && !forced.no_populate_read {
                let asked = page.advise(0, page.len(), Advice::PopulateRead);
                self.populate_read = asked.is_ok();
            }
        }
        let has_markers = self.features.contains(Features::WP_UNPOPULATED);
        if self.marker.is_none() && has_markers && !forced.no_marker_entries {
            let uffd = self.open_uffd().ok();
            self.marker = uffd.and_then(|uffd| probe_marker(&uffd));
        }
    }

    /// The same host, for whoever has a userfaultfd: whether it is told of faults in user mode only.
    pub fn with_right_to(mut self, user_mode_only: bool) -> Self {
        self.userfault = if user_mode_only {
            Userfault::UserMode
        } else {
            Userfault::Full
        };
        self
    }

    /// Whether anonymous memory can be frozen.
    pub fn can_freeze(&self) -> bool {
        self.userfault != Userfault::None && self.features.contains(Features::WP)
    }

    /// Whether shared memory (memfd, hugetlbfs) can be frozen.
    pub fn can_freeze_shared(&self) -> bool {
        self.can_freeze() && self.features.contains(Features::WP_SHARED)
    }

    /// Whether writes to memory can be tracked without KVM.
    pub fn can_track(&self) -> bool {
        let needed = Features::WP | Features::WP_ASYNC;
        self.userfault != Userfault::None && self.features.contains(needed) && self.pagemap_scan
    }

    /// Mappings that this process may have, asked now: it can be changed at any time.
    pub fn most_mappings(&self) -> usize {
        if self.forced.few_mappings {
            FEW_MAPPINGS
        } else {
            Limits::of_this_process().most_mappings()
        }
    }

    /// Opens a userfaultfd whose protection is taken away by a write, which it tells nobody: for
    /// [`Pagemap::take_written`](crate::presence::Pagemap::take_written). Absent pages are protected too.
    ///
    /// # Errors
    ///
    /// [`UffdError::Denied`] without the right to, `Other(EINVAL)` if [`Host::can_track`] is not.
    pub fn open_tracking_uffd(&self) -> Result<Uffd, UffdError> {
        if self.userfault == Userfault::None {
            return Err(UffdError::Denied(rustix::io::Errno::PERM));
        }
        let optional = Features::WP_SHARED | Features::WP_UNPOPULATED;
        let wanted = Features::WP | Features::WP_ASYNC;
        Uffd::open(
            wanted | (optional & self.features),
            self.userfault == Userfault::UserMode,
        )
    }

    /// Opens a userfaultfd with all that the engine uses of what is there.
    ///
    /// # Errors
    ///
    /// [`UffdError::Denied`] without the right to.
    pub fn open_uffd(&self) -> Result<Uffd, UffdError> {
        let wanted = Features::WP
            | Features::WP_SHARED
            | Features::WP_UNPOPULATED
            | Features::MISSING_HUGETLB
            | Features::MISSING_SHARED
            | Features::EVENT_REMOVE;
        if self.userfault == Userfault::None {
            return Err(UffdError::Denied(rustix::io::Errno::PERM));
        }
        Uffd::open(
            wanted & self.features,
            self.userfault == Userfault::UserMode,
        )
    }
}

/// Features that are not to be used.
fn denied(forced: &Fallbacks) -> Features {
    let mut denied = Features::empty();
    denied.set(Features::WP_UNPOPULATED, forced.no_wp_unpopulated);
    denied.set(Features::WP_ASYNC, forced.no_wp_async);
    denied
}
