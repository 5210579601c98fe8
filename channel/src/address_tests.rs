use crate::*;

fn parse(text: &str) -> Result<Address, String> {
    text.parse()
        .map_err(|error: AddressError| error.to_string())
}

#[test]
fn every_kind_is_read_and_printed_the_same() {
    for text in [
        "tcp:host.example:4444",
        "tcp:[fe80::1%eth0]:1",
        "tcp::0",
        "unix:/run/a:b",
        "vsock:2:4294967295",
        "fd:7",
        "exec:cat > '/tmp/x y' && true",
        "file:/tmp/a,b",
        "file:/tmp/a,offset=4096",
        "file:/tmp/a,offset=1,offset=0",
    ] {
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
    let exec = Address::Exec(vec!["/bin/echo".into(), "it's".into()]);
    assert_eq!(exec.to_string(), r"exec:'/bin/echo' 'it'\''s'");
    let sized = parse("file:/x,offset=2M").unwrap();
    assert!(matches!(sized, Address::File { offset, .. } if offset == 2 << 20));
}

#[test]
fn the_bad_part_is_named() {
    let unknown = "unknown migration protocol: ";
    for (text, error) in [
        ("", unknown.to_owned()),
        ("/tmp/x", format!("{unknown}/tmp/x")),
        ("rdma:h:1", format!("{unknown}rdma:h:1")),
        (
            "tcp:host",
            "port of tcp address is \"\": it must be given, as HOST:PORT".into(),
        ),
        (
            "tcp:h:65536",
            "port of tcp address is \"65536\": 0 to 65535".into(),
        ),
        (
            "tcp:h:+1",
            "port of tcp address is \"+1\": 0 to 65535".into(),
        ),
        (
            "tcp:h:1,to=9",
            "port of tcp address is \"1,to=9\": 0 to 65535".into(),
        ),
        (
            "tcp:[::1:4",
            "host of tcp address is \"[::1:4\": closed with a bracket".into(),
        ),
        (
            "tcp:[x]:4",
            "host of tcp address is \"x\": an IPv6 address".into(),
        ),
        (
            "vsock:3",
            "port of vsock address is \"\": it must be given, as CID:PORT".into(),
        ),
        (
            "vsock:x:1",
            "cid of vsock address is \"x\": a number of 32 bits".into(),
        ),
        ("exec:", "command of exec address is \"\": not empty".into()),
        (
            "unix:",
            "path of unix address is \"\": not empty, no zero bytes".into(),
        ),
        (
            "file:/x,offset=-1",
            "offset of file address is \"-1\": bytes, or with K, M, G, T".into(),
        ),
    ] {
        assert_eq!(parse(text), Err(error));
    }
    for text in [
        "fd:mon",
        "fd:1",
        "fd:-4",
        "fd:99999999999",
        "tcp:::1:5",
        "file:/dev/fdset/1",
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
}
