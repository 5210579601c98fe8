//! The file behind an outgoing `file:`: a stream that gets its name when it is whole.

use std::io::{self, IoSlice};
use std::path::Path;

use crate::{ChannelError, Stop};
use paguro_newfile::{FileError, NotNamed, PartialFile};

#[derive(Debug)]
pub(crate) struct StreamFile {
    file: PartialFile,
    at: u64,
}

impl StreamFile {
    /// A file that shall become `path`. Of an older one the first `offset` bytes are kept: they
    /// are somebody else's header, such as libvirt's.
    pub(crate) fn create(path: &Path, offset: u64) -> Result<Self, FileError> {
        let file = PartialFile::create(path, true)?;
        if offset != 0 {
            file.keep_start(offset)?;
        }
        Ok(Self { file, at: offset })
    }

    pub(crate) fn write(&mut self, pieces: &[IoSlice<'_>], stops: [&Stop; 2]) -> io::Result<usize> {
        check(stops)?;
        let pieces = &pieces[..pieces.len().min(1024)];
        let bytes = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        self.file
            .write_pieces_at(self.at, pieces)
            .map_err(|error| ChannelError::from(error).into_io())?;
        self.at += bytes as u64;
        Ok(bytes)
    }

    /// Waits until what was written is on the disk.
    pub(crate) fn settle(&self, stops: [&Stop; 2]) -> io::Result<()> {
        check(stops)?;
        self.file
            .settle()
            .map_err(|error| ChannelError::from(error).into_io())
    }

    /// Syncs it and gives it its name. What could not be confirmed after that is given back.
    pub(crate) fn finish(self, stops: [&Stop; 2]) -> io::Result<Option<ChannelError>> {
        // Syncing may take long, and who stops it meanwhile wants no file.
        self.settle(stops)?;
        check(stops)?;
        match self.file.complete() {
            Ok(unconfirmed) => Ok(unconfirmed.map(ChannelError::from)),
            Err(error) => Err(ChannelError::from(error).into_io()),
        }
    }
}

fn check(stops: [&Stop; 2]) -> io::Result<()> {
    if stops.iter().any(|stop| stop.is_stopped()) {
        Err(ChannelError::Stopped.into_io())
    } else {
        Ok(())
    }
}

impl From<NotNamed> for ChannelError {
    fn from(error: NotNamed) -> Self {
        match error {
            NotNamed::No(error) => error.into(),
            NotNamed::Unknown(FileError { path, source, .. }) => Self::FileInDoubt { path, source },
        }
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
