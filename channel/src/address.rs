//! Where a channel leads: `tcp:HOST:PORT` and its like, read and printed.
//!
//! | text | meaning |
//! |---|---|
//! | `tcp:HOST:PORT` | IPv6 addresses in brackets; listening: port 0 lets the kernel choose, no host means any |
//! | `unix:PATH` | |
//! | `vsock:CID:PORT` | |
//! | `fd:N` | a socket, pipe or file that the process inherited as descriptor N |
//! | `exec:COMMAND` | run by `/bin/sh -c`; its input or output is the channel |
//! | `file:PATH[,offset=N]` | N in bytes, or with K, M, G, T |
//!
//! Who gets an address by other means (QMP's `channels`) builds the value and calls
//! [`Address::checked`]: what holds for one form holds for the other.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a channel leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP port.
    Tcp {
        /// Name or address, without brackets; empty for any (listening only).
        host: String,
        /// Port; 0 for any (listening only).
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
    /// A port of a virtual machine or of its host.
    Vsock {
        /// Which machine.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// An inherited descriptor, by its number.
    Fd(i32),
    /// A command with its arguments.
    Exec(Vec<String>),
    /// A file.
    File {
        /// Its name.
        path: PathBuf,
        /// Where in it the stream begins, in bytes.
        offset: u64,
    },
}

/// The caller's: not the address of a channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Nothing known before the first colon.
    #[error("unknown migration protocol: {0}")]
    UnknownTransport(String),
    /// A part is missing or wrong.
    #[error("{part} of {transport} address is {value:?}: {rule}")]
    Part {
        /// The transport.
        transport: &'static str,
        /// Which part.
        part: &'static str,
        /// What it was.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
}

impl Address {
    /// Whether what is there can answer, on either side. Of an inherited descriptor the kernel says
    /// what it is, as long as nobody has taken it over.
    pub fn can_return(&self) -> bool {
        match self {
            Self::Tcp { .. } | Self::Unix(_) | Self::Vsock { .. } => true,
            Self::Exec(_) | Self::File { .. } => false,
            Self::Fd(number) => paguro_sys::is_inherited_socket(*number),
        }
    }

    /// What stands before the colon.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => "tcp",
            Self::Unix(_) => "unix",
            Self::Vsock { .. } => "vsock",
            Self::Fd(_) => "fd",
            Self::Exec(_) => "exec",
            Self::File { .. } => "file",
        }
    }

    /// A TCP address whose port is still text, as QEMU has it in its `channels`.
    ///
    /// # Errors
    ///
    /// The port's.
    pub fn tcp(host: &str, port: &str) -> Result<Self, AddressError> {
        let port = number(port).ok_or_else(|| wrong("tcp", "port", port, "0 to 65535"))?;
        let host = host.to_owned();
        Self::Tcp { host, port }.checked()
    }

    /// A vsock address whose numbers are still text.
    ///
    /// # Errors
    ///
    /// That of the part that is no number.
    pub fn vsock(cid: &str, port: &str) -> Result<Self, AddressError> {
        let rule = "a number of 32 bits";
        let cid = number(cid).ok_or_else(|| wrong("vsock", "cid", cid, rule))?;
        let port = number(port).ok_or_else(|| wrong("vsock", "port", port, rule))?;
        Ok(Self::Vsock { cid, port })
    }

    /// A descriptor whose number is still text. Names given by `getfd` are not known here.
    ///
    /// # Errors
    ///
    /// It is no number above 2.
    pub fn fd(number_text: &str) -> Result<Self, AddressError> {
        let number = number(number_text).and_then(|number: u32| i32::try_from(number).ok());
        match number {
            Some(number) => Self::Fd(number).checked(),
            None => Err(wrong("fd", "descriptor", number_text, FD_RULE)),
        }
    }

    /// A command for the shell.
    pub fn shell(command: &str) -> Self {
        Self::Exec(vec!["/bin/sh".into(), "-c".into(), command.into()])
    }

    /// Itself, if all its parts make sense.
    ///
    /// # Errors
    ///
    /// That of the first part that does not.
    pub fn checked(self) -> Result<Self, AddressError> {
        match &self {
            Self::Tcp { host, .. } if host.contains(|c: char| "[]/ ,\0".contains(c)) => {
                Err(wrong("tcp", "host", host, "a name or an address"))
            }
            Self::Tcp { host, .. } if host.contains(':') && host_v6(host).is_none() => Err(wrong(
                "tcp",
                "host",
                host,
                "an IPv6 address, in brackets before the port",
            )),
            Self::Unix(path) if path.as_os_str().len() > 107 => Err(wrong(
                "unix",
                "path",
                &path.to_string_lossy(),
                "no longer than 107 bytes",
            )),
            Self::Unix(path) => checked_path("unix", path),
            Self::File { path, .. } if path.starts_with("/dev/fdset") => Err(wrong(
                "file",
                "path",
                &path.to_string_lossy(),
                "a file's name; sets of descriptors are not supported",
            )),
            Self::File { path, .. } => checked_path("file", path),
            Self::Fd(number) if *number <= 2 => {
                Err(wrong("fd", "descriptor", &number.to_string(), FD_RULE))
            }
            Self::Exec(arguments) => {
                let bad = |text: &String| text.contains('\0');
                match (arguments.first(), arguments.iter().find(|text| bad(text))) {
                    (Some(program), None) if !program.is_empty() => Ok(()),
                    (_, Some(text)) => Err(wrong("exec", "argument", text, "no zero bytes")),
                    _ => Err(wrong("exec", "command", "", "not empty")),
                }
            }
            Self::Tcp { .. } | Self::Vsock { .. } | Self::Fd(_) => Ok(()),
        }?;
        Ok(self)
    }
}

