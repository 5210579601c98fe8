use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use paguro_sys::{BusErrors, Mapping, catch_bus_errors};
use paguro_testkit::alone;

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
    let watch = catch_bus_errors(&mapping).unwrap();
    let other = catch_bus_errors(&cut_short()).unwrap();
    assert!(mapping.is_equal(0, &[1; 4 * 4096]));
    assert!(!rang(&watch));
    assert!(mapping.is_zero(5 * 4096, 4096));
    assert!(rang(&watch) && watch.count() == 1);
    // Once is enough for a page; writing is as good a touch as reading.
    mapping.copy_in(5 * 4096, &[9]);
    assert_eq!(watch.count(), 1);
    mapping.copy_in(9 * 4096 + 8, &[9]);
    assert!(watch.count() == 2 && rang(&watch) && !rang(&watch));
    assert!(other.count() == 0 && !rang(&other));
}

#[test]
fn many_threads_may_hit_unreadable_pages_at_once() {
    let _alone = alone();
    let mapping = cut_short();
    let watch = catch_bus_errors(&mapping).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| mapping.is_zero(4 * 4096, 6 * 4096));
        }
    });
    // Two may meet on one page: both count it.
    assert!(watch.count() >= 6, "{}", watch.count());
}

#[test]
fn watches_are_given_back() {
    let _alone = alone();
    let mapping = cut_short();
    for _ in 0..200 {
        drop(catch_bus_errors(&mapping).unwrap());
    }
    let many: Vec<_> = (0..64)
        .map_while(|_| catch_bus_errors(&mapping).ok())
        .collect();
    assert_eq!(many.len(), 64);
    assert!(catch_bus_errors(&mapping).is_err());
}

#[test]
fn a_bus_error_elsewhere_ends_the_process_as_ever() {
    const CHILD: &str = "PAGURO_TEST_BUS_ERROR";
    if std::env::var_os(CHILD).is_some() {
        let watched = cut_short();
        let _watch = catch_bus_errors(&watched).unwrap();
        cut_short().is_zero(5 * 4096, 4096);
        return;
    }
    let _alone = alone();
    let ended = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "bus_error::a_bus_error_elsewhere_ends_the_process_as_ever",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(ended.status.signal(), Some(libc::SIGBUS), "{ended:?}");
}
