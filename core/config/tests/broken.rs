//! Broken configuration files as data: each is refused with its file, line, column, key, value and the fix. What is said of each stands in
//! `broken/expected.txt`; `VALKYRIE_BLESS=1` writes it.

use std::{fs, path::Path};

use valkyrie_config::{File, Layers, Settings};

#[test]
fn every_broken_file_is_refused_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let mut files: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "expected.txt")
        .collect();
    files.sort();
    assert!(files.len() >= 40, "{} files", files.len());
    let begins = format!("{}/", folder.display());
    let mut told = String::new();
    for name in &files {
        let layers = Layers::new().source(File::new(folder.join(name)));
        let error = Settings::load(layers).err().unwrap_or_else(|| panic!("{name} was taken"));
        let error = error.to_string();
        let error = error.strip_prefix(&begins).unwrap_or_else(|| panic!("{error}"));
        // Where, but for what no line says alone.
        let place = error.strip_prefix(&format!("{name}:")).unwrap_or_else(|| panic!("{error}"));
        let is_placed =
            place.split(':').take(2).all(|number| number.parse::<usize>().is_ok_and(|number| number > 0));
        assert!(is_placed, "{error}");
        assert!(!error.contains('\n'), "{error:?}");
        told.push_str(error);
        told.push('\n');
    }
    let expected = folder.join("expected.txt");
    if std::env::var_os("VALKYRIE_BLESS").is_some() {
        return fs::write(expected, told).unwrap();
    }
    let expected = fs::read_to_string(expected).unwrap_or_default();
    for (told, expected) in told.lines().zip(expected.lines()) {
        assert_eq!(told, expected);
    }
    assert!(told == expected, "VALKYRIE_BLESS=1 writes expected.txt");
}
