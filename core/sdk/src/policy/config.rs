//! The service config: the policies as data, in JSON. What there is to set is one table of keys, which reads, checks and documents.

use std::{collections::HashMap, fmt, ops::RangeInclusive, time::Duration};

use valkyrie_protocol::{Code, Reason, Status};

use super::{
    BalanceConfig, BalancePolicy, BreakerPolicy, BudgetPolicy, Codes, HealthPolicy, HedgePolicy,
    OutlierPolicy, ReconnectPolicy, RetryPolicy, ThrottlePolicy,
    json::{Json, Value},
};

/// The policies of one client. Immutable: a new one takes the place of the old one, and calls that began keep what they had.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceConfig {
    /// What may be sent beyond the calls.
    pub retry_budget: BudgetPolicy,
    /// When the client refuses its own calls.
    pub throttle: ThrottlePolicy,
    /// How backends share the calls.
    pub balance: BalanceConfig,
    /// Which backends are ejected.
    pub outlier: OutlierPolicy,
    /// When backends are dialled again.
    pub reconnect: ReconnectPolicy,
    /// How many connections a backend may have.
    pub connections: ConnectionsPolicy,
    /// Whether backends are asked for their health.
    pub health: HealthPolicy,
    default: MethodPolicy,
    /// By name, and by prefix including its last slash.
    methods: HashMap<String, MethodPolicy>,
}

/// How many connections a client makes to one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionsPolicy {
    /// The most that there may be: a further one is made when all have as many calls as the backend takes streams over each (its
    /// max_concurrent_streams). Default 1: calls wait for a stream then, and a backend that bounds its streams is not asked for a multiple
    /// of them unless somebody who knows it says so (gRFC A105, which is opt-in, too).
    pub max_per_server: u32,
    /// After so long without a call, and before twice as long, a further one is closed. Default 30 s.
    pub idle: Duration,
}

impl Default for ConnectionsPolicy {
    fn default() -> Self {
        Self { max_per_server: 1, idle: Duration::from_secs(30) }
    }
}

/// The policies of one method's calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MethodPolicy {
    /// The time limit of calls that give none. Default: the client's.
    pub timeout: Option<Duration>,
    /// Whether a call may be executed twice. Default false.
    pub idempotent: bool,
    /// How calls are tried again.
    pub retry: RetryPolicy,
    /// How copies of them are sent beside the first.
    pub hedge: HedgePolicy,
    /// When a backend gets none of them.
    pub breaker: BreakerPolicy,
}

impl ServiceConfig {
    /// The longest text that is read, in bytes.
    pub const MAX_BYTES: usize = 256 << 10;
    /// The most entries of `methods`.
    pub const MAX_METHODS: usize = 1_000;

    /// Reads a config: an object with the keys of docs/policies.md. What it does not set has its default.
    ///
    /// # Errors
    /// INVALID_CONFIGURATION with the line, the key, the value and what to write instead, for a text that is no JSON, a key that
    /// is not known or stands twice, a value of the wrong type or out of its range, and two values that contradict each other.
    pub fn parse(text: &str) -> Result<Self, Status> {
        if text.len() > Self::MAX_BYTES {
            let sizes = format!("it has {} bytes, more than {}", text.len(), Self::MAX_BYTES);
            return invalid(1, "", &sizes);
        }
        let root = match Json::parse(text) {
            Ok(root) => root,
            Err(wrong) => return invalid(wrong.line, "", &wrong.what),
        };
        let mut config = Self::default();
        let Value::Object(members) = &root.value else {
            return wrong_value(&root, "", "an object such as {\"methods\": []}");
        };
        for (key, value) in members {
            if key == "methods" {
                config.read_methods(value)?;
            } else {
                read("", "", key, value, CLIENT_KEYS, &["methods"], &mut |key, setting| {
                    (key.set)(&mut config, setting);
                })?;
            }
        }
        if config.reconnect.base > config.reconnect.cap {
            return invalid(root.line, "reconnect.base_ms", "it is more than reconnect.cap_ms");
        }
        Ok(config)
    }

    /// The policies of a method: what the most specific name says, its exact one before the longest prefix before `*`; and what
    /// that one leaves out, the next less specific one, key by key.
    #[inline]
    pub fn method(&self, path: &str) -> &MethodPolicy {
        if self.methods.is_empty() { &self.default } else { self.most_specific(path) }
    }

    fn most_specific(&self, path: &str) -> &MethodPolicy {
        self.methods.get(path).unwrap_or_else(|| self.covering(path))
    }

    /// Of the names that end in `/*`, the longest that covers the path.
    fn covering(&self, path: &str) -> &MethodPolicy {
        path.rmatch_indices('/')
            .find_map(|(slash, _)| self.methods.get(&path[..=slash]))
            .unwrap_or(&self.default)
    }

