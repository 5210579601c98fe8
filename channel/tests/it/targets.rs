//! Where a file can be put: it either works, or is refused before a byte is sent.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use paguro_channel::{Address, Outgoing};
use paguro_testkit::{must_end, skipped};

use crate::tools::{options, text};

fn file(path: &Path) -> Address {
    let path = path.to_owned();
    Address::File { path, offset: 0 }
}

/// Puts a file there; the error's text if that is refused before anything is written.
fn put(path: &Path) -> Result<(), String> {
    let channel = Outgoing::connect(&file(path), &options()).map_err(|error| text(&error))?;
    let (_, mut writer) = channel.split();
    writer.write_all(b"the new one").unwrap();
    let unconfirmed = writer.finish().unwrap();
    assert!(unconfirmed.is_none(), "{unconfirmed:?}");
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o600);
    Ok(())
}

#[track_caller]
fn works(path: &Path) {
    put(path).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"the new one");
}

#[track_caller]
fn refused(path: &Path, why: &str) {
    let error = put(path).unwrap_err();
    assert!(error.starts_with("cannot create /"), "{error}");
    assert!(error.contains(why), "not {why:?}: {error}");
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn subdirs<const N: usize>(dir: &Path, names: [&str; N]) -> [PathBuf; N] {
    names.map(|name| {
        let path = dir.join(name);
        fs::create_dir(&path).unwrap();
        path
    })
}

#[test]
fn a_link_is_followed_and_stays() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let [here, there] = subdirs(dir.path(), ["here", "there"]);
    // Of another file system, if there is one; else of another directory at least.
    let far = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let far = far.unwrap();
    for (name, to) in [
        ("relative", PathBuf::from("../there/a")),
        ("absolute", there.join("b")),
        ("chain", here.join("relative")),
        ("far", far.path().join("c")),
    ] {
        let link = here.join(name);
        symlink(&to, &link).unwrap();
        // It leads nowhere yet, but for the chain; then to an older file.
        for _ in 0..2 {
            works(&link);
            assert_eq!(fs::read_link(&link).unwrap(), to);
        }
    }
    assert_eq!(names(&here), ["absolute", "chain", "far", "relative"]);
    assert_eq!(names(&there), ["a", "b"]);
    assert_eq!(names(far.path()), ["c"]);
    let linked = fs::symlink_metadata(far.path().join("c")).unwrap();
    assert!(linked.is_file());
    // A header is kept from where the link leads.
    let address = Address::File {
        path: here.join("far"),
        offset: 4,
    };
    let channel = Outgoing::connect(&address, &options()).unwrap();
    let (_, mut writer) = channel.split();
    writer.write_all(b"ory").unwrap();
    writer.finish().unwrap();
    assert_eq!(fs::read(far.path().join("c")).unwrap(), b"the ory");
}

#[test]
fn links_that_lead_to_no_file_are_refused() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let held = fs::File::create(at("held")).unwrap();
    let fd = held.as_raw_fd();
    for (name, to, why) in [
        ("loop", "loop".to_owned(), "Too many levels"),
        ("nowhere", "no/such/x".to_owned(), "No such file"),
        ("dir", ".".to_owned(), "it is a directory"),
        ("slash", "held/".to_owned(), "directory"),
        ("null", "/dev/null".to_owned(), "it is a device"),
        (
            "fd",
            format!("/dev/fd/{fd}"),
            "a descriptor of this process",
        ),
    ] {
        symlink(to, at(name)).unwrap();
        refused(&at(name), why);
    }
    let own = PathBuf::from(format!("/proc/self/fd/{fd}"));
    for path in [Path::new("/dev/stdout"), &own] {
        refused(path, "a descriptor of this process");
    }
    assert_eq!(fs::read(at("held")).unwrap(), b"");
}

#[test]
fn a_name_of_any_length_that_the_file_system_takes_works() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    for bytes in [1, 95, 96, 97, 237, 238, 239, 254, 255] {
        let path = dir.path().join("n".repeat(bytes));
        works(&path);
        works(&path);
    }
    works(&dir.path().join("é".repeat(127)));
    works(&dir.path().join(OsStr::from_bytes(b"\xff\xfe not UTF-8")));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 11);
    refused(&dir.path().join("n".repeat(256)), "File name too long");
    refused(&dir.path().join("n/".repeat(2100) + "n"), "too long");
}

