//! As much of Protocol Buffers' wire format as OTLP needs: fields are written, and the few of an answer read.

/// A message that is written, field by field. What has its default is left out, as proto3 does.
#[derive(Default)]
pub(crate) struct Message(Vec<u8>);

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

impl Message {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, kind: u64) {
        self.raw(u64::from(field) << 3 | kind);
    }

    pub(crate) fn number(&mut self, field: u32, value: u64) {
        self.key(field, VARINT);
        self.raw(value);
    }

    pub(crate) fn fixed64(&mut self, field: u32, value: u64) {
        self.key(field, FIXED64);
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn fixed32(&mut self, field: u32, value: u32) {
        self.key(field, FIXED32);
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn double(&mut self, field: u32, value: f64) {
        self.fixed64(field, value.to_bits());
    }

    pub(crate) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.key(field, BYTES);
        self.raw(value.len() as u64);
        self.0.extend(value);
    }

    pub(crate) fn text(&mut self, field: u32, value: &str) {
        if !value.is_empty() {
            self.bytes(field, value.as_bytes());
        }
    }

    /// A message within this one.
    pub(crate) fn message(&mut self, field: u32, write: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// Numbers of eight bytes each, packed.
    pub(crate) fn packed64(&mut self, field: u32, values: impl Iterator<Item = u64>) {
        let packed: Vec<u8> = values.flat_map(u64::to_le_bytes).collect();
        self.bytes(field, &packed);
    }

    /// Fields that were written before.
    pub(crate) fn fields(&mut self, fields: &[u8]) {
        self.0.extend(fields);
    }
}

/// A field that was read.
#[derive(Debug, PartialEq)]
pub(crate) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of no meaning here.
    Other,
}

/// The next field and its number, and what is behind it; `None` at the end, and where the bytes are no message.
fn next(bytes: &[u8]) -> Option<(u64, Field<'_>, &[u8])> {
    let (key, rest) = varint(bytes)?;
    let (field, rest) = match key & 7 {
        VARINT => varint(rest).map(|(value, rest)| (Field::Number(value), rest))?,
        FIXED64 => (Field::Other, rest.get(8..)?),
        FIXED32 => (Field::Other, rest.get(4..)?),
        BYTES => {
            let (len, rest) = varint(rest)?;
            let (value, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            (Field::Bytes(value), rest)
        }
        _ => return None,
    };
    Some((key >> 3, field, rest))
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

/// The fields of a message, in their order, up to the first that is none.
pub(crate) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let (number, field, rest) = next(bytes)?;
        bytes = rest;
        Some((number, field))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Message::default();
        message.number(1, 300);
        message.text(2, "");
        message.message(15, |inner| inner.text(1, "héllo"));
        message.fixed64(3, 1);
        message.packed64(16, [1, 2].into_iter());
        message.fixed32(17, 9);
        message.number(4, u64::MAX);
        let bytes = message.into_bytes();
        let read: Vec<_> = fields(&bytes).collect();
        assert_eq!(read[0], (1, Field::Number(300)));
        assert_eq!(read[1], (15, Field::Bytes(&[10, 6, b'h', 0xc3, 0xa9, b'l', b'l', b'o'])));
        assert_eq!(read[2], (3, Field::Other));
        assert!(matches!(read[3], (16, Field::Bytes(packed)) if packed.len() == 16));
        assert_eq!(read[4..], [(17, Field::Other), (4, Field::Number(u64::MAX))]);
        // However it is cut, and whatever stands there instead.
        for cut in 0..bytes.len() {
            assert!(fields(&bytes[..cut]).count() <= read.len());
        }
        for byte in 0..=u8::MAX {
            assert!(fields(&[byte; 64]).count() <= 64);
        }
    }
}
