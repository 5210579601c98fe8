//! Commands, pipes and files.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use paguro_channel::{ChannelError, Incoming, Outgoing};
use paguro_testkit::must_end;

use crate::both_ways::inherited;
use crate::tools::{address, inside, listen, options, pattern, read_all, text};

/// Writes it all, and ends well.
fn send(to: &str, bytes: &[u8]) -> std::io::Result<()> {
    let channel = Outgoing::connect(&address(to), &options()).unwrap();
    assert!(!channel.can_return());
    let (mut reader, mut writer) = channel.split();
    assert!(reader.read(&mut [0]).is_err(), "it goes the other way");
    writer.write_all(bytes)?;
    let unconfirmed = writer.finish()?;
    assert!(unconfirmed.is_none(), "{unconfirmed:?}");
    Ok(())
}

fn receive(from: &str) -> std::io::Result<Vec<u8>> {
    let channel = listen(from, &options()).accept(None).unwrap();
    assert!(!channel.can_return());
    let (mut reader, mut writer) = channel.split();
    assert!(writer.write(&[0]).is_err(), "it goes the other way");
    let mut all = Vec::new();
    reader.read_to_end(&mut all)?;
    reader.finish().map(|()| all)
}

#[test]
fn a_command_takes_and_gives_a_stream() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stream").display().to_string();
    let bytes = pattern(3 << 20);
    send(&format!("exec:cat | cat > {file}"), &bytes).unwrap();
    assert!(std::fs::read(&file).unwrap() == bytes);
    assert!(receive(&format!("exec:cat {file} | cat")).unwrap() == bytes);
}

#[test]
fn a_command_that_fails_is_an_error_with_its_status() {
    let _ends = must_end();
    let error = send("exec:cat > /dev/null; exit 7", b"x").unwrap_err();
    assert!(error.to_string().ends_with("exit status: 7"), "{error}");
    let error = receive("exec:echo x; exit 8").unwrap_err();
    assert!(matches!(inside(&error), ChannelError::Command { .. }));
    let error = send("exec:exec true", &pattern(1 << 20)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    let none = paguro_channel::Address::Exec(vec!["/nowhere/prog".into()]);
    let error = Outgoing::connect(&none, &options()).unwrap_err();
    assert!(
        text(&error).contains("cannot run exec:'/nowhere/prog': No such"),
        "{error}"
    );
}

/// Of a program whose parent ignored SIGCHLD: all of a process, so in one of its own.
#[test]
fn how_a_command_ended_that_leaves_no_status_is_said_not_to_be_known() {
    let _ends = must_end();
    const WITHIN: &str = "PAGURO_TEST_WITHIN";
    if std::env::var_os(WITHIN).is_some() {
        let error = send("exec:cat > /dev/null", b"x").unwrap_err();
        let unknown = matches!(inside(&error), ChannelError::StatusUnknown { .. });
        assert!(unknown, "{error}");
        return;
    }
    let mut ignoring = std::process::Command::new("env");
    let name = "one_way::how_a_command_ended_that_leaves_no_status_is_said_not_to_be_known";
    let test = std::env::current_exe().unwrap();
    ignoring
        .arg("--ignore-signal=CHLD")
        .arg(test)
        .args(["--exact", name]);
    let output = ignoring.env(WITHIN, "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

/// It must not take half a stream for a whole one.
#[test]
fn a_command_whose_stream_breaks_off_is_killed_with_all_its_children() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let command = format!(
        "exec:cat > /dev/null | cat; cat > /dev/null; touch {}",
        done.display()
    );
    let channel = Outgoing::connect(&address(&command), &options()).unwrap();
    let (_, mut writer) = channel.split();
    writer.write_all(b"half").unwrap();
    drop(writer);
    assert!(!done.exists());
}

#[test]
fn a_command_with_more_to_say_is_no_error() {
    let _ends = must_end();
    let channel = listen("exec:yes", &options()).accept(None).unwrap();
    let (mut reader, _) = channel.split();
    reader.read_exact(&mut [0; 10]).unwrap();
    reader.finish().unwrap();
}

#[test]
fn an_inherited_pipe_carries_a_stream() {
    let _ends = must_end();
    let (out, into) = std::io::pipe().unwrap();
    let to = inherited(OwnedFd::from(into));
    let from = inherited(OwnedFd::from(out));
    let channel = Incoming::listen(&from, &options())
        .unwrap()
        .accept(None)
        .unwrap();
    let reading = std::thread::spawn(move || read_all(channel.split().0).unwrap());
    let bytes = pattern(1 << 20);
    send(&to.to_string(), &bytes).unwrap();
    assert!(reading.join().unwrap() == bytes);
    let (out, _into) = std::io::pipe().unwrap();
    let error = Outgoing::connect(&inherited(out.into()), &options()).unwrap_err();
    assert!(matches!(error, ChannelError::Unsuitable { .. }), "{error}");
}

/// The last bytes make a stream a whole one, so a disk must fail before them, or at the beginning.
#[test]
fn what_was_inherited_and_cannot_be_synced_is_refused() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("x")).unwrap();
    let to = inherited(file.into());
    let (_, mut writer) = Outgoing::connect(&to, &options()).unwrap().split();
    writer.write_all(b"x").unwrap();
    writer.settle().unwrap();
    assert!(writer.finish().unwrap().is_none());
    let mut options_of_file = std::fs::File::options();
    let name = options_of_file.write(true).open("/proc/self/comm").unwrap();
    let error = Outgoing::connect(&inherited(name.into()), &options()).unwrap_err();
    assert!(text(&error).starts_with("cannot sync fd:"), "{error}");
}

#[test]
fn a_file_has_its_name_only_when_it_is_whole() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stream");
    let name = format!("file:{}", path.display());
    std::fs::write(&path, "older").unwrap();
    let bytes = pattern(1 << 20);
    for whole in [false, true] {
        let (_, mut writer) = Outgoing::connect(&address(&name), &options())
            .unwrap()
            .split();
        writer.write_all(&bytes).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"older");
        if whole {
            writer.finish().unwrap();
        }
    }
    assert!(std::fs::read(&path).unwrap() == bytes);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    assert!(receive(&name).unwrap() == bytes);
}

#[test]
fn a_file_is_written_and_read_from_an_offset() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stream");
    let name = format!("file:{},offset=4K", path.display());
    std::fs::write(&path, [b"header".as_slice(), &[1; 8000]].concat()).unwrap();
    send(&name, b"stream").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let mut start = [0; 7];
    file.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"header\x01");
    assert_eq!(file.metadata().unwrap().len(), 4096 + 6);
    assert_eq!(receive(&name).unwrap(), b"stream");
    std::fs::remove_file(&path).unwrap();
    send(&name, b"stream").unwrap();
    assert_eq!(receive(&name).unwrap(), b"stream");
}

#[test]
fn what_is_no_file_is_neither_replaced_nor_read_as_one() {
    let _ends = must_end();
    let error = Outgoing::connect(&address("file:/dev/null"), &options()).unwrap_err();
    assert_eq!(text(&error), "cannot create /dev/null: it is a device");
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let name = address(&format!("file:{}", fifo.display()));
    let error = Incoming::listen(&name, &options()).unwrap_err();
    assert!(matches!(error, ChannelError::Unsuitable { .. }), "{error}");
    let none = address(&format!("file:{}/none", dir.path().display()));
    let error = Incoming::listen(&none, &options()).unwrap_err();
    assert!(text(&error).contains("No such file"), "{error}");
}
