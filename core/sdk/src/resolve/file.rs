//! `file:///path`: a list of servers in JSON, which is read again when the file is another one.

use std::{fs::File, io::Read, path::PathBuf, sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use valkyrie_protocol::{Status, Time};

use super::{ResolvedServer, Resolver, Watch, failed};
use crate::{
    BoxFuture, Endpoint, Runtime,
    policy::json::{Json, Value},
    runtime::sleep_until,
    shared::FileStamp,
};

pub(super) const SCHEME: &str = "file";
/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// The longest file.
const MAX_BYTES: u64 = 1 << 20;
const WEIGHTS: std::ops::RangeInclusive<u64> = 1..=1_000_000;
const LEVELS: std::ops::RangeInclusive<u64> = 0..=7;

pub(super) struct Files(pub(super) Arc<dyn Runtime>);

impl Resolver for Files {
    fn watch(&self, endpoint: &Endpoint) -> Result<Box<dyn Watch>, Status> {
        let path = PathBuf::from(endpoint.address());
        let runtime = self.0.clone();
        Ok(Box::new(Followed {
            path,
            runtime,
            looking: None,
            due: None,
            stamp: None,
            good: false,
            told: None,
        }))
    }
}

struct Followed {
    path: PathBuf,
    runtime: Arc<dyn Runtime>,
    looking: Option<JoinHandle<Looked>>,
    due: Option<Time>,
    /// Of the file that was read last, unless it may have changed since.
    stamp: Option<FileStamp>,
    /// There was a good one, and what was told to be wrong with the last one.
    good: bool,
    told: Option<String>,
}

/// Nothing, where the file is the one that was read.
type Looked = Option<(Option<FileStamp>, Result<Vec<ResolvedServer>, String>)>;

fn look(path: &PathBuf, before: Option<&FileStamp>) -> Looked {
    // A pipe would be waited for.
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Some((None, Err("it is no regular file".to_owned()))),
        Err(error) => return Some((None, Err(error.to_string()))),
    };
    if before == Some(&FileStamp::of(&metadata)) {
        return None;
    }
    let mut text = String::new();
    let mut read = || {
        let file = File::open(path)?;
        let stamp = FileStamp::of(&file.metadata()?);
        file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        Ok(stamp)
    };
    let stamp = match read() {
        Ok(stamp) => stamp,
        Err(error) => return Some((None, Err(std::io::Error::to_string(&error)))),
    };
    let stamp = Some(stamp).filter(|stamp| !stamp.is_young());
    if text.len() as u64 > MAX_BYTES {
        return Some((stamp, Err(format!("it is longer than {MAX_BYTES} bytes"))));
    }
    Some((stamp, parse(&text)))
}

impl Followed {
    async fn find(&mut self) -> Result<Vec<ResolvedServer>, Status> {
        loop {
            let looking = match &mut self.looking {
                Some(looking) => looking,
                None => {
                    if let Some(due) = self.due {
                        sleep_until(&*self.runtime, due).await;
                    }
                    let (path, stamp) = (self.path.clone(), self.stamp.clone());
                    self.looking.insert(tokio::task::spawn_blocking(move || look(&path, stamp.as_ref())))
                }
            };
            let looked = looking.await;
            self.looking = None;
            self.due = Some(self.runtime.now().after(EVERY));
            let Some((stamp, read)) = looked.map_err(|error| failed(error.to_string()))? else { continue };
            self.stamp = stamp;
            match read {
                Ok(servers) => {
                    (self.good, self.told) = (true, None);
                    return Ok(servers);
                }
                // Told once, while the last good one is in force.
                Err(why) if self.good && self.told.as_ref() == Some(&why) => {}
                Err(why) => {
                    self.told = Some(why.clone());
                    return Err(failed(why));
                }
            }
        }
    }
}

impl Watch for Followed {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<ResolvedServer>, Status>> {
        Box::pin(self.find())
    }

    fn again(&mut self) {
        self.stamp = None;
    }
}

