//! The file behind an outgoing `file:`: a stream that gets its name when it is whole.

use std::io::{self, IoSlice};
use std::path::Path;

use super::{ChannelError, Stop};
use crate::file::{FileError, PartialFile};

#[derive(Debug)]
pub(super) struct StreamFile {
    file: PartialFile,
    at: u64,
}

impl StreamFile {
    /// A file that shall become `path`. Of an older one the first `offset` bytes are kept: they
    /// are somebody else's header, such as libvirt's.
    pub(super) fn create(path: &Path, offset: u64) -> Result<Self, FileError> {
        let file = PartialFile::create(path)?;
        if offset != 0 {
            file.keep_start(offset)?;
        }
        Ok(Self { file, at: offset })
    }

    pub(super) fn write(&mut self, pieces: &[IoSlice<'_>], stops: [&Stop; 2]) -> io::Result<usize> {
        check(stops)?;
        let pieces = &pieces[..pieces.len().min(1024)];
        let bytes = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        self.file
            .write_pieces_at(self.at, pieces)
            .map_err(|error| ChannelError::from(error).into_io())?;
        self.at += bytes as u64;
        Ok(bytes)
    }

    /// Syncs it and gives it its name.
    pub(super) fn finish(self, stops: [&Stop; 2]) -> io::Result<()> {
        check(stops)?;
        self.file
            .complete(true)
            .map_err(|error| ChannelError::from(error).into_io())
    }
}

fn check(stops: [&Stop; 2]) -> io::Result<()> {
    match stops.iter().any(|stop| stop.is_stopped()) {
        true => Err(ChannelError::Stopped.into_io()),
        false => Ok(()),
    }
}

impl From<FileError> for ChannelError {
    fn from(error: FileError) -> Self {
        Self::File {
            doing: error.doing,
            path: error.path,
            source: error.source,
        }
    }
}
