//! The socket: one client at a time; others wait until it is their turn, as with QEMU.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::{Monitor, session};

/// A listening socket. Its file goes when this does.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: Arc<SocketFile>,
}

/// Where the socket is found.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file: somebody may have put another one there.
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`. A socket on which nobody listens any more is replaced; anything else
    /// that stands there is left alone, with an error.
    pub fn bind(path: &Path) -> Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            other => other,
        };
        let listener = listener.with_context(|| cannot_listen(path))?;
        let file = fs::symlink_metadata(path).with_context(|| cannot_listen(path))?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: (file.dev(), file.ino()),
        };
        Ok(Self {
            listener,
            file: Arc::new(file),
        })
    }

    /// Its file.
    pub fn file(&self) -> &Arc<SocketFile> {
        &self.file
    }

    /// Serves clients in a thread of its own, for as long as the process lives.
    pub fn serve(&self, monitor: Arc<Monitor>) -> Result<()> {
        let listener = self.listener.try_clone()?;
        let serve = move || {
            for client in listener.incoming() {
                match client {
                    Ok(stream) => session::run(stream, &monitor),
                    // The client hung up before it was its turn, or we are out of descriptors.
                    Err(error) => tracing::warn!(%error, "no QMP connection"),
                }
            }
        };
        paguro_sys::NewThread::named("qmp".to_owned()).spawn(serve)?;
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.file.remove();
    }
}

impl SocketFile {
    /// Takes it away, if it is still there.
    pub fn remove(&self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the QMP socket stays behind");
        }
    }
}

/// Removes what a dead process left at `path`.
fn remove_stale(path: &Path) -> Result<()> {
    let file = fs::symlink_metadata(path).with_context(|| cannot_listen(path))?;
    if !file.file_type().is_socket() {
        bail!(
            "{}: there is a file at {} that is no socket",
            cannot_listen(path),
            path.display()
        );
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(error) => return Err(error).with_context(|| cannot_listen(path)),
        Ok(_) => bail!("{}: another process listens there", cannot_listen(path)),
    }
    tracing::debug!(path = %path.display(), "replacing a stale socket");
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| cannot_listen(path))
        }
        _ => Ok(()),
    }
}

fn cannot_listen(path: &Path) -> String {
    format!("cannot listen on the QMP socket {}", path.display())
}
