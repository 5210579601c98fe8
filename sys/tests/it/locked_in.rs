//! A process that locks itself in, and gives up its rights.

use std::process::Command;

use paguro_sys::presence::{Pagemap, Which};
use paguro_sys::{
    Bound, Fallbacks, Host, Limits, Mapping, Pacer, RegisterMode, Resources, Userfault,
};
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
        opening_ends_the_process();
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

/// A filter of system calls, for this thread.
fn opening_ends_the_process() {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let is = |number: libc::c_long, to_kill| {
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        step(equal, to_kill, 0, number as u32)
    };
    let ret = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        // The number of the call.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        is(libc::SYS_openat, 2),
        is(libc::SYS_openat2, 1),
        step(ret, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(ret, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives until then.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (set, mode) = (libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER);
        assert_eq!(libc::prctl(set, mode, &raw const program), 0);
    }
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
    assert!(Pacer::of_this_thread().due().is_zero());
}
