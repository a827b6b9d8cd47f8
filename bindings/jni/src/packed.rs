//! What crosses as one array because it is many values: options and metadata, as `Packed.kt` writes them.
//!
//! ```text
//! field = len (i32), that many bytes | -1 (i32), no value
//! ```
//! A number is a field of 8 bytes. In little-endian order.

use bytes::Bytes;
use valkyrie_bridge::{Metadata, Pem, Status};

use crate::host::wrong;

/// The fields of an array, in order.
pub(crate) struct Fields(Bytes);

impl Fields {
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The next field; `None` for one without a value.
    pub(crate) fn bytes(&mut self) -> Result<Option<Bytes>, Status> {
        let cut = || wrong("packed fields are cut off");
        let length = i32::from_le_bytes(*self.0.first_chunk().ok_or_else(cut)?);
        let rest = self.0.slice(4..);
        let Ok(length) = usize::try_from(length) else {
            self.0 = rest;
            return Ok(None);
        };
        if rest.len() < length {
            return Err(cut());
        }
        self.0 = rest.slice(length..);
        Ok(Some(rest.slice(..length)))
    }

    pub(crate) fn text(&mut self) -> Result<Option<String>, Status> {
        let text = self.bytes()?.map(|bytes| String::from_utf8(bytes.into()));
        text.transpose().map_err(|_| wrong("a packed text is not UTF-8"))
    }

    pub(crate) fn number(&mut self) -> Result<Option<i64>, Status> {
        let number = |bytes: Bytes| Some(i64::from_le_bytes(*bytes.first_chunk()?));
        self.bytes()?
            .map(|bytes| number(bytes).ok_or_else(|| wrong("a packed number is cut off")))
            .transpose()
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Status> {
        Ok(self.number()?.is_some_and(|number| number != 0))
    }

    pub(crate) fn milliseconds(&mut self) -> Result<Option<u64>, Status> {
        Ok(self.number()?.and_then(milliseconds))
    }

    /// PEM text and the path of a file of it, of which one has a value at most.
    pub(crate) fn pem(&mut self) -> Result<Option<Pem>, Status> {
        let text = self.text()?.map(Pem::from);
        Ok(self.text()?.map(Pem::file).or(text))
    }

    /// All that is left, as keys with their values.
    pub(crate) fn metadata(mut self) -> Result<Metadata, Status> {
        let mut metadata = Metadata::new();
        while !self.0.is_empty() {
            let key = self.text()?.unwrap_or_default();
            metadata.insert(key, self.bytes()?.unwrap_or_default())?;
        }
        Ok(metadata)
    }
}

/// A negative number stands for "not given", the largest for "no limit".
pub(crate) fn milliseconds(value: i64) -> Option<u64> {
    match value {
        i64::MAX => Some(u64::MAX),
        value => u64::try_from(value).ok(),
    }
}
