//! What the two sides say to each other about the outcome, as bytes.
//!
//! # Inside the stream
//!
//! All of it is QEMU's, or does with a stock QEMU what it should.
//!
//! ```text
//! COMMAND PING 1, answered PONG 1           the return path works
//! COMMAND PING "PgId", PING w0 .. PING w3   the migration's id; the highest bit of each w is set
//! COMMAND PING 2, answered PONG 2           sent after the last section: is everything loaded?
//! EOF                                       the permission to run
//! COMMAND 0x5067, no payload                forget it: the source runs on
//! return path SHUT 0                        the destination has the right to run
//! return path SHUT "PgAb"                   it has not, and never will: it has abandoned its copy
//! return path SHUT, any other code          it failed; nothing follows from that
//! ```
//!
//! The id travels in PINGs because every destination answers them and none looks at their values,
//! because it is needed only where there is a return path, and because `configuration/uuid` has a
//! meaning already (with `validate-uuid`, a machine of another UUID is refused). The highest bit
//! keeps a word of it from being taken for 1 or 2 in a PONG that comes late; 124 bits are left to
//! chance. A stock QEMU refuses an unknown COMMAND and ends: just what COMMAND 0x5067 wants.
//!
//! # Over a connection of its own
//!
//! The source connects to the address to which it migrated, over the same kind of channel (TLS
//! included), and both say one or two of these, 24 bytes each, integers big-endian:
//!
//! ```text
//! 0   4   magic: "PgOQ" from the source, "PgOA" from the destination
//! 4   1   version, 1
//! 5   1   what, as below
//! 6   2   zero
//! 8  16   the migration's id
//! ```
//!
//! ```text
//! PgOQ  1 Run     you have my permission to run (again: EOF was it, too)
//! PgOQ  2 Forget  I take it back, or have taken it: you must never run
//! PgOQ  3 Known   I have your answer and need you no more (not answered)
//! PgOA  1 Permitted  I run, or am paused and may run by right
//! PgOA  2 Abandoned  I do not run and never will
//! PgOA  3 CannotRun  I have the permission, but the machine does not start; I keep it
//! PgOA  4 Unknown    I know of no such migration, or it has not come that far
//! ```
//!
//! There is no plain question: each of the first two verbs is answered by what is so once it was
//! obeyed, so that asking first would cost a round trip and decide nothing. The magics differ from
//! `QEVM` and from that of multifd in their first byte: a destination that listens reads four
//! bytes and knows which it is. An answer with another id, version or magic is no answer. A stock
//! QEMU that listens at that address takes a query for a broken stream: it is never asked of its
//! own accord by a source that was confirmed.

/// Value of the first PING.
pub const PING_OPEN: u32 = 1;
/// Value of the PING whose PONG says that everything is loaded.
pub const PING_LOADED: u32 = 2;
/// Value of the PING that says that the next four are the migration's id.
pub const PING_ID: u32 = u32::from_be_bytes(*b"PgId");
/// Code of a SHUT that confirms: the destination has the right to run.
pub const SHUT_CONFIRMED: u32 = 0;
/// Code of a SHUT that says that it failed, and no more than that.
pub const SHUT_FAILED: u32 = 1;
/// Code of a SHUT that says that the destination will never run.
pub const SHUT_ABANDONED: u32 = u32::from_be_bytes(*b"PgAb");
/// Number of the COMMAND, without payload, that tells a destination to forget it.
pub const COMMAND_FORGET: u16 = u16::from_be_bytes(*b"Pg");

/// Bytes of a query, and of an answer.
pub const MESSAGE_BYTES: usize = 24;
/// How a query begins.
pub const QUERY_MAGIC: [u8; 4] = *b"PgOQ";
/// How an answer begins.
pub const ANSWER_MAGIC: [u8; 4] = *b"PgOA";
const VERSION: u8 = 1;

/// Which migration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MigrationId([u8; 16]);

