//! A VMM that has KVM's log on for life, and a bitmap in which its device marks what it wrote, for snapshots
//! of what changed since the last one; and a migration that uses both meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_ioctls::{Kvm, VcpuFd};
use paguro_dirty::tracker::{Bitmaps, KvmLog, Tracker, TrackerError, Union};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, PageSet, RamBlock};
use paguro_sys::Fallbacks;
use paguro_sys::kvm::{DirtySlots, ManualProtect, Slot};
use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap};

use super::destination::{Destination, Order, PAGE};
use super::slots::{borrowed, run};
use crate::common::*;

const PAGES: usize = 1024;

/// Of 16 bits: writes bx to where its data begins, and halts.
const PROGRAM: [u8; 5] = [0x89, 0x1e, 0x00, 0x00, 0xf4];

/// A VM of one vCPU and a device, and of a VMM that saves what changed.
struct Machine {
    ram: GuestRam,
    slots: Arc<DirtySlots>,
    vcpu: Mutex<VcpuFd>,
    device: Mutex<()>,
    /// What the device wrote.
    marks: Arc<AtomicBitmap>,
    pausing: AtomicBool,
    end: AtomicBool,
    /// What was really written since the VMM last saved.
    written: PageSet,
    /// What the VMM was told of.
    told: Arc<PageSet>,
}

impl Machine {
    /// The VMM protects pages like that, on a host that lacks this.
    fn new(manual: ManualProtect, forced: &Fallbacks) -> Self {
        let block = RamBlock::new(BlockConfig {
            id: "ram".into(),
            guest_address: 0,
            bytes: PAGES * PAGE,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        });
        let ram = GuestRam::new(vec![block.unwrap()]);
        let mapping = ram.blocks()[0].mapping();
        mapping.copy_in(0, &PROGRAM);
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        vm.set_tss_address(0xfffb_d000).unwrap();
        let region = kvm_bindings::kvm_userspace_memory_region {
            slot: 7,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: (PAGES * PAGE) as u64,
            userspace_addr: mapping.addr() as u64,
        };
        // SAFETY: the block outlives the VM, and is accessed raw only.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        let slot = Slot {
            number: 7,
            guest_address: 0,
            mapping: mapping.clone(),
            bytes: PAGES * PAGE,
        };
        // SAFETY: the VM is open, and the slot was made above.
        let slots = unsafe { DirtySlots::new(borrowed(&vm), vec![slot], forced) }.unwrap();
        slots.set_manual(manual).unwrap();
        slots.set_logging(0, true).unwrap();
        Self {
            ram,
            slots: Arc::new(slots),
            vcpu: Mutex::new(vm.create_vcpu(0).unwrap()),
            device: Mutex::new(()),
            marks: Arc::new(AtomicBitmap::with_len(PAGES * PAGE)),
            pausing: AtomicBool::new(false),
            end: AtomicBool::new(false),
            written: PageSet::new(PAGES),
            told: Arc::new(PageSet::new(PAGES)),
        }
    }

    fn write(&self, vcpu: &mut VcpuFd, page: usize, value: u16) {
        run(vcpu, (page * PAGE) as u64, value);
        self.written.insert(page);
    }

    fn fill(&self, page: usize, value: u16) {
        let mapping = self.ram.blocks()[0].mapping();
        mapping.copy_in(page * PAGE, &value.to_le_bytes());
        self.marks.mark_dirty(page * PAGE, 2);
        self.written.insert(page);
    }

    /// Random pages but the first, until the end.
    fn run(&self, seed: u64, write: impl Fn(usize, u16)) {
        let mut state = seed;
        while !self.end.load(Ordering::Acquire) {
            if self.pausing.load(Ordering::Acquire) {
                std::thread::yield_now();
                continue;
            }
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            let page = 1 + (state >> 33) as usize % (PAGES - 1);
            write(page, (state >> 16) as u16);
        }
    }

    fn run_vcpu(&self) {
        self.run(1, |page, value| {
            self.write(&mut self.vcpu.lock().unwrap(), page, value);
        });
    }

    fn run_device(&self) {
        self.run(2, |page, value| {
            let _busy = self.device.lock().unwrap();
            self.fill(page, value);
        });
    }

    fn pause(&self) -> AtRest<'_> {
        self.pausing.store(true, Ordering::Release);
        AtRest {
            pausing: &self.pausing,
            _vcpu: self.vcpu.lock().unwrap(),
            _device: self.device.lock().unwrap(),
        }
    }

    /// What the guest writes.
    fn tracker(&self) -> KvmLog {
        let told = self.told.clone();
        let on_dirty = move |slot, first_page: usize, words: &[u64]| {
            assert_eq!(slot, 7);
            for (index, &bits) in words.iter().enumerate() {
                told.insert_word(first_page / 64 + index, bits);
            }
        };
        KvmLog::shared(self.ram.clone(), self.slots.clone(), on_dirty).unwrap()
    }

    /// That, and what the device writes.
    fn both(&self) -> Union {
        let told = self.told.clone();
        let on_dirty = move |_, word, bits| {
            told.insert_word(word, bits);
        };
        let marks = Box::new(self.marks.clone());
        let marked = Bitmaps::shared(self.ram.clone(), vec![marks], on_dirty).unwrap();
        Union::new(vec![Arc::new(self.tracker()), Arc::new(marked)])
    }

    /// What the VMM knows as written, which it then forgets as after a snapshot.
    fn known(&self, manual: ManualProtect) -> PageSet {
        let mut words = vec![0; self.slots.words(0)];
        self.slots.read(0, &mut words).expect("the log is off");
        if manual != ManualProtect::No {
            self.slots.clear(0, 0, &words).unwrap();
        }
        let known = PageSet::from_words(PAGES, &words);
        self.told.take(0..PAGES, |run| known.insert_range(run));
        let marked = PageSet::from_words(PAGES, &self.marks.get_and_reset());
        marked.runs(0..PAGES, |run| known.insert_range(run));
        known
    }
}

