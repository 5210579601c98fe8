use std::fs::File;
use std::sync::Arc;

use paguro_ram::{Backing, GuestRam, RamBlock, presence};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Fallbacks, Host};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

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
