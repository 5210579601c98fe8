//! Memory that somebody else mapped.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paguro_sys::{ForeignError, HUGE_PAGE_BYTES, Mapping};
use paguro_testkit::{HugePages, alone};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use crate::is_mapped;

const PAGE: usize = 4096;
/// MAP_ANONYMOUS: rustix keeps it to itself.
const ANONYMOUS: MapFlags = MapFlags::from_bits_retain(0x20);

/// Unmaps when it is dropped, and says so.
struct Owner {
    mapping: Option<Mapping>,
    gone: Arc<AtomicBool>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.mapping = None;
        self.gone.store(true, Ordering::SeqCst);
    }
}

fn owned(mapping: Mapping) -> (usize, usize, Owner, Arc<AtomicBool>) {
    let gone = Arc::new(AtomicBool::new(false));
    let (address, bytes) = (mapping.addr(), mapping.len());
    let owner = Owner {
        mapping: Some(mapping),
        gone: gone.clone(),
    };
    (address, bytes, owner, gone)
}

#[test]
fn it_is_there_as_long_as_its_owner_is_kept() {
    let _alone = alone();
    let (address, bytes, owner, gone) = owned(Mapping::anonymous(4 * PAGE, false).unwrap());
    // SAFETY: the owner unmaps when it is dropped.
    let foreign = unsafe { Mapping::foreign(address, bytes, owner) }.unwrap();
    foreign.copy_in(PAGE, &[7]);
    assert!(foreign.page_bytes() == PAGE && !gone.load(Ordering::SeqCst));
    assert!(is_mapped(address));
    drop(foreign);
    assert!(gone.load(Ordering::SeqCst) && !is_mapped(address));
}

#[test]
fn what_is_not_all_mapped_is_refused() {
    let _alone = alone();
    let mapping = Mapping::anonymous(4 * PAGE, false).unwrap();
    let (addr, len) = (mapping.addr(), mapping.len());
    // SAFETY: none of them is ever touched: each is refused.
    let foreign = |address, bytes| unsafe { Mapping::foreign(address, bytes, ()) };
    for (address, bytes) in [(addr, len + PAGE), (addr + len, PAGE), (0, PAGE)] {
        let refused = foreign(address, bytes);
        assert!(
            matches!(refused, Err(ForeignError::NotMapped { .. })),
            "{refused:?}"
        );
    }
    for (address, bytes) in [(addr + 1, PAGE), (addr, 100)] {
        let refused = foreign(address, bytes);
        assert!(
            matches!(refused, Err(ForeignError::Addresses { .. })),
            "{refused:?}"
        );
    }
}

/// Whoever made it may want it in his dumps, and in his children.
#[test]
fn it_stays_as_its_owner_made_it() {
    let _alone = alone();
    let flags_at = |address: usize| -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let own = smaps.split(&format!("{address:x}-")).nth(1).unwrap();
        let flags = own.lines().find_map(|line| line.strip_prefix("VmFlags:"));
        flags
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let has = |flags: &[String], flag: &str| flags.iter().any(|known| known == flag);
    let region: MmapRegion = MmapRegion::new(64 * PAGE).unwrap();
    let before = flags_at(region.as_ptr() as usize);
    let region = Mapping::of_region(Arc::new(region)).unwrap();
    assert_eq!(flags_at(region.addr()), before);
    assert!(!has(&before, "dc") && !has(&before, "dd"));
    let ours = Mapping::anonymous(64 * PAGE, false).unwrap();
    let ours = flags_at(ours.addr());
    assert!(has(&ours, "dc") && has(&ours, "dd"), "{ours:?}");
}

#[test]
fn a_region_that_unmaps_nothing_is_refused() {
    let _alone = alone();
    let mapping = Mapping::anonymous(4 * PAGE, false).unwrap();
    // SAFETY: it is mapped, and stays so.
    let region: MmapRegion =
        unsafe { MmapRegion::build_raw(mapping.as_ptr(), 4 * PAGE, 0, 0) }.unwrap();
    let refused = Mapping::of_region(Arc::new(region));
    assert!(
        matches!(refused, Err(ForeignError::NotOwned)),
        "{refused:?}"
    );
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("Mapping::foreign")
    );
}

fn region(flags: MapFlags, file: Option<FileOffset>) -> MmapRegion {
    let mut builder = MmapRegionBuilder::<()>::new(HUGE_PAGE_BYTES)
        .with_mmap_prot((ProtFlags::READ | ProtFlags::WRITE).bits() as i32)
        .with_mmap_flags(flags.bits() as i32);
    if let Some(file) = file {
        builder = builder.with_file_offset(file);
    }
    builder.build().unwrap()
}

/// Whatever the region's maker says of it: he need not say anything.
#[test]
fn huge_pages_are_never_taken_for_small_ones() {
    let _alone = alone();
    let Some(_huge_pages) = HugePages::take(4) else {
        return;
    };
    let file = rustix::fs::memfd_create("huge", MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
    let file = File::from(file.unwrap());
    file.set_len(HUGE_PAGE_BYTES as u64).unwrap();
    let file = || Some(FileOffset::new(file.try_clone().unwrap(), 0));
    let anonymous = MapFlags::PRIVATE | ANONYMOUS;
    let sized = MapFlags::hugetlb_with_size_log2(21).unwrap();
    for (flags, file, page) in [
        (anonymous | MapFlags::HUGETLB, None, HUGE_PAGE_BYTES),
        (anonymous | sized, None, HUGE_PAGE_BYTES),
        (MapFlags::SHARED, file(), HUGE_PAGE_BYTES),
        (MapFlags::PRIVATE, file(), HUGE_PAGE_BYTES),
        (anonymous, None, PAGE),
    ] {
        let region = region(flags, file);
        assert_eq!(region.is_hugetlbfs(), None, "nobody said so");
        let region = Arc::new(region);
        let (address, bytes) = (region.as_ptr() as usize, region.size());
        let of_region = Mapping::of_region(region.clone()).unwrap();
        assert_eq!(of_region.page_bytes(), page, "{flags:?}");
        // SAFETY: the region keeps it mapped.
        let foreign = unsafe { Mapping::foreign(address, bytes, region) }.unwrap();
        assert_eq!(foreign.page_bytes(), page, "{flags:?}");
    }
    let huge = Mapping::anonymous(HUGE_PAGE_BYTES, true).unwrap();
    // SAFETY: never touched: it is refused.
    let part = unsafe { Mapping::foreign(huge.addr() + PAGE, PAGE, ()) };
    assert!(
        matches!(part, Err(ForeignError::Addresses { .. })),
        "{part:?}"
    );
}
