//! Who may call what, and how often: a file, read into rules that one call sees whole. What a bucket holds is `rate.rs`.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use serde::{Deserialize, Deserializer, de};
use valkyrie_protocol::{Reason, Status, Time};

use super::{
    hex,
    rate::{Limit, Rate},
};
use crate::Principal;

/// Roles of one policy, and limits and quotas of it together.
const MOST: usize = 256;
/// The largest file.
const MOST_BYTES: u64 = 1 << 20;
/// The longest method there is (PROTOCOL.md, CALL).
const LONGEST_METHOD: usize = 512;
/// How often a policy that is used looks at its file.
const CHECK_EVERY_US: u64 = 1_000_000;
/// What anyone may call, unless a rule denies it.
const HEALTH: &str = "/valkyrie.Health/";

/// Why a call is decided as it is, where no rule of the policy says it: the first rules of each.
const NO_RULE: usize = 0;
const NOT_CANONICAL: usize = 1;
const HEALTH_IS_OPEN: usize = 2;

/// The rules in force: from a file that is read again when it changes, or from a text.
///
/// A file is TOML or JSON, by its extension, of at most 1 MiB:
///
/// ```toml
/// version = 1
///
/// [roles.reader]
/// allow = ["/store.Items/*"]
/// deny = ["/store.Items/Delete"]
///
/// [[bindings]]
/// principals = ["spiffe://example.org/web/*", "sub:alice", "uid:1000"]
/// roles = ["reader"]
///
/// [credential_roles]            # roles that a token grants, and the roles of this file that they stand for
/// auditor = ["reader"]
///
/// [[limits]]                    # one bucket for each principal, over all of these methods
/// principals = ["sub:*"]
/// methods = ["/store.Items/*"]  # all without it
/// per_second = 100
/// burst = 200                   # per_second without it
///
/// [[quotas]]                    # so many calls in each window, which begins with its first call
/// principals = ["sub:*"]
/// calls = 100000
/// seconds = 86400
/// ```
///
/// A method stands for itself, or for all below it where it ends in `/*`; a principal likewise, with its `*` after a
/// `/` or `:`, and `*` alone is everybody, `anonymous` too. A rule that denies goes before all that allow (gRFC A43), and what no rule
/// allows is denied, but `/valkyrie.Health/*`. Methods are compared byte for byte and nothing is decoded; one with an
/// empty, `.` or `..` segment, a segment that ends in a dot, a `%` or a `\` matches no rule, not even `/*`.
///
/// At most 256 roles, and 256 limits and quotas together. An unknown key, a rule that can never match, a role that is
/// not there and two methods that differ in case only are errors.
#[derive(Debug)]
pub struct Policy {
    current: RwLock<Arc<Rules>>,
    source: Option<Source>,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    /// When the file was looked at.
    checked: AtomicU64,
    watch: Mutex<Watch>,
}

#[derive(Debug)]
struct Watch {
    /// What the file was when it was last read, taken or refused.
    read: Result<Stamp, io::ErrorKind>,
    /// What it was when it was last looked at and was something else.
    seen: Option<Result<Stamp, io::ErrorKind>>,
}

/// What changes when a file does. Its content may be half written all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
    /// Device, inode, and the seconds and nanoseconds of its last change of any kind.
    place: (u64, u64, i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Result<Self, io::ErrorKind> {
        let metadata = fs::metadata(path).map_err(|error| error.kind())?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput);
        }
        #[cfg(unix)]
        let place = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
        };
        #[cfg(not(unix))]
        let place = (0, 0, 0, 0);
        Ok(Self { len: metadata.len(), modified: metadata.modified().ok(), place })
    }
}

impl Default for Policy {
    /// Denies everything but health.
    fn default() -> Self {
        Self::of(
            Rules::build(Table::default(), "").unwrap_or_else(|_| unreachable!("there is nothing in it")),
        )
    }
}

impl Policy {
    fn of(rules: Rules) -> Self {
        Self { current: RwLock::new(Arc::new(rules)), source: None }
    }

