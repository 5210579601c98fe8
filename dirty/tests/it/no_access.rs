//! Guest RAM that nobody may touch: some devices take access away (`PROT_NONE`) from what they gave back.

use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;

use paguro_ram::RamBlock;
use paguro_sys::Advice;

use super::rig::*;

const PAGES: usize = 64;
const GONE: Range<usize> = 10..20;

/// 64 pages of ones.
fn ones() -> Option<Rig> {
    let rig = Rig::small(PAGES)?;
    (0..PAGES).for_each(|page| rig.put(0, page, 1));
    Some(rig)
}

fn take_access(block: &RamBlock, pages: Range<usize>) {
    let range = block.addresses_of(&pages);
    // SAFETY: a part of guest RAM; who touches it from now on is what this is about.
    let done = unsafe { libc::mprotect(range.start as *mut _, range.len(), libc::PROT_NONE) };
    assert_eq!(done, 0);
}

fn give_back(block: &RamBlock, pages: Range<usize>) {
    let bytes = block.bytes_of(&pages);
    let given = (block.mapping()).advise(bytes.start, bytes.len(), Advice::DontNeed);
    given.unwrap();
    take_access(block, pages);
}

#[test]
fn what_was_given_back_before_is_no_matter() {
    let _alone = alone();
    let Some(rig) = ones() else { return };
    give_back(&rig.ram.blocks()[0], GONE);
    let freeze = rig.held(rig.options());
    ends(&rig.write(0, 30, 9));
    let (picture, _) = picture(&freeze, 1).unwrap();
    freeze.end();
    let saved: Vec<_> = picture.keys().map(|&(_, page)| page).collect();
    let expect: Vec<_> = (0..PAGES).filter(|page| !GONE.contains(page)).collect();
    assert_eq!((saved, value(&picture, 0, 30)), (expect, 1));
}

#[test]
fn what_is_given_back_meanwhile_is_in_the_picture() {
    let _alone = alone();
    let Some(rig) = ones() else { return };
    let freeze = rig.held(rig.options());
    let (giver, block) = (freeze.clone(), rig.ram.blocks()[0].clone());
    let given = run(move || giver.discard(0, GONE, || give_back(&block, GONE)));
    ends(&given).unwrap();
    let (picture, _) = picture(&freeze, 1).unwrap();
    freeze.end();
    assert!(
        values(&picture, 0, 0..PAGES)
            .iter()
            .all(|&value| value == 1)
    );
}

/// Nobody asks a page whether he may read it.
#[test]
fn what_has_content_must_be_readable() {
    const CHILD: &str = "PAGURO_TEST_NO_ACCESS";
    if std::env::var_os(CHILD).is_some() {
        let rig = ones().unwrap();
        take_access(&rig.ram.blocks()[0], GONE);
        let freeze: Arc<_> = rig.held(rig.options());
        let _ = picture(&freeze, 1);
        return;
    }
    let _alone = alone();
    if host(&paguro_sys::Fallbacks::default()).is_none() {
        return;
    }
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "no_access::what_has_content_must_be_readable"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(ended.status.signal(), Some(libc::SIGSEGV), "{ended:?}");
}
