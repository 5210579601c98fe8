//! Arbitrary bytes as the difference of a page; and the difference to what that gives is encoded,
//! and decoded to the same page.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paguro_wire::PAGE_BYTES;
use paguro_wire::stream::xbzrle::{self, Encoded};

const PAGE: usize = PAGE_BYTES as usize;

fuzz_target!(|delta: &[u8]| {
    let old: [u8; PAGE] = std::array::from_fn(|at| (at * 7) as u8);
    let mut new = old;
    let sound = xbzrle::decode(delta, 0, &mut new).is_ok();
    // A difference that broke off has changed the page all the same.
    let mut again = Vec::new();
    let mut page = old;
    match xbzrle::encode(&old, &new, 2 * PAGE, &mut again) {
        Encoded::Unchanged => assert!(old == new && again.is_empty()),
        Encoded::Delta => {
            xbzrle::decode(&again, 0, &mut page).expect("it was just encoded");
            // Whoever wrote the other could not do much better: a byte where runs that were
            // joined need a longer length.
            assert!(!sound || again.len() <= delta.len() + PAGE / 128);
        }
        Encoded::Overflow => panic!("two pages are always enough"),
    }
    assert_eq!(page, new);
});