#[test]
fn what_is_no_file_is_refused() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    fs::write(at("file"), "the old one").unwrap();
    for (name, why) in [
        ("", "it is a directory"),
        (".", "it is a directory"),
        ("..", "it is a directory"),
        ("new/", "it is a directory"),
        ("file/x", "Not a directory"),
        ("no/such/x", "No such file"),
        ("pipe", "it is a pipe"),
        ("socket", "it is a socket"),
    ] {
        refused(&at(name), why);
    }
    refused(Path::new("/"), "it is a directory");
    refused(Path::new("/dev/null"), "it is a device");
    assert_eq!(names(dir.path()), ["file", "pipe", "socket"]);
    assert_eq!(fs::read(at("file")).unwrap(), b"the old one");
}

#[test]
fn what_an_older_file_allowed_is_not_passed_on() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for mode in [0, 0o200, 0o444, 0o600, 0o4755, 0o666] {
        fs::write(at("x"), "the old one").unwrap();
        fs::set_permissions(at("x"), Permissions::from_mode(mode)).unwrap();
        works(&at("x"));
        fs::remove_file(at("x")).unwrap();
    }
    // Who has it by another name keeps it.
    fs::write(at("x"), "the old one").unwrap();
    fs::hard_link(at("x"), at("y")).unwrap();
    works(&at("x"));
    assert_eq!(fs::read(at("y")).unwrap(), b"the old one");
}

/// Something mounted for a test, in a directory of its own.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(options: &[&str]) -> Option<Self> {
        Self::at(tempfile::tempdir().unwrap(), "", options)
    }

    fn at(dir: tempfile::TempDir, name: &str, options: &[&str]) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(options).arg(dir.path().join(name));
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        skipped(format_args!("cannot mount: {options:?}"));
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for name in ["x", ""] {
            let _ = Command::new("umount")
                .arg(self.0.path().join(name))
                .output();
        }
    }
}

#[test]
fn a_file_that_something_is_mounted_on_is_refused() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("x"), "the old one").unwrap();
    fs::write(at("y"), "another one").unwrap();
    let other = at("y");
    let bind = ["--bind", other.to_str().unwrap()];
    let path = at("x");
    let Some(_mounted) = Mounted::at(dir, "x", &bind) else {
        return;
    };
    refused(&path, "something is mounted on it");
    assert_eq!(fs::read(&path).unwrap(), b"another one");
}

#[test]
fn a_file_system_that_takes_nothing_is_refused() {
    let _ends = must_end();
    let tmpfs = ["-t", "tmpfs", "-o", "size=64k", "paguro-test"];
    let Some(full) = Mounted::new(&tmpfs) else {
        return;
    };
    let path = full.0.path().join("x");
    works(&path);
    let mut filler = fs::File::create(full.0.path().join("filler")).unwrap();
    while filler.write(&[1; 4096]).is_ok() {}
    drop(filler);
    refused(&path, "No space left");
    assert_eq!(fs::read(&path).unwrap(), b"the new one");
    assert_eq!(names(full.0.path()), ["filler", "x"]);
    let remounted = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(full.0.path())
        .status();
    assert!(remounted.unwrap().success());
    for name in ["x", "y"] {
        refused(&full.0.path().join(name), "Read-only file system");
    }
}

#[test]
fn a_file_that_cannot_be_removed_is_refused() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    for flag in ["i", "a"] {
        fs::write(&path, "the old one").unwrap();
        let change = |sign: &str| {
            let mut chattr = Command::new("chattr");
            chattr.arg(format!("{sign}{flag}")).arg(&path).output()
        };
        if !change("+").is_ok_and(|output| output.status.success()) {
            return skipped("chattr does nothing here");
        }
        let refusal = put(&path);
        change("-").unwrap();
        let refusal = refusal.unwrap_err();
        assert!(refusal.contains("may not be replaced"), "{refusal}");
        assert_eq!(fs::read(&path).unwrap(), b"the old one");
    }
    assert_eq!(names(dir.path()), ["x"]);
}

