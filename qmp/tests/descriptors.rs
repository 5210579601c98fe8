//! A process that may open nothing more: alone in its process, because it takes all descriptors of it.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use paguro_qmp::{Command, Events, Service, Socket};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

#[derive(Default)]
struct Silent(Events);

impl Service for Silent {
    fn commands(&self) -> &[(&'static str, Command<Self>)] {
        &[]
    }

    fn version(&self) -> Value {
        json!("7")
    }

    fn events(&self) -> &Events {
        &self.0
    }
}

#[test]
fn a_client_is_served_where_there_are_no_descriptors_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let ours = Socket::bind(&path).unwrap();
    ours.serve(Arc::new(Silent::default())).unwrap();
    let address = SocketAddrUnix::new(&path).unwrap();
    // Made while that is possible.
    let clients = [(); 3].map(|()| socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap());
    let few = Rlimit {
        current: Some(64),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    setrlimit(Resource::Nofile, few).unwrap();
    let mut all = Vec::new();
    for client in clients {
        // Also what the one before has left.
        while let Ok(file) = File::open("/dev/null") {
            all.push(file);
        }
        connect(&client, &address).unwrap();
        let mut client = UnixStream::from(client);
        client
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut greeting = [0; 7];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, br#"{"QMP":"#);
        // One at a time: the next is served when this one has gone.
    }
}
