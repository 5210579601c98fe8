//! The arguments of a command, taken out one by one.
//!
//! What is left when a command has taken all that it knows is an error, as are members of the
//! wrong type; both are named with their path (`channels[0].addr.offset`).

use serde_json::{Map, Value};

use super::QmpError;

/// The members of an object that were not taken yet.
#[derive(Debug, Default)]
pub struct Args {
    members: Map<String, Value>,
    path: String,
}

impl Args {
    /// The arguments of a command.
    pub fn new(members: Map<String, Value>) -> Self {
        Self {
            members,
            path: String::new(),
        }
    }

    /// Whether there is a member of this name that was not taken yet.
    pub fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// A member with text.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, QmpError> {
        self.typed(name, "string", |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    /// A member with text, or null, which is as good as none: QEMU's `StrOrNull`.
    pub fn string_or_null(&mut self, name: &str) -> Result<Option<String>, QmpError> {
        self.typed(name, "string", |value| match value {
            Value::String(text) => Some(text),
            Value::Null => Some(String::new()),
            _ => None,
        })
    }

    /// A member as it is.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name)
    }

    /// A member that is true or false.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, QmpError> {
        self.typed(name, "boolean", |value| value.as_bool())
    }

    /// A member that is a whole number, not negative.
    pub fn unsigned(&mut self, name: &str) -> Result<Option<u64>, QmpError> {
        self.typed(name, "unsigned integer", |value| value.as_u64())
    }

    /// A member that is an object.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>, QmpError> {
        let path = format!("{}{name}.", self.path);
        let members = self.typed(name, "object", |value| match value {
            Value::Object(members) => Some(members),
            _ => None,
        })?;
        Ok(members.map(|members| Self { members, path }))
    }

    /// A member that is a list of objects.
    pub fn objects(&mut self, name: &str) -> Result<Option<Vec<Self>>, QmpError> {
        let Some(list) = self.array(name)? else {
            return Ok(None);
        };
        let mut objects = Vec::new();
        for (index, value) in list.into_iter().enumerate() {
            let at = format!("{}{name}[{index}]", self.path);
            let Value::Object(members) = value else {
                return Err(wrong_type(&at, "object"));
            };
            let path = format!("{at}.");
            objects.push(Self { members, path });
        }
        Ok(Some(objects))
    }

    /// A member that is a list of texts.
    pub fn strings(&mut self, name: &str) -> Result<Option<Vec<String>>, QmpError> {
        let Some(list) = self.array(name)? else {
            return Ok(None);
        };
        let mut texts = Vec::new();
        for (index, value) in list.into_iter().enumerate() {
            let Value::String(text) = value else {
                return Err(wrong_type(
                    &format!("{}{name}[{index}]", self.path),
                    "string",
                ));
            };
            texts.push(text);
        }
        Ok(Some(texts))
    }

    /// Makes a member obligatory: `args.need("state", args.boolean("state")?)`.
    pub fn need<T>(&self, name: &str, value: Option<T>) -> Result<T, QmpError> {
        let missing = || QmpError::generic(format!("Parameter '{}{name}' is missing", self.path));
        value.ok_or_else(missing)
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), QmpError> {
        match self.members.keys().next() {
            Some(name) => Err(QmpError::generic(format!(
                "Parameter '{}{name}' is unexpected",
                self.path
            ))),
            None => Ok(()),
        }
    }

    fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, QmpError> {
        self.typed(name, "array", |value| match value {
            Value::Array(list) => Some(list),
            _ => None,
        })
    }

    fn typed<T>(
        &mut self,
        name: &str,
        expected: &str,
        convert: impl FnOnce(Value) -> Option<T>,
    ) -> Result<Option<T>, QmpError> {
        match self.members.remove(name) {
            Some(value) => match convert(value) {
                Some(value) => Ok(Some(value)),
                None => Err(wrong_type(&format!("{}{name}", self.path), expected)),
            },
            None => Ok(None),
        }
    }
}

fn wrong_type(path: &str, expected: &str) -> QmpError {
    QmpError::generic(format!(
        "Invalid parameter type for '{path}', expected: {expected}"
    ))
}
