use paguro_sys::Unit;
use paguro_testkit::alone;

use crate::is_mapped;

#[test]
fn units_are_apart_zero_and_given_back_with_the_last() {
    let _alone = alone();
    let mut units = Unit::split(5, 64 << 10).unwrap();
    for (number, unit) in units.iter_mut().enumerate() {
        assert!(unit.len() == 64 << 10 && unit.iter().all(|&byte| byte == 0));
        unit.fill(number as u8 + 1);
    }
    for (number, unit) in units.iter().enumerate() {
        assert!(unit.iter().all(|&byte| byte == number as u8 + 1));
    }
    let addr = units[2].as_ptr() as usize;
    let last = units.swap_remove(2);
    drop(units);
    assert!(is_mapped(addr) && last[0] == 3);
    drop(last);
    assert!(!is_mapped(addr));
}

#[test]
fn absurd_arenas_are_refused() {
    let _alone = alone();
    assert!(Unit::split(0, 4096).is_err());
    assert!(Unit::split(usize::MAX, 4096).is_err());
    assert!(Unit::split(1 << 50, 64 << 10).is_err());
}