    /// Reads a file, and later reads it again when it has changed: a policy in use looks at most once a second, and takes a file
    /// that it finds unchanged a second time, so that one which is being written is left alone. Rename a new file, or a
    /// symlink, into place: what is written for longer than a second may be taken half. A file that is
    /// refused changes nothing. The call that finds a new file waits for it to be read.
    ///
    /// # Errors
    /// INVALID_CONFIGURATION with file, line and key.
    pub fn from_file(path: impl Into<PathBuf>) -> Result<Self, Status> {
        let path = path.into();
        let (rules, stamp) = read(&path)?;
        let watch = Mutex::new(Watch { read: Ok(stamp), seen: None });
        let source = Some(Source { path, checked: AtomicU64::new(0), watch });
        Ok(Self { source, ..Self::of(rules) })
    }

    /// Reads a text in TOML.
    ///
    /// # Errors
    /// INVALID_CONFIGURATION with line and key.
    pub fn from_toml(text: &str) -> Result<Self, Status> {
        Ok(Self::of(Rules::parse(text, Format::Toml).map_err(|wrong| wrong.status("policy"))?))
    }

    /// Reads a text in JSON.
    ///
    /// # Errors
    /// INVALID_CONFIGURATION with line and key.
    pub fn from_json(text: &str) -> Result<Self, Status> {
        Ok(Self::of(Rules::parse(text, Format::Json).map_err(|wrong| wrong.status("policy"))?))
    }

    /// The rules in force: what one call is decided by, from the beginning to the end.
    pub fn rules(&self) -> Arc<Rules> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again at once: whether its rules are others than those before. A policy without a file stays as it is.
    ///
    /// # Errors
    /// INVALID_CONFIGURATION with file, line and key; the rules in force stay.
    pub(crate) fn reload(&self) -> Result<bool, Status> {
        match &self.source {
            Some(source) => self.take(source, &mut lock(&source.watch)),
            None => Ok(false),
        }
    }

    /// Looks at the file when it is time to: `None` when nothing was read, else as [`Policy::reload`].
    pub(crate) fn refresh(&self, now: Time) -> Option<Result<bool, Status>> {
        let source = self.source.as_ref()?;
        let checked = source.checked.load(Relaxed);
        if now.as_micros() < checked.saturating_add(CHECK_EVERY_US) {
            return None;
        }
        source.checked.compare_exchange(checked, now.as_micros(), Relaxed, Relaxed).ok()?;
        let mut watch = source.watch.try_lock().ok()?;
        let found = Stamp::of(&source.path);
        if found == watch.read {
            watch.seen = None;
            return None;
        }
        if watch.seen.replace(found) != Some(found) {
            return None;
        }
        Some(self.take(source, &mut watch))
    }

    fn take(&self, source: &Source, watch: &mut Watch) -> Result<bool, Status> {
        watch.seen = None;
        watch.read = Stamp::of(&source.path);
        let (rules, stamp) = read(&source.path)?;
        watch.read = Ok(stamp);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let changed = current.version != rules.version;
        if changed {
            *current = Arc::new(rules);
        }
        Ok(changed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(path: &Path) -> Result<(Rules, Stamp), Status> {
    let file = path.display().to_string();
    let wrong = |message: String| Wrong { line: None, key: None, message }.status(&file);
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => Format::Toml,
        Some("json") => Format::Json,
        _ => return Err(wrong("has no known extension; name it .toml or .json".into())),
    };
    // What is no file, such as a pipe, could keep its reader for ever.
    let stamp = Stamp::of(path).map_err(|kind| match kind {
        io::ErrorKind::InvalidInput => wrong("is not a file".into()),
        kind => wrong(kind.to_string()),
    })?;
    let mut text = String::new();
    let opened = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text));
    opened.map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(wrong(format!("is longer than {MOST_BYTES} bytes")));
    }
    if Stamp::of(path) != Ok(stamp) {
        return Err(wrong("changes while it is read".into()));
    }
    Ok((Rules::parse(&text, format).map_err(|wrong| wrong.status(&file))?, stamp))
}

/// One version of a policy: what a call sees of it never changes.
#[derive(Debug)]
pub struct Rules {
    version: String,
    principals: Paths<Granted>,
    credential_roles: BTreeMap<String, Bits>,
    methods: Paths<Ruled>,
    /// What each rule is called in the audit.
    texts: Vec<Arc<str>>,
    limits: Vec<Limit>,
}