const NOBODY: u32 = 65534;
/// The directory that a test prepared for its other half.
const PREPARED: &str = "PAGURO_TEST_PREPARED";

/// Runs the test of that name once more, as nobody, in a directory that was prepared as root. Gives
/// the directory to that other half, and nothing to this one.
fn as_nobody(test: &str, prepare: impl FnOnce(&Path)) -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(PREPARED) {
        return Some(dir.into());
    }
    if !rustix::process::geteuid().is_root() {
        skipped("the directories of others can be made as root only");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    prepare(dir.path());
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args([test, "--exact", "--nocapture"]);
    again.env(PREPARED, dir.path()).uid(NOBODY).gid(NOBODY);
    match again.output() {
        Ok(output) => {
            let [out, err] =
                [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
            assert!(output.status.success(), "{out}{err}");
            assert!(out.contains("1 passed"), "{out}");
        }
        Err(error) => skipped(format_args!("nobody cannot run this test: {error}")),
    }
    None
}

#[test]
fn directories_of_others_work_or_are_refused() {
    let _ends = must_end();
    let prepare = |dir: &Path| {
        for (name, mode) in [
            ("open", 0o777),
            ("unreadable", 0o733),
            ("unwritable", 0o755),
            ("unsearchable", 0o744),
            ("sticky", 0o1777),
        ] {
            let path = dir.join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("root's"), "the old one").unwrap();
            symlink("root's", path.join("link")).unwrap();
            fs::write(path.join("nobody's"), "the old one").unwrap();
            chown(path.join("nobody's"), Some(NOBODY), Some(NOBODY)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        // The owner of the directory is a third one, and neither root's link nor its own is to be
        // trusted by nobody.
        chown(dir.join("sticky"), Some(1), Some(1)).unwrap();
        symlink("nobody's", dir.join("sticky/own")).unwrap();
        std::os::unix::fs::lchown(dir.join("sticky/own"), Some(NOBODY), Some(NOBODY)).unwrap();
    };
    let test = "targets::directories_of_others_work_or_are_refused";
    let Some(dir) = as_nobody(test, prepare) else {
        return;
    };
    let at = |name: &str| dir.join(name);
    for name in ["open", "unreadable"] {
        for file in ["root's", "nobody's", "new", "link"] {
            works(&at(name).join(file));
        }
    }
    let old = |path: &Path| assert_eq!(fs::read(path).unwrap(), b"the old one");
    for file in ["root's", "nobody's", "new", "link"] {
        refused(&at("unwritable").join(file), "Permission denied");
        refused(&at("unsearchable").join(file), "Permission denied");
    }
    old(&at("unwritable/root's"));
    works(&at("sticky/new"));
    works(&at("sticky/own"));
    works(&at("sticky/nobody's"));
    refused(&at("sticky/root's"), "may not be replaced");
    refused(&at("sticky/link"), "somebody else's link");
    old(&at("sticky/root's"));
}

/// A file without a name is given one by its descriptor, or through `/proc`; else it has one.
#[test]
fn without_proc_all_is_the_same() {
    let _ends = must_end();
    let test = "targets::without_proc_all_is_the_same";
    if let Some(dir) = std::env::var_os(PREPARED) {
        assert!(!Path::new("/proc/self").exists());
        let path = Path::new(&dir).join("x");
        works(&path);
        works(&path);
        assert_eq!(names(Path::new(&dir)), ["x"]);
        return;
    }
    let hidden = "mount -t tmpfs none /proc";
    for user in ["0", "65534"] {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let mut unshare = Command::new("unshare");
        unshare
            .env(PREPARED, dir.path())
            .args(["-m", "/bin/sh", "-c"]);
        let exe = std::env::current_exe().unwrap();
        let run = format!(
            "{hidden} && exec setpriv --reuid {user} --regid {user} --clear-groups {} {test} --exact",
            exe.display()
        );
        if !rustix::process::geteuid().is_root() {
            return skipped("only root can hide /proc");
        }
        match unshare.arg(run).output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(said.contains("1 passed"), "{output:?}");
            }
            Err(error) => return skipped(format_args!("cannot hide /proc: {error}")),
        }
    }
}
