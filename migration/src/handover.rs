//! RAM that is handed over instead of copied: two processes on one host.
//!
//! For replacing a running program by a newer one, all of RAM lies in memory that another process
//! can map: the source sends the descriptors of its memfds over a unix socket, the destination maps
//! them, and only device state moves in the stream (whose configuration says `x-ignore-shared`, as
//! QEMU's does).
//!
//! ```text
//! source                                             destination
//! "PgRM", u32 count, 16 bytes id,
//!         count x block  + descriptors           -->   maps them, makes its machine of them
//!                                                 <--   "PgRA": it has them
//! and then the stream, over another connection; this one stays until the source is through
//!
//! id:    that of the migration, which the stream has in its PINGs: RAM and devices of two machines
//!        that are moved at once do not get mixed up
//! block: str8 id, u64 guest address, u64 used bytes, u64 bytes of the mapping, u64 offset in the
//!        file, u8 1 if its pages are of 2 MiB
//! ```
//!
//! **What it costs.** There is one RAM. From the moment the destination runs, what the source holds
//! is no copy any more: a source that is let run again afterwards finds RAM as the destination left
//! it, and devices as they were before. The two never run at the same time, as in every migration;
//! but where a copied guest could be run again at the source (`cont` after `completed`), this one
//! must not be, and [`Stay::HandedOver`](crate::machine::Stay::HandedOver) tells the machine so. In doubt an
//! operator who knows that the destination never ran may run it here, and nobody else. Before the
//! permission to run was sent nothing of the guest's RAM has changed, but for what KVM itself may
//! write there when a vCPU's state is set.
//!
//! RAM that is still arriving (a lazy restore) is not handed over: absent pages of a memfd are zeros
//! to whoever maps it without waiting for them.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use paguro_ram::{Backing, GuestRam, RamBlock};
use paguro_sys::{HUGE_PAGE_BYTES, Mapping};
use paguro_wire::stream::header::MAGIC;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::channel::{Channel, ChannelError, Handle, Reader, Writer};
use crate::switchover::MigrationId;

const OFFER: [u8; 4] = *b"PgRM";
/// What stands before the blocks.
const HEAD_BYTES: usize = 24;
const TAKEN: [u8; 4] = *b"PgRA";
/// Blocks that are handed over at most: as many descriptors as the kernel takes in one message.
const MOST: usize = 250;
/// The file system of memfds of huge pages.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
const ENTRY_BYTES: usize = 1 + 255 + 4 * 8 + 1;

