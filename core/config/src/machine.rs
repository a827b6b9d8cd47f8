//! What the machine and its limits have room for.

use crate::{Config, ConfigError};

/// Descriptors that are kept for everything but connections, as the sdk keeps them.
const SPARE_DESCRIPTORS: u64 = 64;
/// Memory of a connection at rest.
const CONNECTION_BYTES: u64 = 10 << 10;

/// The limits of a process: of its own (RLIMIT_NOFILE), and of its control group (cgroup v2, `memory.max`), the least of those around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Descriptors that it may have now, and the most that it could ask for.
    pub descriptors: Option<(u64, u64)>,
    /// Bytes that it may use.
    pub memory: Option<u64>,
}

impl Machine {
    /// Of this process.
    pub fn here() -> Self {
        #[cfg(unix)]
        let descriptors = {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            limit.current.map(|soft| (soft, limit.maximum.unwrap_or(u64::MAX)))
        };
        #[cfg(not(unix))]
        let descriptors = None;
        Self { descriptors, memory: memory() }
    }

    /// Refuses what there is no room for, with the number that there is room for. Only what somebody has asked for is refused: the default
    /// of `max_connections` is cut to what the descriptors allow.
    ///
    /// # Errors
    /// The first key that asks for too much.
    pub fn check(&self, config: &Config) -> Result<(), ConfigError> {
        let refuse = |key: &str, value: u64, most: u64, why: String| {
            Err(config.wrong(key, format!("{value} is more than {why}; write {most} or less")))
        };
        let default = Config::default();
        let asks = |key: &str, is_default: bool| !is_default && config.origin_of(key) != "default";
        let connections = config.max_connections;
        if asks("max_connections", connections == default.max_connections) {
            if let Some((soft, hard)) = self.descriptors {
                let most = soft.saturating_sub(SPARE_DESCRIPTORS).max(1);
                let needed = connections + SPARE_DESCRIPTORS;
                if connections > most {
                    let raise = if needed <= hard {
                        format!("ulimit -n {needed}")
                    } else {
                        format!("its hard limit is {hard}: LimitNOFILE={needed} of systemd")
                    };
                    let why = format!(
                        "the {soft} descriptors of this process allow (RLIMIT_NOFILE, of which {SPARE_DESCRIPTORS} are kept); raise it ({raise}), or"
                    );
                    let message = format!("{connections} is more than {why} write {most} or less");
                    return Err(config.wrong("max_connections", message));
                }
            }
            if let Some(memory) = self.memory {
                let most = room(memory) / CONNECTION_BYTES;
                if connections > most {
                    let why = format!(
                        "the {memory} bytes of its control group hold (memory.max; 10 KiB for each at rest)"
                    );
                    return refuse("max_connections", connections, most.max(1), why);
                }
            }
        }
        let Some(memory) = self.memory else { return Ok(()) };
        let bytes = [
            ("dedup_bytes", config.dedup_bytes, config.dedup && config.dedup_bytes > room(memory)),
            ("max_message_bytes", config.max_message_bytes, config.max_message_bytes > room(memory)),
        ];
        for (key, value, is_too_much) in bytes {
            if is_too_much {
                let why = format!("three quarters of the {memory} bytes of its control group (memory.max)");
                return refuse(key, value, room(memory), why);
            }
        }
        Ok(())
    }
}

/// What may be taken of the memory: the rest is for the program itself.
fn room(memory: u64) -> u64 {
    memory / 4 * 3
}

#[cfg(target_os = "linux")]
fn memory() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    memory_of(std::path::Path::new("/sys/fs/cgroup"), &groups)
}

#[cfg(not(target_os = "linux"))]
fn memory() -> Option<u64> {
    None
}

/// The least of the group's and of those that it is in.
#[cfg(any(target_os = "linux", test))]
fn memory_of(root: &std::path::Path, groups: &str) -> Option<u64> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/');
    let folders = std::path::Path::new(group).ancestors();
    let limit = |folder| {
        let text = std::fs::read_to_string(root.join(folder).join("memory.max")).ok()?;
        // `max` is no limit.
        text.trim().parse::<u64>().ok()
    };
    folders.filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Layer, Layers};

    fn asking(values: serde_json::Value) -> Config {
        let layer = Layer::new("asked", values.as_object().unwrap().clone());
        Layers::new().source(layer).load().unwrap()
    }

    /// I14.
    #[test]
    fn what_there_is_no_room_for_is_refused_with_the_number_that_there_is() {
        let machine = Machine { descriptors: Some((1_024, 4_096)), memory: Some(64 << 20) };
        for (values, words) in [
            (
                json!({"max_connections": 1_000_000}),
                "hard limit is 4096: LimitNOFILE=1000064 of systemd), or write 960 or less",
            ),
            (
                json!({"max_connections": 961}),
                "asked: max_connections: 961 is more than the 1024 descriptors",
            ),
            (json!({"max_connections": 2_000}), "(ulimit -n 2064), or write 960 or less"),
            (json!({"dedup": true, "dedup_bytes": 1 << 30}), "write 50331648 or less"),
            (json!({"max_message_bytes": 1 << 30}), "write 50331648 or less"),
        ] {
            let error = machine.check(&asking(values.clone())).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            // The number that is named works.
            let most: u64 = error.split("write ").last().unwrap().split(' ').next().unwrap().parse().unwrap();
            let mut less = values;
            let key = error.split(": ").nth(1).unwrap();
            less[key] = json!(most);
            assert_eq!(machine.check(&asking(less)), Ok(()), "{error}");
        }
        let memory = Machine { descriptors: None, memory: Some(64 << 20) };
        let error = memory.check(&asking(json!({"max_connections": 1_000_000}))).unwrap_err().to_string();
        assert!(error.ends_with("hold (memory.max; 10 KiB for each at rest); write 4915 or less"), "{error}");
        for values in [json!({}), json!({"max_connections": 960}), json!({"max_connections": 65_536})] {
            assert_eq!(machine.check(&asking(values.clone())), Ok(()), "{values}");
        }
        assert_eq!(Machine::default().check(&asking(json!({"max_connections": 10_000_000}))), Ok(()));
    }

    #[test]
    fn the_least_limit_of_the_groups_around_counts() {
        let root = std::env::temp_dir().join(format!("valkyrie-cgroup-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        let write = |file: &str, text: &str| std::fs::write(root.join(file), text).unwrap();
        write("a/memory.max", "4096\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(memory_of(&root, "1:cpu:/x\n0::/a/b\n"), Some(4_096));
        write("a/b/memory.max", "1024\n");
        assert_eq!(memory_of(&root, "0::/a/b\n"), Some(1_024));
        assert_eq!(memory_of(&root, "0::/\n"), None);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
