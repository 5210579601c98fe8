//! What the splitter makes of good and bad input, whole and in single bytes.

use super::*;
use Garbage::*;

fn split(bytes: &[u8]) -> Vec<Piece> {
    let mut found = Vec::new();
    Splitter::default().feed(bytes, |piece| found.push(piece));
    let mut slowly = Vec::new();
    let mut splitter = Splitter::default();
    for byte in bytes {
        splitter.feed(&[*byte], |piece| slowly.push(piece));
    }
    assert_eq!(found, slowly, "cutting the input must change nothing");
    found
}

fn value(text: &str) -> Piece {
    Piece::Value(text.as_bytes().to_vec())
}

#[test]
fn values_need_nothing_between_them() {
    assert_eq!(
        split(br#"{"a":1}{"b":[1,{}]}[] "x""#),
        [
            value(r#"{"a":1}"#),
            value(r#"{"b":[1,{}]}"#),
            value("[]"),
            value(r#""x""#)
        ]
    );
}

#[test]
fn brackets_in_strings_do_not_count() {
    let text = r#"{"a":"}]\"{[\\"}"#;
    assert_eq!(split(text.as_bytes()), [value(text)]);
}

#[test]
fn an_unfinished_value_is_nothing_yet() {
    assert_eq!(split(br#"{"a":"#), []);
}

#[test]
fn after_garbage_comes_the_next_value() {
    assert_eq!(
        split(b"xyz {} 12\n34\n{}"),
        [
            Piece::Garbage(Stray(b'x')),
            value("{}"),
            Piece::Garbage(Stray(b'1')),
            Piece::Garbage(Stray(b'3')),
            value("{}")
        ]
    );
}

#[test]
fn brackets_must_match() {
    assert_eq!(
        split(b"}{]\n{}[}\n{}"),
        [
            Piece::Garbage(Unbalanced(b'}')),
            Piece::Garbage(Unbalanced(b']')),
            value("{}"),
            Piece::Garbage(Unbalanced(b'}')),
            value("{}")
        ]
    );
}

#[test]
fn a_newline_ends_a_string_that_was_not_closed() {
    assert_eq!(
        split(b"{\"a\":\"b\n{}{\"c\\\n{}"),
        [
            Piece::Garbage(ControlInString),
            value("{}"),
            Piece::Garbage(ControlInString),
            value("{}")
        ]
    );
}

#[test]
fn bytes_that_are_never_utf8_start_afresh() {
    assert_eq!(
        split(b"\xff{}x\xff{}"),
        [
            Piece::Garbage(Stray(0xff)),
            value("{}"),
            Piece::Garbage(Stray(b'x')),
            value("{}")
        ]
    );
}

#[test]
fn depth_is_bounded_and_the_rest_of_the_value_swallowed() {
    let deep = |depth| [vec![b'['; depth], vec![b']'; depth]].concat();
    assert_eq!(split(&deep(64)), [Piece::Value(deep(64))]);
    for depth in [65, 66, 1000] {
        let mut bytes = deep(depth);
        bytes.extend(b"{}");
        assert_eq!(split(&bytes), [Piece::Garbage(TooDeep), value("{}")]);
    }
}

#[test]
fn length_is_bounded_and_the_rest_of_the_value_swallowed() {
    let long = |len: usize| format!("[\"{}\"]", "x".repeat(len - 4)).into_bytes();
    assert_eq!(split(&long(MAX_BYTES)), [Piece::Value(long(MAX_BYTES))]);
    let mut bytes = long(MAX_BYTES + 1);
    bytes.extend(b"{}");
    assert_eq!(split(&bytes), [Piece::Garbage(TooLong), value("{}")]);
    let mut bytes = long(3 * MAX_BYTES);
    bytes.extend(b"{}");
    assert_eq!(split(&bytes), [Piece::Garbage(TooLong), value("{}")]);
}

#[test]
fn memory_stays_bounded_whatever_comes() {
    let mut splitter = Splitter::default();
    splitter.feed(b"{\"", |_| {});
    for _ in 0..40 {
        splitter.feed(&[b'x'; 1 << 16], |_| {});
        assert!(splitter.value.capacity() <= 2 * MAX_BYTES);
    }
}
