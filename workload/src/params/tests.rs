//! Tests of the parameters.

use super::bytes::{WORDS, check_word};
use super::*;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn setup(ram: &[(u64, u64)]) -> Setup<'_> {
    Setup {
        spec: Spec::default(),
        vcpus: 2,
        ram,
        ticks_per_s: 2_600_000_000,
        gap_threshold_us: 50,
        threads: false,
        dma: true,
        dma_direct: true,
    }
}

#[test]
fn bytes_bring_back_the_params() {
    let ram = [(0, 3 * GIB), (4 * GIB, GIB)];
    let params = Params::new(&setup(&ram)).unwrap();
    assert_eq!(params.area.pages(), (4 * GIB - AREA_START) / 4096);
    assert_eq!(
        (params.mapped_gib, params.gap_threshold_ticks),
        (5, 130_000)
    );
    assert_eq!(Params::from_bytes(&params.to_bytes()), Ok(params));
}

#[test]
fn every_damaged_byte_is_noticed() {
    let ram = [(0, GIB)];
    let bytes = Params::new(&setup(&ram)).unwrap().to_bytes();
    for i in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = bytes;
            damaged[i] ^= flip;
            assert!(Params::from_bytes(&damaged).is_err(), "byte {i}");
        }
    }
    assert_eq!(
        Params::from_bytes(&[0; PARAMS_BYTES]),
        Err(ParamsError::Missing)
    );
}

#[test]
fn machines_that_do_not_fit_are_refused() {
    let refused = |ram: &[(u64, u64)]| Params::new(&setup(ram)).unwrap_err();
    assert_eq!(refused(&[]), ParamsError::AreaTooSmall { pages: 0 });
    assert_eq!(refused(&[(4096, GIB)]), ParamsError::Ram);
    assert_eq!(refused(&[(0, 1 << 20)]), ParamsError::Ram);
    assert_eq!(refused(&[(0, GIB + 1)]), ParamsError::Ram);
    assert_eq!(refused(&[(0, 4 * GIB)]), ParamsError::Ram);
    assert_eq!(
        refused(&[(0, GIB), (4 * GIB, u64::MAX - 4095)]),
        ParamsError::Ram
    );
    assert_eq!(
        refused(&[(0, AREA_START + 3 * 4096)]),
        ParamsError::AreaTooSmall { pages: 3 }
    );
    assert!(Params::new(&setup(&[(0, AREA_START + 4 * 4096)])).is_ok());
    let mut large = setup(&[(0, GIB)]);
    large.spec.set_bytes = Some(GIB);
    assert!(matches!(
        Params::new(&large),
        Err(ParamsError::SetTooLarge { .. })
    ));
}

proptest! {
    #[test]
    fn a_valid_check_word_does_not_make_bad_fields_good(
        words in proptest::collection::vec(any::<u64>(), WORDS), at in 2..WORDS,
    ) {
        // Whatever is accepted must be safe to use: a split, an owner, an address.
        let ram = [(0, GIB)];
        let mut bytes = Params::new(&setup(&ram)).unwrap().to_bytes();
        bytes[at * 8..][..8].copy_from_slice(&words[at].to_le_bytes());
        let mut all = [0; WORDS];
        for (word, bytes) in all.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let check = check_word(&all[..WORDS - 1]);
        bytes[(WORDS - 1) * 8..].copy_from_slice(&check.to_le_bytes());
        if let Ok(params) = Params::from_bytes(&bytes) {
            let last = params.area.pages() - 1;
            prop_assert_eq!(params.area.page_at(params.area.gpa(last)), Some(last));
            params.owner(last);
        }
    }
}
