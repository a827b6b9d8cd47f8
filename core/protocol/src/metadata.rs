//! Call metadata and trailers: an ordered list of key and value, small enough to be searched by walking.

use std::{fmt, str};

use bytes::Bytes;

/// A metadata value: bytes. Text unless the key ends in `-bin`.
pub type MetadataValue = Bytes;

/// An ordered multimap of metadata. Keys are lower-case ASCII of `a-z 0-9 - _ .`, 1 to 128 characters, and so are
/// legal HTTP header names; the values of keys that end in `-bin` are any bytes, all others printable ASCII
/// (space to `~`).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    entries: Vec<(Bytes, Bytes)>,
}

/// A key or a value that metadata cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataError {
    /// The key is empty, too long, or has a character outside `a-z 0-9 - _ .`.
    Key(String),
    /// The value of a text key has a byte outside printable ASCII.
    Value(String),
}

impl fmt::Display for MetadataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "metadata key {key:?} is not 1 to 128 characters of a-z 0-9 - _ ."),
            Self::Value(key) => {
                write!(f, "metadata value of {key:?} is not printable ascii; end the key in -bin for bytes")
            }
        }
    }
}

impl std::error::Error for MetadataError {}

impl Metadata {
    /// The longest key, in bytes.
    pub const MAX_KEY_LEN: usize = 128;

    /// No entries. Allocates nothing.
    pub const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    pub(crate) fn with_capacity(entries: usize) -> Self {
        Self { entries: Vec::with_capacity(entries) }
    }

    /// Adds an entry; the same key may stand more than once.
    ///
    /// # Errors
    /// When the key or the value is not legal.
    pub fn insert(&mut self, key: impl AsRef<str>, value: impl Into<Bytes>) -> Result<(), MetadataError> {
        let key = key.as_ref();
        let value = value.into();
        check(key.as_bytes(), &value)?;
        self.entries.push((Bytes::copy_from_slice(key.as_bytes()), value));
        Ok(())
    }

    /// The same metadata with one more entry, for literals.
    ///
    /// # Errors
    /// As [`Metadata::insert`].
    pub fn with(mut self, key: impl AsRef<str>, value: impl Into<Bytes>) -> Result<Self, MetadataError> {
        self.insert(key, value)?;
        Ok(self)
    }

    /// The first value of that key.
    pub fn get(&self, key: &str) -> Option<&Bytes> {
        self.entries.iter().find(|(k, _)| k == key.as_bytes()).map(|(_, value)| value)
    }

    /// The first value of that key, as text.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(|value| str::from_utf8(value).ok())
    }

    /// Every entry, in the order they were added.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Bytes)> {
        // Keys are checked to be ASCII on every way in.
        self.entries.iter().map(|(key, value)| (str::from_utf8(key).unwrap_or(""), value))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry that shares its bytes with a read buffer.
    pub(crate) fn push_checked(&mut self, key: Bytes, value: Bytes) -> Result<(), MetadataError> {
        check(&key, &value)?;
        self.entries.push((key, value));
        Ok(())
    }
}

fn check(key: &[u8], value: &[u8]) -> Result<(), MetadataError> {
    let legal = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    if key.is_empty() || key.len() > Metadata::MAX_KEY_LEN || !key.iter().all(legal) {
        return Err(MetadataError::Key(String::from_utf8_lossy(&key[..key.len().min(64)]).into_owned()));
    }
    if !key.ends_with(b"-bin") && !value.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(MetadataError::Value(String::from_utf8_lossy(key).into_owned()));
    }
    Ok(())
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: W5-07, W5-08
    #[test]
    fn refuses_keys_and_values_that_would_break_a_header() {
        let mut metadata = Metadata::new();
        for key in ["", "Upper", "space key", "new\nline", "nul\0", &"k".repeat(129)] {
            assert!(matches!(metadata.insert(key, "v"), Err(MetadataError::Key(_))), "{key:?}");
        }
        assert!(matches!(metadata.insert("text", "a\r\nb"), Err(MetadataError::Value(_))));
        assert!(metadata.insert("data-bin", &b"\x00\xff"[..]).is_ok());
        assert_eq!(metadata.len(), 1);
    }
}
