//! Several cores: vCPUs on two of them, protecting and collecting on a third.

use crate::cores;
use crate::features::Features;
use crate::memory::{self, SMALL, guest_word};
use crate::rounds::{PAGE, Random, registers, vm};
use crate::vcpu::Vcpu;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use paguro_stage2::el2::El2;
use paguro_stage2::{Attributes, Config, Cpu, LogMode, LogOptions, Scope, words_for};

const IPA: u64 = 5 << 30;
const PAGES: u64 = 3 * 512;
const BYTES: u64 = PAGES * PAGE;
/// At least so many rounds, and as many more as it takes to collect so many pages.
const ROUNDS: u64 = 20;
const PAGES_COLLECTED: u64 = 400;
/// Stores that a guest makes before it looks whether it should stop.
const STORES_A_RUN: u64 = 300;

/// A page is collected while another core holds it in its TLB as writable, and is written again.
pub fn a_stale_entry_loses_nothing(features: &Features) {
    assert!(second_write_is_logged(
        features,
        features.el2(),
        |cpu, vttbr| cpu.bind(vttbr)
    ));
    println!("ok: a stale TLB entry loses nothing");
}

/// The same without invalidation: shows that the entry is there, and that the test above sees it.
pub fn a_stale_entry_would_lose_a_write(features: &Features) {
    assert!(!second_write_is_logged(
        features,
        NoBroadcast(features.el2()),
        |cpu, vttbr| cpu.0.bind(vttbr)
    ));
    println!("ok: without invalidation the write is lost");
}

/// The core that collects was about to run another VM, or the host of VHE: what is loaded there must not
/// keep the invalidation from its aim, and is there afterwards.
pub fn registers_of_another_vm_are_put_back(features: &Features, stops_walks: bool) {
    let cpu = if stops_walks {
        El2::new(features.ttl).without_stage_1_walks()
    } else {
        El2::new(features.ttl)
    };
    let own = Loaded::read();
    let other = Loaded {
        hcr: own.hcr | TGE,
        vttbr: 99 << 48 | memory::SMALL,
        tcr: 0x3519,
        sctlr: 0x30d0_0800,
    };
    other.write();
    let logged = second_write_is_logged(features, cpu, |cpu, vttbr| cpu.bind(vttbr));
    let after = Loaded::read();
    own.write();
    assert!(logged, "the invalidation was for another VM");
    assert_eq!(after, other);
    println!("ok: another VM's registers, walks stopped: {stops_walks}");
}

const TGE: u64 = 1 << 27;

#[derive(PartialEq, Debug)]
struct Loaded {
    hcr: u64,
    vttbr: u64,
    tcr: u64,
    sctlr: u64,
}

impl Loaded {
    fn read() -> Self {
        let (hcr, vttbr, tcr, sctlr);
        // SAFETY: reads registers.
        unsafe {
            asm!("mrs {}, hcr_el2", "mrs {}, vttbr_el2", "mrs {}, tcr_el1", "mrs {}, sctlr_el1",
                out(reg) hcr, out(reg) vttbr, out(reg) tcr, out(reg) sctlr);
        }
        Self {
            hcr,
            vttbr,
            tcr,
            sctlr,
        }
    }

    fn write(&self) {
        // SAFETY: no guest runs on this core, and EL2 translates by none of these.
        unsafe {
            asm!("msr hcr_el2, {}", "msr vttbr_el2, {}", "msr tcr_el1, {}", "msr sctlr_el1, {}", "isb",
                in(reg) self.hcr, in(reg) self.vttbr, in(reg) self.tcr, in(reg) self.sctlr);
        }
    }
}

fn second_write_is_logged<C: Cpu + Sync>(
    features: &Features,
    cpu: C,
    bind: impl Fn(&C, u64),
) -> bool {
    let vm = vm(Config::new(40), cpu);
    let (vttbr, vtcr) = registers(&vm, features);
    bind(vm.cpu(), vttbr);
    vm.map(IPA..IPA + BYTES, SMALL, Attributes::RAM).unwrap();
    vm.split(IPA..IPA + BYTES).unwrap();
    let id = vm
        .add_region(IPA..IPA + BYTES, memory::bitmap(0, words_for(PAGES)))
        .unwrap();
    vm.start_logging(Scope::All, LogOptions::default()).unwrap();
    let step = AtomicU64::new(0);
    let wait_for = |value| {
        while step.load(Ordering::Acquire) != value {
            core::hint::spin_loop();
        }
    };
    let mut word = [0];
    let guest = |core| {
        let mut vcpu = Vcpu::new(&vm, core, vttbr, vtcr);
        vcpu.store(IPA + PAGE, 1);
        vcpu.run();
        step.store(1, Ordering::Release);
        wait_for(2);
        vcpu.store(IPA + PAGE, 2);
        vcpu.run();
        step.store(3, Ordering::Release);
    };
    cores::with(&[2], &guest, || {
        wait_for(1);
        vm.collect(id, 0, None, &mut word).unwrap();
        assert_eq!(word, [0b10]);
        step.store(2, Ordering::Release);
        wait_for(3);
        vm.collect(id, 0, None, &mut word).unwrap();
    });
    assert_eq!(guest_word(SMALL + PAGE), 2);
    let all = features.el2();
    all.bind(vttbr);
    all.invalidate_vm();
    word == [0b10]
}

