//! Which hint is whose.

use std::sync::Arc;

use anyhow::Context;
use paguro_migration::channel::TlsError;
use paguro_migration::switchover::Reason;
use paguro_migration::{Ended, TargetError};
use paguro_wire::stream::configuration::MAPPED_RAM;
use rustix::io::Errno;

use super::*;

#[test]
fn the_first_cause_with_advice_gives_it() {
    let full = io::Error::from(ErrorKind::StorageFull);
    let error = Err::<(), _>(full).context("cannot write").unwrap_err();
    assert!(hint(&error).unwrap().contains("make room"));
    let advised = Advised::error("no", "do this");
    assert_eq!(
        hint(&advised.context("outside")).as_deref(),
        Some("do this")
    );
    assert_eq!(hint(&anyhow::anyhow!("no idea")), None);
}

fn at(text: &str) -> Address {
    text.parse().unwrap()
}

/// Of a migration to there that was given up for this.
fn of_source(cause: MigrateError, why: Reason, to: &str) -> Option<String> {
    let cause = Some(Arc::new(cause));
    hint_to(&MigrateError::Ended(Ended { why, cause }).into(), &at(to))
}

fn channel(doing: &'static str, source: io::Error) -> MigrateError {
    let address = "h".to_owned();
    MigrateError::Channel(ChannelError::Io {
        doing,
        address,
        source,
    })
}

fn file(source: io::Error) -> MigrateError {
    let (doing, path) = ("create", "/x/y".into());
    MigrateError::Channel(ChannelError::File {
        doing,
        path,
        source,
    })
}

fn write(source: io::Error) -> MigrateError {
    let doing = "write to";
    MigrateError::Broken { doing, source }
}