    fn read_methods(&mut self, list: &Json<'_>) -> Result<(), Status> {
        let Value::List(entries) = &list.value else {
            return wrong_value(list, "methods", "a list such as [{\"names\": [\"/store.Items/*\"]}]");
        };
        if entries.len() > Self::MAX_METHODS {
            let more = format!("it has {} entries, more than {}", entries.len(), Self::MAX_METHODS);
            return invalid(list.line, "methods", &more);
        }
        // Name, line, entry.
        let mut names: Vec<(String, u32, usize)> = Vec::new();
        let mut settings = Vec::new();
        for (number, entry) in entries.iter().enumerate() {
            let path = format!("methods[{number}]");
            let Value::Object(members) = &entry.value else {
                return wrong_value(entry, &path, "an object such as {\"names\": [\"*\"]}");
            };
            let mut own = Vec::new();
            let before = names.len();
            for (key, value) in members {
                if key == "names" {
                    for name in read_names(value, &format!("{path}.names"))? {
                        names.push((name, value.line, number));
                    }
                } else {
                    read(
                        &format!("{path}."),
                        "",
                        key,
                        value,
                        METHOD_KEYS,
                        &["names"],
                        &mut |key, setting| {
                            own.push((key, setting));
                        },
                    )?;
                }
            }
            if names.len() == before {
                return invalid(
                    entry.line,
                    &format!("{path}.names"),
                    "it is missing; write for example [\"*\"]",
                );
            }
            settings.push(own);
        }
        // The less specific come first, so that the others can begin with what these say.
        let rank = |(name, ..): &(String, u32, usize)| match &name[..] {
            "*" => 0,
            prefix if prefix.ends_with('/') => prefix.len(),
            _ => usize::MAX,
        };
        let mut next = names.iter().map(rank).min();
        let mut has_default = false;
        while let Some(least) = next {
            for named in names.iter().filter(|named| rank(named) == least) {
                let (name, line, number) = named;
                let path = format!("methods[{number}]");
                let all = least == 0;
                if self.methods.contains_key(name) || (all && std::mem::replace(&mut has_default, true)) {
                    let star = if name.ends_with('/') { "*" } else { "" };
                    let twice = format!("{:?} is named twice", name.clone() + star);
                    return invalid(*line, &format!("{path}.names"), &twice);
                }
                let mut policy = *if all { &self.default } else { self.covering(name) };
                for (key, setting) in &settings[*number] {
                    (key.set)(&mut policy, setting.clone());
                }
                if policy.retry.backoff.base > policy.retry.backoff.cap {
                    return invalid(*line, &format!("{path}.retry.base_ms"), "it is more than retry.cap_ms");
                }
                if policy.breaker.open > policy.breaker.open_cap {
                    let key = format!("{path}.breaker.open_ms");
                    return invalid(*line, &key, "it is more than breaker.open_cap_ms");
                }
                if all {
                    self.default = policy;
                } else {
                    self.methods.insert(name.clone(), policy);
                }
            }
            next = names.iter().map(rank).filter(|further| *further > least).min();
        }
        Ok(())
    }
}

/// Names of methods, prefixes without their star.
fn read_names(list: &Json<'_>, path: &str) -> Result<Vec<String>, Status> {
    let example = "a list of names such as \"/store.Items/Get\", \"/store.Items/*\" or \"*\"";
    let Value::List(items) = &list.value else { return wrong_value(list, path, example) };
    let mut names = Vec::new();
    for item in items {
        let Value::Text(name) = &item.value else { return wrong_value(item, path, example) };
        let prefix = name.strip_suffix("/*");
        let bare = prefix.unwrap_or(name);
        let is_path =
            name.starts_with('/') && !bare.contains('*') && (prefix.is_some() || !name.ends_with('/'));
        if name != "*" && !is_path {
            return wrong_value(item, path, example);
        }
        names.push(prefix.map_or_else(|| name.clone(), |prefix| format!("{prefix}/")));
    }
    Ok(names)
}

/// A value that a key can have.
#[derive(Clone, Debug, PartialEq)]
enum Setting {
    None,
    /// A number, in thousandths.
    Number(u64),
    Flag(bool),
    Codes(Codes),
    Balance(BalancePolicy),
    Text(String),
}

impl Setting {
    fn thousandths(self) -> u64 {
        if let Setting::Number(number) = self { number } else { 0 }
    }

    fn whole(self) -> u64 {
        self.thousandths() / 1_000
    }

    fn small(self) -> u32 {
        u32::try_from(self.whole()).unwrap_or(u32::MAX)
    }

    fn time(self) -> Duration {
        Duration::from_millis(self.whole())
    }

    #[cfg(test)]
    fn of(number: impl Into<u64>) -> Self {
        Setting::Number(number.into().saturating_mul(1_000))
    }

