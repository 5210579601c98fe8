//! Channels of every kind, with peers that behave and peers that do not. Sockets are real ones, of
//! this host with itself.

mod both_ways;
mod cancel;
mod one_way;
mod refused;
mod silent;
mod targets;
mod tls;
mod tools;
