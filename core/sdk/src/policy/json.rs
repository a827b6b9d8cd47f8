//! JSON with the line of every value, strictly as RFC 8259 has it, for configuration: nesting is bounded, a key may stand once, and
//! numbers are whole or have up to three decimals, since nothing here is measured more finely and floats differ.

/// Deeper than any configuration is.
const DEPTH: u32 = 16;
/// More keys than any of its objects has.
const KEYS: usize = 64;

/// A value and the line that it begins in, from 1.
#[derive(Debug)]
pub(crate) struct Json<'a> {
    pub(crate) line: u32,
    /// As it is written.
    pub(crate) text: &'a str,
    pub(crate) value: Value<'a>,
}

#[derive(Debug)]
pub(crate) enum Value<'a> {
    Null,
    Flag(bool),
    /// In thousandths.
    Number(u64),
    /// A number that is negative, has an exponent, more than three decimals or more digits than 64 bits have.
    OtherNumber,
    Text(String),
    List(Vec<Json<'a>>),
    Object(Vec<(String, Json<'a>)>),
}

/// What is wrong with a text that is no JSON, and in which line.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) line: u32,
    pub(crate) what: String,
}

impl<'a> Json<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, Wrong> {
        let mut reader = Reader { text, at: 0, line: 1 };
        let json = reader.value(0)?;
        match reader.peek() {
            None => Ok(json),
            Some(_) => reader.wrong("there is text behind the end of the object"),
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl<'a> Reader<'a> {
    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, Wrong> {
        Err(Wrong { line: self.line, what: what.into() })
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte @ (b' ' | b'\t' | b'\r' | b'\n')) = self.text.as_bytes().get(self.at) {
            self.line += u32::from(*byte == b'\n');
            self.at += 1;
        }
        self.text.as_bytes().get(self.at).copied()
    }

    /// Takes that byte if it is the next one.
    fn takes(&mut self, byte: u8) -> bool {
        let next = self.peek() == Some(byte);
        self.at += usize::from(next);
        next
    }

    fn expect(&mut self, byte: u8, before: &str) -> Result<(), Wrong> {
        if self.takes(byte) {
            return Ok(());
        }
        match self.text[self.at..].chars().next() {
            Some(found) => self.wrong(format!("{found:?} stands where {:?} {before} must", char::from(byte))),
            None => self.wrong(format!("the text ends before {:?} {before}", char::from(byte))),
        }
    }

    fn value(&mut self, depth: u32) -> Result<Json<'a>, Wrong> {
        let first = self.peek();
        let (line, begins) = (self.line, self.at);
        let value = match first {
            Some(b'{' | b'[') if depth == DEPTH => {
                return self.wrong(format!("it is nested more than {DEPTH} levels deep"));
            }
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b'a'..=b'z' | b'A'..=b'Z') => self.word()?,
            Some(_) => {
                let found = self.text[self.at..].chars().next().unwrap_or_default();
                return self.wrong(format!("{found:?} begins no value"));
            }
            None => return self.wrong("the text ends where a value must stand"),
        };
        Ok(Json { line, text: &self.text[begins..self.at], value })
    }

    fn object(&mut self, depth: u32) -> Result<Value<'a>, Wrong> {
        self.at += 1;
        let mut members: Vec<(String, Json<'a>)> = Vec::new();
        if self.takes(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            if self.peek() != Some(b'"') {
                return self.wrong("a key in double quotes is missing");
            }
            let key = self.string()?;
            if members.iter().any(|(other, _)| *other == key) {
                return self.wrong(format!("the key {key:?} stands twice in one object"));
            }
            self.expect(b':', "behind a key")?;
            let value = self.value(depth + 1)?;
            if members.len() == KEYS {
                return self.wrong(format!("an object has more than {KEYS} keys"));
            }
            members.push((key, value));
            if !self.takes(b',') {
                break;
            }
        }
        self.expect(b'}', "or a comma")?;
        Ok(Value::Object(members))
    }

    fn list(&mut self, depth: u32) -> Result<Value<'a>, Wrong> {
        self.at += 1;
        let mut items = Vec::new();
        if self.takes(b']') {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if !self.takes(b',') {
                break;
            }
        }
        self.expect(b']', "or a comma")?;
        Ok(Value::List(items))
    }

    fn string(&mut self) -> Result<String, Wrong> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(next) = rest.chars().next() else { return self.wrong("the text ends inside a string") };
            self.at += next.len_utf8();
            match next {
                '"' => return Ok(text),
                '\\' => text.push(self.escape()?),
                '\0'..='\x1f' => return self.wrong("a control character stands in a string"),
                other => text.push(other),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Wrong> {
        let escaped = self.text.as_bytes().get(self.at).copied();
        self.at += usize::from(escaped.is_some_and(|byte| byte.is_ascii()));
        Ok(match escaped {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\x08',
            Some(b'f') => '\x0c',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.hex()?;
                let code = if (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with("\\u") {
                    self.at += 2;
                    let second = self.hex()?;
                    match second {
                        0xdc00..0xe000 => 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00),
                        // No character, as the first one alone is none.
                        _ => first,
                    }
                } else {
                    first
                };
                match char::from_u32(code) {
                    Some(character) => character,
                    None => return self.wrong("an escape names half a character"),
                }
            }
            _ => return self.wrong("a backslash stands before what needs none"),
        })
    }

    fn hex(&mut self) -> Result<u32, Wrong> {
        let digits = self
            .text
            .get(self.at..self.at + 4)
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
            Some(code) => {
                self.at += 4;
                Ok(code)
            }
            None => self.wrong("four hexadecimal digits are missing"),
        }
    }

    fn digits(&mut self) -> &'a str {
        let text = self.text;
        let begins = self.at;
        while text.as_bytes().get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        &text[begins..self.at]
    }

    fn number(&mut self) -> Result<Value<'a>, Wrong> {
        let negative = self.takes(b'-');
        let whole = self.digits();
        if whole.is_empty() || whole.len() > 1 && whole.starts_with('0') {
            return self.wrong("a number begins with one digit, or with one that is not 0");
        }
        let mut other = negative;
        let mut decimals = "";
        if self.text[self.at..].starts_with('.') {
            self.at += 1;
            decimals = self.digits();
            if decimals.is_empty() {
                return self.wrong("a number ends in its point");
            }
        }
        if self.text[self.at..].starts_with(['e', 'E']) {
            other = true;
            self.at += 1;
            self.at += usize::from(self.text[self.at..].starts_with(['+', '-']));
            if self.digits().is_empty() {
                return self.wrong("a number has an empty exponent");
            }
        }
        other |= decimals.len() > 3;
        let thousandths = format!("{whole}{decimals:0<3}").parse().ok().filter(|_| !other);
        Ok(thousandths.map_or(Value::OtherNumber, Value::Number))
    }

    fn word(&mut self) -> Result<Value<'a>, Wrong> {
        let rest = &self.text[self.at..];
        let word = &rest[..rest.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(rest.len())];
        let value = match word {
            "null" => Value::Null,
            "true" => Value::Flag(true),
            "false" => Value::Flag(false),
            _ => {
                let word: String = word.chars().take(32).collect();
                return self.wrong(format!(
                    "{word} is no JSON value: write a number, true, false, null or text in quotes"
                ));
            }
        };
        self.at += word.len();
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_serde_reads_and_refuses_what_it_refuses() {
        let texts = [
            "{}",
            "[]",
            "{\"a\":[1,2,{\"b\":null}]}",
            "\"\\u00e9\\ud83d\\ude00\\n\\/\"",
            "0",
            "-0",
            "1.5",
            "1e3",
            "1E-3",
            "12.125",
            "true",
            " \n\t\r[ false ]",
            "",
            "{",
            "[",
            "[1,]",
            "{\"a\":1,}",
            "{\"a\"}",
            "{a:1}",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "NaN",
            "Infinity",
            "nul",
            "truefalse",
            "\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\t\"",
            "\"\\",
            "\"\\ué\"",
            "[1 2]",
            "1 2",
            "{\"a\" 1}",
            "\u{feff}{}",
            "'a'",
            "[é]",
            "//",
            "[1]]",
            "\"\\udc00\"",
        ];
        for text in texts {
            let ours = Json::parse(text);
            let theirs = serde_json::from_str::<serde_json::Value>(text);
            assert_eq!(ours.is_ok(), theirs.is_ok(), "{text:?}: {ours:?}, {theirs:?}");
            if let (Ok(Json { value: Value::Text(ours), .. }), Ok(theirs)) = (&ours, &theirs) {
                assert_eq!(Some(ours.as_str()), theirs.as_str());
            }
        }
    }

    #[test]
    fn numbers_are_thousandths_or_of_no_use() {
        let number = |text: &str| match Json::parse(text).expect("a number").value {
            Value::Number(number) => Some(number),
            _ => None,
        };
        assert_eq!(number("25"), Some(25_000));
        assert_eq!(number("1.6"), Some(1_600));
        assert_eq!(number("0.125"), Some(125));
        assert_eq!(number("18446744073709551.615"), Some(u64::MAX));
        for text in ["-1", "1e3", "0.0001", "18446744073709551.616", "99999999999999999999999999"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn lines_are_counted_and_nesting_is_bounded() {
        let json = Json::parse("{\n \"a\":\n\n [1,\n 2]}").expect("an object");
        let Value::Object(members) = json.value else { panic!() };
        let Value::List(items) = &members[0].1.value else { panic!() };
        assert_eq!((members[0].1.line, items[1].line, members[0].1.text), (4, 5, "[1,\n 2]"));
        for text in ["[".repeat(100_000), "{\"a\":".repeat(100_000)] {
            assert!(Json::parse(&text).expect_err("too deep").what.contains("16 levels"));
        }
        assert_eq!(Json::parse("{\n\"a\":1,\n\"a\":2}").expect_err("twice").line, 3);
    }

    #[test]
    fn no_mangled_text_panics() {
        use crate::policy::Random;
        let seed = 1;
        let mut random = Random::new(seed);
        let good = "{\"methods\": [{\"names\": [\"/é\\u00e9\\ud83d\\ude00\"], \"x\": -1.5e+7, \"y\": [true, null]}]}";
        for _ in 0..50_000 {
            let mut bytes = good.as_bytes().to_vec();
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                match random.below(3) {
                    0 => bytes[at] = random.below(128) as u8,
                    1 if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            if let Ok(text) = String::from_utf8(bytes) {
                let theirs = serde_json::from_str::<serde_json::Value>(&text);
                let ours = Json::parse(&text);
                // Only a key that stands twice is ours to refuse.
                let twice = ours.as_ref().is_err_and(|wrong| wrong.what.contains("twice"));
                let range = theirs.as_ref().is_err_and(|error| error.to_string().contains("out of range"));
                assert!(
                    ours.is_ok() == theirs.is_ok() || twice || range,
                    "{text:?}, seed {seed}: {ours:?} {theirs:?}"
                );
            }
        }
    }
}
