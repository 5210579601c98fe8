//! What the compiler expects of a C library, and the name that unwinding would call. In assembly, as
//! a loop in Rust would be turned into a call of itself.

use core::arch::global_asm;

global_asm!(
    r#"
.text
.global memmove
memmove:
    cmp     x0, x1
    b.ls    memcpy
    add     x3, x1, x2
    cmp     x0, x3
    b.hs    memcpy
    cbz     x2, 2f
1:  sub     x2, x2, #1
    ldrb    w4, [x1, x2]
    strb    w4, [x0, x2]
    cbnz    x2, 1b
2:  ret
.global memcpy
memcpy:
    mov     x3, x0
1:  cmp     x2, #8
    b.lo    2f
    ldr     x4, [x1], #8
    str     x4, [x3], #8
    sub     x2, x2, #8
    b       1b
2:  cbz     x2, 3f
    ldrb    w4, [x1], #1
    strb    w4, [x3], #1
    sub     x2, x2, #1
    b       2b
3:  ret
.global memset
memset:
    mov     x3, x0
1:  cbz     x2, 2f
    strb    w1, [x3], #1
    sub     x2, x2, #1
    b       1b
2:  ret
.global bcmp
.global memcmp
bcmp:
memcmp:
    mov     x3, x0
    mov     w0, #0
1:  cbz     x2, 2f
    ldrb    w4, [x3], #1
    ldrb    w5, [x1], #1
    sub     x2, x2, #1
    subs    w0, w4, w5
    b.eq    1b
2:  ret
.global rust_eh_personality
rust_eh_personality:
    brk     #0
"#
);
