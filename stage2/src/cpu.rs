//! What the crate asks of the CPUs: TLB invalidation, barriers, and when to give up the lock.

/// The CPUs that run the VM, as seen from whichever of them calls.
///
/// An invalidation begins with what makes all earlier stores to tables visible to the walkers
/// (`dsb ishst`), and returns when it is complete: no CPU uses an old translation any more, and every
/// access made through one has been performed (`dsb ish`, then `isb`).
///
/// # Safety
/// The tables' exactness rests on these promises, and so does the hypervisor's: a table is given back
/// to its allocator after [`invalidate_vm`](Self::invalidate_vm) returned. An implementation that
/// returns too early lets the hardware walk freed memory and writes go unlogged.
pub unsafe trait Cpu {
    /// Everything of this VM's VMID, stage 1 and 2 combined, on all CPUs (`tlbi vmalls12e1is`).
    fn invalidate_vm(&self);

    /// The leaf at `ipa` on all CPUs, with what stage 1 made of it (`tlbi ipas2e1is`, `dsb ish`, `tlbi
    /// vmalle1is`: a TLB may hold both stages as one entry, which the first does not find).
    ///
    /// With a `level` only a leaf of that level has to go (FEAT_TTL); without one, of any: under
    /// FEAT_BBM level 2 a TLB may still hold the block that the tables have split.
    fn invalidate_ipa(&self, ipa: u64, level: Option<u8>);

    /// The same on this CPU only: after a page became writable. A CPU that still holds the old entry
    /// takes one spurious fault and comes here itself, so nobody else is disturbed.
    fn invalidate_ipa_here(&self, ipa: u64, level: Option<u8>);

    /// Stores to tables become visible to the walkers (`dsb ishst`).
    fn publish(&self);

    /// Cleans memory of a table to where the walkers look. Nothing to do where walks are cacheable and
    /// coherent (what [`Stage2::vtcr`](crate::Stage2::vtcr) asks for); `dc cvac` a line where not.
    fn clean(&self, start: *const u8, bytes: usize) {
        let _ = (start, bytes);
    }

    /// Asked between two chunks of a pass (at most 2 MiB of pages each, or one block): `true` makes
    /// the pass give up the lock before it goes on, after an invalidation if blocks are in the middle of
    /// a change. It does so unasked when a vCPU waits for the lock; this is for reasons of the
    /// hypervisor's own, such as a pending interrupt.
    fn should_yield(&self) -> bool {
        false
    }

    /// One turn of waiting for the lock.
    fn relax(&self) {
        crate::sync::spin_loop();
    }
}
