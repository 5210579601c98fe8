//! A process that locks itself in an empty folder, without `/proc` and `/dev`.

use std::process::Command;
use std::sync::Arc;

use paguro_dirty::{Freeze, FreezeError};
use paguro_ram::{Backing, GuestRam, RamBlock};
use paguro_sys::{Fallbacks, Host, Mapping, Resources};

use super::rig::*;

/// Set, with the folder, in the process that is locked in.
const CHILD: &str = "PAGURO_TEST_LOCKED_IN";

/// Runs what a test is about in a process of its own.
fn locked_in(test: &str, inside: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return inside();
    }
    let _alone = alone();
    if !rustix::process::geteuid().is_root() {
        return skipped("only root may chroot");
    }
    if host(&Fallbacks::default()).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("locked_in::{test}")])
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    assert!(ended.status.success(), "{ended:?}");
}

fn chroot() {
    let folder = std::env::var_os(CHILD).unwrap();
    rustix::process::chroot(&folder).unwrap();
    rustix::process::chdir("/").unwrap();
    assert!(std::fs::read_dir("/").unwrap().next().is_none());
}

#[test]
fn a_snapshot_is_taken_with_what_was_opened_before() {
    locked_in("a_snapshot_is_taken_with_what_was_opened_before", || {
        Resources::open().unwrap();
        chroot();
        let rig = Rig::small(512).unwrap();
        (0..100).for_each(|page| rig.put(0, page, 1));
        let freeze = rig.freeze(rig.options()).unwrap();
        freeze.arm(|| true).unwrap();
        hold(&freeze);
        ends(&rig.write(0, 3, 9));
        let (picture, _) = picture(&freeze, 1).unwrap();
        freeze.end();
        assert_eq!(values(&picture, 0, 2..5), [1, 1, 1]);
        assert_eq!((picture.len(), value(&picture, 0, 99)), (100, 1));

        // Nor is memory of somebody else a matter of paths.
        let owner = Arc::new(Mapping::anonymous(16 * PAGE, false).unwrap());
        let (address, bytes) = (owner.addr(), owner.len());
        // SAFETY: the owner keeps it mapped, and there is no reference into it.
        let foreign = unsafe { Mapping::foreign(address, bytes, owner) }.unwrap();
        let block = RamBlock::adopt("foreign", 0, Arc::new(foreign), Backing::Anonymous);
        let ram = GuestRam::builder().block(block).build().unwrap();
        ram.blocks()[0].mapping().copy_in(0, &[1]);
        let faults = paguro_faults::Faults::open(&rig.host, ram.clone(), 1).unwrap();
        let options = options(rig.host);
        Freeze::new(Some(faults), ram, None, &[], options)
            .unwrap()
            .end();
    });
}

#[test]
fn what_was_not_opened_before_is_named() {
    locked_in("what_was_not_opened_before_is_named", || {
        chroot();
        let host = Host::probe(&Fallbacks::default());
        let block = paguro_ram::BlockConfig {
            id: "ram".to_owned(),
            guest_address: 0,
            bytes: 16 * PAGE,
            backing: Backing::Anonymous,
            pages: paguro_ram::PageKind::Small,
        };
        let ram = GuestRam::builder().block(block).build().unwrap();
        let refused = Freeze::new(None, ram, None, &[], options(host));
        let Err(FreezeError::Pagemap(why)) = refused else {
            panic!("{refused:?}");
        };
        let why = why.to_string();
        let told = why.contains("/proc/self/pagemap") && why.contains("Resources::open");
        assert!(told, "{why}");
    });
}