/// What the policy says of one principal, or of all below one.
#[derive(Debug, Default)]
struct Granted {
    roles: Bits,
    limits: Bits,
}

/// What the policy says of one method, or of all below one.
#[derive(Debug, Default)]
struct Ruled {
    /// For whom, whether it is allowed, and the number of the rule.
    rules: Vec<(usize, bool, usize)>,
    limits: Bits,
}

/// What the rules say of one call.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// Whether it is allowed, so far as limits do not matter.
    pub allowed: bool,
    rule: &'a Arc<str>,
    limits: Bits,
}

impl<'a> Decision<'a> {
    /// The rule that decided, in words for the audit. Callers need not know it.
    pub fn rule(&self) -> &'a Arc<str> {
        self.rule
    }
}

impl Rules {
    /// What tells this version from others: the first 32 hexadecimal digits of SHA-256 over its text.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the principal may call the method. Allocates nothing.
    pub fn decide(&self, principal: &Principal, method: &str) -> Decision<'_> {
        let mut granted = Granted::default();
        self.principals.visit(principal.id(), |more| {
            granted.roles.add(&more.roles);
            granted.limits.add(&more.limits);
        });
        for role in principal.roles() {
            if let Some(roles) = self.credential_roles.get(role) {
                granted.roles.add(roles);
            }
        }
        let decided = |allowed, rule: usize, limits| Decision { allowed, rule: &self.texts[rule], limits };
        if not_canonical(method).is_some() {
            return decided(false, NOT_CANONICAL, Bits::default());
        }
        let mut allowed = method.starts_with(HEALTH).then_some(HEALTH_IS_OPEN);
        let (mut denied, mut limits) = (None, Bits::default());
        self.methods.visit(method, |ruled| {
            limits.add(&ruled.limits);
            for &(role, allows, rule) in &ruled.rules {
                if granted.roles.has(role) {
                    (if allows { &mut allowed } else { &mut denied }).get_or_insert(rule);
                }
            }
        });
        limits.keep(&granted.limits);
        match (denied, allowed) {
            (Some(rule), _) => decided(false, rule, limits),
            (None, Some(rule)) => decided(true, rule, limits),
            (None, None) => decided(false, NO_RULE, limits),
        }
    }

    /// The limits and quotas that a call counts against.
    pub(crate) fn limits<'a>(&'a self, decision: &Decision<'a>) -> impl Iterator<Item = &'a Limit> + Clone {
        decision.limits.all().map(|index| &self.limits[index])
    }

    /// All limits and quotas.
    pub(crate) fn all_limits(&self) -> &[Limit] {
        &self.limits
    }

    fn parse(text: &str, format: Format) -> Result<Self, Wrong> {
        let table = Table::parse(text, format)?;
        Self::build(table, text).map_err(|Misfit { key, name, message }| {
            // Of what is well written where it stands, only the name is known: its line is where that is.
            let quoted = [format!("\"{name}\""), format!("'{name}'")];
            let found = |line: &str| quoted.iter().any(|quoted| line.contains(quoted.as_str()));
            let line =
                text.lines().position(found).or_else(|| text.lines().position(|line| line.contains(&name)));
            Wrong { line: line.map(|line| line + 1), key: Some(key), message }
        })
    }

    fn build(table: Table, text: &str) -> Result<Self, Misfit> {
        let misfit =
            |key: String, name: &str, message: String| Misfit { key, name: name.to_owned(), message };
        let mut texts: Vec<Arc<str>> =
            ["no rule allows it", "the method is not canonical", "health is open"].map(Arc::from).into();
        let mut methods = Paths::<Ruled>::default();
        let mut cases = BTreeMap::<String, String>::new();
        let mut seen = |key: &dyn Fn() -> String, method: &str| -> Result<(), Misfit> {
            let other = cases.entry(method.to_ascii_lowercase()).or_insert_with(|| method.to_owned());
            if other != method {
                return Err(misfit(key(), method, format!("{method:?} and {other:?} differ in case only")));
            }
            Ok(())
        };
        if table.roles.0.len() > MOST {
            return Err(misfit("roles".into(), "roles", format!("has more than {MOST} entries")));
        }
        for (number, (name, role)) in table.roles.0.iter().enumerate() {
            for (list, word, allows) in [(&role.allow, "allow", true), (&role.deny, "deny", false)] {
                for (index, Method(method)) in list.iter().enumerate() {
                    seen(&|| format!("roles.{name}.{word}[{index}]"), method)?;
                    methods.at(method).rules.push((number, allows, texts.len()));
                    texts.push(format!("role {name}: {word} {method}").into());
                }
            }
        }
        let roles_of = |key: &dyn Fn(usize) -> String, names: &[String]| -> Result<Bits, Misfit> {
            let mut bits = Bits::default();
            for (index, name) in names.iter().enumerate() {
                let Some(role) = table.roles.0.iter().position(|(role, _)| role == name) else {
                    return Err(misfit(key(index), name, format!("there is no role {name:?}")));
                };
                bits.set(role);
            }
            Ok(bits)
        };
        let mut principals = Paths::<Granted>::default();
        for (number, binding) in table.bindings.iter().enumerate() {
            let roles = roles_of(&|index| format!("bindings[{number}].roles[{index}]"), &binding.roles)?;
            for PrincipalPattern(principal) in &binding.principals {
                principals.at(principal).roles.add(&roles);
            }
        }
        let mut credential_roles = BTreeMap::new();
        for (name, roles) in &table.credential_roles.0 {
            let roles = roles_of(&|index| format!("credential_roles.{name}[{index}]"), roles)?;
            credential_roles.insert(name.clone(), roles);
        }
        let limits = table.limits.into_iter().enumerate().map(|(number, limit)| {
            let LimitEntry { principals, methods, per_second, burst } = limit;
            let rate = Rate::Bucket { per_second, burst: burst.unwrap_or(per_second) };
            (format!("limits[{number}]"), principals, methods, rate)
        });
        let quotas = table.quotas.into_iter().enumerate().map(|(number, quota)| {
            let QuotaEntry { principals, methods, calls, seconds } = quota;
            (
                format!("quotas[{number}]"),
                principals,
                methods,
                Rate::Quota { calls, window_us: seconds * 1_000_000 },
            )
        });
        let mut all = Vec::new();
        for (key, of, over, rate) in limits.chain(quotas) {
            if all.len() == MOST {
                return Err(misfit(key, "[[", format!("there are more than {MOST} limits and quotas")));
            }
            for PrincipalPattern(principal) in &of {
                principals.at(principal).limits.set(all.len());
            }
            for (index, Method(method)) in over.iter().enumerate() {
                seen(&|| format!("{key}.methods[{index}]"), method)?;
                methods.at(method).limits.set(all.len());
            }
            let of: Vec<&str> = of.iter().map(|of| of.0.as_str()).collect();
            let over: Vec<&str> = over.iter().map(|over| over.0.as_str()).collect();
            all.push(Limit::new(rate, &of, &over));
        }
        let version =
            hex(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref())[..32].to_owned();
        Ok(Self { version, principals, credential_roles, methods, texts, limits: all })
    }
}