impl MigrationId {
    /// From random bytes. Four of the bits are set, whatever they were.
    pub fn new(random: [u8; 16]) -> Self {
        let mut id = random;
        for first in [0, 4, 8, 12] {
            id[first] |= 0x80;
        }
        Self(id)
    }

    /// As the offer of RAM carries it.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// The values of the PINGs that carry it, in order.
    pub fn pings(self) -> [u32; 5] {
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| self.0[at + i]));
        [PING_ID, word(0), word(4), word(8), word(12)]
    }
}

/// Finds the migration's id among the PINGs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct IdFinder {
    /// Words still to come.
    left: u8,
    id: [u8; 16],
}

impl IdFinder {
    /// Takes the value of a PING: the id, once it is complete.
    pub(crate) fn take(&mut self, value: u32) -> Option<MigrationId> {
        if value == PING_ID {
            *self = Self {
                left: 4,
                id: [0; 16],
            };
            return None;
        }
        if self.left == 0 || value & 0x8000_0000 == 0 {
            self.left = 0;
            return None;
        }
        let at = usize::from(4 - self.left) * 4;
        self.id[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self.left -= 1;
        (self.left == 0).then_some(MigrationId(self.id))
    }
}

/// What a source says over a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// You may run.
    Run,
    /// You must never run.
    Forget,
    /// I have your answer.
    Known,
}

/// A verb, and of which migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// Which migration.
    pub id: MigrationId,
    /// What.
    pub verb: Verb,
}

/// What a destination answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// It runs, or is paused and may run by right.
    Permitted,
    /// It does not run and never will.
    Abandoned,
    /// It has the permission, but the machine does not start. It keeps it.
    CannotRun,
    /// It knows of no such migration.
    Unknown,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutcomeError {
    /// The peer's: it speaks of something else.
    #[error("the first bytes are {found:02x?} instead of {expected:02x?}")]
    Magic {
        /// What came.
        found: [u8; 4],
        /// What should have come.
        expected: [u8; 4],
    },
    /// The peer's: a version that is not known.
    #[error("version {0} of the outcome query is unknown")]
    Version(u8),
    /// The peer's: a number that says nothing.
    #[error("message {0} of the outcome query is unknown")]
    Message(u8),
    /// The peer's: bytes that must be zero are not.
    #[error("reserved bytes of the outcome query are not zero")]
    Reserved,
    /// The peer's: an answer about another migration.
    #[error("the answer is about another migration")]
    Id,
}

impl Query {
    /// As bytes.
    pub fn encode(self) -> [u8; MESSAGE_BYTES] {
        let verb = match self.verb {
            Verb::Run => 1,
            Verb::Forget => 2,
            Verb::Known => 3,
        };
        message(QUERY_MAGIC, verb, self.id)
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// The peer's; nothing follows from such bytes.
    pub fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Result<Self, OutcomeError> {
        let (number, id) = parts(bytes, QUERY_MAGIC)?;
        let verb = match number {
            1 => Verb::Run,
            2 => Verb::Forget,
            3 => Verb::Known,
            other => return Err(OutcomeError::Message(other)),
        };
        Ok(Self { id, verb })
    }
}

impl Answer {
    /// As bytes. `id` is that of the query, known or not.
    pub fn encode(self, id: MigrationId) -> [u8; MESSAGE_BYTES] {
        let answer = match self {
            Self::Permitted => 1,
            Self::Abandoned => 2,
            Self::CannotRun => 3,
            Self::Unknown => 4,
        };
        message(ANSWER_MAGIC, answer, id)
    }

