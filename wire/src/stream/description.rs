//! The stream's description of itself: the JSON of VMDESCRIPTION.
//!
//! A loader may ignore it, and QEMU's does. Here it is what gives device bodies their length,
//! since bodies in a stream carry none: the bytes of a body are the sum of `size` times
//! `array_len` (1 where it is missing) over its fields, and for each subsection a marker byte,
//! a length byte, the name, four bytes of version, and its body. The `size` of a structure
//! already includes what is nested in it.
//!
//! One key is paguro's own: `"paguro": {"extension": 1}` promises the extension after
//! VMDESCRIPTION (see [`crate::snapshot::extension`]), so that a file that lost exactly that
//! part is not taken for one that never had it.

use serde::{Deserialize, Serialize};

use crate::DecodeError;

/// The longest description that is read, in bytes.
pub const DESCRIPTION_MAX_BYTES: u64 = 16 << 20;

/// The whole description.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Description {
    /// The target's page size in bytes.
    #[serde(default)]
    pub page_size: u64,
    /// The CONFIGURATION element, where the writer describes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<StructDescription>,
    /// The device sections, in the order of the stream.
    #[serde(default)]
    pub devices: Vec<DeviceDescription>,
    /// What stands after the description, in a file written by paguro.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paguro: Option<Promise>,
}

/// What a paguro file promises to have after its description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The version of the extension.
    pub extension: u32,
}

/// One device section.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// The name in the section's header.
    pub name: String,
    /// The instance in the section's header.
    pub instance_id: u32,
    /// The name of the structure; missing for QEMU's old-style devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmsd_name: Option<String>,
    /// The version of the structure; missing for QEMU's old-style devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The fields, in order.
    #[serde(default)]
    pub fields: Vec<FieldDescription>,
    /// The subsections that are present, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsections: Vec<StructDescription>,
}

/// One field, or all elements of an array.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FieldDescription {
    /// The field's name.
    #[serde(default)]
    pub name: String,
    /// The number of elements, if this describes an array of equal elements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array_len: Option<u64>,
    /// The element's index, if this describes one element of an array of unequal ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// What the field is: `uint64`, `buffer`, `struct`, ...
    #[serde(default, rename = "type")]
    pub kind: String,
    /// What a structure consists of.
    #[serde(default, rename = "struct", skip_serializing_if = "Option::is_none")]
    pub structure: Option<StructDescription>,
    /// The bytes of the field, or of one element of an array.
    pub size: u64,
}

/// A structure: nested in a field, or a subsection.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StructDescription {
    /// The name of the structure.
    #[serde(default)]
    pub vmsd_name: String,
    /// The version of the structure.
    #[serde(default)]
    pub version: u32,
    /// The fields, in order.
    #[serde(default)]
    pub fields: Vec<FieldDescription>,
    /// The subsections that are present, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsections: Vec<StructDescription>,
}

impl Description {
    /// Decodes the JSON; `offset` is where it stands, for errors. Nesting is bounded by the JSON
    /// parser (128 levels), length by the caller ([`DESCRIPTION_MAX_BYTES`]).
    ///
    /// # Errors
    /// [`DecodeError::Json`].
    pub fn decode(json: &[u8], offset: u64) -> Result<Self, DecodeError> {
        serde_json::from_slice(json).map_err(|source| DecodeError::Json {
            what: "VMDESCRIPTION",
            offset,
            source,
        })
    }
}

impl DeviceDescription {
    /// The bytes of the section's body, or nothing if they do not fit into 64 bits.
    pub fn body_bytes(&self) -> Option<u64> {
        body_bytes(&self.fields, &self.subsections)
    }
}

impl FieldDescription {
    /// The bytes of the field with all elements, or nothing if they do not fit into 64 bits.
    pub fn total_bytes(&self) -> Option<u64> {
        self.size.checked_mul(self.array_len.unwrap_or(1))
    }
}

fn body_bytes(fields: &[FieldDescription], subsections: &[StructDescription]) -> Option<u64> {
    let mut total = 0u64;
    for field in fields {
        total = total.checked_add(field.total_bytes()?)?;
    }
    for subsection in subsections {
        let frame_bytes = 2 + subsection.vmsd_name.len() as u64 + 4;
        let body_bytes = body_bytes(&subsection.fields, &subsection.subsections)?;
        total = total.checked_add(frame_bytes)?.checked_add(body_bytes)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_length_counts_arrays_structures_and_subsections() {
        let json = br#"{"page_size":4096,"devices":[{"name":"x","instance_id":0,"vmsd_name":"x",
            "version":2,"fields":[{"name":"a","type":"uint32","size":4},
            {"name":"b","array_len":3,"type":"uint16","size":2},
            {"name":"c","type":"struct","struct":{"vmsd_name":"c","version":1,
              "fields":[{"name":"d","type":"uint8","size":1}]},"size":1}],
            "subsections":[{"vmsd_name":"x/s","version":1,
              "fields":[{"name":"e","type":"uint64","size":8}]}]}]}"#;
        let description = Description::decode(json, 0).unwrap();
        assert_eq!(
            description.devices[0].body_bytes(),
            Some(4 + 6 + 1 + (2 + 3 + 4 + 8))
        );
    }

    #[test]
    fn sizes_that_overflow_have_no_body_length() {
        let json = br#"{"devices":[{"name":"x","instance_id":0,
            "fields":[{"array_len":9223372036854775808,"size":2}]}]}"#;
        let description = Description::decode(json, 0).unwrap();
        assert_eq!(description.devices[0].body_bytes(), None);
    }

    #[test]
    fn deep_nesting_is_refused() {
        let json = format!("{}{}", r#"{"x":"#, "[".repeat(100_000));
        assert!(Description::decode(json.as_bytes(), 0).is_err());
    }
}
