//! Says where the source of this crate is, for the build script of `paguro-guest`: it compiles it
//! once more, for the guest, and a crate from a registry lies nowhere near its neighbours.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::metadata=src={here}/src");
}
