//! What an operator is told: QEMU's names of the states, and what he may do.
//!
//! QEMU has no word for a source that gave the permission and heard nothing. `failed` would say
//! that the guest runs here, `completed` that it runs there, and the states of postcopy mean a
//! guest that runs already. So there is one name more, `x-paguro-in-doubt`, on both sides: of a
//! source without confirmation and of a loaded destination without permission. The run state of
//! such a source is `postmigrate` (QEMU refuses `migrate` there and accepts `cont`), that of such a
//! destination stays `inmigrate`, so that nobody takes it for a machine that was merely stopped.

use crate::destination::{Destination, DestinationState};
use crate::reason::Reason;
use crate::source::{Eof, Source, SourceState, Telling, Wanted};

/// What `query-migrate` says, by QEMU's names and one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MigrationStatus {
    /// A destination without a source.
    None,
    /// Connecting.
    Setup,
    /// RAM is moving, the guest runs.
    Active,
    /// The guest is stopped and waits for `migrate-continue`.
    PreSwitchover,
    /// The guest is stopped; what is left of it moves.
    Device,
    /// Done.
    Completed,
    /// A cancel is being carried out.
    Cancelling,
    /// Cancelled.
    Cancelled,
    /// Given up; threads are ending (a name of QEMU 11).
    Failing,
    /// Failed.
    Failed,
    /// The permission to run was sent and not confirmed, or waited for and not received.
    InDoubt,
}

impl MigrationStatus {
    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::Completed => "completed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Failing => "failing",
            Self::Failed => "failed",
            Self::InDoubt => "x-paguro-in-doubt",
        }
    }
}

/// What `query-status` says while a migration holds the machine, by QEMU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeldState {
    /// It waits for its state, or for the decision.
    InMigrate,
    /// It is stopped so that the end of a migration can be done.
    FinishMigrate,
    /// It is stopped after a migration.
    PostMigrate,
}

impl HeldState {
    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::InMigrate => "inmigrate",
            Self::FinishMigrate => "finish-migrate",
            Self::PostMigrate => "postmigrate",
        }
    }
}

/// Something that an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Choice {
    /// Nothing: it goes on by itself.
    Wait,
    /// `migrate_cancel`, and the guest runs on here.
    Cancel,
    /// `migrate-continue`.
    Continue,
    /// `migrate_cancel` in doubt.
    TakeBack,
    /// `migrate-continue` in doubt.
    HandOver,
    /// `cont` at a source in doubt.
    RunHere,
    /// `migrate_cancel` of what goes one way and is written as a whole.
    EndTheWay,
    /// `cont` at a source in doubt whose channel went one way.
    RunUnread,
    /// `cont` at a source in doubt whose RAM was handed over.
    RunUntouched,
    /// `cont` at a loaded destination.
    RunThere,
    /// `cont` at a machine that is here by right.
    Start,
    /// `cont` at a source that is done.
    RunAgain,
    /// `quit`, as nothing here is needed any more.
    Quit,
    /// `quit` at a source in doubt that cannot ask.
    QuitMoved,
    /// `quit` on one of two sides that both have the right to run.
    QuitOne,
}

impl Choice {
    /// What it means, and when it is safe.
    pub fn text(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Cancel => "`migrate_cancel`: the guest runs on here",
            Self::Continue => "`migrate-continue`: the guest moves on",
            Self::TakeBack => {
                "`migrate_cancel`: when the destination can be reached it is told to give up its \
                 copy, and the guest runs on here once it said that it did"
            }
            Self::HandOver => {
                "`migrate-continue`: when the destination can be reached it is told to run"
            }
            Self::RunHere => {
                "`cont`, only if you have made sure that the destination is dead or was ended: the \
                 guest runs on here at once"
            }
            Self::EndTheWay => {
                "`migrate_cancel`: a command is ended, and a file gets no name; if nothing can have \
                 arrived the guest runs on here"
            }
            Self::RunUnread => {
                "`cont`, only if you have made sure that nobody runs what was written: the guest \
                 runs on here at once"
            }
            Self::RunUntouched => {
                "`cont`, only if you have made sure that the destination is dead and has never run: \
                 the guest runs on here at once, in RAM as it is"
            }
            Self::RunThere => {
                "`cont`, only if you have made sure that the source is dead, or stopped and in \
                 doubt: the guest runs here at once"
            }
            Self::Start => "`cont`: the guest runs",
            Self::RunAgain => {
                "`cont`, only if you have made sure that the guest runs nowhere else: it runs here \
                 as it was when it left"
            }
            Self::Quit => "`quit`: nothing here is needed any more",
            Self::QuitMoved => {
                "`quit`, only if you have made sure that the guest runs at the destination"
            }
            Self::QuitOne => {
                "`quit` on one of the two sides at once: the guest may be running on both"
            }
        }
    }
}

