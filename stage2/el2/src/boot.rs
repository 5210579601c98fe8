//! From reset to Rust: stacks, vectors, and an identity mapping for EL2 itself, so that tables are
//! written through caches that are coherent with the walkers, and exclusives work.

use core::arch::global_asm;

/// One that protects and collects, two that run guests.
pub const CORES: usize = 3;

/// 1 GiB blocks: devices, then RAM. 39 bits of input, so this is the root.
#[repr(C, align(4096))]
struct Root([u64; 512]);

#[unsafe(no_mangle)]
static EL2_ROOT: Root = Root(identity());

const fn identity() -> [u64; 512] {
    let mut table = [0; 512];
    // Valid block, access flag; attribute 1 of MAIR is device memory, attribute 0 is normal memory,
    // inner shareable.
    table[0] = 1 | 1 << 10 | 1 << 2 | 1 << 54;
    let mut gib = 1;
    while gib < 8 {
        table[gib] = (gib as u64) << 30 | 1 | 1 << 10 | 0b11 << 8;
        gib += 1;
    }
    table
}

global_asm!(
    r#"
.section .text.boot, "ax"
.global _start
_start:
    mov     x0, #0
// Secondary cores arrive here with their number in x0.
.global secondary_start
secondary_start:
    adrp    x1, STACKS
    add     x1, x1, :lo12:STACKS
    add     x2, x0, #1
    lsl     x2, x2, #16
    add     sp, x1, x2
    // No traps of floating point; a plain EL1 in AArch64 state below.
    mov     x1, #0x33ff
    msr     cptr_el2, x1
    mov     x1, #(1 << 31)
    msr     hcr_el2, x1
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el2, x1
    mov     x1, #0x00ff
    msr     mair_el2, x1
    // 39 bits, inner shareable write-back walks, 40 bits of output.
    ldr     x1, =0x80823519
    msr     tcr_el2, x1
    adrp    x1, EL2_ROOT
    msr     ttbr0_el2, x1
    tlbi    alle2
    dsb     sy
    isb
    ldr     x1, =0x30c51835
    msr     sctlr_el2, x1
    isb
    bl      rust_start
1:  wfi
    b       1b

.balign 2048
vectors:
.rept 4
    .balign 128
    mov     x0, #0
    b       unexpected
.endr
.rept 4
    .balign 128
    mov     x0, #1
    b       unexpected
.endr
    .balign 128
    b       guest_exit
.rept 7
    .balign 128
    mov     x0, #2
    b       unexpected
.endr

// enter_guest(x0: &mut Registers): runs the guest until its next synchronous exception.
.global enter_guest
enter_guest:
    stp     x19, x20, [sp, #-96]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    msr     tpidr_el2, x0
    ldp     x1, x2, [x0, #40]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldp     x1, x2, [x0, #8]
    ldp     x3, x4, [x0, #24]
    ldr     x0, [x0]
    eret

guest_exit:
    stp     x0, x1, [sp, #-16]!
    mrs     x0, tpidr_el2
    stp     x3, x4, [x0, #24]
    str     x2, [x0, #16]
    ldp     x1, x2, [sp], #16
    stp     x1, x2, [x0]
    mrs     x1, elr_el2
    mrs     x2, spsr_el2
    stp     x1, x2, [x0, #40]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    ldp     x19, x20, [sp], #96
    ret

// The guest: x0 points to pairs of (address | operation, value). It uses x0 to x4 and nothing else.
.global guest_entry
guest_entry:
1:  ldp     x1, x2, [x0], #16
    and     x3, x1, #7
    bic     x1, x1, #7
    cbz     x3, 3f
    cmp     x3, #1
    b.ne    2f
    str     x2, [x1]
    b       1b
2:  ldr     x4, [x1]
    cmp     x3, #2
    b.ne    1b
    cmp     x4, x2
    b.eq    1b
    hvc     #1
3:  hvc     #0
    b       3b
"#
);

#[repr(C, align(4096))]
pub struct Stacks([u8; CORES << 16]);

/// Reached from assembly only.
#[unsafe(no_mangle)]
static mut STACKS: Stacks = Stacks([0; CORES << 16]);
