//! Reading a device section.

use std::ops::RangeInclusive;

use crate::stream::description::FieldDescription;

use super::{DeviceError, DeviceSection};

/// Reads the fields of a [`DeviceSection`] in the order in which they were written.
#[derive(Debug)]
pub struct SectionReader<'a> {
    name: &'a str,
    instance: u32,
    version: u32,
    body: &'a [u8],
    position: usize,
    /// What the description says is next; nothing if there is no description.
    described: Option<&'a [FieldDescription]>,
}

impl<'a> SectionReader<'a> {
    /// Begins to read a section, whatever its name and version.
    pub fn new(section: &'a DeviceSection) -> Self {
        Self {
            name: &section.name,
            instance: section.instance,
            version: section.version,
            body: &section.body,
            position: 0,
            described: (!section.fields.is_empty()).then_some(section.fields.as_slice()),
        }
    }

    /// Begins to read a section that must have this name and a version in this range.
    ///
    /// # Errors
    /// [`DeviceError::WrongSection`], [`DeviceError::WrongVersion`].
    pub fn open(
        section: &'a DeviceSection,
        name: &str,
        versions: RangeInclusive<u32>,
    ) -> Result<Self, DeviceError> {
        if section.name != name {
            return Err(DeviceError::WrongSection {
                expected: name.to_owned(),
                found: section.name.clone(),
            });
        }
        if !versions.contains(&section.version) {
            return Err(DeviceError::WrongVersion {
                section: section.name.clone(),
                instance: section.instance,
                found: section.version,
                oldest: *versions.start(),
                newest: *versions.end(),
            });
        }
        Ok(Self::new(section))
    }

    /// The same reader without a look at the description, for sections whose field names are
    /// another program's own.
    pub fn undescribed(mut self) -> Self {
        self.described = None;
        self
    }

    /// The section's instance.
    pub fn instance(&self) -> u32 {
        self.instance
    }

    /// The section's version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The offset of the next field in the body.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Ends reading: nothing may be left.
    ///
    /// # Errors
    /// [`DeviceError::Trailing`].
    pub fn finish(self) -> Result<(), DeviceError> {
        match self.left_bytes() {
            0 => Ok(()),
            bytes => Err(DeviceError::Trailing {
                section: self.name.to_owned(),
                instance: self.instance,
                offset: self.position,
                bytes,
            }),
        }
    }

    /// The error for a field just read whose value cannot be.
    pub fn bad_value(
        &self,
        field: &str,
        expected: impl ToString,
        found: impl ToString,
    ) -> DeviceError {
        DeviceError::BadValue {
            section: self.name.to_owned(),
            instance: self.instance,
            field: field.to_owned(),
            offset: self.position,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// Reads a byte.
    ///
    /// # Errors
    /// [`DeviceError::TooShort`], [`DeviceError::WrongField`]; so for all fields.
    pub fn u8(&mut self, name: &str) -> Result<u8, DeviceError> {
        Ok(self.scalar::<1>(name)?[0])
    }

    /// Reads a byte that is 0 or 1.
    ///
    /// # Errors
    /// As [`SectionReader::u8`], and [`DeviceError::BadValue`].
    pub fn bool(&mut self, name: &str) -> Result<bool, DeviceError> {
        match self.u8(name)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.bad_value(name, "0 or 1", other)),
        }
    }

    /// Reads two bytes.
    ///
    /// # Errors
    /// As [`SectionReader::u8`].
    pub fn u16(&mut self, name: &str) -> Result<u16, DeviceError> {
        Ok(u16::from_be_bytes(self.scalar(name)?))
    }

    /// Reads four bytes.
    ///
    /// # Errors
    /// As [`SectionReader::u8`].
    pub fn u32(&mut self, name: &str) -> Result<u32, DeviceError> {
        Ok(u32::from_be_bytes(self.scalar(name)?))
    }

    /// Reads eight bytes.
    ///
    /// # Errors
    /// As [`SectionReader::u8`].
    pub fn u64(&mut self, name: &str) -> Result<u64, DeviceError> {
        Ok(u64::from_be_bytes(self.scalar(name)?))
    }

    /// Reads eight bytes with a sign.
    ///
    /// # Errors
    /// As [`SectionReader::u8`].
    pub fn i64(&mut self, name: &str) -> Result<i64, DeviceError> {
        Ok(i64::from_be_bytes(self.scalar(name)?))
    }

