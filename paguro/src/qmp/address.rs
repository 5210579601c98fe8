//! Where `migrate` shall write to: its `uri` or its `channels`.

use std::path::PathBuf;

use super::{Args, QmpError};

/// Takes the address out of the arguments of `migrate`.
pub fn file(args: &mut Args) -> Result<PathBuf, QmpError> {
    let uri = args.string("uri")?;
    let channels = args.objects("channels")?;
    match (uri, channels) {
        (Some(_), Some(_)) => Err(QmpError::generic(
            "'uri' and 'channels' arguments are mutually exclusive; exactly one of them is needed",
        )),
        (Some(uri), None) => of_uri(&uri),
        (None, Some(channels)) if !channels.is_empty() => of_channels(channels),
        (None, _) => Err(QmpError::generic(
            "need either 'uri' or 'channels' argument",
        )),
    }
}

/// Transports of QEMU that carry a stream.
const STREAMS: [&str; 7] = ["tcp", "unix", "vsock", "fd", "exec", "rdma", "socket"];

fn of_uri(uri: &str) -> Result<PathBuf, QmpError> {
    let Some(file) = uri.strip_prefix("file:") else {
        let transport = uri.split(':').next().unwrap_or_default();
        return Err(not_a_file(transport, uri));
    };
    let (name, offset) = match file.rsplit_once(",offset=") {
        Some((name, offset)) => (name, offset),
        None => (file, "0"),
    };
    match offset.parse::<crate::size::Size>() {
        Ok(offset) => checked(name, offset.0),
        Err(_) => Err(QmpError::generic(format!(
            "file URI has bad offset '{offset}'"
        ))),
    }
}

fn of_channels(channels: Vec<Args>) -> Result<PathBuf, QmpError> {
    let count = channels.len();
    let (Some(mut channel), 1) = (channels.into_iter().next(), count) else {
        return Err(QmpError::generic(
            "Channel list must have only one entry, for type 'main'",
        ));
    };
    let kind = channel.string("channel-type")?;
    let kind = channel.need("channel-type", kind)?;
    if kind != "main" {
        return Err(QmpError::generic(format!(
            "Parameter 'channel-type' does not accept value '{kind}'"
        )));
    }
    let addr = channel.object("addr")?;
    let mut addr = channel.need("addr", addr)?;
    channel.finish()?;
    let transport = addr.string("transport")?;
    let transport = addr.need("transport", transport)?;
    if transport != "file" {
        return Err(not_a_file(&transport, &transport));
    }
    let name = addr.string("filename")?;
    let name = addr.need("filename", name)?;
    let offset = addr.unsigned("offset")?;
    let offset = addr.need("offset", offset)?;
    addr.finish()?;
    checked(&name, offset)
}

fn checked(name: &str, offset: u64) -> Result<PathBuf, QmpError> {
    if offset != 0 {
        return Err(QmpError::generic(format!(
            "offset {offset}: a snapshot begins at the start of its file, which is replaced as a \
             whole"
        )));
    }
    if name.is_empty() || name.contains('\0') {
        return Err(QmpError::generic("file name is empty or has a zero byte"));
    }
    if name.starts_with("/dev/fdset/") {
        return Err(QmpError::generic(
            "file descriptor sets are not supported: a snapshot replaces its file by name",
        ));
    }
    Ok(PathBuf::from(name))
}

fn not_a_file(transport: &str, all: &str) -> QmpError {
    if STREAMS.contains(&transport) {
        QmpError::generic("Migration requires seekable transport (e.g. file)")
    } else {
        QmpError::generic(format!("unknown migration protocol: {all}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(arguments: Value) -> Result<PathBuf, String> {
        let Value::Object(members) = arguments else {
            panic!("arguments are an object")
        };
        file(&mut Args::new(members)).map_err(|error| error.desc)
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
        assert!(error.contains("bad offset '-1'"), "{error}");
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
