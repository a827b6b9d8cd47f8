//! A strict reader of Prometheus' text format 0.0.4, in the place of `promtool check metrics`: what the format says, and what
//! promtool's linter wants of names.

use std::collections::{BTreeMap, BTreeSet};

/// A family: its kind, and its samples by name and labels.
#[derive(Debug, Default)]
pub(super) struct Family {
    pub(super) kind: String,
    pub(super) help: String,
    pub(super) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

/// Reads a whole text, family by family in its order.
pub(super) fn parse(text: &str) -> Result<Vec<(String, Family)>, String> {
    if !text.ends_with('\n') {
        return Err("the last line does not end".into());
    }
    let mut families: Vec<(String, Family)> = Vec::new();
    let mut series = BTreeSet::new();
    for (index, line) in text.split_terminator('\n').enumerate() {
        read(line, &mut families, &mut series)
            .map_err(|why| format!("line {}: {why}: {line:?}", index + 1))?;
    }
    for (name, family) in &families {
        check(name, family).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(families)
}

fn read(
    line: &str,
    families: &mut Vec<(String, Family)>,
    series: &mut BTreeSet<(String, BTreeMap<String, String>)>,
) -> Result<(), String> {
    if line.trim() != line || line.contains('\r') {
        return Err("white space around a line".into());
    }
    if let Some(rest) = line.strip_prefix("# HELP ") {
        let (name, help) = rest.split_once(' ').ok_or("no help")?;
        check_name(name, true)?;
        if families.iter().any(|(known, _)| known == name) {
            return Err("a second HELP, or one behind TYPE or samples".into());
        }
        unescape(help, "\\n")?;
        families.push((name.into(), Family { help: help.into(), ..Family::default() }));
        return Ok(());
    }
    if let Some(rest) = line.strip_prefix("# TYPE ") {
        let (name, kind) = rest.split_once(' ').ok_or("no type")?;
        let Some((_, family)) = families.last_mut().filter(|(last, _)| last == name) else {
            return Err("TYPE does not follow its HELP".into());
        };
        if !family.kind.is_empty() || !family.samples.is_empty() {
            return Err("a second TYPE, or one behind samples".into());
        }
        if !["counter", "gauge", "histogram"].contains(&kind) {
            return Err(format!("the type {kind:?}"));
        }
        family.kind = kind.into();
        return Ok(());
    }
    if line.is_empty() || line.starts_with('#') {
        return Err("neither HELP, TYPE nor a sample".into());
    }
    let sample = read_sample(line)?;
    let Some((name, family)) = families.last_mut() else {
        return Err("a sample without HELP and TYPE".into());
    };
    let endings: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
    if !endings.iter().any(|ending| sample.name == format!("{name}{ending}")) {
        return Err(format!("a sample of another family than {name}"));
    }
    if family.kind.is_empty() {
        return Err("a sample before TYPE".into());
    }
    if !series.insert((sample.name.clone(), sample.labels.clone())) {
        return Err("the series is there twice".into());
    }
    family.samples.push(sample);
    Ok(())
}

fn read_sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    check_name(name, true)?;
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, behind) = rest.split_once("=\"").ok_or("a label without a value")?;
            check_name(label, false)?;
            let end = end_of_string(behind).ok_or("a value that does not end")?;
            let value = unescape(&behind[..end], "\\\"n")?;
            if labels.insert(label.to_owned(), value).is_some() {
                return Err(format!("the label {label} twice"));
            }
            rest = &behind[end + 1..];
            rest = match rest.strip_prefix(',') {
                Some(more) => more,
                None if rest.starts_with('}') => rest,
                None => return Err("no comma between labels".into()),
            };
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let legal = matches!(value, "+Inf" | "-Inf" | "NaN")
        || (!value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit() || b"+-.e".contains(&byte)));
    let value = value.parse().ok().filter(|_| legal).ok_or("the value is no number")?;
    Ok(Sample { name: name.into(), labels, value })
}

/// Where a quote stands that no backslash stands before.
fn end_of_string(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.find(|character| {
        let ends = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        ends
    })
}

fn unescape(text: &str, legal: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        out.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some(next) if legal.contains(next) => next,
                other => return Err(format!("the escape {other:?}")),
            },
            other => other,
        });
    }
    Ok(out)
}

fn check_name(name: &str, of_a_metric: bool) -> Result<(), String> {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || (of_a_metric && byte == b':');
    let legal = name.bytes().next().is_some_and(is_letter)
        && name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit());
    match legal && !name.starts_with("__") {
        true => Ok(()),
        false => Err(format!("the name {name:?}")),
    }
}

fn check(name: &str, family: &Family) -> Result<(), String> {
    let Family { kind, help, samples } = family;
    if kind.is_empty() || help.trim().is_empty() {
        return Err("no TYPE, or an empty HELP".into());
    }
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if (kind == "counter") != name.ends_with("_total") {
        return Err("counters, and only they, end in _total".into());
    }
    if ends(&["_bucket", "_sum", "_count"]) || ends(&["_ms", "_us", "_milliseconds"]) {
        return Err("an ending that histograms have, or a unit that is not a base unit".into());
    }
    if kind != "histogram" && samples.iter().any(|sample| sample.labels.contains_key("le")) {
        return Err("le is a label of histograms".into());
    }
    if kind == "counter" && samples.iter().any(|sample| sample.value < 0.0 || !sample.value.is_finite()) {
        return Err("a counter below 0, or of no number".into());
    }
    if kind == "histogram" { check_histograms(samples) } else { Ok(()) }
}

