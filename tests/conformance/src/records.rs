//! A wire between a client and a server that changes one record of a TLS connection: `records.json` has what, and what the
//! client must be told. It holds no key: whatever it does to what is encrypted must be found.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use serde::Deserialize;

/// A row of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Its name.
    pub case: String,
    record: Record,
    change: Change,
    /// The name of the reason that the client must be told, `OK` for none.
    #[serde(default = "authentication")]
    pub reason: String,
    /// Why that is right, where it may surprise.
    #[serde(default)]
    pub why: String,
}

fn authentication() -> String {
    "RECORD_AUTHENTICATION".into()
}

/// Which record is changed: the first of its kind.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Record {
    ClientHello,
    /// The client's first encrypted record.
    Finished,
    /// Its second: HELLO and the first call.
    Call,
    ServerHello,
    /// The server's first encrypted record.
    Proof,
    /// Its first after the client's Finished.
    Answer,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Change {
    Flip,
    FlipTag,
    Shorten,
    Type,
    Repeat,
    /// Sent after the next one.
    Swap,
    Drop,
    /// Replaced by the same record of an earlier connection.
    Splice,
    /// Something else goes ahead of it.
    Inject,
    Suite,
    Version,
    Alpn,
}

/// The table.
pub fn rows() -> Vec<Row> {
    serde_json::from_str(include_str!("../records.json")).expect("records.json")
}

/// A wire to `server`, `host:port`, and where it begins. Its first connection passes unchanged, and is what is spliced from.
///
/// # Errors
/// No port is to be had.
pub fn wire(row: &Row, server: &str) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let (row, server) = (row.clone(), server.to_owned());
    std::thread::spawn(move || {
        let earlier: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(&server)) else { return };
            let armed = earlier.lock().expect("no thread panics").is_some();
            let finished = Arc::new(AtomicBool::new(false));
            for (from, to, is_client) in [(&near, &far, true), (&far, &near, false)] {
                let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
                let side = Side { is_client, armed, encrypted: 0, answers: 0, kept: None };
                let (row, earlier, finished) = (row.clone(), earlier.clone(), finished.clone());
                std::thread::spawn(move || {
                    // The end of one side is told to the other.
                    let _ = side.pass(&row, from, &to, &earlier, &finished);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    Ok(address)
}

/// One direction of a connection.
struct Side {
    is_client: bool,
    armed: bool,
    /// Encrypted records so far, and of a server those since the client's Finished.
    encrypted: usize,
    answers: usize,
    /// What waits for the next record.
    kept: Option<Vec<u8>>,
}

impl Side {
    fn pass(
        mut self,
        row: &Row,
        mut from: TcpStream,
        mut to: &TcpStream,
        earlier: &Mutex<Option<Vec<u8>>>,
        finished: &AtomicBool,
    ) -> io::Result<()> {
        loop {
            let mut record = vec![0; 5];
            from.read_exact(&mut record)?;
            let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
            record.resize(5 + len, 0);
            from.read_exact(&mut record[5..])?;
            if self.kind(&record, finished) == Some(row.record) {
                if !self.armed {
                    earlier.lock().expect("no thread panics").get_or_insert_with(|| record.clone());
                } else {
                    let spliced = earlier.lock().expect("no thread panics").clone().unwrap_or_default();
                    record = self.changed(row.change, record, spliced);
                }
            } else if let Some(kept) = self.kept.take() {
                record.extend_from_slice(&kept);
            }
            to.write_all(&record)?;
        }
    }

    fn kind(&mut self, record: &[u8], finished: &AtomicBool) -> Option<Record> {
        match (record[0], self.is_client) {
            (0x16, true) => Some(Record::ClientHello),
            (0x16, false) => Some(Record::ServerHello),
            (0x17, true) => {
                self.encrypted += 1;
                finished.store(true, SeqCst);
                [Record::Finished, Record::Call].get(self.encrypted - 1).copied()
            }
            (0x17, false) => {
                self.encrypted += 1;
                if self.encrypted == 1 {
                    return Some(Record::Proof);
                }
                self.answers += usize::from(finished.load(SeqCst));
                (self.answers == 1).then_some(Record::Answer)
            }
            _ => None,
        }
    }

    fn changed(&mut self, change: Change, mut record: Vec<u8>, spliced: Vec<u8>) -> Vec<u8> {
        let (middle, last) = (5 + (record.len() - 5) / 2, record.len() - 1);
        match change {
            // In a hello: within its random.
            Change::Flip if record[0] == 0x16 => record[20] ^= 1,
            Change::Flip => record[middle] ^= 1,
            Change::FlipTag => record[last] ^= 1,
            Change::Shorten => {
                record.pop();
                let len = (record.len() - 5) as u16;
                record[3..5].copy_from_slice(&len.to_be_bytes());
            }
            Change::Type => record[0] = 0x16,
            Change::Repeat => record.extend_from_within(..),
            Change::Swap => self.kept = Some(std::mem::take(&mut record)),
            Change::Drop => record.clear(),
            Change::Splice => record = spliced,
            Change::Inject => {
                let other = [&[0x17, 3, 3, 0, 32][..], &[7; 32]].concat();
                record.splice(..0, other);
            }
            // Another suite that the server knows too.
            Change::Suite => replace(&mut record, &[0x13, 0x02], &[0x13, 0x03]),
            Change::Version => replace(
                &mut record,
                &[0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x04],
                &[0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x03],
            ),
            Change::Alpn => {
                replace(&mut record, b"valkyrie/1", b"valkyrie/0");
                replace(&mut record, b"valkyrie-sealed/1", b"valkyrie-sealed/0");
            }
        }
        record
    }
}

fn replace(record: &mut [u8], what: &[u8], by: &[u8]) {
    if let Some(at) = record.windows(what.len()).position(|window| window == what) {
        record[at..at + by.len()].copy_from_slice(by);
    }
}
