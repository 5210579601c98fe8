use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use paguro_faults::{Faults, MissingHandler, ProtectedHandler};
use paguro_ram::{Backing, BlockConfig, GuestRam, Located, PageKind, RamBlock};
use paguro_sys::{Fallbacks, Host};
pub use paguro_testkit::{HugePages, IN_VAIN, alone, ends, mappings, run, skipped};

pub const PAGE: usize = 4096;

/// The host, or a printed reason why there is nothing to be tested here.
pub fn host() -> Option<Host> {
    host_with(&Fallbacks::default())
}

pub fn host_with(forced: &Fallbacks) -> Option<Host> {
    let host = Host::probe(forced);
    if host.can_freeze() && host.can_freeze_shared() {
        return Some(host);
    }
    skipped("userfaultfd with write-protection is not available to this process");
    None
}

pub fn block(id: &str, pages: usize, backing: Backing) -> RamBlock {
    RamBlock::new(BlockConfig {
        id: id.into(),
        guest_address: 0,
        bytes: pages * PAGE,
        backing,
        pages: PageKind::Small,
    })
    .unwrap()
}

/// The owner of one block of that kind.
pub fn faults(pages: usize, backing: Backing, readers: usize) -> Option<Arc<Faults>> {
    let ram = GuestRam::new(vec![block("ram", pages, backing)]);
    Some(Faults::open(&host()?, ram, readers).unwrap())
}

pub fn write(faults: &Arc<Faults>, page: usize, value: u8) -> Receiver<()> {
    let faults = faults.clone();
    run(move || {
        faults
            .block(0)
            .mapping()
            .unwrap()
            .copy_in(page * PAGE, &[value])
    })
}

pub fn read(faults: &Arc<Faults>, page: usize) -> Receiver<u8> {
    let faults = faults.clone();
    run(move || {
        let mut byte = [0];
        faults
            .block(0)
            .mapping()
            .unwrap()
            .copy_out(page * PAGE, &mut byte);
        byte[0]
    })
}

/// Counts writes to protected pages, and releases them.
#[derive(Default)]
pub struct Catcher {
    pub caught: AtomicUsize,
    pub removed: Mutex<Vec<Range<usize>>>,
}

impl ProtectedHandler for Catcher {
    fn protected(&self, faults: &Faults, at: Located) {
        self.caught.fetch_add(1, Ordering::SeqCst);
        faults.release(at.block, at.page..at.page + 1).unwrap();
    }

    fn removed(&self, _: usize, pages: Range<usize>) {
        self.removed.lock().unwrap().push(pages);
    }

    fn broken(&self, _: &Faults, at: Located) {
        panic!("nothing panics over {at:?}");
    }
}

/// Does with faults whatever it is told. If that panics, whoever faulted waits for ever, and the test
/// finds him.
pub struct Does<F>(pub F);

impl<F: Fn(&Faults, Located) + Send + Sync> MissingHandler for Does<F> {
    fn missing(&self, faults: &Faults, at: Located) {
        (self.0)(faults, at);
    }

    fn broken(&self, _: &Faults, _: Located) {}
}

impl<F: Fn(&Faults, Located) + Send + Sync> ProtectedHandler for Does<F> {
    fn protected(&self, faults: &Faults, at: Located) {
        (self.0)(faults, at);
    }

    fn removed(&self, _: usize, _: Range<usize>) {}

    fn broken(&self, _: &Faults, _: Located) {}
}