/// `{"servers": [{"endpoint": "tcp://host:port", "weight": 1, "level": 0}]}`, where weight and level may be left out.
fn parse(text: &str) -> Result<Vec<ResolvedServer>, String> {
    let json = Json::parse(text).map_err(|wrong| format!("line {}: {}", wrong.line, wrong.what))?;
    let whole = r#"write {"servers": [{"endpoint": "tcp://host:port"}]}"#;
    let Value::Object(members) = json.value else {
        return Err(format!("line {}: it is no object; {whole}", json.line));
    };
    let mut servers = None;
    for (key, value) in members {
        match (key.as_str(), value.value) {
            ("servers", Value::List(list)) => servers = Some(list),
            ("servers", _) => return Err(format!("line {}: servers is no list; {whole}", value.line)),
            _ => return Err(format!("line {}: there is no key {key:?}; {whole}", value.line)),
        }
    }
    let Some(servers) = servers else { return Err(format!("the key servers is missing; {whole}")) };
    servers.into_iter().enumerate().map(|(at, server)| read_server(at, server)).collect()
}

fn read_server(at: usize, server: Json<'_>) -> Result<ResolvedServer, String> {
    let line = server.line;
    let Value::Object(members) = server.value else {
        return Err(format!(
            "line {line}: servers[{at}] is no object; write {{\"endpoint\": \"tcp://host:port\"}}"
        ));
    };
    let (mut endpoint, mut weight, mut level) = (None, 1, 0);
    for (key, value) in members {
        let Json { line, text, value } = value;
        let wrong = |what: &str| format!("line {line}: servers[{at}].{key} is {text}; {what}");
        let whole = |range: std::ops::RangeInclusive<u64>| match value {
            Value::Number(number) if number % 1_000 == 0 && range.contains(&(number / 1_000)) => {
                Ok(number / 1_000)
            }
            _ => Err(wrong(&format!("write a whole number from {} to {}", range.start(), range.end()))),
        };
        match key.as_str() {
            "endpoint" => match &value {
                Value::Text(text) => {
                    let parsed = Endpoint::parse(text);
                    endpoint = Some(parsed.map_err(|status| {
                        format!("line {line}: servers[{at}].{key}: {}", status.message())
                    })?);
                }
                _ => return Err(wrong("write \"tcp://host:port\"")),
            },
            "weight" => weight = whole(WEIGHTS)? as u32,
            "level" => level = whole(LEVELS)? as u8,
            _ => {
                return Err(format!(
                    "line {line}: servers[{at}] has no key {key:?}; there are endpoint, weight and level"
                ));
            }
        }
    }
    let Some(endpoint) = endpoint else {
        return Err(format!(
            "line {line}: servers[{at}] has no endpoint; write \"endpoint\": \"tcp://host:port\""
        ));
    };
    Ok(ResolvedServer::new(endpoint).weight(weight).level(level))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::shared::YOUNG;

    #[test]
    fn a_file_says_endpoint_weight_and_level() {
        let text =
            r#"{"servers": [{"endpoint": "a:1"}, {"level": 7, "weight": 1000000, "endpoint": "unix:///b"}]}"#;
        let server = |text| ResolvedServer::new(Endpoint::parse(text).unwrap());
        assert_eq!(parse(text), Ok(vec![server("a:1"), server("unix:///b").weight(1_000_000).level(7)]));
        for text in ["0", "1000001", "1.5", "-1", "\"1\"", "null"] {
            let text = format!("{{\"servers\": [\n\n{{\"endpoint\": \"a:1\", \"weight\": {text}}}]}}");
            let why = parse(&text).unwrap_err();
            assert!(why.starts_with("line 3: servers[0].weight is "), "{why}");
            assert!(why.ends_with("write a whole number from 1 to 1000000"), "{why}");
        }
    }

    /// A file that was just written may be written again within what its time tells apart.
    #[test]
    fn a_young_file_is_read_again() {
        let path = std::env::temp_dir().join(format!("valkyrie-young-{}", std::process::id()));
        std::fs::write(&path, r#"{"servers": [{"endpoint": "a:1"}]}"#).unwrap();
        let Some((None, Ok(_))) = look(&path, None) else { panic!("it is young") };
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - 2 * YOUNG).unwrap();
        let Some((Some(stamp), Ok(_))) = look(&path, None) else { panic!("it is old") };
        assert!(look(&path, Some(&stamp)).is_none(), "it is the same");
        file.set_modified(SystemTime::now() + YOUNG).unwrap();
        let Some((None, Ok(_))) = look(&path, Some(&stamp)) else { panic!("it is of the future") };
        std::fs::remove_file(&path).unwrap();
        let Some((None, Err(_))) = look(&path, None) else { panic!("it is gone") };
        let Some((None, Err(_))) = look(&std::env::temp_dir(), None) else { panic!("it is a folder") };
    }
}
