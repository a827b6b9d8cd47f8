//! Who a span is, as services tell each other: W3C Trace Context, <https://www.w3.org/TR/trace-context/>.

/// A span among all there are, and whether it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanContext {
    /// Never 0.
    pub(crate) trace: u128,
    /// Never 0.
    pub(crate) span: u64,
    pub(crate) sampled: bool,
}

impl SpanContext {
    /// Reads a `traceparent`; one that is not well-formed is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // Of a later version the beginning is the same.
        let (head, rest) = text.split_at_checked(55)?;
        let mut parts = head.split('-');
        let version = hex(parts.next()?, 2)?;
        let (trace, span) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?);
        let flags = hex(parts.next()?, 2)?;
        let ends = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let span = u64::try_from(span).ok()?;
        let legal = ends && parts.next().is_none() && trace != 0 && span != 0;
        legal.then_some(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

impl std::fmt::Display for SpanContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// So many digits, small ones only.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let legal = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    legal.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_written_is_read() {
        let read = SpanContext::parse(GIVEN).unwrap();
        assert_eq!((read.span, read.sampled), (0xb7ad_6b71_6920_3331, true));
        assert_eq!(read.to_string(), GIVEN);
        let not = SpanContext { sampled: false, ..read };
        assert_eq!(SpanContext::parse(&not.to_string()), Some(not));
    }

    /// Whatever is not well-formed is ignored, and a later version is read as far as it is known.
    #[test]
    fn what_is_malformed_is_none() {
        for (text, legal) in [
            ("", false),
            ("00", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x", false),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x", false),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what", true),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz", false),
            ("00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c8-319c-b7ad6b7169203331-01", false),
            ("00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b71692033é1-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-é", false),
        ] {
            assert_eq!(SpanContext::parse(text).is_some(), legal, "{text}");
        }
    }
}
