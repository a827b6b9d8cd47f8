//! `docs/configuration.md` is what the keys say; `VALKYRIE_BLESS=1` writes its tables.

use std::path::Path;

use serde_json::Value;
use valkyrie_config::{Config, KEYS, Layers, Profile};

fn replaced(text: &str, head: &str, table: &str) -> String {
    let (before, rest) = text.split_once(head).expect("a table");
    let rest = rest.split_once("\n\n").map_or("", |(_, rest)| rest);
    format!("{before}{head}{table}\n{rest}")
}

#[test]
fn the_page_has_every_key() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let shown: Value = serde_json::from_str(&Config::default().show(valkyrie_config::Format::Json)).unwrap();
    let mut keys = String::from(" default | live | meaning |\n|---|---|---|---|\n");
    for key in KEYS {
        let live = if key.is_live() { "yes" } else { "" };
        let doc = key.doc.replace('|', "\\|");
        keys.push_str(&format!("| `{}` | `{}` | {live} | {doc} |\n", key.name, shown[key.name]["value"]));
    }
    let mut profiles = String::from(" other defaults |\n|---|---|\n");
    for profile in Profile::ALL {
        let defaults = profile.defaults();
        let defaults: Vec<String> = defaults.iter().map(|(key, value)| format!("`{key}: {value}`")).collect();
        profiles.push_str(&format!("| `{}` | {} |\n", profile.name(), defaults.join(", ")));
    }
    let text = std::fs::read_to_string(&page).unwrap();
    let expected = replaced(&replaced(&text, "| profile |", &profiles), "| key |", &keys);
    if std::env::var_os("VALKYRIE_BLESS").is_some() {
        return std::fs::write(page, expected).unwrap();
    }
    assert!(text == expected, "docs/configuration.md is not what the keys give: VALKYRIE_BLESS=1 writes it");
    assert!(Layers::new().load().is_ok());
}
