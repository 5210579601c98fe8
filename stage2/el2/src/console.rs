//! Text and an exit code for the host, by semihosting.

use core::arch::asm;
use core::fmt::{self, Write};

const SYS_WRITE0: u64 = 0x04;
const SYS_EXIT: u64 = 0x18;
const APPLICATION_EXIT: u64 = 0x20026;

fn semihost(operation: u64, argument: u64) {
    // SAFETY: QEMU answers this instruction; the argument is what the operation asks for.
    unsafe { asm!("hlt #0xf000", inout("x0") operation => _, in("x1") argument, options(nostack)) };
}

pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for chunk in text.as_bytes().chunks(120) {
            let mut line = [0; 121];
            line[..chunk.len()].copy_from_slice(chunk);
            semihost(SYS_WRITE0, line.as_ptr() as u64);
        }
        Ok(())
    }
}

pub fn exit(code: u64) -> ! {
    let block = [APPLICATION_EXIT, code];
    semihost(SYS_EXIT, block.as_ptr() as u64);
    loop {
        core::hint::spin_loop();
    }
}

#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        let mut text = $crate::console::Console;
        let _ = writeln!(text, $($argument)*);
    }};
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("FAILED: {info}");
    exit(1)
}
