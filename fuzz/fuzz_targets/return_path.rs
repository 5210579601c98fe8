//! Arbitrary bytes as what a destination says; and what was understood is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paguro_wire::bitmap::words_for;
use paguro_wire::input::Input;
use paguro_wire::stream::ChannelInput;
use paguro_wire::stream::return_path::{Message, decode_bitmap};

const PAGES: u64 = 70;

fuzz_target!(|bytes: &[u8]| {
    let mut input = ChannelInput::with_buffer(bytes, 0);
    loop {
        let begin = input.offset() as usize;
        let Ok(message) = Message::decode(&mut input) else {
            return;
        };
        let mut out = Vec::new();
        message.encode(&mut out);
        assert_eq!(out, bytes[begin..input.offset() as usize]);
        if let Message::ReceivedBitmap { .. } = message {
            let mut words = vec![0; words_for(PAGES) as usize];
            if decode_bitmap(&mut input, PAGES, &mut words).is_err() {
                return;
            }
            assert!(words[1] < 1 << (PAGES % 64));
        }
    }
});
