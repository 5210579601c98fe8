//! Why there are no parameters.

use core::fmt;

use super::VERSION;

/// Why there can be no such workload (the caller's fault), or why bytes found in RAM do not
/// describe one (the picture's).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParamsError {
    /// There is no parameter block: the bytes do not begin with its magic number.
    Missing,
    /// A version that this code does not know.
    Version {
        /// The version found.
        found: u64,
    },
    /// The check word does not match.
    Damaged,
    /// A field has a value out of its range.
    OutOfRange {
        /// The field.
        field: &'static str,
        /// The value.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// RAM is not whole pages in ascending order, does not begin at 0, has more parts than the
    /// area can list, or covers the hole below 4 GiB.
    Ram,
    /// The workload set is larger than the RAM from 2 MiB up.
    SetTooLarge {
        /// Bytes asked for.
        set_bytes: u64,
        /// Bytes that there are.
        available_bytes: u64,
    },
    /// The area has no page for one of the vCPUs beside the devices.
    AreaTooSmall {
        /// Pages of the area.
        pages: u64,
    },
}

impl fmt::Display for ParamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("no workload parameters in RAM"),
            Self::Version { found } => {
                write!(f, "workload parameters of version {found}, not {VERSION}")
            }
            Self::Damaged => f.write_str("workload parameters are damaged"),
            Self::OutOfRange {
                field,
                value,
                allowed,
            } => write!(
                f,
                "workload parameter {field} is {value}, allowed is {allowed}"
            ),
            Self::Ram => f.write_str(
                "guest RAM must be whole pages, ascending, from 0, without the hole below 4 GiB",
            ),
            Self::SetTooLarge {
                set_bytes,
                available_bytes,
            } => write!(
                f,
                "workload set of {set_bytes} bytes is larger than the {available_bytes} bytes of RAM above 2 MiB"
            ),
            Self::AreaTooSmall { pages } => {
                write!(f, "{pages} pages are too few for the vCPUs and devices")
            }
        }
    }
}

impl core::error::Error for ParamsError {}
