//! Writing a device section.

use crate::NAME_MAX_BYTES;
use crate::stream::description::{FieldDescription, StructDescription};

use super::name::is_fit;
use super::{BODY_MAX_BYTES, DeviceError, DeviceSection};

/// Builds a [`DeviceSection`] field by field. The first error is kept and given by
/// [`SectionWriter::finish`]; nothing is written after it.
#[derive(Debug)]
pub struct SectionWriter {
    section: DeviceSection,
    /// The bytes that stood in the body before a nested structure began.
    outer_bytes: usize,
    error: Option<DeviceError>,
}

impl SectionWriter {
    /// Begins a section.
    pub fn new(name: &str, instance: u32, version: u32) -> Self {
        let error = (!is_fit(name)).then(|| DeviceError::BadName {
            section: name.to_owned(),
            name: name.to_owned(),
        });
        Self {
            section: DeviceSection {
                name: name.to_owned(),
                instance,
                version,
                body: Vec::new(),
                fields: Vec::new(),
            },
            outer_bytes: 0,
            error,
        }
    }

    /// Ends the section and leaves the writer empty.
    ///
    /// # Errors
    /// [`DeviceError::BadName`] or [`DeviceError::BodyTooLong`] if a field could not be written.
    pub fn finish(&mut self) -> Result<DeviceSection, DeviceError> {
        match self.error.take() {
            Some(error) => Err(error),
            None => Ok(DeviceSection {
                name: self.section.name.clone(),
                instance: self.section.instance,
                version: self.section.version,
                body: std::mem::take(&mut self.section.body),
                fields: std::mem::take(&mut self.section.fields),
            }),
        }
    }

    /// Adds a byte.
    pub fn u8(&mut self, name: &str, value: u8) -> &mut Self {
        self.scalar(name, "uint8", &value.to_be_bytes())
    }

    /// Adds a byte that is 0 or 1.
    pub fn bool(&mut self, name: &str, value: bool) -> &mut Self {
        self.scalar(name, "bool", &[u8::from(value)])
    }

    /// Adds two bytes.
    pub fn u16(&mut self, name: &str, value: u16) -> &mut Self {
        self.scalar(name, "uint16", &value.to_be_bytes())
    }

    /// Adds four bytes.
    pub fn u32(&mut self, name: &str, value: u32) -> &mut Self {
        self.scalar(name, "uint32", &value.to_be_bytes())
    }

    /// Adds eight bytes.
    pub fn u64(&mut self, name: &str, value: u64) -> &mut Self {
        self.scalar(name, "uint64", &value.to_be_bytes())
    }

    /// Adds eight bytes with a sign.
    pub fn i64(&mut self, name: &str, value: i64) -> &mut Self {
        self.scalar(name, "int64", &value.to_be_bytes())
    }

    /// Adds bytes whose number the reader knows.
    pub fn fixed_buffer(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        self.scalar(name, "buffer", bytes)
    }

    /// Adds bytes, preceded by their number.
    pub fn buffer(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        self.count(name, bytes.len());
        if bytes.is_empty() {
            return self;
        }
        self.scalar(name, "buffer", bytes)
    }

    /// Adds 64-bit values, preceded by their number.
    pub fn array_u64(&mut self, name: &str, values: &[u64]) -> &mut Self {
        self.count(name, values.len());
        let bytes = values.len().saturating_mul(8);
        if values.is_empty() || !self.has_room(name, bytes) {
            return self;
        }
        for value in values {
            self.section.body.extend_from_slice(&value.to_be_bytes());
        }
        self.section.fields.push(FieldDescription {
            name: name.to_owned(),
            array_len: Some(values.len() as u64),
            kind: "uint64".to_owned(),
            size: 8,
            ..Default::default()
        });
        self
    }

    /// Adds a nested structure.
    pub fn structure(&mut self, name: &str, write: impl FnOnce(&mut SectionWriter)) -> &mut Self {
        if let Some(field) = self.element(name, write) {
            self.section.fields.push(field);
        }
        self
    }

    /// Adds a structure for each item, preceded by their number. Each must have at least one
    /// byte.
    pub fn array_struct<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
        mut write: impl FnMut(&mut SectionWriter, T),
    ) -> &mut Self {
        let items = items.into_iter();
        self.count(name, items.len());
        let mut elements: Vec<FieldDescription> = Vec::new();
        let mut alike = 0u64;
        for item in items {
            let Some(element) = self.element(name, |writer| write(writer, item)) else {
                return self;
            };
            // Equal elements share one description, as long as all are equal.
            match elements.first() {
                Some(first) if elements.len() == 1 && *first == element => alike += 1,
                Some(first) if elements.len() == 1 => {
                    let first = first.clone();
                    elements.extend((0..alike).map(|_| first.clone()));
                    elements.push(element);
                }
                Some(_) => elements.push(element),
                None => elements.push(element),
            }
        }
        match elements.as_mut_slice() {
            [one] => one.array_len = Some(alike + 1),
            unequal => {
                for (index, element) in unequal.iter_mut().enumerate() {
                    element.index = Some(index as u64);
                }
            }
        }
        self.section.fields.append(&mut elements);
        self
    }

    fn element(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut SectionWriter),
    ) -> Option<FieldDescription> {
        if !self.has_room(name, 0) {
            return None;
        }
        let mut nested = SectionWriter::new(&self.section.name, self.section.instance, 1);
        nested.outer_bytes = self.outer_bytes + self.section.body.len();
        write(&mut nested);
        match nested.finish() {
            Ok(structure) => {
                self.section.body.extend_from_slice(&structure.body);
                Some(FieldDescription {
                    name: name.to_owned(),
                    kind: "struct".to_owned(),
                    size: structure.body.len() as u64,
                    structure: Some(StructDescription {
                        vmsd_name: format!("{}/{name}", self.section.name),
                        version: 1,
                        fields: structure.fields,
                        subsections: Vec::new(),
                    }),
                    ..Default::default()
                })
            }
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }

    fn count(&mut self, name: &str, count: usize) {
        // More than u32::MAX elements cannot fit below BODY_MAX_BYTES: the field itself fails.
        self.u32(
            &format!("{name}_count"),
            u32::try_from(count).unwrap_or(u32::MAX),
        );
    }

    fn scalar(&mut self, name: &str, kind: &str, bytes: &[u8]) -> &mut Self {
        if self.has_room(name, bytes.len()) {
            self.section.body.extend_from_slice(bytes);
            self.section.fields.push(FieldDescription {
                name: name.to_owned(),
                kind: kind.to_owned(),
                size: bytes.len() as u64,
                ..Default::default()
            });
        }
        self
    }

    fn has_room(&mut self, name: &str, bytes: usize) -> bool {
        if self.error.is_some() {
            return false;
        }
        let section = &self.section;
        let bytes = (self.outer_bytes + section.body.len()).saturating_add(bytes);
        if name.is_empty() || name.len() > NAME_MAX_BYTES {
            self.error = Some(DeviceError::BadName {
                section: section.name.clone(),
                name: name.to_owned(),
            });
        } else if bytes > BODY_MAX_BYTES {
            self.error = Some(DeviceError::BodyTooLong {
                section: section.name.clone(),
                instance: section.instance,
                field: name.to_owned(),
                bytes,
            });
        }
        self.error.is_none()
    }
}
