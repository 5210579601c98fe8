//! Blocks of 2 MiB pages whose file others write to.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use paguro_ram::{Backing, BlockConfig, PageKind, RamBlock, presence};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Fallbacks, HUGE_PAGE_BYTES, Host, Mapping};
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
fn what_others_left_is_found_at_the_first_look() {
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
    assert_eq!(present(&ours), [1, 3]);
    ours.mapping().copy_in(0, &[1]);
    let bytes = HUGE_PAGE_BYTES as u64;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 3 * bytes, bytes).unwrap();
    assert_eq!(present(&ours), [0, 1]);
    assert_eq!(
        rustix::fs::fstat(&file).unwrap().st_blocks as u64 * 512,
        2 * bytes
    );
}

/// Its holes are not read: nobody else has pages there.
#[test]
fn in_a_new_block_exists_what_is_mapped() {
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
    assert_eq!(present(&block), [2]);
    // Against the rule, to see where it is looked for.
    let file = File::from(block.file().unwrap().try_clone_to_owned().unwrap());
    mapped(&file).copy_in(0, &[1]);
    assert_eq!(present(&block), [2]);
}