    #[cfg(test)]
    fn of_time(time: Duration) -> Self {
        Self::of(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::None => f.write_str("null"),
            Setting::Number(number) if number % 1_000 == 0 => write!(f, "{}", number / 1_000),
            Setting::Number(number) => {
                let decimals = format!("{:03}", number % 1_000);
                write!(f, "{}.{}", number / 1_000, decimals.trim_end_matches('0'))
            }
            Setting::Flag(flag) => write!(f, "{flag}"),
            Setting::Codes(codes) => {
                let names: Vec<String> = codes.iter().map(|code| format!("\"{code}\"")).collect();
                write!(f, "[{}]", names.join(", "))
            }
            Setting::Balance(policy) => write!(f, "\"{}\"", balance_name(*policy)),
            Setting::Text(text) => write!(f, "\"{text}\""),
        }
    }
}

const BALANCES: [BalancePolicy; 3] =
    [BalancePolicy::PickFirst, BalancePolicy::RoundRobin, BalancePolicy::LeastRequest];

fn balance_name(policy: BalancePolicy) -> &'static str {
    match policy {
        BalancePolicy::PickFirst => "pick_first",
        BalancePolicy::RoundRobin => "round_robin",
        BalancePolicy::LeastRequest => "least_request",
    }
}

/// What values a key takes. Numbers in thousandths.
enum Kind {
    Whole(RangeInclusive<u64>),
    Decimal(RangeInclusive<u64>),
    /// A whole number or null.
    Optional(RangeInclusive<u64>),
    Flag,
    Codes,
    Balance,
    /// Text of so many bytes at most, or null.
    Text(usize),
}

impl Kind {
    fn read(&self, json: &Json<'_>) -> Option<Setting> {
        let setting = match (&json.value, self) {
            (Value::Number(number), Kind::Whole(range) | Kind::Optional(range))
                if number % 1_000 == 0 && range.contains(number) =>
            {
                Setting::Number(*number)
            }
            (Value::Number(number), Kind::Decimal(range)) if range.contains(number) => {
                Setting::Number(*number)
            }
            (Value::Null, Kind::Optional(_) | Kind::Text(_)) => Setting::None,
            (Value::Text(text), Kind::Text(most)) if text.len() <= *most => Setting::Text(text.clone()),
            (Value::Flag(flag), Kind::Flag) => Setting::Flag(*flag),
            (Value::List(items), Kind::Codes) => {
                let code = |item: &Json<'_>| match &item.value {
                    Value::Text(name) => Code::from_name(name).filter(|code| *code != Code::Ok),
                    _ => None,
                };
                Setting::Codes(Codes::of(&items.iter().map(code).collect::<Option<Vec<_>>>()?))
            }
            (Value::Text(name), Kind::Balance) => {
                Setting::Balance(BALANCES.into_iter().find(|policy| balance_name(*policy) == name)?)
            }
            _ => return None,
        };
        Some(setting)
    }

    fn range(&self) -> String {
        let ends = |range: &RangeInclusive<u64>| {
            format!("{} to {}", Setting::Number(*range.start()), Setting::Number(*range.end()))
        };
        match self {
            Kind::Whole(range) | Kind::Decimal(range) => ends(range),
            Kind::Optional(range) => format!("{}, or null", ends(range)),
            Kind::Flag => "true or false".to_owned(),
            Kind::Codes => "names of codes but OK".to_owned(),
            Kind::Balance => BALANCES.map(balance_name).join(", "),
            Kind::Text(most) => format!("{most} bytes at most, or null"),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Kind::Whole(_) | Kind::Optional(_) => "whole number",
            Kind::Decimal(_) => "number with up to three decimals",
            Kind::Flag => "boolean",
            Kind::Codes => "list",
            Kind::Balance | Kind::Text(_) => "text",
        }
    }
}

/// One thing to set in `T`.
struct Key<T: 'static> {
    path: &'static str,
    kind: Kind,
    set: fn(&mut T, Setting),
    #[cfg(test)]
    get: fn(&T) -> Setting,
    /// What it is, and where the default comes from, for docs/policies.md.
    #[cfg(test)]
    about: [&'static str; 2],
}