/// Values by text: one text's own, and of all texts that go on after one that ends in `/` or `:`.
#[derive(Debug)]
struct Paths<T> {
    exact: Option<T>,
    below: Option<T>,
    /// By the next piece, up to and with the next `/` or `:`.
    next: BTreeMap<Box<str>, Paths<T>>,
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Self { exact: None, below: None, next: BTreeMap::new() }
    }
}

/// The text up to and with its first border, and what comes then.
fn piece(text: &str) -> (&str, &str) {
    let border = text.bytes().position(|byte| matches!(byte, b'/' | b':'));
    text.split_at(border.map_or(text.len(), |border| border + 1))
}

impl<T: Default> Paths<T> {
    /// The value of a pattern: a text, or one whose last character is a `*` after a border.
    fn at(&mut self, pattern: &str) -> &mut T {
        let (mut rest, below) = pattern.strip_suffix('*').map_or((pattern, false), |rest| (rest, true));
        let mut node = self;
        while !rest.is_empty() {
            let (first, after) = piece(rest);
            node = node.next.entry(first.into()).or_default();
            rest = after;
        }
        (if below { &mut node.below } else { &mut node.exact }).get_or_insert_default()
    }

    /// Every value whose pattern matches, the widest first.
    fn visit<'a>(&'a self, text: &str, mut visit: impl FnMut(&'a T)) {
        let (mut node, mut rest) = (self, text);
        while !rest.is_empty() {
            if let Some(below) = &node.below {
                visit(below);
            }
            let (first, after) = piece(rest);
            match node.next.get(first) {
                Some(next) => (node, rest) = (next, after),
                None => return,
            }
        }
        if let Some(exact) = &node.exact {
            visit(exact);
        }
    }
}

