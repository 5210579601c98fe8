//! A whole stream, read from its first byte to its last.

use std::collections::HashSet;
use std::io::Read;
use std::sync::Arc;

use crate::device::DeviceSection;
use crate::input::Input;
use crate::{DecodeError, PAGE_BYTES};

use super::ChannelInput;
use super::configuration::Configuration;
use super::description::DESCRIPTION_MAX_BYTES;
use super::devices::{DeviceReader, read_bytes};
use super::header;
use super::order::Order;
use super::ram::{self, BlockTable, ListExtras, RamReader, RamRecord};
use super::section::{self, SectionHeader};

/// What a stream must be of, to be for this side.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// The name of the machine.
    pub machine: &'a str,
    /// The capabilities that change the bytes, as CONFIGURATION has them, in any order.
    pub capabilities: &'a [&'a str],
    /// The UUID of the machine, compared if both sides have one.
    pub uuid: Option<[u8; 16]>,
    /// What the list of RAM blocks has beyond names and lengths.
    pub list: ListExtras<'a>,
}

impl<'a> Expected<'a> {
    /// A machine of this name, and nothing else.
    pub fn machine(machine: &'a str) -> Self {
        Self {
            machine,
            capabilities: &[],
            uuid: None,
            list: ListExtras::default(),
        }
    }
}

/// The next thing in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Whose stream it is: it is for this side. Comes first.
    Configuration(Configuration),
    /// A command. A nested stream (`Packaged`) is next in the input.
    Order(Order),
    /// RAM begins.
    RamStart {
        /// Its blocks.
        table: Arc<BlockTable>,
        /// Where the list begins, for [`BlockTable::same_as`].
        offset: u64,
    },
    /// Pages while the source runs.
    RamPart,
    /// The last pages.
    RamEnd,
    /// A record of the RAM section that began last. What belongs to a page is next in the input.
    Ram(RamRecord),
    /// A device section.
    Device(DeviceSection),
    /// The stream is whole: the destination may run. A description may follow.
    Eof,
    /// The description, JSON. Who wants to know what it says gives it to
    /// [`Description::decode`](super::description::Description::decode).
    Description(Vec<u8>),
    /// The peer closed the channel behind EOF or the description. Comes again and again.
    Closed,
}

/// Reads a stream event by event.
///
/// What an event announces to be next in the input (a page, the difference of a page, a nested
/// stream) is to be read from [`StreamReader::input`] before the next event; what is left of it
/// is passed over. Nothing is allocated for a record of RAM. After an error the stream is of no
/// use any more.
pub struct StreamReader<'a, R> {
    input: ChannelInput<R>,
    expected: Expected<'a>,
    place: Place,
    /// Where what the last event announced ends.
    payload_end: u64,
    has_return_path: bool,
    section_ids: HashSet<u32>,
    ram: Option<(u32, RamReader)>,
    /// RAM had its END, or devices began: no more of it may come.
    ram_is_over: bool,
    devices: DeviceReader,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    Element,
    /// A record of RAM; in START there are no pages.
    Record {
        is_start: bool,
    },
    /// The footer of RAM.
    Footer,
    Description,
    End,
}

impl<'a, R: Read> StreamReader<'a, R> {
    /// Reads a stream from its first byte.
    pub fn new(input: ChannelInput<R>, expected: Expected<'a>) -> Self {
        Self {
            input,
            expected,
            place: Place::Header,
            payload_end: 0,
            has_return_path: false,
            section_ids: HashSet::new(),
            ram: None,
            ram_is_over: false,
            devices: DeviceReader::default(),
        }
    }

    /// The input, for what the last event announced.
    pub fn input(&mut self) -> &mut ChannelInput<R> {
        &mut self.input
    }

    /// The input, for what comes behind the stream.
    pub fn into_input(self) -> ChannelInput<R> {
        self.input
    }

    /// Reads up to the next event. Waits for bytes only if the event needs them; in particular
    /// the footer of a section is not waited for before its end was told.
    ///
    /// # Errors
    /// [`DecodeError::NotAStream`], [`DecodeError::Differs`] for another machine,
    /// [`DecodeError::Corrupt`] for what stands where it must not, and all that the parts have.
    // Not an iterator: an error ends it, and events borrow the input in between.
    #[allow(clippy::should_implement_trait)]
    #[inline]
    pub fn next(&mut self) -> Result<Event, DecodeError> {
        if self.input.offset() < self.payload_end {
            self.pass_over()?;
        }
        match self.place {
            Place::Record { is_start } => self.record(is_start),
            _ => self.element(),
        }
    }

