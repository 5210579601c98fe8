//! Who hears that pages cannot be had.
//!
//! RAM is filled from before there is a machine on it, and a page may be missed that early: by whoever
//! builds the machine. So a failure is kept until somebody is there to hear of it, and told then, once.
//! What becomes meanwhile of those who wait for the page hangs on the mode: see [`Ear::new`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use paguro_pager::{Failure, SourceError, Waiters};

type Listener = Arc<dyn Fn(&SourceError) -> Waiters + Send + Sync>;

/// A place to hear of failures, with or without somebody who does.
pub(super) struct Ear {
    /// What becomes of those who wait while nobody hears.
    early: Waiters,
    /// What pages are of, for the operator.
    what: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listener: Option<Listener>,
    kept: Option<SourceError>,
}

impl Ear {
    /// Of a source, called `what`. Who waits `early` is kept waiting or let go. Let go he was given zeros,
    /// so that what may have passed has not: it is told as [`SourceError::Lost`].
    pub(super) fn new(early: Waiters, what: String) -> Arc<Self> {
        Arc::new(Self {
            early,
            what,
            state: Mutex::default(),
        })
    }

    /// A page cannot be had.
    pub(super) fn hear(&self, error: &SourceError) -> Waiters {
        let mut state = self.state();
        if let Some(listener) = state.listener.clone() {
            // It may take as long as it takes to stop a machine.
            drop(state);
            return listener(error);
        }
        let why = crate::error::with_causes(error);
        tracing::warn!(why, early = ?self.early, "a page is missed before anybody hears of it");
        // The first counts, but what stays says more than what may pass.
        if state.kept.as_ref().is_none_or(SourceError::may_pass) {
            state.kept = Some(self.keep(error));
        }
        self.early
    }

    /// From now on `listener` hears; at once, in the caller's thread, of what was kept.
    pub(super) fn listen(&self, listener: Failure) {
        let listener: Listener = Arc::from(listener);
        let kept = {
            let mut state = self.state();
            state.listener = Some(listener.clone());
            state.kept.take()
        };
        if let Some(error) = kept {
            // What it answers comes too late.
            listener(&error);
        }
    }

    /// An error of one's own.
    fn keep(&self, error: &SourceError) -> SourceError {
        match error {
            error if error.may_pass() && self.early == Waiters::LetGo => self.lost(error),
            SourceError::Lost { pages, what } => SourceError::Lost {
                pages: *pages,
                what: what.clone(),
            },
            SourceError::Read {
                block,
                first,
                end,
                source,
            } => SourceError::Read {
                block: block.clone(),
                first: *first,
                end: *end,
                source: match source.raw_os_error() {
                    Some(number) => std::io::Error::from_raw_os_error(number),
                    None => std::io::Error::new(source.kind(), source.to_string()),
                },
            },
            SourceError::Silent { what, seconds } => SourceError::Silent {
                what: what.clone(),
                seconds: *seconds,
            },
            SourceError::Damaged {
                block,
                page,
                expected,
                found,
            } => SourceError::Damaged {
                block: block.clone(),
                page: *page,
                expected: *expected,
                found: *found,
            },
            SourceError::Changed { what, how } => SourceError::Changed {
                what: what.clone(),
                how: how.clone(),
            },
            SourceError::Bug => SourceError::Bug,
            // No page of a mapping is placed, and what else there may be one day is not worse.
            error => self.lost(error),
        }
    }

    fn lost(&self, error: &SourceError) -> SourceError {
        let why = crate::error::with_causes(error);
        SourceError::Lost {
            pages: 1,
            what: format!("{} ({why})", self.what),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        let heard = state.listener.is_some();
        write!(f, "Ear(heard: {heard}, kept: {:?})", state.kept)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn read() -> SourceError {
        SourceError::Read {
            block: "ram0".to_owned(),
            first: 1,
            end: 2,
            source: std::io::Error::from_raw_os_error(5),
        }
    }

    fn listen(ear: &Ear) -> Receiver<(String, bool)> {
        let (tell, told) = channel();
        let tell = Mutex::new(tell);
        ear.listen(Box::new(move |error| {
            let said = (error.to_string(), error.may_pass());
            tell.lock().unwrap().send(said).unwrap();
            Waiters::Keep
        }));
        told
    }

    #[test]
    fn what_comes_too_early_is_told_once_there_is_somebody() {
        let ear = Ear::new(Waiters::LetGo, "a.snap".to_owned());
        assert_eq!(ear.hear(&SourceError::Bug), Waiters::LetGo);
        assert_eq!(ear.hear(&read()), Waiters::LetGo);
        let told = listen(&ear);
        assert_eq!(told.recv().unwrap().0, SourceError::Bug.to_string());
        // Whoever comes later hears no more of it.
        assert!(listen(&ear).try_recv().is_err());
    }

    #[test]
    fn whoever_was_let_go_early_is_told_of_as_lost() {
        let ear = Ear::new(Waiters::LetGo, "a.snap".to_owned());
        ear.hear(&read());
        let (said, may_pass) = listen(&ear).recv().unwrap();
        assert!(said.starts_with("1 pages of a.snap") && !may_pass, "{said}");
        assert!(said.contains("Input/output error"), "{said}");
    }

    #[test]
    fn whoever_waits_on_is_told_of_as_waiting() {
        let ear = Ear::new(Waiters::Keep, "a.snap".to_owned());
        assert_eq!(ear.hear(&read()), Waiters::Keep);
        let (said, may_pass) = listen(&ear).recv().unwrap();
        assert!(said == read().to_string() && may_pass, "{said}");
    }

    #[test]
    fn whoever_hears_decides() {
        let ear = Ear::new(Waiters::LetGo, "a.snap".to_owned());
        let told = listen(&ear);
        assert_eq!(ear.hear(&read()), Waiters::Keep);
        assert!(told.recv().unwrap().1);
    }
}