const FD_RULE: &str = "the number of an inherited descriptor, above 2";

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let unknown = || AddressError::UnknownTransport(text.to_owned());
        let (transport, rest) = text.split_once(':').ok_or_else(unknown)?;
        match transport {
            "tcp" => {
                let (host, port) = host_and_port(rest)?;
                Self::tcp(host, port)
            }
            "unix" => Self::Unix(rest.into()).checked(),
            "vsock" => match rest.split_once(':') {
                Some((cid, port)) => Self::vsock(cid, port),
                None => Err(wrong("vsock", "port", "", "it must be given, as CID:PORT")),
            },
            "fd" => Self::fd(rest),
            "exec" if rest.is_empty() => Err(wrong("exec", "command", "", "not empty")),
            "exec" => Self::shell(rest).checked(),
            "file" => {
                let (path, offset) = rest.rsplit_once(",offset=").unwrap_or((rest, "0"));
                let offset = bytes(offset)
                    .ok_or_else(|| wrong("file", "offset", offset, "bytes, or with K, M, G, T"))?;
                let path = path.into();
                Self::File { path, offset }.checked()
            }
            _ => Err(unknown()),
        }
    }
}

/// As it is read; a command that is not the shell's is printed as the shell would take it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Fd(number) => write!(f, "fd:{number}"),
            Self::Exec(arguments) => match arguments.as_slice() {
                [shell, dash_c, command] if shell == "/bin/sh" && dash_c == "-c" => {
                    write!(f, "exec:{command}")
                }
                all => {
                    let quoted = |text: &String| format!("'{}'", text.replace('\'', r"'\''"));
                    let all: Vec<String> = all.iter().map(quoted).collect();
                    write!(f, "exec:{}", all.join(" "))
                }
            },
            // Always with the offset where the name alone would be read as having one.
            Self::File { path, offset } => {
                write!(f, "file:{}", path.display())?;
                if *offset != 0 || path.to_string_lossy().contains(",offset=") {
                    write!(f, ",offset={offset}")?;
                }
                Ok(())
            }
        }
    }
}

fn host_and_port(text: &str) -> Result<(&str, &str), AddressError> {
    let missing = || wrong("tcp", "port", "", "it must be given, as HOST:PORT");
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest
            .split_once(']')
            .ok_or_else(|| wrong("tcp", "host", text, "closed with a bracket"))?;
        return match host_v6(host) {
            Some(_) => Ok((host, after.strip_prefix(':').ok_or_else(missing)?)),
            None => Err(wrong("tcp", "host", host, "an IPv6 address")),
        };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(missing)?;
    if host.contains(':') {
        Err(wrong(
            "tcp",
            "host",
            host,
            "an IPv6 address, in brackets before the port",
        ))
    } else {
        Ok((host, port))
    }
}

/// An IPv6 address, perhaps with a scope.
fn host_v6(host: &str) -> Option<Ipv6Addr> {
    host.split('%').next()?.parse().ok()
}

fn checked_path(transport: &'static str, path: &std::path::Path) -> Result<(), AddressError> {
    let text = path.to_string_lossy();
    if text.is_empty() || text.contains('\0') {
        Err(wrong(transport, "path", &text, "not empty, no zero bytes"))
    } else {
        Ok(())
    }
}

/// `parse` alone would take a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn bytes(text: &str) -> Option<u64> {
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let last = text.chars().last()?.to_ascii_uppercase();
    match units.iter().find(|(letter, _)| *letter == last) {
        Some((_, shift)) => number::<u64>(&text[..text.len() - 1])?.checked_mul(1 << shift),
        None => number(text),
    }
}

fn wrong(
    transport: &'static str,
    part: &'static str,
    value: &str,
    rule: &'static str,
) -> AddressError {
    AddressError::Part {
        transport,
        part,
        value: value.to_owned(),
        rule,
    }
}

#[cfg(test)]
#[path = "address_tests.rs"]
mod tests;