/// Reads one member of an object, and what is below it.
fn read<T>(
    outside: &str,
    above: &str,
    key: &str,
    json: &Json<'_>,
    keys: &'static [Key<T>],
    others: &[&str],
    set: &mut dyn FnMut(&'static Key<T>, Setting),
) -> Result<(), Status> {
    let path = format!("{above}{key}");
    let shown = format!("{outside}{path}");
    if let Some(key) = keys.iter().find(|key| key.path == path) {
        let Some(setting) = key.kind.read(json) else {
            let expected = format!("a {}: {}", key.kind.name(), key.kind.range());
            return wrong_value(json, &shown, &expected);
        };
        set(key, setting);
        return Ok(());
    }
    let below = format!("{path}.");
    if !keys.iter().any(|key| key.path.starts_with(&below)) {
        let mut known: Vec<&str> = others.to_vec();
        known.extend(keys.iter().filter_map(|key| key.path.strip_prefix(above)?.split('.').next()));
        known.dedup();
        let shown = format!("{outside}{above}{}", cut(key));
        return invalid(json.line, &shown, &format!("there is no such key; there are {}", known.join(", ")));
    }
    let Value::Object(members) = &json.value else { return wrong_value(json, &shown, "an object") };
    members.iter().try_for_each(|(key, json)| read(outside, &below, key, json, keys, &[], set))
}

/// As much of a text as belongs in a message.
fn cut(text: &str) -> String {
    let mut cut: String = text.escape_debug().take(48).collect();
    if text.len() > 48 {
        cut.push('…');
    }
    cut
}

fn wrong_value<T>(json: &Json<'_>, path: &str, expected: &str) -> Result<T, Status> {
    invalid(json.line, path, &format!("{} is not {expected}", cut(json.text)))
}

fn invalid<T>(line: u32, path: &str, what: &str) -> Result<T, Status> {
    let colon = if path.is_empty() { "" } else { ": " };
    let message = format!("service config, line {line}: {path}{colon}{what}");
    Err(Status::from_reason(Reason::INVALID_CONFIGURATION, message))
}

macro_rules! keys {
    ($($path:literal $kind:ident $(($min:literal ..= $max:expr))? $($field:ident).+, $what:literal, $source:literal;)*) => {
        &[$(Key {
            path: $path,
            kind: keys!(@kind $kind $($min, $max)?),
            set: |policy, setting| keys!(@set $kind policy.$($field).+, setting),
            #[cfg(test)]
            get: |policy| keys!(@get $kind policy.$($field).+),
            #[cfg(test)]
            about: [$what, $source],
        }),*]
    };
    (@kind decimal $min:literal, $max:expr) => { Kind::Decimal($min..=$max) };
    (@kind optional_ms $min:literal, $max:expr) => { Kind::Optional($min * 1_000..=$max * 1_000) };
    (@kind flag) => { Kind::Flag };
    (@kind codes) => { Kind::Codes };
    (@kind balance) => { Kind::Balance };
    (@kind optional_text) => { Kind::Text(MAX_NAME) };
    (@kind $kind:ident $min:literal, $max:expr) => { Kind::Whole($min * 1_000..=$max * 1_000) };
    (@get decimal $field:expr) => { Setting::Number($field.into()) };
    (@get ms $field:expr) => { Setting::of_time($field) };
    (@get optional_ms $field:expr) => { $field.map_or(Setting::None, Setting::of_time) };
    (@get flag $field:expr) => { Setting::Flag($field) };
    (@get codes $field:expr) => { Setting::Codes($field) };
    (@get balance $field:expr) => { Setting::Balance($field) };
    (@get optional_text $field:expr) => { $field.clone().map_or(Setting::None, Setting::Text) };
    (@get $kind:ident $field:expr) => { Setting::of($field) };
    (@set count $field:expr, $setting:ident) => { $field = $setting.small() };
    (@set bytes $field:expr, $setting:ident) => { $field = $setting.whole() };
    (@set decimal $field:expr, $setting:ident) => {
        $field = u32::try_from($setting.thousandths()).unwrap_or(u32::MAX)
    };
    (@set ms $field:expr, $setting:ident) => { $field = $setting.time() };
    (@set optional_ms $field:expr, $setting:ident) => {
        $field = Some($setting).filter(|setting| *setting != Setting::None).map(Setting::time)
    };
    (@set optional_text $field:expr, $setting:ident) => {
        $field = if let Setting::Text(text) = $setting { Some(text) } else { None }
    };
    (@set flag $field:expr, $setting:ident) => { $field = $setting == Setting::Flag(true) };
    (@set codes $field:expr, $setting:ident) => {
        $field = if let Setting::Codes(codes) = $setting { codes } else { Codes::NONE }
    };
    (@set balance $field:expr, $setting:ident) => {
        $field = if let Setting::Balance(policy) = $setting { policy } else { BalancePolicy::default() }
    };
}

/// A day in milliseconds: more is a slip of the pen.
const DAY: u64 = 86_400_000;

/// The longest name of a service, in bytes: as that of a method (PROTOCOL.md, W5-10).
const MAX_NAME: usize = 512;

const METHOD_KEYS: &[Key<MethodPolicy>] = keys! {
    "timeout_ms" optional_ms (1..=DAY) timeout, "time limit of calls that give none; null: the client's", "ours";
    "idempotent" flag idempotent, "whether a call may be executed twice", "ours: nothing runs twice unasked";
    "retry.transparent" flag retry.transparent, "whether a call that reached no handler is sent again at once", "gRFC A6";
    "retry.max_attempts" count (1..=5) retry.max_attempts, "attempts, the first one counted", "gRFC A6, SRE book";
    "retry.base_ms" ms (1..=DAY) retry.backoff.base, "the most that is waited before the first retry", "gRFC A44";
    "retry.multiplier" decimal (1_000..=10_000) retry.backoff.multiplier_thousandths, "growth with each retry", "gRFC A6";
    "retry.cap_ms" ms (1..=DAY) retry.backoff.cap, "the most that is ever waited", "gRFC A6";
    "retry.codes" codes retry.codes, "codes to try again after", "gRFC A6";
    "retry.attempt_timeout_ms" optional_ms (1..=DAY) retry.attempt_timeout, "time limit of each attempt", "ours";
    "retry.buffer_bytes" bytes (0..=67_108_864_u64) retry.buffer_bytes, "bytes of a call kept for another attempt", "gRPC's per-call buffer";
    "hedge.enabled" flag hedge.enabled, "whether idempotent unary calls are sent again beside the first instead of after it", "gRFC A6";
    "hedge.max_copies" count (1..=5) hedge.max_copies, "copies of a call, the first one counted", "gRFC A6";
    "hedge.delay_ms" optional_ms (1..=DAY) hedge.delay, "wait before the next copy; null: the method's 95th percentile", "gRFC A6; The tail at scale";
    "hedge.codes" codes hedge.codes, "codes to send the next copy at once after", "gRFC A6";
    "breaker.enabled" flag breaker.enabled, "whether there is one", "between resilience4j and Polly";
    "breaker.failure_percent" count (1..=100) breaker.failure_percent, "failures that open it", "resilience4j";
    "breaker.slow_percent" count (1..=100) breaker.slow_percent, "slow calls that open it", "between resilience4j and Polly";
    "breaker.slow_call_ms" optional_ms (1..=DAY) breaker.slow_call, "a call that takes so long is slow; null: none", "ours";
    "breaker.min_calls" count (1..=1_000_000) breaker.min_calls, "fewer calls in the window open nothing", "between resilience4j and Polly";
    "breaker.window_ms" ms (100..=DAY) breaker.window, "how long calls are remembered", "between resilience4j and Polly";
    "breaker.open_ms" ms (1..=DAY) breaker.open, "how long it is open at first", "Polly";
    "breaker.open_cap_ms" ms (1..=DAY) breaker.open_cap, "how long at most, after doubling", "between resilience4j and Polly";
    "breaker.probes" count (1..=1_000) breaker.probes, "trial calls that must succeed", "between resilience4j and Polly";
    "breaker.codes" codes breaker.codes, "codes that count as failures", "ours";
};

const CLIENT_KEYS: &[Key<ServiceConfig>] = keys! {
    "retry_budget.tokens" count (0..=1_000_000) retry_budget.tokens, "what the bucket holds, and begins with", "AWS SDKs";
    "retry_budget.cost" count (1..=1_000_000) retry_budget.cost, "what a retry or a copy costs", "AWS SDKs, 2026";
    "retry_budget.throttled_cost" count (1..=1_000_000) retry_budget.throttled_cost, "what a retry after RESOURCE_EXHAUSTED costs", "AWS SDKs";
    "retry_budget.refund" count (0..=1_000_000) retry_budget.refund, "what a success without a retry gives back", "AWS SDKs";
    "retry_budget.extra_percent" count (0..=100) retry_budget.extra_percent, "retries and copies in 10 s, of the calls", "SRE book";
    "retry_budget.extra_per_second" count (0..=1_000_000) retry_budget.extra_per_second, "retries and copies that are always allowed, as a mean of 10 s", "Finagle";
    "throttle.enabled" flag throttle.enabled, "whether the client refuses its own calls", "SRE book";
    "throttle.k" decimal (1_000..=100_000) throttle.k_thousandths, "calls sent for each that is accepted", "SRE book";
    "throttle.min_calls" count (0..=1_000_000) throttle.min_calls, "with fewer attempts in the window none is refused", "ours";
    "throttle.window_ms" ms (1_000..=DAY) throttle.window, "how long calls are remembered", "SRE book";
    "balance.policy" balance balance.policy, "how a backend is chosen", "ours";
    "balance.overprovisioning_percent" count (100..=1_000) balance.overprovisioning_percent, "what a level can take beyond its usable share", "Envoy";
    "balance.panic_percent" count (0..=100) balance.panic_percent, "with a smaller usable share health is ignored", "Envoy";
    "outlier.enabled" flag outlier.enabled, "whether outliers are ejected", "ours";
    "outlier.interval_ms" ms (100..=DAY) outlier.interval, "time between two comparisons", "gRFC A50";
    "outlier.base_ejection_ms" ms (1..=DAY) outlier.base_ejection, "length of the first ejection", "gRFC A50";
    "outlier.ejection_cap_ms" ms (1..=DAY) outlier.ejection_cap, "length of the longest", "gRFC A50";
    "outlier.max_ejected_percent" count (0..=100) outlier.max_ejected_percent, "backends ejected at most; one always may be", "gRFC A50";
    "outlier.success_rate.enforced_percent" count (0..=100) outlier.success_rate.enforced_percent, "chance that an outlier is ejected", "gRFC A50";
    "outlier.success_rate.stdev_factor" decimal (0..=100_000) outlier.success_rate.stdev_factor_thousandths, "standard deviations below the mean", "gRFC A50";
    "outlier.success_rate.min_hosts" count (1..=1_000_000) outlier.success_rate.min_hosts, "fewer backends are not compared", "gRFC A50";
    "outlier.success_rate.min_calls" count (1..=1_000_000) outlier.success_rate.min_calls, "fewer calls are not compared", "gRFC A50";
    "outlier.failure_percentage.enforced_percent" count (0..=100) outlier.failure_percentage.enforced_percent, "chance that a backend above the threshold is ejected", "Envoy";
    "outlier.failure_percentage.threshold_percent" count (0..=100) outlier.failure_percentage.threshold_percent, "more failures than this", "gRFC A50";
    "outlier.failure_percentage.min_hosts" count (1..=1_000_000) outlier.failure_percentage.min_hosts, "with fewer backends none is ejected", "gRFC A50";
    "outlier.failure_percentage.min_calls" count (1..=1_000_000) outlier.failure_percentage.min_calls, "fewer calls are not judged", "gRFC A50";
    "reconnect.base_ms" ms (1..=DAY) reconnect.base, "wait after the first failure", "gRPC connection backoff";
    "reconnect.multiplier" decimal (1_000..=10_000) reconnect.multiplier_thousandths, "growth with each failure", "gRPC connection backoff";
    "reconnect.jitter_percent" count (0..=100) reconnect.jitter_percent, "how much of the wait is random, up or down", "gRPC connection backoff";
    "reconnect.cap_ms" ms (1..=DAY) reconnect.cap, "the longest wait, jitter included", "ours; gRPC 120 s";
    "connections.max_per_server" count (1..=100) connections.max_per_server, "connections to one server at most; a further one is made when all carry as many calls as it takes streams", "gRFC A105, which is opt-in";
    "connections.idle_ms" ms (100..=DAY) connections.idle, "a further one that had no call for so long is closed before twice that time", "ours";
    "health.service" optional_text health.service, "what each server is asked about on each connection, the empty text for the server itself; it gets calls while it says that it serves; null: nobody is asked", "gRFC A17";
};

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> ServiceConfig {
        ServiceConfig::parse(text).unwrap_or_else(|status| panic!("{text}: {status}"))
    }

    fn refusal(text: &str) -> String {
        let status = ServiceConfig::parse(text).expect_err(text);
        assert_eq!(status.reason(), Reason::INVALID_CONFIGURATION);
        status.message().to_owned()
    }

    /// `"a.b"` with its value, as nested objects.
    fn nested(path: &str, value: &str) -> String {
        path.rsplit('.').fold(value.to_owned(), |inner, key| format!("{{\"{key}\": {inner}}}"))
    }

    fn in_a_method(path: &str, value: &str) -> String {
        let nested = nested(path, value);
        format!("{{\"methods\": [{{\"names\": [\"*\"], {}]}}", &nested[1..])
    }

    #[test]
    fn an_empty_config_is_the_default() {
        assert_eq!(parsed("{}"), ServiceConfig::default());
        assert_eq!(parsed(" {\"methods\": []}\n"), ServiceConfig::default());
        assert_eq!(*ServiceConfig::default().method("/a/b"), MethodPolicy::default());
    }

    #[test]
    fn every_key_is_read_to_its_place_and_takes_its_bounds_only() {
        fn values(kind: &Kind) -> (Vec<String>, Vec<String>) {
            let mut bad: Vec<String> =
                ["\"x\"", "{}", "[1]", "-1", "1e3", "0.0001", "99999999999999999999", "[\"OK\"]"]
                    .map(str::to_owned)
                    .to_vec();
            let good: Vec<String> = match kind {
                Kind::Whole(range) | Kind::Decimal(range) | Kind::Optional(range) => {
                    bad.push(Setting::Number(range.end() + 1_000).to_string());
                    bad.extend(range.start().checked_sub(1).map(|less| Setting::Number(less).to_string()));
                    [*range.start(), *range.end()].map(|end| Setting::Number(end).to_string()).to_vec()
                }
                Kind::Flag => vec!["true".to_owned(), "false".to_owned()],
                Kind::Codes => vec!["[]".to_owned(), "[\"ABORTED\", \"UNAVAILABLE\"]".replace(' ', "")],
                Kind::Balance => BALANCES.map(|policy| format!("\"{}\"", balance_name(policy))).to_vec(),
                Kind::Text(most) => {
                    bad.retain(|bad| !bad.starts_with('"'));
                    bad.push(format!("\"{}\"", "x".repeat(most + 1)));
                    vec!["null".to_owned(), "\"\"".to_owned(), "\"store.Items\"".to_owned()]
                }
            };
            if !matches!(kind, Kind::Optional(_) | Kind::Text(_)) {
                bad.push("null".to_owned());
            }
            (good, bad)
        }
        // Where one key may not be more than another, the other one is at its highest.
        let mates = [
            ("retry.base_ms", "retry.cap_ms"),
            ("breaker.open_ms", "breaker.open_cap_ms"),
            ("reconnect.base_ms", "reconnect.cap_ms"),
        ];
        for key in METHOD_KEYS {
            let (good, bad) = values(&key.kind);
            for value in good {
                let mut text = in_a_method(key.path, &value);
                for (low, high) in mates {
                    let (object, high) = high.split_once('.').unwrap_or_default();
                    if key.path == low {
                        text = text.replace(
                            &format!("\"{object}\": {{"),
                            &format!("\"{object}\": {{\"{high}\": {DAY}, "),
                        );
                    } else if key.path == format!("{object}.{high}") {
                        let low = low.split_once('.').unwrap_or_default().1;
                        text = text.replace(
                            &format!("\"{object}\": {{"),
                            &format!("\"{object}\": {{\"{low}\": 1, "),
                        );
                    }
                }
                let config = parsed(&text);
                assert_eq!(
                    (key.get)(config.method("/a/b")).to_string().replace(' ', ""),
                    value,
                    "{}",
                    key.path
                );
            }
            for value in bad {
                let message = refusal(&in_a_method(key.path, &value));
                assert!(message.contains(&format!("line 1: methods[0].{}", key.path)), "{message}");
            }
        }
        for key in CLIENT_KEYS {
            let (good, bad) = values(&key.kind);
            for value in good {
                let text = match key.path {
                    "reconnect.base_ms" => {
                        format!("{{\"reconnect\": {{\"base_ms\": {value}, \"cap_ms\": {DAY}}}}}")
                    }
                    "reconnect.cap_ms" => {
                        format!("{{\"reconnect\": {{\"cap_ms\": {value}, \"base_ms\": 1}}}}")
                    }
                    path => nested(path, &value),
                };
                assert_eq!((key.get)(&parsed(&text)).to_string(), value, "{}", key.path);
            }
            for value in bad {
                let message = refusal(&nested(key.path, &value));
                assert!(message.contains(&format!("line 1: {}", key.path)), "{message}");
            }
        }
    }

    #[test]
    fn the_most_specific_name_wins_key_by_key() {
        let config = parsed(
            r#"{"methods": [
                {"names": ["/store.Items/Get", "/other"], "timeout_ms": 10},
                {"names": ["*"], "retry": {"max_attempts": 5, "base_ms": 7, "attempt_timeout_ms": 9}, "timeout_ms": 40},
                {"names": ["/store.Items/*"], "idempotent": true, "retry": {"base_ms": 8}, "timeout_ms": 30},
                {"names": ["/store.Items/deep/*"], "retry": {"attempt_timeout_ms": null}, "timeout_ms": null}
            ]}"#,
        );
        let ms = |time: Option<Duration>| time.map(|time| time.as_millis());
        for (path, timeout, idempotent, base, attempt) in [
            ("/store.Items/Get", Some(10), true, 8, Some(9)),
            ("/store.Items/Put", Some(30), true, 8, Some(9)),
            ("/store.Items/deep/er/Put", None, true, 8, None),
            ("/other", Some(10), false, 7, Some(9)),
            ("/another", Some(40), false, 7, Some(9)),
            ("/store.ItemsNot/Get", Some(40), false, 7, Some(9)),
            ("", Some(40), false, 7, Some(9)),
        ] {
            let method = config.method(path);
            assert_eq!(ms(method.timeout), timeout, "{path}");
            assert_eq!(
                (method.idempotent, method.retry.backoff.base.as_millis()),
                (idempotent, base),
                "{path}"
            );
            assert_eq!((method.retry.max_attempts, ms(method.retry.attempt_timeout)), (5, attempt), "{path}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_key_value_and_fix() {
        for (text, expected) in [
            (
                "{\n\"methods\": [\n{\"names\": [\"*\"], \"retry\": {\"max_attempts\": 9}}]}",
                "service config, line 3: methods[0].retry.max_attempts: 9 is not a whole number: 1 to 5",
            ),
            (
                "{\"retry_budget\": {\n\"token\": 5}}",
                "service config, line 2: retry_budget.token: there is no such key; there are tokens, cost, throttled_cost, \
                 refund, extra_percent, extra_per_second",
            ),
            (
                "{\"methods\": [{\"name\": [\"*\"]}]}",
                "service config, line 1: methods[0].name: there is no such key; there are names, timeout_ms, idempotent, retry, hedge, \
                 breaker",
            ),
            (
                "{\"outlier\": NaN}",
                "service config, line 1: NaN is no JSON value: write a number, true, false, null or text in quotes",
            ),
            (
                "{\"throttle\": {\"k\": 1, \"k\": 2}}",
                "service config, line 1: the key \"k\" stands twice in one object",
            ),
            ("{\"outlier\": 1}", "service config, line 1: outlier: 1 is not an object"),
            (
                "{\"methods\": [{}]}",
                "service config, line 1: methods[0].names: it is missing; write for example [\"*\"]",
            ),
            (
                "{\"methods\": [{\"names\": [\"/a/*\"]}, {\"names\": [\"/a/*\"]}]}",
                "service config, line 1: methods[1].names: \"/a/*\" is named twice",
            ),
            (
                "{\"methods\": [{\"names\": [\"*\"], \"retry\": {\"base_ms\": 2000}}]}",
                "service config, line 1: methods[0].retry.base_ms: it is more than retry.cap_ms",
            ),
            ("", "service config, line 1: the text ends where a value must stand"),
        ] {
            assert_eq!(refusal(text), expected);
        }
        for name in ["", "a/b", "/a/", "/a*", "/*/b", "*/", "**", "1"] {
            assert!(
                refusal(&format!("{{\"methods\": [{{\"names\": [{name:?}]}}]}}")).contains("is not a list"),
                "{name}"
            );
        }
        for text in ["[]", "1", "{\"methods\": {}}", "{\"methods\": [1]}", "{\"methods\": [{\"names\": []}]}"]
        {
            refusal(text);
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        assert!(
            refusal(&" ".repeat(ServiceConfig::MAX_BYTES + 1)).contains("262145 bytes, more than 262144")
        );
        for nest in ["[", "{\"a\":", "{\"methods\":["] {
            assert!(refusal(&nest.repeat(100_000 / nest.len())).contains("nested more than 16"));
        }
        let many = vec!["{\"names\":[\"*\"]}"; ServiceConfig::MAX_METHODS + 1].join(",");
        assert!(refusal(&format!("{{\"methods\":[{many}]}}")).contains("1001 entries"));
        let keys: Vec<String> = (0..30_000).map(|key| format!("\"{key}\":0")).collect();
        refusal(&format!("{{{}}}", keys[..20_000].join(",")));
        let long = refusal(&nested("outlier.interval_ms", &format!("\"{}\"", "é\\n".repeat(10_000))));
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn the_page_has_the_keys() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/policies.md");
        let unit = |path: &str| match path.rsplit('_').next() {
            Some(unit @ ("ms" | "bytes")) => unit.to_owned(),
            Some("percent") => "%".to_owned(),
            _ => String::new(),
        };
        fn row<T: Default>(before: &str, key: &Key<T>, unit: String) -> String {
            let [what, source] = key.about;
            let default = (key.get)(&T::default()).to_string();
            let (kind, range) = (key.kind.name(), key.kind.range());
            format!(
                "| `{before}{}` | {what} | {kind} | {unit} | `{default}` | {range} | {source} |\n",
                key.path
            )
        }
        let mut table = String::from(
            "| key | what | type | unit | default | range | source |\n|---|---|---|---|---|---|---|\n",
        );
        METHOD_KEYS.iter().for_each(|key| table += &row("methods[].", key, unit(key.path)));
        CLIENT_KEYS.iter().for_each(|key| table += &row("", key, unit(key.path)));
        let text = std::fs::read_to_string(page).expect("the page");
        let (before, rest) = text.split_once("| key |").expect("a table");
        let rest = rest.split_once("\n\n").map_or("", |(_, rest)| rest);
        let expected = format!("{before}{table}\n{rest}");
        if std::env::var_os("VALKYRIE_BLESS").is_some() {
            return std::fs::write(page, &expected).expect("written");
        }
        assert!(text == expected, "docs/policies.md is not what the keys give: VALKYRIE_BLESS=1 writes it");
    }

    #[test]
    fn a_first_wait_is_not_more_than_the_longest() {
        for (json, told) in [
            (r#"{"reconnect": {"base_ms": 2000, "cap_ms": 1000}}"#, "reconnect.base_ms"),
            (r#"{"methods": [{"names": ["*"], "retry": {"base_ms": 2, "cap_ms": 1}}]}"#, "retry.base_ms"),
            (
                r#"{"methods": [{"names": ["*"], "breaker": {"open_ms": 200000, "open_cap_ms": 100000}}]}"#,
                "breaker.open_ms",
            ),
        ] {
            let refused = ServiceConfig::parse(json).unwrap_err();
            assert!(refused.message().contains(told) && refused.message().contains("more than"), "{refused}");
        }
    }
}
