use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use paguro_sys::{BusErrors, MapError, Mapping, catch_bus_errors, wait_at_bus_errors};
use paguro_testkit::{Flaky, alone};

/// No patience.
const NONE: Duration = Duration::ZERO;

/// More than any test waits.
const MUCH: Duration = Duration::from_secs(600);

/// Ten pages of ones, mapped, of which the file keeps only the first four.
fn cut_short() -> Arc<Mapping> {
    let file = tempfile::tempfile().unwrap();
    rustix::io::pwrite(&file, &vec![1; 10 * 4096], 0).unwrap();
    let mapping = Mapping::private_file(file.as_fd(), 0, 10 * 4096).unwrap();
    file.set_len(4 * 4096).unwrap();
    Arc::new(mapping)
}

fn rang(watch: &BusErrors) -> bool {
    rustix::io::read(watch.bell(), &mut [0u8; 8]).is_ok()
}

#[test]
fn a_page_that_cannot_be_read_rings_and_is_zero() {
    let _alone = alone();
    let mapping = cut_short();
    let watch = catch_bus_errors(&mapping, NONE).unwrap();
    let other = catch_bus_errors(&cut_short(), NONE).unwrap();
    assert!(mapping.is_equal(0, &[1; 4 * 4096]));
    assert!(!rang(&watch));
    assert!(mapping.is_zero(5 * 4096, 4096));
    assert!(rang(&watch) && watch.lost() == 1);
    // Once is enough for a page; writing is as good a touch as reading.
    mapping.copy_in(5 * 4096, &[9]);
    assert_eq!(watch.lost(), 1);
    mapping.copy_in(9 * 4096 + 8, &[9]);
    assert!(watch.lost() == 2 && rang(&watch) && !rang(&watch));
    assert!(other.lost() == 0 && !rang(&other));
}

/// A mapping of a file of ones whose reads can be made to fail, and what it stands on.
fn flaky() -> Option<(Flaky, Arc<Mapping>, tempfile::TempDir)> {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("below");
    std::fs::write(&below, vec![1; 64 * 4096]).unwrap();
    std::fs::create_dir(dir.path().join("there")).unwrap();
    let flaky = Flaky::mount(&dir.path().join("there"), &below)?;
    let file = std::fs::File::open(flaky.path()).unwrap();
    let mapping = Mapping::private_file(file.as_fd(), 0, 64 * 4096).unwrap();
    Some((flaky, Arc::new(mapping), dir))
}

fn until(so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !so() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "it does not come"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_page_that_can_be_read_again_is_what_it_was() {
    let _alone = alone();
    let Some((flaky, mapping, _dir)) = flaky() else {
        return;
    };
    flaky.fail();
    let watch = catch_bus_errors(&mapping, MUCH).unwrap();
    let reader = {
        let mapping = mapping.clone();
        std::thread::spawn(move || mapping.is_equal(40 * 4096, &[1; 4096]))
    };
    until(|| watch.failed() > 3);
    assert!(rang(&watch) && watch.last_page() == Some(40));
    flaky.mend();
    assert!(reader.join().unwrap(), "it is not what the file has");
    assert_eq!((watch.lost(), watch.in_vain()), (0, 0));
    // Asked beforehand, the kernel says so.
    flaky.fail();
    let asked = mapping.advise(0, 64 * 4096, paguro_sys::Advice::PopulateRead);
    assert!(asked.is_err_and(|error: MapError| error.is_unreadable()));
}

#[test]
fn who_can_wait_waits_on_and_is_patient_anew_when_told() {
    let _alone = alone();
    let Some((flaky, mapping, _dir)) = flaky() else {
        return;
    };
    flaky.fail();
    let watch = catch_bus_errors(&mapping, Duration::from_millis(20)).unwrap();
    let reader = {
        let mapping = mapping.clone();
        std::thread::spawn(move || {
            wait_at_bus_errors(true);
            mapping.is_equal(9 * 4096, &[1; 4096])
        })
    };
    until(|| watch.in_vain() == 1);
    // Told once, and then once more.
    let failed = watch.failed();
    until(|| watch.failed() > failed + 1);
    assert_eq!(watch.in_vain(), 1);
    watch.renew();
    until(|| watch.in_vain() == 2);
    flaky.mend();
    assert!(reader.join().unwrap(), "it is not what the file has");
    assert_eq!(watch.lost(), 0);
}

#[test]
fn many_threads_may_hit_unreadable_pages_at_once() {
    let _alone = alone();
    let mapping = cut_short();
    let watch = catch_bus_errors(&mapping, NONE).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| mapping.is_zero(4 * 4096, 6 * 4096));
        }
    });
    // Two may meet on one page: both count it.
    assert!(watch.lost() >= 6, "{}", watch.lost());
}

#[test]
fn watches_are_given_back() {
    let _alone = alone();
    let mapping = cut_short();
    for _ in 0..200 {
        drop(catch_bus_errors(&mapping, NONE).unwrap());
    }
    let many: Vec<_> = (0..64)
        .map_while(|_| catch_bus_errors(&mapping, NONE).ok())
        .collect();
    assert_eq!(many.len(), 64);
    assert!(catch_bus_errors(&mapping, NONE).is_err());
}

#[test]
fn who_cannot_be_given_zeros_waits_for_them() {
    const CHILD: &str = "PAGURO_TEST_NO_ZEROS";
    if std::env::var_os(CHILD).is_none() {
        let _alone = alone();
        let ended = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "bus_error::who_cannot_be_given_zeros_waits_for_them",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(ended.status.success(), "{ended:?}");
        return;
    }
    let mapping = cut_short();
    let watch = catch_bus_errors(&mapping, NONE).unwrap();
    // For small things, which each thread takes from what it had.
    let provide = || drop(std::hint::black_box(vec![1u8; 64 << 10]));
    let (provided, is_ready) = std::sync::mpsc::channel();
    let (go, may_go) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        provide();
        provided.send(()).unwrap();
        may_go.recv().unwrap();
        mapping.is_zero(5 * 4096, 4096)
    });
    // From here on this process is given no mapping, as if it had all that it may.
    let allow = |bytes| {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: it reads one valid `rlimit`.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    };
    provide();
    is_ready.recv().unwrap();
    allow(1 << 20);
    go.send(()).unwrap();
    until(|| watch.failed() > 3);
    let told = (watch.lost(), watch.in_vain(), rang(&watch));
    allow(libc::RLIM_INFINITY);
    assert!(reader.join().unwrap());
    assert_eq!((told, watch.lost()), ((0, 1, true), 1));
}
