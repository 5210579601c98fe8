//! Sizes as QEMU writes them: `512M`, `4G`, `1024K`; suffixes are powers of 1024.

use core::fmt::{self, Write};
use core::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// A text that is no size.
#[derive(Debug, PartialEq, Eq)]
pub struct NotASize;

impl fmt::Display for NotASize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a size: give bytes, or a whole number with K, M, G or T (powers of 1024)")
    }
}

impl core::error::Error for NotASize {}

impl FromStr for Size {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let last = text.chars().last().ok_or(NotASize)?.to_ascii_uppercase();
        let unit = UNITS.iter().find(|(letter, _)| *letter == last);
        let (digits, shift) = match unit {
            Some((_, shift)) => (&text[..text.len() - 1], *shift),
            None => (text, 0),
        };
        // `parse` alone would take a sign.
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotASize);
        }
        let count: u64 = digits.parse().map_err(|_| NotASize)?;
        count.checked_mul(1 << shift).map(Self).ok_or(NotASize)
    }
}

/// The shortest text that means exactly this.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, shift): &&(char, u32)| self.0 != 0 && self.0.trailing_zeros() >= *shift;
        match UNITS.iter().find(fits) {
            Some((letter, shift)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A size for people: three digits and a unit.
pub const fn human(bytes: u64) -> Human {
    Human(bytes)
}

/// What [`human`] gives.
#[derive(Clone, Copy, Debug)]
pub struct Human(u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        let unit = UNITS.iter().find(|(_, shift)| bytes >> shift != 0);
        // As a whole, so that it can be padded; there is no `String` here.
        let mut text = Text::default();
        match unit {
            Some((letter, shift)) => {
                let value = bytes as f64 / (1u64 << shift) as f64;
                let digits = if value < 10.0 {
                    2
                } else {
                    usize::from(value < 100.0)
                };
                write!(text, "{value:.digits$} {letter}iB")?;
            }
            None => write!(text, "{bytes} B")?,
        }
        f.pad(text.as_str())
    }
}

/// Room for the longest: `16777216 TiB`.
#[derive(Default)]
struct Text {
    bytes: [u8; 16],
    len: usize,
}

impl Text {
    fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let end = self.len + part.len();
        let room = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        room.copy_from_slice(part.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::ToString;

    #[test]
    fn suffixes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1024K", 1 << 20),
            ("4g", 4 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.5G",
            "12MB",
            "1 G",
            "99999999999T",
            "\u{fc}",
        ] {
            assert_eq!(text.parse::<Size>(), Err(NotASize), "{text}");
        }
    }

    #[test]
    fn a_printed_size_means_the_same() {
        for bytes in [0, 1, 4096, 4097, 512 << 20, (512 << 20) + 4096, 3 << 40] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(512 << 20).to_string(), "512M");
    }

    #[test]
    fn sizes_for_people_have_three_digits() {
        assert_eq!(human(12).to_string(), "12 B");
        assert_eq!(human(3 << 20 | 1 << 19).to_string(), "3.50 MiB");
        assert_eq!(format!("{:>8}", human(512 << 20)), " 512 MiB");
        assert_eq!(human(u64::MAX).to_string(), "16777216 TiB");
    }
}
