//! Arbitrary bytes as a live migration stream, read event by event.
//!
//! Pages would be most of any stream and mean nothing to a decoder. So the input is a front and a
//! back, cut where its first two bytes say, and between and behind them come zeros: up to as many
//! as its third byte says, in units of 256, in the gap, and then the channel is closed. Its fourth
//! byte says whether pages are read or passed over, how many bytes a read gives, and whether
//! the list of RAM blocks has extras.
#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use paguro_wire::input::Input;
use paguro_wire::stream::description::Description;
use paguro_wire::stream::ram::{BLOCKS_MAX, ListExtras, RamRecord};
use paguro_wire::stream::{ChannelInput, Event, Expected, StreamReader, devices, xbzrle};
use paguro_wire::{DecodeError, PAGE_BYTES};

const PAGE: usize = PAGE_BYTES as usize;

fuzz_target!(|input: &[u8]| {
    let [a, b, gap, options, rest @ ..] = input else {
        return;
    };
    let cut = usize::from(u16::from_be_bytes([*a, *b])).min(rest.len());
    let (front, back) = rest.split_at(cut);
    let zeros = io::repeat(0).take(u64::from(*gap) * 256);
    let bytes = front.chain(zeros).chain(back);
    let step = if options & 1 == 0 { usize::MAX } else { 7 };
    let _ = read(Steps { bytes, step }, options & 2 != 0, options & 4 != 0);
});

fn read(bytes: impl Read, take_pages: bool, has_extras: bool) -> Result<(), DecodeError> {
    let mut expected = Expected::machine("paguro-1");
    if has_extras {
        expected.list = ListExtras {
            page_size_of: Some(&|id| id.len() == 1),
            guest_addresses: true,
        };
    }
    let mut stream = StreamReader::new(ChannelInput::with_buffer(bytes, 0), expected);
    let mut lengths: Vec<u64> = Vec::new();
    let mut device_bytes = 0;
    loop {
        match stream.next()? {
            Event::RamStart { table, .. } => {
                assert!(lengths.is_empty() && table.blocks().len() <= BLOCKS_MAX);
                lengths = table.blocks().iter().map(|b| b.used_length_bytes).collect();
                assert!(table.same_as(&table, 0).is_ok());
            }
            Event::Ram(record) => match record {
                RamRecord::Zero { block, offset } => assert!(offset + PAGE_BYTES <= lengths[block]),
                RamRecord::Page { block, offset } => {
                    assert!(offset + PAGE_BYTES <= lengths[block]);
                    if take_pages {
                        stream.input().page("page")?;
                    }
                }
                RamRecord::Xbzrle {
                    block,
                    offset,
                    bytes,
                } => {
                    assert!(offset + PAGE_BYTES <= lengths[block] && bytes <= PAGE);
                    if take_pages {
                        let mut delta = vec![0; bytes];
                        stream.input().fill("delta", &mut delta)?;
                        let _ = xbzrle::decode(&delta, 0, &mut [0; PAGE]);
                    }
                }
                _ => {}
            },
            Event::Device(device) => {
                device_bytes += device.body.len();
                assert!(device_bytes <= devices::DEVICES_MAX_BYTES);
            }
            Event::Description(json) => drop(Description::decode(&json, 0)),
            Event::Closed => return Ok(()),
            _ => {}
        }
    }
}

/// Gives at most `step` bytes a read.
struct Steps<R> {
    bytes: R,
    step: usize,
}

impl<R: Read> Read for Steps<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = buffer.len().min(self.step);
        self.bytes.read(&mut buffer[..bytes])
    }
}
