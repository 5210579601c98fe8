//! The engine on a machine of plain threads: real userfaultfd, real files, no KVM.

mod cases;
mod endings;
mod files;
mod filling;
mod forecast;
mod machine;
mod moving;
mod rig;
mod still;
