//! Where `migrate` shall write to: its `uri` or its `channels`, of which one is of the type `main` and
//! one may be of the type `cpr`, over which RAM is handed over.
//!
//! Both forms become an [`Address`], which knows what makes sense; here are QEMU's names only.

use std::path::PathBuf;

use paguro_migration::channel::{Address, AddressError};

use super::{Args, QmpError};

/// Where channels lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channels {
    /// That of the stream.
    pub main: Address,
    /// That over which RAM is handed over, if it has one of its own.
    pub cpr: Option<Address>,
}

/// What a channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The stream.
    Main,
    /// Handing RAM over.
    Cpr,
}

/// Takes the address out of the arguments of `migrate-incoming`.
pub fn channel(args: &mut Args) -> Result<Address, QmpError> {
    match channels(args)? {
        Channels { main, cpr: None } => Ok(main),
        Channels { cpr: Some(_), .. } => Err(QmpError::generic(
            "a machine whose RAM is handed over is made of it: the channel of type 'cpr' is given \
             when the program is started, by '--incoming'",
        )),
    }
}

/// One channel as JSON, as QEMU's `-incoming` takes it.
pub fn of_json(text: &str) -> Result<(Kind, Address), QmpError> {
    let members = serde_json::from_str(text);
    let members = members.map_err(|error| QmpError::generic(format!("no JSON object: {error}")))?;
    of_channel(Args::new(members))
}

/// Takes the addresses out of the arguments of `migrate`.
pub fn channels(args: &mut Args) -> Result<Channels, QmpError> {
    let uri = args.string("uri")?;
    let channels = args.objects("channels")?;
    match (uri, channels) {
        (Some(_), Some(_)) => Err(QmpError::generic(
            "'uri' and 'channels' arguments are mutually exclusive; exactly one of them is needed",
        )),
        (Some(uri), None) => {
            let main = uri.parse().map_err(wrong)?;
            Ok(Channels { main, cpr: None })
        }
        (None, Some(channels)) if !channels.is_empty() => of_channels(channels),
        (None, _) => Err(QmpError::generic(
            "need either 'uri' or 'channels' argument",
        )),
    }
}

/// Of an address that must be a file which is replaced as a whole, its path.
pub fn file(address: Address) -> Result<PathBuf, QmpError> {
    match address {
        Address::File { path, offset: 0 } => Ok(path),
        Address::File { offset, .. } => Err(QmpError::generic(format!(
            "offset {offset}: a snapshot begins at the start of its file, which is replaced as a \
             whole"
        ))),
        _ => Err(QmpError::generic(
            "Migration requires seekable transport (e.g. file)",
        )),
    }
}

fn of_channels(channels: Vec<Args>) -> Result<Channels, QmpError> {
    let (mut main, mut cpr) = (None, None);
    for channel in channels {
        let (kind, address) = of_channel(channel)?;
        let (place, name) = match kind {
            Kind::Main => (&mut main, "main"),
            Kind::Cpr => (&mut cpr, "cpr"),
        };
        if place.replace(address).is_some() {
            return Err(QmpError::generic(format!(
                "Channel list has more than one entry of type '{name}'"
            )));
        }
    }
    let missing = || QmpError::generic("Channel list has no entry of type 'main'");
    let main = main.ok_or_else(missing)?;
    Ok(Channels { main, cpr })
}

fn of_channel(mut channel: Args) -> Result<(Kind, Address), QmpError> {
    let kind = match text(&mut channel, "channel-type")?.as_str() {
        "main" => Kind::Main,
        "cpr" => Kind::Cpr,
        other => return Err(not_accepted("channel-type", other)),
    };
    let addr = channel.object("addr")?;
    let mut addr = channel.need("addr", addr)?;
    channel.finish()?;
    let transport = text(&mut addr, "transport")?;
    let address = match transport.as_str() {
        "socket" => of_socket(&mut addr)?,
        "exec" => {
            let arguments = addr.strings("args")?;
            Ok(Address::Exec(addr.need("args", arguments)?))
        }
        "file" => {
            let path = text(&mut addr, "filename")?.into();
            let offset = addr.unsigned("offset")?;
            let offset = addr.need("offset", offset)?;
            Ok(Address::File { path, offset })
        }
        other => return Err(not_accepted("transport", other)),
    };
    addr.finish()?;
    let address = address.and_then(Address::checked).map_err(wrong)?;
    Ok((kind, address))
}