/// RAM could not be handed over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandOverError {
    /// The caller's: not all of RAM is shared memory.
    #[error("RAM block {block} is not shared memory (a memfd), so it cannot be handed over")]
    NotShared {
        /// The block.
        block: String,
    },
    /// The caller's: a restore still fills RAM.
    #[error("RAM is still being filled by a restore, so it cannot be handed over yet")]
    Unarrived,
    /// The caller's: descriptors travel over unix sockets only.
    #[error("{address} is no unix socket, so RAM cannot be handed over to it")]
    NotUnix {
        /// Where to.
        address: String,
    },
    /// The caller's: too many blocks.
    #[error("{found} RAM blocks, more than {MOST}")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// The channel's.
    #[error("the other side cannot be reached")]
    Channel(#[source] ChannelError),
    /// The network's, or the peer's.
    #[error("the channel broke while RAM was handed over")]
    Broken(#[source] io::Error),
    /// The peer's: what it sends is no offer of RAM, or no answer to one.
    #[error("the other side hands over no RAM: {what}")]
    Nonsense {
        /// What is wrong.
        what: String,
    },
    /// The host's: memory cannot be mapped.
    #[error("RAM block {block} that was handed over cannot be mapped")]
    Map {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn nonsense(what: impl Into<String>) -> HandOverError {
    HandOverError::Nonsense { what: what.into() }
}

/// RAM that the other side has. While this is held the other side waits for the stream.
pub(crate) struct Offered {
    _way: (Reader, Writer),
}

/// Sends the descriptors of all of RAM and waits until the other side has them.
///
/// # Errors
///
/// [`HandOverError`].
pub(crate) fn offer(
    ram: &GuestRam,
    id: MigrationId,
    channel: Channel,
) -> Result<Offered, HandOverError> {
    let (message, files) = describe(ram, id)?;
    let peer = channel.peer().to_owned();
    let (mut reader, mut writer) = channel.split();
    let Some(socket) = writer.plain_fd() else {
        return Err(HandOverError::NotUnix { address: peer });
    };
    let sent = send(socket, &message, &files)?;
    let rest = writer.write_all(&message[sent..]);
    rest.map_err(HandOverError::Broken)?;
    let mut answer = [0; 4];
    let heard = reader.read_exact(&mut answer);
    heard.map_err(HandOverError::Broken)?;
    match answer {
        TAKEN => Ok(Offered {
            _way: (reader, writer),
        }),
        other => Err(nonsense(format!("its answer is {other:02x?}"))),
    }
}

/// What is said of the blocks, and their files.
fn describe(
    ram: &GuestRam,
    id: MigrationId,
) -> Result<(Vec<u8>, Vec<BorrowedFd<'_>>), HandOverError> {
    let blocks = ram.blocks();
    if blocks.len() > MOST {
        let found = blocks.len();
        return Err(HandOverError::TooMany { found });
    }
    let mut message = OFFER.to_vec();
    message.extend((blocks.len() as u32).to_be_bytes());
    message.extend(id.bytes());
    let mut files = Vec::new();
    for block in blocks {
        let shared = block.file().filter(|_| block.backing() == Backing::Memfd);
        let Some(file) = shared else {
            let block = block.id().to_owned();
            return Err(HandOverError::NotShared { block });
        };
        files.push(file);
        message.push(block.id().len() as u8);
        message.extend(block.id().as_bytes());
        for number in [
            block.guest_address(),
            block.used_bytes() as u64,
            block.max_bytes() as u64,
            block.file_offset(),
        ] {
            message.extend(number.to_be_bytes());
        }
        message.push(u8::from(block.unit_pages() > 1));
    }
    Ok((message, files))
}

/// Sends descriptors, and as much of a message as goes with them: how many bytes of it.
fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    files: &[BorrowedFd<'_>],
) -> Result<usize, HandOverError> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        let found = files.len();
        return Err(HandOverError::TooMany { found });
    }
    let pieces = [IoSlice::new(message)];
    let sent = sendmsg(socket, &pieces, &mut ancillary, SendFlags::NOSIGNAL);
    sent.map_err(|error| HandOverError::Broken(error.into()))
}

/// RAM that was handed over; the other side waits for [`Taken::confirm`].
pub struct Taken {
    ram: GuestRam,
    id: MigrationId,
    way: Way,
}

/// The connection on which RAM was handed over. The source ends it when it is through, or is gone.
pub struct Way {
    reader: Reader,
    writer: Writer,
    handle: Handle,
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Way")
    }
}

impl Way {
    /// Waits until the source ends it, or it is stopped here, however long that takes.
    pub(crate) fn wait_end(mut self) {
        self.handle.set_silence(None);
        let mut byte = [0];
        while matches!(self.reader.read(&mut byte), Ok(1)) {}
    }
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Taken({:?})", self.ram)
    }
}