/// Everything but what makes other cores forget.
struct NoBroadcast(El2);

// SAFETY: it does not keep the promise, on purpose. Tables are freed only after the caller has
// invalidated by other means, and no guest runs then.
unsafe impl Cpu for NoBroadcast {
    fn invalidate_vm(&self) {}

    fn invalidate_ipa(&self, ipa: u64, level: Option<u8>) {
        self.0.invalidate_ipa(ipa, level);
    }

    fn invalidate_ipa_here(&self, ipa: u64, level: Option<u8>) {
        self.0.invalidate_ipa_here(ipa, level);
    }

    fn publish(&self) {
        self.0.publish();
    }
}

/// A copy made from the log alone must equal memory in the end; nothing unwritten is in the log.
pub fn two_guests_write_while_a_third_core_protects(features: &Features, options: LogOptions) {
    let hardware_dirty = options.mode == LogMode::Hardware;
    let vm = vm(
        Config {
            hardware_dirty,
            ..Config::new(40)
        },
        features.el2(),
    );
    let (vttbr, vtcr) = registers(&vm, features);
    vm.cpu().bind(vttbr);
    vm.cpu().invalidate_vm();
    (0..PAGES).for_each(|page| memory::clear_guest_page(SMALL + page * PAGE));
    vm.map(IPA..IPA + BYTES, SMALL, Attributes::RAM).unwrap();
    let id = vm
        .add_region(IPA..IPA + BYTES, memory::bitmap(0, words_for(PAGES)))
        .unwrap();

    let stop = AtomicBool::new(false);
    let faults = AtomicU64::new(0);
    let guest = |core: usize| {
        let mut vcpu = Vcpu::new(&vm, core, vttbr, vtcr);
        let mut random = Random(core as u64);
        let mut value = 0;
        while !stop.load(Ordering::Acquire) {
            for _ in 0..STORES_A_RUN {
                value += 1;
                // Odd pages are core 1's, even ones core 2's; the last third of all is never written.
                let range = if random.below(4) == 0 { PAGES / 3 } else { 7 };
                let page = random.below(range) * 2 + core as u64 % 2;
                vcpu.store(IPA + page * PAGE, (core as u64) << 56 | value);
            }
            vcpu.run();
        }
        faults.fetch_add(vcpu.faults, Ordering::AcqRel);
    };

    let mut copy = [0; PAGES as usize];
    let (mut rounds, mut collected) = (0, 0);
    let read = |bits: &[u64], copy: &mut [u64; PAGES as usize], collected: &mut u64| {
        for page in (0..PAGES).filter(|page| bits[*page as usize / 64] >> (page % 64) & 1 != 0) {
            assert!(
                page < PAGES / 3 * 2,
                "page {page} is in the log, and nobody wrote it"
            );
            copy[page as usize] = guest_word(SMALL + page * PAGE);
            *collected += 1;
        }
    };
    let mut bits = [0; words_for(PAGES)];
    cores::with(&[1, 2], &guest, || {
        while guest_word(SMALL) == 0 || guest_word(SMALL + PAGE) == 0 {
            core::hint::spin_loop();
        }
        vm.start_logging(Scope::All, options).unwrap();
        (0..PAGES).for_each(|page| copy[page as usize] = guest_word(SMALL + page * PAGE));
        while rounds < ROUNDS || collected < PAGES_COLLECTED {
            rounds += 1;
            vm.collect(id, 0, None, &mut bits).unwrap();
            read(&bits, &mut copy, &mut collected);
        }
        stop.store(true, Ordering::Release);
    });
    vm.collect(id, 0, None, &mut bits).unwrap();
    read(&bits, &mut copy, &mut collected);
    for page in 0..PAGES {
        assert_eq!(
            copy[page as usize],
            guest_word(SMALL + page * PAGE),
            "page {page} was lost"
        );
    }
    vm.stop_logging(Scope::All, true).unwrap();
    vm.cpu().invalidate_vm();
    let faults = faults.load(Ordering::Acquire);
    assert!(faults > 0 || hardware_dirty);
    println!("ok: two guests, {options:?}: {rounds} rounds, {collected} pages, {faults} faults");
}