/// What an operator is told of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What is so.
    pub is: &'static str,
    /// What he may do.
    pub may: &'static [Choice],
}

impl Source {
    /// For `query-migrate`.
    pub fn status(&self) -> MigrationStatus {
        match self.state() {
            SourceState::Setup => MigrationStatus::Setup,
            SourceState::Active | SourceState::Stopping => MigrationStatus::Active,
            SourceState::PreSwitchover => MigrationStatus::PreSwitchover,
            SourceState::Permitted {
                eof: Eof::Overdue { .. },
            } => MigrationStatus::InDoubt,
            SourceState::Device | SourceState::Loading | SourceState::Permitted { .. } => {
                MigrationStatus::Device
            }
            SourceState::InDoubt { .. } => MigrationStatus::InDoubt,
            SourceState::Completed => MigrationStatus::Completed,
            SourceState::Ending { why, .. } => match why {
                Reason::Cancelled => MigrationStatus::Cancelling,
                _ => MigrationStatus::Failing,
            },
            SourceState::Resumed { why, .. } => match why {
                Reason::Cancelled => MigrationStatus::Cancelled,
                _ => MigrationStatus::Failed,
            },
            SourceState::Gone { permitted: true } => MigrationStatus::InDoubt,
            SourceState::Gone { permitted: false } => MigrationStatus::None,
        }
    }

    /// For `query-status`; nothing where the migration does not hold the machine, which then says
    /// itself whether it runs.
    pub fn held(&self) -> Option<HeldState> {
        match self.state() {
            SourceState::Setup
            | SourceState::Active
            | SourceState::Stopping
            | SourceState::Ending { .. }
            | SourceState::Resumed { .. }
            | SourceState::Gone { .. } => None,
            SourceState::Permitted {
                eof: Eof::Overdue { .. },
            } => Some(HeldState::PostMigrate),
            SourceState::PreSwitchover
            | SourceState::Device
            | SourceState::Loading
            | SourceState::Permitted { .. } => Some(HeldState::FinishMigrate),
            SourceState::InDoubt { .. } | SourceState::Completed => Some(HeldState::PostMigrate),
        }
    }

    /// What is so, and what may be done.
    pub fn advice(&self) -> Advice {
        let (is, may): (_, &'static [Choice]) = match self.state() {
            SourceState::Setup | SourceState::Active | SourceState::Stopping => {
                ("the guest is being moved", &[Choice::Wait, Choice::Cancel])
            }
            SourceState::PreSwitchover => (
                "the guest is stopped and waits to be moved on",
                &[Choice::Continue, Choice::Cancel],
            ),
            SourceState::Device | SourceState::Loading => (
                "the guest is stopped and what is left of it is moved",
                &[Choice::Wait, Choice::Cancel],
            ),
            SourceState::Permitted { eof } => self.permitted(eof),
            SourceState::InDoubt { wanted, .. } => self.in_doubt(wanted),
            SourceState::Completed => (
                "the guest was moved; it is stopped here, whole, as it was when it left",
                &[Choice::Quit, Choice::RunAgain],
            ),
            SourceState::Ending { .. } => {
                ("the migration was given up and is ending", &[Choice::Wait])
            }
            SourceState::Resumed { telling, .. } => resumed(telling),
            SourceState::Gone { permitted: false } => ("it ends", &[]),
            SourceState::Gone { permitted: true } => (
                "it ends; the destination was permitted to run, and whether it does is not known",
                &[],
            ),
        };
        Advice { is, may }
    }

