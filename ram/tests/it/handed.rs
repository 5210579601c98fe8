//! Blocks of 2 MiB pages whose file others write to.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use paguro_ram::{Backing, BlockConfig, PageKind, RamBlock, presence};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Advice, Fallbacks, HUGE_PAGE_BYTES, Host, Mapping};
use paguro_testkit::{HugePages, alone};
use rustix::fs::{FallocateFlags, MemfdFlags};

const PAGES: usize = 4;

fn file() -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let file = File::from(rustix::fs::memfd_create("handed", flags).unwrap());
    file.set_len((PAGES * HUGE_PAGE_BYTES) as u64).unwrap();
    file
}

fn mapped(file: &File) -> Mapping {
    Mapping::shared(file.as_fd(), PAGES * HUGE_PAGE_BYTES, true).unwrap()
}

fn block(file: &File) -> RamBlock {
    RamBlock::adopt("ram", 0, Arc::new(mapped(file)), Backing::Memfd)
        .with_file(file.try_clone().unwrap().into(), 0)
}

/// Huge pages that exist.
fn present(block: &RamBlock) -> Vec<usize> {
    let pagemap = Pagemap::open(&Host::probe(&Fallbacks::default())).unwrap();
    let mut found = Vec::new();
    presence::present(block, 0..block.pages(), &pagemap, |run| {
        found.extend(run.step_by(512).map(|page| page / 512));
    })
    .unwrap();
    found
}

#[test]
fn what_others_may_write_at_any_time_is_looked_for_at_any_time() {
    let _alone = alone();
    let Some(_huge_pages) = HugePages::take(8) else {
        return;
    };
    let file = file();
    let (ours, theirs) = (block(&file), mapped(&file));
    for page in [1, 3] {
        theirs.copy_in((page + 1) * HUGE_PAGE_BYTES - 1, &[1]);
        assert!(present(&ours).contains(&page));
    }
    assert_eq!(present(&ours), [1, 3]);
}

/// And what is given back then is not taken for what it was.
#[test]
fn what_others_left_is_mapped_and_then_told_by_that() {
    let _alone = alone();
    let Some(_huge_pages) = HugePages::take(8) else {
        return;
    };
    let file = file();
    let theirs = mapped(&file);
    for page in [1, 3] {
        theirs.copy_in((page + 1) * HUGE_PAGE_BYTES - 1, &[1]);
    }
    let ours = block(&file).left_by_others();
    drop(theirs);
    presence::map_rest(&ours).unwrap();
    assert_eq!(present(&ours), [1, 3]);
    ours.mapping().copy_in(0, &[1]);
    let bytes = HUGE_PAGE_BYTES as u64;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 3 * bytes, bytes).unwrap();
    assert_eq!(present(&ours), [0, 1]);
    presence::map_rest(&ours).unwrap();
    assert_eq!(present(&ours), [0, 1]);
    let in_file = rustix::fs::fstat(&file).unwrap().st_blocks as u64 * 512;
    assert_eq!(in_file, 2 * bytes, "looking made pages");
}

/// Whoever unmaps what he has not given back.
#[test]
fn what_was_unmapped_here_still_exists() {
    let _alone = alone();
    let Some(_huge_pages) = HugePages::take(8) else {
        return;
    };
    let block = RamBlock::new(BlockConfig {
        id: "ram".to_owned(),
        guest_address: 0,
        bytes: PAGES * HUGE_PAGE_BYTES,
        backing: Backing::Memfd,
        pages: PageKind::Huge,
    })
    .unwrap();
    block.mapping().copy_in(2 * HUGE_PAGE_BYTES, &[1]);
    block.mapping().copy_in(3 * HUGE_PAGE_BYTES, &[1]);
    assert_eq!(present(&block), [2, 3]);
    // What is in a shared mapping stays in its file.
    let unmapped = (block.mapping()).advise(2 * HUGE_PAGE_BYTES, HUGE_PAGE_BYTES, Advice::DontNeed);
    unmapped.unwrap();
    presence::map_rest(&block).unwrap();
    assert_eq!(present(&block), [2, 3]);
}
