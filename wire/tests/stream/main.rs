//! Live streams: read event by event, and refused where they are wrong.

#[path = "../common/mod.rs"]
mod common;

mod commands;
mod migrations;
mod records;
mod refusals;
mod sides;