    #[cold]
    fn pass_over(&mut self) -> Result<(), DecodeError> {
        while self.input.offset() < self.payload_end {
            let left = self.payload_end - self.input.offset();
            // Not more than a nested stream has.
            self.input.some("page or nested stream", left as usize)?;
        }
        Ok(())
    }

    fn record(&mut self, is_start: bool) -> Result<Event, DecodeError> {
        let Some((_, ram)) = &mut self.ram else {
            // There is no such place without RAM.
            return self.element();
        };
        let at = self.input.offset();
        let record = ram.record(&mut self.input)?;
        let payload_bytes = match record {
            RamRecord::Page { .. } => PAGE_BYTES,
            RamRecord::Xbzrle { bytes, .. } => bytes as u64,
            RamRecord::Zero { .. } | RamRecord::MultifdFlush => 0,
            RamRecord::Eos => {
                self.place = Place::Footer;
                0
            }
        };
        let is_page = !matches!(record, RamRecord::Eos | RamRecord::MultifdFlush);
        if is_start && is_page {
            let expected = "no page before the list of RAM blocks has its end";
            return Err(DecodeError::corrupt(
                "RAM record",
                at,
                expected,
                format!("{record:x?}"),
            ));
        }
        self.payload_end = self.input.offset() + payload_bytes;
        Ok(Event::Ram(record))
    }

    fn element(&mut self) -> Result<Event, DecodeError> {
        match self.place {
            Place::Header => return self.configuration(),
            Place::Description | Place::End => return self.behind_eof(),
            Place::Footer => {
                let id = self.ram.as_ref().map_or(0, |(id, _)| *id);
                section::decode_footer(&mut self.input, id)?;
                self.place = Place::Element;
            }
            Place::Element | Place::Record { .. } => {}
        }
        let at = self.input.offset();
        match self.input.u8("section type")? {
            section::START => self.ram_start(at),
            section::PART => self.ram_continuation(at, false),
            section::END => self.ram_continuation(at, true),
            section::FULL => self.device(at),
            section::COMMAND => self.order(at),
            section::EOF => self.eof(at),
            other => Err(DecodeError::corrupt(
                "section type",
                at,
                "00 to 04 or 08",
                format!("{other:02x}"),
            )),
        }
    }

    fn configuration(&mut self) -> Result<Event, DecodeError> {
        header::decode(&mut self.input)?;
        let at = self.input.offset();
        let found = Configuration::decode(&mut self.input)?;
        let expected = &self.expected;
        if found.machine != expected.machine {
            let (here, there) = (expected.machine, &found.machine);
            return Err(DecodeError::differs(
                "machine",
                at,
                format!("{here:?}"),
                format!("{there:?}"),
            ));
        }
        let mut here: Vec<_> = expected
            .capabilities
            .iter()
            .map(ToString::to_string)
            .collect();
        let mut there = found.capabilities.clone();
        here.sort_unstable();
        there.sort_unstable();
        if here != there {
            return Err(DecodeError::Capabilities {
                offset: at,
                here,
                there,
            });
        }
        if let (Some(here), Some(there)) = (expected.uuid, found.uuid)
            && here != there
        {
            let (here, there) = (format!("{here:02x?}"), format!("{there:02x?}"));
            return Err(DecodeError::differs("UUID of the machine", at, here, there));
        }
        let page_bits = PAGE_BYTES.trailing_zeros();
        if let Some(bits) = found.target_page_bits.filter(|bits| *bits != page_bits) {
            return Err(DecodeError::differs(
                "bits of a page's size",
                at,
                page_bits,
                bits,
            ));
        }
        self.place = Place::Element;
        Ok(Event::Configuration(found))
    }

    fn order(&mut self, at: u64) -> Result<Event, DecodeError> {
        let order = Order::decode(&mut self.input)?;
        match order {
            Order::OpenReturnPath if self.has_return_path => {
                let (expected, found) = ("one OPEN_RETURN_PATH", "a second");
                return Err(DecodeError::corrupt("command", at, expected, found));
            }
            Order::Ping(_) if !self.has_return_path => {
                let (expected, found) = ("OPEN_RETURN_PATH before it", "PING");
                return Err(DecodeError::corrupt("command", at, expected, found));
            }
            Order::OpenReturnPath => self.has_return_path = true,
            Order::Packaged { bytes } => {
                self.payload_end = self.input.offset() + u64::from(bytes);
            }
            _ => {}
        }
        Ok(Event::Order(order))
    }

