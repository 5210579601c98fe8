use std::fs::File;
use std::sync::Arc;

use paguro_ram::{Backing, GuestRam, RamBlock, RamError, presence};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Fallbacks, ForeignError, Host};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion,
};

type Memory = GuestMemoryMmap<()>;

fn memfd(bytes: u64) -> File {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(file);
    file.set_len(bytes).unwrap();
    file
}

fn present(block: &RamBlock) -> Vec<usize> {
    let pagemap = Pagemap::open(&Host::probe(&Fallbacks::default())).unwrap();
    let mut found = Vec::new();
    presence::present(block, 0..block.pages(), &pagemap, |run| found.extend(run)).unwrap();
    found
}

#[test]
fn anonymous_regions_become_blocks_that_keep_them_alive() {
    let ranges = [(GuestAddress(0), 0x4000), (GuestAddress(1 << 32), 0x8000)];
    let memory = Memory::from_ranges(&ranges).unwrap();
    memory
        .write_slice(&[7; 100], GuestAddress((1 << 32) + 0x5000))
        .unwrap();
    let ram = GuestRam::of_guest_memory("pc.ram", &memory).unwrap();
    drop(memory);
    let ids: Vec<_> = ram.blocks().iter().map(|block| block.id()).collect();
    assert_eq!(ids, ["pc.ram", "pc.ram1"]);
    let high = ram.block("pc.ram1").unwrap();
    assert_eq!(high.guest_address(), 1 << 32);
    assert_eq!((high.backing(), high.pages()), (Backing::Anonymous, 8));
    assert!(high.mapping().is_equal(0x5000, &[7; 100]));
    assert_eq!(present(high), [5]);
    assert!(present(ram.block("pc.ram").unwrap()).is_empty());
}

#[test]
fn regions_that_share_a_file_are_asked_about_their_own_part_of_it() {
    let file = Arc::new(memfd(0x10000));
    let part = |start| Some(FileOffset::from_arc(file.clone(), start));
    let memory = Memory::from_ranges_with_files([
        (GuestAddress(0), 0x4000, part(0)),
        (GuestAddress(0x100000), 0x8000, part(0x4000)),
    ])
    .unwrap();
    memory.write_slice(&[1], GuestAddress(0x1000)).unwrap();
    memory.write_slice(&[1], GuestAddress(0x106000)).unwrap();
    let ram = GuestRam::of_guest_memory("ram", &memory).unwrap();
    assert!(
        ram.blocks()
            .iter()
            .all(|block| block.backing() == Backing::Memfd)
    );
    assert_eq!(present(&ram.blocks()[0]), [1]);
    assert_eq!(present(&ram.blocks()[1]), [6]);
}

#[test]
fn what_is_behind_a_region_follows_from_how_it_is_mapped() {
    let region = |flags: MapFlags, file: Option<FileOffset>| -> MmapRegion<()> {
        let mut builder = MmapRegionBuilder::<()>::new(0x4000)
            .with_mmap_prot((ProtFlags::READ | ProtFlags::WRITE).bits() as i32)
            .with_mmap_flags(flags.bits() as i32);
        if let Some(file) = file {
            builder = builder.with_file_offset(file);
        }
        builder.build().unwrap()
    };
    // MAP_ANONYMOUS: rustix keeps it to itself.
    let anonymous = MapFlags::from_bits_retain(0x20);
    let file = || Some(FileOffset::new(memfd(0x4000), 0));
    for (flags, file, expect) in [
        (MapFlags::PRIVATE | anonymous, None, Backing::Anonymous),
        (MapFlags::SHARED | anonymous, None, Backing::Memfd),
        (MapFlags::SHARED, file(), Backing::Memfd),
        (MapFlags::PRIVATE, file(), Backing::PrivateFile),
    ] {
        let region = GuestRegionMmap::new(region(flags, file), GuestAddress(0)).unwrap();
        let memory = Memory::from_regions(vec![region]).unwrap();
        let ram = GuestRam::of_guest_memory("ram", &memory).unwrap();
        assert_eq!(ram.blocks()[0].backing(), expect, "{flags:?}");
        // Nobody can say what of shared memory without a file exists: then all of it may.
        let all = expect == Backing::PrivateFile || flags.contains(MapFlags::SHARED | anonymous);
        assert_eq!(present(&ram.blocks()[0]).len(), if all { 4 } else { 0 });
    }
}

#[test]
fn the_bitmap_of_a_vmm_may_be_of_any_kind() {
    // What can be a bitmap, and cannot be made by its length only.
    let region = |at| {
        let builder = MmapRegionBuilder::new_with_bitmap(0x4000, Some(()));
        let region = builder
            .with_mmap_prot((ProtFlags::READ | ProtFlags::WRITE).bits() as i32)
            .with_mmap_flags((MapFlags::PRIVATE | MapFlags::from_bits_retain(0x20)).bits() as i32);
        GuestRegionMmap::new(region.build().unwrap(), GuestAddress(at)).unwrap()
    };
    let memory = GuestMemoryMmap::<Option<()>>::from_regions(vec![region(0), region(1 << 32)]);
    let memory = memory.unwrap();
    let ram = GuestRam::of_guest_memory("ram", &memory).unwrap();
    assert_eq!(ram.pages(), 8);
    let again = memory.iter().nth(1).unwrap();
    let built = GuestRam::builder().block(RamBlock::of_region("high", again).unwrap());
    assert_eq!(built.build().unwrap().blocks()[0].guest_address(), 1 << 32);
}

#[test]
fn a_region_that_unmaps_nothing_is_refused_by_name() {
    let kept: MmapRegion<()> = MmapRegion::new(0x4000).unwrap();
    // SAFETY: it is mapped, and stays so.
    let region = unsafe { MmapRegion::<()>::build_raw(kept.as_ptr(), 0x4000, 0, 0) };
    let region = GuestRegionMmap::new(region.unwrap(), GuestAddress(0)).unwrap();
    let memory = Memory::from_regions(vec![region]).unwrap();
    match GuestRam::of_guest_memory("pc.ram", &memory) {
        Err(RamError::Foreign { id, source }) => {
            assert_eq!(id, "pc.ram");
            assert!(matches!(source, ForeignError::NotOwned));
        }
        other => panic!("{other:?}"),
    }
}
