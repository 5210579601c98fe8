//! What stands for TLS where it is not built in: the options are refused, and nothing else comes to be.

use std::io::{self, IoSlice};
use std::time::Instant;

use super::{TlsError, TlsOptions};
use crate::link::Link;

/// There is none.
#[derive(Debug)]
pub(crate) enum Server {}

/// There is none.
#[derive(Debug)]
pub(crate) enum Connection {}

/// There is none.
#[derive(Debug)]
pub(crate) enum Session {}

/// Nothing comes encrypted.
#[derive(Debug, Default)]
pub(crate) struct Inbox {}

impl Server {
    pub(crate) fn new(_: &TlsOptions) -> Result<Self, TlsError> {
        Err(TlsError::NotBuiltIn)
    }

    pub(crate) fn connection(&self) -> Result<Connection, TlsError> {
        match *self {}
    }
}

pub(crate) fn client(_: &TlsOptions, _: &str) -> Result<Connection, TlsError> {
    Err(TlsError::NotBuiltIn)
}

impl Session {
    pub(crate) fn start(_: &Link, connection: Connection, _: Instant) -> io::Result<(Self, Inbox)> {
        match connection {}
    }

    pub(crate) fn read(&self, _: &Link, _: &mut Inbox, _: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }

    pub(crate) fn write(&self, _: &Link, _: &[IoSlice<'_>]) -> io::Result<usize> {
        match *self {}
    }

    pub(crate) fn close(&self, _: &Link) -> io::Result<()> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, ChannelError, Incoming, Options, Outgoing, Stop};

    #[test]
    fn tls_that_is_not_built_in_is_refused_before_anybody_is_connected_to() {
        let mut options = Options::new(Stop::new().unwrap());
        options.tls = Some(TlsOptions {
            directory: "/nowhere".into(),
            hostname: None,
        });
        // Nobody listens there: to have tried would be another error.
        for text in ["tcp:127.0.0.1:1", "unix:/nowhere"] {
            let address: Address = text.parse().unwrap();
            let connected = Outgoing::connect(&address, &options).map(drop);
            let listened = Incoming::listen(&address, &options).map(drop);
            for refused in [connected, listened] {
                match refused {
                    Err(ChannelError::Tls { source, .. }) => {
                        assert!(source.to_string().contains("feature `tls`"), "{source}");
                    }
                    other => panic!("{text}: {other:?}"),
                }
            }
        }
    }
}