    /// The permission is given, or being given.
    fn permitted(&self, eof: Eof) -> (&'static str, &'static [Choice]) {
        match eof {
            Eof::Overdue { .. } => (
                "the guest was written as a whole, and whether all of it arrived is not known yet; \
                 it is stopped here, whole",
                &[Choice::Wait, Choice::EndTheWay, Choice::RunUnread],
            ),
            _ if !self.returns() => (
                "the guest was written as a whole, and that it arrived is not known yet",
                &[Choice::Wait, Choice::EndTheWay],
            ),
            _ => (
                "the destination was permitted to run and has not confirmed yet",
                &[Choice::Wait],
            ),
        }
    }

    /// No confirmation came. What is wanted counts only where the destination can be asked.
    fn in_doubt(&self, wanted: Wanted) -> (&'static str, &'static [Choice]) {
        match wanted {
            _ if !self.returns() => (
                "the guest was written as a whole, and whether all of it arrived is not known; it is \
                 stopped here, whole",
                &[Choice::RunUnread, Choice::QuitMoved],
            ),
            _ if !self.reconnects() => (
                "the destination was permitted to run, and whether it does is not known, nor can it \
                 be asked over such a channel; the guest is stopped here, whole",
                &[Choice::RunHere, Choice::QuitMoved],
            ),
            Wanted::Run => (
                "the destination was permitted to run, and whether it does is not known; the guest \
                 is stopped here, whole",
                &[Choice::Wait, Choice::TakeBack, Choice::RunHere],
            ),
            Wanted::Back { .. } => (
                "the guest is to be taken back, and whether the destination runs it is not known; \
                 it is stopped here, whole",
                &[Choice::Wait, Choice::HandOver, Choice::RunHere],
            ),
        }
    }
}

/// The guest is this side's again, and the destination may have to hear of it.
fn resumed(telling: Telling) -> (&'static str, &'static [Choice]) {
    match telling {
        Telling::Contradicted => (
            "the destination says that it has the right to run, and so has this side: somebody \
             said `cont` on both",
            &[Choice::QuitOne],
        ),
        Telling::Due | Telling::Asking => (
            "the guest is as it was before; the destination may be waiting with a copy, to be \
             ended (never continued)",
            &[Choice::Wait],
        ),
        Telling::Needless | Telling::Told => ("the guest is as it was before", &[]),
    }
}

impl Destination {
    /// For `query-migrate`.
    pub fn status(&self) -> MigrationStatus {
        match self.state() {
            DestinationState::Listening => MigrationStatus::Setup,
            DestinationState::Active => MigrationStatus::Active,
            DestinationState::Loading { .. }
            | DestinationState::Loaded
            | DestinationState::Starting { .. } => MigrationStatus::Device,
            DestinationState::Waiting { .. } => MigrationStatus::InDoubt,
            DestinationState::Owner { .. } => MigrationStatus::Completed,
            DestinationState::Abandoned { why } | DestinationState::Gone { why } => match why {
                Reason::TakenBack => MigrationStatus::Cancelled,
                _ => MigrationStatus::Failed,
            },
        }
    }

    /// For `query-status`; nothing once the machine is this side's, which then says itself whether
    /// it runs, as it may be stopped and continued as any other.
    pub fn held(&self) -> Option<HeldState> {
        match self.state() {
            DestinationState::Listening
            | DestinationState::Active
            | DestinationState::Loading { .. }
            | DestinationState::Loaded
            | DestinationState::Waiting { .. }
            | DestinationState::Starting { .. }
            | DestinationState::Abandoned { .. }
            | DestinationState::Gone { .. } => Some(HeldState::InMigrate),
            DestinationState::Owner { .. } => None,
        }
    }