/// A set of numbers below [`MOST`].
#[derive(Clone, Copy, Debug, Default)]
struct Bits([u64; MOST / 64]);

impl Bits {
    fn set(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    fn has(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
    }

    fn keep(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, others)| *word &= others);
    }

    fn all(self) -> impl Iterator<Item = usize> + Clone {
        self.0.into_iter().enumerate().flat_map(|(word, mut bits)| {
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(word * 64 + bit)
            })
        })
    }
}

/// Why no rule can name the method; `None` when one can.
fn not_canonical(method: &str) -> Option<&'static str> {
    let segment = |last: u8| match last {
        b'/' => Some("has an empty segment"),
        b'.' => Some("has a segment that ends in a dot"),
        _ => None,
    };
    if !method.starts_with('/') {
        return Some("does not begin with /");
    }
    if method.len() > LONGEST_METHOD {
        return Some("is longer than 512 bytes, as no method is");
    }
    let mut last = b'/';
    for byte in method.bytes().skip(1) {
        let wrong = match byte {
            b'/' => segment(last),
            b'%' => Some("has a %, and nothing is decoded"),
            b'\\' => Some("has a \\"),
            b'!'..=b'~' => None,
            _ => Some("has a character that is not printable ASCII"),
        };
        if wrong.is_some() {
            return wrong;
        }
        last = byte;
    }
    segment(last)
}

#[derive(Clone, Copy)]
enum Format {
    Toml,
    Json,
}

/// A file as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(rename = "version", deserialize_with = "first_version")]
    _version: (),
    #[serde(default)]
    roles: Entries<Role>,
    #[serde(default)]
    bindings: Vec<Binding>,
    #[serde(default)]
    credential_roles: Entries<Vec<String>>,
    #[serde(default)]
    limits: Vec<LimitEntry>,
    #[serde(default)]
    quotas: Vec<QuotaEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Role {
    #[serde(default)]
    allow: Vec<Method>,
    #[serde(default)]
    deny: Vec<Method>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Binding {
    principals: Vec<PrincipalPattern>,
    roles: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitEntry {
    principals: Vec<PrincipalPattern>,
    #[serde(default = "all_methods")]
    methods: Vec<Method>,
    #[serde(deserialize_with = "ranged::<_, 1_000_000_000>")]
    per_second: u64,
    #[serde(default, deserialize_with = "ranged_some::<_, 1_000_000_000>")]
    burst: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaEntry {
    principals: Vec<PrincipalPattern>,
    #[serde(default = "all_methods")]
    methods: Vec<Method>,
    #[serde(deserialize_with = "ranged::<_, 1_000_000_000_000>")]
    calls: u64,
    #[serde(deserialize_with = "ranged::<_, 31_622_400>")]
    seconds: u64,
}

fn all_methods() -> Vec<Method> {
    vec![Method("/*".into())]
}

fn first_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    match i64::deserialize(deserializer)? {
        1 => Ok(()),
        other => Err(de::Error::custom(format!("{other} is not known; this is version 1"))),
    }
}

fn ranged<'de, D: Deserializer<'de>, const TO: u64>(deserializer: D) -> Result<u64, D::Error> {
    let value = i64::deserialize(deserializer)?;
    match u64::try_from(value) {
        Ok(value) if (1..=TO).contains(&value) => Ok(value),
        _ => Err(de::Error::custom(format!("{value} is out of range; write a number from 1 to {TO}"))),
    }
}

fn ranged_some<'de, D: Deserializer<'de>, const TO: u64>(deserializer: D) -> Result<Option<u64>, D::Error> {
    ranged::<_, TO>(deserializer).map(Some)
}

/// A canonical method, or all below one.
struct Method(String);

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let path = text.strip_suffix("/*").unwrap_or(&text);
        let wrong = match path {
            "" if text == "/*" => None,
            _ if path.contains('*') => Some("may have one *, after its last /"),
            _ => not_canonical(path),
        };
        match wrong {
            Some(why) => Err(de::Error::custom(format!("method {text:?} can never match: it {why}"))),
            None => Ok(Self(text)),
        }
    }
}