/// Of each set of labels: buckets upwards to `+Inf`, none smaller than the one before, one sum, and a count as `+Inf`.
fn check_histograms(samples: &[Sample]) -> Result<(), String> {
    #[derive(Default)]
    struct Of {
        buckets: Vec<(f64, f64)>,
        sums: usize,
        counts: Vec<f64>,
    }
    let mut all: BTreeMap<BTreeMap<String, String>, Of> = BTreeMap::new();
    for sample in samples {
        let mut labels = sample.labels.clone();
        let le = labels.remove("le");
        let of = all.entry(labels).or_default();
        match (le, sample.name.rsplit('_').next()) {
            (Some(le), Some("bucket")) => {
                of.buckets.push((le.parse().map_err(|_| format!("le {le:?}"))?, sample.value))
            }
            (None, Some("sum")) => of.sums += 1,
            (None, Some("count")) => of.counts.push(sample.value),
            _ => return Err("le is the label of buckets".into()),
        }
    }
    for (labels, Of { buckets, sums, counts }) in all {
        let grows = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let last = buckets.last().filter(|(le, _)| *le == f64::INFINITY);
        let Some((_, last)) = last else { return Err(format!("{labels:?} has no +Inf at its end")) };
        if !grows || sums != 1 || counts != [*last] {
            return Err(format!("{labels:?} do not grow, or have no sum, or another count than +Inf"));
        }
    }
    Ok(())
}

/// The reader is worth something only if it refuses.
#[test]
fn the_reader_takes_what_is_right_and_refuses_what_is_not() {
    let head = "# HELP a_total Help.\n# TYPE a_total counter\n";
    let histogram = |samples: &str| format!("# HELP h_seconds Help.\n# TYPE h_seconds histogram\n{samples}");
    let right = format!(
        "{head}a_total 1\na_total{{x=\"\\\"\\\\\\n,}}\"}} 2.5e3\n{}",
        histogram(
            "h_seconds_bucket{le=\"0.1\"} 1\nh_seconds_bucket{le=\"+Inf\"} 2\nh_seconds_sum 3\nh_seconds_count 2\n"
        )
    );
    let families = parse(&right).unwrap();
    assert_eq!((families.len(), families[0].1.samples.len()), (2, 2));
    assert_eq!(families[0].1.samples[1].labels["x"], "\"\\\n,}");
    let wrong = [
        format!("{head}a_total 1"),
        format!("{head}a_total 1\r\n"),
        format!("{head}a_total\n"),
        format!("{head}a_total one\n"),
        format!("{head}a_total 0x10\n"),
        format!("{head}a_total inf\n"),
        format!("{head}a_total -1\n"),
        format!("{head}a_total NaN\n"),
        format!("{head}a_total 1\na_total 1\n"),
        format!("{head}a_total{{x=\"1\",x=\"2\"}} 1\n"),
        format!("{head}a_total{{x=\"1\"y=\"2\"}} 1\n"),
        format!("{head}a_total{{x=\"1}} 1\n"),
        format!("{head}a_total{{x=\"\\t\"}} 1\n"),
        format!("{head}a_total{{1x=\"\"}} 1\n"),
        format!("{head}a_total{{__x=\"\"}} 1\n"),
        format!("{head}a_total{{le=\"1\"}} 1\n"),
        format!("{head}b_total 1\n"),
        format!("{head}{head}a_total 1\n"),
        format!("{head}\na_total 1\n"),
        format!("{head}# TYPE a_total counter\n"),
        "# TYPE a_total counter\na_total 1\n".to_owned(),
        "# HELP a_total Help.\na_total 1\n".to_owned(),
        "a_total 1\n".to_owned(),
        "# HELP a Help.\n# TYPE a counter\na 1\n".to_owned(),
        "# HELP a_total Help.\n# TYPE a_total gauge\na_total 1\n".to_owned(),
        "# HELP a_ms Help.\n# TYPE a_ms gauge\na_ms 1\n".to_owned(),
        "# HELP a-b Help.\n# TYPE a-b gauge\na-b 1\n".to_owned(),
        "# HELP a \\t\n# TYPE a gauge\na 1\n".to_owned(),
        "# HELP a Help.\n# TYPE a number\na 1\n".to_owned(),
        histogram("h_seconds_bucket{le=\"1\"} 1\nh_seconds_sum 1\nh_seconds_count 1\n"),
        histogram(
            "h_seconds_bucket{le=\"1\"} 2\nh_seconds_bucket{le=\"+Inf\"} 1\nh_seconds_sum 1\nh_seconds_count 1\n",
        ),
        histogram(
            "h_seconds_bucket{le=\"2\"} 1\nh_seconds_bucket{le=\"1\"} 1\nh_seconds_bucket{le=\"+Inf\"} 1\nh_seconds_sum 1\nh_seconds_count 1\n",
        ),
        histogram("h_seconds_bucket{le=\"+Inf\"} 1\nh_seconds_sum 1\nh_seconds_count 2\n"),
        histogram("h_seconds_bucket{le=\"+Inf\"} 1\nh_seconds_count 1\n"),
        histogram("h_seconds 1\n"),
    ];
    for text in wrong {
        assert!(parse(&text).is_err(), "{text}");
    }
}