/// What failed, with which number of the kernel, on the way to where: what helps.
#[test]
fn a_hint_is_of_the_cause_whatever_it_is_wrapped_in() {
    type Failed = fn(io::Error) -> MigrateError;
    type Row<'a> = (Errno, &'a [&'a str], &'a [Failed], Option<&'a str>);
    let connect: Failed = |source| channel(ChannelError::CONNECT, source);
    let find: Failed = |source| channel(ChannelError::FIND_HOST, source);
    let run: Failed = |source| channel("run", source);
    let thread: Failed = MigrateError::Thread;
    let (sockets, file_at, exec) = (
        &["tcp:h:1", "unix:/x/y", "vsock:2:1"][..],
        &["file:/x/y"][..],
        &["exec:cat"][..],
    );
    let all = &[sockets, file_at, exec].concat()[..];
    let destination = Some("see what the destination says");
    let command = Some("see what the command says");
    let first = Some("start the destination first");
    let rows: [Row<'_>; 18] = [
        (
            Errno::MFILE,
            all,
            &[connect, find, run, file, write, thread],
            Some("ulimit -n"),
        ),
        (
            Errno::NFILE,
            all,
            &[connect, find, run, file, write, thread],
            Some("fs.file-max"),
        ),
        (
            Errno::AGAIN,
            all,
            &[connect, find, run, thread],
            Some("pids.max"),
        ),
        (Errno::NOSPC, all, &[file, write], Some("make room")),
        (Errno::DQUOT, all, &[file, write], Some("make room")),
        (Errno::FBIG, all, &[file, write], Some("ulimit -f")),
        (Errno::CONNREFUSED, sockets, &[connect], first),
        (Errno::NOENT, &["unix:/x/y"], &[connect], first),
        (Errno::HOSTUNREACH, sockets, &[connect, find], first),
        (Errno::PIPE, sockets, &[write], destination),
        (Errno::CONNRESET, sockets, &[write], destination),
        (Errno::PIPE, exec, &[write], command),
        (Errno::NOENT, exec, &[run], None),
        (Errno::NOENT, file_at, &[file], Some("make the directory")),
        (Errno::ACCESS, file_at, &[file], Some("let the user")),
        (Errno::ROFS, file_at, &[file], Some("can be written")),
        (Errno::IO, file_at, &[file, write], None),
        (Errno::NOMEM, all, &[thread], None),
    ];
    for (errno, addresses, operations, expected) in rows {
        for (number, to) in operations
            .iter()
            .flat_map(|failed| addresses.iter().map(move |to| (failed, to)))
        {
            let cause = number(errno.into());
            let why = match cause {
                MigrateError::Thread(_) => Reason::Here,
                _ => Reason::Channel,
            };
            let what = format!("{errno:?}, {cause:?}, {to}");
            assert_advice(&what, of_source(cause, why, to).as_deref(), expected);
        }
    }
}

fn assert_advice(what: &str, hint: Option<&str>, expected: Option<&str>) {
    let is_right = match (hint, expected) {
        (Some(hint), Some(part)) => hint.find(part).is_some(),
        (None, None) => true,
        _ => false,
    };
    assert!(is_right, "{what}: {hint:?}, not {expected:?}");
}

#[test]
fn what_failed_here_is_not_looked_for_at_the_destination() {
    let tls = |source| {
        let peer = "tcp:h:1".to_owned();
        MigrateError::Channel(ChannelError::Tls { peer, source })
    };
    let no_file = TlsError::File {
        path: "/x/ca-cert.pem".into(),
        source: ErrorKind::NotFound.into(),
    };
    let device = io::Error::other(TargetError::Device);
    for (cause, expected) in [
        (tls(no_file), Some("ca-cert.pem")),
        (
            channel(
                ChannelError::AGREE_ON_TLS,
                ErrorKind::ConnectionReset.into(),
            ),
            Some("or neither"),
        ),
        (file(device), Some("exec:cat")),
        (file(io::Error::other("no")), None),
    ] {
        let what = format!("{cause:?}");
        assert_advice(
            &what,
            of_source(cause, Reason::Channel, "tcp:h:1").as_deref(),
            expected,
        );
    }
    let lost = of_source(MigrateError::LostPages, Reason::Here, "tcp:h:1");
    assert_advice("lost pages", lost.as_deref(), None);
    let ended = MigrateError::Ended(Ended {
        why: Reason::Abandoned,
        cause: None,
    });
    assert_advice(
        "nothing",
        hint(&ended.into()).as_deref(),
        Some("destination says"),
    );
}

#[test]
fn a_destination_is_told_which_options_differ() {
    let of = |cause, why| {
        let cause = Some(Arc::new(cause));
        ReceiveError::Ended(Ended { why, cause })
    };
    let missing = || ReceiveError::MissingChannels {
        came: 4,
        of: 6,
        within: std::time::Duration::from_secs(10),
    };
    let snapshot = || {
        ReceiveError::Stream(DecodeError::Capabilities {
            offset: 8,
            here: Vec::new(),
            there: vec![MAPPED_RAM.to_owned()],
        })
    };
    let differs = || ReceiveError::Stream(DecodeError::differs("RAM blocks", 0, 1, 2));
    for (cause, why, expected) in [
        (missing(), Reason::Silence, "--multifd-channels"),
        (snapshot(), Reason::OutOfTurn, "paguro restore"),
        (differs(), Reason::OutOfTurn, "--memory"),
        (
            ReceiveError::Thread(Errno::AGAIN.into()),
            Reason::Here,
            "ulimit -u",
        ),
    ] {
        let what = format!("{cause:?}");
        assert_advice(
            &what,
            hint(&of(cause, why).into()).as_deref(),
            Some(expected),
        );
    }
    for (cause, expected) in [
        (snapshot(), "paguro restore"),
        (differs(), "look at the command or the file"),
        (ReceiveError::Thread(Errno::MFILE.into()), "ulimit -n"),
    ] {
        let what = format!("{cause:?}, stored");
        let stored = of_stored(of(cause, Reason::OutOfTurn));
        assert_advice(&what, hint(&stored).as_deref(), Some(expected));
    }
}

#[test]
fn without_kvm_threads_are_offered() {
    for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied] {
        let error = VmError::NoKvm(io::Error::from(kind)).into();
        assert!(hint(&error).unwrap().contains("--accel threads"));
    }
}
