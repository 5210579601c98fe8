//! A pager on its own: real userfaultfd, a source made of numbers.

mod adopted;
mod arriving;
mod failing;
mod rig;