    /// Reads `bytes` bytes, the counterpart of
    /// [`SectionWriter::fixed_buffer`](super::SectionWriter::fixed_buffer).
    ///
    /// # Errors
    /// As [`SectionReader::u8`].
    pub fn fixed_buffer(&mut self, name: &str, bytes: usize) -> Result<&'a [u8], DeviceError> {
        self.described_field(name, bytes as u64, None)?;
        self.take(name, bytes)
    }

    /// Reads bytes preceded by their number.
    ///
    /// # Errors
    /// As [`SectionReader::u8`].
    pub fn buffer(&mut self, name: &str) -> Result<&'a [u8], DeviceError> {
        let bytes = self.count(name, 1)?;
        if bytes == 0 {
            return Ok(&[]);
        }
        self.fixed_buffer(name, bytes)
    }

    /// Reads 64-bit values preceded by their number.
    ///
    /// # Errors
    /// As [`SectionReader::u8`].
    pub fn array_u64(&mut self, name: &str) -> Result<Vec<u64>, DeviceError> {
        let count = self.count(name, 8)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        self.described_field(name, 8, Some(count as u64))?;
        let (words, _) = self.take(name, count * 8)?.as_chunks::<8>();
        Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
    }

    /// Reads a nested structure.
    ///
    /// # Errors
    /// As [`SectionReader::u8`], and those of `read`.
    pub fn structure<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut SectionReader<'a>) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let described = self.described_structure(name, None)?;
        self.element(name, described, read)
    }

    /// Reads structures preceded by their number; each must take at least one byte.
    ///
    /// # Errors
    /// As [`SectionReader::u8`], and those of `read`.
    pub fn array_struct<T>(
        &mut self,
        name: &str,
        mut read: impl FnMut(&mut SectionReader<'a>) -> Result<T, DeviceError>,
    ) -> Result<Vec<T>, DeviceError> {
        let count = self.count(name, 1)?;
        // All elements share one description, or each has its own.
        let shared = match self.described {
            Some([next, ..]) if count > 0 && next.array_len.is_some() => {
                Some(self.described_structure(name, Some(count as u64))?)
            }
            _ => None,
        };
        let mut items = Vec::new();
        for _ in 0..count {
            let described = match shared {
                Some(shared) => shared,
                None => self.described_structure(name, None)?,
            };
            let start = self.position;
            items.push(self.element(name, described, &mut read)?);
            if self.position == start {
                return Err(self.bad_value(name, "elements of at least one byte", "none"));
            }
        }
        Ok(items)
    }

    fn element<T>(
        &mut self,
        name: &str,
        described: Option<&'a [FieldDescription]>,
        read: impl FnOnce(&mut SectionReader<'a>) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let outer = std::mem::replace(&mut self.described, described);
        let item = read(self)?;
        if let Some([unread, ..]) = self.described {
            return Err(self.wrong_field(name, &format!("{:?} too", unread.name)));
        }
        self.described = outer;
        Ok(item)
    }

    fn count(&mut self, name: &str, element_bytes: usize) -> Result<usize, DeviceError> {
        let count = self.u32(&format!("{name}_count"))?;
        let needed_bytes = u64::from(count) * element_bytes as u64;
        if needed_bytes > self.left_bytes() as u64 {
            return Err(self.too_short(name, needed_bytes));
        }
        // Fits: it is not more than the bytes that are left.
        Ok(count as usize)
    }

    fn scalar<const N: usize>(&mut self, name: &str) -> Result<[u8; N], DeviceError> {
        self.described_field(name, N as u64, None)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(name, N)?);
        Ok(bytes)
    }

    fn take(&mut self, name: &str, bytes: usize) -> Result<&'a [u8], DeviceError> {
        let body: &'a [u8] = self.body;
        if bytes > self.left_bytes() {
            return Err(self.too_short(name, bytes as u64));
        }
        let taken = &body[self.position..self.position + bytes];
        self.position += bytes;
        Ok(taken)
    }

    fn left_bytes(&self) -> usize {
        self.body.len() - self.position
    }

    fn described_field(
        &mut self,
        name: &str,
        size: u64,
        array_len: Option<u64>,
    ) -> Result<(), DeviceError> {
        let Some(described) = self.described else {
            return Ok(());
        };
        match described {
            [next, rest @ ..]
                if next.name == name && next.size == size && next.array_len == array_len =>
            {
                self.described = Some(rest);
                Ok(())
            }
            [next, ..] => {
                Err(self.wrong_field(name, &format!("{:?} of {} bytes", next.name, next.size)))
            }
            [] => Err(self.wrong_field(name, "nothing more")),
        }
    }

    fn described_structure(
        &mut self,
        name: &str,
        array_len: Option<u64>,
    ) -> Result<Option<&'a [FieldDescription]>, DeviceError> {
        let Some(described) = self.described else {
            return Ok(None);
        };
        let structure = described.first().and_then(|next| next.structure.as_ref());
        let size = described.first().map_or(0, |next| next.size);
        self.described_field(name, size, array_len)?;
        match structure {
            Some(structure) => Ok(Some(&structure.fields)),
            None => Err(self.wrong_field(name, "no structure")),
        }
    }

    fn too_short(&self, field: &str, needed_bytes: u64) -> DeviceError {
        DeviceError::TooShort {
            section: self.name.to_owned(),
            instance: self.instance,
            field: field.to_owned(),
            offset: self.position,
            needed_bytes,
            left_bytes: self.left_bytes(),
        }
    }

    fn wrong_field(&self, field: &str, described: &str) -> DeviceError {
        DeviceError::WrongField {
            section: self.name.to_owned(),
            instance: self.instance,
            field: field.to_owned(),
            offset: self.position,
            described: described.to_owned(),
        }
    }
}
