use paguro_sys::Unit;
use paguro_testkit::{alone, skipped};

use crate::is_mapped;

#[test]
fn units_are_apart_zero_and_given_back_with_the_last() {
    let _alone = alone();
    let mut units = Unit::split(5, 64 << 10).unwrap();
    for (number, unit) in units.iter_mut().enumerate() {
        assert!(unit.len() == 64 << 10 && unit.iter().all(|&byte| byte == 0));
        unit.fill(number as u8 + 1);
    }
    for (number, unit) in units.iter().enumerate() {
        assert!(unit.iter().all(|&byte| byte == number as u8 + 1));
    }
    let addr = units[2].as_ptr() as usize;
    let last = units.swap_remove(2);
    drop(units);
    assert!(is_mapped(addr) && last[0] == 3);
    drop(last);
    assert!(!is_mapped(addr));
}

#[test]
fn absurd_arenas_are_refused() {
    let _alone = alone();
    assert!(Unit::split(0, 4096).is_err());
    assert!(Unit::split(usize::MAX, 4096).is_err());
    assert!(Unit::split(1 << 50, 64 << 10).is_err());
}

/// From now on the kernel answers this thread that, when it asks for pages to be made present.
fn refuse_populating(errno: i32) -> bool {
    let does = |code: u32, k: u32, no: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: no,
        k,
    };
    let (load, equals) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
    );
    // The number of the call is the first word of what is looked at, the third argument at 32.
    let mut filter = [
        does(load, 0, 0),
        does(equals, libc::SYS_madvise as u32, 3),
        does(load, 32, 0),
        does(equals, libc::MADV_POPULATE_WRITE as u32, 1),
        does(libc::BPF_RET, libc::SECCOMP_RET_ERRNO | errno as u32, 0),
        does(libc::BPF_RET, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: a valid program that outlives the call, for this thread alone.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
    }
}

#[test]
fn memory_that_the_host_has_not_got_is_an_error_and_not_touched() {
    let _alone = alone();
    let split = |errno| {
        let thread = std::thread::spawn(move || {
            refuse_populating(errno).then(|| Unit::split(5, 64 << 10).map(drop))
        });
        thread.join().unwrap()
    };
    let (Some(unknown), Some(refused)) = (split(libc::EINVAL), split(libc::ENOMEM)) else {
        return skipped("no filter of system calls to be had");
    };
    // A kernel that does not know how to is no reason to do without.
    assert!(unknown.is_ok());
    assert!(refused.is_err());
}