/// Takes what is offered on a channel that was just accepted.
///
/// # Errors
///
/// [`HandOverError`]; whatever was mapped is gone again.
pub fn take(channel: Channel) -> Result<Taken, HandOverError> {
    let peer = channel.peer().to_owned();
    let handle = channel.handle();
    let (reader, writer) = channel.split();
    let Some(socket) = reader.plain_fd() else {
        return Err(HandOverError::NotUnix { address: peer });
    };
    let mut message = Vec::new();
    let mut files: Vec<OwnedFd> = Vec::new();
    let mut wanted = HEAD_BYTES;
    while message.len() < wanted {
        receive(
            &reader,
            socket,
            wanted - message.len(),
            &mut message,
            &mut files,
        )?;
        if message.len() >= HEAD_BYTES && wanted == HEAD_BYTES {
            wanted = HEAD_BYTES + least_bytes(&message)?;
        }
        // Names make it longer; no more than is announced is ever read.
        if message.len() == wanted && wanted > HEAD_BYTES {
            wanted = HEAD_BYTES + whole_bytes(&message)?;
        }
    }
    let ram = map(&message[HEAD_BYTES..], files)?;
    let id = MigrationId::new(std::array::from_fn(|byte| message[8 + byte]));
    let way = Way {
        reader,
        writer,
        handle,
    };
    Ok(Taken { ram, id, way })
}

impl Taken {
    /// What was handed over.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Whose stream belongs to it: for [`ReceiveOptions`](crate::destination::ReceiveOptions).
    pub fn id(&self) -> MigrationId {
        self.id
    }

    /// Tells the other side that a machine was made of it. What it gives is to be watched by
    /// [`Arrival::watch`](crate::destination::Arrival::watch).
    ///
    /// # Errors
    ///
    /// [`HandOverError::Broken`].
    pub fn confirm(mut self) -> Result<Way, HandOverError> {
        let told = self.way.writer.write_all(&TAKEN);
        told.map_err(HandOverError::Broken)?;
        Ok(self.way)
    }
}

fn receive(
    reader: &crate::channel::Reader,
    socket: BorrowedFd<'_>,
    most: usize,
    message: &mut Vec<u8>,
    files: &mut Vec<OwnedFd>,
) -> Result<(), HandOverError> {
    let mut bytes = vec![0; most.min(MOST * ENTRY_BYTES)];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    loop {
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut pieces, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => {
                for part in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = part {
                        files.extend(rights);
                    }
                }
                if files.len() > MOST {
                    return Err(nonsense("too many descriptors"));
                }
                if received.bytes == 0 {
                    return Err(HandOverError::Broken(io::ErrorKind::UnexpectedEof.into()));
                }
                message.extend_from_slice(&bytes[..received.bytes]);
                return Ok(());
            }
            Err(rustix::io::Errno::AGAIN) => reader.wait().map_err(HandOverError::Broken)?,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(HandOverError::Broken(error.into())),
        }
    }
}

/// The bytes that so many blocks have at least.
fn least_bytes(message: &[u8]) -> Result<usize, HandOverError> {
    if message[..4] == MAGIC {
        return Err(nonsense(
            "it sends a stream at once, as one that copies does",
        ));
    }
    if message[..4] != OFFER {
        return Err(nonsense(format!("it begins with {:02x?}", &message[..4])));
    }
    let count = u32::from_be_bytes([message[4], message[5], message[6], message[7]]) as usize;
    if count == 0 || count > MOST {
        return Err(nonsense(format!("{count} RAM blocks; 1 to {MOST} can be")));
    }
    Ok(count * (ENTRY_BYTES - 255))
}

/// The bytes that the blocks have by what is known of their names.
fn whole_bytes(message: &[u8]) -> Result<usize, HandOverError> {
    let count = u32::from_be_bytes([message[4], message[5], message[6], message[7]]) as usize;
    let (mut at, mut bytes) = (HEAD_BYTES, 0);
    for _ in 0..count {
        // What is not here yet has no name so far; it is looked at again.
        let name = message.get(at).copied().map_or(0, usize::from);
        let entry = ENTRY_BYTES - 255 + name;
        at += entry;
        bytes += entry;
    }
    Ok(bytes)
}

