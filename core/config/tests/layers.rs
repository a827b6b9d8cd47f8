//! What a configuration is put together from: formats, precedence, sources of a program's own, and where errors point.

mod folder;

use std::{
    ffi::OsString,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use folder::Folder;
use serde_json::{Map, Value, json};
use valkyrie_config::{Config, ConfigError, File, Format, KEYS, Layer, Layers, Source};

const FORMATS: [Format; 3] = [Format::Yaml, Format::Toml, Format::Json];

fn parse(text: &str, format: Format) -> Result<Config, ConfigError> {
    Layers::new().source(Layer::parse("server", text, format)?).load()
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn environment(pairs: &[(&str, &str)]) -> Result<(Layer, Vec<String>), ConfigError> {
    Layer::environment(
        pairs.iter().map(|(variable, value)| (OsString::from(variable), OsString::from(value))),
    )
}

#[test]
fn generated_files_read_back_as_the_defaults() {
    for format in FORMATS {
        let text = Config::generate(format);
        assert_eq!(parse(&text, format).unwrap(), Config::default(), "{text}");
        assert!(KEYS.iter().all(|key| text.contains(key.name)));
    }
    for nothing in ["", "# nothing\n", "\n"] {
        assert_eq!(parse(nothing, Format::Yaml).unwrap(), Config::default());
        assert_eq!(parse(nothing, Format::Toml).unwrap(), Config::default());
    }
}

/// B8: one configuration in three files is one configuration, and says the same when a key is wrong.
#[test]
fn three_formats_give_one_configuration() {
    let files = [
        "bind: [127.0.0.1:1, 'unix:///run/v']\ntoken_issuers:\n  - issuer: a\n    audience: b\n    keys:\n      - {kid: k, algorithm: EdDSA, file: f}\nmetrics: false\n",
        "bind = ['127.0.0.1:1', 'unix:///run/v']\nmetrics = false\n[[token_issuers]]\nissuer = 'a'\naudience = 'b'\nkeys = [{ kid = 'k', algorithm = 'EdDSA', file = 'f' }]\n",
        r#"{"bind": ["127.0.0.1:1", "unix:///run/v"], "metrics": false, "token_issuers": [{"issuer": "a", "audience": "b", "keys": [{"kid": "k", "algorithm": "EdDSA", "file": "f"}]}]}"#,
    ];
    let read = FORMATS.into_iter().zip(files).map(|(format, text)| parse(text, format).unwrap());
    let read: Vec<Config> = read.collect();
    assert_eq!(read[0].token_issuers[0].keys[0].kid, "k");
    assert_eq!((&read[0], &read[1]), (&read[1], &read[2]));
    let wrong = [
        (Format::Yaml, "metrics: true\ndrain_timeout_ms: -5\n"),
        (Format::Toml, "metrics = true\ndrain_timeout_ms = -5\n"),
        (Format::Json, "{\"metrics\": true,\n\"drain_timeout_ms\": -5}\n"),
    ];
    for (format, text) in wrong {
        let error = parse(text, format).unwrap_err().to_string();
        let said = "server:2:1: drain_timeout_ms: -5 is out of range; write a number from 0 to 86400000";
        assert_eq!(error, said);
    }
}

/// I10: each layer wins over those before it, for every key.
#[test]
fn the_precedence_of_layers() {
    let file = "metrics: false\ndrain_timeout_ms: 1\nlog_level: error\nmax_connections: 10\n";
    let second = Layer::new("second", object(json!({"drain_timeout_ms": 2, "max_connections": 20}))).at(
        "max_connections",
        7,
        3,
    );
    let (environment, unknown) = environment(&[
        ("VALKYRIE_DRAIN_TIMEOUT_MS", "3"),
        ("VALKYRIE_BIND", "127.0.0.1:1, unix:///run/v.sock"),
        ("VALKYRIE_POLICY", "/etc/a: b.toml"),
        ("VALKYRIE_LOG_LEVEL", "debug"),
        ("VALKYRIE_MAX_CONECTIONS", "5"),
        ("VALKYRIE_metrics", "true"),
        ("HOME", "/"),
    ])
    .unwrap();
    assert_eq!(unknown, ["VALKYRIE_MAX_CONECTIONS", "VALKYRIE_metrics"]);
    let flags = Layer::flags(object(json!({"log_level": "warn"})));
    let layers = Layers::new().source(Layer::parse("server.yaml", file, Format::Yaml).unwrap());
    let config = layers.source(second).over(environment).over(flags).load().unwrap();
    for (key, value, origin) in [
        ("keepalive_ms", json!(300_000), "default"),
        ("metrics", json!(false), "server.yaml:1"),
        ("max_connections", json!(20), "second:7"),
        ("drain_timeout_ms", json!(3), "environment, VALKYRIE_DRAIN_TIMEOUT_MS"),
        ("bind", json!(["127.0.0.1:1", "unix:///run/v.sock"]), "environment, VALKYRIE_BIND"),
        ("policy", json!("/etc/a: b.toml"), "environment, VALKYRIE_POLICY"),
        ("log_level", json!("warn"), "flag, --log-level"),
    ] {
        let shown: Value = serde_json::from_str(&config.show(Format::Json)).unwrap();
        assert_eq!(shown[key], json!({"value": value, "origin": origin}), "{key}");
        assert_eq!(config.origin_of(key), origin);
    }
    // What is shown is a file of that format.
    for format in [Format::Yaml, Format::Toml] {
        assert_eq!(parse(&config.show(format), format).unwrap(), config);
    }
    for (key, said) in [
        ("max_connections", "second:7:3: max_connections: is odd"),
        ("drain_timeout_ms", "environment: VALKYRIE_DRAIN_TIMEOUT_MS: is odd"),
        ("log_level", "command line: --log-level: is odd"),
        ("metrics", "server.yaml:1:1: metrics: is odd"),
        ("audit", "second: audit: is odd"),
    ] {
        assert_eq!(config.wrong(key, "is odd").to_string(), said);
    }
}

#[test]
fn a_bad_variable_is_refused_with_its_value_and_the_fix() {
    for (variable, value, words) in [
        ("VALKYRIE_DRAIN_TIMEOUT_MS", "-5", "-5 is out of range; write a number from 0 to"),
        ("VALKYRIE_DRAIN_TIMEOUT_MS", "5s", "write a whole number: How long a shutdown"),
        ("VALKYRIE_METRICS", "yes", "write true or false"),
        ("VALKYRIE_BIND", "", "the list is empty"),
        ("VALKYRIE_BIND", "tcp://", "host:port"),
        ("VALKYRIE_LOG_FORMAT", "xml", "expected `text` or `json`"),
        ("VALKYRIE_TOKEN_ISSUERS", "[", "write JSON"),
    ] {
        let error = environment(&[(variable, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("environment: {variable}: {value:?}: ")), "{error}");
        assert!(error.contains(words), "{error}");
    }
}

/// What a program may have in place of a file.
#[derive(Clone, Default)]
struct Directory(Arc<(Mutex<Map<String, Value>>, AtomicBool)>);

impl Source for Directory {
    fn layer(&self) -> Result<Layer, ConfigError> {
        self.0.1.store(false, Relaxed);
        let entries = self.0.0.lock().unwrap();
        if entries.is_empty() {
            return Err(ConfigError::new("directory:/servers/1", "has no entries; is it the right one?"));
        }
        Ok(Layer::new("directory:/servers/1", entries.clone()).at("token_issuers[0]", 4, 2))
    }

    fn may_have_changed(&self) -> bool {
        self.0.1.load(Relaxed)
    }
}

/// I15: a source that this crate knows nothing of.
#[test]
fn a_programs_own_source() {
    let directory = Directory::default();
    let put = |value: Value| {
        *directory.0.0.lock().unwrap() = object(value);
        directory.0.1.store(true, Relaxed);
    };
    let layers = Layers::new().source(directory.clone());
    let load = || layers.load().map_err(|error| error.to_string());
    assert_eq!(load(), Err("directory:/servers/1: has no entries; is it the right one?".to_owned()));
    put(json!({"drain_timeout_ms": 7}));
    assert!(directory.may_have_changed());
    let config = load().unwrap();
    assert!(!directory.may_have_changed());
    assert_eq!(
        (config.drain_timeout_ms, config.origin_of("drain_timeout_ms")),
        (7, "directory:/servers/1".into())
    );
    put(json!({"bnid": []}));
    let said = "directory:/servers/1: bnid: unknown key; did you mean bind? `valkyrie-server config generate` prints every key";
    assert_eq!(load().unwrap_err(), said);
    put(json!({"token_issuers": [{"issuer": "a", "audience": "b", "leeway_s": 301}]}));
    let said = "directory:/servers/1:4:2: token_issuers[0].leeway_s: 301 is out of range; write a number from 0 to 300";
    assert_eq!(load().unwrap_err(), said);
}

/// D7: there and back is the same as there.
#[test]
fn conversion_keeps_every_value() {
    let values = object(json!({
        "bind": ["127.0.0.1:0", "unix:///tmp/v"],
        "allow_origins": ["\u{7f}\u{85}\u{2028}\u{1}\"\\ ü 𝄞"],
        "policy": "a\tb # c: 'd'",
        "max_message_bytes": 65_536,
        "metrics": false,
        "token_issuers": [
            {"issuer": "a: b", "audience": "x", "keys": [{"kid": "k", "algorithm": "HS256", "file": "no"}]},
            {"issuer": "null", "audience": "1", "name": "true"},
        ],
    }));
    let layer = Layer::new("values", values.clone());
    let whole = Layers::new().source(layer.clone()).load().unwrap();
    for first in FORMATS {
        let begun = layer.convert(first).unwrap();
        let mut text = begun.clone();
        let mut at = first;
        for to in [Format::Yaml, Format::Toml, Format::Json, first] {
            text = Layer::parse("file", &text, at).unwrap().convert(to).unwrap();
            at = to;
            assert_eq!(parse(&text, to).unwrap(), whole, "{text}");
        }
        assert_eq!(text, begun);
    }
    let refused = Layer::new("values", object(json!({"metrics": 1}))).convert(Format::Yaml).unwrap_err();
    assert!(refused.to_string().starts_with("values: metrics: invalid type: integer `1`"), "{refused}");
}

/// What two keys say together is looked at when the server begins, and by `check`.
#[test]
fn keys_that_contradict_each_other_name_the_line() {
    for (text, words) in [
        ("metrics = true\nconcurrency_min = 21\n", "server:2:1: concurrency_min: 21 is more than"),
        ("concurrency_max = 19\n", "server:1:1: concurrency_max: 19 is less than"),
        ("\n\ndedup_bytes = 5\ndedup_max_answer_bytes = 6\n", "server:4:1: dedup_max_answer_bytes: 6 is"),
    ] {
        let config = parse(text, Format::Toml).unwrap();
        let error = config.limiter().err().or(config.dedup().err()).unwrap().to_string();
        assert!(error.starts_with(words), "{error}");
    }
    let text = "concurrency_limit = true\nconcurrency_initial = 2\nconcurrency_min = 1\ndedup = true\ndedup_keys = 9\n";
    let config = parse(text, Format::Toml).unwrap();
    assert_eq!(config.limiter().unwrap().map(|policy| (policy.initial, policy.min)), Some((2, 1)));
    assert_eq!(config.dedup().unwrap().map(|policy| policy.capacity), Some(9));
    let defaults = Config::default();
    assert_eq!((defaults.limiter(), defaults.dedup()), (Ok(None), Ok(None)));
}

#[test]
fn what_a_file_may_be() {
    let folder = Folder::new();
    let file = folder.0.join("server.yaml");
    let read = || Config::read(&file).map_err(|error| error.message().to_owned());
    assert!(read().unwrap_err().contains("No such file"));
    // A byte order mark, and lines of another system.
    fs::write(&file, "\u{feff}metrics: false\r\ndrain_timeout_ms: 5\r\n").unwrap();
    assert_eq!(read().unwrap().drain_timeout_ms, 5);
    fs::write(&file, format!("metrics: false\n{}", " ".repeat(1 << 20))).unwrap();
    assert_eq!(read().unwrap_err(), "is longer than 1048576 bytes; is it a configuration?");
    fs::write(&file, b"policy: \xff\n").unwrap();
    assert!(read().unwrap_err().contains("UTF-8"));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(read().unwrap_err(), "is no regular file");
    let odd = File::new(folder.0.join("server.conf")).layer().unwrap_err();
    assert_eq!(odd.message(), "has no known extension; name it .yaml, .yml, .toml or .json");
}