/// A principal, or all below one.
struct PrincipalPattern(String);

impl<'de> Deserialize<'de> for PrincipalPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let fixed = text.strip_suffix('*').unwrap_or(&text);
        let known = ["spiffe://", "dns:", "sub:", "uid:"]
            .iter()
            .any(|kind| fixed.starts_with(kind) && (text.len() > kind.len()));
        let why = match () {
            () if text == "*" || text == Principal::ANONYMOUS => return Ok(Self(text)),
            () if !known => {
                "begins with none of spiffe://, dns:, sub: and uid:, and is neither anonymous nor *"
            }
            () if fixed.len() < text.len() && !fixed.ends_with(['/', ':']) => {
                "may have its * after a / or : only"
            }
            () => return Ok(Self(text)),
        };
        Err(de::Error::custom(format!("principal {text:?} can never match: it {why}")))
    }
}

/// A table in its order, whose keys may stand once only.
struct Entries<T>(Vec<(String, T)>);

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(BTreeMap<String, T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = BTreeMap<String, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: de::MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
                while let Some(key) = map.next_key::<String>()? {
                    if self.0.contains_key(&key) {
                        return Err(de::Error::custom(format!("{key:?} stands there twice")));
                    }
                    let value = map.next_value()?;
                    self.0.insert(key, value);
                }
                Ok(self.0)
            }
        }
        Ok(Self(deserializer.deserialize_map(Visitor(BTreeMap::new()))?.into_iter().collect()))
    }
}

/// What is wrong with a text.
#[derive(Debug)]
struct Wrong {
    line: Option<usize>,
    key: Option<String>,
    message: String,
}

/// What is wrong with a file that is well written: the key, and the name that does not fit.
struct Misfit {
    key: String,
    name: String,
    message: String,
}

impl Wrong {
    fn status(self, file: &str) -> Status {
        let mut text = file.to_owned();
        if let Some(line) = self.line {
            text.push_str(&format!(":{line}"));
        }
        if let Some(key) = self.key {
            text.push_str(&format!(": {key}"));
        }
        Status::from_reason(Reason::INVALID_CONFIGURATION, format!("{text}: {}", self.message))
    }
}

impl Table {
    fn parse(text: &str, format: Format) -> Result<Self, Wrong> {
        let key_of = |path: &serde_path_to_error::Path| {
            Some(path.to_string()).filter(|path| !matches!(path.as_str(), "" | "." | "?"))
        };
        match format {
            Format::Toml => {
                let line_of = |error: &toml::de::Error| {
                    let before = &text.as_bytes()[..error.span()?.start.min(text.len())];
                    Some(before.iter().filter(|byte| **byte == b'\n').count() + 1)
                };
                let deserializer = toml::Deserializer::parse(text).map_err(|error| Wrong {
                    line: line_of(&error),
                    key: None,
                    message: error.message().to_owned(),
                })?;
                serde_path_to_error::deserialize(deserializer).map_err(|error| {
                    let key = key_of(error.path());
                    let error = error.into_inner();
                    Wrong { line: line_of(&error), key, message: error.message().to_owned() }
                })
            }
            Format::Json => {
                let mut deserializer = serde_json::Deserializer::from_str(text);
                let table = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
                    let key = key_of(error.path());
                    (key, error.into_inner())
                });
                let table =
                    table.and_then(|table| deserializer.end().map(|()| table).map_err(|error| (None, error)));
                table.map_err(|(key, error)| {
                    // The parser's own position would repeat ours.
                    let message = error.to_string();
                    let end = message.rfind(" at line ").unwrap_or(message.len());
                    Wrong { line: Some(error.line()), key, message: message[..end].to_owned() }
                })
            }
        }
    }
}