fn map(mut entries: &[u8], files: Vec<OwnedFd>) -> Result<GuestRam, HandOverError> {
    let mut blocks = Vec::new();
    for file in files {
        if entries.is_empty() {
            return Err(nonsense("more descriptors than RAM blocks"));
        }
        let name = usize::from(entries[0]);
        let entry = ENTRY_BYTES - 255 + name;
        if entries.len() < entry {
            return Err(nonsense("an entry is cut short"));
        }
        let (this, rest) = entries.split_at(entry);
        entries = rest;
        let id = String::from_utf8(this[1..1 + name].to_vec())
            .map_err(|_| nonsense("a name is not UTF-8"))?;
        let number = |index: usize| {
            let at = 1 + name + 8 * index;
            u64::from_be_bytes(std::array::from_fn(|i| this[at + i]))
        };
        let huge = this[entry - 1] == 1;
        blocks.push(map_block(
            id,
            [number(0), number(1), number(2), number(3)],
            huge,
            file,
        )?);
    }
    if entries.is_empty() {
        Ok(GuestRam::new(blocks))
    } else {
        Err(nonsense("fewer descriptors than RAM blocks"))
    }
}

fn map_block(
    id: String,
    [address, used, bytes, offset]: [u64; 4],
    huge: bool,
    file: OwnedFd,
) -> Result<RamBlock, HandOverError> {
    let length = rustix::fs::fstat(&file).map_or(0, |stat| stat.st_size as u64);
    // Reading behind the end of a file is a SIGBUS.
    if offset != 0 || bytes > length || used > bytes || bytes == 0 || !bytes.is_multiple_of(4096) {
        return Err(nonsense(format!(
            "RAM block {id:?} uses {used:#x} of {bytes:#x} bytes at {offset:#x} in a file of \
             {length:#x}"
        )));
    }
    // What is taken for one page must be one.
    let page = rustix::fs::fstatfs(&file).map_or(0, |of| match of.f_type as u64 & 0xffff_ffff {
        HUGETLBFS_MAGIC => of.f_bsize as u64,
        _ => 0,
    });
    if page != if huge { HUGE_PAGE_BYTES as u64 } else { 0 } {
        let said = if huge { "are" } else { "are not" };
        return Err(nonsense(format!(
            "the pages of RAM block {id:?} {said} huge ones of 2 MiB, and its file says otherwise"
        )));
    }
    let mapping = Mapping::shared(file.as_fd(), bytes as usize, huge);
    let mapping = mapping.map_err(|error| HandOverError::Map {
        block: id.clone(),
        source: Box::new(error),
    })?;
    let block = RamBlock::adopt(&id, address, Arc::new(mapping), Backing::Memfd);
    let block = block.with_file(file, offset).left_by_others();
    if used < bytes {
        block
            .resize(used as usize)
            .map_err(|error| HandOverError::Map {
                block: id,
                source: Box::new(error),
            })?;
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use rustix::fs::MemfdFlags;

    use super::*;

    #[test]
    fn what_is_said_of_a_block_must_be_so_of_its_file() {
        let told = |numbers: [u64; 4], huge: bool| {
            let file = rustix::fs::memfd_create("told", MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, 4 << 20).unwrap();
            map_block("ram".to_owned(), numbers, huge, file).map_err(|error| error.to_string())
        };
        let whole = 4 << 20;
        let block = told([0, whole, whole, 0], false).unwrap();
        assert_eq!((block.used_bytes(), block.unit_pages()), (4 << 20, 1));
        assert!(told([0, 4096, whole, 0], false).is_ok());
        for (numbers, huge, word) in [
            ([0, whole, 2 * whole, 0], false, "in a file of"),
            ([0, 2 * whole, whole, 0], false, "in a file of"),
            ([0, whole, whole, 4096], false, "in a file of"),
            ([0, 0, 0, 0], false, "in a file of"),
            ([0, 1, 4097, 0], false, "in a file of"),
            ([0, whole, whole, 0], true, "huge ones"),
        ] {
            let error = told(numbers, huge).unwrap_err();
            assert!(error.contains(word), "{numbers:?}, {huge}: {error}");
        }
    }
}