    /// What is so, and what may be done.
    pub fn advice(&self) -> Advice {
        let (is, may): (_, &'static [Choice]) = match self.state() {
            DestinationState::Listening => {
                ("no source has come yet", &[Choice::Wait, Choice::Quit])
            }
            DestinationState::Active | DestinationState::Loading { .. } => {
                ("a guest is coming in", &[Choice::Wait])
            }
            DestinationState::Loaded => (
                "a guest is here, whole, and the source has not permitted it to run yet",
                &[Choice::Wait],
            ),
            DestinationState::Waiting { stuck: false } => (
                "a guest is here, whole, and was not permitted to run before the source was lost",
                &[Choice::Wait, Choice::RunThere],
            ),
            DestinationState::Waiting { stuck: true } => (
                "a guest is here, whole, and could not be started",
                &[Choice::Wait, Choice::RunThere],
            ),
            DestinationState::Starting { .. } => ("the guest is being started", &[Choice::Wait]),
            DestinationState::Owner { started: true } => ("the guest was moved here", &[]),
            DestinationState::Owner { started: false } => {
                ("the guest was moved here, and is paused", &[Choice::Start])
            }
            DestinationState::Abandoned { .. } | DestinationState::Gone { .. } => {
                ("the guest will never run here", &[Choice::Quit])
            }
        };
        Advice { is, may }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SourceConfig, SourceEvent};

    fn source(reconnects: bool, pause_before_switchover: bool) -> Source {
        Source::new(SourceConfig {
            return_path: true,
            reconnects,
            pause_before_switchover,
        })
    }

    /// Nobody is told to do what changes nothing.
    #[test]
    fn in_doubt_over_a_channel_of_one_use_only_the_operator_can_decide() {
        for reconnects in [false, true] {
            let mut source = source(reconnects, false);
            for event in [
                SourceEvent::Ready,
                SourceEvent::Converged,
                SourceEvent::Stopped,
                SourceEvent::Sent,
                SourceEvent::Pong(2),
                SourceEvent::EofWritten,
                SourceEvent::Failed(Reason::Silence),
            ] {
                source.on(event).unwrap();
            }
            assert_eq!(source.status(), MigrationStatus::InDoubt);
            let may = source.advice().may;
            assert!(may.contains(&Choice::RunHere), "{may:?}");
            assert_eq!(may.contains(&Choice::TakeBack), reconnects, "{may:?}");
        }
    }

    /// An operator who ends a source is told how far it came: what may run elsewhere has not failed.
    #[test]
    fn a_source_that_is_ended_is_not_told_to_have_failed_once_it_permitted() {
        use SourceEvent as E;
        let one_way = || {
            let mut source = Source::new(SourceConfig {
                return_path: false,
                reconnects: false,
                pause_before_switchover: false,
            });
            for event in [E::Ready, E::Converged, E::Stopped] {
                source.on(event).unwrap();
            }
            source
        };
        let mut source = one_way();
        source.on(E::Quit).unwrap();
        assert_eq!(source.status(), MigrationStatus::None);
        for (event, status) in [
            (E::EofWritten, MigrationStatus::Completed),
            (E::EofWithheld, MigrationStatus::None),
        ] {
            let mut source = one_way();
            source.on(E::Sent).unwrap();
            source.on(E::Quit).unwrap();
            assert_eq!(source.status(), MigrationStatus::InDoubt);
            let _ = source.on(E::EofTorn);
            assert_eq!(source.status(), MigrationStatus::InDoubt);
            source.on(event).unwrap();
            assert_eq!(source.status(), status);
            source.on(E::Quit).unwrap();
            assert_eq!(source.status(), status);
        }
    }

    #[test]
    fn a_source_goes_through_the_states_by_qemus_names() {
        let mut source = source(true, true);
        let mut seen = vec![(source.status().name(), source.held().map(HeldState::name))];
        for event in [
            SourceEvent::Ready,
            SourceEvent::Converged,
            SourceEvent::Stopped,
            SourceEvent::Continue,
            SourceEvent::Sent,
            SourceEvent::Pong(2),
            SourceEvent::EofWritten,
            SourceEvent::Failed(Reason::Silence),
            SourceEvent::Cancel,
            SourceEvent::Answer(crate::Answer::Abandoned),
            SourceEvent::Ended,
        ] {
            source.on(event).unwrap();
            let now = (source.status().name(), source.held().map(HeldState::name));
            if seen.last() != Some(&now) {
                seen.push(now);
            }
        }
        assert_eq!(
            seen,
            [
                ("setup", None),
                ("active", None),
                ("pre-switchover", Some("finish-migrate")),
                ("device", Some("finish-migrate")),
                ("x-paguro-in-doubt", Some("postmigrate")),
                ("cancelling", None),
                ("cancelled", None),
            ]
        );
    }
}
