//! Any text as a configuration file of the server, in each format: it is refused in a sentence, or every value is in its
//! range and survives being written and read again. The first byte chooses the format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use valkyrie_config::{Config, ConfigError, Format, Layer, Layers};
use valkyrie_fuzz::measure;
use valkyrie_sdk::Endpoint;

/// The longest file tried, and the most memory that reading one may take.
const LONGEST: usize = 4 << 10;
const MOST: usize = 8 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((format, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(&text[..text.len().min(LONGEST)]) else { return };
    let format = [Format::Yaml, Format::Toml, Format::Json][usize::from(format % 3)];
    let usage = measure(|| match read(text, format) {
        Ok(config) => legal(&config),
        Err(error) => {
            assert!(!error.message().is_empty());
            // A carriage return alone ends a line of YAML, and the end of a text is on the line after its last.
            let lines = 2 + text.matches(['\n', '\r']).count();
            let line = error.position().map(|position| position.line);
            assert!(line.is_none_or(|line| (1..=lines).contains(&line)), "line {line:?} of {text:?}");
        }
    });
    assert!(usage.peak <= MOST, "{usage:?} for {} bytes", text.len());
});

fn read(text: &str, format: Format) -> Result<Config, ConfigError> {
    Layers::new().source(Layer::parse("server", text, format)?).load()
}

fn legal(config: &Config) {
    assert!(!config.bind.is_empty() && config.bind.iter().all(|bind| Endpoint::parse(bind).is_ok()));
    assert!((0..=86_400_000).contains(&config.drain_timeout_ms));
    assert!((1..=10_000_000).contains(&config.max_connections));
    assert!((1..=1_000_000).contains(&config.max_running_handlers));
    assert!((65_536..=1 << 30).contains(&config.max_message_bytes));
    assert!((100..=65_536).contains(&config.max_concurrent_streams));
    assert!((65_536..=1 << 40).contains(&config.audit_max_file_bytes));
    assert!(config.token_issuers.iter().all(|issuer| (0..=300).contains(&issuer.leeway_s)));
    let limits = config.limits();
    assert_eq!(u64::from(limits.max_message_bytes), config.max_message_bytes);
    assert_eq!(u64::from(limits.max_concurrent_streams), config.max_concurrent_streams);
    let json = serde_json::to_string(config).expect("a configuration is JSON");
    assert_eq!(read(&json, Format::Json).as_ref(), Ok(config));
    let json = Layer::parse("server", &json, Format::Json).expect("JSON");
    for format in [Format::Yaml, Format::Toml, Format::Json] {
        let text = json.convert(format).expect("each format has every value");
        assert_eq!(read(&text, format).as_ref(), Ok(config), "{text}");
    }
}
