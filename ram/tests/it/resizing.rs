use paguro_ram::{Backing, GuestRam, Located, RamError};

use crate::discards::block;

#[test]
fn a_block_is_resized_within_its_maximum_in_whole_pages() {
    let block = block(10, Backing::Anonymous);
    assert_eq!((block.pages(), block.max_pages()), (10, 10));
    for used in [0, 4096, 9 * 4096, 10 * 4096] {
        block.resize(used).unwrap();
        assert_eq!(block.used_bytes(), used);
    }
    for used in [1, 4095, 4097, 11 * 4096, usize::MAX, usize::MAX & !4095] {
        let error = block.resize(used).unwrap_err();
        assert!(matches!(error, RamError::Length { .. }), "{used} {error}");
        assert_eq!(block.used_bytes(), 10 * 4096, "a refusal changes nothing");
    }
}

#[test]
fn a_page_is_found_by_its_address_up_to_the_maximum() {
    let ram = GuestRam::new(vec![
        block(10, Backing::Anonymous),
        block(3, Backing::Memfd),
    ]);
    let addr = |block: usize| ram.blocks()[block].mapping().addr();
    let found = |block, page| Some(Located { block, page });
    assert_eq!(ram.locate(addr(0)), found(0, 0));
    assert_eq!(ram.locate(addr(0) + 4095), found(0, 0));
    assert_eq!(ram.locate(addr(1) + 2 * 4096), found(1, 2));
    assert_eq!(ram.locate(addr(1) + 3 * 4096), None);
    assert_eq!(ram.locate(addr(0) - 1), None);
    assert_eq!(ram.locate(0), None);
    ram.blocks()[0].resize(4096).unwrap();
    // A fault may come from beyond the used length: its page is known all the same.
    assert_eq!(ram.locate(addr(0) + 9 * 4096), found(0, 9));
    assert_eq!((ram.pages(), ram.bytes()), (4, 4 * 4096));
}
