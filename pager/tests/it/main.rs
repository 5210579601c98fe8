//! A pager on its own: real userfaultfd, a source made of numbers.

mod arriving;
mod failing;
mod rig;
