//! Mappings, userfaultfd, presence and bus errors, on the real kernel.

mod adopting;
mod arena;
mod bus_error;
mod bus_error_elsewhere;
mod foreign;
mod host;
mod limits;
mod locked_in;
mod mapping;
mod places;
mod presence;
mod spool;

/// Whether anything is mapped at an address.
fn is_mapped(addr: usize) -> bool {
    let mut one = 0u8;
    // SAFETY: mincore touches nothing at `addr`; it writes one byte.
    unsafe { libc::mincore(addr as *mut _, 4096, &mut one) == 0 }
}