/// Nobody writes.
struct AtRest<'m> {
    pausing: &'m AtomicBool,
    _vcpu: MutexGuard<'m, VcpuFd>,
    _device: MutexGuard<'m, ()>,
}

impl Drop for AtRest<'_> {
    fn drop(&mut self) {
        self.pausing.store(false, Ordering::Release);
    }
}

/// Whatever becomes of the test.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn ways() -> Vec<(ManualProtect, Fallbacks)> {
    use ManualProtect::{AllSet, No, Yes};
    let mut old = Fallbacks::default();
    assert!(old.force("no-manual-protect"));
    let new = Fallbacks::default();
    vec![(No, new), (Yes, new), (AllSet, new), (No, old)]
}

#[test]
fn a_vmm_whose_log_and_bitmaps_are_shared_misses_no_page() {
    if !kvm() {
        return;
    }
    for (manual, forced) in ways() {
        let machine = Machine::new(manual, &forced);
        // All begins as written, or nothing does.
        machine.known(manual);
        std::thread::scope(|scope| {
            scope.spawn(|| machine.run_vcpu());
            scope.spawn(|| machine.run_device());
            let _end = End(&machine.end);
            for migration in 0..3 {
                migrate(&machine, &format!("{manual:?}, {forced:?}, {migration}"));
                let _rest = machine.pause();
                let known = machine.known(manual);
                let mut written = Vec::new();
                machine.written.take(0..PAGES, |run| written.extend(run));
                let mut saved = Vec::new();
                known.runs(0..PAGES, |run| saved.extend(run));
                assert_eq!(saved, written, "{manual:?}, {forced:?}, {migration}");
            }
        });
    }
}

/// Sends all, a few times over, and what is left in a pause.
fn migrate(machine: &Machine, what: &str) {
    let tracker = machine.both();
    tracker.start().unwrap();
    let mut destination = Destination::new(machine.ram.clone(), Order::ClearThenRead);
    for _ in 0..20 {
        destination.sync(&tracker);
        destination.send(&tracker);
    }
    let rest = machine.pause();
    destination.sync(&tracker);
    destination.send(&tracker);
    assert_eq!(destination.stale(), 0, "{what}");
    drop(rest);
    tracker.stop();
}

#[test]
fn what_is_written_between_a_report_and_its_clearing_is_handed_over_too() {
    if !kvm() {
        return;
    }
    for (manual, forced) in ways() {
        let machine = Machine::new(manual, &forced);
        let mut vcpu = machine.vcpu.lock().unwrap();
        machine.known(manual);
        let tracker = machine.tracker();
        tracker.start().unwrap();
        machine.write(&mut vcpu, 5, 1);
        let dirty = super::destination::sets(&machine.ram);
        assert_eq!(tracker.sync(&dirty).unwrap(), 1);
        // It saves what it was told of, and nothing else was written.
        machine.told.remove_range(0..PAGES);
        machine.write(&mut vcpu, 5, 2);
        tracker.clear(0, 0..PAGES).unwrap();
        tracker.stop();
        assert!(machine.known(manual).contains(5), "{manual:?}, {forced:?}");
    }
}

#[test]
fn a_log_that_is_off_is_not_shared() {
    if !kvm() {
        return;
    }
    let machine = Machine::new(ManualProtect::No, &Fallbacks::default());
    machine.slots.set_logging(0, false).unwrap();
    let tracker = machine.tracker();
    for _ in 0..2 {
        match tracker.start() {
            Err(TrackerError::Log { block, .. }) => assert_eq!(block, "ram"),
            other => panic!("{other:?}"),
        }
    }
    let mut words = vec![0; machine.slots.words(0)];
    assert!(machine.slots.read(0, &mut words).is_err());
    // Nor is one whose log another tracker has.
    let owns = KvmLog::new(machine.ram.clone(), machine.slots.clone()).unwrap();
    owns.start().unwrap();
    assert!(matches!(tracker.start(), Err(TrackerError::Busy)));
}