    /// From bytes: the answer about the migration `id`.
    ///
    /// # Errors
    ///
    /// The peer's; nothing follows from such bytes.
    pub fn decode(bytes: &[u8; MESSAGE_BYTES], id: MigrationId) -> Result<Self, OutcomeError> {
        let (number, found) = parts(bytes, ANSWER_MAGIC)?;
        if found != id {
            return Err(OutcomeError::Id);
        }
        match number {
            1 => Ok(Self::Permitted),
            2 => Ok(Self::Abandoned),
            3 => Ok(Self::CannotRun),
            4 => Ok(Self::Unknown),
            other => Err(OutcomeError::Message(other)),
        }
    }
}

fn message(magic: [u8; 4], number: u8, id: MigrationId) -> [u8; MESSAGE_BYTES] {
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[..4].copy_from_slice(&magic);
    bytes[4] = VERSION;
    bytes[5] = number;
    bytes[8..].copy_from_slice(&id.0);
    bytes
}

fn parts(
    bytes: &[u8; MESSAGE_BYTES],
    expected: [u8; 4],
) -> Result<(u8, MigrationId), OutcomeError> {
    let found = std::array::from_fn(|i| bytes[i]);
    if found != expected {
        return Err(OutcomeError::Magic { found, expected });
    }
    if bytes[4] != VERSION {
        return Err(OutcomeError::Version(bytes[4]));
    }
    if bytes[6..8] != [0, 0] {
        return Err(OutcomeError::Reserved);
    }
    Ok((bytes[5], MigrationId(std::array::from_fn(|i| bytes[8 + i]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] = [0, 0, 0, 2, 0xff, 5, 6, 7, 0x80, 9, 10, 11, 0x7f, 13, 14, 15];

    #[test]
    fn the_bytes_of_a_query_and_an_answer_are_these() {
        let id = MigrationId::new(ID);
        let query = Query {
            id,
            verb: Verb::Forget,
        };
        let tail = b"\x80\0\0\x02\xff\x05\x06\x07\x80\x09\x0a\x0b\xff\x0d\x0e\x0f";
        assert_eq!(query.encode()[..8], *b"PgOQ\x01\x02\0\0");
        assert_eq!(query.encode()[8..], *tail);
        assert_eq!(Answer::Abandoned.encode(id)[..8], *b"PgOA\x01\x02\0\0");
        assert_eq!(Answer::Abandoned.encode(id)[8..], *tail);
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        let id = MigrationId::new(ID);
        for verb in [Verb::Run, Verb::Forget, Verb::Known] {
            let query = Query { id, verb };
            assert_eq!(Query::decode(&query.encode()), Ok(query));
            for at in 0..8 {
                let mut bytes = query.encode();
                bytes[at] ^= 0x40;
                assert!(Query::decode(&bytes).is_err(), "byte {at} of {verb:?}");
            }
            let own = Answer::decode(&query.encode(), id);
            assert!(matches!(own, Err(OutcomeError::Magic { .. })));
        }
        for answer in [
            Answer::Permitted,
            Answer::Abandoned,
            Answer::CannotRun,
            Answer::Unknown,
        ] {
            assert_eq!(Answer::decode(&answer.encode(id), id), Ok(answer));
            for at in 0..MESSAGE_BYTES {
                let mut bytes = answer.encode(id);
                bytes[at] ^= 0x40;
                assert!(
                    Answer::decode(&bytes, id).is_err(),
                    "byte {at} of {answer:?}"
                );
            }
        }
    }

    #[test]
    fn the_id_is_found_among_pings_and_is_never_taken_for_one_of_them() {
        let id = MigrationId::new(ID);
        let mut finder = IdFinder::default();
        assert_eq!(finder.take(PING_OPEN), None);
        let [mark, first, second, third, last] = id.pings();
        assert!([first, second, third, last].iter().all(|word| *word > 2));
        assert!(
            [mark, first, second, third]
                .iter()
                .all(|word| finder.take(*word).is_none())
        );
        assert_eq!(finder.take(last), Some(id));
        assert_eq!(finder.take(last), None);
        // An id that is interrupted is none.
        for word in [mark, first, second, PING_LOADED, third, last] {
            assert_eq!(finder.take(word), None);
        }
    }
}
