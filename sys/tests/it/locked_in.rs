//! A process that locks itself in, and gives up its rights.

use std::process::Command;

use paguro_sys::presence::{Pagemap, Which};
use paguro_sys::{Bound, Fallbacks, Host, Limits, Mapping, RegisterMode, Resources, Userfault};
use paguro_testkit::{alone, skipped};

const PAGE: usize = 4096;

#[test]
fn what_was_opened_before_is_all_that_is_needed() {
    const CHILD: &str = "PAGURO_TEST_LOCKED_IN";
    if let Some(folder) = std::env::var_os(CHILD) {
        Resources::open().unwrap();
        let before = Limits::of_this_process();
        let (mappings, bounds) = (before.most_mappings(), bounds());
        rustix::process::chroot(&folder).unwrap();
        rustix::process::chdir("/").unwrap();
        assert!(!std::path::Path::new("/proc").exists());
        // SAFETY: numbers only; nothing else runs that would rely on who this is.
        assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
        assert_eq!(Limits::of_this_process().most_mappings(), mappings);
        assert_eq!(self::bounds(), bounds);
        return protects_a_page();
    }
    let _alone = alone();
    if !rustix::process::geteuid().is_root() {
        return skipped("only root may chroot");
    }
    if std::fs::File::open("/dev/userfaultfd").is_err() {
        return skipped("there is no /dev/userfaultfd, so that rights are needed");
    }
    let folder = tempfile::tempdir().unwrap();
    let ended = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "locked_in::what_was_opened_before_is_all_that_is_needed",
        ])
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    assert!(ended.status.success(), "{ended:?}");
}

fn bounds() -> Vec<Bound> {
    let memory = Limits::of_this_process().memory();
    assert!(!memory.is_empty());
    memory.into_iter().map(|free| free.bound).collect()
}

/// Faults that the kernel takes for KVM, too: only the device gives them to nobody in particular.
fn protects_a_page() {
    let host = Host::probe(&Fallbacks::default());
    assert_eq!(host.userfault, Userfault::Full);
    let (uffd, pagemap) = (host.open_uffd().unwrap(), Pagemap::open(&host).unwrap());
    let mapping = Mapping::anonymous(4 * PAGE, false).unwrap();
    mapping.copy_in(2 * PAGE, &[1]);
    let all = mapping.range(0, 4 * PAGE);
    uffd.register(all.clone(), RegisterMode::WriteProtect)
        .unwrap();
    let mut exist = Vec::new();
    let found = |bytes| exist.push(bytes);
    pagemap
        .scan(&mapping, 0..4 * PAGE, Which::Existing, found)
        .unwrap();
    let page = 2 * PAGE..3 * PAGE;
    assert_eq!(exist, std::slice::from_ref(&page));
    uffd.protect(all).unwrap();
    // SAFETY: a mapping is its own owner, and there is no reference into it.
    let foreign = unsafe { Mapping::foreign(mapping.addr(), mapping.len(), mapping) }.unwrap();
    assert!(!foreign.is_mergeable().unwrap());
}
