//! The socket: one client at a time; others wait until it is their turn, as with QEMU.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Service, session};

/// A listening socket. Its file goes when this does.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: Arc<SocketFile>,
}

/// Why there can be no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The host refuses.
    #[error("cannot listen on the QMP socket {}", path.display())]
    Host {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path is taken by what must not be replaced.
    #[error("cannot listen on the QMP socket {}: what stands there is no socket", path.display())]
    NoSocket {
        /// The file.
        path: PathBuf,
    },
    /// The path is another process's.
    #[error("cannot listen on the QMP socket {}: another process listens there", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
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
    /// that stands there is left alone.
    ///
    /// # Errors
    ///
    /// The path is taken, or the host refuses.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            other => other,
        };
        let listener = listener.map_err(|source| refused(path, source))?;
        let file = fs::symlink_metadata(path).map_err(|source| refused(path, source))?;
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

    /// Serves clients in a thread of its own, for as long as the process lives. Nothing that a client needs
    /// is made when it comes, so that a process without descriptors or threads can still be asked.
    ///
    /// # Errors
    ///
    /// There can be no thread, or no descriptor for it.
    pub fn serve(&self, service: Arc<impl Service>) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let writer = session::Writer::start()?;
        let mut spare = Spare::new()?;
        let serve = move || {
            loop {
                match spare.accept(&listener) {
                    Ok(stream) => {
                        let stream = Arc::new(stream);
                        session::run(&stream, &*service, &writer);
                        if let Ok(stream) = Arc::try_unwrap(stream) {
                            spare.take_back(stream);
                        }
                    }
                    // The client hung up before it was its turn.
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        tracing::warn!(%error, "no QMP connection");
                        // It would be the same at once.
                        std::thread::sleep(AGAIN);
                    }
                }
            }
        };
        paguro_sys::NewThread::named("qmp".to_owned()).spawn(serve)?;
        Ok(())
    }
}

/// What the host refused is asked for again after so long.
const AGAIN: Duration = Duration::from_millis(100);

/// A descriptor that is kept for a client, for when there are no more. A client that had it leaves it
/// here: closed and opened again it could be somebody else's.
struct Spare {
    nothing: fs::File,
    kept: Option<OwnedFd>,
}

impl Spare {
    fn new() -> io::Result<Self> {
        let nothing = fs::File::open("/dev/null")?;
        let kept = Some(nothing.try_clone()?.into());
        Ok(Self { nothing, kept })
    }

    fn accept(&mut self, listener: &UnixListener) -> io::Result<UnixStream> {
        let accepted = match listener.accept() {
            Err(error) if is_out_of_descriptors(&error) && self.kept.take().is_some() => {
                listener.accept()
            }
            other => other,
        };
        accepted.map(|(stream, _)| stream)
    }

    fn take_back(&mut self, stream: UnixStream) {
        if self.kept.is_none() {
            let mut kept = OwnedFd::from(stream);
            // Always: both are open.
            self.kept = rustix::io::dup2(&self.nothing, &mut kept)
                .is_ok()
                .then_some(kept);
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].contains(&Errno::from_io_error(error).unwrap_or(Errno::IO))
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
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let file = fs::symlink_metadata(path).map_err(|source| refused(path, source))?;
    let path = path.to_owned();
    if !file.file_type().is_socket() {
        return Err(ListenError::NoSocket { path });
    }
    match UnixStream::connect(&path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(source) => return Err(ListenError::Host { path, source }),
        Ok(_) => return Err(ListenError::Taken { path }),
    }
    tracing::debug!(path = %path.display(), "replacing a stale socket");
    match fs::remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(ListenError::Host { path, source })
        }
        _ => Ok(()),
    }
}

fn refused(path: &Path, source: io::Error) -> ListenError {
    let path = path.to_owned();
    ListenError::Host { path, source }
}