/// The members of a `SocketAddress`; whether they make sense is the inner result.
fn of_socket(addr: &mut Args) -> Result<Result<Address, AddressError>, QmpError> {
    let kind = text(addr, "type")?;
    Ok(match kind.as_str() {
        "inet" => Address::tcp(&text(addr, "host")?, &text(addr, "port")?),
        "unix" => Ok(Address::Unix(text(addr, "path")?.into())),
        "vsock" => Address::vsock(&text(addr, "cid")?, &text(addr, "port")?),
        "fd" => Address::fd(&text(addr, "str")?),
        other => return Err(not_accepted("type", other)),
    })
}

fn text(args: &mut Args, name: &str) -> Result<String, QmpError> {
    let text = args.string(name)?;
    args.need(name, text)
}

fn wrong(error: AddressError) -> QmpError {
    QmpError::generic(error.to_string())
}

fn not_accepted(name: &str, value: &str) -> QmpError {
    QmpError::generic(format!(
        "Parameter '{name}' does not accept value '{value}'"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(arguments: Value) -> Result<PathBuf, String> {
        channel(&mut args(arguments))
            .and_then(file)
            .map_err(|error| error.desc)
    }

    fn args(arguments: Value) -> Args {
        let Value::Object(members) = arguments else {
            panic!("arguments are an object")
        };
        Args::new(members)
    }

    #[test]
    fn both_forms_name_a_file() {
        let path = Ok(PathBuf::from("/tmp/a,b"));
        assert_eq!(parse(json!({ "uri": "file:/tmp/a,b" })), path);
        assert_eq!(parse(json!({ "uri": "file:/tmp/a,b,offset=0" })), path);
        let addr = json!({ "transport": "file", "filename": "/tmp/a,b", "offset": 0 });
        assert_eq!(
            parse(json!({ "channels": [{ "channel-type": "main", "addr": addr }] })),
            path
        );
    }

    #[test]
    fn an_offset_is_refused() {
        let error = parse(json!({ "uri": "file:/tmp/x,offset=4K" })).unwrap_err();
        assert!(error.starts_with("offset 4096:"), "{error}");
        let error = parse(json!({ "uri": "file:/tmp/x,offset=-1" })).unwrap_err();
        assert!(
            error.starts_with("offset of file address is \"-1\""),
            "{error}"
        );
    }

    #[test]
    fn other_transports_are_refused() {
        assert!(
            parse(json!({ "uri": "tcp:1.2.3.4:5" }))
                .unwrap_err()
                .contains("seekable")
        );
        assert!(
            parse(json!({ "uri": "zzz:1" }))
                .unwrap_err()
                .contains("unknown")
        );
    }

    #[test]
    fn both_forms_give_the_same_address() {
        let all = [
            (
                "tcp:[::1]:4444",
                json!({ "transport": "socket", "type": "inet", "host": "::1", "port": "4444" }),
            ),
            (
                "unix:/run/x",
                json!({ "transport": "socket", "type": "unix", "path": "/run/x" }),
            ),
            (
                "vsock:3:9",
                json!({ "transport": "socket", "type": "vsock", "cid": "3", "port": "9" }),
            ),
            (
                "fd:7",
                json!({ "transport": "socket", "type": "fd", "str": "7" }),
            ),
            (
                "exec:cat > x",
                json!({ "transport": "exec", "args": ["/bin/sh", "-c", "cat > x"] }),
            ),
            (
                "file:/x,offset=4096",
                json!({ "transport": "file", "filename": "/x", "offset": 4096 }),
            ),
        ];
        for (uri, addr) in all {
            let channels = json!({ "channels": [{ "channel-type": "main", "addr": addr }] });
            let of = |arguments: Value| channel(&mut args(arguments)).map_err(|error| error.desc);
            let address = of(json!({ "uri": uri })).unwrap();
            assert_eq!(address.to_string(), uri);
            assert_eq!(of(channels), Ok(address));
        }
    }

    #[test]
    fn the_bad_part_of_an_address_is_named() {
        for (addr, expected) in [
            (
                json!({ "transport": "socket", "type": "inet", "host": "h", "port": "x" }),
                "port of tcp address is \"x\": 0 to 65535",
            ),
            (
                json!({ "transport": "socket", "type": "inet", "host": "h" }),
                "Parameter 'channels[0].addr.port' is missing",
            ),
            (
                json!({ "transport": "socket", "type": "unix", "path": "/x", "tight": true }),
                "Parameter 'channels[0].addr.tight' is unexpected",
            ),
            (
                json!({ "transport": "socket", "type": "ipx" }),
                "Parameter 'type' does not accept value 'ipx'",
            ),
            (
                json!({ "transport": "rdma", "host": "h", "port": "1" }),
                "Parameter 'transport' does not accept value 'rdma'",
            ),
            (
                json!({ "transport": "exec", "args": [] }),
                "command of exec address is \"\": not empty",
            ),
        ] {
            let channels = json!({ "channels": [{ "channel-type": "main", "addr": addr }] });
            assert_eq!(parse(channels).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_channel_for_ram_may_stand_beside_the_main_one() {
        let of = |kind: &str, path: &str| {
            let addr = json!({ "transport": "socket", "type": "unix", "path": path });
            json!({ "channel-type": kind, "addr": addr })
        };
        let parse = |list: Value| channels(&mut args(json!({ "channels": list })));
        let both = parse(json!([of("cpr", "/c"), of("main", "/m")])).unwrap();
        assert_eq!(both.main, Address::Unix("/m".into()));
        assert_eq!(both.cpr, Some(Address::Unix("/c".into())));
        for (list, expected) in [
            (json!([of("cpr", "/c")]), "no entry of type 'main'"),
            (
                json!([of("main", "/m"), of("main", "/n")]),
                "more than one entry of type 'main'",
            ),
            (
                json!([of("main", "/m"), of("cpr", "/c"), of("cpr", "/d")]),
                "more than one entry of type 'cpr'",
            ),
            (json!([of("data", "/m")]), "does not accept value 'data'"),
        ] {
            let error = parse(list).unwrap_err().desc;
            assert!(error.contains(expected), "{error}");
        }
        let text = of("cpr", "/c").to_string();
        let cpr = (Kind::Cpr, Address::Unix("/c".into()));
        assert_eq!(of_json(&text), Ok(cpr));
        assert!(of_json("{").unwrap_err().desc.contains("no JSON object"));
    }

    #[test]
    fn exactly_one_form_is_needed() {
        assert!(parse(json!({})).unwrap_err().contains("need either"));
        assert!(
            parse(json!({ "channels": [] }))
                .unwrap_err()
                .contains("need either")
        );
        let both = json!({ "uri": "file:/x", "channels": [] });
        assert!(parse(both).unwrap_err().contains("exclusive"));
    }

    #[test]
    fn wrong_members_are_named_with_their_path() {
        let channel =
            |addr: Value| json!({ "channels": [{ "channel-type": "main", "addr": addr }] });
        let error = parse(channel(json!({ "transport": "file", "filename": "/x" }))).unwrap_err();
        assert_eq!(error, "Parameter 'channels[0].addr.offset' is missing");
        let error = parse(channel(json!(7))).unwrap_err();
        assert_eq!(
            error,
            "Invalid parameter type for 'channels[0].addr', expected: object"
        );
    }
}
