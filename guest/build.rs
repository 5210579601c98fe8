//! Builds the guest program for the host target, as an ELF file that the library embeds.
//!
//! The compiler that builds this crate builds the program too: `core` of an ordinary x86-64
//! target is all that it needs, so no bare-metal target has to be installed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out = PathBuf::from(variable("OUT_DIR"));
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workload = PathBuf::from(variable("DEP_PAGURO_WORKLOAD_SRC"));
    for source in [&here.join("program"), &workload, &here.join("build.rs")] {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let program = out.join("program.elf");
    if variable("CARGO_CFG_TARGET_ARCH") != "x86_64" {
        std::fs::write(&program, []).expect("OUT_DIR is writable");
        return;
    }
    let library = out.join("libpaguro_workload.rlib");
    compile(
        rustc(&workload.join("lib.rs"), &library)
            .args(["--crate-type=rlib", "--crate-name=paguro_workload"]),
    );
    let mut link = rustc(&here.join("program/main.rs"), &program);
    link.args(["--crate-type=bin", "--crate-name=paguro_guest_program"])
        .arg("--extern")
        .arg(format!("paguro_workload={}", library.display()))
        .args(["-C", "relocation-model=static"]);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        link.arg("-C").arg(format!("linker={linker}"));
    }
    let script = format!("-Wl,-T,{}", here.join("program/guest.ld").display());
    let flags = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,-z,max-page-size=4096",
        "-Wl,--build-id=none",
        &script,
    ];
    for flag in flags {
        link.arg("-C").arg(format!("link-arg={flag}"));
    }
    compile(&mut link);
}

/// Baseline x86-64 whatever the flags of the build around it: the guest's CPU has SSE2 only.
fn rustc(source: &Path, output: &Path) -> Command {
    let mut command = Command::new(variable("RUSTC"));
    command
        .arg(source)
        .arg("-o")
        .arg(output)
        .args(["--edition=2024", "--target", &variable("TARGET")])
        .args(["-C", "opt-level=3", "-C", "panic=abort"])
        .args(["-C", "codegen-units=1", "-C", "strip=symbols"]);
    command
}

fn compile(command: &mut Command) {
    let status = command.status().expect("the compiler starts");
    assert!(status.success(), "{command:?} failed: {status}");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
