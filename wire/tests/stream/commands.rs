//! Commands, there and back.

use paguro_wire::DecodeError;
use paguro_wire::stream::ChannelInput;
use paguro_wire::stream::command::{Command, CommandHeader};
use paguro_wire::stream::order::{Order, PACKAGED_MAX_BYTES, PageSizes};
use proptest::prelude::*;

use crate::common::stream::{refusal, started};
fn orders() -> impl Strategy<Value = Order> {
    let block = "[a-z./]{1,100}|[a-z]{255}";
    let range =
        (0..1u64 << 40, 1..1u64 << 40).prop_map(|(start, pages)| (start << 12, pages << 12));
    prop_oneof![
        any::<u32>().prop_map(Order::Ping),
        (any::<u64>(), any::<u64>()).prop_map(|(host_bytes, target_bytes)| {
            Order::PostcopyAdvise(Some(PageSizes {
                host_bytes,
                target_bytes,
            }))
        }),
        (0..=PACKAGED_MAX_BYTES).prop_map(|bytes| Order::Packaged { bytes }),
        (block, prop::collection::vec(range, 0..20))
            .prop_map(|(block, ranges)| Order::PostcopyRamDiscard { block, ranges }),
        block.prop_map(|block| Order::ReceivedBitmap { block }),
        prop::sample::select(vec![
            Order::OpenReturnPath,
            Order::PostcopyAdvise(None),
            Order::PostcopyListen,
            Order::PostcopyRun,
            Order::EnableColo,
            Order::PostcopyResume,
            Order::SwitchoverStart,
        ]),
    ]
}

proptest! {
    #[test]
    fn commands_come_back_and_wrong_lengths_do_not(order in orders(), longer in 1..40u16) {
        let mut bytes = Vec::new();
        order.encode(&mut bytes);
        let decode = |bytes: &[u8]| Order::decode(&mut ChannelInput::with_buffer(bytes, 0));
        prop_assert_eq!(decode(&bytes[1..]).unwrap(), order);
        for end in 1..bytes.len() {
            let error = decode(&bytes[1..end]).unwrap_err();
            prop_assert!(matches!(error, DecodeError::Truncated { .. }), "{error}");
        }
        // A length that is not the command's, with as many bytes.
        let length = u16::from_be_bytes([bytes[3], bytes[4]]) + longer;
        bytes[3..5].copy_from_slice(&length.to_be_bytes());
        bytes.resize(bytes.len() + usize::from(longer), 0);
        prop_assert!(decode(&bytes[1..]).is_err() || (length == 16 && bytes[2] == 3));
    }
}

#[test]
fn commands_of_other_lengths_or_numbers_are_refused() {
    for (command, payload_bytes) in [
        (Command::OpenReturnPath, 1),
        (Command::Ping, 0),
        (Command::Ping, 8),
        (Command::PostcopyAdvise, 8),
        (Command::PostcopyRun, 4),
        (Command::Packaged, 0),
        (Command::SwitchoverStart, 4),
    ] {
        let mut parts = started().order(Order::OpenReturnPath);
        CommandHeader {
            command,
            payload_bytes,
        }
        .encode(&mut parts.out);
        let error = refusal(parts.raw(&[0; 8])).to_string();
        assert!(error.contains("length of a command"), "{error}");
    }
    for number in [0u8, 12, 255] {
        let error = refusal(started().raw(&[8, 0, number, 0, 0])).to_string();
        assert!(error.contains("unsupported: command"), "{error}");
    }
}
