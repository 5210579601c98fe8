//! Machines that run: what a pause, a picture and the ends of a machine mean.

mod boot;
mod common;
mod digesting;
mod ends;
mod faults;
mod forecasting;
mod loading;
mod migrating;
mod pausing;
mod picture;
mod serial;
mod state;
mod tracking;
mod ways;
