use paguro_sys::{Advice, HUGE_PAGE_BYTES, MapError, Mapping};
use paguro_testkit::alone;

use crate::is_mapped;

#[test]
fn every_mapping_starts_at_two_mebibytes_and_has_its_size() {
    let _alone = alone();
    for len in [4096, 3 * 4096, HUGE_PAGE_BYTES, HUGE_PAGE_BYTES + 4096] {
        let mapping = Mapping::anonymous(len, false).unwrap();
        assert_eq!(mapping.addr() % HUGE_PAGE_BYTES, 0, "{mapping:?}");
        assert_eq!(mapping.len(), len);
        mapping.copy_in(len - 1, &[7]);
        let mut last = [0; 2];
        mapping.copy_out(len - 2, &mut last);
        assert_eq!(last, [0, 7]);
    }
}

#[test]
fn absurd_lengths_are_refused_in_words() {
    let _alone = alone();
    for (len, huge) in [
        (0, false),
        (1, false),
        (4097, false),
        (0, true),
        (4096, true),
    ] {
        let error = Mapping::anonymous(len, huge).unwrap_err();
        assert!(matches!(error, MapError::Length { .. }), "{len} {error}");
    }
    for len in [usize::MAX & !4095, 1 << 62] {
        let error = Mapping::anonymous(len, false).unwrap_err();
        assert!(matches!(error, MapError::Map { .. }), "{len:#x} {error}");
    }
}

#[test]
fn dropping_unmaps_all_of_it_and_nothing_else() {
    let _alone = alone();
    let kept = Mapping::anonymous(5 * 4096, false).unwrap();
    let gone = Mapping::anonymous(5 * 4096, false).unwrap();
    let addr = gone.addr();
    assert!(is_mapped(addr) && is_mapped(addr + 4 * 4096));
    drop(gone);
    assert!((0..5).all(|page| !is_mapped(addr + page * 4096)));
    assert!((0..5).all(|page| is_mapped(kept.addr() + page * 4096)));
    // What was reserved to find an aligned place is given back.
    assert!(!is_mapped(kept.addr() + 5 * 4096));
}

#[test]
fn one_byte_anywhere_is_not_zero_and_one_byte_beside_is() {
    let _alone = alone();
    let mapping = Mapping::anonymous(4096, false).unwrap();
    // Lengths around the fold and what is read at once, and the whole page.
    let lens = (0..40).chain(248..272).chain(504..530).chain([4095, 4096]);
    for len in lens {
        for start in [0, 1, 8, 15, 264] {
            if start + len > 4096 {
                continue;
            }
            assert!(mapping.is_zero(start, len));
            for at in start..start + len {
                mapping.copy_in(at, &[1]);
                assert!(!mapping.is_zero(start, len), "{start} {len} {at}");
                mapping.copy_in(at, &[0]);
            }
            for beside in [start.checked_sub(1), Some(start + len)] {
                let Some(at) = beside.filter(|&at| at < 4096) else {
                    continue;
                };
                mapping.copy_in(at, &[0x80]);
                assert!(mapping.is_zero(start, len), "{start} {len} beside {at}");
                mapping.copy_in(at, &[0]);
            }
        }
    }
}

#[test]
fn equality_sees_every_byte_and_none_beside() {
    let _alone = alone();
    let mapping = Mapping::anonymous(4096, false).unwrap();
    let content: Vec<u8> = (0..4096).map(|at| (at * 7 % 251) as u8).collect();
    mapping.copy_in(0, &content);
    for (start, len) in [(0, 4096), (1, 63), (7, 64), (100, 0), (4090, 6)] {
        let other = &content[start..start + len];
        assert!(mapping.is_equal(start, other));
        for at in 0..len {
            let mut changed = other.to_vec();
            changed[at] ^= 0x40;
            assert!(!mapping.is_equal(start, &changed), "{start} {len} {at}");
        }
    }
}

#[test]
fn access_outside_is_a_panic_and_no_access() {
    let _alone = alone();
    let mapping = Mapping::anonymous(4096, false).unwrap();
    let outside = [(4096, 1), (0, 4097), (usize::MAX, 2), (usize::MAX - 7, 16)];
    for (offset, len) in outside {
        let caught =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mapping.range(offset, len)));
        assert!(caught.is_err(), "{offset:#x} {len}");
    }
    assert_eq!(mapping.range(4096, 0).len(), 0);
}

#[test]
fn what_is_given_back_reads_as_zeros() {
    let _alone = alone();
    let mapping = Mapping::anonymous(2 * 4096, false).unwrap();
    mapping.copy_in(0, &[1; 8192]);
    mapping.advise(4096, 4096, Advice::DontNeed).unwrap();
    assert!(mapping.is_zero(4096, 4096));
    assert!(mapping.is_equal(0, &[1; 4096]));
    let error = mapping.advise(1, 4095, Advice::DontNeed).unwrap_err();
    assert!(matches!(error, MapError::Advise { .. }), "{error}");
}
