//! A userfaultfd that somebody else opened: what is checked of it.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use paguro_sys::{AdoptError, Fallbacks, Features, Handshake, Host, Uffd, Userfault};
use paguro_testkit::skipped;

/// As the descriptor of another process is one more of the same userfaultfd.
fn sent(uffd: &Uffd) -> OwnedFd {
    uffd.as_fd().try_clone_to_owned().unwrap()
}

fn said(features: Features) -> Handshake {
    Handshake {
        features,
        user_mode_only: true,
    }
}

fn opened(features: Features) -> Option<Uffd> {
    if Host::probe(&Fallbacks::default()).userfault == Userfault::None {
        skipped("no userfaultfd for this process");
        return None;
    }
    Some(Uffd::open(features, true).unwrap())
}

#[test]
fn what_it_can_do_is_what_the_kernel_says() {
    let all = Features::WP | Features::EVENT_REMOVE;
    let Some(uffd) = opened(all) else { return };
    let adopted = Uffd::adopt(sent(&uffd), said(Features::WP)).unwrap();
    assert_eq!(adopted.features(), all);
    assert!(adopted.is_user_mode_only());
    let flags = rustix::fs::fcntl_getfl(&adopted).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
    let more = Uffd::adopt(sent(&uffd), said(all | Features::WP_SHARED));
    assert!(matches!(more, Err(AdoptError::Lacks { .. })), "{more:?}");
}

#[test]
fn what_nobody_here_answers_is_refused() {
    for asked in [Features::EVENT_REMAP, Features::SIGBUS] {
        let Some(uffd) = opened(asked) else { return };
        let refused = Uffd::adopt(sent(&uffd), said(Features::empty()));
        let features = asked.bits();
        assert!(
            matches!(refused, Err(AdoptError::Unanswerable { features: f }) if f == features),
            "{refused:?}"
        );
    }
}

#[test]
fn something_else_and_half_of_one_are_refused() {
    let nothing = said(Features::empty());
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    for other in [pipe, tempfile::tempfile().unwrap().into()] {
        let refused = Uffd::adopt(other, nothing);
        assert!(matches!(refused, Err(AdoptError::NotUserfaultfd)));
    }
    const USER_MODE_ONLY: i32 = 1;
    // SAFETY: it takes flags by value.
    let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
    if raw < 0 {
        return skipped("no userfaultfd for this process");
    }
    // SAFETY: a descriptor that was just made for us.
    let half = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    let kept = half.try_clone().unwrap();
    let refused = Uffd::adopt(half, nothing);
    assert!(
        matches!(refused, Err(AdoptError::NoHandshake)),
        "{refused:?}"
    );
    assert!(kept.as_raw_fd() >= 0);
}
