//! Cases as texts, `pages=4k,cpus=2,seed=7`: each kind of case has one table of its keys, by which it is
//! told and read.

use std::fmt;

/// A case that has a text.
pub trait Keyed: Sized + 'static {
    /// Its keys, in the order in which they are told.
    const KEYS: &'static [Key<Self>];

    /// What is said of a key that it has not.
    const UNKNOWN: &'static str;
}

/// A key of a case.
pub struct Key<C> {
    /// Its name.
    pub name: &'static str,
    /// Its value; none where it need not be told.
    pub tell: fn(&C) -> Option<String>,
    /// Takes a value.
    pub set: fn(&mut C, &str) -> Result<(), String>,
}

/// Tells a case.
pub fn tell<C: Keyed>(case: &C, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut comma = "";
    for key in C::KEYS {
        if let Some(value) = (key.tell)(case) {
            write!(f, "{comma}{}={value}", key.name)?;
            comma = ",";
        }
    }
    Ok(())
}

/// Changes a case as a text says; the first part that is not taken is told by its name.
pub fn read<C: Keyed>(mut case: C, text: &str) -> Result<C, String> {
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is no key=value"))?;
        let key = C::KEYS.iter().find(|key| key.name == name);
        let set = match key {
            Some(key) => (key.set)(&mut case, value),
            None => Err(C::UNKNOWN.to_owned()),
        };
        set.map_err(|why| format!("{name}={value}: {why}"))?;
    }
    Ok(case)
}

/// The table of a case: names, fields, and of which of the kinds below the values are.
macro_rules! keys {
    ($case:ident, $unknown:literal: $($name:literal $field:ident $kind:ident),+ $(,)?) => {
        impl crate::keys::Keyed for $case {
            const KEYS: &'static [crate::keys::Key<Self>] = &[$(crate::keys::Key {
                name: $name,
                tell: |case| crate::keys::$kind::tell(case.$field),
                set: |case, value| {
                    case.$field = crate::keys::$kind::read(value)?;
                    Ok(())
                },
            }),+];

            const UNKNOWN: &'static str = $unknown;
        }
    };
}
pub(crate) use keys;

/// One of a list of names.
pub mod choice {
    use paguro_lab::Choice;

    pub fn tell<T: Choice>(value: T) -> Option<String> {
        Some(value.name().to_owned())
    }

    pub fn read<T: Choice>(text: &str) -> Result<T, String> {
        T::named(text).ok_or_else(|| format!("invalid variant: {text}"))
    }
}

/// A number.
pub mod number {
    use std::fmt::Display;
    use std::str::FromStr;

    pub fn tell<T: Display>(value: T) -> Option<String> {
        Some(value.to_string())
    }

    pub fn read<T: FromStr>(text: &str) -> Result<T, String> {
        text.parse().map_err(|_| "not a number".to_owned())
    }
}

/// A number; 0 is not told.
pub mod count {
    pub fn tell(value: u32) -> Option<String> {
        (value > 0).then(|| value.to_string())
    }

    pub use super::number::read;
}

/// A size in bytes.
pub mod size {
    use paguro_workload::Size;

    pub fn tell(bytes: u64) -> Option<String> {
        Some(Size(bytes).to_string())
    }

    pub fn read(text: &str) -> Result<u64, String> {
        let Size(bytes) = text.parse().map_err(|error| format!("{error}"))?;
        Ok(bytes)
    }
}

/// A size in bytes; 0 is not told.
pub mod some_size {
    pub fn tell(bytes: u64) -> Option<String> {
        super::size::tell(bytes).filter(|_| bytes > 0)
    }

    pub use super::size::read;
}

/// An order in which a guest writes.
pub mod pattern {
    use paguro_workload::Spec;
    use paguro_workload::spec::Pattern;

    pub fn tell(pattern: Pattern) -> Option<String> {
        Some(pattern.name().to_owned())
    }

    pub fn read(text: &str) -> Result<Pattern, String> {
        let spec: Result<Spec, _> = format!("pattern={text}").parse();
        spec.map(|spec| spec.pattern)
            .map_err(|error| format!("{error}"))
    }
}

/// Whether a guest writes as fast as it goes, or 10 000 pages a second.
pub mod unlimited {
    pub fn tell(is_unlimited: bool) -> Option<String> {
        let text = if is_unlimited { "unlimited" } else { "10k" };
        Some(text.to_owned())
    }

    pub fn read(text: &str) -> Result<bool, String> {
        match text {
            "unlimited" => Ok(true),
            "10k" => Ok(false),
            _ => Err("not unlimited or 10k".to_owned()),
        }
    }
}

/// On or off; off is not told.
pub mod switch {
    pub fn tell(is_on: bool) -> Option<String> {
        is_on.then(|| "on".to_owned())
    }

    pub fn read(text: &str) -> Result<bool, String> {
        match text {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err("not on or off".to_owned()),
        }
    }
}

/// A fallback to take.
pub mod force {
    use crate::case::FORCES;

    pub fn tell(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    pub fn read(text: &str) -> Result<&'static str, String> {
        let known = FORCES.iter().find(|known| **known == text);
        let known = known.ok_or_else(|| format!("not one of {}", FORCES.join(", ")))?;
        Ok(known)
    }
}
