//! What a host seldom does: file systems that lack something, and answers that are lost.

use std::fs;

use super::*;

fn create(path: &Path, lacking: Lacking) -> Result<PartialFile, FileError> {
    let file = PartialFile::create_with(path, true, lacking)?;
    file.write_at(0, b"the new one")?;
    Ok(file)
}

/// Names in a directory, and what stands at `path`.
fn left(path: &Path) -> (Vec<String>, String) {
    let names = fs::read_dir(path.parent().unwrap()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    (
        names.collect(),
        fs::read_to_string(path).unwrap_or_default(),
    )
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    fs::write(&path, "the old one").unwrap();
    (dir, path)
}

fn one(content: &str) -> (Vec<String>, String) {
    (vec!["x".to_owned()], content.to_owned())
}

#[test]
fn where_every_file_has_a_name_it_is_another_one_meanwhile() {
    let lacking = Lacking {
        unnamed: true,
        ..Lacking::default()
    };
    let (_dir, path) = place();
    let file = create(&path, lacking).unwrap();
    let (names, old) = left(&path);
    assert_eq!(old, "the old one");
    let partial = names.iter().find(|name| *name != "x").unwrap();
    assert!(
        partial.starts_with(".x.") && partial.ends_with(".partial"),
        "{names:?}"
    );
    drop(file);
    assert_eq!(left(&path), one("the old one"));
    assert!(
        create(&path, lacking)
            .unwrap()
            .complete()
            .unwrap()
            .is_none()
    );
    assert_eq!(left(&path), one("the new one"));
    // As where it has none.
    assert!(
        create(&path, Lacking::default())
            .unwrap()
            .complete()
            .unwrap()
            .is_none()
    );
    assert_eq!(left(&path), one("the new one"));
    let long = path.with_file_name("é".repeat(127));
    create(&long, lacking).unwrap().complete().unwrap();
    assert_eq!(fs::read(&long).unwrap(), b"the new one");
}

#[test]
fn where_no_name_can_be_changed_it_is_refused_at_once() {
    let lacking = Lacking {
        unnamed: true,
        rename: Some(|_, _, _| Err(Errno::OPNOTSUPP)),
        ..Lacking::default()
    };
    let (_dir, path) = place();
    let error = create(&path, lacking).unwrap_err();
    assert_eq!(error.doing, "create");
    assert_eq!(left(&path), one("the old one"));
}

#[test]
fn a_rename_that_failed_is_looked_into() {
    let with = |rename| Lacking {
        rename: Some(rename),
        ..Lacking::default()
    };
    // It was not done.
    let (_dir, path) = place();
    let file = create(&path, with(|_, _, _| Err(Errno::IO))).unwrap();
    assert!(matches!(file.complete(), Err(NotNamed::No(_))));
    assert_eq!(left(&path), one("the old one"));
    // It was, and the answer is lost.
    let done = with(|target, from, to| {
        renameat(target.dir(), from, target.dir(), to).unwrap();
        Err(Errno::TIMEDOUT)
    });
    assert!(create(&path, done).unwrap().complete().unwrap().is_none());
    assert_eq!(left(&path), one("the new one"));
    // It was, and somebody has replaced the file since: it was there for all to see.
    let replaced = with(|target, from, to| {
        renameat(target.dir(), from, target.dir(), to).unwrap();
        unlinkat(target.dir(), to, AtFlags::empty()).unwrap();
        Err(Errno::TIMEDOUT)
    });
    let error = create(&path, replaced).unwrap().complete().unwrap_err();
    assert!(matches!(error, NotNamed::Unknown(_)), "{error:?}");
}

#[test]
fn a_name_that_may_not_last_is_a_name() {
    let lacking = Lacking {
        sync: true,
        ..Lacking::default()
    };
    let (_dir, path) = place();
    let unconfirmed = create(&path, lacking).unwrap().complete().unwrap().unwrap();
    assert_eq!(unconfirmed.doing, "sync the directory of");
    assert_eq!(left(&path), one("the new one"));
}

#[test]
fn a_file_whose_name_leads_elsewhere_by_now_gets_none() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there] = ["here", "there"].map(|name| dir.path().join(name));
    fs::create_dir(&here).unwrap();
    let path = here.join("x");
    let file = create(&path, Lacking::default()).unwrap();
    fs::rename(&here, &there).unwrap();
    fs::create_dir(&here).unwrap();
    let Err(NotNamed::No(error)) = file.complete() else {
        panic!("it was named");
    };
    let source = error.source.get_ref().and_then(|e| e.downcast_ref());
    assert_eq!(source, Some(&TargetError::Moved));
    assert_eq!(fs::read_dir(&there).unwrap().count(), 0);
}

/// In containers all have the same process id, and one that was killed may have left its name.
#[test]
fn names_for_the_time_being_differ_and_are_short() {
    let long = OsString::from("n".repeat(255));
    let names = [0; 2].map(|_| partial_name(&long).unwrap());
    assert_ne!(names[0], names[1]);
    assert!(names[0].len() < 143);
    let cut = partial_name(OsStr::new(&"€".repeat(60))).unwrap();
    assert!(
        cut.to_str()
            .unwrap()
            .starts_with(&format!(".{}.", "€".repeat(32)))
    );
    // The third character begins within what is kept, and ends behind it.
    let cut = partial_name(OsStr::new(&format!("a{}", "€".repeat(60)))).unwrap();
    assert!(
        cut.to_str()
            .unwrap()
            .starts_with(&format!(".a{}.", "€".repeat(31)))
    );
}