    fn section_header(&mut self, at: u64) -> Result<SectionHeader, DecodeError> {
        let header = SectionHeader::decode(&mut self.input)?;
        // As many as there are sections, which are bounded.
        if self.section_ids.insert(header.id) {
            Ok(header)
        } else {
            let found = format!("{} again", header.id);
            Err(DecodeError::corrupt("section id", at, "a new one", found))
        }
    }

    fn ram_start(&mut self, at: u64) -> Result<Event, DecodeError> {
        let header = self.section_header(at)?;
        if header.name != ram::NAME {
            let found = format!("iterable section {:?}", header.name);
            return Err(DecodeError::unsupported("section", at, found, "ram"));
        }
        if self.ram.is_some() {
            return Err(DecodeError::corrupt(
                "section",
                at,
                "one START of ram",
                "a second",
            ));
        }
        if header.version != ram::VERSION || header.instance != 0 {
            let found = format!("version {}, instance {}", header.version, header.instance);
            let supported = "version 4, instance 0";
            return Err(DecodeError::unsupported(
                "section ram",
                at,
                found,
                supported,
            ));
        }
        let offset = self.input.offset();
        let table = Arc::new(BlockTable::decode(&mut self.input, self.expected.list)?);
        self.ram = Some((header.id, RamReader::new(Arc::clone(&table))));
        self.place = Place::Record { is_start: true };
        Ok(Event::RamStart { table, offset })
    }

    fn ram_continuation(&mut self, at: u64, is_end: bool) -> Result<Event, DecodeError> {
        let found = self.input.u32("section id")?;
        let wrong = |expected: String| {
            let part = if is_end { "END" } else { "PART" };
            let found = format!("{part} of section {found}");
            Err(DecodeError::corrupt("section", at, expected, found))
        };
        match &self.ram {
            None => return wrong("START of ram before its parts".to_owned()),
            Some((id, _)) if *id != found => return wrong(format!("section {id}, which is ram")),
            Some(_) if self.ram_is_over => {
                return wrong("no RAM behind its END or behind a device".to_owned());
            }
            Some(_) => {}
        }
        self.place = Place::Record { is_start: false };
        self.ram_is_over = is_end;
        Ok(if is_end {
            Event::RamEnd
        } else {
            Event::RamPart
        })
    }

    fn device(&mut self, at: u64) -> Result<Event, DecodeError> {
        let header = self.section_header(at)?;
        if self.ram.is_none() {
            let found = format!("{:?}.{}", header.name, header.instance);
            let expected = "ram before all devices";
            return Err(DecodeError::corrupt("device section", at, expected, found));
        }
        self.ram_is_over = true;
        let id = header.id;
        let device = self.devices.body(&mut self.input, header, at)?;
        section::decode_footer(&mut self.input, id)?;
        Ok(Event::Device(device))
    }

    fn eof(&mut self, at: u64) -> Result<Event, DecodeError> {
        if self.ram.is_none() {
            return Err(DecodeError::corrupt("EOF", at, "ram before it", "none"));
        }
        self.place = Place::Description;
        Ok(Event::Eof)
    }

    fn behind_eof(&mut self) -> Result<Event, DecodeError> {
        const WHAT: &str = "VMDESCRIPTION";
        if self.input.at_end(WHAT)? {
            self.place = Place::End;
            return Ok(Event::Closed);
        }
        let at = self.input.offset();
        let element = self.input.u8(WHAT)?;
        if element != section::VMDESCRIPTION || self.place == Place::End {
            let expected = "one VMDESCRIPTION or nothing behind EOF";
            let found = format!("{element:02x}");
            return Err(DecodeError::corrupt(WHAT, at, expected, found));
        }
        let bytes = self.input.u32(WHAT)?;
        let limit = DESCRIPTION_MAX_BYTES;
        DecodeError::check_limit("length of VMDESCRIPTION", at, u64::from(bytes), limit)?;
        let json = read_bytes(&mut self.input, WHAT, bytes as usize)?;
        self.place = Place::End;
        Ok(Event::Description(json))
    }
}
